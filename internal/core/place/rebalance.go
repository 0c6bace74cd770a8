package place

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Imbalance is the spread of the load over the nodes online: the standard deviation of (cpu+memory)/2 in parts of its mean. 0 in
// mode Basic, which knows no load.
func (p *Planner) Imbalance() float64 {
	if p.mode == Basic {
		return 0
	}
	s := p.newSpread()
	return s.imbalance()
}

// uneven says whether the imbalance is one to act on.
func (p *Planner) uneven(params BalanceParams) bool {
	if p.mode == Basic || len(p.online) == 0 {
		return false
	}
	s := p.newSpread()
	if p.mode == Dynamic && slices.Max(s.load)-slices.Min(s.load) < params.MinSpread {
		return false
	}
	return s.imbalance() > params.Threshold
}

// spread is the nodes' load, so that the imbalance after a move takes no loop.
type spread struct {
	load    []float64 // (cpu+memory)/2, by position among the nodes online
	mean    float64
	squares float64 // of the differences from the mean
}

func (p *Planner) newSpread() spread {
	s := spread{load: make([]float64, len(p.online))}
	for i, n := range p.online {
		cpu, mem := p.load(n)
		s.load[i] = (cpu + mem) / 2
		s.mean += s.load[i] / float64(len(p.online))
	}
	for _, l := range s.load {
		s.squares += (l - s.mean) * (l - s.mean)
	}
	return s
}

func (s *spread) imbalance() float64 { return imbalance(s.squares, s.mean, len(s.load)) }

func imbalance(squares, mean float64, n int) float64 {
	if n < 2 || mean <= 0 {
		return 0
	}
	return rounded(math.Sqrt(max(squares, 0)/float64(n)) / mean)
}

// with is the imbalance if nodes a and b had other loads.
func (s *spread) with(a int, loadA float64, b int, loadB float64) float64 {
	n := float64(len(s.load))
	shift := (loadA - s.load[a] + loadB - s.load[b]) / n
	squares := s.squares
	for _, c := range [2]struct {
		at  int
		new float64
	}{{a, loadA}, {b, loadB}} {
		before, after := s.load[c.at]-s.mean, c.new-s.mean
		squares += after*after - before*before
	}
	return imbalance(squares-n*shift*shift, s.mean+shift, len(s.load))
}

// candidate is a bundle that could move.
type candidate struct {
	members []int // the first by name leads
	from    int   // position among the nodes online
	memMiB  int64 // configured
	targets []int // likewise positions
	// freedCPU and freedMem are what from loses, in its own parts.
	freedCPU, freedMem float64
}

// option is a candidate's way to one node.
type option struct {
	candidate *candidate
	to        int
	imbalance float64
}

// Rebalance is the function of that name.
func (p *Planner) Rebalance(params BalanceParams) []Move {
	return p.rebalance(params, params.Moves, func(string, string, string) bool { return false })
}

// rebalance returns at most n bundles, each move counting for the next; vetoed are not tried.
func (p *Planner) rebalance(params BalanceParams, n int, veto func(sid, from, to string) bool) []Move {
	t := p.trial()
	defer t.end()
	defer t.undo()
	var out []Move
	for range n {
		if !p.uneven(params) {
			break
		}
		now := p.Imbalance()
		best, ok := p.best(params.Method, veto)
		if !ok {
			break
		}
		gib := float64(best.candidate.memMiB) / 1024
		if gain := now - best.imbalance - params.CostPerGiB*gib; gain <= 0 || gain/now < params.Margin {
			break
		}
		out = append(out, p.carryOut(best, now)...)
	}
	return out
}

// carryOut moves the bundle in the planner, as if it had arrived.
func (p *Planner) carryOut(o option, now float64) []Move {
	var sids []string
	for _, m := range o.candidate.members {
		sids = append(sids, p.guests[m].sid)
	}
	from, to := p.online[o.candidate.from], p.online[o.to]
	var out []Move
	for i, m := range o.candidate.members {
		g := &p.guests[m]
		p.remember(m)
		out = append(out, Move{
			SID: g.sid, From: p.nodes[from].Name, To: p.nodes[to].Name, With: slices.Delete(slices.Clone(sids), i, i+1),
			Reason: fmt.Sprintf("%s to %s lowers the imbalance from %.2f to %.2f", strings.Join(sids, ", "), p.nodes[to].Name, now, o.imbalance),
		})
		p.settle(g, to)
	}
	return out
}

// settle lets a running guest be on n, with what it uses, and not move again.
func (p *Planner) settle(g *guest, n int) {
	p.count(g, -1)
	g.Node, g.node, g.target, g.NoRebalance = p.nodes[n].Name, n, -1, true
	p.count(g, 1)
}

