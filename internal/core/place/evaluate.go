package place

import (
	"cmp"
	"fmt"
	"slices"
)

// Evaluate looks at every HA guest that is not on its way: is it where it may be, is there a better class of nodes. It
// returns the moves that follow, in the order of their names, each counting for the next. Nobody is moved for a better balance, nor
// for a soft rule. Guests of nodes that are lost are not its business: those are planned, see [Planner.Plan].
func (p *Planner) Evaluate() []Move {
	var out []Move
	for _, i := range p.sorted() {
		g := &p.guests[i]
		if !g.HA || g.Idle || g.target >= 0 || !p.there(g.node) || p.nodes[g.node].State == Suspect {
			continue
		}
		if g.rules == nil && g.Home == "" && p.isOnline(g.node) {
			continue
		}
		q := p.query(g.Request(Stay))
		d := p.decide(&q)
		if d.node < 0 || d.stay || d.node == g.node {
			continue
		}
		m := Move{SID: g.sid, From: g.Node, To: p.nodes[d.node].Name, Reason: p.because(&q, d), With: p.along(&q, d.node)}
		p.Move(m.SID, m.To)
		out = append(out, m)
	}
	return out
}

// sorted are the guests' indexes in the order of their names.
func (p *Planner) sorted() []int {
	out := make([]int, len(p.guests))
	for i := range out {
		out[i] = i
	}
	slices.SortFunc(out, func(a, b int) int { return cmp.Compare(p.guests[a].sid, p.guests[b].sid) })
	return out
}

// because says why a guest leaves its node.
func (p *Planner) because(q *query, d decision) string {
	from, to := p.nodes[q.node].Name, p.nodes[d.node].Name
	if d.node == q.home {
		return fmt.Sprintf("%s is back, from where a maintenance drove %s", to, q.sid)
	}
	if p.nodes[q.node].State != Online || p.s.why[q.node].kind != fine || !p.s.allowed[q.node] {
		return fmt.Sprintf("%s; %s is the best of those possible", p.why(q, q.node, d), to)
	}
	return fmt.Sprintf("%s comes before %s in rule %s", to, from, q.rules.Affinity.Rule)
}

// along names the partners of q that are not on n and not going there.
func (p *Planner) along(q *query, n int) []string {
	var out []string
	for _, i := range q.partners.together {
		if g := &p.guests[i]; !g.Idle && p.destination(g) != n {
			out = append(out, g.sid)
		}
	}
	return out
}

// Check says why a guest must not go to target on a person's command, "" if it may, and who goes along. A person may take a guest out
// of its node affinity where that is not strict, and to a node of a lower priority.
func (p *Planner) Check(sid, target string) (refusal string, with []string) {
	i, ok := p.bySID[sid]
	if !ok {
		return sid + " is no guest of the cluster", nil
	}
	n := p.index(target)
	if n < 0 {
		return target + " is no node of the cluster", nil
	}
	q := p.query(p.guests[i].Request(Stay))
	p.rulesOut(&q)
	if p.isOnline(n) && p.s.allowed[n] && p.s.why[n].kind == fine {
		p.s.why[n] = p.capacity(&q, n)
	}
	if !p.isOnline(n) || !p.s.allowed[n] || p.s.why[n].kind != fine {
		return p.why(&q, n, decision{node: -1}), nil
	}
	return "", p.along(&q, n)
}
