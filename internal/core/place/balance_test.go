package place_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/place"
)

// measured is a cluster of three nodes with 24 cpus and 48 GiB, in mode dynamic; its guests are set by load.
func measured() place.Cluster {
	c := place.Cluster{Mode: place.Dynamic}
	for _, name := range []string{"n1", "n2", "n3"} {
		c.Nodes = append(c.Nodes, place.Node{Name: name, State: place.Online, CPUs: 24, MemoryMiB: 49152, Measured: true})
	}
	return c
}

// load adds a guest of 8 cpus and 8 GiB that uses so much, or changes what it uses.
func load(c *place.Cluster, sid, on string, cpus float64, mib int64) {
	at := len(c.Guests)
	for i, g := range c.Guests {
		if g.SID == sid {
			at = i
		}
	}
	if at == len(c.Guests) {
		c.Guests = append(c.Guests, place.Guest{SID: sid, Node: on, CPUs: 8, MemoryMiB: 8192, HA: true})
	}
	c.Guests[at].UsedCPUs, c.Guests[at].UsedMiB = cpus, mib
	measure(c)
}

// measure sums up the nodes' load.
func measure(c *place.Cluster) {
	for i := range c.Nodes {
		n := &c.Nodes[i]
		n.UsedCPUs, n.UsedMiB = 0, 0
		for _, g := range c.Guests {
			if g.Node == n.Name && !g.Idle {
				n.UsedCPUs += g.UsedCPUs
				n.UsedMiB += g.UsedMiB
			}
		}
	}
}

// carryOut moves the guests.
func carryOut(c *place.Cluster, moves []place.Move) []string {
	var out []string
	for _, m := range moves {
		for i := range c.Guests {
			if c.Guests[i].Name() == m.SID {
				c.Guests[i].Node = m.To
			}
		}
		out = append(out, strings.Join([]string{m.SID, m.From, m.To}, " "))
	}
	measure(c)
	return out
}

func TestTheImbalanceIsTheSpreadOfTheLoad(t *testing.T) {
	c := measured()
	load(&c, "vm:1", "n1", 24, 49152)
	tests := []struct {
		mode place.Mode
		want float64
	}{
		{place.Dynamic, math.Sqrt2}, // one of three: the mean is a third, the deviation √2 thirds
		{place.Static, math.Sqrt2},
		{place.Basic, 0},
	}
	for _, tt := range tests {
		c.Mode = tt.mode
		if got := place.NewPlanner(c).Imbalance(); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("%s: got %f, want %f", tt.mode, got, tt.want)
		}
	}
	if got := place.NewPlanner(place.Cluster{Mode: place.Dynamic}).Imbalance(); got != 0 {
		t.Errorf("no nodes: got %f", got)
	}
}

func TestAModeThatLacksNumbersFallsBack(t *testing.T) {
	c := measured()
	load(&c, "vm:1", "n1", 24, 49152)
	c.Nodes[1].Measured = false
	_, verdicts := place.Choose(place.Request{VMID: 100, MemoryMiB: 1024, CPUs: 1}, c)
	if !strings.Contains(verdicts[0].Reason, "(static: ") {
		t.Errorf("a node has measured nothing: %s", verdicts[0].Reason)
	}
	c.Nodes[2].CPUs = 0
	node, verdicts := place.Choose(place.Request{VMID: 100, MemoryMiB: 1024, CPUs: 1}, c)
	if node != "n2" || strings.Contains(verdicts[0].Reason, "cpu") {
		t.Errorf("a node has not told its cpus: %s", verdicts[0].Reason)
	}
}

func TestANodeIsChosenByCpuAndMemory(t *testing.T) {
	tests := map[string]struct {
		mode  place.Mode
		loads func(*place.Cluster)
		want  string
	}{
		"memory weighs more than cpu": {place.Dynamic, func(c *place.Cluster) {
			load(c, "vm:1", "n1", 8, 100)
			load(c, "vm:2", "n2", 1, 8192)
			load(c, "vm:3", "n3", 8, 8192)
		}, "n1"},
		"what is measured, not what is configured": {place.Dynamic, func(c *place.Cluster) {
			load(c, "vm:1", "n1", 0.1, 100)
			load(c, "vm:2", "n1", 0.1, 100)
			load(c, "vm:3", "n2", 8, 8000)
			load(c, "vm:4", "n3", 8, 8000)
		}, "n1"},
		"what is configured, not what is measured": {place.Static, func(c *place.Cluster) {
			load(c, "vm:1", "n1", 0.1, 100)
			load(c, "vm:2", "n1", 0.1, 100)
			load(c, "vm:3", "n2", 8, 8000)
		}, "n3"},
		"the first by name among equals": {place.Static, func(*place.Cluster) {}, "n1"},
		"the bigger node takes more": {place.Static, func(c *place.Cluster) {
			c.Nodes[1].MemoryMiB, c.Nodes[1].CPUs = 2*49152, 48
			load(c, "vm:1", "n1", 0, 0)
			load(c, "vm:2", "n2", 0, 0)
			load(c, "vm:3", "n3", 0, 0)
		}, "n2"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := measured()
			c.Mode = tt.mode
			tt.loads(&c)
			if got, verdicts := place.Choose(place.Request{VMID: 100, CPUs: 8, MemoryMiB: 8192}, c); got != tt.want {
				t.Errorf("got %q, want %q: %+v", got, tt.want, verdicts)
			}
		})
	}
}

