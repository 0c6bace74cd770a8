// Package place decides on which node a guest runs: request + cluster → node,
// and for every node the reason why it was refused or how it compares.
//
// It is pure, and the same question has the same answer on every node. It knows nothing of
// leases or of how a guest gets to its place, nor of how rules are written: that is package rules.
//
// Invariant: a node is chosen only if nothing speaks against it, and whoever is refused gets a
// sentence; no placement breaks a strict rule. Start reading with [Choose], then [Planner]; the semantics
// of rules and scores stand in DESIGN.md.
package place

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Verdict is what a placement thinks of one node.
type Verdict struct {
	Node string
	// OK: the node could take the guest. Exactly one of the OK ones is Chosen, unless the guest had better stay.
	OK     bool
	Chosen bool
	// Reason is a clause for a person: "n2 has no storage nas".
	Reason string
	// Guests is the number of other guests there, LoadPercent the configured memory with the guest in percent of the
	// node's memory, and Score what Static and Dynamic think of it, 0 to 1, more is better. All are 0 if the node was refused.
	Guests      int
	LoadPercent float64
	Score       float64
	// Penalty is the weight of the soft rules that it would break.
	Penalty int
}

// Choose returns the best node for r: of the highest class of its node affinity that has one, with those it must be with
// and away from those it must be apart from, with room for those of them that are lost too, if any node has it; then the one that breaks the fewest soft rules; then by the cluster's mode the one with
// the fewest guests, or the best score for cpu and memory; then the first by name. It returns "" if every node is
// refused, and the guest's own node if it had better stay. The verdicts are sorted: chosen, possible, refused, and by
// name among the refused.
func Choose(r Request, c Cluster) (node string, verdicts []Verdict) {
	return NewPlanner(c).Choose(r)
}

// Choose is the function of that name, on the planner's cluster as it is by now.
func (p *Planner) Choose(r Request) (node string, verdicts []Verdict) {
	q := p.query(r)
	d := p.decide(&q)
	verdicts = p.verdicts(&q, d)
	if d.node < 0 {
		return "", verdicts
	}
	return p.nodes[d.node].Name, verdicts
}

// verdicts writes down what became of each node.
func (p *Planner) verdicts(q *query, d decision) []Verdict {
	out := make([]Verdict, 0, len(p.nodes))
	if d.node >= 0 {
		out = append(out, p.verdict(q, d))
	}
	for _, n := range d.good {
		if n != d.node {
			out = append(out, p.compared(q, n))
		}
	}
	for n := range p.nodes {
		if n != d.node && !slices.Contains(d.good, n) {
			out = append(out, Verdict{Node: p.nodes[n].Name, Reason: p.why(q, n, d)})
		}
	}
	return out
}

// verdict is that of the node which was chosen.
func (p *Planner) verdict(q *query, d decision) Verdict {
	v := p.compared(q, d.node)
	v.Chosen = true
	if d.stay {
		v.Reason = fmt.Sprintf("%s is on %s already", q.sid, v.Node)
	}
	return v
}

// compared is the verdict of a node that could take the guest.
func (p *Planner) compared(q *query, n int) Verdict {
	nd := &p.nodes[n]
	v := Verdict{Node: nd.Name, OK: true, Guests: nd.guests, Penalty: p.s.penalty[n]}
	used := nd.configuredMiB - p.ownMiB(q, n)
	if q.self >= 0 && !p.guests[q.self].Idle && (p.guests[q.self].node == n || p.guests[q.self].target == n) {
		v.Guests--
	}
	if nd.MemoryMiB > 0 {
		v.LoadPercent = 100 * float64(used+q.memMiB) / float64(nd.MemoryMiB)
	}
	v.Reason = fmt.Sprintf("%s has %s and would have %.0f %% of its memory configured", nd.Name, otherGuests(v.Guests), v.LoadPercent)
	if p.mode != Basic {
		v.Score = p.s.score[n]
		cpu, mem := p.load(n)
		v.Reason += fmt.Sprintf(" (%s: %.0f %% of cpu and %.0f %% of memory now, score %.2f)", p.mode, 100*cpu, 100*mem, v.Score)
	}
	if v.Penalty > 0 {
		v.Reason += fmt.Sprintf(", breaking soft rules of weight %d", v.Penalty)
	}
	return v
}

