package ha_test

import (
	"slices"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// workerTalk is a dialogue with n1's worker, which has a quorum and a lease. Statuses are
// compared only in the tests about them.
type workerTalk struct {
	dialogue
	v        ha.LocalView
	statuses bool
}

func talkToWorker(t *testing.T) *workerTalk {
	p := ha.DefaultParams()
	p.InFlight = 0 // but where a test is about it
	w := ha.NewWorker("n1", p)
	d := &workerTalk{v: ha.LocalView{
		Revision: 1000, Quorate: true, LeaseValid: true,
		Resources: map[model.VMID]pveconf.HAState{}, Protected: map[model.VMID]ha.Protected{}, Intents: map[model.VMID]ha.Intent{},
		Statuses: map[model.VMID]ha.StatusRecord{}, Fenced: map[string]uint64{}, Processes: map[model.VMID]ha.Process{}, Busy: map[model.VMID]string{},
	}}
	d.dialogue = dialogue{t: t, step: func(now time.Duration, ev ha.Event) []ha.Action {
		var out []ha.Action
		w, out = w.Step(now, ev)
		if d.statuses {
			return out
		}
		return slices.DeleteFunc(out, func(a ha.Action) bool { _, ok := a.(ha.SetStatus); return ok })
	}}
	return d
}

// guest puts a guest under n1's path, acknowledged, and not running.
func (d *workerTalk) guest(id model.VMID, state pveconf.HAState) {
	d.v.Guests = append(d.v.Guests, ha.Guest{VMID: id, Node: "n1", Revision: int64(id), MemoryMiB: 512, Storages: []string{"nas"}})
	d.v.Resources[id] = state
	d.v.Protected[id] = ha.Protected{Protected: model.Protected{Node: "n1"}, Revision: int64(id) + 100}
}

func (d *workerTalk) runs(id model.VMID) { d.v.Processes[id] = ha.Process{Guarded: true} }

// ends lets a guest's QEMU end, and compares what the worker does at once.
func (d *workerTalk) ends(id model.VMID, want ...string) {
	d.t.Helper()
	delete(d.v.Processes, id)
	d.says(ha.ProcessGone{VMID: id}, want...)
}

func (d *workerTalk) view(want ...string) {
	d.t.Helper()
	v := d.v
	v.Guests = slices.Clone(v.Guests)
	v.Resources, v.Protected, v.Intents, v.Statuses = clone(v.Resources), clone(v.Protected), clone(v.Intents), clone(v.Statuses)
	v.Fenced, v.Processes, v.Busy = clone(v.Fenced), clone(v.Processes), clone(v.Busy)
	d.says(v, want...)
}

// A worker that is alone with its guest gets no view but when it asks.
func TestWorkerProtectsItsGuestsAgainWhenADisarmingEndsByItself(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.runs(100)
	d.v.Unix, d.v.Mode = 1000, ha.Mode{Disarm: ha.DisarmFreeze, Until: 1010}
	d.view("unacknowledge vm:100 [prot 200]", "wake 10s")
	d.done("unacknowledge vm:100", 1001, "wake 10s")
	delete(d.v.Protected, 100)
	d.v.Revision, d.v.Processes[100] = 1001, ha.Process{}
	d.view("wake 10s")
	d.now, d.v.Unix = 10*time.Second, 1010
	d.view("acknowledge vm:100 [prot 0 conf 100] written false")
}

// started answers the start of a guest and shows it running.
func (d *workerTalk) started(id model.VMID) {
	d.t.Helper()
	d.done("start "+id.SID(), 0)
	d.runs(id)
	d.view()
}

func TestWorkerStartsAGuestThatShouldRun(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.view("start vm:100 attempt 1")
	d.reason("start", "start vm:100, attempt 1: the requested state is started")
	d.view() // under way
	d.started(100)
	d.says(ha.Tick{})
}

func TestWorkerWritesPillsForFencedNodesBeforeAStart(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.v.Fenced["n3"] = 7
	d.v.Fenced["n2"] = 5
	d.view("start vm:100 attempt 1 pill n2:5 pill n3:7")
}

func TestWorkerRestartsAGuestWhoseQEMUDiedAtOnce(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.runs(100)
	d.view()
	d.now = time.Hour
	d.ends(100, "start vm:100 attempt 1")
	d.reason("start", "start vm:100, attempt 1: its QEMU ended; it is started again")
}

func TestWorkerRestartsAGuestThatShutItselfDown(t *testing.T) {
	// A shutdown from inside looks the same from here: the guest is gone and should run.
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.runs(100)
	d.view()
	delete(d.v.Processes, 100)
	d.view("start vm:100 attempt 1")
}

func TestWorkerWaitsLongerEachTimeAGuestDies(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.view("start vm:100 attempt 1")
	d.started(100)
	waits := []time.Duration{0, 1, 2, 4, 8, 16, 30, 30}
	for i, wait := range waits {
		d.now += 100 * time.Millisecond
		start := "start vm:100 attempt " + string(rune('2'+i))
		if wait == 0 {
			d.ends(100, start)
		} else {
			due := d.now + wait*time.Second
			d.ends(100, "wake "+due.String())
			d.now = due - time.Millisecond
			d.says(ha.Tick{}, "wake "+due.String())
			d.now = due
			d.says(ha.Tick{}, start)
		}
		d.started(100)
	}
	d.now += time.Minute // it ran stably: the count begins anew
	d.ends(100, "start vm:100 attempt 1")
}

func TestWorkerRetriesALockedImageFourTimesASecondForHalfAMinute(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.now = time.Minute
	d.view("start vm:100 attempt 1")
	for i := 2; i <= 121; i++ {
		due := d.now + 250*time.Millisecond
		d.failed("start", ha.FailLocked, "image in use", "wake "+due.String())
		d.now = due
		actions := d.step(d.now, ha.Tick{})
		if len(actions) != 1 || actions[0].(ha.Start).Attempt != i {
			t.Fatalf("at %s: got %v, want attempt %d", d.now, actions, i)
		}
		d.last = actions
	}
	if d.now != 90*time.Second {
		t.Fatalf("it is %s, want 90s", d.now)
	}
	d.failed("start", ha.FailLocked, "image in use", "start vm:100 attempt 122")
	d.failed("start", ha.FailLocked, "image in use", "wake 1m31s")
	d.now = 91 * time.Second
	d.says(ha.Tick{}, "start vm:100 attempt 123")
	d.failed("start", ha.FailLocked, "image in use", "wake 1m33s")
}

func TestWorkerBacksOffWhenAStartFails(t *testing.T) {
	d := talkToWorker(t)
	d.statuses = true
	d.guest(100, pveconf.HAStarted)
	d.view("status vm:100 starting on n1", "start vm:100 attempt 1")
	d.done("status", 1001)
	d.v.Revision, d.v.Statuses[100] = 1001, ha.StatusRecord{Status: ha.Status{State: ha.StatusStarting, Node: "n1"}, Revision: 1001}
	d.view()
	d.failed("start", ha.FailOther, "no bridge vmbr0", "status vm:100 error on n1", "start vm:100 attempt 2")
	d.reason("status", "vm:100 is error: start failed: no bridge vmbr0")
	d.failed("start", ha.FailOther, "no bridge vmbr0", "wake 1s")
}

func TestWorkerTriesSoonAgainWhenTheViewWasStale(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.view("start vm:100 attempt 1")
	d.failed("start", ha.FailConflict, "its file is not under this node's path", "wake 250ms")
	d.v.Guests = nil
	d.now = time.Second
	d.view()
}

func TestWorkerStopsAGuestThatShouldNotRun(t *testing.T) {
	for _, state := range []pveconf.HAState{pveconf.HAStopped, pveconf.HADisabled} {
		t.Run(string(state), func(t *testing.T) {
			d := talkToWorker(t)
			d.guest(100, state)
			d.runs(100)
			d.view("stop vm:100")
			d.view()
			d.ends(100)
			d.done("stop", 0)
			d.view()
		})
	}
}

func TestWorkerLeavesAnIgnoredGuestAlone(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAIgnored)
	delete(d.v.Protected, 100)
	d.view()
	d.v.Processes[100] = ha.Process{}
	d.view()
}