func TestAStartCountsUntilItIsMeasured(t *testing.T) {
	p := place.NewPlanner(measured())
	var got []string
	for i := range 6 {
		r := place.Request{SID: fmt.Sprintf("vm:%d", i), CPUs: 2, MemoryMiB: 4096}
		node, _ := p.Pick(r)
		p.Place(r, node)
		got = append(got, node)
	}
	if diff := cmp.Diff([]string{"n1", "n2", "n3", "n1", "n2", "n3"}, got); diff != "" {
		t.Errorf("nodes differ (-want +got):\n%s", diff)
	}
}

func TestTheMoveThatHelpsMostIsMade(t *testing.T) {
	c := measured()
	for _, sid := range []string{"vm:1", "vm:2", "vm:3", "vm:4"} {
		load(&c, sid, "n1", 1, 4096)
	}
	for _, method := range []place.Method{place.BruteForce, place.TOPSIS} {
		p := place.DefaultBalanceParams()
		p.Method, p.Moves = method, 5
		var got []string
		for _, m := range place.Rebalance(c, p) {
			got = append(got, m.SID+" "+m.To+": "+m.Reason)
		}
		want := []string{
			"vm:1 n2: vm:1 to n2 lowers the imbalance from 1.41 to 0.94",
			"vm:2 n3: vm:2 to n3 lowers the imbalance from 0.94 to 0.35",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("method %d: moves differ (-want +got):\n%s", method, diff)
		}
	}
}

func TestWhatKeepsTheBalancerFromMoving(t *testing.T) {
	tests := map[string]func(*place.Cluster, *place.BalanceParams){
		"the imbalance is small enough":  func(_ *place.Cluster, p *place.BalanceParams) { p.Threshold = 1.42 },
		"no move brings so much":         func(_ *place.Cluster, p *place.BalanceParams) { p.Margin = 0.5 },
		"the move costs more":            func(_ *place.Cluster, p *place.BalanceParams) { p.CostPerGiB = 0.06 },
		"no move is allowed":             func(_ *place.Cluster, p *place.BalanceParams) { p.Moves = 0 },
		"mode basic":                     func(c *place.Cluster, _ *place.BalanceParams) { c.Mode = place.Basic },
		"nobody needs much":              func(_ *place.Cluster, p *place.BalanceParams) { p.MinSpread = 0.26 },
		"they are no HA resources":       func(c *place.Cluster, _ *place.BalanceParams) { all(c, func(g *place.Guest) { g.HA = false }) },
		"the guests are not to be moved": func(c *place.Cluster, _ *place.BalanceParams) { all(c, func(g *place.Guest) { g.NoRebalance = true }) },
		"they are on their way": func(c *place.Cluster, _ *place.BalanceParams) {
			all(c, target("n1x"))
			all(c, func(g *place.Guest) { g.Starting = true })
		},
		"the other nodes have no room": func(c *place.Cluster, _ *place.BalanceParams) { c.ReserveMiB = 42000 },
		"the others lack their storage": func(c *place.Cluster, _ *place.BalanceParams) {
			all(c, func(g *place.Guest) { g.Storages = []string{"nas"} })
		},
		"a rule keeps them on their node": func(c *place.Cluster, _ *place.BalanceParams) {
			c.Rules = compile(t, *c, near("near1", "vm:1,vm:2,vm:3,vm:4", "n1"))
		},
		"a soft rule would be broken": func(c *place.Cluster, _ *place.BalanceParams) {
			c.Rules = compile(t, *c, with("with1", "vm:1,vm:2,vm:3,vm:4", "strict 0"))
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			c, p := measured(), place.DefaultBalanceParams()
			for _, sid := range []string{"vm:1", "vm:2", "vm:3", "vm:4"} {
				load(&c, sid, "n1", 1, 4096)
			}
			if len(place.Rebalance(c, p)) == 0 {
				t.Fatal("nothing would be moved anyway")
			}
			change(&c, &p)
			if got := place.Rebalance(c, p); len(got) > 0 {
				t.Errorf("moves %+v", got)
			}
		})
	}
}

