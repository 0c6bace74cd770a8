package rules_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

// three nodes, n1 and n2 in rack r1 of site s1, n3 in rack r1 of site s2.
func three() []rules.Node {
	return []rules.Node{{Name: "n1", Rack: "r1", Site: "s1"}, {Name: "n2", Rack: "r1", Site: "s1"}, {Name: "n3", Rack: "r1", Site: "s2"}}
}

// parse reads one rule a line: "near db vm:1,vm:2 n1:2,n2 strict", "apart web vm:1,vm:2 rack", "with web vm:1,vm:2 soft".
func parse(t testing.TB, lines ...string) []pveconf.HARule {
	t.Helper()
	var text strings.Builder
	for _, line := range lines {
		f := strings.Fields(line)
		typ := map[string]string{"near": "node-affinity", "with": "resource-affinity", "apart": "resource-affinity"}[f[0]]
		fmt.Fprintf(&text, "%s: %s\n\tresources %s\n", typ, f[1], f[2])
		rest := f[3:]
		switch f[0] {
		case "near":
			fmt.Fprintf(&text, "\tnodes %s\n", f[3])
			rest = f[4:]
		case "with":
			text.WriteString("\taffinity positive\n")
		case "apart":
			text.WriteString("\taffinity negative\n")
		}
		for _, word := range rest {
			text.WriteString(map[string]string{
				"strict": "\tstrict 1\n", "soft": "\tstrict 0\n", "off": "\tdisable\n",
				"rack": "\tdomain rack\n", "site": "\tdomain site\n",
			}[word])
		}
	}
	rs, err := pveconf.ParseHARules([]byte(text.String()))
	if err != nil {
		t.Fatalf("%v\n%s", err, text.String())
	}
	return rs
}

