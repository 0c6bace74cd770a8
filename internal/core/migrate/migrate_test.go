package migrate

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// stepper is either machine.
type stepper func(now time.Duration, ev Event) (phase Phase, actions []Action)

func sourceStepper(c Config) stepper {
	s := Source{Config: c}
	return func(now time.Duration, ev Event) (Phase, []Action) {
		var actions []Action
		s, actions = s.Step(now, ev)
		return s.Phase, actions
	}
}

func targetStepper() stepper {
	t := Target{Limit: time.Minute}
	return func(now time.Duration, ev Event) (Phase, []Action) {
		var actions []Action
		t, actions = t.Step(now, ev)
		return t.Phase, actions
	}
}

// line prints what a step did, as in "precopy: SetDowntime{Downtime:200ms}"; reports are left out.
func line(p Phase, actions []Action) string {
	words := []string{string(p) + ":"}
	for _, a := range actions {
		if _, ok := a.(Report); !ok {
			words = append(words, strings.TrimPrefix(fmt.Sprintf("%+v", named{a}), "migrate."))
		}
	}
	return strings.Join(words, " ")
}

type named struct{ a Action }

func (n named) String() string {
	if f, ok := n.a.(Finish); ok {
		return fmt.Sprintf("Finish(%v)", f.OK)
	}
	return strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T%+v", n.a, n.a), "migrate."), "{}")
}

// talk is one line of a dialogue: at a time, an event, and what comes of it.
type talk struct {
	at   time.Duration
	ev   Event
	want string
}

func converse(t *testing.T, step stepper, dialogue []talk) {
	t.Helper()
	for i, l := range dialogue {
		if got := line(step(l.at, l.ev)); got != l.want {
			t.Errorf("line %d, %T%+v:\n got %s\nwant %s", i, l.ev, l.ev, got, l.want)
		}
	}
}

// toPrecopy is how every migration begins.
func toPrecopy() []talk {
	return []talk{
		{0, Begin{}, "check: Check"},
		{0, Done{}, "intent: WriteIntent"},
		{0, Done{}, "prepare: Prepare"},
		{0, Done{}, "setup: Transfer{Downtime:100ms Bandwidth:0}"},
		{0, Done{}, "precopy:"},
	}
}

const ms = time.Millisecond

