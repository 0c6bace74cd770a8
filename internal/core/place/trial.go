package place

import "slices"

// trial remembers how the planner was, so that it can be put back. Trials may be nested; the inner one is ended first.
type trial struct {
	p      *Planner
	nodes  []node
	guests int // how many there were
	mark   int // in p.log
}

// trial begins one. Whoever begins it ends it by end.
func (p *Planner) trial() trial {
	p.trials++
	return trial{p, slices.Clone(p.nodes), len(p.guests), len(p.log)}
}

// remember notes how a guest was before it is changed.
func (p *Planner) remember(i int) {
	if p.trials > 0 {
		p.log = append(p.log, p.guests[i])
	}
}

// undo puts everything back as it was; guests added since are forgotten.
func (t trial) undo() {
	p := t.p
	for i := len(p.log) - 1; i >= t.mark; i-- {
		g := p.log[i]
		p.guests[p.bySID[g.sid]] = g
	}
	p.log = p.log[:t.mark]
	for _, g := range p.guests[t.guests:] {
		delete(p.bySID, g.sid)
		clear(p.partners)
	}
	p.guests = p.guests[:t.guests]
	copy(p.nodes, t.nodes)
}

// end forgets the trial; what was not undone stays.
func (t trial) end() {
	if t.p.trials--; t.p.trials == 0 {
		t.p.log = t.p.log[:0]
	}
}
