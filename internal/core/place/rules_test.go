package place_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

// compile reads a rules.cfg for the nodes of c, and fails if a rule is dropped.
func compile(t testing.TB, c place.Cluster, text string) *rules.Set {
	t.Helper()
	rs, err := pveconf.ParseHARules([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var nodes []rules.Node
	for _, n := range c.Nodes {
		nodes = append(nodes, rules.Node{Name: n.Name, Rack: n.Rack, Site: n.Site})
	}
	s := rules.Compile(rs, nodes)
	for _, d := range s.Dropped() {
		t.Fatalf("rule %s is dropped: %s", d.Rule, d.Reason)
	}
	return s
}

// near, with and apart write a rule.
func near(id, resources, nodes string, more ...string) string {
	return fmt.Sprintf("node-affinity: %s\n\tresources %s\n\tnodes %s\n", id, resources, nodes) + lines(more)
}

func with(id, resources string, more ...string) string {
	return fmt.Sprintf("resource-affinity: %s\n\tresources %s\n\taffinity positive\n", id, resources) + lines(more)
}

func apart(id, resources string, more ...string) string {
	return fmt.Sprintf("resource-affinity: %s\n\tresources %s\n\taffinity negative\n", id, resources) + lines(more)
}

func lines(more []string) string {
	var b strings.Builder
	for _, m := range more {
		b.WriteString("\t" + m + "\n")
	}
	return b.String()
}

func rack(name string) func(*place.Node) { return func(n *place.Node) { n.Rack = name } }

// ha is an HA guest of 1 GiB.
func ha(id model.VMID, on string, change ...func(*place.Guest)) place.Guest {
	g := place.Guest{VMID: id, Node: on, MemoryMiB: 1024, HA: true}
	for _, c := range change {
		c(&g)
	}
	return g
}

func target(node string) func(*place.Guest) { return func(g *place.Guest) { g.Target = node } }
func home(node string) func(*place.Guest)   { return func(g *place.Guest) { g.Home = node } }
func stays(g *place.Guest)                  { g.NoFailback = true }
func idle(g *place.Guest)                   { g.Idle = true }

func TestWhereRulesSendAGuestWhoseNodeIsLost(t *testing.T) {
	nodes := []place.Node{node("n1"), node("n2"), node("n3"), node("n9", state(place.Fenced))}
	off := func(name string) []place.Node {
		out := append([]place.Node(nil), nodes...)
		for i := range out {
			if out[i].Name == name {
				out[i].State = place.Offline
			}
		}
		return out
	}
	tests := map[string]struct {
		nodes  []place.Node
		rules  string
		others []place.Guest
		want   string
		why    string // part of the explanation if there is no place
	}{
		"no rule: the fewest guests":                 {nodes, "", []place.Guest{ha(101, "n1"), ha(102, "n2")}, "n3", ""},
		"the nodes of its affinity":                  {nodes, near("near1", "vm:100", "n2"), []place.Guest{ha(101, "n2")}, "n2", ""},
		"the highest priority that is there":         {off("n3"), near("near1", "vm:100", "n3:9,n2:5,n1:1"), []place.Guest{ha(101, "n2")}, "n2", ""},
		"another node if the affinity is not strict": {off("n2"), near("near1", "vm:100", "n2"), nil, "n1", ""},
		"none if it is strict":                       {off("n2"), near("near1", "vm:100", "n2", "strict 1"), nil, "", "n1 is not among the nodes of rule near1"},
		"the next class if the highest has no room":  {nodes, near("near1", "vm:100", "n2"), []place.Guest{guest(101, "n2", 16000)}, "n1", ""},
		"with those that it must be with":            {nodes, with("with1", "vm:100,vm:101"), []place.Guest{ha(101, "n3"), ha(102, "n3"), ha(103, "n3")}, "n3", ""},
		"with most of them":                          {nodes, with("with1", "vm:100,vm:101,vm:102,vm:103"), []place.Guest{ha(101, "n1"), ha(102, "n3"), ha(103, "n3")}, "n3", ""},
		"where they are going":                       {nodes, with("with1", "vm:100,vm:101"), []place.Guest{ha(101, "n3", target("n2"))}, "n2", ""},
		"nowhere else, even if there is no room":     {nodes, with("with1", "vm:100,vm:101"), []place.Guest{guest(101, "n3", 16000)}, "", "those that must be with it are on n3, not on n1"},
		"away from those it must be apart from":      {nodes, apart("apart1", "vm:100,vm:101"), []place.Guest{ha(101, "n1"), ha(102, "n2"), ha(103, "n2"), ha(104, "n3")}, "n3", ""},
		"away from where they go and come from":      {nodes, apart("apart1", "vm:100,vm:101"), []place.Guest{ha(101, "n1", target("n2"))}, "n3", ""},
		"not away from one that does not run":        {nodes, apart("apart1", "vm:100,vm:101"), []place.Guest{ha(101, "n1", idle)}, "n1", ""},
		"away from a partner's enemies":              {nodes, with("with1", "vm:100,vm:101") + apart("apart1", "vm:101,vm:102"), []place.Guest{ha(102, "n1")}, "n2", ""},
		"with them, even in a lower class":           {nodes, with("with1", "vm:100,vm:101") + near("near1", "vm:100", "n2"), []place.Guest{ha(101, "n3")}, "n3", ""},
		"it waits where they must not be": {
			nodes, with("with1", "vm:100,vm:101") + apart("apart1", "vm:100,vm:102"),
			[]place.Guest{ha(101, "n3"), ha(102, "n3")},
			"",
			"n3 has vm:102, and rule apart1 keeps the two apart",
		},
		"away from the partners of a partner's enemy": {
			nodes, with("with1", "vm:100,vm:101") + with("with2", "vm:102,vm:103") + apart("apart1", "vm:101,vm:103"),
			[]place.Guest{ha(102, "n1"), ha(104, "n2"), ha(105, "n2"), ha(106, "n3"), ha(107, "n3"), ha(108, "n3")},
			"n2", "",
		},
		"apart and on few nodes":                      {nodes, apart("apart1", "vm:100,vm:101") + near("near1", "vm:100,vm:101", "n1,n2", "strict 1"), []place.Guest{ha(101, "n1")}, "n2", ""},
		"a soft rule decides among nodes":             {nodes, apart("soft1", "vm:100,vm:101", "strict 0"), []place.Guest{ha(101, "n1"), ha(102, "n2"), ha(103, "n2"), ha(104, "n3"), ha(105, "n3"), ha(106, "n3")}, "n2", ""},
		"the heavier soft rule wins":                  {nodes, apart("soft1", "vm:100,vm:101", "strict 0", "weight 5") + with("soft2", "vm:100,vm:101", "strict 0", "weight 6"), []place.Guest{ha(101, "n3")}, "n3", ""},
		"a soft rule is broken rather than no place":  {off("n2"), apart("soft1", "vm:100,vm:101", "strict 0") + near("near1", "vm:100", "n1", "strict 1"), []place.Guest{ha(101, "n1")}, "n1", ""},
		"a maintenance's guest goes back to its node": {nodes, "", []place.Guest{ha(101, "n3"), ha(102, "n1")}, "n2", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := place.Cluster{Nodes: tt.nodes, Guests: append([]place.Guest{ha(100, "n9")}, tt.others...)}
			c.Rules = compile(t, c, tt.rules)
			got, verdicts := place.Choose(place.Request{VMID: 100, MemoryMiB: 1024, Node: "n9"}, c)
			if why := place.Explain(verdicts); got != tt.want || !strings.Contains(why, tt.why) {
				t.Errorf("got %q, want %q: %s", got, tt.want, why)
			}
		})
	}
}

func TestFailureDomainsAreKept(t *testing.T) {
	nodes := []place.Node{node("n1", rack("a")), node("n2", rack("a")), node("n3", rack("b")), node("n4")}
	tests := map[string]struct{ rules, on, want, why string }{
		"apart by rack":             {apart("apart1", "vm:100,vm:101", "domain rack"), "n1", "n3", ""},
		"together by rack":          {with("with1", "vm:100,vm:101", "domain rack"), "n3", "n3", ""},
		"softly apart by rack":      {apart("apart1", "vm:100,vm:101", "domain rack", "strict 0"), "n2", "n3", ""},
		"a partner counts too":      {with("with1", "vm:100,vm:102") + apart("apart1", "vm:102,vm:101", "domain rack"), "n1", "n3", ""},
		"a node without a label":    {apart("apart1", "vm:100,vm:101", "domain rack") + near("near1", "vm:100", "n2,n4", "strict 1"), "n1", "", "n4 has no label rack, and rule apart1 goes by it"},
		"the rack is taken":         {apart("apart1", "vm:100,vm:101", "domain rack") + near("near1", "vm:100", "n2", "strict 1"), "n1", "", "n2 shares its rack with a guest from which rule apart1 keeps it apart"},
		"another rack than they in": {with("with1", "vm:100,vm:101", "domain rack") + near("near1", "vm:100", "n3", "strict 1"), "n1", "", "n3 is in another rack than those with which rule with1 keeps it"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := place.Cluster{Nodes: nodes, Guests: []place.Guest{ha(101, tt.on)}}
			c.Rules = compile(t, c, tt.rules)
			got, verdicts := place.Choose(place.Request{VMID: 100, MemoryMiB: 1024}, c)
			if why := place.Explain(verdicts); got != tt.want || !strings.Contains(why, tt.why) {
				t.Errorf("got %q, want %q: %s", got, tt.want, why)
			}
		})
	}
}

