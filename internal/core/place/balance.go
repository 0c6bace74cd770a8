package place

import (
	"math"
	"time"
)

// Move is a guest that had better be elsewhere.
type Move struct {
	SID      string
	From, To string
	// Reason is a clause for a person.
	Reason string
	// With names the guests that go along, because a rule keeps them together; each has its own Move too.
	With []string
}

// Method is how the balancer picks a move.
type Method int

// The methods, with Proxmox VE's meaning of crs: ha-auto-rebalance-method=….
const (
	BruteForce Method = iota // the move that leaves the smallest imbalance
	TOPSIS                   // the move that TOPSIS ranks first
)

// BalanceParams say when a balance is bad, and when a move is worth it. Take [DefaultBalanceParams] and change what differs.
type BalanceParams struct {
	// Threshold: nothing is moved while the imbalance is not above it. See [Planner.Imbalance].
	Threshold float64
	// MinSpread: nothing is moved while the most and the least loaded node differ by less than this part of what they have, in mode Dynamic
	// alone. Where nobody needs much, noise is a great imbalance.
	MinSpread float64
	// Margin is by how much of itself a move must lower the imbalance.
	Margin float64
	// CostPerGiB is the imbalance that moving a GiB of memory must bring at least, on top of Margin.
	CostPerGiB float64
	Method     Method
	// Moves is how many bundles may move at once, those under way included.
	Moves int
	// Hold is how long the imbalance must have been above Threshold.
	Hold time.Duration
	// Cooldown is how long a guest that was moved does not go back, unless its own load changed.
	Cooldown time.Duration
}

// DefaultBalanceParams are those of Proxmox VE, and for what it does not have, those of DESIGN.md.
func DefaultBalanceParams() BalanceParams {
	return BalanceParams{Threshold: 0.3, MinSpread: 0.05, Margin: 0.1, CostPerGiB: 0.0005, Moves: 1, Hold: time.Minute, Cooldown: 10 * time.Minute}
}

// Rebalance returns at most p.Moves bundles to move, best first, none if the balance is good enough. It does not look at
// Hold and Cooldown: see [Balancer].
func Rebalance(c Cluster, p BalanceParams) []Move {
	return NewPlanner(c).Rebalance(p)
}

// Balancer remembers what Rebalance does not: since when the balance has been bad, and which guest went where. The zero
// value is ready; it need not outlive the manager.
type Balancer struct {
	bad   bool
	mode  Mode // by which it was
	since time.Duration
	moved map[string]departure
}

// departure is a move of the past.
type departure struct {
	at       time.Duration
	from     string
	cpu, mem float64 // the guest's load when it left, in cpus and MiB
}

// Step looks at the cluster at now, on the clock of all other calls, and returns what to move. wake is when to look
// again even if nothing changes, 0 for no such time. The moves returned are taken to be carried out. b itself stays as it is.
func (b Balancer) Step(now time.Duration, c Cluster, p BalanceParams) (next Balancer, moves []Move, wake time.Duration) {
	pl := NewPlanner(c)
	if !pl.uneven(p) {
		b.bad = false
		return b, nil, 0
	}
	if !b.bad || b.mode != pl.mode { // another measure is another imbalance
		b.bad, b.mode, b.since = true, pl.mode, now
	}
	free := p.Moves - pl.moving()
	if free <= 0 {
		return b, nil, 0
	}
	if due := b.since + p.Hold; now < due {
		return b, nil, due
	}
	b.since = now
	moved := b.recent(now, p.Cooldown)
	moves = pl.rebalance(p, free, func(sid, from, to string) bool { return back(moved, pl.guests[pl.bySID[sid]], to) })
	for _, m := range moves {
		g := pl.guests[pl.bySID[m.SID]]
		moved[m.SID] = departure{now, m.From, g.UsedCPUs, float64(g.UsedMiB)}
	}
	b.moved = moved
	return b, moves, now + p.Hold
}

// recent is a copy of what was moved within the cooldown.
func (b Balancer) recent(now, cooldown time.Duration) map[string]departure {
	out := make(map[string]departure, len(b.moved))
	for sid, d := range b.moved {
		if now-d.at < cooldown {
			out[sid] = d
		}
	}
	return out
}

// back reports whether to is the node that the guest left lately, while its own load has not changed by a quarter.
func back(moved map[string]departure, g guest, to string) bool {
	d, ok := moved[g.sid]
	const cpus, mib = 0.1, 64
	return ok && d.from == to && !changed(d.cpu, g.UsedCPUs, cpus) && !changed(d.mem, float64(g.UsedMiB), mib)
}

// changed: by a quarter, and by more than noise makes.
func changed(before, now, noise float64) bool {
	return math.Abs(now-before) > max(0.25*max(before, now), noise)
}

// moving counts the guests on their way; those that must share a node count once.
func (p *Planner) moving() int {
	n := 0
	bundles := map[int]bool{}
	for i := range p.guests {
		g := &p.guests[i]
		if g.Idle || g.target < 0 {
			continue
		}
		if g.rules != nil && g.rules.Bundle > 0 {
			if bundles[g.rules.Bundle] {
				continue
			}
			bundles[g.rules.Bundle] = true
		}
		n++
	}
	return n
}
