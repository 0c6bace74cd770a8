package report

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strconv"
	"strings"
)

// canvas builds one SVG. Colours come from the page's style by class, so that a chart follows light and dark.
type canvas struct {
	b strings.Builder
}

// newCanvas begins a picture of w by h units that scales with the page; label is for those who cannot see it.
func newCanvas(w, h float64, label string) *canvas {
	c := &canvas{}
	fmt.Fprintf(&c.b, `<svg viewBox="0 0 %s %s" role="img" aria-label="%s">`, num(w), num(h), html.EscapeString(label))
	return c
}

// done ends the picture.
func (c *canvas) done() template.HTML {
	c.b.WriteString("</svg>")
	return template.HTML(c.b.String()) //nolint:gosec // every text in it was escaped by text and title
}

// num prints a coordinate with a tenth of a unit.
func num(v float64) string {
	return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64)
}

func (c *canvas) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(&c.b, `<path class="%s" d="M%s %sL%s %s"/>`, class, num(x1), num(y1), num(x2), num(y2))
}

// rect draws a rectangle; title, if any, is shown when it is pointed at. It is never narrower than it can be seen.
func (c *canvas) rect(class string, x, y, w, h float64, title string) {
	w = max(w, 0.7)
	if title == "" {
		fmt.Fprintf(&c.b, `<rect class="%s" x="%s" y="%s" width="%s" height="%s"/>`, class, num(x), num(y), num(w), num(h))
		return
	}
	fmt.Fprintf(&c.b, `<rect class="%s" x="%s" y="%s" width="%s" height="%s"><title>%s</title></rect>`,
		class, num(x), num(y), num(w), num(h), html.EscapeString(title))
}

func (c *canvas) circle(class string, x, y, r float64, title string) {
	fmt.Fprintf(&c.b, `<circle class="%s" cx="%s" cy="%s" r="%s"><title>%s</title></circle>`, class, num(x), num(y), num(r), html.EscapeString(title))
}

// text writes at x, y; class says how it is aligned: "s" to the right of x, "m" around it, "e" to the left.
func (c *canvas) text(class string, x, y float64, s string) {
	fmt.Fprintf(&c.b, `<text class="%s" x="%s" y="%s">%s</text>`, class, num(x), num(y), html.EscapeString(s))
}

// dots draws many equal marks as one path.
func (c *canvas) dots(class string, points [][2]float64) {
	if len(points) == 0 {
		return
	}
	fmt.Fprintf(&c.b, `<path class="%s" d="`, class)
	for _, p := range points {
		fmt.Fprintf(&c.b, "M%s %sh0", num(p[0]), num(p[1]))
	}
	c.b.WriteString(`"/>`)
}

// area fills between two rows of points with the same x; strokes draws the upper one's line.
func (c *canvas) area(class string, x, low, high []float64) {
	if len(x) < 2 {
		return
	}
	fmt.Fprintf(&c.b, `<path class="%s" d="M`, class)
	for i := range x {
		fmt.Fprintf(&c.b, "%s %s ", num(x[i]), num(high[i]))
	}
	for i := len(x) - 1; i >= 0; i-- {
		fmt.Fprintf(&c.b, "%s %s ", num(x[i]), num(low[i]))
	}
	c.b.WriteString(`Z"/>`)
}

// scale maps values to coordinates.
type scale struct {
	lo, hi   float64 // values
	from, to float64 // coordinates
	log      bool
}

func (s scale) at(v float64) float64 {
	lo, hi := s.lo, s.hi
	v = min(max(v, lo), hi)
	if s.log {
		lo, hi, v = math.Log10(lo), math.Log10(hi), math.Log10(v)
	}
	return s.from + (v-lo)/(hi-lo)*(s.to-s.from)
}

// ticks are round values between lo and hi, about n of them; of a logarithmic scale the powers of ten.
func (s scale) ticks(n int) []float64 {
	var out []float64
	if s.log {
		for v := math.Pow(10, math.Ceil(math.Log10(s.lo))); v <= s.hi*1.001; v *= 10 {
			out = append(out, v)
		}
		return out
	}
	step := niceStep((s.hi - s.lo) / float64(n))
	for i := math.Ceil(s.lo/step - 1e-9); i*step <= s.hi+step*1e-6; i++ {
		out = append(out, i*step+0) // never a negative zero
	}
	return out
}

// niceStep is the smallest of 1, 2, 5 times a power of ten that is at least v.
func niceStep(v float64) float64 {
	base := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if v <= m*base*1.0001 {
			return m * base
		}
	}
	return 10 * base
}

// roundUp is v or a little more, a value that a scale may end with.
func roundUp(v float64) float64 {
	step := niceStep(v / 5)
	return math.Ceil(v/step-1e-9) * step
}

// frame is the plot of a chart inside its margins, with its axes.
type frame struct {
	*canvas
	x, y scale
}

// margins of a frame.
type margins struct{ top, right, bottom, left float64 }

func newFrame(c *canvas, w, h float64, m margins, x, y scale) frame {
	x.from, x.to = m.left, w-m.right
	y.from, y.to = h-m.bottom, m.top
	return frame{c, x, y}
}

// xAxis draws ticks and the axis' name with its unit.
func (f frame) xAxis(n int, name string) {
	f.line("axis", f.x.from, f.y.from, f.x.to, f.y.from)
	for _, v := range f.x.ticks(n) {
		f.line("axis", f.x.at(v), f.y.from, f.x.at(v), f.y.from+4)
		f.text("tick m", f.x.at(v), f.y.from+15, tickLabel(v))
	}
	f.text("name e", f.x.to, f.y.from+29, name)
}

// yAxis draws grid lines, their values, and the name above.
func (f frame) yAxis(n int, name string) {
	for _, v := range f.y.ticks(n) {
		f.line("grid", f.x.from, f.y.at(v), f.x.to, f.y.at(v))
		f.text("tick e", f.x.from-6, f.y.at(v)+3.5, tickLabel(v))
	}
	f.text("name s", f.x.from, f.y.to-8, name)
}

func tickLabel(v float64) string {
	s := strconv.FormatFloat(v, 'f', -1, 64)
	if math.Abs(v) >= 1000 {
		return group(s)
	}
	return strings.Replace(strconv.FormatFloat(v, 'g', 6, 64), "-", "\u2212", 1)
}
