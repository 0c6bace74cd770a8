package report

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"
)

const wide = 1080.0

func (r *Run) seconds() scale { return scale{lo: 0, hi: max(r.Length.Seconds(), 1)} }

// nodeClass is the colour of a node.
func (r *Run) nodeClass(name string) string {
	if i := slices.Index(r.Nodes, name); i >= 0 {
		return fmt.Sprintf("node%d", i%3+1)
	}
	return "none"
}

// timelineChart shows steps, moves, where guests were, and which nodes had power.
func timelineChart(r *Run) template.HTML {
	lanes := slices.Clone(r.Timeline)
	if len(lanes) == 0 {
		return ""
	}
	slices.SortStableFunc(lanes, func(a, b Lane) int { return cmp.Compare(laneOrder(a.Name), laneOrder(b.Name)) })
	const row = 28.0
	h := 56 + row*float64(len(lanes))
	c := newCanvas(wide, h, "Timeline of the run")
	f := newFrame(c, wide, h, margins{10, 12, 40, 84}, r.seconds(), scale{lo: 0, hi: 1})
	f.windows(r)
	for _, v := range f.x.ticks(14) {
		c.line("grid", f.x.at(v), f.y.to, f.x.at(v), f.y.from)
	}
	f.xAxis(14, "seconds since the begin")
	for i, l := range lanes {
		y := f.y.to + row*float64(i)
		c.text("label e", f.x.from-10, y+row/2+4, l.Name)
		for n, s := range l.Spans {
			f.span(r, y+5, row-10, n, s)
		}
	}
	return c.done()
}

func laneOrder(name string) int {
	for i, prefix := range []string{"steps", "moves", "guest"} {
		if strings.HasPrefix(name, prefix) {
			return i
		}
	}
	return 9
}

func (f frame) span(r *Run, y, h float64, n int, s Span) {
	x1, x2 := f.x.at(s.From.Seconds()), f.x.at(s.To.Seconds())
	colour, text := s.Kind, s.Label
	title := fmt.Sprintf("%s: %.1f to %.1f s", cmp.Or(s.Label, s.Kind), s.From.Seconds(), s.To.Seconds())
	switch s.Kind {
	case "step":
		colour += fmt.Sprint(n % 2)
		text = fmt.Sprint(n + 1)
	case "move", "on":
		text = ""
	case "off":
	default:
		colour = r.nodeClass(s.Kind)
	}
	f.rect("span "+colour, x1, y, x2-x1-0.8, h, title)
	if text != "" && x2-x1 > 7*float64(len(text))+6 {
		f.text("onspan m "+colour, (x1+x2)/2, y+h/2+4, text)
	}
}

// windows shades the faults.
func (f frame) windows(r *Run) {
	for _, w := range r.Windows {
		x1, x2 := f.x.at(w.From.Seconds()), f.x.at(w.To.Seconds())
		f.rect("fault", x1, f.y.to, x2-x1, f.y.from-f.y.to, fmt.Sprintf("%s: %.1f to %.1f s", w.Label, w.From.Seconds(), w.To.Seconds()))
	}
}

// quorumChart shows each poll of each node.
func quorumChart(r *Run) template.HTML {
	if len(r.Polls) == 0 {
		return ""
	}
	const row = 26.0
	h := 50 + row*float64(len(r.Nodes))
	c := newCanvas(wide, h, "Answers of each node to the question whether it is quorate")
	f := newFrame(c, wide, h, margins{8, 12, 40, 84}, r.seconds(), scale{lo: 0, hi: 1})
	f.windows(r)
	f.xAxis(14, "seconds since the begin")
	for i, n := range r.Nodes {
		y := f.y.to + row*float64(i)
		c.text("label e", f.x.from-10, y+row/2+3, n)
		for _, p := range r.Polls {
			if p.Node == n {
				f.poll(y+4, row-8, p)
			}
		}
	}
	return c.done()
}

func (f frame) poll(y, h float64, p Poll) {
	class, word := "good", "quorate"
	if !p.Quorate {
		class, word = "bad", p.Reason
		if p.InFault {
			class = "warn"
		}
	}
	x := f.x.at(p.At.Seconds())
	w := min(max((f.x.to-f.x.from)/(f.x.hi-f.x.lo)*0.8, 1), f.x.to-x)
	f.rect("poll "+class, x, y, w, h, fmt.Sprintf("%s at %.1f s: %s", p.Node, p.At.Seconds(), word))
}

// hole: two samples that are further apart are not connected.
const hole = 3 * time.Second

// loadChart draws what a node used: value picks the two figures that are put on top of each other.
func loadChart(r *Run, l NodeLoad, name string, top float64, value func(LoadSample) (guests, sauh float64)) template.HTML {
	const w, h = 340.0, 170.0
	c := newCanvas(w, h, name+" of "+l.Node)
	f := newFrame(c, w, h, margins{26, 8, 36, 38}, r.seconds(), scale{lo: 0, hi: top})
	f.windows(r)
	f.yAxis(4, name)
	for _, part := range parts(l.Samples) {
		var x, zero, low, high []float64
		for _, s := range part {
			guests, sauh := value(s)
			x, zero = append(x, f.x.at(s.At.Seconds())), append(zero, f.y.at(0))
			low, high = append(low, f.y.at(guests)), append(high, f.y.at(guests+sauh))
		}
		f.area("area guests", x, zero, low)
		f.area("area sauh", x, low, high)
	}
	f.xAxis(5, "seconds since the begin")
	return c.done()
}

// parts splits samples where the node had no power.
func parts(all []LoadSample) [][]LoadSample {
	var out [][]LoadSample
	for i, s := range all {
		if i == 0 || s.At-all[i-1].At > hole || s.SauhBytes == 0 != (all[i-1].SauhBytes == 0) {
			out = append(out, nil)
		}
		if s.SauhBytes > 0 {
			out[len(out)-1] = append(out[len(out)-1], s)
		}
	}
	return out
}

func coresOf(s LoadSample) (guests, sauh float64) { return s.GuestCPU, s.SauhCPU }

func mebibytesOf(s LoadSample) (guests, sauh float64) {
	return float64(s.GuestBytes) / (1 << 20), float64(s.SauhBytes) / (1 << 20)
}

// highest is the end of the scale that all nodes share.
func highest(all []NodeLoad, value func(LoadSample) (guests, sauh float64)) float64 {
	top := 0.1
	for _, l := range all {
		for _, s := range l.Samples {
			a, b := value(s)
			top = max(top, a+b)
		}
	}
	return roundUp(top)
}