func TestSourceDialogues(t *testing.T) {
	for name, d := range map[string][]talk{
		"a guest moves": {
			{1 * ms, Progress{Round: 1, Sent: 10, Remaining: 1 << 20}, "precopy:"},
			{2 * ms, Stopped{}, "switchover:"},
			{3 * ms, Migration{Status: "device"}, "switchover:"},
			{4 * ms, Migration{Status: "completed"}, "ownership:"},
			{5 * ms, Decided{Theirs}, "cleanup: Remove"},
			{6 * ms, Done{}, "done: Finish(true)"},
			{7 * ms, Tick{}, "done:"},
		},
		"the store is faster than QEMU": {
			{2 * ms, Stopped{}, "switchover:"},
			{3 * ms, Decided{Theirs}, "cleanup: Remove"},
			{4 * ms, Migration{Status: "completed"}, "cleanup:"},
			{5 * ms, Failed{Reason: "tap is busy"}, "done: Finish(true)"},
		},
		"a cancel settles before QEMU hears of it": {
			{1 * ms, Cancel{}, "settle: Brake Settle"},
			{2 * ms, Migration{Status: "completed"}, "settle:"},
			{3 * ms, Cancel{}, "settle:"},
			{4 * ms, Settled{VerdictHere}, "done: Finish(false)"},
		},
		"a cancel that the target's transaction beat": {
			{1 * ms, Stopped{}, "switchover:"},
			{1 * ms, Cancel{}, "settle: Settle"},
			{4 * ms, Settled{VerdictMoved}, "done: Finish(true)"},
		},
		"it is too late to cancel when the memory is over": {
			{1 * ms, Migration{Status: "completed"}, "ownership:"},
			{2 * ms, Cancel{}, "ownership:"},
			{3 * ms, Decided{Theirs}, "cleanup: Remove"},
		},
		"QEMU fails": {
			{1 * ms, Migration{Status: "failed", Reason: "broken pipe"}, "settle: Brake Settle"},
			{2 * ms, Settled{VerdictHere}, "done: Finish(false)"},
		},
		"QEMU dies while copying": {
			{1 * ms, Gone{}, "settle: Brake Settle"},
			{2 * ms, Settled{VerdictStopped}, "done: Finish(false)"},
		},
		"QEMU dies after copying": {
			{1 * ms, Migration{Status: "completed"}, "ownership:"},
			{2 * ms, Gone{}, "ownership:"},
			{3 * ms, Decided{Theirs}, "cleanup: Remove"},
		},
		"the target gives up": {
			{1 * ms, Migration{Status: "completed"}, "ownership:"},
			{2 * ms, Decided{Mine}, "settle: Settle"},
			{3 * ms, Settled{VerdictHere}, "done: Finish(false)"},
		},
		"the target never takes the guest": {
			{1 * time.Second, Migration{Status: "completed"}, "ownership:"},
			{5 * time.Second, Tick{}, "ownership:"},
			{6 * time.Second, Tick{}, "settle: Settle"},
		},
		"the last bytes hang": {
			{1 * time.Second, Stopped{}, "switchover:"},
			{5 * time.Second, Tick{}, "switchover:"},
			{6 * time.Second, Tick{}, "settle: Settle"},
		},
		"nothing is copied any more": {
			{5 * time.Second, Progress{Round: 1, Sent: 10}, "precopy:"},
			{14 * time.Second, Progress{Round: 1, Sent: 10}, "precopy:"},
			{14 * time.Second, Tick{}, "precopy:"},
			{15 * time.Second, Tick{}, "settle: Brake Settle"},
		},
		"the quorum is lost while copying": {
			{1 * ms, NoQuorum{}, "settle: Brake Settle"},
		},
		"the quorum is lost at the end": {
			{1 * ms, Stopped{}, "switchover:"},
			{2 * ms, NoQuorum{}, "switchover:"},
			{3 * ms, Migration{Status: "completed"}, "ownership:"},
			{4 * ms, NoQuorum{}, "ownership:"},
		},
		"the target node is fenced": {
			{1 * ms, Failed{Reason: "node n2 was fenced"}, "settle: Brake Settle"},
		},
		"a guest that does not converge": {
			{1 * ms, Progress{Round: 9, Sent: 1}, "precopy:"},
			{2 * ms, Progress{Round: 10, Sent: 2}, "precopy: SetDowntime{Downtime:200ms}"},
			{3 * ms, Progress{Round: 14, Sent: 3}, "precopy:"},
			{4 * ms, Progress{Round: 15, Sent: 4}, "precopy: SetDowntime{Downtime:300ms}"},
			{5 * ms, Progress{Round: 20, Sent: 5}, "precopy: SetDowntime{Downtime:400ms}"},
			{6 * ms, Progress{Round: 25, Sent: 6}, "precopy: SetDowntime{Downtime:500ms}"},
			{7 * ms, Progress{Round: 99, Sent: 7}, "precopy:"},
			{599 * time.Second, Progress{Round: 999, Sent: 8}, "precopy:"},
			{600 * time.Second, Tick{}, "settle: Brake Settle"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			converse(t, sourceStepper(Defaults()), append(toPrecopy(), d...))
		})
	}
}

func TestSourceGivesUpBeforeCopying(t *testing.T) {
	for name, d := range map[string][]talk{
		"a failed check changes nothing":    {{0, Begin{}, "check: Check"}, {0, Failed{Reason: "no memory"}, "done: Finish(false)"}},
		"a cancelled check changes nothing": {{0, Begin{}, "check: Check"}, {0, Cancel{}, "done: Finish(false)"}},
		"a refused intent changes nothing": {
			{0, Begin{}, "check: Check"}, {0, Done{}, "intent: WriteIntent"}, {0, Failed{Reason: "busy"}, "done: Finish(false)"},
		},
		"an intent that may be written is settled": {
			{0, Begin{}, "check: Check"},
			{0, Done{}, "intent: WriteIntent"},
			{0, Failed{Reason: "no quorum", Uncertain: true}, "settle: Settle"},
		},
		"a target that cannot prepare": {
			{0, Begin{}, "check: Check"},
			{0, Done{}, "intent: WriteIntent"},
			{0, Done{}, "prepare: Prepare"},
			{0, Failed{Reason: "storage missing"}, "settle: Settle"},
			{0, Settled{VerdictHere}, "done: Finish(false)"},
		},
	} {
		t.Run(name, func(t *testing.T) { converse(t, sourceStepper(Defaults()), d) })
	}
}

