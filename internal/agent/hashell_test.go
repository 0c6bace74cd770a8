package agent

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/store"
)

func TestTheViewsHaveWhatTheConfigurationSays(t *testing.T) {
	n := haNode(t)
	n.put(haResourcesKey, "vm: 100\n\tmax_restart 3\n\tmax_relocate 0\n\tfailback 0\n\tauto-rebalance 0\n\torder 5\n\tafter vm:200:agent\n\treset-on panicked\n")
	n.put(datacenterKey, "ha: shutdown_policy=migrate\ncrs: ha=static,ha-rebalance-on-start=1,ha-auto-rebalance=1,ha-auto-rebalance-threshold=20,ha-auto-rebalance-method=topsis\nfailures-to-tolerate: 1,policy=warn\n")
	config := map[model.VMID]ha.Resource{100: {
		MaxRestart: 3, NoFailback: true, NoRebalance: true, Order: 5, After: []ha.Dependency{{VMID: 200, Answers: true}},
		ResetOn: []ha.Sickness{ha.SickPanicked},
	}}
	balance := place.DefaultBalanceParams()
	balance.Threshold, balance.Method = 0.2, place.TOPSIS
	policy := ha.Policy{
		Shutdown: ha.ShutdownMigrate, Tolerate: 1, WarnOnly: true, Placing: place.Static, RebalanceOnStart: true, Rebalance: true, Balance: balance,
	}
	m, w := n.m.manager.view(), n.m.worker.view()
	for name, got := range map[string]any{"manager": m.Config, "worker": w.Config} {
		if diff := cmp.Diff(any(config), got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if diff := cmp.Diff(policy, m.Policy); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(policy, w.Policy); diff != "" || !w.AwaitManager {
		t.Errorf("the worker: awaits the manager %v\n%s", w.AwaitManager, diff)
	}
}

func TestTheViewsHaveWhatPersonsAndNodesSay(t *testing.T) {
	n := haNode(t)
	command := n.put(model.HACommandPrefix+"vm:100", `{"kind":"migrate","target":"n2"}`)
	n.put(model.HARequestPrefix+"n2", `{"maintenance":true}`)
	n.put(model.HANodePrefix+"n2", `{"ends":"reboot","boot_id":"b"}`)
	n.put(model.HAHealthPrefix+"n2", `{"lost":["nas"]}`)
	history := n.put(model.HAHistoryPrefix+"n2", `{"silences":[{"revision":3,"unix":4}]}`)
	n.put(model.HAModeKey, `{"disarm":"freeze"}`)
	n.put(model.NodePrefix+"n2", `{"name":"n2","cpus":8,"rack":"r1","site":"s1"}`)
	m := n.m.manager.view()
	commands := map[model.VMID]ha.CommandRecord{100: {Command: ha.Command{Kind: ha.CommandMigrate, Target: "n2"}, Revision: command}}
	if diff := cmp.Diff(commands, m.Commands); diff != "" {
		t.Error(diff)
	}
	if m.Mode.Disarm != ha.DisarmFreeze || m.Unix == 0 {
		t.Errorf("mode %+v at %d", m.Mode, m.Unix)
	}
	for _, got := range m.Members {
		if got.Name != "n2" {
			continue
		}
		want := ha.Member{
			Name: "n2", Revision: got.Revision, CPUs: 8, Rack: "r1", Site: "s1", Storages: []string{"nas"}, Why: got.Why,
			Request: ha.NodeRequest{Maintenance: true}, Mode: ha.NodeMode{Ends: ha.EndsReboot, BootID: "b"}, Health: ha.NodeHealth{Lost: []string{"nas"}},
			History: ha.History{Silences: []ha.Silence{{Revision: 3, Unix: 4}}}, HistoryRevision: history,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	n.put(model.HARequestPrefix+"n1", `{"disarm":"ignore"}`)
	n.put(model.HAHealthPrefix+"n1", `{"network_down":"vmbr0"}`)
	n.put(model.HANodePrefix+"n1", string(mustJSON(ha.NodeMode{Ends: ha.EndsShutdown, BootID: n.a.boot})))
	w := n.m.worker.view()
	if diff := cmp.Diff(commands, w.Commands); diff != "" {
		t.Error(diff)
	}
	if w.Request.Disarm != ha.DisarmIgnore || w.Health.NetworkDown != "vmbr0" || w.NodeMode.Ends != ha.EndsShutdown || w.Mode.Disarm != ha.DisarmFreeze {
		t.Errorf("the worker sees %+v, %+v, %+v, %+v", w.Request, w.Health, w.NodeMode, w.Mode)
	}
	n.put(model.HANodePrefix+"n1", `{"ends":"shutdown","boot_id":"another"}`)
	if w := n.m.worker.view(); w.NodeMode != (ha.NodeMode{}) {
		t.Errorf("the end of an earlier boot is taken for one of this: %+v", w.NodeMode)
	}
}

func TestAGuestSaysWhatKeepsItFromMoving(t *testing.T) {
	n := haNode(t)
	n.put(storageCfgKey, n.get(storageCfgKey)+"\nrbd: fast\n\tpool rbd\n\tcontent images\n")
	n.put(model.NodePrefix+"n2", `{"name":"n2","accel":"tcg","qemu":"7.2.5"}`)
	n.put(model.GuestConfigKey("n1", 100), "lock: backup\ncores: 2\nsockets: 2\nscsi0: fast:vm-100-disk-0\nscsi1: none,media=cdrom\n")
	n.put(model.GuestConfigKey("n2", 200), "scsi0: fast:vm-200-disk-0\nvirtio0: nas:200/a.raw\n")
	for _, g := range n.m.manager.view().Guests {
		switch g.VMID {
		case 100:
			if g.Lock != "backup" || g.CPUs != 4 || !g.RBD || g.NoLive != "" {
				t.Errorf("%+v", g)
			}
		case 200:
			if want := qemu.SupportsMigration("tcg", "7.2.5"); g.RBD || want == nil || g.NoLive != want.Error() {
				t.Errorf("%+v, want %v", g, want)
			}
		default:
			t.Errorf("guest %s was not put there", g.VMID)
		}
	}
}

const aRule = "resource-affinity: apart\n\tresources vm:100,vm:200\n\taffinity negative\n"

func TestRulesThatCannotBeReadLeaveTheOldOnesInForce(t *testing.T) {
	n := haNode(t)
	if v := n.m.manager.view(); v.Rules != nil || !v.Quorate || n.m.worker.view().AwaitManager {
		t.Fatal("rules where none are")
	}
	n.put(haRulesKey, aRule)
	v := n.m.manager.view()
	if of := v.Rules.Of("vm:100"); of == nil || len(of.Apart) != 1 || !n.m.worker.view().AwaitManager {
		t.Fatalf("the rule says %+v", of)
	}
	if again := n.m.manager.view(); again.Rules != v.Rules {
		t.Error("rules that did not change are compiled anew")
	}
	n.put(datacenterKey, "ha: shutdown_policy=freeze\n")
	_ = n.m.manager.view()
	n.put(haRulesKey, "not a section\n")
	n.put(datacenterKey, "ha: shutdown_policy=perhaps\n")
	bad := n.m.manager.view()
	if bad.Rules != v.Rules || !bad.Quorate || bad.Policy.Shutdown != ha.ShutdownFreeze {
		t.Errorf("quorate %v, the old rules %v, policy %+v", bad.Quorate, bad.Rules == v.Rules, bad.Policy)
	}
	n.m.manager.book, n.m.worker.book = &rulebook{}, &rulebook{} // an agent that has just started
	if n.m.manager.view().Quorate || n.m.worker.view().Quorate {
		t.Error("HA decides without ever having seen the rules")
	}
	n.put(haRulesKey, aRule)
	if n.m.manager.view().Quorate {
		t.Error("HA decides without ever having seen the policy")
	}
	n.put(datacenterKey, "")
	n.put(haRulesKey, "resource-affinity: apart\n\tresources vm:100,vm:200\n\taffinity negative\n\tdisable 1\n")
	if v := n.m.manager.view(); v.Rules != nil || !v.Quorate {
		t.Error("a rule that is disabled has an effect")
	}
}

func TestGroupsAreReadAsTheRulesThatTheyBecame(t *testing.T) {
	n := haNode(t)
	n.put(haGroupsKey, "group: g1\n\tnodes n2\n\trestricted 1\n")
	n.put(haResourcesKey, "vm: 100\n\tgroup g1\n")
	of := n.m.manager.view().Rules.Of("vm:100")
	if of == nil || of.Affinity == nil || !of.Affinity.Strict {
		t.Errorf("%+v", of)
	}
	n.put(haResourcesKey, "vm: 100\n\nvm: 200\n\tgroup g1\n")
	if r := n.m.manager.view().Rules; r.Of("vm:100") != nil || r.Of("vm:200") == nil {
		t.Error("a change of the groups' members is not seen")
	}
}

func TestAStatusIsWrittenTogetherWithTheEndOfTheCommandThatItActsOn(t *testing.T) {
	n := haNode(t)
	command := n.put(model.HACommandPrefix+"vm:100", `{"kind":"migrate","target":"n2"}`)
	a := ha.SetStatus{VMID: 100, Status: ha.Status{State: ha.StatusMigrate, Node: "n1", Target: "n2"}, Command: command - 1}
	if _, err := n.m.manager.do(t.Context(), a); failKind(err) != ha.FailConflict || n.get(model.HAStatusPrefix+"vm:100") != "" {
		t.Errorf("a command that changed: %v", err)
	}
	a.Command = command
	_, err := n.m.manager.do(t.Context(), a)
	must(t, err)
	if n.get(model.HACommandPrefix+"vm:100") != "" || n.get(model.HAStatusPrefix+"vm:100") == "" {
		t.Error("the command stands")
	}
	rev := n.put(model.HACommandPrefix+"vm:100", `{"kind":"migrate","target":"n9"}`)
	_, err = n.m.manager.do(t.Context(), ha.DropCommand{VMID: 100, Revision: rev})
	must(t, err)
	if n.get(model.HACommandPrefix+"vm:100") != "" {
		t.Error("the refused command stands")
	}
	_, err = n.m.manager.do(t.Context(), ha.NoteHistory{Node: "n2", History: ha.History{Silences: []ha.Silence{{Revision: 1, Unix: 2}}}})
	must(t, err)
	if got := n.get(model.HAHistoryPrefix + "n2"); got != `{"silences":[{"revision":1,"unix":2}]}` {
		t.Errorf("the history is %s", got)
	}
}

func TestAMoveTakesTheLockOfADeadTaskOff(t *testing.T) {
	n := haNode(t)
	from := model.GuestConfigKey("n2", 200)
	n.put(from, "# kept\nlock: backup\nmemory: 512\n")
	n.put(model.LivePrefix+"n2", `{"boot_id":"b","epoch":5,"fenced":true}`)
	rev := func(key string) int64 { kv, _ := n.m.mirror.Snapshot().Get(key); return kv.ModRevision }
	_, err := n.m.manager.do(t.Context(), ha.Move{
		VMID: 200, From: "n2", To: "n1", LiveRevision: rev(model.LivePrefix + "n2"), ConfigRevision: rev(from), ToRevision: rev(model.NodePrefix + "n1"),
		DropLock: true,
	})
	must(t, err)
	if got := n.get(model.GuestConfigKey("n1", 200)); got != "#kept\nmemory: 512\n" && got != "# kept\nmemory: 512\n" {
		t.Errorf("the file is %q", got)
	}
}

func TestAHandoverTakesFileAndProtectionAlong(t *testing.T) {
	n := haNode(t)
	n.put(model.ProtectedPrefix+"100", `{"node":"n1"}`)
	n.put(model.HAStatusPrefix+"vm:100", `{"state":"relocate","node":"n1","target":"n2"}`)
	rev := func(key string) int64 { kv, _ := n.m.mirror.Snapshot().Get(key); return kv.ModRevision }
	from, to := model.GuestConfigKey("n1", 100), model.GuestConfigKey("n2", 100)
	file := n.get(from)
	good := ha.Handover{
		VMID: 100, From: "n1", To: "n2", ConfigRevision: rev(from), ProtectedRevision: rev(model.ProtectedPrefix + "100"), Protected: true,
		StatusRevision: rev(model.HAStatusPrefix + "vm:100"), ToRevision: rev(model.NodePrefix + "n2"),
	}
	before := n.dump()
	refused := func(name string, a ha.Handover) {
		t.Helper()
		if _, err := n.m.worker.do(t.Context(), a); failKind(err) != ha.FailConflict {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(before, n.dump()); diff != "" {
			t.Fatalf("%s: %s", name, diff)
		}
	}
	ended := n.runs(100)
	refused("it runs", good)
	ended()
	n.m.procs.mu.Lock()
	n.m.procs.lost[100] = errors.New("its monitor does not answer")
	n.m.procs.mu.Unlock()
	if _, err := n.m.worker.do(t.Context(), good); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("nobody knows whether it runs: %v", err)
	}
	n.m.procs.mu.Lock()
	delete(n.m.procs.lost, 100)
	n.m.procs.mu.Unlock()
	g := n.startGuard()
	g.has(lease.GroupStatus{Group: lease.Group{Name: "100"}, State: lease.Killing})
	must(t, n.m.live.Refresh(t.Context()))
	refused("its group is being killed", good)
	g.has()
	must(t, n.m.live.Refresh(t.Context()))
	for name, change := range map[string]func(*ha.Handover){
		"the file changed":         func(a *ha.Handover) { a.ConfigRevision-- },
		"the protection changed":   func(a *ha.Handover) { a.ProtectedRevision-- },
		"the manager changed mind": func(a *ha.Handover) { a.StatusRevision-- },
		"the target was removed":   func(a *ha.Handover) { a.ToRevision-- },
	} {
		a := good
		change(&a)
		refused(name, a)
	}
	_, err := n.m.worker.do(t.Context(), good)
	must(t, err)
	if n.get(from) != "" || n.get(to) != file || n.get(model.ProtectedPrefix+"100") != `{"node":"n2"}` {
		t.Errorf("after it: %v", n.dump().Keys)
	}
}

func TestAMigrationThatTheManagerNoLongerWantsIsNotBegun(t *testing.T) {
	n := haNode(t)
	rev := n.put(model.HAStatusPrefix+"vm:100", `{"state":"migrate","node":"n1","target":"n2"}`)
	n.runs(100)
	if _, err := n.m.worker.do(t.Context(), ha.Migrate{VMID: 100, Target: "n2", StatusRevision: rev - 1}); failKind(err) != ha.FailConflict {
		t.Error(err)
	}
	if _, err := n.m.worker.do(t.Context(), ha.Migrate{VMID: 100, Target: "n2", StatusRevision: rev}); failKind(err) != ha.FailOther {
		t.Errorf("a target that is not there: %v", err)
	}
	n.put(model.GuestConfigKey("n2", 100), n.get(model.GuestConfigKey("n1", 100)))
	n.delete(model.GuestConfigKey("n1", 100))
	_, err := n.m.worker.do(t.Context(), ha.Migrate{VMID: 100, Target: "n2", StatusRevision: rev})
	must(t, err) // it is there already
}

func TestWhatFailsForTheNodesSakeIsNotTheGuestsFault(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want ha.FailKind
	}{
		"no quorum":           {writeError("x", store.ErrNoQuorum), ha.FailUnready},
		"no lease":            {model.Errorf(model.ErrNoQuorum, "no valid lease"), ha.FailUnready},
		"guard silent":        {unready(model.Errorf(model.ErrUnavailable, "the guard does not answer")), ha.FailUnready},
		"guard, older epoch":  {unready(model.Errorf(model.ErrConflict, "epoch 1 is over")), ha.FailConflict},
		"target cannot":       {model.Errorf(model.ErrUnavailable, "node n2 cannot take guest 100"), ha.FailOther},
		"overtaken":           {store.ErrConflict, ha.FailConflict},
		"image in use":        {&lockedError{errors.New("x")}, ha.FailLocked},
		"a file is not there": {errors.New("x"), ha.FailOther},
	} {
		if got := failKind(c.err); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	n := haNode(t)
	g := n.startGuard()
	g.answers(func(c guardCall) error {
		return model.Errorf(model.ErrUnavailable, "the lease is too short for the watchdog")
	})
	n.leased(1)
	n.put(model.GuestConfigKey("n1", 100), "memory: 16\n")
	n.put(model.ProtectedPrefix+"100", `{"node":"n1"}`)
	if _, err := n.m.worker.do(t.Context(), ha.Start{VMID: 100}); failKind(err) != ha.FailUnready {
		t.Errorf("a start that the guard refuses: %v", err)
	}
	n.put(model.GuestConfigKey("n1", 100), "memory: 16\nvirtio0: gone:100/vm-100-disk-0.raw\n")
	must(t, os.RemoveAll(n.storage("gone", "\tshared 1\n")))
	if _, err := n.m.worker.do(t.Context(), ha.Start{VMID: 100}); failKind(err) != ha.FailAway {
		t.Errorf("a start from a storage that is not there: %v", err)
	}
	n.m.starter.closed.Store(true)
	if _, err := n.m.worker.do(t.Context(), ha.Start{VMID: 100}); failKind(err) != ha.FailUnready {
		t.Errorf("a start on a node that goes down: %v", err)
	}
}

// Nothing in the store tells of a quorum or a lease that comes back.
func TestAQuorumThatReturnsHasManagerAndWorkerLook(t *testing.T) {
	n := haNode(t)
	n.m.wg.Go(func() { n.m.watchAble(n.m.ctx) })
	drained := func(c chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	for _, quorum := range []bool{false, true} {
		eventually(t, "it is quiet", func() bool { return !drained(n.m.kicked) && !drained(n.m.quorum) })
		<-time.After(3 * ablePace)
		drained(n.m.kicked)
		drained(n.m.quorum)
		n.st.setQuorum(quorum)
		eventually(t, "both look", func() bool { return len(n.m.kicked) == 1 && len(n.m.quorum) == 1 })
	}
}

func TestThePolicyOfAnEmptyFileIsProxmoxVEs(t *testing.T) {
	n := haNode(t)
	if diff := cmp.Diff(defaultPolicy(), n.m.manager.view().Policy); diff != "" {
		t.Error(diff)
	}
	if got := pveconf.DefaultDatacenterHA().ShutdownPolicy; got != pveconf.ShutdownConditional {
		t.Error(got)
	}
}

// A person's start must not break the rules that HA keeps.
func TestAPersonsStartWaitsForHAWhereSomethingMaySpeakAgainstIt(t *testing.T) {
	n := haNode(t)
	n.put(haResourcesKey, "vm: 100\n\tstate stopped\n")
	if n.m.worker.awaits(100) || n.m.worker.awaits(300) {
		t.Error("it waits where nothing is configured")
	}
	n.put(haRulesKey, aRule)
	if !n.m.worker.awaits(100) || n.m.worker.awaits(300) {
		t.Errorf("with a rule: %v, a guest that is no HA resource %v", n.m.worker.awaits(100), n.m.worker.awaits(300))
	}
	must(t, n.run(n.m.operations.Start(t.Context(), 100)))
	n.follow()
	if n.m.procs.get(100) != nil || n.m.operations.resources.states()[100] != pveconf.HAStarted {
		t.Error("the guest was started, or nobody asked for it")
	}
	n.put(model.HAModeKey, `{"disarm":"ignore"}`)
	if n.m.worker.awaits(100) {
		t.Error("it waits for a manager that does nothing")
	}
}

func TestTheManagerIsToldWhenItsNodeHasRegistered(t *testing.T) {
	n := haNode(t)
	n.startGuard()
	if n.m.manager.view().LeaseValid {
		t.Error("a lease before the node has registered")
	}
	n.lives() // nobody watches, so it is the lease itself that tells
	eventually(t, "the manager looks", func() bool { return len(n.m.quorum) == 1 })
	if !n.m.manager.view().LeaseValid {
		t.Error("no lease after it")
	}
}
