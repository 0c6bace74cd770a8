package place_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

// anyCluster draws a small cluster with little room and rules that do not contradict one another. Its guests are where a plan put
// them, some lost with n9; then some nodes went away.
func anyCluster(t *rapid.T) (place.Cluster, []pveconf.HARule) {
	c := place.Cluster{
		Mode:       rapid.SampledFrom([]place.Mode{place.Basic, place.Static, place.Dynamic}).Draw(t, "mode"),
		ReserveMiB: int64(rapid.SampledFrom([]int{0, 512}).Draw(t, "reserve")),
	}
	states := []place.NodeState{place.Online, place.Online, place.Online, place.Online, place.Maintenance, place.Suspect, place.Fenced, place.Offline}
	for i := range rapid.IntRange(1, 6).Draw(t, "nodes") {
		n := place.Node{
			Name: fmt.Sprintf("n%d", i), State: place.Online, CPUs: rapid.IntRange(1, 16).Draw(t, "cpus"),
			MemoryMiB: int64(rapid.IntRange(1024, 8192).Draw(t, "memory")), Measured: true, Storages: []string{"nas"},
			UsedCPUs: rapid.Float64Range(0, 8).Draw(t, "used cpus"), UsedMiB: int64(rapid.IntRange(0, 2048).Draw(t, "used memory")),
		}
		if rapid.Bool().Draw(t, "labelled") {
			n.Rack, n.Site = fmt.Sprintf("r%d", i%3), fmt.Sprintf("s%d", i%2)
		}
		if rapid.Bool().Draw(t, "more storages") {
			n.Storages = append(n.Storages, "fast")
		}
		c.Nodes = append(c.Nodes, n)
	}
	c.Nodes = append(c.Nodes, place.Node{Name: "n9", State: place.Fenced, MemoryMiB: 8192, CPUs: 8, Measured: true})
	rs := effective(t, &c)
	for i := range rapid.IntRange(1, 10).Draw(t, "guests") {
		g := place.Guest{
			VMID: model.VMID(100 + i), Node: "n9", HA: true, MemoryMiB: int64(rapid.IntRange(128, 4096).Draw(t, "memory")),
			CPUs: float64(rapid.IntRange(0, 4).Draw(t, "cpus")), UsedCPUs: rapid.Float64Range(0, 4).Draw(t, "used cpus"),
			UsedMiB: int64(rapid.IntRange(0, 2048).Draw(t, "used memory")), NoFailback: rapid.Bool().Draw(t, "no failback"),
		}
		if rapid.Bool().Draw(t, "fast disk") {
			g.Storages = []string{"fast"}
		}
		c.Guests = append(c.Guests, g)
	}
	for _, pl := range place.WhatIf(c, "n9") {
		i := slices.IndexFunc(c.Guests, func(g place.Guest) bool { return g.Name() == pl.Request.Name() })
		if pl.Node != "" && rapid.IntRange(0, 2).Draw(t, "lost") > 0 {
			c.Guests[i].Node = pl.Node
		}
	}
	for i := range len(c.Nodes) - 1 {
		c.Nodes[i].State = rapid.SampledFrom(states).Draw(t, "state")
	}
	return c, rs
}

// effective draws rules, sets c's, and returns those that were not dropped.
func effective(t *rapid.T, c *place.Cluster) []pveconf.HARule {
	var names, sids []string
	var nodes []rules.Node
	for _, n := range c.Nodes {
		names = append(names, n.Name)
		nodes = append(nodes, rules.Node{Name: n.Name, Rack: n.Rack, Site: n.Site})
	}
	for i := range 8 {
		sids = append(sids, fmt.Sprintf("vm:%d", 100+i))
	}
	var rs []pveconf.HARule
	for i := range rapid.IntRange(0, 4).Draw(t, "rules") {
		r := pveconf.HARule{ID: fmt.Sprintf("rule%d", i), Resources: rapid.SliceOfNDistinct(rapid.SampledFrom(sids), 2, 4, rapid.ID[string]).Draw(t, "resources")}
		r.Strict = rapid.IntRange(0, 3).Draw(t, "soft") > 0
		if rapid.Bool().Draw(t, "node affinity") {
			r.Type = pveconf.NodeAffinity
			for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, 3, rapid.ID[string]).Draw(t, "nodes") {
				r.Nodes = append(r.Nodes, pveconf.RuleNode{Name: n, Priority: rapid.IntRange(0, 1).Draw(t, "priority")})
			}
		} else {
			r.Type, r.Weight = pveconf.ResourceAffinity, 100
			r.Affinity = rapid.SampledFrom([]pveconf.Affinity{pveconf.Positive, pveconf.Negative}).Draw(t, "affinity")
			r.Domain = rapid.SampledFrom([]pveconf.Domain{pveconf.DomainNode, pveconf.DomainNode, pveconf.DomainRack, pveconf.DomainSite}).Draw(t, "domain")
		}
		rs = append(rs, r)
	}
	c.Rules = rules.Compile(rs, nodes)
	for _, d := range c.Rules.Dropped() {
		rs = slices.DeleteFunc(rs, func(r pveconf.HARule) bool { return r.ID == d.Rule })
	}
	return rs
}