func TestWorkerPutsAGuestUnderTheGuardBeforeItStartsIt(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	delete(d.v.Protected, 100)
	d.view("acknowledge vm:100 [prot 0 conf 100] written false")
	d.done("acknowledge", 1001)
	d.view() // does not show the record yet
	d.v.Revision, d.v.Protected[100] = 1001, ha.Protected{Protected: model.Protected{Node: "n1"}, Revision: 1001}
	d.view("start vm:100 attempt 1")
}

func TestWorkerPutsARunningGuestUnderTheGuard(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.v.Protected[100] = ha.Protected{Protected: model.Protected{Node: "n2"}, Revision: 77} // it came by an offline move
	d.v.Processes[100] = ha.Process{}
	d.view("acknowledge vm:100 [prot 77 conf 100] written false")
}

func TestWorkerTellsAGuardThatForgotAGuest(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.v.Processes[100] = ha.Process{}
	d.view("acknowledge vm:100 [prot 200 conf 100] written true")
	d.failed("acknowledge", ha.FailOther, "no guard", "acknowledge vm:100 [prot 200 conf 100] written true")
	d.failed("acknowledge", ha.FailOther, "no guard", "wake 1s")
}

func TestWorkerReportsAGuardThatFailsUntilItDoesNot(t *testing.T) {
	d := talkToWorker(t)
	d.statuses = true
	d.guest(100, pveconf.HAStarted)
	delete(d.v.Protected, 100)
	d.v.Statuses[100] = ha.StatusRecord{Status: ha.Status{State: ha.StatusStarting, Node: "n1"}, Revision: 900}
	d.view("acknowledge vm:100 [prot 0 conf 100] written false")
	d.failed("acknowledge", ha.FailOther, "no guard", "status vm:100 error on n1", "acknowledge vm:100 [prot 0 conf 100] written false")
	d.reason("status", "vm:100 is error: putting it under the guard failed: no guard")
	d.done("status", 1001)
	d.done("acknowledge", 1002)
	d.v.Revision, d.v.Protected[100] = 1002, ha.Protected{Protected: model.Protected{Node: "n1"}, Revision: 1002}
	d.v.Statuses[100] = ha.StatusRecord{Status: ha.Status{State: ha.StatusError, Node: "n1", Reason: "putting it under the guard failed: no guard"}, Revision: 1001}
	d.view("status vm:100 starting on n1", "start vm:100 attempt 1")
	d.reason("status", "vm:100 is starting: ")
}

