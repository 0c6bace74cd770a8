package report

import (
	"fmt"
	"html/template"
	"math"
	"time"
)

func msOf(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// trips is the scale of all echo charts, in ms: one, so that they can be compared.
func trips() scale { return scale{lo: 0.3, hi: 3000, log: true} }

// gapsChart compares the gap of each move with that of its twin by hand.
func gapsChart(r *Run) template.HTML {
	if len(r.Migrations) == 0 {
		return ""
	}
	const w, row = 720.0, 34.0
	longest := 300.0
	for _, m := range r.Migrations {
		longest = max(longest, msOf(m.Sauh.Gap), msOf(m.Hand.Gap))
	}
	h := 74 + row*float64(len(r.Migrations))
	c := newCanvas(w, h, "Longest gap of the echo over each move, by Sauh and by hand")
	f := newFrame(c, w, h, margins{24, 48, 44, 96}, scale{lo: 0, hi: roundUp(longest * 1.08)}, scale{lo: 0, hi: float64(len(r.Migrations))})
	for _, v := range f.x.ticks(6) {
		c.line("grid", f.x.at(v), f.y.to, f.x.at(v), f.y.from)
	}
	f.xAxis(6, "longest gap, ms")
	for _, limit := range []struct {
		ms           float64
		align, label string
	}{{250, "e", "median ≤ 250 ms"}, {1000, "s", "each below 1 s"}} {
		if limit.ms <= f.x.hi {
			c.line("limit", f.x.at(limit.ms), f.y.to-4, f.x.at(limit.ms), f.y.from)
			c.text("limittext "+limit.align, f.x.at(limit.ms), f.y.to-9, limit.label)
		}
	}
	for i, m := range r.Migrations {
		gapRow(f, f.y.to+row*(float64(i)+0.5), i, m)
	}
	return c.done()
}

func gapRow(f frame, y float64, i int, m Migration) {
	f.text("label e", f.x.from-10, y+4, fmt.Sprintf("%d  %s → %s", i+1, m.Sauh.From, m.Sauh.To))
	if m.Sauh.Made() && m.Hand.Made() {
		f.line("link", f.x.at(msOf(m.Sauh.Gap)), y, f.x.at(msOf(m.Hand.Gap)), y)
	}
	if !m.Sauh.Made() {
		f.text("badtext s", f.x.from+6, y+4, "failed")
	}
	for _, one := range []struct {
		class string
		move  Move
		who   string
	}{{"hand", m.Hand, "by hand"}, {"sauh", m.Sauh, "by Sauh"}} {
		if one.move.Made() {
			f.circle(one.class+" mark", f.x.at(msOf(one.move.Gap)), y, 6, fmt.Sprintf("move %d %s: %.0f ms", i+1, one.who, msOf(one.move.Gap)))
		}
	}
}

// pairChart lays the echoes around the gaps of a move by Sauh and of its twin by hand over one another.
func pairChart(m Migration) template.HTML {
	const w, h = 340.0, 208.0
	sides := []struct {
		class string
		move  Move
	}{{"hand", m.Hand}, {"sauh", m.Sauh}}
	lo, hi := 0.0, 1.0
	for _, s := range sides {
		for _, e := range s.move.Echo {
			lo, hi = min(lo, msOf(e.At-s.move.GapAt)), max(hi, msOf(e.At-s.move.GapAt))
		}
	}
	if hi == 1 {
		return ""
	}
	c := newCanvas(w, h, fmt.Sprintf("Echo around the move from %s to %s, by Sauh and by hand", m.Sauh.From, m.Sauh.To))
	f := newFrame(c, w, h, margins{58, 10, 36, 40}, scale{lo: lo, hi: hi}, trips())
	f.yAxis(4, "")
	c.text("name s", 2, 10, "round trip, ms")
	f.xAxis(5, "ms since the gap began")
	for i, s := range sides {
		if s.move.Made() {
			f.gapBar(s.class, s.move.Gap, f.y.to-14-15*float64(i))
			f.echoes(s.move.Echo, s.move.GapAt, time.Millisecond, s.class, f.y.from-3-4*float64(i))
		}
	}
	return c.done()
}

// gapBar draws how long nobody answered, above the plot, and where that ended in it.
func (f frame) gapBar(class string, gap time.Duration, y float64) {
	x0, x1 := f.x.at(0), f.x.at(msOf(gap))
	f.rect("gap "+class, x0, f.y.to, x1-x0, f.y.from-f.y.to, "")
	f.rect("bar "+class, x0, y, x1-x0, 8, fmt.Sprintf("no answer for %.0f ms", msOf(gap)))
	f.text("label s", x1+6, y+8, fmt.Sprintf("%.0f ms", msOf(gap)))
}

// echoes draws answered echoes as dots and lost ones as marks at the height lostAt, near the axis.
func (f frame) echoes(all []Echo, zero, unit time.Duration, class string, lostAt float64) {
	var answered, lost [][2]float64
	for _, e := range all {
		x := f.x.at(float64(e.At-zero) / float64(unit))
		if e.Trip < 0 {
			lost = append(lost, [2]float64{x, lostAt})
			continue
		}
		answered = append(answered, [2]float64{x, f.y.at(msOf(e.Trip))})
	}
	f.dots("lost "+class, lost)
	f.dots("dots "+class, answered)
}

// failoverChart shows the echo of the guest whose node lost its power.
func failoverChart(fo Failover) template.HTML {
	const w, h = 1080.0, 290.0
	if len(fo.Echo) == 0 {
		return ""
	}
	c := newCanvas(w, h, "Echo of "+fo.Guest+" around the power cut of "+fo.Node)
	lo, hi := (fo.Echo[0].At - fo.Cut).Seconds(), (fo.Echo[len(fo.Echo)-1].At - fo.Cut).Seconds()
	f := newFrame(c, w, h, margins{84, 16, 40, 48}, scale{lo: math.Floor(lo), hi: max(math.Ceil(hi), fo.AnswerLimit.Seconds()+3, 1)}, trips())
	f.yAxis(4, "")
	c.text("name s", 2, f.y.to-8, "round trip, ms")
	stages(f, fo)
	f.xAxis(14, "seconds since the power cut")
	f.echoes(fo.Echo, fo.Cut, time.Second, "sauh", f.y.from-3)
	for _, l := range []struct {
		at   time.Duration
		text string
	}{{fo.StartLimit, "limit to start"}, {fo.AnswerLimit, "limit to answer"}} {
		if x := f.x.at(l.at.Seconds()); l.at > 0 && l.at.Seconds() < f.x.hi {
			c.line("limit", x, f.y.to, x, f.y.from)
			c.text("limittext s", x+5, f.y.from-10, fmt.Sprintf("%s %g s", l.text, l.at.Seconds()))
		}
	}
	return c.done()
}

// stages marks the moments of a failover above the plot, each on a line of its own, since some are close together.
func stages(f frame, fo Failover) {
	shade := func(class string, from, to time.Duration, title string) {
		if from > 0 && to > from {
			x1, x2 := f.x.at((from - fo.Cut).Seconds()), f.x.at((to - fo.Cut).Seconds())
			f.rect(class, x1, f.y.to, x2-x1, f.y.from-f.y.to, title)
		}
	}
	shade("silence", fo.Cut, fo.Started, "its lease runs out")
	shade("booting", fo.Started, fo.Answered, "the guest boots")
	for i, m := range []struct {
		at   time.Duration
		text string
	}{
		{fo.Cut, "power cut"},
		{fo.Fenced, "fenced, seen after %.1f s"},
		{fo.Started, "QEMU started on " + fo.To + " after %.2f s"},
		{fo.Answered, "guest answers after %.2f s"},
	} {
		if m.at == 0 {
			continue
		}
		since := (m.at - fo.Cut).Seconds()
		text := m.text
		if i > 0 {
			text = fmt.Sprintf(m.text, since)
		}
		x, y := f.x.at(since), 14+float64(i)*16
		f.line("moment", x, y-6, x, f.y.from)
		if x > f.x.from+0.75*(f.x.to-f.x.from) {
			f.text("label e", x-6, y+2, text)
		} else {
			f.text("label s", x+6, y+2, text)
		}
	}
}
