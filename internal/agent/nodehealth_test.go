package agent

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/ha"
	corehealth "sauh.dev/sauh/internal/core/health"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/health"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/qmp/qmptest"
)

// feel makes the node's health what a test wants; what is lost is doubted, too.
func (n *node) feel(s health.State, doubts ...string) {
	for _, f := range s.Storages {
		doubts = append(doubts, f.Name)
	}
	n.m.health.state = func() health.State { return s }
	n.m.health.doubts = func() []string { return doubts }
}

func TestALossIsToldWhenItIsSureAndItsEndAtOnce(t *testing.T) {
	n := haNode(t)
	key := model.HAHealthPrefix + "n1"
	publish := func(sure bool) string {
		n.m.health.publish(t.Context(), sure)
		n.follow()
		return n.get(key)
	}
	if got := publish(true); got != "" {
		t.Errorf("a node that is well says %s", got)
	}
	n.feel(health.State{Storages: []health.Finding{{Name: "nas", Reason: "no answer for 15s"}}, Networks: []health.Finding{{Name: "vmbr0"}}})
	if got, want := publish(false), string(mustJSON(ha.NodeHealth{Doubt: []string{"nas"}})); got != want {
		t.Errorf("a node that was just cut off says %s, want %s", got, want)
	}
	if got, want := publish(true), string(mustJSON(ha.NodeHealth{Lost: []string{"nas"}, NetworkDown: "vmbr0"})); got != want {
		t.Errorf("it says %s, want %s", got, want)
	}
	rev := n.cluster.Revision()
	publish(true)
	if n.cluster.Revision() != rev {
		t.Error("what is said is said again")
	}
	n.feel(health.State{Storages: []health.Finding{{Name: "nas"}}, Networks: []health.Finding{{Name: "vmbr0"}}}, "other")
	if got, want := publish(false), string(mustJSON(ha.NodeHealth{Lost: []string{"nas"}, Doubt: []string{"other"}, NetworkDown: "vmbr0"})); got != want {
		t.Errorf("it says %s, want %s", got, want)
	}
	n.feel(health.State{})
	if got, want := publish(false), string(mustJSON(ha.NodeHealth{NetworkDown: "vmbr0"})); got != want {
		t.Errorf("it says %s, want %s", got, want)
	}
	if got := publish(true); got != "" {
		t.Errorf("what is over is still said: %s", got)
	}
	n.put(key, "{")
	if got := publish(true); got != "" {
		t.Errorf("a record that cannot be read stands: %s", got)
	}
}

// Before anything was probed, and before anybody has looked.
func TestAnAgentThatStartsKeepsWhatIsOnRecordAsLost(t *testing.T) {
	n := haNode(t)
	n.m.health.command = []string{"sauh", "agent", "probe"}
	n.put(model.GuestConfigKey("n1", 100), "virtio0: nas:100/a.raw\n")
	key, lost := model.HAHealthPrefix+"n1", string(mustJSON(ha.NodeHealth{Lost: []string{"nas"}}))
	n.put(key, lost)
	h := newNodeHealth(n.m.health)
	targets, bridges, err := h.wanted()
	must(t, err)
	h.watch.Set(targets, bridges)
	h.publish(t.Context(), false)
	n.follow()
	if got := n.get(key); got != lost {
		t.Errorf("it says %q, want %s", got, lost)
	}
}

func TestWhatAnyGuestUsesIsWatchedAndTheBridgesOfThisNodes(t *testing.T) {
	n := haNode(t)
	n.storage("other", "\tshared 1\n")
	n.storage("unused", "\tshared 1\n")
	n.storage("elsewhere", "\tshared 1\n\tnodes n2\n")
	n.m.health.command = []string{"sauh", "agent", "probe"}
	n.put(model.GuestConfigKey("n1", 100), "virtio0: nas:100/a.raw\nnet0: virtio,bridge=vmbr7\nnet1: virtio\n")
	n.put(model.GuestConfigKey("n2", 200), "virtio0: other:200/a.raw\nvirtio1: elsewhere:200/b.raw\nnet0: virtio,bridge=vmbr9\n")
	n.put(model.HAHealthPrefix+"n1", string(mustJSON(ha.NodeHealth{Lost: []string{"other"}})))
	targets, bridges, err := n.m.health.wanted()
	must(t, err)
	var got []string
	for _, target := range targets {
		got = append(got, fmt.Sprintf("%s lost %v", target.Name, target.Lost))
		if len(target.Command) != 5 || target.Command[4] != n.m.starter.pillName("n1") {
			t.Errorf("%+v", target)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"nas lost false", "other lost true"}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"vmbr0", "vmbr7"}, bridges); diff != "" {
		t.Error(diff)
	}
	n.m.health.command = nil
	if targets, _, _ := n.m.health.wanted(); len(targets) != 0 {
		t.Errorf("without a program to probe with: %+v", targets)
	}
	n.put(storageCfgKey, "nonsense")
	if _, _, err := n.m.health.wanted(); err == nil {
		t.Error("a file that cannot be read has what is watched forgotten")
	}
}