func TestContradictionsAreNamedByTheirSmallestSetOfRules(t *testing.T) {
	tests := map[string]struct {
		rules []string
		want  []rules.Conflict
	}{
		"none": {[]string{"near near1 vm:1,vm:2 n1,n2 strict", "apart apart1 vm:1,vm:2", "with with1 vm:1,vm:3"}, nil},
		"together and apart at once": {
			[]string{"with with1 vm:1,vm:2", "apart apart1 vm:2,vm:1,vm:3"},
			[]rules.Conflict{{
				[]string{"with1", "apart1"},
				[]string{"vm:1", "vm:2"},
				"vm:1 and vm:2 must be together (rule with1) and must not share a node (rule apart1)",
			}},
		},
		"the shortest way together": {
			[]string{"with long1 vm:1,vm:5", "with long2 vm:5,vm:6", "with long3 vm:6,vm:3", "with short1 vm:1,vm:2", "with short2 vm:2,vm:3", "apart apart1 vm:1,vm:3"},
			[]rules.Conflict{{
				[]string{"short1", "short2", "apart1"},
				[]string{"vm:1", "vm:3"},
				"vm:1 and vm:3 must be together (the rules short1 and short2) and must not share a node (rule apart1)",
			}},
		},
		"on one node and in two racks": {
			[]string{"with with1 vm:1,vm:2", "apart apart1 vm:1,vm:2 rack"},
			[]rules.Conflict{{
				[]string{"with1", "apart1"},
				[]string{"vm:1", "vm:2"},
				"vm:1 and vm:2 must be together (rule with1) and must not share a rack (rule apart1)",
			}},
		},
		"in one rack and on two nodes is possible": {[]string{"with with1 vm:1,vm:2 rack", "apart apart1 vm:1,vm:2"}, nil},
		"soft rules contradict nothing":            {[]string{"with with1 vm:1,vm:2", "apart apart1 vm:1,vm:2 soft"}, nil},
		"disabled rules contradict nothing":        {[]string{"with with1 vm:1,vm:2", "apart apart1 vm:1,vm:2 off"}, nil},
		"two node affinities of one resource": {
			[]string{"near near1 vm:1,vm:2 n1", "near near2 vm:2,vm:3,vm:1 n1"},
			[]rules.Conflict{{
				[]string{"near1", "near2"},
				[]string{"vm:1", "vm:2"},
				"the rules near1 and near2 both say on which nodes vm:1 and vm:2 belong",
			}},
		},
		"two node affinities of one bundle": {
			[]string{"near near1 vm:1 n1", "with with1 vm:1,vm:2", "with with2 vm:2,vm:3", "near near2 vm:3 n2"},
			[]rules.Conflict{{
				[]string{"near1", "with1", "with2", "near2"},
				[]string{"vm:1", "vm:3"},
				"vm:1 and vm:3 must share a node (the rules with1 and with2), and rule near1 says on which nodes vm:1 belongs while rule near2 says it of vm:3",
			}},
		},
		"more resources apart than nodes": {
			[]string{"apart apart1 vm:1,vm:2,vm:3,vm:4"},
			[]rules.Conflict{{
				[]string{"apart1"},
				[]string{"vm:1", "vm:2", "vm:3", "vm:4"},
				"rule apart1 keeps 4 resources apart, and the cluster has 3 nodes",
			}},
		},
		"a rack of the same name in another site is another rack": {
			[]string{"apart apart1 vm:1,vm:2,vm:3 rack"},
			[]rules.Conflict{{
				[]string{"apart1"},
				[]string{"vm:1", "vm:2", "vm:3"},
				"rule apart1 keeps 3 resources apart, and the cluster has 2 racks",
			}},
		},
		"more resources apart than nodes allowed": {
			[]string{"near near1 vm:1 n1", "near near2 vm:2 n2", "near near3 vm:3 n1,n2", "near near4 vm:4 n1,n2,n3", "apart apart1 vm:1,vm:2,vm:3"},
			[]rules.Conflict{{
				[]string{"near1", "near2", "near3", "apart1"},
				[]string{"vm:1", "vm:2", "vm:3"},
				"rule apart1 keeps vm:1, vm:2 and vm:3 apart, and the rules near1, near2 and near3 confine them to 2 nodes",
			}},
		},
		"confined by a partner's node affinity": {
			[]string{"near near1 vm:1,vm:9 n1", "with with1 vm:9,vm:2", "apart apart1 vm:1,vm:2"},
			[]rules.Conflict{{
				[]string{"near1", "with1", "apart1"},
				[]string{"vm:1", "vm:2"},
				"rule apart1 keeps vm:1 and vm:2 apart, and the rules near1 and with1 confine them to 1 node",
			}},
		},
		"priorities among resources that belong apart": {
			[]string{"near near1 vm:1 n1:2,n2", "apart apart1 vm:1,vm:2"},
			[]rules.Conflict{{
				[]string{"near1", "apart1"},
				[]string{"vm:1"},
				"vm:1 is in rule apart1 and in rule near1, which gives its nodes different priorities: resources that belong together or apart need nodes of one priority",
			}},
		},
		"a rule for one resource": {
			[]string{"with with1 vm:1"},
			[]rules.Conflict{{[]string{"with1"}, []string{"vm:1"}, "rule with1 is about vm:1 alone, and positive affinity needs two resources"}},
		},
		"no rack in common": {
			[]string{"with with1 vm:1,vm:2 rack", "near near1 vm:1 n1 strict", "near near2 vm:2 n3 strict"},
			[]rules.Conflict{{
				[]string{"with1", "near1", "near2"},
				[]string{"vm:1", "vm:2"},
				"rule with1 keeps vm:1 and vm:2 in one rack, and the rules near1 and near2 leave them none in common",
			}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, rules.Check(parse(t, tt.rules...), three())); diff != "" {
				t.Errorf("conflicts differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheSmallestContradictionComesFirst(t *testing.T) {
	got := rules.Check(parse(t, "with with1 vm:1,vm:2", "with with2 vm:2,vm:3", "apart apart1 vm:1,vm:3", "apart many1 vm:4,vm:5,vm:6,vm:7"), three())
	if len(got) != 2 || len(got[0].Rules) != 1 || len(got[1].Rules) != 3 {
		t.Errorf("got %+v", got)
	}
}

func TestARuleThatContradictsIsDroppedAndNamed(t *testing.T) {
	s := rules.Compile(parse(t, "with with1 vm:1,vm:2", "with with2 vm:2,vm:3", "apart apart1 vm:1,vm:2", "apart apart2 vm:1,vm:4", "apart off1 vm:1,vm:2 off"), three())
	const why = "vm:1 and vm:2 must be together (rule with1) and must not share a node (rule apart1)"
	// with2 goes too, as it does in Proxmox VE: it is part of the bundle that cannot be
	if diff := cmp.Diff([]rules.Dropped{{"with1", why}, {"with2", why}, {"apart1", why}}, s.Dropped()); diff != "" {
		t.Errorf("dropped differs (-want +got):\n%s", diff)
	}
	if r := s.Of("vm:2"); r != nil {
		t.Errorf("vm:2 has rules: %+v", r)
	}
	if r := s.Of("vm:1"); r == nil || len(r.Apart) != 1 || r.Apart[0].SID != "vm:4" {
		t.Errorf("vm:1 has %+v, want apart from vm:4", r)
	}
}

func TestABundleSharesWhatItsMembersHave(t *testing.T) {
	s := rules.Compile(parse(t, "with with1 vm:1,vm:2", "with with2 vm:2,vm:3", "near near1 vm:3 n1,n2 strict", "apart apart1 vm:1,vm:9", "apart soft1 vm:2,vm:8 soft"), three())
	for _, sid := range []string{"vm:1", "vm:2", "vm:3"} {
		r := s.Of(sid)
		if r.Bundle == 0 || len(r.Together) != 2 || slices.Contains(r.Together, sid) {
			t.Errorf("%s is in bundle %d with %v", sid, r.Bundle, r.Together)
		}
		if r.Affinity == nil || r.Affinity.Rule != "near1" {
			t.Errorf("%s has the node affinity %v, want near1", sid, r.Affinity)
		}
		if len(r.Apart) != 1 || r.Apart[0].SID != "vm:9" || r.Apart[0].Rule != "apart1" {
			t.Errorf("%s is apart from %v, want vm:9", sid, r.Apart)
		}
		if len(r.Others) != 1 || r.Others[0].Rule != "soft1" || r.Others[0].Weight != pveconf.DefaultWeight {
			t.Errorf("%s has the groups %v, want soft1", sid, r.Others)
		}
	}
	if r := s.Of("vm:9"); len(r.Apart) != 3 {
		t.Errorf("vm:9 is apart from %v, want the whole bundle", r.Apart)
	}
}

func TestBundlesWhoseMembersAreApartAreApartAsAWhole(t *testing.T) {
	s := rules.Compile(parse(t, "with with1 vm:1,vm:2", "with with2 vm:3,vm:4", "apart apart1 vm:2,vm:3"), three())
	got := map[string]bool{}
	for _, sid := range []string{"vm:1", "vm:2", "vm:3", "vm:4"} {
		for _, a := range s.Of(sid).Apart {
			got[sid+" "+a.SID] = a.Partners
		}
	}
	want := map[string]bool{
		"vm:1 vm:3": false, "vm:2 vm:3": false, "vm:2 vm:4": false, "vm:3 vm:1": false, "vm:3 vm:2": false, "vm:4 vm:2": false,
		"vm:1 vm:4": true, "vm:4 vm:1": true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pairs differ (-want +got):\n%s", diff)
	}
}

func TestASetOfNoRulesAnswers(t *testing.T) {
	var s *rules.Set
	if s.Of("vm:1") != nil || s.Dropped() != nil {
		t.Error("a nil set has rules")
	}
}

// anyRules draws few rules about few resources, so that they often contradict one another.
func anyRules(t *rapid.T) []pveconf.HARule {
	sids := []string{"vm:1", "vm:2", "vm:3", "vm:4", "vm:5"}
	nodes := []string{"n1", "n2", "n3"}
	var rs []pveconf.HARule
	for i := range rapid.IntRange(1, 6).Draw(t, "rules") {
		r := pveconf.HARule{ID: fmt.Sprintf("rule%d", i), Resources: rapid.SliceOfNDistinct(rapid.SampledFrom(sids), 1, 4, rapid.ID[string]).Draw(t, "resources")}
		if rapid.IntRange(0, 2).Draw(t, "type") == 0 {
			r.Type, r.Strict = pveconf.NodeAffinity, rapid.Bool().Draw(t, "strict")
			for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom(nodes), 1, 3, rapid.ID[string]).Draw(t, "nodes") {
				r.Nodes = append(r.Nodes, pveconf.RuleNode{Name: n, Priority: max(0, rapid.IntRange(-6, 1).Draw(t, "priority"))})
			}
		} else {
			r.Type, r.Strict = pveconf.ResourceAffinity, rapid.IntRange(0, 3).Draw(t, "soft") > 0
			r.Affinity = rapid.SampledFrom([]pveconf.Affinity{pveconf.Positive, pveconf.Negative}).Draw(t, "affinity")
			r.Domain = rapid.SampledFrom([]pveconf.Domain{pveconf.DomainNode, pveconf.DomainNode, pveconf.DomainRack, pveconf.DomainSite}).Draw(t, "domain")
		}
		rs = append(rs, r)
	}
	return rs
}

// some are the rules of these ids.
func some(rs []pveconf.HARule, ids []string) []pveconf.HARule {
	return slices.DeleteFunc(slices.Clone(rs), func(r pveconf.HARule) bool { return !slices.Contains(ids, r.ID) })
}

func TestNoRuleOfAContradictionCouldBeLeftOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := anyRules(t)
		for _, c := range rules.Check(rs, three()) {
			part := some(rs, c.Rules)
			if len(rules.Check(part, three())) == 0 {
				t.Errorf("%v do not contradict one another: %s", c.Rules, c.Reason)
			}
			for i := range part {
				if left := slices.Delete(slices.Clone(part), i, i+1); len(rules.Check(left, three())) > 0 {
					t.Errorf("%v contradict one another without %s too: %+v", c.Rules, part[i].ID, rules.Check(left, three()))
				}
			}
		}
	})
}