func TestWorkerTakesFromTheGuardWhatIsNoHAResource(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	delete(d.v.Resources, 100)
	d.runs(100)
	d.view("unacknowledge vm:100 [prot 200]")
	d.done("unacknowledge", 1001)
	d.v.Revision, d.v.Processes[100] = 1001, ha.Process{}
	delete(d.v.Protected, 100)
	d.view()
}

// The record is deleted first, so it does not tell that the guard has not heard of it.
func TestWorkerTellsTheGuardAgainWhenItDidNotAnswer(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAIgnored)
	d.runs(100)
	d.view("unacknowledge vm:100 [prot 200]")
	d.failed("unacknowledge vm:100", ha.FailOther, "the guard does not answer", "unacknowledge vm:100 [prot 200]")
	d.failed("unacknowledge vm:100", ha.FailOther, "the guard does not answer", "wake 1s")
	delete(d.v.Protected, 100)
	d.now = second
	d.view("unacknowledge vm:100 [prot 0]")
	d.done("unacknowledge vm:100", 1001)
	d.v.Revision, d.v.Processes[100] = 1001, ha.Process{}
	d.view()
}

func TestWorkerDoesNotProtectAGuestThatOnlyThisNodeHas(t *testing.T) {
	d := talkToWorker(t)
	d.statuses = true
	d.guest(100, pveconf.HAStarted)
	d.v.Guests[0].Local = "local:100/vm-100-disk-0.qcow2"
	d.v.Fenced["n3"] = 7
	delete(d.v.Protected, 100)
	d.view("status vm:100 starting on n1", "start vm:100 attempt 1")
	d.reason("status", "vm:100 is starting: without protection: only n1 has local:100/vm-100-disk-0.qcow2")
	d.v.Protected[100] = ha.Protected{Protected: model.Protected{Node: "n1"}, Revision: 200}
	d.done("start", 0)
	d.runs(100)
	d.view("unacknowledge vm:100 [prot 200]")
}

func TestWorkerDoesNothingWithoutQuorumOrLeaseAndLooksAgain(t *testing.T) {
	for _, lost := range []string{"quorum", "lease"} {
		t.Run(lost, func(t *testing.T) {
			d := talkToWorker(t)
			d.guest(100, pveconf.HAStarted)
			d.guest(101, pveconf.HAStopped)
			d.guest(102, pveconf.HAStarted)
			delete(d.v.Protected, 102)
			d.runs(100)
			d.runs(101)
			d.v.Quorate, d.v.LeaseValid = lost != "quorum", lost != "lease"
			d.view("wake 1s")
			d.ends(100, "wake 1s")
			d.now = time.Hour
			d.says(ha.Tick{}, "wake 1h0m1s")
			d.v.Quorate, d.v.LeaseValid = true, true
			d.view("start vm:100 attempt 1", "stop vm:101", "acknowledge vm:102 [prot 0 conf 102] written false")
		})
	}
}