func TestTheWorkerSeesWhatIsWrongWithAGuest(t *testing.T) {
	n := haNode(t)
	n.runs(100)
	p := n.m.procs.get(100)
	p.condition.Store(&corehealth.Condition{Answers: true, Sick: corehealth.SickSilent})
	want := ha.Process{Answers: true, Sick: ha.SickSilent}
	if diff := cmp.Diff(want, n.m.worker.view().Processes[100]); diff != "" {
		t.Error(diff)
	}
}

// watched is what an agent that watches the guest's process from now on thinks of it. stop has it stop.
func (n *node) watched(id model.VMID) (p *proc, stop func()) {
	n.t.Helper()
	q, err := qemu.Adopt(n.t.Context(), n.paths.qemuRun(), id)
	must(n.t, err)
	p = newProc(q, false)
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); n.m.health.guest(ctx, id, p) }()
	return p, func() { cancel(); <-done; _ = q.Close() }
}

// QEMU tells of a panic once, and the guest goes on "running".
func TestAPanicIsKnownToTheNextAgentUntilTheGuestIsReset(t *testing.T) {
	n, _, _ := startNode(t)
	n.m.procs.watch = nil
	n.runsAs(aRunningGuest())
	room := qmptest.NewRoom()
	t.Cleanup(room.Close)
	q := room.Start("n1")
	must(t, q.Listen(t.Context(), n.m.procs.get(100).Spec().QMPSocket()))

	p, stop := n.watched(100)
	sick := func(want corehealth.Sickness) func() bool { return func() bool { return p.health().Sick == want } }
	eventually(t, "it is seen that the guest has panicked", func() bool {
		q.Event("GUEST_PANICKED", map[string]string{"action": "run"})
		return sick(corehealth.SickPanicked)()
	})
	stop()
	p, stop = n.watched(100)
	eventually(t, "the next agent knows that it has panicked", sick(corehealth.SickPanicked))
	eventually(t, "it is seen that the guest was reset", func() bool {
		q.Event("RESET", map[string]any{"guest": false, "reason": "host-qmp-system-reset"})
		return sick(corehealth.Well)()
	})
	stop()
	if n.m.health.notes.has(100, p.Facts()) {
		t.Error("the note outlives the reset")
	}

	must(t, n.m.health.notes.set(100, qemu.Facts{PID: 1, StartTicks: 7, BootID: n.a.boot}, true))
	if n.m.health.notes.has(100, p.Facts()) {
		t.Error("a new process is as sick as the one before")
	}
}

// heardOf is when this node's last renewal came through.
type heardOf time.Duration

func (heardOf) Online(string) bool                     { return true }
func (h heardOf) Renewed(string) (time.Duration, bool) { return time.Duration(h), h >= 0 }

func TestANodeThatWasCutOffIsNotSureOfItsCables(t *testing.T) {
	h := &nodeHealth{node: "n1"}
	at := func(now, renewed time.Duration) bool {
		h.clock, h.live = func() time.Duration { return now }, heardOf(renewed)
		return h.sure()
	}
	for _, c := range []struct {
		now, renewed time.Duration
		want         bool
	}{
		{healthAfter, healthAfter, true},
		{20 * time.Second, 19 * time.Second, true},
		{28 * time.Second, 20 * time.Second, false}, // eight seconds without a cable, shorter than the lease
		{29 * time.Second, 29 * time.Second, false},
		{40 * time.Second, 40 * time.Second, false},
		{43 * time.Second, 43 * time.Second, true},
		{44 * time.Second, -1, false},
	} {
		if got := at(c.now, c.renewed); got != c.want {
			t.Errorf("at %v, renewed at %v: sure %v", c.now, c.renewed, got)
		}
	}
}
