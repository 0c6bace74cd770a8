package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// askedNode is a cluster of the members n1, which answers, n2 and n3, with guests on n1 and a shared storage. The guests of protect are HA resources.
func askedNode(t *testing.T, protect ...model.VMID) *node {
	t.Helper()
	n := newNode(t)
	n.storage("nas", "\tshared 1\n")
	for i, name := range []string{"n1", "n2", "n3"} {
		n.put(model.NodePrefix+name, string(mustJSON(model.Node{
			Name: name, ID: i + 1, Votes: 1, Mgmt: fmt.Sprintf("10.0.0.%d", i+1), Cluster: fmt.Sprintf("10.0.1.%d", i+1), MemoryMiB: 8192, CPUs: 4,
		})))
		n.put(model.LivePrefix+name, string(mustJSON(model.Live{BootID: "b-" + name, Epoch: 1, Seq: 1})))
	}
	resources := ""
	for _, id := range protect {
		n.put(model.GuestConfigKey("n1", id), "memory: 1024\nvirtio0: nas:"+id.String()+"/disk.raw,size=1G\n")
		resources += "vm: " + id.String() + "\n\tstate started\n\n"
	}
	n.put(haResourcesKey, resources)
	return n
}

// invalid checks that err refuses a parameter, with a line of a file or without (0), and that the sentence has the words.
func invalid(t *testing.T, err error, param string, line int, words ...string) {
	t.Helper()
	var inv *model.InvalidError
	if !errors.As(err, &inv) || inv.Param != param || inv.Line != line {
		t.Errorf("%v is not about %s in line %d", err, param, line)
		return
	}
	for _, w := range words {
		if !strings.Contains(inv.Msg, w) {
			t.Errorf("%q does not say %q", inv.Msg, w)
		}
	}
}

func set(pairs ...string) api.Edit {
	e := api.Edit{Set: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		e.Set[pairs[i]] = pairs[i+1]
	}
	return e
}

func TestSettingsOfAResourceAreCheckedByNameAndKeepTheFileAsItWas(t *testing.T) {
	n := askedNode(t, 100, 101)
	n.put(haResourcesKey, "# ours\nvm: 100\n\tstate started\n\tfuture-key 1\n\nvm: 101\n\tstate started\n")
	h := n.m.roles.HA
	must(t, h.HASet(t.Context(), "vm:100", set("max_restart", "3", "after", "vm:101:agent", "reset-on", "panicked", "order", "5")))
	want := "# ours\nvm: 100\n\tstate started\n\tfuture-key 1\n\tafter vm:101:agent\n\tmax_restart 3\n\torder 5\n\treset-on panicked\n\nvm: 101\n\tstate started\n"
	if diff := cmp.Diff(want, n.get(haResourcesKey)); diff != "" {
		t.Error(diff)
	}
	n.follow()
	invalid(t, h.HASet(t.Context(), "vm:100", set("max_restart", "often")), "max_restart", 0, `"often"`)
	invalid(t, h.HASet(t.Context(), "vm:100", set("state", "running")), "state", 0, "started")
	invalid(t, h.HASet(t.Context(), "vm:100", set("comment", "a\nstate: x")), "comment", 0, "one line")
	invalid(t, h.HASet(t.Context(), "vm:100", set("after", "vm:100")), "after", 0, "itself")
	invalid(t, h.HASet(t.Context(), "vm:100", set("after", "vm:999")), "after", 0, "vm:999", "no HA resource")
	invalid(t, h.HASet(t.Context(), "vm:101", set("after", "vm:100:30")), "after", 0, "vm:100 after vm:101 after vm:100")
	invalid(t, h.HASet(t.Context(), "vm:100", set("reset-on", "bored")), "reset-on", 0, `"bored"`)
	if diff := cmp.Diff(want, n.get(haResourcesKey)); diff != "" {
		t.Errorf("a refusal changed the file: %s", diff)
	}
	// Whoever is removed is waited for no longer.
	must(t, h.HARemove(t.Context(), "vm:101", true))
	if got := n.get(haResourcesKey); strings.Contains(got, "after") || strings.Contains(got, "vm: 101") {
		t.Error(got)
	}
}

