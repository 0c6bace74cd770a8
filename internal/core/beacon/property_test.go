package beacon_test

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/beacon"
	"sauh.dev/sauh/internal/core/model"
)

// seeds is how many worlds each property is tried in; 100 are some 5 s together.
var seeds = flag.Uint64("seeds", 100, "how many random worlds to try")

func TestNoAlarmWhereAGuestNeverRanTwice(t *testing.T) {
	for seed := range *seeds {
		rng := rand.New(rand.NewPCG(seed, 7))
		w := newWorld(t, seed, 2+rng.IntN(3), anyNetwork(rng))
		if rng.IntN(4) == 0 {
			from, to := w.machines[0].name, w.machines[1].name
			w.net.cut = oneWay(from, to, 20*sec, 50*sec)
		}
		w.liveLawfully(rng, 100, 80*sec, rng.IntN(2) == 0)
		w.liveLawfully(rng, 101, 80*sec, false)
		w.addFillers(rng)
		w.run(100 * sec)
		if raised := w.raised(); len(raised) > 0 {
			t.Fatalf("seed %d: %d alarms, the first: %s\ntruth: %+v", seed, len(raised), raised[0], w.truths[:min(20, len(w.truths))])
		}
	}
}

func TestEachOverlapOfTwoSecondsRaisesAnAlarm(t *testing.T) {
	for seed := range *seeds {
		rng := rand.New(rand.NewPCG(seed, 8))
		w := newWorld(t, seed, 2+rng.IntN(3), anyNetwork(rng))
		both := 2*sec + time.Duration(rng.Int64N(int64(sec)))
		start := 10*sec + time.Duration(rng.Int64N(int64(10*sec)))
		before := time.Duration(rng.Int64N(int64(9*sec))) * time.Duration(rng.IntN(2))
		after := time.Duration(rng.Int64N(int64(9*sec))) * time.Duration(rng.IntN(2))
		a := truth{node: "n1", vmid: 100, from: start - before, to: start + both, revision: 5}
		b := truth{node: "n2", vmid: 100, from: start, to: start + both + after, revision: int64(5 + rng.IntN(2))}
		if rng.IntN(3) == 0 { // one within the other
			a.to, b.to = b.to, a.to
		}
		if rng.IntN(2) == 0 {
			a.node, b.node = b.node, a.node
		}
		w.truths = append(w.truths, a, b)
		w.addFillers(rng)
		w.run(60 * sec)
		raised := w.raised()
		if len(raised) == 0 {
			t.Fatalf("seed %d: no alarm; network %+v, truth: %+v", seed, w.net, w.truths[:2])
		}
		for _, alarms := range w.alarms {
			for _, al := range alarms {
				if al.VMID != 100 || al.Runs[0].Node != "n1" || al.Runs[1].Node != "n2" || al.Overlap > both+50*ms {
					t.Fatalf("seed %d: overlap was %v on n1 and n2, alarm says %s", seed, both, al.String())
				}
			}
		}
	}
}

// liveLawfully lets a guest move from node to node: by migrations with hardly a gap, by stops and starts, and
// by failovers from nodes that sleep, whose guest goes on for an instant when they wake.
func (w *world) liveLawfully(rng *rand.Rand, vmid model.VMID, until time.Duration, crashes bool) {
	at, node, revision := 5*sec, rng.IntN(len(w.machines)), int64(10)
	for at < until {
		r := truth{
			node: w.machines[node].name, vmid: vmid, from: at, to: at + 300*ms + time.Duration(rng.Int64N(int64(15*sec))),
			lag: time.Duration(rng.Int64N(int64(300 * ms))), revision: revision,
		}
		m := w.machines[node]
		gap := time.Duration(rng.Int64N(int64(50 * ms)))
		switch {
		case crashes && len(m.sleeps) == 0 && rng.IntN(3) == 0:
			asleep := sleep{from: r.to, to: r.to + 5*sec + time.Duration(rng.Int64N(int64(40*sec))), stops: rng.IntN(3) == 0}
			m.sleeps = append(m.sleeps, asleep)
			r.to = asleep.to // the agent believes in it until it wakes, and lag more
			gap = asleep.from + 10*sec + 520*ms - asleep.to
			if asleep.to-asleep.from < 11*sec {
				gap = 0 // it woke before anybody took over, and goes on elsewhere by a migration
			}
		case rng.IntN(3) == 0:
			gap += time.Duration(rng.Int64N(int64(3 * sec)))
		}
		w.truths = append(w.truths, r)
		at, revision = r.to+gap, revision+1
		node = w.awakeNode(rng, node, at)
	}
}

// awakeNode picks another node that is awake, or the same one.
func (w *world) awakeNode(rng *rand.Rand, than int, at time.Duration) int {
	i := (than + 1 + rng.IntN(len(w.machines)-1)) % len(w.machines)
	for range w.machines {
		if m := w.machines[i]; m.awakeAt(at) == at && len(m.sleeps) == 0 {
			return i
		}
		i = (i + 1) % len(w.machines)
	}
	return i
}

// addFillers gives each node so many other guests that not all fit into a datagram.
func (w *world) addFillers(rng *rand.Rand) {
	if rng.IntN(3) > 0 {
		return
	}
	for i, m := range w.machines {
		for n := range rng.IntN(200) {
			w.truths = append(w.truths, truth{node: m.name, vmid: model.VMID(1000*(i+1) + n), to: 1000 * sec, revision: 3})
		}
	}
}

// oneWay loses everything from one node to another for a time.
func oneWay(from, to string, begin, end time.Duration) func(time.Duration, string, string, beacon.Network) bool {
	return func(t time.Duration, f, o string, _ beacon.Network) bool {
		return f == from && o == to && t >= begin && t < end
	}
}
