package agent

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/agent/move"
	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
)

// endingNode is a node with a living record, a worker at work, a guest of HA's that is not to run and an ordinary one that runs.
type endingNode struct {
	*node
	ended func() // the ordinary guest's process is gone
	mu    sync.Mutex
	did   []string
	power error // what bringing the machine down says
}

func (n *endingNode) note(what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.did = append(n.did, what)
}

func (n *endingNode) diary() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.did...)
}

func newEndingNode(t *testing.T) *endingNode {
	n := &endingNode{node: haNode(t)}
	n.startGuard()
	n.put(haResourcesKey, "vm: 100\n\tstate stopped\n")
	n.put(model.GuestConfigKey("n1", 300), "memory: 16\n")
	n.ended = n.runs(300)
	e := n.m.ending
	e.stop = func(context.Context, model.VMID, *proc, func(string, ...any)) error {
		if n.get(model.HANodePrefix+"n1") == "" {
			n.note("a guest is stopped before the cluster knows why")
		}
		if n.live().Left {
			n.note("the node left with a guest")
		}
		n.note("stopped")
		n.ended()
		return nil
	}
	e.power = func(_ context.Context, reboot bool) error {
		if !n.live().Left {
			n.note("the machine goes down before the node left")
		}
		n.note(map[bool]string{true: "reboot", false: "poweroff"}[reboot])
		return n.power
	}
	n.lives()
	ctx, cancel := context.WithCancel(n.m.ctx)
	var wg sync.WaitGroup
	wg.Go(func() { n.m.worker.run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	eventually(t, "the lease is valid", func() bool { _, ok := n.m.live.Valid(); return ok })
	return n
}

func TestANodeThatEndsSaysSoFirstAndLeavesLast(t *testing.T) {
	n := newEndingNode(t)
	must(t, n.m.ending.EndNode(t.Context(), true))
	eventually(t, "the machine goes down", func() bool { return len(n.diary()) == 2 })
	if diff := cmp.Diff([]string{"stopped", "reboot"}, n.diary()); diff != "" {
		t.Error(diff)
	}
	want := string(mustJSON(ha.NodeMode{Ends: ha.EndsReboot, BootID: n.a.boot}))
	if got := n.get(model.HANodePrefix + "n1"); got != want {
		t.Errorf("the node says %s, want %s", got, want)
	}
	if _, ok := n.m.live.Valid(); ok || !n.m.arrivals.leaving.Load() {
		t.Errorf("a node that left: lease %v", ok)
	}
	if err := n.start(100); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("a start after the end: %v", err)
	}
}

func TestTheMachineMayGoDownOnlyWhenHAIsDoneWithItsGuests(t *testing.T) {
	n := newEndingNode(t)
	unlock := n.occupy(100)
	done := make(chan error, 2)
	go func() { done <- n.m.ending.DrainNode(t.Context(), false) }()
	eventually(t, "the ordinary guest is stopped meanwhile", func() bool { return len(n.diary()) == 1 })
	go func() { done <- n.m.ending.DrainNode(t.Context(), false) }() // who asks again waits for the same
	select {
	case err := <-done:
		t.Fatalf("it is through: %v", err)
	case <-time.After(5 * endPace):
	}
	unlock()
	for range 2 {
		must(t, <-done)
	}
	if diff := cmp.Diff([]string{"stopped"}, n.diary()); diff != "" || !n.live().Left {
		t.Errorf("left: %v\n%s", n.live().Left, diff)
	}
}

func TestANodeWhoseMachineDoesNotGoDownServesAgain(t *testing.T) {
	n := newEndingNode(t)
	n.power = errors.New("systemd is in trouble")
	must(t, n.m.ending.EndNode(t.Context(), false))
	eventually(t, "the machine was to go down", func() bool { return len(n.diary()) == 2 })
	eventually(t, "the node serves again", n.serves)
	n.power = nil
	must(t, n.m.ending.EndNode(t.Context(), false)) // and can end
	eventually(t, "the machine goes down", func() bool { return len(n.diary()) == 3 })
}

// nextAgent stops the agent while its node ends, and is what an agent that starts in the boot named has of that.
func (n *endingNode) nextAgent(boot string) *ending {
	n.t.Helper()
	old := n.m.ending
	n.a.tasks.Stop(move.ErrAbandoned)
	old.wait()
	if n.get(model.HANodePrefix+"n1") == "" || n.live().Left || len(n.diary()) > 1 {
		n.t.Errorf("it did %v, the word is %q, left %v", n.diary(), n.get(model.HANodePrefix+"n1"), n.live().Left)
	}
	tasks, err := task.Open(n.t.Context(), n.paths.tasks(), func() string { return "n1" }, n.a.log)
	must(n.t, err)
	n.m.arrivals.leaving.Store(false)
	ctx, cancel := context.WithCancel(n.m.ctx)
	next := &ending{
		ctx: ctx, node: "n1", boot: boot, log: old.log, st: old.st, worker: old.worker, procs: old.procs, locks: old.locks, tasks: tasks,
		starter: old.starter, live: old.live, closing: old.closing, kick: old.kick, power: old.power, stop: old.stop,
		goesDown: old.goesDown, patience: old.patience, noteFile: old.noteFile,
	}
	n.t.Cleanup(func() { cancel(); tasks.Stop(move.ErrAbandoned); next.wait() })
	return next
}

// interrupted begins an end with f and stops the agent when the cluster knows of it.
func interrupted(t *testing.T, f func(*ending) error, boot string) (n *endingNode, next *ending, unlock func()) {
	n = newEndingNode(t)
	unlock = n.occupy(100)
	must(t, f(n.m.ending))
	eventually(t, "the cluster knows", func() bool { return n.get(model.HANodePrefix+"n1") != "" })
	if boot == "" {
		boot = n.a.boot
	}
	return n, n.nextAgent(boot), unlock
}

func TestAnEndGoesOnWhenItsAgentStartsAgain(t *testing.T) {
	n, next, unlock := interrupted(t, func(e *ending) error { return e.EndNode(t.Context(), true) }, "")
	next.goOn()
	if next.isEnd("") || n.a.tasks == next.tasks {
		t.Fatal("the end is forgotten")
	}
	unlock()
	eventually(t, "the machine goes down", func() bool { d := n.diary(); return len(d) > 0 && d[len(d)-1] == "reboot" })
	if !n.live().Left {
		t.Error("the node has not left")
	}
	all, err := next.tasks.ListTasks(t.Context())
	must(t, err)
	if len(all) == 0 || all[0].Type != "nodereboot" || all[0].ExitStatus != "OK" {
		t.Errorf("the tasks: %+v", all)
	}
	eventually(t, "nothing is left to be done", func() bool { left, err := readEndNote(next.noteFile); return err == nil && left == endNote{} })
}

// Whoever drains a node brings the machine down himself, and may have given up when the agent ended.
func TestADrainGoesOnWhenItsAgentStartsAgainAndTheMachineStaysUp(t *testing.T) {
	n, next, unlock := interrupted(t, func(e *ending) error {
		_, err := e.begin(endNote{Ends: ha.EndsShutdown})
		return err
	}, "")
	next.patience, next.goesDown = 100*time.Millisecond, func(context.Context) bool { return false }
	left := make(chan struct{})
	next.live = noticing{n.m.live, left}
	next.goOn()
	unlock()
	<-left
	eventually(t, "the node serves again", n.serves)
	for _, what := range n.diary() {
		if what != "stopped" {
			t.Errorf("it did %v", n.diary())
		}
	}
}

// noticing tells that the node has left.
type noticing struct {
	leaver
	left chan struct{}
}

func (l noticing) Leave(ctx context.Context) error {
	defer close(l.left)
	return l.leaver.Leave(ctx)
}

func TestAnEndOfAnotherBootIsForgotten(t *testing.T) {
	n, next, unlock := interrupted(t, func(e *ending) error { return e.EndNode(t.Context(), false) }, "another boot")
	unlock()
	n.put(model.LivePrefix+"n7", string(mustJSON(model.Live{BootID: "another boot", Epoch: 3})))
	n.put(model.HANodePrefix+"n7", n.get(model.HANodePrefix+"n1"))
	next.node = "n7"
	next.goOn()
	eventually(t, "the word is forgotten", func() bool { return n.get(model.HANodePrefix+"n7") == "" })
	if left, err := readEndNote(next.noteFile); err != nil || left != (endNote{}) || !next.isEnd("") {
		t.Errorf("the note says %+v, %v", left, err)
	}
}

// What was through with its end when the agent ended serves again, as does a node whose end was taken back.
func TestAnEndThatIsOverDoesNotGoOn(t *testing.T) {
	n := newEndingNode(t)
	e := n.m.ending
	must(t, e.DrainNode(t.Context(), false))
	if left, err := readEndNote(e.noteFile); err != nil || left != (endNote{}) {
		t.Errorf("after the drain it says %+v, %v", left, err)
	}
	n.power = errors.New("systemd is in trouble")
	must(t, e.EndNode(t.Context(), true)) // whose drain is done already
	eventually(t, "the node serves again", n.serves)
	if left, err := readEndNote(e.noteFile); err != nil || left != (endNote{}) {
		t.Errorf("after it was taken back it says %+v, %v", left, err)
	}
}

// occupy locks a guest as a migration does, when HA is through with it.
func (n *endingNode) occupy(id model.VMID) (unlock func()) {
	n.t.Helper()
	eventually(n.t, "the guest is free", func() bool {
		var err error
		unlock, err = n.m.worker.locks.tryLock(id, "migration to n2")
		return err == nil
	})
	return unlock
}

// A node that has left, and of which nothing says that it reboots, is one whose guests are taken.
func TestTheWordOfAnEndStaysUntilTheNodeIsRegisteredAgain(t *testing.T) {
	n := newEndingNode(t)
	key, live := model.HANodePrefix+"n7", model.LivePrefix+"n7"
	n.put(key, string(mustJSON(ha.NodeMode{Ends: ha.EndsReboot, BootID: "b1"})))
	for _, left := range []model.Live{{BootID: "b1", Epoch: 1, Left: true}, {BootID: "b2", Epoch: 2, Fenced: true, By: "n1"}} {
		n.put(live, string(mustJSON(left)))
		ctx, cancel := context.WithTimeout(t.Context(), 3*endPace)
		(&ending{ctx: ctx, node: "n7", boot: "b2", st: n.st}).forget()
		cancel()
		if n.get(key) == "" {
			t.Errorf("nothing says any more how the node ends while its record is %+v", left)
		}
	}
	n.put(live, string(mustJSON(model.Live{BootID: "b2", Epoch: 3})))
	(&ending{ctx: t.Context(), node: "n7", boot: "b2", st: n.st}).forget()
	if got := n.get(key); got != "" {
		t.Errorf("it still says %s", got)
	}
}

// serves: the node is as if nobody had ended it.
func (n *endingNode) serves() bool {
	_, valid := n.m.live.Valid()
	return valid && !n.live().Left && n.get(model.HANodePrefix+"n1") == "" && !n.m.starter.closed.Load() && !n.m.arrivals.leaving.Load()
}

// An agent that starts without a quorum tries to delete the word of its life before until it can, and by then the node may be ending.
func TestTheWordOfAnEndThatHasBegunIsNotTakenForAnOldOne(t *testing.T) {
	n := newEndingNode(t)
	key := model.HANodePrefix + "n1"
	n.put(key, string(mustJSON(ha.NodeMode{Ends: ha.EndsShutdown, BootID: "the boot before"})))
	unlock := n.occupy(100)
	n.st.setQuorum(false)
	var wg sync.WaitGroup
	wg.Go(n.m.ending.forget)
	upid, err := n.m.ending.begin(endNote{Ends: ha.EndsReboot})
	must(t, err)
	n.st.setQuorum(true)
	wg.Wait()
	want := string(mustJSON(ha.NodeMode{Ends: ha.EndsReboot, BootID: n.a.boot}))
	eventually(t, "the node has said how it ends", func() bool { return n.get(key) == want })
	n.m.ending.forget() // however late it comes
	if got := n.get(key); got != want {
		t.Errorf("the node says %q, want %s", got, want)
	}
	unlock()
	must(t, n.a.tasks.Wait(t.Context(), upid))
}

func TestANodeWhoseMachineStaysUpServesAgain(t *testing.T) {
	n := newEndingNode(t)
	var down atomic.Bool
	down.Store(true)
	e := n.m.ending
	e.patience, e.goesDown = 100*time.Millisecond, func(context.Context) bool { return down.Load() }
	must(t, e.DrainNode(t.Context(), false))
	for range 30 {
		if !n.live().Left {
			t.Fatal("it serves while the machine goes down")
		}
		sleep(t.Context(), 10*time.Millisecond)
	}
	down.Store(false)
	eventually(t, "the node serves again", n.serves)
	must(t, e.EndNode(t.Context(), false)) // and can end, by another task
	eventually(t, "the machine goes down", func() bool { return len(n.diary()) == 2 })
}

func TestSystemdsJobsTellThatTheMachineGoesDown(t *testing.T) {
	for jobs, want := range map[string]bool{
		"": false, "12 sauh-agent.service stop waiting\n": false, "7 poweroff.target start waiting\n": true,
		"7 reboot.target start waiting\n8 shutdown.target start waiting\n": true,
	} {
		if got := goingDown(jobs); got != want {
			t.Errorf("%q: got %v", jobs, got)
		}
	}
}

func TestAnEndThatWasCancelledIsTakenBackOnce(t *testing.T) {
	n := newEndingNode(t)
	unlock := n.occupy(100)
	e := n.m.ending
	must(t, e.EndNode(t.Context(), true))
	first := e.upid
	must(t, n.a.tasks.CancelTask(t.Context(), first))
	eventually(t, "the node serves again", func() bool { return e.isEnd("") && n.serves() })
	second, err := e.begin(endNote{Ends: ha.EndsShutdown})
	must(t, err)
	eventually(t, "it has begun", n.m.arrivals.leaving.Load)
	e.serveAgain(first) // a late word about the first
	if !e.isEnd(second) || !n.m.arrivals.leaving.Load() {
		t.Error("the end of the first took the second back")
	}
	unlock()
	must(t, n.a.tasks.Wait(t.Context(), second))
	if got := n.diary(); !n.live().Left || len(got) > 1 {
		t.Errorf("left %v after %v: the machine was to stay up", n.live().Left, got)
	}
}

// A node may be taken out of the cluster while it is draining: then nobody's worker says any more when it may go.
func TestAMembershipThatEndsWaitsForNoDrain(t *testing.T) {
	n := newEndingNode(t)
	defer n.occupy(100)()
	must(t, n.m.ending.EndNode(t.Context(), false))
	eventually(t, "the cluster knows", func() bool { return n.get(model.HANodePrefix+"n1") != "" })
	n.m.cancel()
	over := make(chan struct{})
	go func() { n.m.ending.wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Fatal("the drain goes on")
	}
}

func TestNoGuestIsTakenForAnOrdinaryOneWhileNobodyKnows(t *testing.T) {
	n := newEndingNode(t)
	ordinary := func(id model.VMID) bool { return n.m.ending.ordinary()(id) }
	if ordinary(100) || !ordinary(300) {
		t.Errorf("got %v for a resource, %v for an ordinary guest", ordinary(100), ordinary(300))
	}
	n.put(model.ProtectedPrefix+"100", "{")
	if ordinary(100) || ordinary(300) {
		t.Errorf("with a record that cannot be read: got %v for a resource, %v for an ordinary guest", ordinary(100), ordinary(300))
	}
}

// Without a quorum the word cannot be written, and the lease cannot be given back: it ends by itself.
func TestANodeWithoutAQuorumEndsWhenItsLeaseIsOver(t *testing.T) {
	n := newEndingNode(t)
	n.m.worker.mu.Lock()
	n.m.worker.leave = leave{}
	n.m.worker.mu.Unlock()
	n.st.setQuorum(false)
	start := time.Now()
	must(t, n.m.ending.DrainNode(t.Context(), false))
	if took := time.Since(start); took < shortLease().TakeAfter()-time.Second || n.live().Left {
		t.Errorf("after %v, left %v", took, n.live().Left)
	}
}

// The word is committed, and then the node is cut off: no view ever shows it the revision of its own word.
func TestANodeThatLosesTheQuorumAfterItsWordEndsAllTheSame(t *testing.T) {
	n := newEndingNode(t)
	n.st.setQuorum(false)
	upid, err := n.a.tasks.Start("nodeshutdown", "n1", func(ctx context.Context, task *task.Task) error {
		return n.m.ending.awaitWorker(ctx, 1<<40, false, task)
	})
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), shortLease().TakeAfter()+10*time.Second)
	defer cancel()
	must(t, n.a.tasks.Wait(ctx, upid))
}