// broken names a strict rule that c's guests break on the nodes that are online, or leave when they go away.
func broken(c place.Cluster, rs []pveconf.HARule) string {
	nodes := map[string]place.Node{}
	for _, n := range c.Nodes {
		nodes[n.Name] = n
	}
	where := map[string]rules.Node{}
	for _, g := range c.Guests {
		if n, ok := nodes[g.Node]; ok && n.State == place.Online && !g.Idle {
			where[g.Name()] = rules.Node{Name: n.Name, Rack: n.Rack, Site: n.Site}
		}
	}
	for _, r := range rs {
		if !r.Strict || r.Disabled {
			continue
		}
		seen := map[string]bool{}
		placed := 0
		for _, sid := range r.Resources {
			n, ok := where[sid]
			if !ok {
				continue
			}
			placed++
			if r.Type == pveconf.NodeAffinity && !slices.ContainsFunc(r.Nodes, func(o pveconf.RuleNode) bool { return o.Name == n.Name }) {
				return r.ID
			}
			d := n.Domain(r.Domain) // a node-affinity rule has no domain: its node's name
			if d == "" || r.Affinity == pveconf.Negative && seen[d] {
				return r.ID
			}
			seen[d] = true
		}
		if r.Affinity == pveconf.Positive && placed > 1 && len(seen) > 1 {
			return r.ID
		}
	}
	return ""
}

func TestNoPlacementBreaksAStrictRule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, rs := anyCluster(t)
		c.Nodes[0].State = place.Fenced
		if id := broken(c, rs); id != "" {
			t.Fatalf("the cluster drawn breaks %s", id)
		}
		for _, pl := range place.WhatIf(c, "n0", "n9") {
			for i := range c.Guests {
				if c.Guests[i].Name() == pl.Request.Name() && pl.Node != "" {
					c.Guests[i].Node = pl.Node
				}
			}
			if id := broken(c, rs); id != "" {
				t.Fatalf("%s on %s breaks %s", pl.Request.Name(), pl.Node, id)
			}
		}
	})
}

func TestWhatAnEvaluationMovesBreaksNoStrictRuleInTheEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, rs := anyCluster(t)
		moves := place.NewPlanner(c).Evaluate()
		for _, m := range moves {
			for i := range c.Guests {
				if c.Guests[i].Name() == m.SID {
					c.Guests[i].Node = m.To
				}
			}
		}
		for i, g := range c.Guests {
			// what cannot leave a maintenance is not the evaluation's doing
			if n := slices.IndexFunc(c.Nodes, func(n place.Node) bool { return n.Name == g.Node }); c.Nodes[n].State != place.Online {
				c.Guests[i].Idle = true
			}
		}
		if id := broken(c, rs); id != "" {
			t.Errorf("%s is broken after %+v", id, moves)
		}
	})
}

func TestANodeWithARefusalIsNeverChosen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, _ := anyCluster(t)
		g := rapid.SampledFrom(c.Guests).Draw(t, "guest")
		r := g.Request(rapid.SampledFrom([]place.Preference{place.Best, place.Next}).Draw(t, "preference"))
		out := rapid.SampledFrom(c.Nodes).Draw(t, "excluded").Name
		r.Exclude = map[string]string{out: "it was drawn"}
		got, verdicts := place.Choose(r, c)
		if got == out {
			t.Errorf("%s is excluded", out)
		}
		if len(verdicts) != len(c.Nodes) {
			t.Errorf("%d verdicts for %d nodes", len(verdicts), len(c.Nodes))
		}
		for i, v := range verdicts {
			n := c.Nodes[slices.IndexFunc(c.Nodes, func(n place.Node) bool { return n.Name == v.Node })]
			if v.Chosen != (v.Node == got) || v.Chosen && (!v.OK || i != 0) {
				t.Errorf("chosen %q, and verdict %d is %+v", got, i, v)
			}
			if v.Reason == "" {
				t.Errorf("%s has no reason", v.Node)
			}
			if !v.OK {
				continue
			}
			used := g.MemoryMiB + c.ReserveMiB
			for _, o := range c.Guests {
				if o.Node == n.Name && o.Name() != g.Name() {
					used += o.MemoryMiB
				}
			}
			if n.State != place.Online || used > n.MemoryMiB || len(g.Storages) > 0 && !slices.Contains(n.Storages, g.Storages[0]) {
				t.Errorf("%s takes %s: state %d, %d MiB of %d", n.Name, g.Name(), n.State, used, n.MemoryMiB)
			}
		}
	})
}

func TestTheOrderInWhichThingsAreListedChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, _ := anyCluster(t)
		d := c
		d.Nodes, d.Guests = slices.Clone(c.Nodes), slices.Clone(c.Guests)
		r := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
		r.Shuffle(len(d.Nodes), func(i, j int) { d.Nodes[i], d.Nodes[j] = d.Nodes[j], d.Nodes[i] })
		r.Shuffle(len(d.Guests), func(i, j int) { d.Guests[i], d.Guests[j] = d.Guests[j], d.Guests[i] })
		p := place.DefaultBalanceParams()
		p.Moves, p.Threshold = 3, 0.05
		p.Method = rapid.SampledFrom([]place.Method{place.BruteForce, place.TOPSIS}).Draw(t, "method")
		if diff := cmp.Diff(place.WhatIf(c, "n0", "n9"), place.WhatIf(d, "n0", "n9")); diff != "" {
			t.Errorf("plans differ:\n%s", diff)
		}
		if diff := cmp.Diff(place.NewPlanner(c).Evaluate(), place.NewPlanner(d).Evaluate()); diff != "" {
			t.Errorf("evaluations differ:\n%s", diff)
		}
		if diff := cmp.Diff(place.Rebalance(c, p), place.Rebalance(d, p)); diff != "" {
			t.Errorf("balancing differs:\n%s", diff)
		}
		if diff := cmp.Diff(place.FailuresToTolerate(c, 0), place.FailuresToTolerate(d, 0)); diff != "" {
			t.Errorf("tolerance differs:\n%s", diff)
		}
	})
}

func TestAPlannerAnswersTheSameAfterATrial(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, _ := anyCluster(t)
		p := place.NewPlanner(c)
		before := p.Imbalance()
		params := place.DefaultBalanceParams()
		params.Moves, params.Threshold = 5, 0.01
		first := p.Rebalance(params)
		if diff := cmp.Diff(first, p.Rebalance(params)); diff != "" {
			t.Errorf("the second time differs:\n%s", diff)
		}
		if after := p.Imbalance(); after != before {
			t.Errorf("the imbalance was %f and is %f", before, after)
		}
	})
}

func TestBalancingNeverMakesItWorseAndNeverGoesBackAndForth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, rs := anyCluster(t)
		c.Mode = rapid.SampledFrom([]place.Mode{place.Static, place.Dynamic}).Draw(t, "mode of balancing")
		measure(&c)
		p := place.DefaultBalanceParams()
		p.Threshold, p.Margin = rapid.Float64Range(0.01, 0.5).Draw(t, "threshold"), rapid.Float64Range(0.001, 0.2).Draw(t, "margin")
		p.Moves, p.Method = rapid.IntRange(1, 3).Draw(t, "moves"), rapid.SampledFrom([]place.Method{place.BruteForce, place.TOPSIS}).Draw(t, "method")
		var b place.Balancer
		var history []string
		was := broken(c, rs)
		for now := time.Duration(0); now < 9*time.Minute; now += 15 * time.Second {
			before := place.NewPlanner(c).Imbalance()
			next, moves, _ := b.Step(now, c, p)
			b = next
			done := carryOut(&c, moves)
			if after := place.NewPlanner(c).Imbalance(); after > before {
				t.Errorf("%v: the imbalance was %f and is %f", done, before, after)
			}
			for _, m := range done {
				f := strings.Fields(m)
				if slices.Contains(history, f[0]+" "+f[2]+" "+f[1]) {
					t.Errorf("%s went back: %v then %s", f[0], history, m)
				}
			}
			history = append(history, done...)
			if is := broken(c, rs); was == "" && is != "" {
				t.Errorf("%v breaks %s", done, is)
			}
		}
	})
}