func TestAResourceThatIsRemovedLeavesNoRecordsAndNoEmptyRule(t *testing.T) {
	n := askedNode(t, 100, 101, 102)
	n.put(haRulesKey, "resource-affinity: pair\n\tresources vm:100,vm:101\n\taffinity negative\n\n"+
		"node-affinity: near\n\tresources vm:100,vm:102\n\tnodes n1\n\nnode-affinity: alone\n\tresources vm:100\n\tnodes n1\n")
	n.put(model.HAStatusPrefix+"vm:100", `{"state":"started"}`)
	n.put(model.HACommandPrefix+"vm:100", `{"kind":"migrate"}`)
	must(t, n.m.roles.HA.HARemove(t.Context(), "vm:100", true))
	if got := n.get(haRulesKey); got != "node-affinity: near\n\tresources vm:102\n\tnodes n1\n" {
		t.Error(got)
	}
	if n.get(model.HAStatusPrefix+"vm:100") != "" || n.get(model.HACommandPrefix+"vm:100") != "" {
		t.Error("a record is left behind")
	}
}

func TestARuleThatContradictsOthersIsRefusedWithTheSmallestSetThatDoes(t *testing.T) {
	n := askedNode(t, 100, 101, 102)
	r := n.m.roles.Rules
	add := func(typ, id string, e api.Edit) error {
		err := r.AddRule(t.Context(), api.Section{Type: typ, ID: id, Values: e.Set})
		n.follow()
		return err
	}
	invalid(t, add("resource-affinity", "first", set("resources", "vm:100", "affinity", "negative")), "rule", 0, "rule first cannot be")
	must(t, add("resource-affinity", "apart", set("resources", "vm:100,vm:101", "affinity", "negative")))
	must(t, add("node-affinity", "other", set("resources", "vm:102", "nodes", "n1")))
	before := n.get(haRulesKey)
	invalid(t, add("resource-affinity", "together", set("resources", "vm:100,vm:101,vm:102", "affinity", "positive")), "rule", 0, "apart and together contradict")
	invalid(t, add("resource-affinity", "lonely", set("resources", "vm:100", "affinity", "positive")), "rule", 0, "rule lonely cannot be: it is about")
	invalid(t, add("node-affinity", "nowhere", set("resources", "vm:100", "nodes", "n9")), "nodes", 0, "n9", "n1, n2, n3")
	invalid(t, add("node-affinity", "nobody", set("resources", "vm:999", "nodes", "n1")), "resources", 0, "cannot use unmanaged resource(s) vm:999")
	invalid(t, add("node-affinity", "x", set("resources", "vm:100", "nodes", "n1")), "rule", 0, `"x"`)
	invalid(t, add("node-affinity", "heavy", set("resources", "vm:100", "nodes", "n1", "weight", "5")), "weight", 0, "has none")
	invalid(t, add("node-affinity", "empty", set("resources", "vm:100")), "nodes", 0, "names no node")
	if diff := cmp.Diff(before, n.get(haRulesKey)); diff != "" {
		t.Errorf("a refusal changed the file: %s", diff)
	}
	// A comment is stored as Proxmox VE stores it, and shown as it was written.
	must(t, r.SetRule(t.Context(), "apart", set("comment", "a: b\nc", "disable", "1")))
	n.follow()
	all, err := r.Rules(t.Context())
	must(t, err)
	if got := all.List[0].Values["comment"]; got != "a: b\nc" {
		t.Errorf("%q", got)
	}
	must(t, add("resource-affinity", "together", set("resources", "vm:100,vm:101", "affinity", "positive")))
	invalid(t, r.SetRule(t.Context(), "apart", set("disable", "0")), "rule", 0, "contradict")
}

func TestAContradictionThatCameWithTheFileCanBeMendedRuleByRule(t *testing.T) {
	n := askedNode(t, 100, 101)
	n.put(haRulesKey, "resource-affinity: apart\n\tresources vm:100,vm:101\n\taffinity negative\n\n"+
		"resource-affinity: together\n\tresources vm:100,vm:101\n\taffinity positive\n\nnode-affinity: near\n\tresources vm:100\n\tnodes n1\n")
	must(t, n.m.roles.Rules.SetRule(t.Context(), "near", set("nodes", "n2")))
	n.follow()
	st, err := n.m.roles.HA.HAStatus(t.Context())
	must(t, err)
	if !slices.ContainsFunc(st.Problems, func(p string) bool { return strings.HasPrefix(p, "rule apart has no effect: ") }) {
		t.Errorf("%q", st.Problems)
	}
	all, err := n.m.roles.Rules.Rules(t.Context())
	must(t, err)
	if all.Dropped["apart"] == "" || all.Dropped["together"] == "" {
		t.Errorf("%q", all.Dropped)
	}
	must(t, n.m.roles.Rules.RemoveRule(t.Context(), "apart"))
}

