//go:build room && measure

package roomtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/lab"
)

const (
	// faultyGuests keep a ledger each.
	faultyGuests = 3
	// settles bounds how long after the last fault everything must be well again: leases, boots and starts of all guests on a busy machine.
	settles = 2 * time.Minute
)

// nemesis makes random faults in a room.
type nemesis struct {
	r    *room
	rand *rand.Rand
}

// randomFaults makes faults one after the other, without waiting for the end of their consequences. It returns the longest time from the end of a
// fault until each guest ran at one place, where that was waited for, and at the end.
func (r *room) randomFaults(count int, seed uint64) time.Duration {
	r.t.Logf("seed of these faults: %d", seed)
	n := &nemesis{r, rand.New(rand.NewPCG(seed, 0))}
	var guests []*guest
	var ledgers []*ledger
	for i := range faultyGuests {
		g := r.Guest(model.VMID(100 + i)).On(r.names[(1+i)%len(r.names)]).Protected()
		guests, ledgers = append(guests, g), append(ledgers, g.Ledger())
	}
	var slowest time.Duration
	for i := range count {
		what, lasts := n.strike()
		r.t.Logf("%s: fault %d: %s for %v", clock(), i+1, what, lasts)
		r.waitOut(lasts)
		r.Repair()
		if n.rand.IntN(3) > 0 { // the next one comes into the midst of what this one began
			r.waitOut(time.Duration(n.rand.IntN(8000)) * time.Millisecond)
			continue
		}
		slowest = max(slowest, r.settled(guests))
	}
	slowest = max(slowest, r.settled(guests))
	r.Eventually("all nodes are well", settles, func() error { return r.wellAt("n1") })
	r.AllWell()
	for i, g := range guests {
		g.MustAnswer(patience)
		ledgers[i].MustGoOn(patience)
		ledgers[i].MustBeWhole()
	}
	return slowest
}

// settled waits until every guest runs at one place.
func (r *room) settled(guests []*guest) time.Duration {
	return r.Eventually("every guest runs", settles, func() error {
		for _, g := range guests {
			running := slices.DeleteFunc(r.sampler.alive(g.id), func(p process) bool { return p.frozen })
			if len(running) != 1 {
				return fmt.Errorf("guest %d: %d processes run of %v", g.id, len(running), r.sampler.alive(g.id))
			}
		}
		return nil
	})
}

// strike makes one fault; Repair ends it.
func (n *nemesis) strike() (what string, lasts time.Duration) {
	r := n.r
	lasts = time.Duration([]int{1, 3, 6, 9, 12, 16, 25}[n.rand.IntN(7)]) * time.Second
	node := r.names[n.rand.IntN(len(r.names))]
	others := slices.DeleteFunc(slices.Clone(r.names), func(o string) bool { return o == node })
	n.rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	some := others[:1+n.rand.IntN(len(others))]
	switch n.rand.IntN(8) {
	case 0, 1:
		r.PowerOff(node)
		return "power of " + node + " cut", lasts
	case 2, 3:
		r.apart(lab.Partition{Groups: [][]string{append(slices.Clone(some[:len(some)/2]), node), slices.DeleteFunc(slices.Clone(r.names), func(o string) bool {
			return o == node || slices.Contains(some[:len(some)/2], o)
		})}})
		return fmt.Sprintf("partition: %s and %v from the others", node, some[:len(some)/2]), lasts
	case 4, 5:
		from, to := []string{node}, some
		if n.rand.IntN(2) == 0 {
			from, to = to, from
		}
		r.apart(lab.Partition{Groups: [][]string{from, to}, OneWay: true})
		return fmt.Sprintf("one-way: what %v send to %v is lost", from, to), lasts
	default:
		units := [][]string{{agentUnit}, {guardUnit}, {agentUnit, guardUnit}}[n.rand.IntN(3)]
		for _, u := range units {
			r.pause(node, u)
		}
		return fmt.Sprintf("%v of %s paused", units, node), lasts
	}
}

func (r *room) apart(p lab.Partition) {
	r.t.Helper()
	if err := r.Partition(r.t.Context(), p); err != nil {
		r.t.Fatal(err)
	}
}

// pause stops a unit until Repair, if it runs: the node may be between two boots.
func (r *room) pause(node, unit string) {
	pids, err := r.unitPIDs(node, unit)
	if err != nil || len(pids) == 0 || syscall.Kill(pids[0], syscall.SIGSTOP) != nil {
		r.t.Logf("%s of %s does not run", unit, node)
		return
	}
	r.stopped = append(r.stopped, pids[0])
}
