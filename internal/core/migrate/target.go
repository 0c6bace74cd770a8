package migrate

import (
	"fmt"
	"time"
)

// Target is the state of the side that gets the guest.
type Target struct {
	// Limit is how long it waits for the memory, from the start of QEMU on. The
	// source gives up earlier; this is for a source that nobody hears of again.
	Limit time.Duration
	Phase Phase
	// Reason is why the migration does not go on; empty while it does.
	Reason string

	since time.Duration
}

// Step is the target's machine; see Source.Step.
func (t Target) Step(now time.Duration, ev Event) (Target, []Action) {
	switch t.Phase {
	case PhaseDone:
		return t, nil
	case PhaseSettle:
		if e, ok := ev.(Settled); ok {
			return t.finish(e.Verdict == VerdictHere, t.Reason)
		}
		return t, nil
	case PhaseOwnership:
		return t.owning(now, ev)
	case PhaseCleanup:
		return t.starting(now, ev)
	case PhaseCheck, PhaseIntent, PhasePrepare, PhaseSetup, PhasePrecopy, PhaseSwitchover:
		// under way: the event decides
	}
	switch e := ev.(type) {
	case Begin:
		return t.enter(PhasePrepare, now, Start{})
	case Done:
		return t.enter(PhasePrecopy, now)
	case Failed:
		return t.fail(now, e.Reason)
	case Gone:
		return t.fail(now, "QEMU on the target ended during the migration")
	case Abort:
		return t.fail(now, e.Reason)
	case Migration:
		return t.migration(now, e)
	case Decided:
		if e.Fate != Pending {
			return t.fail(now, "the source called the migration off")
		}
	case Tick:
		if now-t.since >= t.Limit {
			return t.fail(now, fmt.Sprintf("the memory did not arrive within %s", t.Limit))
		}
	}
	return t, nil
}

func (t Target) enter(p Phase, now time.Duration, actions ...Action) (Target, []Action) {
	t.Phase, t.since = p, now
	return t, actions
}

func (t Target) fail(now time.Duration, reason string) (Target, []Action) {
	t.Reason = reason
	return t.enter(PhaseSettle, now, report("giving the migration up: %s", reason), Settle{})
}

func (t Target) migration(now time.Duration, m Migration) (Target, []Action) {
	switch m.Status {
	case "completed":
		return t.enter(PhaseOwnership, now, Commit{})
	case "failed", "cancelled":
		reason := "the target could not load the guest"
		if m.Reason != "" {
			reason += ": " + m.Reason
		}
		return t.fail(now, reason)
	}
	return t, nil
}

// owning waits for the store alone: whatever else happens now, its answer decides.
func (t Target) owning(now time.Duration, ev Event) (Target, []Action) {
	e, ok := ev.(Decided)
	switch {
	case !ok || e.Fate == Pending:
		return t, nil
	case e.Fate == Mine:
		return t.enter(PhaseCleanup, now, Continue{})
	default:
		return t.fail(now, "the source took the guest back")
	}
}

// starting: the guest is this node's own, what is left is to let it run.
func (t Target) starting(now time.Duration, ev Event) (Target, []Action) {
	switch e := ev.(type) {
	case Done:
		u, actions := t.finish(true, "")
		return u, append([]Action{Announce{}}, actions...)
	case Failed:
		t.Reason = e.Reason
		return t.enter(PhaseSettle, now, report("the guest belongs to this node now but does not continue: %s", e.Reason), Settle{})
	}
	return t, nil
}

func (t Target) finish(ok bool, reason string) (Target, []Action) {
	t.Phase = PhaseDone
	return t, []Action{Finish{OK: ok, Reason: reason}}
}