func TestWorkerLeavesAGuestThatMigratesAlone(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.runs(100)
	d.view()
	d.v.Intents[100] = ha.Intent{Revision: 300, Intent: model.Intent{VMID: 100, Source: "n1", Target: "n2"}}
	d.view()
	d.ends(100)
	d.view()
	delete(d.v.Intents, 100) // decided for n1, whose QEMU is gone
	d.view("start vm:100 attempt 1")
	d.reason("start", "start vm:100, attempt 1: the requested state is started") // no failure of the guest
}

func TestWorkerLeavesAGuestThatATaskHasInHandAlone(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.runs(100)
	d.v.Busy[100] = "qmreboot"
	d.view()
	d.ends(100)
	d.v.Processes[100] = ha.Process{State: ha.ProcessIncoming}
	d.view()
	d.runs(100)
	delete(d.v.Busy, 100)
	d.view()
}

func TestWorkerKillsALeftoverIncomingQEMUBeforeItStartsTheGuest(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.v.Processes[100] = ha.Process{State: ha.ProcessIncoming, Guarded: true}
	d.view("discard vm:100 incoming true")
	d.ends(100)
	d.done("discard", 0)
	d.view("start vm:100 attempt 1")
}

func TestWorkerKillsAQEMUWhoseGuestIsElsewhere(t *testing.T) {
	d := talkToWorker(t)
	d.runs(100)
	d.runs(101)
	d.v.Intents[101] = ha.Intent{Intent: model.Intent{VMID: 101, Source: "n2", Target: "n1"}}
	d.view("discard vm:100 incoming false")
	d.failed("discard", ha.FailConflict, "its file is under this node's path", "wake 250ms")
	d.guest(100, pveconf.HAStarted) // the view was older than the guest
	d.now = time.Second
	d.view()
}

func TestWorkerReportsWhatAGuestDoes(t *testing.T) {
	d := talkToWorker(t)
	d.statuses = true
	revision := int64(1000)
	shows := func(state ha.StatusState, reason string) {
		t.Helper()
		revision++
		d.reason("status", "vm:100 is "+string(state)+": "+reason)
		d.done("status", revision)
		d.v.Revision = revision
		d.v.Statuses[100] = ha.StatusRecord{Status: ha.Status{State: state, Node: "n1", Reason: reason}, Revision: revision}
	}
	d.v.Statuses[100] = ha.StatusRecord{Status: ha.Status{State: ha.StatusFence, Node: "n3"}, Revision: 900}
	d.guest(100, pveconf.HAStarted)
	d.view("status vm:100 starting on n1", "start vm:100 attempt 1")
	shows(ha.StatusStarting, "")
	d.view()
	d.done("start", 0)
	d.runs(100)
	d.view("status vm:100 started on n1")
	shows(ha.StatusStarted, "")
	d.v.Intents[100] = ha.Intent{Intent: model.Intent{VMID: 100, Source: "n1", Target: "n2"}}
	d.view("status vm:100 migrate on n1")
	shows(ha.StatusMigrate, "from n1 to n2")
	delete(d.v.Intents, 100)
	d.v.Resources[100] = pveconf.HAStopped
	d.view("status vm:100 request_stop on n1", "stop vm:100")
	shows(ha.StatusStopping, "")
	d.ends(100)
	d.done("stop", 0)
	d.view("status vm:100 stopped on n1")
	shows(ha.StatusStopped, "")
	d.view()
}

func TestWorkerForgetsFailuresWhenThePersonAsksAnew(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.view("start vm:100 attempt 1")
	d.failed("start", ha.FailOther, "no image", "start vm:100 attempt 2")
	d.failed("start", ha.FailOther, "no image", "wake 1s")
	d.v.Resources[100] = pveconf.HAStopped
	d.view()
	d.v.Resources[100] = pveconf.HAStarted
	d.view("start vm:100 attempt 1")
}

func TestAGuestThatEndedStartsWhenItsLastWritesAreOver(t *testing.T) {
	w := ha.NewWorker("n1", ha.DefaultParams())
	d := talkToWorker(t)
	d.step = func(now time.Duration, ev ha.Event) (actions []ha.Action) {
		w, actions = w.Step(now, ev)
		return actions
	}
	d.guest(100, pveconf.HAStarted)
	d.runs(100)
	d.v.Statuses[100] = ha.StatusRecord{Status: ha.Status{State: ha.StatusStarted, Node: "n1"}, Revision: 9}
	d.view()
	d.now = time.Minute
	d.ends(100, "status vm:100 starting on n1", "wake 1m0.5s")
	d.now += 500 * time.Millisecond
	d.says(ha.Tick{}, "start vm:100 attempt 1")
}