func TestTargetDialogues(t *testing.T) {
	for name, d := range map[string][]talk{
		"a guest arrives": {
			{1 * ms, Migration{Status: "active"}, "precopy:"},
			{2 * ms, Migration{Status: "completed"}, "ownership: Commit"},
			{3 * ms, Decided{Mine}, "cleanup: Continue"},
			{4 * ms, Done{}, "done: Announce Finish(true)"},
		},
		"the source was faster": {
			{2 * ms, Migration{Status: "completed"}, "ownership: Commit"},
			{3 * ms, Decided{Theirs}, "settle: Settle"},
			{4 * ms, Settled{VerdictMoved}, "done: Finish(false)"},
		},
		"once the transaction is on its way the store alone decides": {
			{2 * ms, Migration{Status: "completed"}, "ownership: Commit"},
			{3 * ms, Abort{Reason: "cancelled"}, "ownership:"},
			{4 * ms, Gone{}, "ownership:"},
			{5 * ms, Failed{Reason: "the source was fenced"}, "ownership:"},
			{2 * time.Minute, Tick{}, "ownership:"},
			{2 * time.Minute, Decided{Mine}, "cleanup: Continue"},
		},
		"the source calls it off":     {{1 * ms, Decided{Theirs}, "settle: Settle"}},
		"the source's agent says so":  {{1 * ms, Abort{Reason: "cancelled"}, "settle: Settle"}},
		"the memory breaks off":       {{1 * ms, Migration{Status: "failed"}, "settle: Settle"}},
		"QEMU dies":                   {{1 * ms, Gone{}, "settle: Settle"}},
		"the source node is fenced":   {{1 * ms, Failed{Reason: "node n1 was fenced"}, "settle: Settle"}},
		"the source is heard no more": {{time.Minute - 1, Tick{}, "precopy:"}, {time.Minute, Tick{}, "settle: Settle"}},
		"QEMU refuses to continue": {
			{2 * ms, Migration{Status: "completed"}, "ownership: Commit"},
			{3 * ms, Decided{Mine}, "cleanup: Continue"},
			{4 * ms, Failed{Reason: "image locked"}, "settle: Settle"},
			{5 * ms, Settled{VerdictHere}, "done: Finish(true)"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			begin := []talk{{0, Begin{}, "prepare: Start"}, {0, Done{}, "precopy:"}}
			converse(t, targetStepper(), append(begin, d...))
		})
	}
}

