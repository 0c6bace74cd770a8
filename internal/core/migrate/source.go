package migrate

import (
	"fmt"
	"time"
)

// Source is the state of the side that has the guest.
type Source struct {
	Config Config
	Phase  Phase
	// Downtime is the limit now in force.
	Downtime time.Duration
	// Reason is why the migration does not go on; empty while it does.
	Reason string

	since     time.Duration // when the phase began
	nextRaise int           // the round at which the limit grows
	sent      int64         // bytes copied, and when that number last grew
	grew      time.Duration
}

// Step is the source's machine. now is any clock that does not jump; it returns the
// next state and what to do, in order. After Finish no event changes anything.
func (s Source) Step(now time.Duration, ev Event) (Source, []Action) {
	switch s.Phase {
	case PhaseDone:
		return s, nil
	case PhaseSettle:
		return s.settling(ev)
	case PhaseCleanup:
		return s.cleaning(ev)
	case PhaseCheck, PhaseIntent, PhasePrepare, PhaseSetup, PhasePrecopy, PhaseSwitchover, PhaseOwnership:
		// under way: the event decides
	}
	switch e := ev.(type) {
	case Begin:
		return s.enter(PhaseCheck, now, Check{})
	case Cancel:
		return s.cancel(now)
	case Failed:
		if s.Phase == PhaseIntent && !e.Uncertain {
			return s.finish(false, e.Reason)
		}
		return s.fail(now, e.Reason)
	case NoQuorum:
		if s.Phase != PhasePrecopy {
			return s, nil
		}
		return s.fail(now, "the cluster lost its quorum, so the guest cannot change its node")
	case Gone:
		return s.gone(now)
	case Done:
		return s.done(now)
	case Progress:
		return s.progress(now, e)
	case Stopped:
		return s.stopped(now)
	case Migration:
		return s.migration(now, e)
	case Decided:
		return s.decided(now, e.Fate)
	case Tick:
		return s.tick(now)
	}
	return s, nil
}

func (s Source) enter(p Phase, now time.Duration, actions ...Action) (Source, []Action) {
	s.Phase, s.since = p, now
	return s, actions
}

// done goes from one prepared step to the next.
func (s Source) done(now time.Duration) (Source, []Action) {
	switch s.Phase {
	case PhaseCheck:
		return s.enter(PhaseIntent, now, WriteIntent{})
	case PhaseIntent:
		return s.enter(PhasePrepare, now, Prepare{})
	case PhasePrepare:
		s.Downtime = s.Config.Downtime
		s.nextRaise = s.Config.PatientRounds
		return s.enter(PhaseSetup, now, Transfer{Downtime: s.Downtime, Bandwidth: s.Config.Bandwidth})
	case PhaseSetup:
		s.grew = now
		return s.enter(PhasePrecopy, now)
	case PhasePrecopy, PhaseSwitchover, PhaseOwnership, PhaseCleanup, PhaseSettle, PhaseDone:
		// what ends these has an event of its own
	}
	return s, nil
}

// fail gives up before anything was decided. Nothing was written while checking;
// an intent that was refused, or whose fate is unknown, is left to Resolve.
func (s Source) fail(now time.Duration, reason string) (Source, []Action) {
	s.Reason = reason
	if s.Phase == PhaseCheck || s.Phase == "" {
		return s.finish(false, reason)
	}
	actions := []Action{report("giving the migration up: %s", reason), Settle{}}
	if s.Phase == PhasePrecopy {
		// Without a quorum the intent cannot be deleted yet; the guest runs on here meanwhile.
		actions = append([]Action{Brake{}}, actions...)
	}
	return s.enter(PhaseSettle, now, actions...)
}

func (s Source) cancel(now time.Duration) (Source, []Action) {
	switch s.Phase {
	case PhaseOwnership:
		return s, []Action{report("too late to cancel: the memory is on the target, the store decides who goes on")}
	default:
		return s.fail(now, "cancelled by the user")
	}
}