func TestOldGroupsAreReadAndCountAmongTheRules(t *testing.T) {
	n := askedNode(t, 100)
	n.put("config/ha/groups.cfg", "group: fast\n\tnodes n1:2,n2\n\trestricted 1\n")
	n.put(haResourcesKey, "vm: 100\n\tstate started\n\tgroup fast\n")
	all, err := n.m.roles.Rules.Groups(t.Context())
	must(t, err)
	if len(all.List) != 1 || all.List[0].ID != "fast" || all.List[0].Values["nodes"] != "n1:2,n2" {
		t.Errorf("%+v", all)
	}
	err = n.m.roles.Rules.AddRule(t.Context(), api.Section{Type: "node-affinity", ID: "second", Values: set("resources", "vm:100", "nodes", "n3").Set})
	invalid(t, err, "rule", 0, "ha-group-fast", "second")
}

func TestAFileThatCannotBeReadIsNamedAndNotWrittenOver(t *testing.T) {
	n := askedNode(t, 100)
	files := map[string]string{
		haResourcesKey: "vm: 100\n\tstate perhaps\n", haRulesKey: "node-affinity: near\n\tresources vm:100\n\tnodes N9\n",
		fenceCfgKey: "ipmi: bmc\n\tnode n2\n\taddress a b\n", datacenterKey: "ha: shutdown_policy=never\n",
	}
	for key, text := range files {
		n.put(key, text)
	}
	b := n.m.roles
	for key, err := range map[string]error{
		haResourcesKey: b.HA.HASet(t.Context(), "vm:100", set("comment", "x")),
		haRulesKey:     b.Rules.RemoveRule(t.Context(), "near"),
		fenceCfgKey:    b.Fencing.RemoveFenceMethod(t.Context(), "bmc"),
	} {
		line := map[bool]int{true: 2, false: 3}[key == haResourcesKey]
		invalid(t, err, strings.TrimPrefix(key, "config/"), line, "mend it first")
	}
	for key, text := range files {
		if n.get(key) != text {
			t.Errorf("%s was written over", key)
		}
	}
	st, err := b.HA.HAStatus(t.Context())
	must(t, err)
	for _, want := range []string{"ha/resources.cfg: line 2: state", "ha/rules.cfg: line 3: nodes", "ha/fence.cfg: line 3: address", "datacenter.cfg: line 1: "} {
		if !slices.ContainsFunc(st.Problems, func(p string) bool { return strings.HasPrefix(p, want) }) {
			t.Errorf("no problem begins with %q: %q", want, st.Problems)
		}
	}
	if st.Tolerance != nil {
		t.Errorf("nobody knows who is protected, and the status says %+v", st.Tolerance)
	}
	// What is wrong in datacenter.cfg is mended by the same door.
	must(t, b.Options.SetOptions(t.Context(), set("ha", "shutdown_policy=freeze")))
}

func TestOptionsThatHaveNoEffectAreRefusedByName(t *testing.T) {
	n := askedNode(t)
	n.put(datacenterKey, "# ours\nkeyboard: de\nha: shutdown_policy=freeze\n")
	o := n.m.roles.Options
	must(t, o.SetOptions(t.Context(), set("failures-to-tolerate", "1,policy=warn", "ha", "shutdown_policy=migrate")))
	if got := n.get(datacenterKey); got != "# ours\nkeyboard: de\nha: shutdown_policy=migrate\nfailures-to-tolerate: 1,policy=warn\n" {
		t.Error(got)
	}
	before := n.get(datacenterKey)
	invalid(t, o.SetOptions(t.Context(), set("keyboard", "fr")), "keyboard", 0, "no effect", "ha, crs, failures-to-tolerate")
	invalid(t, o.SetOptions(t.Context(), api.Edit{Delete: []string{"keyboard"}}), "keyboard", 0)
	for key, value := range map[string]string{
		"ha": "shutdown_policy=explode", "crs": "ha=random", "failures-to-tolerate": "many",
	} {
		var inv *model.InvalidError
		if err := o.SetOptions(t.Context(), set(key, value)); !errors.As(err, &inv) || inv.Param != key || inv.Line != 0 {
			t.Errorf("%s: %v", key, err)
		}
	}
	invalid(t, o.SetOptions(t.Context(), set("ha", "")), "ha", 0, "one line")
	if got := n.get(datacenterKey); got != before {
		t.Errorf("a refusal changed the file:\n%s", got)
	}
}