func all(c *place.Cluster, change func(*place.Guest)) {
	for i := range c.Guests {
		change(&c.Guests[i])
	}
}

func TestABundleIsBalancedAsOne(t *testing.T) {
	c := measured()
	for _, sid := range []string{"vm:1", "vm:2", "vm:3", "vm:4"} {
		load(&c, sid, "n1", 1, 4096)
	}
	load(&c, "vm:5", "n3", 1, 1024)
	c.Rules = compile(t, c, with("with1", "vm:2,vm:3")+apart("apart1", "vm:3,vm:5"))
	moves := place.Rebalance(c, place.DefaultBalanceParams())
	if diff := cmp.Diff([]string{"vm:2 n1 n2", "vm:3 n1 n2"}, carryOut(&c, moves)); diff != "" {
		t.Errorf("moves differ (-want +got):\n%s", diff)
	}
	if len(moves) == 2 && (!cmp.Equal(moves[0].With, []string{"vm:3"}) || !cmp.Equal(moves[1].With, []string{"vm:2"})) {
		t.Errorf("with %v and %v", moves[0].With, moves[1].With)
	}
}

// steps lets a balancer look each second from from on, and carries out what it says.
func steps(b *place.Balancer, c *place.Cluster, p place.BalanceParams, from, to time.Duration) []string {
	var out []string
	for now := from; now < to; now += time.Second {
		next, moves, _ := b.Step(now, *c, p)
		*b = next
		for _, m := range carryOut(c, moves) {
			out = append(out, fmt.Sprintf("%s %s", now, m))
		}
	}
	return out
}

func TestTheImbalanceMustLast(t *testing.T) {
	c, p := measured(), place.DefaultBalanceParams()
	var b place.Balancer
	load(&c, "vm:1", "n1", 4, 4096)
	load(&c, "vm:2", "n1", 4, 4096)
	load(&c, "vm:3", "n2", 4, 4096)
	if got := steps(&b, &c, p, 0, 59*time.Second); len(got) > 0 {
		t.Errorf("moved too early: %v", got)
	}
	c.Guests[1].Node = "n3" // a minute is not over, and all is well
	measure(&c)
	if got := steps(&b, &c, p, 59*time.Second, 100*time.Second); len(got) > 0 {
		t.Errorf("moved for nothing: %v", got)
	}
	c.Guests[1].Node = "n1"
	measure(&c)
	_, _, wake := b.Step(100*time.Second, c, p)
	if wake != 160*time.Second {
		t.Errorf("wakes at %s, want 2m40s", wake)
	}
	want := []string{"2m40s vm:1 n1 n3"}
	if diff := cmp.Diff(want, steps(&b, &c, p, 100*time.Second, 400*time.Second)); diff != "" {
		t.Errorf("moves differ (-want +got):\n%s", diff)
	}
}

// A node that was booted anew has measured nothing for some seconds: the others' imbalance by configuration is then no old one.
func TestTheImbalanceMustLastByOneMeasure(t *testing.T) {
	c, p := measured(), place.DefaultBalanceParams()
	for _, sid := range []string{"vm:1", "vm:2", "vm:3", "vm:4"} {
		load(&c, sid, "n1", 1, 4096)
	}
	var b place.Balancer
	if got := steps(&b, &c, p, 0, 50*time.Second); len(got) > 0 {
		t.Errorf("moved too early: %v", got)
	}
	c.Nodes[1].Measured = false
	if got := steps(&b, &c, p, 50*time.Second, 109*time.Second); len(got) > 0 {
		t.Errorf("moved too early by what is configured: %v", got)
	}
	if got := steps(&b, &c, p, 109*time.Second, 111*time.Second); len(got) != 1 {
		t.Errorf("by what is configured %v moved", got)
	}
}

func TestNothingIsMovedWhileTheBudgetIsUsedUp(t *testing.T) {
	c, p := measured(), place.DefaultBalanceParams()
	for _, sid := range []string{"vm:1", "vm:2", "vm:3", "vm:4"} {
		load(&c, sid, "n1", 1, 4096)
	}
	load(&c, "vm:9", "n1", 0.1, 100)
	c.Guests[4].Target = "n2"
	var b place.Balancer
	if got := steps(&b, &c, p, 0, 200*time.Second); len(got) > 0 {
		t.Errorf("one is on its way, and %v", got)
	}
	p.Moves = 3
	if got := steps(&b, &c, p, 200*time.Second, 230*time.Second); len(got) != 2 {
		t.Errorf("two more may move, got %v", got)
	}
}