func (s Source) gone(now time.Duration) (Source, []Action) {
	if s.Phase == PhaseOwnership {
		return s, []Action{report("QEMU on this node ended after the memory was sent; the target goes on")}
	}
	return s.fail(now, "QEMU on this node ended during the migration")
}

func (s Source) progress(now time.Duration, p Progress) (Source, []Action) {
	if p.Sent != s.sent {
		s.sent, s.grew = p.Sent, now
	}
	if s.Phase != PhasePrecopy || p.Round < s.nextRaise || s.Downtime >= s.Config.MaxDowntime {
		return s, nil
	}
	s.Downtime = min(s.Downtime+s.Config.DowntimeStep, s.Config.MaxDowntime)
	s.nextRaise = p.Round + s.Config.StepRounds
	line := report("the guest writes memory faster than it is copied (%d MiB left after %d rounds): allowing a pause of %d ms",
		p.Remaining>>20, p.Round, s.Downtime.Milliseconds())
	return s, []Action{line, SetDowntime{Downtime: s.Downtime}}
}

func (s Source) stopped(now time.Duration) (Source, []Action) {
	if s.Phase != PhasePrecopy {
		return s, nil
	}
	return s.enter(PhaseSwitchover, now)
}

func (s Source) migration(now time.Duration, m Migration) (Source, []Action) {
	if s.Phase != PhasePrecopy && s.Phase != PhaseSwitchover && s.Phase != PhaseSetup {
		return s, nil
	}
	switch m.Status {
	case "completed":
		return s.enter(PhaseOwnership, now)
	case "failed", "cancelled":
		reason := "the copy of the memory broke off"
		if m.Reason != "" {
			reason += ": " + m.Reason
		}
		return s.fail(now, reason)
	}
	return s, nil
}

func (s Source) decided(now time.Duration, f Fate) (Source, []Action) {
	switch {
	case f == Theirs:
		return s.enter(PhaseCleanup, now, Remove{})
	case f == Mine && s.Phase != PhaseIntent:
		return s.fail(now, "the migration was called off on another node")
	}
	return s, nil
}

func (s Source) tick(now time.Duration) (Source, []Action) {
	spent := now - s.since
	switch {
	case s.Phase == PhasePrecopy && spent >= s.Config.Limit:
		return s.fail(now, fmt.Sprintf("the memory could not be copied within %s even with a pause of %d ms: "+
			"the guest writes too fast, try again when it is less busy", s.Config.Limit, s.Downtime.Milliseconds()))
	case s.Phase == PhasePrecopy && now-s.grew >= s.Config.StallLimit:
		return s.fail(now, fmt.Sprintf("nothing could be copied for %s: check the network to the target", s.Config.StallLimit))
	case s.Phase == PhaseSwitchover && spent >= s.Config.SwitchoverLimit:
		return s.fail(now, fmt.Sprintf("the last part of the memory did not arrive within %s: check the network to the target", s.Config.SwitchoverLimit))
	case s.Phase == PhaseOwnership && spent >= s.Config.OwnershipLimit:
		return s.fail(now, fmt.Sprintf("the target did not take the guest over within %s", s.Config.OwnershipLimit))
	}
	return s, nil
}

func (s Source) settling(ev Event) (Source, []Action) {
	e, ok := ev.(Settled)
	if !ok {
		return s, nil
	}
	switch e.Verdict {
	case VerdictMoved:
		return s.finish(true, "the guest runs on the target ("+s.Reason+")")
	case VerdictHere:
		return s.finish(false, s.Reason+"; the guest stays on this node")
	default:
		return s.finish(false, s.Reason+"; the guest does not run any more")
	}
}

func (s Source) cleaning(ev Event) (Source, []Action) {
	switch e := ev.(type) {
	case Done:
		return s.finish(true, "the guest runs on the target")
	case Failed:
		return s.finish(true, "the guest runs on the target, but its old process could not be cleaned up: "+e.Reason)
	}
	return s, nil
}

func (s Source) finish(ok bool, reason string) (Source, []Action) {
	s.Phase = PhaseDone
	return s, []Action{Finish{OK: ok, Reason: reason}}
}