func TestACommandIsARecordAndOneThatRulesForbidIsNone(t *testing.T) {
	n := askedNode(t, 100, 101)
	c := n.m.roles.Services
	_, err := c.Move(t.Context(), "vm:100", "migrate", "n1")
	refused(t, err, model.ErrBusy, "vm:100 cannot migrate to n1: it is on n1 already")
	_, err = c.Move(t.Context(), "vm:100", "migrate", "n9")
	if !errors.Is(err, model.ErrNotFound) {
		t.Error(err)
	}
	if n.get(model.HACommandPrefix+"vm:100") != "" {
		t.Error("a refused command was written")
	}
	must(t, c.StopService(t.Context(), "vm:100", 90*time.Second))
	if got := n.get(model.HACommandPrefix + "vm:100"); got != `{"kind":"stop","timeout_seconds":90}` {
		t.Error(got)
	}
	if got := n.get(haResourcesKey); !strings.Contains(got, "vm: 100\n\tstate stopped\n") || !strings.Contains(got, "vm: 101\n\tstate started\n") {
		t.Error(got)
	}
}

// It would strike when the disarming ends, and nobody would think of it then.
func TestNoStopIsTakenWhileHAIsDisarmed(t *testing.T) {
	n := askedNode(t, 100)
	before := n.get(haResourcesKey)
	must(t, n.m.roles.Nodes.Disarm(t.Context(), api.HADisarm{Mode: "freeze", For: time.Minute}))
	n.follow()
	if err := n.m.roles.Services.StopService(t.Context(), "vm:100", 0); !errors.Is(err, model.ErrBusy) {
		t.Errorf("got %v", err)
	}
	if n.get(haResourcesKey) != before || n.get(model.HACommandPrefix+"vm:100") != "" {
		t.Error("something was written")
	}
}

// With freeze everything stays as it is, whoever wants it otherwise; with ignore guests are everybody's.
func TestAFrozenGuestIsNeitherStartedStoppedNorMoved(t *testing.T) {
	n := askedNode(t, 100)
	qemuThatEnds(t)
	n.put(model.GuestConfigKey("n1", 300), "memory: 16\n") // no HA resource
	ctx, g, c := t.Context(), n.m.roles.Guests, n.m.roles.Nodes
	commands := map[string]func(model.VMID) error{
		"start":    func(id model.VMID) error { _, err := g.Start(ctx, id); return err },
		"stop":     func(id model.VMID) error { _, err := g.Stop(ctx, id); return err },
		"shutdown": func(id model.VMID) error { _, err := g.Shutdown(ctx, id, time.Second, false); return err },
		"migrate":  func(id model.VMID) error { _, err := g.Migrate(ctx, id, "n9", false); return err },
	}
	frozen := func(id model.VMID) (held []string) {
		n.follow()
		for name, ask := range commands {
			if err := ask(id); err != nil && strings.Contains(err.Error(), "stays as it is") {
				held = append(held, name)
			}
		}
		n.tasksEnd()
		slices.Sort(held)
		return held
	}
	all := []string{"migrate", "shutdown", "start", "stop"}
	for _, s := range []struct {
		name string
		do   func() error
		want []string
	}{
		{"the cluster is frozen", func() error { return c.Disarm(ctx, api.HADisarm{Mode: "freeze"}) }, all},
		{"its node is to be ignored, and the cluster is frozen", func() error { return c.Disarm(ctx, api.HADisarm{Mode: "ignore", Node: "n1"}) }, all},
		{"its node is ignored", func() error { return c.Arm(ctx, "") }, nil},
		{"its node is frozen", func() error { return c.Disarm(ctx, api.HADisarm{Mode: "freeze", Node: "n1"}) }, all},
		{"another node is frozen", func() error {
			return errors.Join(c.Arm(ctx, "n1"), c.Disarm(ctx, api.HADisarm{Mode: "freeze", Node: "n2"}))
		}, nil},
		{"the cluster is ignored", func() error { return c.Disarm(ctx, api.HADisarm{Mode: "ignore"}) }, nil},
	} {
		n.put(haResourcesKey, "vm: 100\n\tstate started\n")
		must(t, s.do())
		if diff := cmp.Diff(s.want, frozen(100)); diff != "" {
			t.Errorf("%s: %s", s.name, diff)
		}
		if held := frozen(300); held != nil {
			t.Errorf("%s: a guest that is no HA resource: %v", s.name, held)
		}
	}
	n.put(model.HAModeKey, `{"disarm":"freeze","since":1767323045,"until":4102444800}`)
	_, err := g.Start(ctx, 100)
	refused(t, err, model.ErrBusy, "vm:100 stays as it is: HA is disarmed (freeze) since 2026-01-02 03:04:05 UTC until 2100-01-01 00:00:00 UTC; "+
		"`sauh ha arm` ends that, and with `sauh ha disarm --mode ignore` guests can be started, stopped and moved by hand")
	n.put(model.HAModeKey, "{}")
	n.put(model.HARequestPrefix+"n1", `{"disarm":"freeze"}`)
	_, err = g.Start(ctx, 100)
	refused(t, err, model.ErrBusy, "vm:100 stays as it is: HA is disarmed (freeze); "+
		"`sauh ha arm --node n1` ends that, and with `sauh ha disarm --mode ignore --node n1` guests can be started, stopped and moved by hand")
}

