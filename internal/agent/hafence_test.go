package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/beacon"
	corefence "sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/fence"
	"sauh.dev/sauh/internal/fence/fencetest"
	"sauh.dev/sauh/internal/fence/fencetest/bmc"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

const n2UUID = "11111111-2222-4333-8444-555555555555"

// machine2 is n2 as its BMC switches it.
type machine2 struct {
	off  atomic.Bool
	shot atomic.Int32
	uuid string
}

func (m *machine2) On() bool                       { return !m.off.Load() }
func (m *machine2) PowerOff(context.Context) error { m.shot.Add(1); m.off.Store(true); return nil }
func (m *machine2) PowerOn(context.Context) error  { m.off.Store(false); return nil }
func (m *machine2) UUID() string                   { return m.uuid }

// startBMC serves a BMC of n2 and returns its section of ha/fence.cfg.
func (n *node) startBMC(id string, m *machine2, more string) (*bmc.Redfish, string) {
	n.t.Helper()
	cert, fingerprint, err := bmc.Certificate("bmc", net.ParseIP("127.0.0.1"))
	must(n.t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(n.t, err)
	b := &bmc.Redfish{User: "sauh", Password: "secret", Controller: bmc.Controller{Machine: m}}
	srv := bmc.Serve(b, cert)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ServeTLS(ln, "", "") }()
	n.t.Cleanup(func() { n.m.fencing.wait(); _ = srv.Close(); <-done })
	return b, fmt.Sprintf("redfish: %s\n\tnode n2\n\taddress %s\n\tuser sauh\n\tpassword-file priv/fence/%s\n\tfingerprint %s\n\tverify-gap 0.1\n%s\n",
		id, ln.Addr(), id, fingerprint, more)
}

// fencedNode has a node n2 with a BMC, which was heard of once.
func fencedNode(t *testing.T) (*node, *machine2, *bmc.Redfish) {
	n := haNode(t)
	m := &machine2{uuid: n2UUID}
	b, section := n.startBMC("n2-bmc", m, "")
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2, Mgmt: "10.0.0.2", Cluster: "10.0.1.2", UUID: strings.ToUpper(n2UUID)})))
	n.put(model.ConfigPrefix+"priv/fence/n2-bmc", "secret\n")
	n.put(fenceCfgKey, section)
	n.put(model.LivePrefix+"n2", `{"boot_id":"b","epoch":3,"seq":1}`)
	return n, m, b
}

const n2BMC = "redfish: n2-bmc"

func (n *node) member(name string) ha.Member {
	n.t.Helper()
	for _, m := range n.m.manager.view().Members {
		if m.Name == name {
			return m
		}
	}
	n.t.Fatalf("no member %s", name)
	return ha.Member{}
}

func TestAnAnswerSaysForHowLongOffWasRead(t *testing.T) {
	n, m, _ := fencedNode(t)
	before := n.member("n2")
	if diff := cmp.Diff([]ha.FenceMethod{{Name: n2BMC, Rehearsed: true}}, before.Fencing); diff != "" || before.Heard <= 0 || before.Beacons {
		t.Errorf("heard of %v ago, by beacons %v\n%s", before.Heard, before.Beacons, diff)
	}
	if len(n.member("n1").Fencing) != 0 {
		t.Error("another node has its method")
	}
	a := ha.AskFence{Node: "n2", Method: n2BMC}
	if got := n.answer(a).(ha.FenceResult); got.Off {
		t.Errorf("a node that is on: %+v", got)
	}
	m.off.Store(true)
	got := n.answer(a).(ha.FenceResult)
	if !got.Off || got.Action != a || got.Lasted < 100*time.Millisecond {
		t.Fatalf("a node that is off: %+v", got)
	}
}

// answer has the manager's shell carry out an action about a method.
func (n *node) answer(a ha.Action) ha.Event {
	n.t.Helper()
	ev, err := n.m.fencing.answer(n.t.Context(), a)
	must(n.t, err)
	return ev
}

