// Package place decides on which node a guest starts: request + cluster → node,
// and for every node the reason why it was refused or how it compares.
//
// It is pure and looks at configuration alone: memory that guests are allowed to use, not what they use
// at the moment, so that the same question has the same answer on every node. It knows nothing of
// leases or of how a guest gets to its place.
//
// Invariant: a node is chosen only if nothing speaks against it, and whoever is refused gets a
// sentence. Start reading with [Choose].
package place

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/model"
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

// Choose returns the node with the least configured memory in percent of its own, the guest included;
// then the one with the fewest guests; then the first by name. It returns "" if every node is refused. The verdicts are
// sorted: chosen, possible, refused, and by name among the refused.
func Choose(r Request, c Cluster) (node string, verdicts []Verdict) {
	loads := c.loads(r.VMID)
	for _, n := range c.Nodes {
		verdicts = append(verdicts, judge(r, n, loads[n.Name], c.ReserveMiB))
	}
	slices.SortFunc(verdicts, func(a, b Verdict) int {
		if a.OK != b.OK {
			if a.OK {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.LoadPercent, b.LoadPercent), cmp.Compare(a.Guests, b.Guests), cmp.Compare(a.Node, b.Node))
	})
	if len(verdicts) == 0 || !verdicts[0].OK {
		return "", verdicts
	}
	verdicts[0].Chosen = true
	return verdicts[0].Node, verdicts
}

// judge looks at one node.
func judge(r Request, n Node, l load, reserveMiB int64) Verdict {
	v := Verdict{Node: n.Name}
	if v.Reason = refusal(r, n, l.usedMiB, reserveMiB); v.Reason != "" {
		return v
	}
	v.OK = true
	v.Guests = l.guests
	v.LoadPercent = 100 * float64(l.usedMiB+r.MemoryMiB) / float64(n.MemoryMiB)
	v.Reason = fmt.Sprintf("%s has %s and would have %.0f %% of its memory configured", n.Name, otherGuests(l.guests), v.LoadPercent)
	return v
}

func otherGuests(n int) string {
	if n == 1 {
		return "1 other guest"
	}
	return fmt.Sprintf("%d other guests", n)
}

// load is the configured memory and the number of a node's guests.
type load struct {
	usedMiB int64
	guests  int
}

// loads sums up each node's guests, without the one asked for.
func (c Cluster) loads(without model.VMID) map[string]load {
	out := make(map[string]load, len(c.Nodes))
	for _, g := range c.Guests {
		if g.VMID == without {
			continue
		}
		l := out[g.Node]
		out[g.Node] = load{l.usedMiB + g.MemoryMiB, l.guests + 1}
	}
	return out
}

// refusal is the first thing that speaks against n, "" if nothing does.
func refusal(r Request, n Node, usedMiB, reserveMiB int64) string {
	switch n.State {
	case Online:
	case Suspect:
		return n.Name + " is silent"
	case Fenced:
		return n.Name + " is fenced"
	default:
		return n.Name + " is offline"
	}
	if why, ok := r.Exclude[n.Name]; ok {
		return n.Name + " is excluded: " + why
	}
	for _, s := range r.Storages {
		if !slices.Contains(n.Storages, s) {
			return n.Name + " has no storage " + s
		}
	}
	if n.MemoryMiB <= 0 {
		return n.Name + " has not told how much memory it has"
	}
	if free := n.MemoryMiB - reserveMiB - usedMiB; r.MemoryMiB > free {
		return fmt.Sprintf("%s has %d MiB free of %d MiB (%d MiB configured, %d MiB reserved), the guest needs %d MiB",
			n.Name, max(free, 0), n.MemoryMiB, usedMiB, reserveMiB, r.MemoryMiB)
	}
	return ""
}

// Placement is the answer to one request of a plan.
type Placement struct {
	Request  Request
	Node     string // "" if every node was refused
	Verdicts []Verdict
}

// Plan places several guests, one after the other, the biggest first (then by id), each one counting for those
// after it. A guest that finds no place does not count on any node but where the cluster lists it.
func Plan(rs []Request, c Cluster) []Placement {
	rs = slices.Clone(rs)
	slices.SortStableFunc(rs, func(a, b Request) int {
		return cmp.Or(cmp.Compare(b.MemoryMiB, a.MemoryMiB), cmp.Compare(a.VMID, b.VMID))
	})
	out := make([]Placement, 0, len(rs))
	for _, r := range rs {
		node, verdicts := Choose(r, c)
		out = append(out, Placement{r, node, verdicts})
		if node != "" {
			c = c.with(Guest{VMID: r.VMID, Node: node, MemoryMiB: r.MemoryMiB})
		}
	}
	return out
}

// with is the cluster with g at its new place.
func (c Cluster) with(g Guest) Cluster {
	c.Guests = slices.DeleteFunc(slices.Clone(c.Guests), func(o Guest) bool { return o.VMID == g.VMID })
	c.Guests = append(c.Guests, g)
	return c
}

// Explain is one sentence about the verdicts of a choice: why the chosen node, or why none.
func Explain(verdicts []Verdict) string {
	if len(verdicts) == 0 {
		return "the cluster has no nodes"
	}
	if verdicts[0].Chosen {
		return verdicts[0].Reason + ", the least of those possible"
	}
	reasons := make([]string, 0, len(verdicts))
	for _, v := range verdicts {
		reasons = append(reasons, v.Reason)
	}
	return "no node can take it: " + strings.Join(reasons, "; ")
}