func TestResolveDecides(t *testing.T) {
	src := Facts{Role: RoleSource, WasRunning: true, Grace: time.Second}
	tgt := Facts{Role: RoleTarget, WasRunning: true, Live: true}
	for _, c := range []struct {
		name string
		f    func() Facts
		want Step
	}{
		{"source, agent restarted while copying", with(src, func(f *Facts) { f.Intent, f.Owner, f.QEMU, f.Migration = true, true, "running", "active" }), StepRelease},
		{"source, completed, target may still come", with(src, func(f *Facts) { f.Intent, f.Owner, f.QEMU, f.Migration = true, true, "postmigrate", "completed" }), StepWait},
		{"source, completed, target did not come", with(src, func(f *Facts) {
			f.Intent, f.Owner, f.QEMU, f.Migration, f.Waited = true, true, "postmigrate", "completed", time.Second
		}), StepRelease},
		{"source, node was off", with(src, func(f *Facts) { f.Intent, f.Owner = true, true }), StepRelease},
		{"source, released, still copying", with(src, func(f *Facts) { f.Owner, f.Proven, f.QEMU, f.Migration = true, true, "running", "active" }), StepCancel},
		{"source, released, sending the rest", with(src, func(f *Facts) { f.Owner, f.Proven, f.QEMU, f.Migration = true, true, "finish-migrate", "device" }), StepCancel},
		{"source, released, cancelling", with(src, func(f *Facts) { f.Owner, f.Proven, f.QEMU, f.Migration = true, true, "running", "cancelling" }), StepWait},
		{"source, released, cancelled", with(src, func(f *Facts) { f.Owner, f.Proven, f.QEMU, f.Migration = true, true, "running", "cancelled" }), StepNothing},
		{"source, released, standing still", with(src, func(f *Facts) { f.Owner, f.Proven, f.QEMU, f.Migration = true, true, "postmigrate", "completed" }), StepResume},
		{"source, released, was paused before", with(src, func(f *Facts) {
			f.Owner, f.Proven, f.QEMU, f.Migration, f.WasRunning = true, true, "postmigrate", "completed", false
		}), StepNothing},
		{"source, file came back from elsewhere", with(src, func(f *Facts) { f.Owner, f.QEMU, f.Migration = true, "postmigrate", "completed" }), StepDestroy},
		{"source, refused too often", with(src, func(f *Facts) {
			f.Owner, f.Proven, f.QEMU, f.Migration, f.Refused = true, true, "postmigrate", "completed", maxRefused
		}), StepDestroy},
		{"source, moved", with(src, func(f *Facts) { f.QEMU, f.Migration = "postmigrate", "completed" }), StepDestroy},
		{"source, moved and gone", with(src, func(*Facts) {}), StepNothing},
		{"target, arriving", with(tgt, func(f *Facts) { f.Intent, f.QEMU, f.Migration = true, "inmigrate", "active" }), StepWait},
		{"target, arriving, given up", with(tgt, func(f *Facts) { f.Intent, f.QEMU, f.Migration, f.GiveUp = true, "inmigrate", "active", true }), StepRelease},
		{"target, broke off", with(tgt, func(f *Facts) { f.Intent, f.QEMU, f.Migration = true, "inmigrate", "failed" }), StepRelease},
		{"target, arrived", with(tgt, func(f *Facts) { f.Intent, f.QEMU, f.Migration = true, "paused", "completed" }), StepCommit},
		{"target, arrived, source gone", with(tgt, func(f *Facts) { f.Intent, f.QEMU, f.Migration, f.GiveUp = true, "paused", "completed", true }), StepCommit},
		{"target, arrived, fenced meanwhile", with(tgt, func(f *Facts) { f.Intent, f.QEMU, f.Migration, f.Live = true, "paused", "completed", false }), StepRelease},
		{"target, process died", with(tgt, func(f *Facts) { f.Intent = true }), StepRelease},
		{"target, called off", with(tgt, func(f *Facts) { f.QEMU, f.Migration = "paused", "completed" }), StepDestroy},
		{"target, owner, not continued", with(tgt, func(f *Facts) { f.Owner, f.Proven, f.QEMU, f.Migration = true, true, "paused", "completed" }), StepResume},
		{"target, owner by another way", with(tgt, func(f *Facts) { f.Owner, f.QEMU, f.Migration = true, "paused", "completed" }), StepDestroy},
		{"target, owner, never arrived", with(tgt, func(f *Facts) { f.Owner, f.QEMU, f.Migration = true, "inmigrate", "setup" }), StepDestroy},
		{"target, owner, running", with(tgt, func(f *Facts) { f.Owner, f.Proven, f.QEMU, f.Migration = true, true, "running", "completed" }), StepNothing},
		{"target, owner, process died", with(tgt, func(f *Facts) { f.Owner, f.Proven = true, true }), StepNothing},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Resolve(c.f())
			if diff := cmp.Diff(c.want, got.Step); diff != "" {
				t.Errorf("-want +got:\n%s%s", diff, got.Reason)
			}
			if got.Reason == "" {
				t.Error("no reason")
			}
		})
	}
}

func with(f Facts, change func(*Facts)) func() Facts {
	return func() Facts {
		change(&f)
		return f
	}
}

// Whatever the facts: nobody continues who is not the owner, who still has an
// intent, or whose memory is not proved; and a running guest is only ended where it is another node's.
func TestResolveNeverContinuesWithoutProof(t *testing.T) {
	bools := []bool{false, true}
	states := []string{"", "running", "paused", "inmigrate", "finish-migrate", "postmigrate", "io-error"}
	migrations := []string{"", "setup", "active", "device", "completed", "failed", "cancelling", "cancelled"}
	n := 0
	for _, role := range []Role{RoleSource, RoleTarget} {
		for bits := range 1 << 6 {
			for _, q := range states {
				for _, m := range migrations {
					bit := func(i int) bool { return bools[bits>>i&1] }
					f := Facts{
						Role: role, QEMU: q, Migration: m,
						Intent: bit(0), Owner: bit(1), Proven: bit(2), Live: bit(3), GiveUp: bit(4), WasRunning: bit(5),
					}
					d := Resolve(f)
					n++
					mayGoOn := f.Owner && !f.Intent && (f.Proven || role == RoleSource && q != "postmigrate")
					if d.Step == StepResume && !mayGoOn {
						t.Errorf("%+v: resume", f)
					}
					if d.Step == StepCommit && !(f.Intent && f.Live && m == "completed" && q != "") {
						t.Errorf("%+v: commit", f)
					}
					if d.Step == StepDestroy && q == "running" && f.Owner {
						t.Errorf("%+v: destroys a running guest of this node", f)
					}
					if d.Step == StepCancel && f.Intent {
						t.Errorf("%+v: cancels before the intent is gone", f)
					}
				}
			}
		}
	}
	t.Logf("%d combinations", n)
}