// shot is the order to shoot n2 by a method, as of now, by the manager n1.
func (n *node) shot(method string) ha.Shoot {
	n.t.Helper()
	n.put(model.ManagerKey, `{"node":"n1","term":1}`)
	kv, err := n.m.st.Get(n.t.Context(), model.LivePrefix+"n2", store.Linearizable)
	must(n.t, err)
	return ha.Shoot{Node: "n2", Method: method, Blocklist: isBlocklist(method), LiveRevision: kv.ModRevision}
}

// armedNode is a fencedNode whose manager is n1, with a lease.
func armedNode(t *testing.T) (*node, *machine2, *bmc.Redfish) {
	n, m, b := fencedNode(t)
	n.m.fencing.live = leased{n.m.live, true}
	return n, m, b
}

// leased is a node's view of the others with a lease of the test's.
type leased struct {
	hearing
	valid bool
}

func (l leased) Valid() (uint64, bool) { return 1, l.valid }

func TestANodeIsShotByItsOwnBMCAlone(t *testing.T) {
	n, m, b := armedNode(t)
	other := &machine2{uuid: "99999999-2222-4333-8444-555555555555"}
	b.Other = other
	b.SetFault(bmc.Wrong)
	shot := n.shot(n2BMC)
	if _, err := n.m.fencing.answer(t.Context(), shot); !errors.Is(err, corefence.ErrStranger) || failKind(err) != ha.FailOther {
		t.Error(err)
	}
	if other.shot.Load()+m.shot.Load() != 0 {
		t.Error("somebody was switched off")
	}
	b.SetFault(bmc.Healthy)
	if ev := n.answer(shot); ev != (ha.ActionDone{Action: shot}) || m.shot.Load() == 0 {
		t.Errorf("shot %d times: %+v", m.shot.Load(), ev)
	}
}

// A manager that stood still finds its decision to shoot where it left it.
func TestAShotIsNotFiredOnceItsDecisionDoesNotHold(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*node)
	}{
		{"the node renewed", func(n *node) { n.put(model.LivePrefix+"n2", `{"boot_id":"b","epoch":3,"seq":2}`) }},
		{"the node was removed", func(n *node) { n.delete(model.LivePrefix + "n2") }},
		{"another manager", func(n *node) { n.put(model.ManagerKey, `{"node":"n3","term":2}`) }},
		{"no lease", func(n *node) { n.m.fencing.live = leased{n.m.live, false} }},
		{"a beacon", func(n *node) {
			n.m.fencing.beacon = func(string) (corefence.Sign, bool) {
				return corefence.Sign{Kind: corefence.Beacon, At: sys.BootTime()}, true
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, m, _ := armedNode(t)
			shot := n.shot(n2BMC)
			c.change(n)
			if _, err := n.m.fencing.answer(t.Context(), shot); failKind(err) != ha.FailConflict || m.shot.Load() != 0 {
				t.Errorf("%v, shot %d times", err, m.shot.Load())
			}
		})
	}
}

func TestAMethodsOrderReachesTheManager(t *testing.T) {
	n, m, _ := fencedNode(t)
	_, second := n.startBMC("n2-pdu", m, "\torder 1\n")
	n.put(fenceCfgKey, n.get(fenceCfgKey)+"\n"+second)
	want := []ha.FenceMethod{{Name: n2BMC, Rehearsed: true}, {Name: "redfish: n2-pdu", Rehearsed: true, Order: 1}}
	if diff := cmp.Diff(want, n.member("n2").Fencing); diff != "" {
		t.Error(diff)
	}
}

