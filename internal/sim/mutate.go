package sim

import (
	"strings"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
)

// mutation is a planted bug.
type mutation int

// The planted bugs; [Mutations] says what each does.
const (
	mutNone mutation = iota
	mutDeadlineFromAck
	mutDeadlineTwice
	mutConflictIsCommit
	mutUnknownIsCommit
	mutRenewUncompared
	mutRenewWithoutGuard
	mutFencedIgnored
	mutNoWait
	mutShortWait
	mutDriftSign
	mutCutUncompared
	mutCutSameEpoch
	mutFreezeNothing
	mutFreezeUnconfirmed
	mutKillNothing
	mutKillUnconfirmed
	mutNoReset
	mutLateWritesFreeze
	mutPillIgnored
	mutGuardForgetsFound
	mutNoMark
	mutThawUnchecked
	mutUnguardOnStart
	mutStartWithoutFile
	mutStartUnguarded
	mutStartUnconfirmed
	mutFenceEpoch
	mutLocalReads
	mutAckUnguarded
	mutUnackLate
	mutMoveKeepsFile
	mutMoveLiveUncompared
	mutMoveIntentUncompared
	mutMoveConfigUncompared
	mutContBeforeCommit
	mutCommitWithoutIntent
	mutCommitUnknownIsMine
	mutReleaseUncompared
	mutResumeUnproven
	mutWatchdogSlow
	mutBMCUUIDIgnored
	mutBMCErrorIsOff
	mutBlocklistEarly
	mutArrivalBackdated
	mutWatchdogUnarmed
	mutNoGuestLock
	mutLast
)

// Mutation describes a planted bug: what is falsified at which seam.
type Mutation struct {
	Name string `json:"name"`
	What string `json:"what"`
	// Seed is one that finds it, and Rule what it breaks then.
	Seed uint64 `json:"seed"`
	Rule Rule   `json:"rule"`
	is   mutation
}

// KnownMutation reports whether there is a planted bug of that name.
func KnownMutation(name string) bool {
	for _, m := range Mutations() {
		if m.Name == name {
			return true
		}
	}
	return false
}

// PlanOf is the plan of faults that a seed makes.
func PlanOf(seed uint64) Plan { return newLife(Options{Seed: seed}).plan }