func otherGuests(n int) string {
	if n == 1 {
		return "1 other guest"
	}
	return fmt.Sprintf("%d other guests", n)
}

// Placement is the answer to one request of a plan.
type Placement struct {
	Request Request
	Node    string // "" if every node was refused
	// Verdicts are that of the chosen node alone, or those of all nodes if none was chosen.
	Verdicts []Verdict
}

// Plan places several guests, one after the other in the order of their names, each one counting for those
// after it. If a guest finds no place so, the
// biggest are placed first instead, where that brings back more. A guest that finds no place does not count on any node but where the
// cluster lists it.
func Plan(rs []Request, c Cluster) []Placement {
	return NewPlanner(c).Plan(rs)
}

// Plan is the function of that name; what it places counts from then on.
func (p *Planner) Plan(rs []Request) []Placement {
	byName := named(rs)
	t := p.trial()
	defer t.end()
	plan := p.placeAll(byName, false)
	missed := unplaced(plan)
	if missed == 0 {
		return plan
	}
	t.undo()
	bySize := slices.Clone(byName)
	slices.SortStableFunc(bySize, func(a, b Request) int { return cmp.Compare(b.MemoryMiB, a.MemoryMiB) })
	better := unplaced(p.placeAll(bySize, false)) < missed
	t.undo()
	if better {
		return p.placeAll(bySize, true)
	}
	return p.placeAll(byName, true)
}

// named is rs in the order of their names, which all have now.
func named(rs []Request) []Request {
	rs = slices.Clone(rs)
	for i := range rs {
		rs[i].SID = rs[i].Name()
	}
	slices.SortStableFunc(rs, func(a, b Request) int { return cmp.Compare(a.SID, b.SID) })
	return rs
}

func unplaced(plan []Placement) int {
	n := 0
	for _, pl := range plan {
		if pl.Node == "" {
			n++
		}
	}
	return n
}

// placeAll places rs in their order. Only with explain it says of those without a place why.
func (p *Planner) placeAll(rs []Request, explain bool) []Placement {
	out := make([]Placement, 0, len(rs))
	for _, r := range rs {
		q := p.query(r)
		d := p.decide(&q)
		pl := Placement{Request: r}
		switch {
		case d.node >= 0:
			v := p.verdict(&q, d)
			pl.Node, pl.Verdicts = v.Node, []Verdict{v}
			p.Place(r, v.Node)
		case explain:
			pl.Verdicts = p.verdicts(&q, d)
		}
		out = append(out, pl)
	}
	return out
}

// Pick is Choose for those who want one sentence: it is cheaper by the number of nodes. why is what Explain says.
func (p *Planner) Pick(r Request) (node, why string) {
	q := p.query(r)
	d := p.decide(&q)
	if d.node < 0 {
		return "", Explain(p.verdicts(&q, d))
	}
	v := p.verdict(&q, d)
	return v.Node, Explain([]Verdict{v})
}

// Explain is one sentence about the verdicts of a choice: why the chosen node, or why none.
func Explain(verdicts []Verdict) string {
	if len(verdicts) == 0 {
		return "the cluster has no nodes"
	}
	if v := verdicts[0]; v.Chosen && strings.HasSuffix(v.Reason, " already") {
		return v.Reason
	} else if v.Chosen {
		return v.Reason + ", the best of those possible"
	}
	const most = 8
	reasons := make([]string, 0, most)
	for i, v := range verdicts {
		if i == most && len(verdicts) > most+1 {
			reasons = append(reasons, fmt.Sprintf("and %d more nodes", len(verdicts)-most))
			break
		}
		reasons = append(reasons, v.Reason)
	}
	return "no node can take it: " + strings.Join(reasons, "; ")
}