// The requested state and the time that the stop may take are written together, or not at all.
func TestAStopIsOneTransactionAndRepeatedAfterAConflict(t *testing.T) {
	n := askedNode(t, 100)
	first := true
	n.st.onTxn(func(tx store.Txn) error {
		if first && len(tx.Then) == 2 {
			first = false
			putKey(t, n.other, haResourcesKey, "vm: 100\n\tstate started\n\tcomment theirs\n")
		}
		return nil
	})
	must(t, n.m.roles.Services.StopService(t.Context(), "vm:100", 0))
	if got := n.get(haResourcesKey); got != "vm: 100\n\tstate stopped\n\tcomment theirs\n" || first {
		t.Error(got)
	}
}

func TestRequestsOfANodeAreOneRecordThatGoesWhenNothingIsAskedFor(t *testing.T) {
	n := askedNode(t)
	c, key := n.m.roles.Nodes, model.HARequestPrefix+"n2"
	must(t, c.Maintenance(t.Context(), "n2", true))
	must(t, c.Disarm(t.Context(), api.HADisarm{Mode: "ignore", Node: "n2"}))
	var got ha.NodeRequest
	must(t, json.Unmarshal([]byte(n.get(key)), &got))
	if ago := time.Now().Unix() - got.Since; ago < 0 || ago > 60 {
		t.Errorf("since %d", got.Since)
	}
	got.Since = 0
	if want := (ha.NodeRequest{Maintenance: true, Disarm: ha.DisarmIgnore}); got != want {
		t.Errorf("%+v", got)
	}
	n.follow()
	st, err := n.m.roles.HA.HAStatus(t.Context())
	must(t, err)
	if i := slices.IndexFunc(st.Nodes, func(s api.HANodeStatus) bool { return s.Node == "n2" }); st.Nodes[i].Mode != "maintenance" || st.Nodes[i].Disarm != "ignore" {
		t.Errorf("%+v", st.Nodes[i])
	}
	must(t, c.Arm(t.Context(), "n2"))
	must(t, c.Maintenance(t.Context(), "n2", false))
	if got := n.get(key); got != "" {
		t.Errorf("%q is left", got)
	}
	invalid(t, c.Disarm(t.Context(), api.HADisarm{Mode: "sleep"}), "mode", 0, "freeze or ignore")
}

func TestTheClusterIsDisarmedForATime(t *testing.T) {
	n := askedNode(t, 100)
	c, before := n.m.roles.Nodes, time.Now().Unix()
	must(t, c.Disarm(t.Context(), api.HADisarm{Mode: "freeze", For: 10 * time.Minute}))
	n.follow()
	st, err := n.m.roles.HA.HAStatus(t.Context())
	must(t, err)
	if st.Disarm != "freeze" || st.Until < before+600 || st.Until > time.Now().Unix()+600 {
		t.Errorf("%s until %d", st.Disarm, st.Until)
	}
	plan, err := n.m.roles.HA.HAWhatIf(t.Context(), []string{"n1"})
	must(t, err)
	if len(plan.Moves) != 0 || len(plan.Down) != 1 || plan.Down[0].Reason != "HA is disarmed for it" {
		t.Errorf("%+v", plan)
	}
	must(t, c.Arm(t.Context(), ""))
	if n.get(model.HAModeKey) != "" {
		t.Error("the record is left")
	}
}

