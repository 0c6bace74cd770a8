package place

import (
	"fmt"
	"slices"
	"strings"
)

// Tolerance is how many node failures the cluster can take.
type Tolerance struct {
	// Nodes is the largest number such that, whichever so many of the nodes online fail, all their HA guests find a place.
	Nodes int
	// Exact is false if more failures were not tried, because there are too many combinations: then Nodes is a lower bound.
	Exact bool
	// Failed are the first nodes found, Nodes+1 of them, whose loss leaves guests without a place, and Unplaced those
	// guests and why. Both are empty if not Exact.
	Failed   []string
	Unplaced []Placement
}

// String is a clause for a person: "the cluster can take 1 node failure".
func (t Tolerance) String() string {
	least := ""
	if !t.Exact {
		least = "at least "
	}
	return "the cluster can take " + least + failures(t.Nodes)
}

func failures(n int) string {
	if n == 1 {
		return "1 node failure"
	}
	return fmt.Sprintf("%d node failures", n)
}

// DefaultBudget is about a second of work at 256 nodes.
const DefaultBudget = 100_000

// FailuresToTolerate counts the failures that the cluster can take now: every combination of so many nodes online is planned
// as [Plan] would. budget bounds the work, in placements of one guest: a number of failures whose combinations would take more is not tried. 0
// means [DefaultBudget]. The last node online counts as one that cannot be lost.
func FailuresToTolerate(c Cluster, budget int) Tolerance {
	return NewPlanner(c).tolerance(len(c.Nodes), budget)
}

// tolerance tries up to most failures.
func (p *Planner) tolerance(most, budget int) Tolerance {
	if budget <= 0 {
		budget = DefaultBudget
	}
	online := slices.Clone(p.online)
	guests := p.byNode()
	protected := 0
	for _, n := range online {
		protected += len(guests[n])
	}
	if protected == 0 {
		return Tolerance{Nodes: max(min(most, len(online)-1), 0), Exact: true}
	}
	for k := 1; k <= min(most, len(online)-1); k++ {
		sets := combinations(len(online), k, budget)
		if sets < 0 || sets*(1+k*protected/len(online)) > budget {
			return Tolerance{Nodes: k - 1}
		}
		p.work += sets * (1 + k*protected/len(online))
		if failed, missed := p.anyFailure(online, guests, k); failed != nil {
			return Tolerance{Nodes: k - 1, Exact: true, Failed: failed, Unplaced: missed}
		}
	}
	if most <= len(online)-1 {
		return Tolerance{Nodes: most}
	}
	t := Tolerance{Nodes: max(len(online)-1, 0), Exact: true}
	for _, n := range online {
		t.Failed = append(t.Failed, p.nodes[n].Name)
	}
	return t
}

// byNode are the HA guests of each node.
func (p *Planner) byNode() map[int][]int {
	out := map[int][]int{}
	for i := range p.guests {
		if g := &p.guests[i]; g.HA && g.node >= 0 {
			out[g.node] = append(out[g.node], i)
		}
	}
	return out
}

// combinations is the binomial coefficient, -1 if it is more than limit.
func combinations(n, k, limit int) int {
	out := 1
	for i := 1; i <= k; i++ {
		out = out * (n - k + i) / i
		if out > limit {
			return -1
		}
	}
	return out
}

// anyFailure tries all sets of k nodes and returns the first whose loss leaves guests without a place.
func (p *Planner) anyFailure(online []int, guests map[int][]int, k int) (failed []string, missed []Placement) {
	at := make([]int, k)
	for i := range at {
		at[i] = i
	}
	for {
		lost := make([]int, k)
		for i, a := range at {
			lost[i] = online[a]
		}
		if missed := p.misses(lost, guests); len(missed) > 0 {
			for _, n := range lost {
				failed = append(failed, p.nodes[n].Name)
			}
			return failed, missed
		}
		i := k - 1
		for i >= 0 && at[i] == len(online)-k+i {
			i--
		}
		if i < 0 {
			return nil, nil
		}
		at[i]++
		for j := i + 1; j < k; j++ {
			at[j] = at[j-1] + 1
		}
	}
}

// misses are the guests that would not come back without the nodes lost. The planner stays as it is.
func (p *Planner) misses(lost []int, guests map[int][]int) []Placement {
	t := p.trial()
	defer func() {
		t.undo()
		t.end()
		p.statesChanged()
	}()
	var missed []Placement
	for _, pl := range p.without(lost, guests) {
		if pl.Node == "" {
			missed = append(missed, pl)
		}
	}
	return missed
}

// without plans the loss of nodes.
func (p *Planner) without(lost []int, guests map[int][]int) []Placement {
	var requests []Request
	for _, n := range lost {
		p.nodes[n].State = Fenced
		for _, i := range guests[n] {
			r := p.guests[i].Request(Best)
			if p.guests[i].Idle {
				r.MemoryMiB = 0 // it moves so that it can be started, and takes nothing until then
			}
			requests = append(requests, r)
		}
	}
	p.statesChanged()
	return p.Plan(requests)
}

// WhatIf plans as if the nodes named were lost at once: where their HA guests would go, in the order of the plan, and why
// those with Node "" would not come back. Names that the cluster does not have are passed over.
func WhatIf(c Cluster, lost ...string) []Placement {
	p := NewPlanner(c)
	var indexes []int
	for _, name := range lost {
		if i := p.index(name); i >= 0 && !slices.Contains(indexes, i) {
			indexes = append(indexes, i)
		}
	}
	return p.without(indexes, p.byNode())
}

// Admit places r on node, "" for where Choose puts it, as a guest that is brought back, if the cluster can then still take so many node failures. Else it
// leaves everything as it was and says why in a sentence. What could not be tried within [DefaultBudget] is admitted. See Work.
func (p *Planner) Admit(r Request, node string, wanted int) (why string) {
	best, verdicts := p.Choose(r)
	if best == "" {
		return fmt.Sprintf("%s finds no place: %s", r.Name(), Explain(verdicts))
	}
	if node == "" {
		node = best
	}
	t := p.trial()
	defer t.end()
	p.Place(r, node)
	p.guests[p.bySID[r.Name()]].HA = true
	if wanted <= 0 {
		return ""
	}
	tol := p.tolerance(wanted, 0)
	if tol.Nodes >= wanted || !tol.Exact {
		return ""
	}
	t.undo()
	return tol.refuses(r, node, wanted)
}

// Work is how many placements of one guest have been tried for the answers of Admit so far: at 256 nodes about 100,000 take a second.
func (p *Planner) Work() int { return p.work }

// refuses says why r must not be on node.
func (t Tolerance) refuses(r Request, node string, wanted int) string {
	begin := fmt.Sprintf("with %s on %s the cluster could take %s, and failures-to-tolerate asks for %d: without %s, ",
		r.Name(), node, failures(t.Nodes), wanted, strings.Join(t.Failed, " and "))
	if len(t.Unplaced) == 0 {
		return begin + "no node would be left: lower failures-to-tolerate"
	}
	var names []string
	for _, pl := range t.Unplaced {
		names = append(names, pl.Request.Name())
	}
	return fmt.Sprintf("%s%s would not come back (%s): stop a guest, add memory, or lower failures-to-tolerate",
		begin, strings.Join(names, ", "), Explain(t.Unplaced[0].Verdicts))
}
