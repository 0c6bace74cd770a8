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
	mutValidWithoutLease
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
	mutUnguardPopulated
	mutStartWithoutFile
	mutStartDespiteIntent
	mutStartUnguarded
	mutStartUnacknowledged
	mutStartWithoutLease
	mutStartUnconfirmed
	mutEpochUncompared
	mutLocalReads
	mutAckUnguarded
	mutUnackLate
	mutMoveKeepsFile
	mutMoveLiveUncompared
	mutMoveIntentUncompared
	mutMoveConfigUncompared
	mutHandoverRunning
	mutContBeforeCommit
	mutCommitWithoutIntent
	mutCommitUnknownIsMine
	mutReleaseUncompared
	mutResumeUnproven
	mutWatchdogSlow
	mutBMCUUIDIgnored
	mutLast
)

// Mutation describes a planted bug: what is falsified at which seam.
type Mutation struct {
	Name string
	What string
	is   mutation
}

// Mutations lists the planted bugs.
func Mutations() []Mutation {
	return []Mutation{
		{"deadline-from-ack", "the lease is counted from the answer, not from the sending", mutDeadlineFromAck},
		{"deadline-half-more", "the guard gets a deadline half a lease too late", mutDeadlineTwice},
		{"conflict-is-commit", "a renewal whose compare failed counts as committed", mutConflictIsCommit},
		{"unknown-is-commit", "a renewal without an answer counts as committed", mutUnknownIsCommit},
		{"renew-uncompared", "a renewal compares nothing, so it undoes a cut", mutRenewUncompared},
		{"renew-without-guard", "a node renews although its guard does not answer", mutRenewWithoutGuard},
		{"fenced-ignored", "a fenced node registers without having killed anything", mutFencedIgnored},
		{"valid-without-lease", "a node believes that its lease is always valid, and the guard is asked with the last deadline", mutValidWithoutLease},
		{"wait-skipped", "the taker does not wait for the lease: suspicion is enough", mutNoWait},
		{"wait-short", "the taker waits half of what it must", mutShortWait},
		{"drift-sign", "the taker subtracts the clocks' error and the writes under way, and does not add them", mutDriftSign},
		{"cut-uncompared", "the cut does not compare the record", mutCutUncompared},
		{"cut-same-epoch", "the cut does not raise the epoch", mutCutSameEpoch},
		{"freeze-nothing", "the guard says frozen and freezes nothing", mutFreezeNothing},
		{"freeze-unconfirmed", "the guard takes the order to freeze for its confirmation", mutFreezeUnconfirmed},
		{"kill-nothing", "the guard says dead and kills nothing", mutKillNothing},
		{"kill-unconfirmed", "the guard takes the order to kill for the death", mutKillUnconfirmed},
		{"reset-skipped", "the guard does not reset the machine", mutNoReset},
		{"late-writes-freeze", "a guest on a storage with late writes is frozen, and the machine not reset", mutLateWritesFreeze},
		{"pill-ignored", "the guard does not read pills", mutPillIgnored},
		{"guard-forgets", "a guard that starts does not look for the groups of an earlier one", mutGuardForgetsFound},
		{"mark-missing", "a group is not marked for a later guard", mutNoMark},
		{"thaw-unchecked", "an agent that starts thaws what it finds frozen", mutThawUnchecked},
		{"unguard-populated", "a group leaves the guard although something runs in it", mutUnguardPopulated},
		{"start-without-file", "a guest is started although its file is not here", mutStartWithoutFile},
		{"start-despite-intent", "a guest is started although it is being migrated", mutStartDespiteIntent},
		{"start-unguarded", "a protected guest is started in a group that the guard does not have", mutStartUnguarded},
		{"start-unacknowledged", "a guest of HA is started without the acknowledgement", mutStartUnacknowledged},
		{"start-without-lease", "the lease is not looked at before a start, and the guard's refusal is ignored", mutStartWithoutLease},
		{"start-unconfirmed", "the guard's refusal does not keep a guest from starting", mutStartUnconfirmed},
		{"epoch-uncompared", "the guard is asked with whatever epoch it has, not the one from before the reads", mutEpochUncompared},
		{"local-reads", "what must be read linearizably is read from the node's own copy", mutLocalReads},
		{"ack-unguarded", "a guest is acknowledged before the guard has it", mutAckUnguarded},
		{"unack-late", "a guest leaves the guard before its acknowledgement is deleted", mutUnackLate},
		{"move-keeps-file", "a guest that is taken over keeps its file under the old path", mutMoveKeepsFile},
		{"move-live-uncompared", "taking a guest over does not compare that its node is still fenced", mutMoveLiveUncompared},
		{"move-intent-uncompared", "taking a guest over does not compare that no migration is undecided", mutMoveIntentUncompared},
		{"move-config-uncompared", "taking a guest over does not compare its file", mutMoveConfigUncompared},
		{"handover-with-group", "a guest is handed over while its group is there", mutHandoverRunning},
		{"cont-before-commit", "the target lets the guest go on before the transaction", mutContBeforeCommit},
		{"commit-without-intent", "the target's transaction does not compare the intent", mutCommitWithoutIntent},
		{"commit-unknown-is-mine", "the target takes a lost answer for a commit", mutCommitUnknownIsMine},
		{"release-uncompared", "giving a migration up does not compare the intent", mutReleaseUncompared},
		{"resume-unproven", "a process that stood still goes on without a proof that its memory is the newest", mutResumeUnproven},
		{"bmc-uuid-ignored", "the answer of a BMC is taken although it belongs to another node", mutBMCUUIDIgnored},
		{"watchdog-slow", "the watchdog is set to three times the time that the guard knows", mutWatchdogSlow},
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
	}
	return false
}