// Mutations lists the planted bugs.
func Mutations() []Mutation {
	return []Mutation{
		{"deadline-from-ack", "the lease is counted from the answer, not from the sending", 0, "", mutDeadlineFromAck},
		{"deadline-half-more", "the guard gets a deadline half a lease too late", 0, "", mutDeadlineTwice},
		{"conflict-is-commit", "a renewal whose compare failed counts as committed", 0, "", mutConflictIsCommit},
		{"unknown-is-commit", "a renewal without an answer counts as committed", 0, "", mutUnknownIsCommit},
		{"renew-uncompared", "a renewal compares nothing, so it undoes a cut", 0, "", mutRenewUncompared},
		{"renew-without-guard", "a node renews although its guard does not answer", 0, "", mutRenewWithoutGuard},
		{"fenced-ignored", "a fenced node registers without having killed anything", 0, "", mutFencedIgnored},
		{"wait-skipped", "the taker does not wait for the lease: suspicion is enough", 0, "", mutNoWait},
		{"wait-short", "the taker waits half of what it must", 0, "", mutShortWait},
		{"drift-sign", "the taker subtracts the clocks' error and the writes under way, and does not add them", 0, "", mutDriftSign},
		{"cut-uncompared", "the cut does not compare the record", 0, "", mutCutUncompared},
		{"cut-same-epoch", "the cut does not raise the epoch", 0, "", mutCutSameEpoch},
		{"freeze-nothing", "the guard says frozen and freezes nothing", 0, "", mutFreezeNothing},
		{"freeze-unconfirmed", "the guard takes the order to freeze for its confirmation", 0, "", mutFreezeUnconfirmed},
		{"kill-nothing", "the guard says dead and kills nothing", 0, "", mutKillNothing},
		{"kill-unconfirmed", "the guard takes the order to kill for the death", 0, "", mutKillUnconfirmed},
		{"reset-skipped", "the guard does not reset the machine", 0, "", mutNoReset},
		{"late-writes-freeze", "a guest on a storage with late writes is frozen, and the machine not reset", 0, "", mutLateWritesFreeze},
		{"pill-ignored", "the guard does not read pills", 0, "", mutPillIgnored},
		{"guard-forgets", "a guard that starts does not look for the groups of an earlier one", 0, "", mutGuardForgetsFound},
		{"mark-missing", "a group is not marked for a later guard", 0, "", mutNoMark},
		{"thaw-unchecked", "an agent that starts thaws what it finds frozen", 0, "", mutThawUnchecked},
		{"unguard-on-start", "an agent that starts takes what it finds out of the guard", 0, "", mutUnguardOnStart},
		{"start-without-file", "a guest is started although its file is not here", 0, "", mutStartWithoutFile},
		{"start-unguarded", "a protected guest is started in a group that the guard does not have", 0, "", mutStartUnguarded},
		{"start-unconfirmed", "the guard's refusal does not keep a guest from starting", 0, "", mutStartUnconfirmed},
		{"fence-epoch-off-by-one", "the guard is told to kill what is older than the epoch before the new one", 0, "", mutFenceEpoch},
		{"local-reads", "what must be read linearizably is read from the node's own copy", 0, "", mutLocalReads},
		{"ack-unguarded", "a guest is acknowledged before the guard has it", 0, "", mutAckUnguarded},
		{"unack-late", "a guest leaves the guard before its acknowledgement is deleted", 0, "", mutUnackLate},
		{"move-keeps-file", "a guest that is taken over keeps its file under the old path", 0, "", mutMoveKeepsFile},
		{"live-uncompared", "neither cut nor take-over compares the liveness record", 0, "", mutMoveLiveUncompared},
		{"move-intent-uncompared", "taking a guest over does not compare that no migration is undecided", 0, "", mutMoveIntentUncompared},
		{"move-config-uncompared", "taking a guest over does not compare its file", 0, "", mutMoveConfigUncompared},
		{"cont-before-commit", "the target lets the guest go on before the transaction", 0, "", mutContBeforeCommit},
		{"commit-without-intent", "the target's transaction does not compare the intent", 0, "", mutCommitWithoutIntent},
		{"commit-unknown-is-mine", "the target takes a lost answer for a commit", 0, "", mutCommitUnknownIsMine},
		{"release-uncompared", "giving a migration up does not compare the intent", 0, "", mutReleaseUncompared},
		{"resume-unproven", "a process that stood still goes on without a proof that its memory is the newest", 0, "", mutResumeUnproven},
		{"bmc-uuid-ignored", "the answer of a BMC is taken although it belongs to another node", 0, "", mutBMCUUIDIgnored},
		{"bmc-error-is-off", "a BMC that does not answer counts as one that says off", 0, "", mutBMCErrorIsOff},
		{"blocklist-unconfirmed", "the order to blocklist counts as its effect", 0, "", mutBlocklistEarly},
		{"arrival-backdated", "the observer counts a renewal from four seconds before it arrived", 0, "", mutArrivalBackdated},
		{"watchdog-unarmed", "the watchdog is opened and never armed", 0, "", mutWatchdogUnarmed},
		{"lock-not-held", "what HA does with a guest does not take the guest's lock", 0, "", mutNoGuestLock},
		{"watchdog-slow", "the watchdog is set to three times the time that the guard knows", 0, "", mutWatchdogSlow},
	}
}

// observerParams are the taker's times.
func (s *sim) observerParams() lease.Params {
	p := s.params
	switch s.mut {
	case mutShortWait:
		p.Lease /= 2
	case mutDriftSign:
		p.Lease -= p.Lease / 1_000_000 * 4 * 1000
		p.InFlight = -p.InFlight
		p.Lease -= p.FreezeMargin
	default:
	}
	return p
}

// leftOut says that a mutation leaves the compare of a key out.
func (s *sim) leftOut(key string) bool {
	switch s.mut {
	case mutMoveLiveUncompared:
		return strings.HasPrefix(key, model.LivePrefix)
	case mutMoveIntentUncompared:
		return strings.HasPrefix(key, model.IntentPrefix)
	case mutMoveConfigUncompared:
		return strings.HasPrefix(key, model.ConfigPrefix)
	default:
	}
	return false
}