func TestABundleComesBackOnANodeThatHasRoomForAllOfIt(t *testing.T) {
	c := place.Cluster{
		Nodes: []place.Node{node("n1", memory(3000)), node("n2", memory(5000)), node("n9", state(place.Fenced))},
		Guests: []place.Guest{
			ha(100, "n9"), ha(101, "n9"), ha(102, "n9"), ha(103, "n9"),
			{VMID: 104, Node: "n2", MemoryMiB: 100}, // n1 has the fewest guests
		},
	}
	c.Rules = compile(t, c, with("with1", "vm:100,vm:101,vm:102,vm:103"))
	for _, g := range place.WhatIf(c) {
		t.Errorf("nothing is lost, and %s moves", g.Request.Name())
	}
	for _, pl := range place.WhatIf(c, "n9") {
		if pl.Node != "n2" {
			t.Errorf("%s goes to %q, want n2: %s", pl.Request.Name(), pl.Node, place.Explain(pl.Verdicts))
		}
	}
	// with room for three at most, three come back, together
	c.Nodes[1].MemoryMiB = 3500
	nodes := map[string]int{}
	for _, pl := range place.WhatIf(c, "n9") {
		nodes[pl.Node]++
	}
	if diff := cmp.Diff(map[string]int{"n2": 3, "": 1}, nodes); diff != "" && !cmp.Equal(map[string]int{"n1": 2, "": 2}, nodes) {
		t.Errorf("nodes differ (-want +got):\n%s", diff)
	}
}