func TestLabelsArePartOfTheNodesRecord(t *testing.T) {
	n := askedNode(t)
	rack, site, none := "r1", "north", ""
	must(t, n.m.roles.Nodes.Label(t.Context(), "n2", &rack, &site))
	must(t, n.m.roles.Nodes.Label(t.Context(), "n2", nil, &none))
	n.follow()
	got, err := n.m.roster.node("n2")
	must(t, err)
	if got.Rack != "r1" || got.Site != "" || got.Votes != 1 {
		t.Errorf("%+v", got)
	}
	bad := "a b"
	invalid(t, n.m.roles.Nodes.Label(t.Context(), "n2", &bad, nil), "rack", 0, "rack")
}

func TestFencingMethodsAreCheckedBeforeTheyAreInForce(t *testing.T) {
	n := askedNode(t)
	f := n.m.roles.Fencing
	good := set("node", "n2", "address", "10.0.9.2", "user", "sauh", "password-file", "priv/fence/bmc")
	must(t, f.SetFenceMethod(t.Context(), api.Section{Type: "ipmi", ID: "bmc"}, good, "hush"))
	before := n.get(fenceCfgKey)
	n.follow()
	invalid(t, f.SetFenceMethod(t.Context(), api.Section{Type: "ipmi", ID: "two"}, set("node", "n2", "address", "a b"), ""), "address", 0, "address")
	invalid(t, f.SetFenceMethod(t.Context(), api.Section{ID: "bmc"}, set("node", "n9"), ""), "node", 0, "n9")
	invalid(t, f.SetFenceMethod(t.Context(), api.Section{ID: "bmc"}, set("storages", "nas"), ""), "storages", 0, "no such key")
	invalid(t, f.SetFenceMethod(t.Context(), api.Section{Type: "redfish", ID: "bmc"}, set("timeout", "5"), ""), "type", 0, "ipmi")
	invalid(t, f.SetFenceFile(t.Context(), "ipmi: bmc\n\tnode n2\n\taddress a b\n", ""), "address", 3, "address")
	invalid(t, f.SetFenceFile(t.Context(), "\n\napc: pdu\n\tnode n2\n", ""), "type", 3, "apc", "only ipmi, redfish and ceph")
	invalid(t, f.SetFenceFile(t.Context(), strings.ReplaceAll(before, "n2", "n9"), ""), "node", 3, "n9")
	if err := f.SetFenceMethod(t.Context(), api.Section{ID: "none"}, good, ""); !errors.Is(err, model.ErrNotFound) {
		t.Error(err)
	}
	if diff := cmp.Diff(before, n.get(fenceCfgKey)); diff != "" {
		t.Errorf("a refusal changed the file: %s", diff)
	}
	if n.get("config/priv/fence/bmc") != "hush\n" {
		t.Error("the password did not come with the method")
	}
	gone := set("password-file", "priv/fence/gone")
	invalid(t, f.SetFenceMethod(t.Context(), api.Section{ID: "bmc"}, gone, ""), "password-file", 0, "priv/fence/gone does not exist")
	invalid(t, f.SetFenceMethod(t.Context(), api.Section{ID: "bmc"}, set("address", "a b"), "other"), "address", 0)
	invalid(t, f.SetFenceMethod(t.Context(), api.Section{ID: "bmc"}, set("timeout", "20"), "a\nb"), "secret", 0)
	if diff := cmp.Diff(before, n.get(fenceCfgKey)); diff != "" || n.get("config/priv/fence/bmc") != "hush\n" {
		t.Errorf("a refusal changed the file or the password: %s", diff)
	}
	must(t, f.SetFenceSecret(t.Context(), "bmc", "hush\n"))
	if n.get("config/priv/fence/bmc") != "hush\n" {
		t.Error("the password is not there")
	}
	invalid(t, f.SetFenceSecret(t.Context(), "../sauh-ca.key", "x"), "name", 0)
	invalid(t, f.SetFenceSecret(t.Context(), "bmc", "a\nb"), "secret", 0)
	must(t, f.SetFenceSecret(t.Context(), "bmc", ""))
	if n.get("config/priv/fence/bmc") != "" {
		t.Error("the password is still there")
	}
	refused := f.SetFenceMethod(t.Context(), api.Section{Type: "ceph", ID: "blocklist"}, api.Edit{Set: map[string]string{"storages": "nas"}}, "")
	invalid(t, refused, "storages", 0, "it has no effect")
	refused = f.SetFenceMethod(t.Context(), api.Section{Type: "ceph", ID: "blocklist"}, set("storages", "nas,fast"), "")
	invalid(t, refused, "storages", 0, `storage.cfg has no storage "fast": it has nas`)
	invalid(t, f.SetFenceFile(t.Context(), "ceph: blocklist\n\tstorages nas,fast\n", ""), "storages", 2, `no storage "fast"`)
	n.follow()
	all, err := f.FenceMethods(t.Context())
	must(t, err)
	if len(all) != 1 || all[0].Method != "ipmi: bmc" || all[0].Node != "n2" || all[0].Grade == "" {
		t.Errorf("%+v", all)
	}
}

