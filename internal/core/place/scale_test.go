package place_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
)

// The sizes that DESIGN.md promises, and the times, on a machine of two cores.
const (
	manyNodes, manyGuests = 256, 20_000
	rackSize              = 40
	maxEvaluation         = 500 * time.Millisecond
	maxRack               = time.Second
	slack                 = 3 // a busy machine takes so many times as long
)

// big is a cluster of racks of 40 nodes; of each 20 guests two are a bundle, two are apart by node, two by rack, two prefer
// nodes of their rack, and some go there.
func big(t testing.TB, mode place.Mode) place.Cluster {
	r := rand.New(rand.NewPCG(7, 11))
	c := place.Cluster{Mode: mode, ReserveMiB: 1024}
	for i := range manyNodes {
		c.Nodes = append(c.Nodes, place.Node{
			Name: fmt.Sprintf("n%03d", i), State: place.Online, MemoryMiB: 1 << 20, CPUs: 128, Storages: []string{"ceph"},
			Rack: fmt.Sprintf("r%d", i/rackSize), Site: "s1", Measured: true, UsedCPUs: 20 + 60*r.Float64(), UsedMiB: int64(300_000 + r.IntN(400_000)),
		})
	}
	var text strings.Builder
	for i := range manyGuests {
		n := i % manyNodes
		if i%20 == 1 {
			n = (i - 1) % manyNodes // with its partner
		}
		c.Guests = append(c.Guests, place.Guest{
			VMID: model.VMID(1000 + i), Node: c.Nodes[n].Name, HA: true, CPUs: 4, MemoryMiB: int64(2048 + 1024*r.IntN(8)),
			UsedCPUs: r.Float64() * 4, UsedMiB: int64(1024 + r.IntN(6000)), Storages: []string{"ceph"},
		})
		if i%20 == 0 {
			id := func(k int) string { return fmt.Sprintf("vm:%d", 1000+i+k) }
			text.WriteString(with(fmt.Sprintf("with%d", i), id(0)+","+id(1)))
			text.WriteString(apart(fmt.Sprintf("apart%d", i), id(2)+","+id(3)))
			text.WriteString(apart(fmt.Sprintf("racks%d", i), id(4)+","+id(5), "domain rack", "strict 0"))
			text.WriteString(near(fmt.Sprintf("near%d", i), id(6)+","+id(7), fmt.Sprintf("n%03d:1,n%03d:2", (i+6)%manyNodes, (i+9)%manyNodes)))
		}
	}
	c.Rules = compile(t, c, text.String())
	return c
}

// fastest is the shortest of a few tries: what the code needs, rather than what else the machine does.
func fastest(f func()) time.Duration {
	best := time.Hour
	for range 3 {
		start := time.Now()
		f()
		best = min(best, time.Since(start))
	}
	return best
}

func TestBigClustersAreEvaluatedAndPlannedInTime(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("times are measured in full and without the race detector")
	}
	for _, mode := range []place.Mode{place.Basic, place.Static, place.Dynamic} {
		c := big(t, mode)
		moves := 0
		took := fastest(func() { moves = len(place.NewPlanner(c).Evaluate()) })
		t.Logf("%s: %d guests evaluated in %s, %d moves", mode, manyGuests, took, moves)
		if took > slack*maxEvaluation || moves == 0 {
			t.Errorf("%s: the evaluation took %s, more than %d × %s, or moves nobody", mode, took, slack, maxEvaluation)
		}
		var plan []place.Placement
		took = fastest(func() { plan = place.WhatIf(c, rackOf(c)...) })
		t.Logf("%s: %d guests of a rack placed in %s", mode, len(plan), took)
		if took > slack*maxRack || len(plan) < 3000 {
			t.Errorf("%s: the plan of %d guests took %s, more than %d × %s", mode, len(plan), took, slack, maxRack)
		}
		for _, pl := range plan {
			if pl.Node == "" {
				t.Fatalf("%s: %s finds no place: %s", mode, pl.Request.Name(), place.Explain(pl.Verdicts))
			}
		}
	}
}

func rackOf(c place.Cluster) []string {
	var out []string
	for _, n := range c.Nodes[:rackSize] {
		out = append(out, n.Name)
	}
	return out
}

func BenchmarkEvaluate(b *testing.B) {
	c := big(b, place.Dynamic)
	for b.Loop() {
		place.NewPlanner(c).Evaluate()
	}
}

func BenchmarkLoseARack(b *testing.B) {
	c := big(b, place.Dynamic)
	lost := rackOf(c)
	for b.Loop() {
		place.WhatIf(c, lost...)
	}
}

func BenchmarkLoseARackWithoutRoom(b *testing.B) {
	c := big(b, place.Dynamic)
	c.ReserveMiB = 1 << 20
	lost := rackOf(c)
	for b.Loop() {
		place.WhatIf(c, lost...)
	}
}

func BenchmarkRebalance(b *testing.B) {
	c := big(b, place.Dynamic)
	p := place.DefaultBalanceParams()
	for _, method := range []place.Method{place.BruteForce, place.TOPSIS} {
		p.Method, p.Threshold, p.Margin = method, 0.001, 0
		b.Run(fmt.Sprint(method), func(b *testing.B) {
			for b.Loop() {
				place.Rebalance(c, p)
			}
		})
	}
}

func BenchmarkFailuresToTolerate(b *testing.B) {
	c := big(b, place.Dynamic)
	for b.Loop() {
		if got := place.FailuresToTolerate(c, 0); got.Nodes != 1 {
			b.Fatal(got.Nodes, got.Failed, len(got.Unplaced))
		}
	}
}
