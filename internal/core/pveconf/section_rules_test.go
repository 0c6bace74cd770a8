package pveconf_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

const rulesCfg = `# who goes where
node-affinity: db-near
	nodes n1:2,n2
	resources vm:100,vm:101
	strict 1
	comment the databases%3A near their disks

resource-affinity: web-apart
	resources vm:200,ct:201
	affinity negative
	domain rack
	# nobody knows this key
	since 2026
	disable

resource-affinity: chatty
	resources vm:300,fa:301
	affinity positive
	strict 0
	weight 20
`

var noSection = cmpopts.IgnoreFields(pveconf.HARule{}, "Section")

func TestRulesAreReadTyped(t *testing.T) {
	got, err := pveconf.ParseHARules([]byte(rulesCfg))
	if err != nil {
		t.Fatal(err)
	}
	want := []pveconf.HARule{
		{
			Type: pveconf.NodeAffinity, ID: "db-near", Resources: []string{"vm:100", "vm:101"}, Strict: true,
			Nodes: []pveconf.RuleNode{{Name: "n1", Priority: 2}, {Name: "n2"}}, Comment: "the databases: near their disks",
		},
		{
			Type: pveconf.ResourceAffinity, ID: "web-apart", Resources: []string{"vm:200", "ct:201"}, Strict: true,
			Affinity: pveconf.Negative, Domain: pveconf.DomainRack, Disabled: true,
		},
		{
			Type: pveconf.ResourceAffinity, ID: "chatty", Resources: []string{"vm:300", "fa:301"},
			Affinity: pveconf.Positive, Domain: pveconf.DomainNode, Weight: 20,
		},
	}
	if diff := cmp.Diff(want, got, noSection); diff != "" {
		t.Errorf("rules differ (-want +got):\n%s", diff)
	}
}

func TestRulesArePrintedAsTheyWereRead(t *testing.T) {
	rs, err := pveconf.ParseHARules([]byte(rulesCfg))
	if err != nil {
		t.Fatal(err)
	}
	got, err := pveconf.PrintHARules(rs)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rulesCfg, string(got)); diff != "" {
		t.Errorf("unchanged file differs (-want +got):\n%s", diff)
	}
	rs[0].Nodes = append(rs[0].Nodes, pveconf.RuleNode{Name: "n3", Priority: 1})
	rs[0].Comment, rs[0].Strict = "50% of them", false
	rs[1].Disabled, rs[1].Domain = false, pveconf.DomainNode
	rs[2].Strict, rs[2].Weight = true, 0
	rs = append(rs, pveconf.HARule{Type: pveconf.ResourceAffinity, ID: "new", Resources: []string{"vm:1000", "vm:1001"}, Affinity: pveconf.Negative, Domain: pveconf.DomainNode, Strict: true})
	got, err = pveconf.PrintHARules(rs)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("n1:2,n2\n", "n1:2,n2,n3:1\n", "comment the databases%3A near their disks", "comment 50% of them", "strict 1\n", "strict 0\n",
		"\tdisable\n", "", "domain rack", "domain node", "\tstrict 0\n\tweight 20\n", "\tstrict 1\n").Replace(rulesCfg) +
		"\nresource-affinity: new\n\tresources vm:1000,vm:1001\n\taffinity negative\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("changed file differs (-want +got):\n%s", diff)
	}
}