func TestAMethodAndItsPasswordAreOneTransaction(t *testing.T) {
	n := askedNode(t)
	f, line := n.m.roles.Fencing, set("node", "n2", "address", "10.0.9.2", "user", "sauh")
	var writes [][]string
	n.st.onTxn(func(tx store.Txn) error {
		var keys []string
		for _, op := range tx.Then {
			keys = append(keys, op.Key)
		}
		writes = append(writes, keys)
		return nil
	})
	two := api.Section{Type: "ipmi", ID: "two"}
	must(t, f.SetFenceMethod(t.Context(), two, line, "hush"))
	if diff := cmp.Diff([][]string{{fenceCfgKey, fenceSecretKey + "two"}}, writes); diff != "" {
		t.Error(diff)
	}
	before := n.get(fenceCfgKey)
	if n.get(fenceSecretKey+"two") != "hush\n" || !strings.Contains(before, "password-file priv/fence/two\n") {
		t.Errorf("the file is\n%s", before)
	}
	// Whatever is refused, both stay as they were.
	invalid(t, f.SetFenceMethod(t.Context(), two, set("timeout", "20"), "a\nb"), "secret", 0)
	invalid(t, f.SetFenceMethod(t.Context(), two, set("timeout", "20"), "\n"), "secret", 0)
	invalid(t, f.SetFenceMethod(t.Context(), two, set("address", "a b"), "new"), "address", 0, "address")
	invalid(t, f.SetFenceMethod(t.Context(), two, set("password-file", "priv/fence/other"), "new"), "password-file", 0)
	if n.get(fenceCfgKey) != before || n.get(fenceSecretKey+"two") != "hush\n" || len(writes) != 1 {
		t.Errorf("after refusals: %v, the file is\n%s", writes, n.get(fenceCfgKey))
	}
}

func TestWhatIfNamesThoseThatNobodyWouldBringBack(t *testing.T) {
	n := askedNode(t, 100, 101, 102)
	n.put(model.GuestConfigKey("n1", 103), "memory: 512\n")
	n.put(haResourcesKey, "vm: 100\n\tstate started\n\nvm: 101\n\tstate disabled\n\nvm: 102\n\tstate started\n")
	n.put(model.HAStatusPrefix+"vm:102", string(mustJSON(ha.Status{State: ha.StatusError, Node: "n1", Reason: "it does not start"})))
	plan, err := n.m.roles.HA.HAWhatIf(t.Context(), []string{"n1"})
	must(t, err)
	if len(plan.Moves) != 1 || plan.Moves[0].SID != "vm:100" || plan.Moves[0].To != "n2" || !plan.Quorate {
		t.Errorf("%+v", plan)
	}
	got := map[string]string{}
	for _, d := range plan.Down {
		got[d.SID] = d.Reason
	}
	want := map[string]string{
		"vm:101": "it is not to run (disabled)", "vm:102": "it is in error: it does not start", "vm:103": "it is no HA resource: it waits for n1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if plan, err = n.m.roles.HA.HAWhatIf(t.Context(), []string{"n1", "n1"}); err != nil || !slices.Equal(plan.Lost, []string{"n1"}) || !plan.Quorate {
		t.Errorf("a node that is named twice is lost once: %+v, %v", plan, err)
	}
	if plan, err = n.m.roles.HA.HAWhatIf(t.Context(), []string{"n1", "n2"}); err != nil || plan.Quorate {
		t.Errorf("two of three: %+v, %v", plan, err)
	}
	_, err = n.m.roles.HA.HAWhatIf(t.Context(), nil)
	invalid(t, err, "nodes", 0)
}