func TestAGuestStaysWhereItMay(t *testing.T) {
	tests := map[string]struct {
		rules  string
		guests []place.Guest
		want   string // "vm:100 n1 n2, …"
	}{
		"no rule, whatever the balance":        {"", []place.Guest{ha(100, "n1"), ha(101, "n1"), ha(102, "n1")}, ""},
		"a better class":                       {near("near1", "vm:100", "n1:1,n2:2"), []place.Guest{ha(100, "n1")}, "vm:100 n1 n2"},
		"no failback asked for":                {near("near1", "vm:100", "n1:1,n2:2"), []place.Guest{ha(100, "n1", stays)}, ""},
		"no failback, and it may not be there": {near("near1", "vm:100", "n2", "strict 1"), []place.Guest{ha(100, "n1", stays)}, "vm:100 n1 n2"},
		"the better class has no room":         {near("near1", "vm:100", "n1:1,n2:2"), []place.Guest{ha(100, "n1"), guest(101, "n2", 16000)}, ""},
		"not twice":                            {near("near1", "vm:100", "n1:1,n2:2"), []place.Guest{ha(100, "n1", target("n2"))}, ""},
		"apart, and on one node":               {apart("apart1", "vm:100,vm:101"), []place.Guest{ha(100, "n1"), ha(101, "n1"), ha(102, "n2")}, "vm:100 n1 n3, vm:101 n1 n2"},
		"together, and on two":                 {with("with1", "vm:100,vm:101,vm:102"), []place.Guest{ha(100, "n1"), ha(101, "n2"), ha(102, "n2")}, "vm:100 n1 n2"},
		"a bundle follows into its class":      {with("with1", "vm:100,vm:101") + near("near1", "vm:101", "n3"), []place.Guest{ha(100, "n1"), ha(101, "n1")}, "vm:100 n1 n3, vm:101 n1 n3"},
		"no room there for all of the bundle":  {with("with1", "vm:100,vm:101") + near("near1", "vm:101", "n3"), []place.Guest{ha(100, "n1"), ha(101, "n1"), guest(102, "n3", 15000)}, ""},
		"the partners of enemies drive nobody away": {
			with("with1", "vm:100,vm:101") + with("with2", "vm:102,vm:103") + apart("apart1", "vm:101,vm:103"),
			[]place.Guest{ha(100, "n1"), ha(102, "n1")},
			"",
		},
		"a soft rule moves nobody":                {apart("soft1", "vm:100,vm:101", "strict 0"), []place.Guest{ha(100, "n1"), ha(101, "n1")}, ""},
		"a maintenance drives it away":            {"", []place.Guest{ha(100, "n4")}, "vm:100 n4 n1"},
		"it goes back after the maintenance":      {"", []place.Guest{ha(100, "n1", home("n2"))}, "vm:100 n1 n2"},
		"it waits for the maintenance to end":     {"", []place.Guest{ha(100, "n1", home("n4"))}, ""},
		"a guest of a lost node is not evaluated": {near("near1", "vm:100", "n1:1,n2:2"), []place.Guest{ha(100, "n9")}, ""},
		"a guest that is no HA resource":          {near("near1", "vm:100", "n2", "strict 1"), []place.Guest{guest(100, "n1", 1024)}, ""},
		// the others' places are taken into account, so nobody moves to where it would have to leave again
		"a ring of wishes": {
			near("near1", "vm:100", "n2") + near("near2", "vm:101", "n3") + near("near3", "vm:102", "n1") + apart("apart1", "vm:100,vm:101,vm:102"),
			[]place.Guest{ha(100, "n1"), ha(101, "n2"), ha(102, "n3")},
			"",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := place.Cluster{Guests: tt.guests, Nodes: []place.Node{node("n1"), node("n2"), node("n3"), node("n4", state(place.Maintenance)), node("n9", state(place.Fenced))}}
			c.Rules = compile(t, c, tt.rules)
			var got []string
			for _, m := range place.NewPlanner(c).Evaluate() {
				got = append(got, strings.Join([]string{m.SID, m.From, m.To}, " "))
				if m.Reason == "" {
					t.Errorf("%s moves without a reason", m.SID)
				}
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("moves differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAfterAFailedStartTheNextNodeIsTried(t *testing.T) {
	c := place.Cluster{Nodes: []place.Node{node("n1"), node("n2"), node("n3")}, Guests: []place.Guest{ha(100, "n2"), ha(101, "n2"), ha(102, "n1"), ha(103, "n1")}}
	tests := map[string]struct {
		rules string
		tried []string
		want  string
	}{
		"the best of the others":              {"", []string{"n2"}, "n3"},
		"then the last":                       {"", []string{"n2", "n3"}, "n1"},
		"then none":                           {"", []string{"n2", "n3", "n1"}, ""},
		"not out of the highest class":        {near("near1", "vm:100", "n2"), []string{"n2"}, ""},
		"away from those it must be with":     {with("with1", "vm:100,vm:101"), []string{"n2"}, "n3"},
		"but not to those it is kept from":    {apart("apart1", "vm:100,vm:102"), []string{"n2", "n3"}, ""},
		"the one after its own, by the score": {"", nil, "n1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c.Rules = compile(t, c, tt.rules)
			got, why := place.NewPlanner(c).Pick(place.Request{VMID: 100, MemoryMiB: 1024, Node: "n2", Prefer: place.Next, Tried: tt.tried})
			if got != tt.want {
				t.Errorf("got %q, want %q: %s", got, tt.want, why)
			}
		})
	}
}

func TestACommandIsChecked(t *testing.T) {
	c := place.Cluster{
		Nodes:  []place.Node{node("n1"), node("n2"), node("n3", memory(2048)), node("n4", state(place.Offline))},
		Guests: []place.Guest{ha(100, "n1"), ha(101, "n1"), ha(102, "n1"), ha(103, "n2"), ha(104, "n1"), ha(105, "n1")},
	}
	c.Rules = compile(t, c, with("with1", "vm:100,vm:101,vm:102")+apart("apart1", "vm:103,vm:104")+near("near1", "vm:104", "n1")+near("near2", "vm:105", "n1", "strict 1"))
	tests := []struct {
		sid, to, refusal string
		with             []string
	}{
		{"vm:100", "n2", "", []string{"vm:101", "vm:102"}},
		{"vm:100", "n1", "", nil},
		{"vm:104", "n3", "", nil}, // a wish is no obstacle
		{"vm:100", "n3", "n3 has 2048 MiB free of 2048 MiB (0 MiB configured, 0 MiB reserved), the guest needs 3072 MiB", nil},
		{"vm:104", "n2", "n2 has vm:103, and rule apart1 keeps the two apart", nil},
		{"vm:105", "n2", "n2 is not among the nodes of rule near2", nil},
		{"vm:100", "n4", "n4 is offline", nil},
		{"vm:100", "n5", "n5 is no node of the cluster", nil},
		{"vm:999", "n1", "vm:999 is no guest of the cluster", nil},
	}
	p := place.NewPlanner(c)
	for _, tt := range tests {
		refusal, along := p.Check(tt.sid, tt.to)
		if refusal != tt.refusal || !cmp.Equal(along, tt.with) {
			t.Errorf("%s to %s: got %q with %v, want %q with %v", tt.sid, tt.to, refusal, along, tt.refusal, tt.with)
		}
	}
}
