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
	mutContBeforeCommit
	mutCommitWithoutIntent
	mutCommitUnknownIsMine
	mutWatchdogSlow
	mutBMCUUIDIgnored
	mutBMCErrorIsOff
	mutBlocklistEarly
	mutArrivalBackdated
	mutWatchdogUnarmed
	mutResetNothing
	mutEndingExcused
	mutForgetsEarly
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
		{"deadline-from-ack", "the lease is counted from the answer, not from the sending", 43, ruleLease, mutDeadlineFromAck},
		{"deadline-half-more", "the guard gets a deadline half a lease too late", 69, ruleLease, mutDeadlineTwice},
		{"conflict-is-commit", "a renewal whose compare failed counts as committed", 54, ruleEpoch, mutConflictIsCommit},
		{"unknown-is-commit", "a renewal without an answer counts as committed", 0, ruleLease, mutUnknownIsCommit},
		{"renew-uncompared", "a renewal compares nothing, so it undoes a cut", 54, ruleEpoch, mutRenewUncompared},
		{"renew-without-guard", "a node renews although its guard does not answer", 80, ruleGuardless, mutRenewWithoutGuard},
		{"fenced-ignored", "a fenced node registers without having killed anything", 149, ruleClean, mutFencedIgnored},
		{"wait-skipped", "the taker does not wait for the lease: suspicion is enough", 4, ruleProof, mutNoWait},
		{"wait-short", "the taker waits half of what it must", 4, ruleProof, mutShortWait},
		{"drift-sign", "the taker subtracts the clocks' error and the writes under way, and does not add them", 4, ruleProof, mutDriftSign},
		{"cut-uncompared", "the cut does not compare the record", 443, ruleEpoch, mutCutUncompared},
		{"cut-same-epoch", "the cut does not raise the epoch", 0, ruleEpoch, mutCutSameEpoch},
		{"freeze-nothing", "the guard says frozen and freezes nothing", 0, ruleLease, mutFreezeNothing},
		{"freeze-unconfirmed", "the guard takes the order to freeze for its confirmation", 133, ruleLease, mutFreezeUnconfirmed},
		{"kill-nothing", "the guard says dead and kills nothing", 54, ruleRest, mutKillNothing},
		{"kill-unconfirmed", "the guard takes the order to kill for the death", 492, ruleRest, mutKillUnconfirmed},
		{"reset-skipped", "the guard does not reset the machine", 1029, ruleLateWrite, mutNoReset},
		{"late-writes-freeze", "a guest on a storage with late writes is frozen, and the machine not reset", 21, ruleLateWrite, mutLateWritesFreeze},
		{"pill-ignored", "the guard does not read pills", 54, ruleRest, mutPillIgnored},
		{"guard-forgets", "a guard that starts does not look for the groups of an earlier one", 562, ruleLease, mutGuardForgetsFound},
		{"mark-missing", "a group is not marked for a later guard", 0, ruleGuarded, mutNoMark},
		{"thaw-unchecked", "an agent that starts thaws what it finds frozen", 344, ruleLease, mutThawUnchecked},
		{"unguard-on-start", "an agent that starts takes what it finds out of the guard", 80, ruleLease, mutUnguardOnStart},
		{"start-without-file", "a guest is started although its file is not here", 8, ruleOneWriter, mutStartWithoutFile},
		{"start-unguarded", "a protected guest is started in a group that the guard does not have", 0, ruleGuarded, mutStartUnguarded},
		{"start-unconfirmed", "the guard's refusal does not keep a guest from starting", 474, ruleGuarded, mutStartUnconfirmed},
		{"fence-epoch-off-by-one", "the guard is told to kill what is older than the epoch before the new one", 149, ruleClean, mutFenceEpoch},
		{"local-reads", "what must be read linearizably is read from the node's own copy", 288, ruleOneWriter, mutLocalReads},
		{"ack-unguarded", "a guest is acknowledged before the guard has it", 48, ruleGuarded, mutAckUnguarded},
		{"unack-late", "a guest leaves the guard before its acknowledgement is deleted", 196, ruleLease, mutUnackLate},
		{"move-keeps-file", "a guest that is taken over keeps its file under the old path", 0, ruleTwoFiles, mutMoveKeepsFile},
		{"live-uncompared", "neither cut nor take-over compares the liveness record", 443, ruleEpoch, mutMoveLiveUncompared},
		{"cont-before-commit", "the target lets the guest go on before the transaction", 5, ruleFile, mutContBeforeCommit},
		{"commit-without-intent", "the target's transaction does not compare the intent", 1291, ruleProof, mutCommitWithoutIntent},
		{"commit-unknown-is-mine", "the target takes a lost answer for a commit", 7, ruleFile, mutCommitUnknownIsMine},
		{"bmc-uuid-ignored", "the answer of a BMC is taken although it belongs to another node", 28, ruleProof, mutBMCUUIDIgnored},
		{"bmc-error-is-off", "a BMC that does not answer counts as one that says off", 268, ruleProof, mutBMCErrorIsOff},
		{"blocklist-unconfirmed", "the order to blocklist counts as its effect", 69, ruleProof, mutBlocklistEarly},
		{"arrival-backdated", "the observer counts a renewal from four seconds before it arrived", 0, ruleProof, mutArrivalBackdated},
		{"watchdog-unarmed", "the watchdog is opened and never armed", 271, ruleLease, mutWatchdogUnarmed},
		{"watchdog-slow", "the watchdog is set to three times the time that the guard knows", 271, ruleLease, mutWatchdogSlow},
		{"reset-nothing", "a guest that is to be reset is said to be, and is not", 305, ruleRest, mutResetNothing},
		{"ending-excused", "a node that loses its power while it ends in order is excused, and nobody looks again", 280, ruleRest, mutEndingExcused},
		{"forgets-early", "a node that boots deletes how it ended before it has registered", 410, ruleNeedless, mutForgetsEarly},
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
	return s.mut == mutMoveLiveUncompared && strings.HasPrefix(key, model.LivePrefix)
}