func TestARehearsalIsRecordedAndAFailedOneEndsTheMethodsUse(t *testing.T) {
	n, m, b := fencedNode(t)
	n.m.fencing.rehearseDue(t.Context())
	n.follow()
	said, err := n.m.fencing.methods("n2")
	must(t, err)
	if len(said) != 1 || said[0].Grade != corefence.Rehearsed {
		t.Fatalf("%+v", said)
	}
	recorded := n.get(model.HARehearsals + "n2")
	n.m.fencing.rehearseDue(t.Context())
	if got := n.get(model.HARehearsals + "n2"); got != recorded {
		t.Error("what was rehearsed a moment ago is rehearsed again")
	}
	b.User = "nobody"
	if _, err := n.m.fencing.rehearse(t.Context(), "n2", false); err != nil {
		t.Error(err)
	}
	n.follow()
	if got := n.member("n2").Fencing; len(got) != 1 || got[0].Rehearsed {
		t.Errorf("after a failed rehearsal: %+v", got)
	}
	m.off.Store(true)
	b.User = "sauh"
	if _, err := n.m.fencing.answer(t.Context(), ha.AskFence{Node: "n2", Method: n2BMC}); !errors.Is(err, corefence.ErrRehearsalFailed) {
		t.Errorf("it is asked all the same: %v", err)
	}
	m.off.Store(false)
	if due := n.m.fencing.due(n.m.mirror.Snapshot(), "n2", time.Now().Add(2*rehearseAgain)); len(due) != 1 {
		t.Errorf("due after a failure: %v", due)
	}
}

func TestARehearsalThatSwitchesIsRefusedWhereItWouldHarm(t *testing.T) {
	n, m, _ := fencedNode(t)
	refused := func(what, node string, kind error) {
		t.Helper()
		if _, err := n.m.fencing.rehearse(t.Context(), node, true); !errors.Is(err, kind) || m.shot.Load() != 0 {
			t.Errorf("%s: %v, shot %d times", what, err, m.shot.Load())
		}
	}
	refused("this node", "n1", model.ErrInvalid)
	refused("a node that is not there", "n3", model.ErrUnavailable)
	n.put(model.HARequestPrefix+"n2", `{"maintenance":true}`)
	refused("a guest", "n2", model.ErrBusy)
	n.delete(model.GuestConfigKey("n2", 200))
	n.put(model.IntentPrefix+"100", `{"source":"n1","target":"n2"}`)
	refused("a migration to it", "n2", model.ErrBusy)
	n.delete(model.IntentPrefix + "100")
	n.put(model.HARequestPrefix+"n2", `{}`)
	refused("neither maintenance nor disarmed", "n2", model.ErrBusy)
	if err := n.m.fencing.vacant(t.Context(), "n2"); !errors.Is(err, model.ErrBusy) {
		t.Errorf("not looked at again before the order: %v", err)
	}
	n.put(model.HARequestPrefix+"n2", `{"disarm":"freeze"}`)
	must(t, n.m.fencing.vacant(t.Context(), "n2"))
	n.put(model.HARequestPrefix+"n2", `{"maintenance":true}`)
	must(t, n.m.fencing.vacant(t.Context(), "n2"))
	n.delete(fenceCfgKey)
	refused("without a method", "n2", model.ErrNotFound)
}

func TestARehearsalThatSwitchesLooksForGuestsRightBeforeTheOrder(t *testing.T) {
	n, m, _ := fencedNode(t)
	n.delete(model.GuestConfigKey("n2", 200))
	n.put(model.HARequestPrefix+"n2", `{"maintenance":true}`)
	f := n.m.fencing
	arrived := func(ctx context.Context) error {
		n.put(model.GuestConfigKey("n2", 201), "memory: 64\n")
		return f.vacant(ctx, "n2")
	}
	got, err := f.rehearseMethods(t.Context(), "n2", arrived, []string{n2BMC})
	if err != nil || len(got) != 1 || got[0].Failed == "" || m.shot.Load() != 0 {
		t.Errorf("%+v, %v, shot %d times", got, err, m.shot.Load())
	}
}