// best is the option to take, by the method.
func (p *Planner) best(m Method, veto func(sid, from, to string) bool) (option, bool) {
	if p.mode == Basic || len(p.online) < 2 {
		return option{}, false
	}
	b := newBench(p)
	var best option
	var score float64
	var t topsis
	candidates := p.candidates(veto)
	if m == TOPSIS {
		for i := range candidates {
			for _, to := range candidates[i].targets {
				t.see(b.alternative(&candidates[i], to))
			}
		}
	}
	for i := range candidates {
		c := &candidates[i]
		for _, to := range c.targets {
			switch o := (option{c, to, b.after(c, to)}); m {
			case TOPSIS:
				if s := t.score(b.alternative(c, to)); best.candidate == nil || s > score {
					best, score = o, s
				}
			default:
				if best.candidate == nil || o.imbalance < best.imbalance {
					best = o
				}
			}
		}
	}
	return best, best.candidate != nil
}

// bench works out what options bring.
type bench struct {
	p      *Planner
	spread spread
	loads  loads
}

func newBench(p *Planner) *bench {
	cpu, mem := make([]float64, len(p.online)), make([]float64, len(p.online))
	for i, n := range p.online {
		cpu[i], mem[i] = p.load(n)
	}
	return &bench{p, p.newSpread(), newLoads(cpu, mem)}
}

// changes are the two nodes' loads after c went to to.
func (b *bench) changes(c *candidate, to int) (from, target change) {
	from = change{c.from, max(b.loads.cpu[c.from]-c.freedCPU, 0), max(b.loads.mem[c.from]-c.freedMem, 0)}
	target = change{to, b.loads.cpu[to], b.loads.mem[to]}
	for _, m := range c.members {
		cpu, mem := b.p.share(&b.p.guests[m], b.p.online[to])
		target.cpu += cpu
		target.mem += mem
	}
	return from, target
}

func (b *bench) after(c *candidate, to int) float64 {
	f, t := b.changes(c, to)
	return b.spread.with(f.at, (f.cpu+f.mem)/2, t.at, (t.cpu+t.mem)/2)
}

func (b *bench) alternative(c *candidate, to int) [criteria]float64 {
	return b.loads.alternative(b.changes(c, to))
}

// share is what a guest uses of node n by the mode, in parts of what n has.
func (p *Planner) share(g *guest, n int) (cpu, mem float64) {
	c, m := p.milliCPUs(g.CPUs, n), g.MemoryMiB
	if p.mode == Dynamic {
		c, m = p.usage(g, n)
	}
	return float64(c) / float64(1000*p.nodes[n].CPUs), float64(m) / float64(p.nodes[n].MemoryMiB)
}

// candidates are the bundles that could move, by the name of their leaders, with the nodes to which they could.
func (p *Planner) candidates(veto func(sid, from, to string) bool) []candidate {
	position := make(map[int]int, len(p.online))
	for i, n := range p.online {
		position[n] = i
	}
	var out []candidate
	seen := map[int]bool{}
	for _, i := range p.sorted() {
		g := &p.guests[i]
		if g.rules != nil && g.rules.Bundle > 0 {
			if seen[g.rules.Bundle] {
				continue
			}
			seen[g.rules.Bundle] = !g.Idle
		}
		c, ok := p.candidate(i)
		if !ok {
			continue
		}
		c.from = position[g.node]
		for _, n := range p.targets(&c) {
			if !veto(g.sid, p.nodes[g.node].Name, p.nodes[n].Name) {
				c.targets = append(c.targets, position[n])
			}
		}
		if len(c.targets) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// candidate is the bundle that guest i leads; ok is false if one of it is no HA resource that is to run, idle, moving, elsewhere or not to be moved.
func (p *Planner) candidate(i int) (c candidate, ok bool) {
	g := &p.guests[i]
	c.members = []int{i}
	for _, m := range p.partnersOf(g.rules).together {
		if !p.guests[m].Idle {
			c.members = append(c.members, m)
		}
	}
	slices.SortFunc(c.members[1:], func(a, b int) int { return cmp.Compare(p.guests[a].sid, p.guests[b].sid) })
	for _, m := range c.members {
		o := &p.guests[m]
		if !o.HA || o.Idle || o.Starting || o.NoRebalance || o.target >= 0 || o.node != g.node || !p.isOnline(o.node) {
			return candidate{}, false
		}
		cpu, mem := p.share(o, o.node)
		c.freedCPU += cpu
		c.freedMem += mem
		c.memMiB += o.MemoryMiB
	}
	return c, true
}

// targets are the nodes of the highest class to which a bundle may go, and where it breaks no more soft rules than now.
func (p *Planner) targets(c *candidate) []int {
	g := &p.guests[c.members[0]]
	classes := p.classesOf(g.rules)
	if len(classes) == 0 {
		return nil
	}
	q := p.query(g.Request(Best))
	q.memMiB = c.memMiB
	for _, m := range c.members[1:] {
		q.storages = append(slices.Clone(q.storages), p.guests[m].Storages...)
	}
	if g.rules != nil {
		p.rulesOut(&q)
	} else {
		clear(p.s.why)
		clear(p.s.penalty)
	}
	var out []int
	for _, n := range classes[0].nodes {
		if n != g.node && p.s.why[n].kind == fine && p.s.penalty[n] <= p.s.penalty[g.node] && p.capacity(&q, n).kind == fine {
			out = append(out, n)
		}
	}
	return out
}