func TestAGuestGoesBackOnlyIfItsOwnLoadChanged(t *testing.T) {
	c, p := measured(), place.DefaultBalanceParams()
	var b place.Balancer
	load(&c, "vm:1", "n1", 4, 8000)
	load(&c, "vm:2", "n1", 4, 8000)
	load(&c, "vm:3", "n2", 1, 1000)
	load(&c, "vm:4", "n3", 2, 4000)
	if diff := cmp.Diff([]string{"1m0s vm:1 n1 n2"}, steps(&b, &c, p, 0, 2*time.Minute)); diff != "" {
		t.Fatalf("moves differ (-want +got):\n%s", diff)
	}
	// what is left behind becomes idle: going back would help most, and nothing but the others' load has changed
	all(&c, func(g *place.Guest) { g.NoRebalance = g.SID != "vm:1" })
	load(&c, "vm:2", "", 0, 10)
	load(&c, "vm:3", "", 5, 8000)
	load(&c, "vm:4", "", 5, 8000)
	if got := steps(&b, &c, p, 2*time.Minute, 5*time.Minute); len(got) > 0 {
		t.Errorf("went back: %v", got)
	}
	load(&c, "vm:1", "", 8, 8000)
	if diff := cmp.Diff([]string{"5m0s vm:1 n2 n1"}, steps(&b, &c, p, 5*time.Minute, 6*time.Minute)); diff != "" {
		t.Errorf("moves differ (-want +got):\n%s", diff)
	}
}

func TestNoiseIsNoChangeOfAGuestsLoad(t *testing.T) {
	for cpus, want := range map[float64]int{0.09: 0, 0.2: 1} {
		c, p := measured(), place.DefaultBalanceParams()
		var b place.Balancer
		load(&c, "vm:1", "n1", 0.01, 8000)
		load(&c, "vm:2", "n1", 4, 8000)
		load(&c, "vm:3", "n2", 1, 1000)
		load(&c, "vm:4", "n3", 2, 4000)
		if diff := cmp.Diff([]string{"1m0s vm:1 n1 n2"}, steps(&b, &c, p, 0, 2*time.Minute)); diff != "" {
			t.Fatalf("moves differ (-want +got):\n%s", diff)
		}
		all(&c, func(g *place.Guest) { g.NoRebalance = g.SID != "vm:1" })
		load(&c, "vm:2", "", 0, 10)
		load(&c, "vm:3", "", 5, 8000)
		load(&c, "vm:4", "", 5, 8000)
		load(&c, "vm:1", "", cpus, 8050)
		if got := steps(&b, &c, p, 2*time.Minute, 4*time.Minute); len(got) != want {
			t.Errorf("at %v cpus it moved: %v", cpus, got)
		}
	}
}

// Seven guests on three nodes of 24 cpus and 48 GiB, whose load changes twice. The moves are those of Proxmox VE's balancer for the
// same loads, one run for each of its methods.
func TestChangingLoadsAreFollowed(t *testing.T) {
	tests := map[place.Method][]string{
		place.BruteForce: {"vm:105 n3 n2", "vm:103 n2 n1", "vm:105 n2 n3"},
		place.TOPSIS:     {"vm:105 n3 n2", "vm:103 n2 n3", "vm:105 n2 n1"},
	}
	for method, want := range tests {
		c, p := measured(), place.DefaultBalanceParams()
		p.Method = method
		var b place.Balancer
		var got []string
		run := func(from, to time.Duration) {
			for _, m := range steps(&b, &c, p, from, to) {
				_, move, _ := strings.Cut(m, " ")
				got = append(got, move)
			}
		}
		load(&c, "vm:101", "n1", 0.9, 5192)
		load(&c, "vm:102", "n1", 1.2, 2500)
		load(&c, "vm:103", "n2", 0.8, 5192)
		load(&c, "vm:104", "n2", 0.9, 2500)
		load(&c, "vm:105", "n3", 3.0, 768)
		load(&c, "vm:106", "n3", 2.9, 1538)
		load(&c, "vm:107", "n3", 2.1, 1538)
		run(0, 100*time.Second)
		load(&c, "vm:105", "", 7.8, 7912)
		load(&c, "vm:106", "", 5.7, 8192)
		load(&c, "vm:107", "", 6.0, 8011)
		run(100*time.Second, 200*time.Second)
		load(&c, "vm:101", "", 0.9, 1011)
		load(&c, "vm:103", "", 3.9, 6517)
		load(&c, "vm:104", "", 6.7, 8001)
		load(&c, "vm:105", "", 1.8, 1201)
		load(&c, "vm:106", "", 2.1, 1211)
		load(&c, "vm:107", "", 0.9, 1191)
		run(200*time.Second, 600*time.Second)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("method %d: moves differ (-want +got):\n%s", method, diff)
		}
	}
}