func TestMethodsThatNobodySawSwitchingComeFirst(t *testing.T) {
	n, m, _ := fencedNode(t)
	_, second := n.startBMC("n2-pdu", m, "")
	_, third := n.startBMC("n2-old", m, "")
	n.put(fenceCfgKey, n.get(fenceCfgKey)+"\n"+second+"\n"+third+"\nceph: rbd\n\tstorages fast\n")
	n.put(model.HARehearsals+"n2", string(mustJSON([]corefence.Rehearsal{
		{Method: n2BMC, At: 1, Switched: true}, {Method: "redfish: n2-pdu", At: 1, Refuted: true, Failed: "it lied"},
	})))
	want := []string{"ceph: rbd", "redfish: n2-old", "redfish: n2-pdu", n2BMC}
	if diff := cmp.Diff(want, rehearsalOrder(n.m.mirror.Snapshot(), "n2")); diff != "" {
		t.Error(diff)
	}
}

func TestWhatARehearsalBySwitchingFoundStaysKnown(t *testing.T) {
	switched := corefence.Rehearsal{Method: "a", Digest: "1", At: 1, Switched: true, Early: time.Second, Took: time.Minute}
	asked := corefence.Rehearsal{Method: "a", Digest: "1", At: 2}
	got := mergeRehearsals([]corefence.Rehearsal{switched, {Method: "b", At: 1}}, []corefence.Rehearsal{asked, {Method: "c", At: 2}})
	want := []corefence.Rehearsal{
		{Method: "a", Digest: "1", At: 2, Switched: true, Early: time.Second, Took: time.Minute}, {Method: "b", At: 1}, {Method: "c", At: 2},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	asked.Digest = "2" // another configuration
	if got := mergeRehearsals([]corefence.Rehearsal{switched}, []corefence.Rehearsal{asked}); got[0].Switched {
		t.Errorf("%+v", got)
	}
	asked.Digest, asked.Failed = "1", "it did not answer"
	got = mergeRehearsals([]corefence.Rehearsal{switched}, []corefence.Rehearsal{asked})
	asked.Failed = ""
	if got = mergeRehearsals(got, []corefence.Rehearsal{asked}); got[0].Failed != "" || !got[0].Switched {
		t.Errorf("a fault that only asking has shown stays: %+v", got)
	}
}

func TestABMCThatWasCaughtLyingIsBelievedAgainOnlyWhenItWasSeenToSwitch(t *testing.T) {
	lied := corefence.Rehearsal{Method: "a", Digest: "1", At: 2, Refuted: true, Failed: "a beacon came"}
	for _, c := range []struct {
		name string
		then corefence.Rehearsal
		want corefence.Rehearsal
	}{
		{"it answers", corefence.Rehearsal{Method: "a", Digest: "1", At: 3}, corefence.Rehearsal{Method: "a", Digest: "1", At: 3, Refuted: true, Failed: "a beacon came"}},
		{"it does not", corefence.Rehearsal{Method: "a", Digest: "1", At: 3, Failed: "timeout"}, corefence.Rehearsal{Method: "a", Digest: "1", At: 3, Refuted: true, Failed: "a beacon came"}},
		{"it switched", corefence.Rehearsal{Method: "a", Digest: "1", At: 3, Switched: true}, corefence.Rehearsal{Method: "a", Digest: "1", At: 3, Switched: true}},
		{"it is another one", corefence.Rehearsal{Method: "a", Digest: "2", At: 3}, corefence.Rehearsal{Method: "a", Digest: "2", At: 3}},
	} {
		before := mergeRehearsals([]corefence.Rehearsal{{Method: "a", Digest: "1", At: 1, Switched: true}}, []corefence.Rehearsal{lied})
		if diff := cmp.Diff([]corefence.Rehearsal{c.want}, mergeRehearsals(before, []corefence.Rehearsal{c.then})); diff != "" {
			t.Errorf("%s:\n%s", c.name, diff)
		}
	}
}

func TestAFenceFileThatCannotBeReadLeavesTheLease(t *testing.T) {
	n, _, _ := fencedNode(t)
	n.put(fenceCfgKey, "not a section\n")
	if m := n.member("n2"); len(m.Fencing) != 0 || !n.m.manager.view().Quorate {
		t.Errorf("%+v", m.Fencing)
	}
	if _, err := n.m.fencing.methods("n2"); err == nil {
		t.Error("the file's error is not told")
	}
	if _, err := n.m.fencing.answer(t.Context(), ha.AskFence{Node: "n2", Method: n2BMC}); !errors.Is(err, model.ErrNotFound) {
		t.Error(err)
	}
}

func TestAStorageIsNotToldToRefuseANodeAndToServeItAtTheSameTime(t *testing.T) {
	n, _, _ := armedNode(t)
	f := n.m.fencing
	done, ok := f.occupy("n2")
	if _, again := f.occupy("n2"); !ok || again {
		t.Errorf("occupied %v, twice %v", ok, again)
	}
	shoot := n.shot("ceph: rbd")
	if _, err := f.shoot(t.Context(), shoot); failKind(err) != ha.FailConflict {
		t.Errorf("while it is served again: %v", err)
	}
	f.serve(t.Context(), n.m.mirror.Snapshot(), "n2", 3)
	if f.freed["n2"] != 0 {
		t.Error("it is served while it is shot")
	}
	done()
	f.serve(t.Context(), n.m.mirror.Snapshot(), "n2", 3)
	if f.freed["n2"] != 4 {
		t.Errorf("served up to epoch %d", f.freed["n2"])
	}
	if _, err := f.shoot(t.Context(), shoot); !errors.Is(err, model.ErrNotFound) {
		t.Error(err)
	}
}

func TestImagesAreNamedWithTheirPoolAndTheFakeClusterKnowsThem(t *testing.T) {
	n := haNode(t)
	n.put(storageCfgKey, n.get(storageCfgKey)+"\nrbd: fast\n\tpool tank\n\tcontent images\n\nrbd: slow\n\tnamespace a\n\tcontent images\n")
	n.put(model.GuestConfigKey("n2", 200), "scsi0: fast:vm-200-disk-0\nscsi1: slow:vm-200-disk-1\nide2: nas:iso/a.iso,media=cdrom\n")
	n.put(model.GuestConfigKey("n2", 201), "scsi0: fast:vm-201-disk-0\nscsi1: nas:201/a.raw\n")
	snap := n.m.mirror.Snapshot()
	storages, err := mirror.Decode(snap, storageCfgKey, pveconf.ParseStorages)
	must(t, err)
	guests := guestsToFence(snap, "n2", storages.Value)
	c := fencetest.NewCeph(t)
	c.Image("tank/vm-200-disk-0", "10.0.1.2:0/1")
	c.Image("rbd/a/vm-200-disk-1", "10.0.1.2:0/2")
	cfg, err := pveconf.ParseFence([]byte("ceph: blocklist\n\tstorages fast,slow\n"))
	must(t, err)
	set := fence.Build(cfg, fence.Node{Name: "n2", Addresses: []string{"10.0.1.2"}, Guests: guests, RBD: []string{"fast", "slow"}}, fence.Env{
		Run: c.Run, Now: sys.BootTime, Wall: time.Now,
	})
	defer set.Close()
	got := set.Shoot(t.Context(), sys.BootTime(), func() []corefence.Sign { return nil }, nil)
	if len(got.Partial) != 1 || !cmp.Equal(got.Partial[0].Guests, []model.VMID{200}) {
		t.Errorf("%+v", got)
	}
	if usable := usableRBD(storages.Value); len(usable) != 0 {
		t.Errorf("%v can be used by guests: then docs/fencing.md must not say that the method has no effect", usable)
	}
	n.put(fenceCfgKey, "ceph: blocklist\n\tstorages fast,slow\n")
	said, err := n.m.fencing.methods("n2")
	must(t, err)
	if len(said) != 1 || said[0].Grade != corefence.Worthless || !errors.Is(said[0].Err, corefence.ErrNotCovered) {
		t.Errorf("%+v", said)
	}
}

func TestTheStorageServesANodeAgainOnlyWhileTheNodeIsThereAndThisOneManages(t *testing.T) {
	n, _, _ := armedNode(t)
	n.shot(n2BMC) // n1 manages
	f := n.m.fencing
	must(t, f.isBack(t.Context(), "n2", 3))
	if err := f.isBack(t.Context(), "n2", 2); failKind(err) != ha.FailConflict {
		t.Errorf("of an earlier life: %v", err)
	}
	n.put(model.ManagerKey, `{"node":"n3","term":2}`)
	if err := f.isBack(t.Context(), "n2", 3); failKind(err) != ha.FailConflict {
		t.Errorf("deposed: %v", err)
	}
	n.shot(n2BMC)
	n.put(model.LivePrefix+"n2", `{"boot_id":"b","epoch":3,"seq":1,"fenced":true}`)
	if err := f.isBack(t.Context(), "n2", 3); failKind(err) != ha.FailConflict {
		t.Errorf("fenced again: %v", err)
	}
}

func TestANodeOfWhichNoBeaconsAreHeardIsAmongTheProblems(t *testing.T) {
	n, _, _ := fencedNode(t)
	online := func(string) bool { return true }
	if got := n.m.beacons.problems(online); len(got) != 1 || !strings.Contains(got[0], "n1 hears no beacons of n2") {
		t.Errorf("%q", got)
	}
	if got := n.m.beacons.problems(func(string) bool { return false }); len(got) != 0 {
		t.Errorf("of nodes that are not there: %q", got)
	}
	if n.m.beacons.begin(t.Context(), beacon.Config{}) {
		t.Fatal("it runs without an address")
	}
	if got := n.m.beacons.problems(online); len(got) != 1 || !strings.HasPrefix(got[0], "beacons do not run on n1: start beacons: ") {
		t.Errorf("%q", got)
	}
	if n.member("n2").Beacons {
		t.Error("it may be shot")
	}
	n.m.fencing.beacon = func(string) (corefence.Sign, bool) {
		return corefence.Sign{Kind: corefence.Beacon, At: sys.BootTime()}, true
	}
	if !n.member("n2").Beacons {
		t.Error("it may not be shot though it is heard")
	}
}

func TestARefusalIsLoggedOnceAMinuteAndWhenItChanges(t *testing.T) {
	var log strings.Builder
	f := newFencing(&fencing{log: slog.New(slog.NewTextHandler(&log, nil))})
	lines := func(why string, err error, want int) {
		t.Helper()
		log.Reset()
		for range 3 {
			_, _ = f.take("n2", "bmc", fence.Outcome{Said: []fence.Said{{Method: "bmc", Err: err}}})
		}
		if got := strings.Count(log.String(), "level="); got != want {
			t.Errorf("%s: %d lines:\n%s", why, got, log.String())
		}
	}
	stranger := fmt.Errorf("n2: %w", corefence.ErrStranger)
	lines("the first time", stranger, 1)
	if !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("a refusal is no warning: %s", log.String())
	}
	lines("the same", stranger, 0)
	f.said["n2 bmc"] = saying{f.said["n2 bmc"].kind, f.said["n2 bmc"].logged - sayAgain}
	lines("after a minute", stranger, 1)
	lines("another", corefence.ErrNotOff, 1)
	if !strings.Contains(log.String(), "level=INFO") {
		t.Errorf("an answer is a warning: %s", log.String())
	}
	log.Reset()
	for port := range 3 {
		_, _ = f.take("n3", "bmc", fence.Outcome{Said: []fence.Said{{Method: "bmc", Err: fmt.Errorf("read udp 127.0.0.1:%d: i/o timeout", 4710+port)}}})
	}
	if got := strings.Count(log.String(), "level="); got != 1 {
		t.Errorf("%d lines for one refusal over three ports:\n%s", got, log.String())
	}
	log.Reset()
	logAction(f.log)(ha.AskFence{Node: "n2", Method: "bmc"}, stranger)
	if log.Len() > 0 {
		t.Errorf("said twice: %s", log.String())
	}
}
