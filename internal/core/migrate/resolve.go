package migrate

import "time"

// Role of a node in a migration.
type Role string

// The roles.
const (
	RoleSource Role = "source"
	RoleTarget Role = "target"
)

// Facts are what one node knows about a guest whose migration nobody here is
// carrying on any more. Resolve needs no history.
type Facts struct {
	// Role is what the intent, or without one this node's own note, says of this node.
	Role Role
	// Intent: the intent is still in the store.
	Intent bool
	// Owner: the guest's file stands under this node's path.
	Owner bool
	// Proven: no other node can have run the guest since this QEMU's memory was its
	// newest. It is only looked at when Owner is set and Intent is not. For the source: the
	// file is older than the intent was. For the target: the revision that deleted the intent created the file.
	Proven bool
	// Live: the target's epoch is that of the intent, so it may own the guest. Only looked at on the target.
	Live bool
	// GiveUp: the target shall not wait for more memory.
	GiveUp bool
	// WasRunning: the guest ran when the migration began, so it shall run at its end.
	WasRunning bool
	// QEMU is the run state of the process on this node, "" when there is none.
	QEMU string
	// Migration is query-migrate's status, "" when there was no migration.
	Migration string
	// Waited is how long the facts have been looked at; Grace how long a source leaves a
	// completed target the chance to take the guest.
	Waited, Grace time.Duration
	// Refused counts how often QEMU refused to let the guest go on.
	Refused int
}

// Step to take next.
type Step string

// The steps. After each the facts are gathered anew.
const (
	StepNothing Step = "nothing" // settled
	StepWait    Step = "wait"    // look again soon
	StepRelease Step = "release" // transaction: delete the intent
	StepCommit  Step = "commit"  // transaction: move the file here, delete the intent
	StepCancel  Step = "cancel"  // migrate_cancel
	StepResume  Step = "resume"  // cont, and announce
	StepDestroy Step = "destroy" // end the process and clean up after it
)

// Verdict says where the guest is when there is nothing left to do.
type Verdict string

// The verdicts: running (or paused as its user left it) on this node; owned by
// another node; owned by this node without a process, for the HA worker or a person to start.
const (
	VerdictHere    Verdict = "here"
	VerdictMoved   Verdict = "moved"
	VerdictStopped Verdict = "stopped"
)

// Decision is Resolve's answer.
type Decision struct {
	Step    Step
	Verdict Verdict // of StepNothing
	Reason  string
}

// Resolve says what to do next about a migration that broke off, on the node that
// the facts are from. It is level-triggered: carry out, look again, ask again, until StepNothing.
func Resolve(f Facts) Decision {
	switch {
	case f.Intent && f.Role == RoleSource:
		return resolveSource(f)
	case f.Intent:
		return resolveTarget(f)
	case !f.Owner && f.QEMU == "":
		return Decision{StepNothing, VerdictMoved, "the guest is another node's"}
	case !f.Owner:
		return Decision{Step: StepDestroy, Reason: "the guest is another node's: its process here must never run again"}
	case f.QEMU == "":
		return Decision{StepNothing, VerdictStopped, "the guest is this node's and has no process"}
	default:
		return resolveOwn(f)
	}
}

// resolveSource: nobody carries the migration on, so the source takes the guest
// back, after leaving a target that has everything the time to take it.
func resolveSource(f Facts) Decision {
	switch {
	case f.Migration == "completed" && f.QEMU != "" && f.Waited < f.Grace:
		return Decision{Step: StepWait, Reason: "the memory is on the target: waiting for it to take the guest"}
	default:
		return Decision{Step: StepRelease, Reason: "the migration does not go on: the guest stays here"}
	}
}

func resolveTarget(f Facts) Decision {
	switch {
	case f.QEMU == "":
		return Decision{Step: StepRelease, Reason: "no process waits for the guest here: the source keeps it"}
	case !f.Live:
		return Decision{Step: StepRelease, Reason: "this node was fenced since: the source keeps the guest"}
	case f.Migration == "completed":
		return Decision{Step: StepCommit, Reason: "the guest arrived: it becomes this node's own"}
	case f.Migration == "failed" || f.Migration == "" || f.GiveUp:
		return Decision{Step: StepRelease, Reason: "the guest did not arrive: the source keeps it"}
	default:
		return Decision{Step: StepWait, Reason: "the guest is still arriving"}
	}
}

// resolveOwn: the guest is this node's, the intent is gone, and there is a process.
func resolveOwn(f Facts) Decision {
	switch {
	case f.QEMU == "inmigrate":
		return Decision{Step: StepDestroy, Reason: "a process that waits for a guest is left over"}
	case copying(f.Migration):
		return Decision{Step: StepCancel, Reason: "the intent is gone: stopping the copy"}
	case f.Migration == "cancelling":
		return Decision{Step: StepWait, Reason: "QEMU is stopping the copy"}
	case f.QEMU == "running":
		return Decision{StepNothing, VerdictHere, "the guest runs here"}
	case f.Role == RoleTarget && f.Migration != "completed":
		return Decision{Step: StepDestroy, Reason: "the guest did not arrive whole"}
	case !f.Proven && (f.QEMU == "postmigrate" || f.Role == RoleTarget):
		return Decision{Step: StepDestroy, Reason: "another node may have run the guest since: the memory here is old"}
	case !f.WasRunning:
		return Decision{StepNothing, VerdictHere, "the guest is here, paused as it was"}
	case f.Refused >= maxRefused:
		return Decision{Step: StepDestroy, Reason: "QEMU refuses to let the guest go on"}
	case f.QEMU == "paused" || f.QEMU == "postmigrate" || f.QEMU == "finish-migrate":
		return Decision{Step: StepResume, Reason: "the guest is this node's own: letting it go on"}
	default:
		return Decision{StepNothing, VerdictHere, "the guest is here, " + f.QEMU}
	}
}

// maxRefused bounds the attempts to continue: with the pause between two of
// them that is more than the 5 s in which an image lock of a dying process goes away.
const maxRefused = 50

func copying(status string) bool {
	return status == "setup" || status == "active" || status == "device" || status == "pre-switchover"
}