func TestAnExplanationHasTheRulesTheDecisionsAndEveryNode(t *testing.T) {
	n := askedNode(t, 100, 101)
	n.put(haRulesKey, "node-affinity: near\n\tresources vm:100\n\tnodes n1:2,n2\n\tstrict 1\n\n"+
		"resource-affinity: racks\n\tresources vm:100,vm:101\n\taffinity negative\n\tdomain rack\n\tstrict 0\n\tweight 7\n")
	n.put(model.HAStatusPrefix+"vm:100", string(mustJSON(ha.Status{
		State: ha.StatusMigrate, Node: "n1", Target: "n2", Reason: "n1 is in maintenance", Since: 5,
		Log: []ha.Decision{{Unix: 5, By: "n3", State: ha.StatusMigrate, Node: "n1", Target: "n2", Reason: "n1 is in maintenance"}},
	})))
	n.put(model.ProtectedPrefix+"100", `{"node":"n1"}`)
	n.put(model.HACommandPrefix+"vm:100", `{"kind":"relocate","target":"n3"}`)
	e, err := n.m.roles.HA.HAExplain(t.Context(), "vm:100")
	must(t, err)
	if e.Status != "migrate" || e.Target != "n2" || !e.Protected || e.Command != "relocate to n3" || len(e.Log) != 1 || len(e.Nodes) != 3 {
		t.Errorf("%+v", e)
	}
	want := []string{"near: vm:100 must run on n1 (priority 2), n2", "racks: vm:100, vm:101 should not share a rack (weight 7)"}
	if diff := cmp.Diff(want, e.Rules); diff != "" {
		t.Error(diff)
	}
}

func TestAMajorityLimitsHowManyNodesMayFail(t *testing.T) {
	n := askedNode(t)
	st, err := n.m.roles.HA.HAStatus(t.Context())
	must(t, err)
	// Nothing is to be placed, and of three members one may fail.
	if tol := st.Tolerance; tol == nil || tol.Nodes != 1 || !tol.Exact || !tol.Quorum {
		t.Errorf("%+v", tol)
	}
}

func TestWithoutAQuorumNothingIsChangedAndTheStatusIsShown(t *testing.T) {
	n := askedNode(t, 100)
	n.st.setQuorum(false)
	b := n.m.roles
	for what, err := range map[string]error{
		"set": b.HA.HASet(t.Context(), "vm:100", set("comment", "x")), "stop": b.Services.StopService(t.Context(), "vm:100", 0),
		"maintenance": b.Nodes.Maintenance(t.Context(), "n2", true), "fence": b.Fencing.SetFenceFile(t.Context(), "", ""),
		"options": b.Options.SetOptions(t.Context(), set("ha", "shutdown_policy=freeze")),
	} {
		if !errors.Is(err, model.ErrNoQuorum) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if st, err := b.HA.HAStatus(t.Context()); err != nil || st.Quorate || len(st.Services) != 1 {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestRemovingAMethodDeletesItsPasswordUnlessAnotherOneUsesIt(t *testing.T) {
	n, _, _ := fencedNode(t)
	_, shared := n.startBMC("n2-bmc", &machine2{uuid: n2UUID}, "")
	n.put(fenceCfgKey, n.get(fenceCfgKey)+"\n"+strings.Replace(shared, "redfish: n2-bmc", "redfish: n2-pdu", 1))
	f := n.m.roles.Fencing
	must(t, f.RemoveFenceMethod(t.Context(), "n2-pdu"))
	if n.get("config/priv/fence/n2-bmc") == "" {
		t.Error("the password of the other method is gone")
	}
	n.follow()
	must(t, f.RemoveFenceMethod(t.Context(), "n2-bmc"))
	if n.get("config/priv/fence/n2-bmc") != "" {
		t.Error("the password is still there")
	}
}