func TestNoSmallerSetOfRulesContradictsItself(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := anyRules(t)
		smallest := len(rs) + 1
		for mask := range 1 << len(rs) {
			var ids []string
			for i, r := range rs {
				if mask&(1<<i) != 0 {
					ids = append(ids, r.ID)
				}
			}
			if len(ids) < smallest && len(rules.Check(some(rs, ids), three())) > 0 {
				smallest = len(ids)
			}
		}
		got := rules.Check(rs, three())
		switch {
		case smallest > len(rs) && len(got) > 0:
			t.Errorf("no part contradicts itself, and got %+v", got)
		case smallest <= len(rs) && (len(got) == 0 || len(got[0].Rules) != smallest):
			t.Errorf("%d rules suffice, and got %+v", smallest, got)
		}
	})
}

func TestTheRulesInEffectContradictNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := anyRules(t)
		s := rules.Compile(rs, three())
		var dropped []string
		for _, d := range s.Dropped() {
			dropped = append(dropped, d.Rule)
			if d.Reason == "" {
				t.Errorf("%s is dropped without a reason", d.Rule)
			}
		}
		left := slices.DeleteFunc(slices.Clone(rs), func(r pveconf.HARule) bool { return slices.Contains(dropped, r.ID) })
		if got := rules.Check(left, three()); len(got) > 0 {
			t.Errorf("still contradicting: %+v", got)
		}
		if len(rules.Check(rs, three())) == 0 && len(dropped) > 0 {
			t.Errorf("dropped %v for nothing", dropped)
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	var rs []pveconf.HARule
	var nodes []rules.Node
	for i := range 256 {
		nodes = append(nodes, rules.Node{Name: fmt.Sprintf("n%d", i), Rack: fmt.Sprintf("r%d", i/16)})
	}
	for i := range 1000 {
		sids := []string{fmt.Sprintf("vm:%d", 1000+3*i), fmt.Sprintf("vm:%d", 1001+3*i), fmt.Sprintf("vm:%d", 1002+3*i)}
		rs = append(
			rs,
			pveconf.HARule{Type: pveconf.ResourceAffinity, ID: fmt.Sprintf("w%d", i), Strict: true, Affinity: pveconf.Positive, Domain: pveconf.DomainNode, Resources: sids[:2]},
			pveconf.HARule{Type: pveconf.ResourceAffinity, ID: fmt.Sprintf("a%d", i), Strict: true, Affinity: pveconf.Negative, Domain: pveconf.DomainNode, Resources: sids[1:]},
			pveconf.HARule{Type: pveconf.NodeAffinity, ID: fmt.Sprintf("n%d", i), Resources: sids[:1], Nodes: []pveconf.RuleNode{{Name: "n1"}, {Name: "n2"}}},
		)
	}
	for b.Loop() {
		if s := rules.Compile(rs, nodes); len(s.Dropped()) > 0 {
			b.Fatal(s.Dropped()[0])
		}
	}
}