func TestAWrongRuleIsNamedByLineAndSentence(t *testing.T) {
	ra := "resource-affinity: r1\n\tresources vm:100,vm:101\n"
	na := "node-affinity: r1\n\tresources vm:100\n"
	tests := map[string]struct{ text, want string }{
		"type":              {"group: r1\n\tresources vm:100\n", `line 1: type: "group" is no type of rule: use node-affinity or resource-affinity`},
		"name":              {"node-affinity: 1\n", `line 1: rule: "1" is no name of a rule: use at least two letters, digits, '-' and '_', a letter first`},
		"name twice":        {na + "\tnodes n1\nresource-affinity: r1\n\tresources vm:1,vm:2\n\taffinity positive\n", `line 4: rule: r1 stands already in line 1: give one of the two another name`},
		"no resource":       {"node-affinity: r1\n\tnodes n1\n", `line 1: resources: rule r1 names no resource: list some, such as vm:100,vm:101`},
		"resource":          {"node-affinity: r1\n\tresources 100\n", `line 2: resources: "100" is no HA resource: write its type and id, such as vm:100`},
		"resource twice":    {"node-affinity: r1\n\tresources vm:1,vm:1\n", `line 2: resources: vm:1 stands there twice: remove one of the two`},
		"no node":           {na, `line 1: nodes: rule r1 names no node: list some, such as n1:2,n2`},
		"node":              {na + "\tnodes n_1\n", `line 3: nodes: "n_1" is not a node: write its name, and a priority where you want one, such as n1:2`},
		"priority":          {na + "\tnodes n1:-1\n", `line 3: nodes: "n1:-1" has no valid priority: use 0 to 2147483647, such as n1:2`},
		"node twice":        {na + "\tnodes n1:1,n1\n", `line 3: nodes: n1 stands there twice: remove one of the two`},
		"strict":            {na + "\tnodes n1\n\tstrict perhaps\n", `line 4: strict: "perhaps" is neither true nor false: use 1 or 0`},
		"affinity of nodes": {na + "\tnodes n1\n\taffinity positive\n", `line 4: affinity: a node-affinity rule has none: leave it out`},
		"no affinity":       {ra, `line 1: affinity: "" is not allowed: use positive to keep the resources together, negative to keep them apart`},
		"nodes of affinity": {ra + "\tnodes n1\n", `line 3: nodes: a resource-affinity rule has none: leave it out`},
		"domain":            {ra + "\taffinity negative\n\tdomain room\n", `line 4: domain: "room" is not allowed: use node, rack or site`},
		"weight of strict":  {ra + "\taffinity negative\n\tweight 5\n", `line 4: weight: a strict rule has none: leave it out, or add strict 0`},
		"weight":            {ra + "\taffinity negative\n\tstrict 0\n\tweight 0\n", `line 5: weight: "0" is not a weight: use 1 to 1000`},
		"comment":           {na + "\tnodes n1\n\tcomment " + strings.Repeat("x", 4097) + "\n", `line 4: comment: has 4097 characters: 4096 is the limit`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := pveconf.ParseHARules([]byte(tt.text))
			if !errors.Is(err, model.ErrInvalid) {
				t.Fatalf("got %v, want an invalid rule", err)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("sentence differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestARuleThatIsWrongIsNotPrinted(t *testing.T) {
	_, err := pveconf.PrintHARules([]pveconf.HARule{{Type: pveconf.NodeAffinity, ID: "r1", Resources: []string{"vm:100"}}})
	if !errors.Is(err, model.ErrInvalid) {
		t.Errorf("got %v, want a rule without nodes refused", err)
	}
}

func TestAnyRuleIsReadAsItWasPrinted(t *testing.T) {
	sids := rapid.SliceOfNDistinct(rapid.StringMatching(`(vm|ct|fa):[1-9][0-9]{2,5}`), 1, 5, rapid.ID[string])
	rapid.Check(t, func(t *rapid.T) {
		r := pveconf.HARule{
			ID: rapid.StringMatching(`[a-z][a-z0-9_-]{1,8}`).Draw(t, "id"), Resources: sids.Draw(t, "resources"),
			Disabled: rapid.Bool().Draw(t, "disabled"), Strict: rapid.Bool().Draw(t, "strict"),
			Comment: strings.TrimSpace(rapid.String().Draw(t, "comment")),
		}
		if rapid.Bool().Draw(t, "node affinity") {
			r.Type = pveconf.NodeAffinity
			for _, n := range rapid.SliceOfNDistinct(rapid.StringMatching(`n[1-9]`), 1, 4, rapid.ID[string]).Draw(t, "nodes") {
				r.Nodes = append(r.Nodes, pveconf.RuleNode{Name: n, Priority: rapid.IntRange(0, 9).Draw(t, "priority")})
			}
		} else {
			r.Type = pveconf.ResourceAffinity
			r.Affinity = rapid.SampledFrom([]pveconf.Affinity{pveconf.Positive, pveconf.Negative}).Draw(t, "affinity")
			r.Domain = rapid.SampledFrom([]pveconf.Domain{pveconf.DomainNode, pveconf.DomainRack, pveconf.DomainSite}).Draw(t, "domain")
			if !r.Strict {
				r.Weight = rapid.IntRange(1, pveconf.MaxWeight).Draw(t, "weight")
			}
		}
		text, err := pveconf.PrintHARules([]pveconf.HARule{r})
		if err != nil {
			t.Fatal(err)
		}
		got, err := pveconf.ParseHARules(text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if diff := cmp.Diff([]pveconf.HARule{r}, got, noSection); diff != "" {
			t.Errorf("rule read again differs (-want +got):\n%s\n%s", diff, text)
		}
		again, err := pveconf.PrintHARules(got)
		if err != nil || string(again) != string(text) {
			t.Errorf("printed again: %v\n%s", err, again)
		}
	})
}

const groupsCfg = `group: fast
	nodes n2:2,n3
	nofailback 1

group: only-n1
	nodes n1
	restricted 1
	comment the licence is for n1

group: empty
	nodes n1
`

func TestGroupsBecomeRules(t *testing.T) {
	groups, err := pveconf.ParseHAGroups([]byte(groupsCfg))
	if err != nil {
		t.Fatal(err)
	}
	resources, err := pveconf.ParseHAResources([]byte("vm: 101\n\tgroup fast\nvm: 100\n\tgroup fast\nct: 200\n\tgroup only-n1\nvm: 300\nvm: 400\n\tgroup gone\n"))
	if err != nil {
		t.Fatal(err)
	}
	old := []pveconf.HARule{{Type: pveconf.NodeAffinity, ID: "ha-group-fast"}, {Type: pveconf.NodeAffinity, ID: "mine"}}
	rs, changed := pveconf.GroupsToRules(groups, old, resources)
	want := []pveconf.HARule{
		{Type: pveconf.NodeAffinity, ID: "mine"},
		{
			Type: pveconf.NodeAffinity, ID: "ha-group-fast", Resources: []string{"vm:100", "vm:101"},
			Nodes: []pveconf.RuleNode{{Name: "n2", Priority: 2}, {Name: "n3"}}, Comment: "Generated from HA group 'fast'.",
		},
		{
			Type: pveconf.NodeAffinity, ID: "ha-group-only-n1", Resources: []string{"ct:200"},
			Nodes: []pveconf.RuleNode{{Name: "n1"}}, Strict: true, Comment: "the licence is for n1",
		},
	}
	if diff := cmp.Diff(want, rs); diff != "" {
		t.Errorf("rules differ (-want +got):\n%s", diff)
	}
	text, err := pveconf.PrintHAResources(changed)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("vm: 101\n\tfailback 0\n\nvm: 100\n\tfailback 0\n\nct: 200\n\nvm: 300\n\nvm: 400\n", string(text)); diff != "" {
		t.Errorf("resources differ (-want +got):\n%s", diff)
	}
	if resources[0].Group != "fast" || len(old) != 2 || old[0].ID != "ha-group-fast" {
		t.Error("the arguments were changed")
	}
}

func TestAWrongGroupIsNamedByLineAndSentence(t *testing.T) {
	for text, want := range map[string]string{
		"vm: 100\n":   `line 1: type: "vm" is not allowed: only group is`,
		"group: g\n":  `line 1: group: "g" is no name of a group: use at least two letters, digits, '-' and '_', a letter first`,
		"group: gg\n": `line 1: nodes: group gg names no node: list some, such as n1:2,n2`,
		"group: gg\n\tnodes n1\n\tnofailback x\n": `line 3: nofailback: "x" is neither true nor false: use 1 or 0`,
		"group: gg\n\tnodes n1\n\trestricted x\n": `line 3: restricted: "x" is neither true nor false: use 1 or 0`,
	} {
		if _, err := pveconf.ParseHAGroups([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

const datacenterCfg = `# the house
keyboard: de
ha: shutdown_policy=migrate
email_from: a@b.c
crs: ha=dynamic,ha-rebalance-on-start=1,ha-auto-rebalance=1,ha-auto-rebalance-threshold=20,ha-auto-rebalance-hold-duration=6
`

func TestTheDatacentersSettingsForHAAreRead(t *testing.T) {
	d, err := pveconf.ParseDatacenter([]byte(datacenterCfg))
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.HA()
	if err != nil {
		t.Fatal(err)
	}
	want := pveconf.DatacenterHA{ShutdownPolicy: pveconf.ShutdownMigrate, CRS: pveconf.CRS{
		Mode: "dynamic", RebalanceOnStart: true, AutoRebalance: true, Threshold: 0.2, Margin: 0.1, HoldRounds: 6, Method: "bruteforce",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings differ (-want +got):\n%s", diff)
	}
	if hold := got.CRS.Hold(); hold != 2*time.Minute {
		t.Errorf("hold %s, want 2m", hold)
	}
	if diff := cmp.Diff(datacenterCfg, string(d.Print())); diff != "" {
		t.Errorf("unchanged file differs (-want +got):\n%s", diff)
	}
	got.ShutdownPolicy, got.CRS.Margin, got.CRS.Threshold, got.CRS.Method = pveconf.ShutdownFreeze, 0.07, 0.35, "topsis"
	changed, err := d.WithHA(got)
	if err != nil {
		t.Fatal(err)
	}
	wantText := strings.NewReplacer("migrate", "freeze", "threshold=20,ha-auto-rebalance-hold-duration=6", "threshold=35,ha-auto-rebalance-hold-duration=6,ha-auto-rebalance-method=topsis,ha-auto-rebalance-margin=7").Replace(datacenterCfg)
	if diff := cmp.Diff(wantText, string(changed.Print())); diff != "" {
		t.Errorf("changed file differs (-want +got):\n%s", diff)
	}
}

func TestAnEmptyDatacenterHasTheDefaults(t *testing.T) {
	d, err := pveconf.ParseDatacenter(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.HA()
	if err != nil || len(d.Print()) != 0 {
		t.Errorf("got %v, and printed %q", err, d.Print())
	}
	if diff := cmp.Diff(pveconf.DefaultDatacenterHA(), got); diff != "" {
		t.Errorf("settings differ (-want +got):\n%s", diff)
	}
	got.CRS.Method = "topsis"
	d, err = d.WithHA(got)
	if want := "crs: ha-auto-rebalance=0,ha-auto-rebalance-method=topsis\n"; err != nil || string(d.Print()) != want {
		t.Errorf("got %q, %v, want %q", d.Print(), err, want)
	}
}

func TestAWrongSettingOfTheDatacenterIsNamedByLineAndSentence(t *testing.T) {
	for text, want := range map[string]string{
		"a: b\nrubbish\n":                            `line 2: line: "rubbish" is no setting: write "key: value"`,
		"a: b\na: c\n":                               `line 2: a: stands already in line 1: remove one of the two`,
		"a: b\nha: shutdown_policy=pray\n":           `line 2: ha: shutdown_policy=pray is not allowed: use conditional, freeze, failover, migrate`,
		"crs: ha=best\n":                             `line 1: crs: ha=best is not allowed: use basic, static, dynamic`,
		"crs: ha-rebalance-on-start=perhaps\n":       `line 1: crs: ha-rebalance-on-start=perhaps is neither true nor false: use 1 or 0`,
		"crs: ha-auto-rebalance-margin=5\n":          `line 1: crs: ha-auto-rebalance-margin needs ha-auto-rebalance beside it: write ha-auto-rebalance=1 or remove it`,
		"crs: ha-auto-rebalance-threshold=101\n":     `line 1: crs: ha-auto-rebalance-threshold=101 is not allowed: use a number from 0 to 100`,
		"crs: ha-auto-rebalance-hold-duration=NaN\n": `line 1: crs: ha-auto-rebalance-hold-duration=NaN is not allowed: use a number from 0 to 1.5768e+06`,
		"crs: ha-auto-rebalance-method=dice\n":       `line 1: crs: ha-auto-rebalance-method=dice is not allowed: use bruteforce, topsis`,
		"crs: static\n":                              `line 1: crs: value without key, but schema does not define a default key: "static"`,
	} {
		d, err := pveconf.ParseDatacenter([]byte(text))
		if err == nil {
			_, err = d.HA()
		}
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}
