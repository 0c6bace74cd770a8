package ha

import (
	"strconv"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Action is something for the agent to do. Each one but Wake is answered by exactly one ActionDone or ActionFailed,
// also when the agent gave up. Actions of one list may be carried out in order or at the same time.
type Action interface {
	// Key names what the action is about. There is never more than one unanswered action with the same key.
	Key() string
	// Why is a sentence for the log: what is done, to what, and for what reason.
	Why() string
}

// Compare is one condition of an action's transaction: the key's last revision, 0 for a key that must not exist.
type Compare struct {
	Key      string
	Revision int64
}

// TakeManager puts ha/manager. Manager is the value.
type TakeManager struct {
	IfRevision int64
	Manager    model.Manager
	Reason     string
}

// Cut fences Node: it puts NewLive under live/<node>, provided the record is still the one that was silent for the lease.
type Cut struct {
	Node         string
	LiveRevision int64
	NewLive      model.Live
	Reason       string
}

// Move puts a guest's file under To's path, deletes it under From's, and writes protected/<vmid> = {To}.
type Move struct {
	VMID     model.VMID
	From, To string
	// LiveRevision is that of From's record, which says Fenced. ToRevision is that of node/<To>, so that
	// nothing moves to a node that was removed meanwhile.
	LiveRevision, ConfigRevision, ProtectedRevision, ToRevision int64
	Reason                                                      string
}

// ClearIntent deletes intent/<vmid>: the migration is decided in favour of the node that has the file.
type ClearIntent struct {
	VMID     model.VMID
	Revision int64
	Reason   string
}

// SetStatus puts Status under ha/service/<sid>. Reason is in it.
type SetStatus struct {
	VMID       model.VMID
	IfRevision int64
	Status     Status
}

// Acknowledge puts a guest under the guard: the agent has the guard protect it, waits until that is confirmed, and then writes
// protected/<vmid> = {Node} comparing Revision and the guest's file. The agent must not start the guest in between: it
// holds the guest's lock from before until after.
type Acknowledge struct {
	VMID                     model.VMID
	Node                     string // this node
	Revision, ConfigRevision int64
	// Written: the record stands already, only the guard does not have the guest. Then nothing is written.
	Written bool
	Reason  string
}

// Unacknowledge takes a guest from the guard: the agent deletes protected/<vmid> comparing Revision, and only then tells the guard.
type Unacknowledge struct {
	VMID     model.VMID
	Revision int64
	Reason   string
}

// Start starts a guest by the agent's one start path, which holds the guest's lock and reads the store linearizably: the file is under this node's
// path, no intent, the lease valid, the epoch current, the requested state still started; then the pills, then guard.Protect if protected/<vmid> names this node,
// then QEMU. A guest that runs already is ActionDone; a condition that does not hold is FailConflict, an image lock FailLocked.
type Start struct {
	VMID    model.VMID
	Attempt int // counted from 1 since the guest last ran stably
	// Pills are to be written on each shared storage of the guest before QEMU starts.
	Pills  []Pill
	Reason string
}

// Pill tells the guard of a node that was fenced, through the storage, to kill what it froze.
type Pill struct {
	Node  string
	Epoch uint64
}

// Stop ends a guest whose requested state is stopped or disabled: shutdown, and after the agent's timeout harder means.
type Stop struct {
	VMID   model.VMID
	Reason string
}

// Discard kills a QEMU that nobody is entitled to. Before, the agent holds the guest's lock and makes sure by linearizable reads that no intent for the guest
// exists and that the guest's file is not under this node's path; with Incoming it may be, and the QEMU must still be one
// that waits for a migration or was never continued. If that is not so: FailConflict.
type Discard struct {
	VMID     model.VMID
	Incoming bool
	Reason   string
}

// Wake asks for a fresh view, or a Tick where there is none, at At. It is the last of a list, and
// replaces the one before; a list without one cancels it.
type Wake struct{ At time.Duration }

// Key implements Action.
func (TakeManager) Key() string { return "manager" }

// Key implements Action.
func (a Cut) Key() string { return "cut " + a.Node }

// Key implements Action.
func (a Move) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a ClearIntent) Key() string { return "intent " + a.VMID.SID() }

// Key implements Action.
func (a SetStatus) Key() string { return "status " + a.VMID.SID() }

// Key implements Action.
func (a Acknowledge) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a Unacknowledge) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a Start) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a Stop) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (a Discard) Key() string { return "guest " + a.VMID.SID() }

// Key implements Action.
func (Wake) Key() string { return "wake" }

// Why implements Action.
func (a TakeManager) Why() string { return a.Manager.Node + " becomes the HA manager: " + a.Reason }

// Why implements Action.
func (a Cut) Why() string { return a.Node + " is cut off: " + a.Reason }

// Why implements Action.
func (a Move) Why() string {
	return a.VMID.SID() + " moves from " + a.From + " to " + a.To + ": " + a.Reason
}

// Why implements Action.
func (a ClearIntent) Why() string { return "the migration of " + a.VMID.SID() + " ends: " + a.Reason }

// Why implements Action.
func (a SetStatus) Why() string {
	return a.VMID.SID() + " is " + string(a.Status.State) + ": " + a.Status.Reason
}

// Why implements Action.
func (a Acknowledge) Why() string { return a.VMID.SID() + " goes under the guard: " + a.Reason }

// Why implements Action.
func (a Unacknowledge) Why() string { return a.VMID.SID() + " leaves the guard: " + a.Reason }

// Why implements Action.
func (a Start) Why() string {
	return "start " + a.VMID.SID() + ", attempt " + strconv.Itoa(a.Attempt) + ": " + a.Reason
}

// Why implements Action.
func (a Stop) Why() string { return "stop " + a.VMID.SID() + ": " + a.Reason }

// Why implements Action.
func (a Discard) Why() string { return "kill the QEMU of " + a.VMID.SID() + ": " + a.Reason }

// Why implements Action.
func (a Wake) Why() string { return "wait until " + a.At.String() }

// Compares are the conditions of the transaction, as in all that follow; every key that it writes is among them.
func (a TakeManager) Compares() []Compare { return []Compare{{model.ManagerKey, a.IfRevision}} }

// Compares the silent record.
func (a Cut) Compares() []Compare {
	return []Compare{{model.LivePrefix + a.Node, a.LiveRevision}}
}

// Compares everything that must still be so for the guest to move.
func (a Move) Compares() []Compare {
	return []Compare{
		{model.LivePrefix + a.From, a.LiveRevision},
		{model.GuestConfigKey(a.From, a.VMID), a.ConfigRevision},
		{model.ProtectedPrefix + a.VMID.String(), a.ProtectedRevision},
		{model.IntentPrefix + a.VMID.String(), 0},
		{model.GuestConfigKey(a.To, a.VMID), 0},
		{model.NodePrefix + a.To, a.ToRevision},
	}
}

// Compares the intent.
func (a ClearIntent) Compares() []Compare {
	return []Compare{{model.IntentPrefix + a.VMID.String(), a.Revision}}
}

// Compares the status record.
func (a SetStatus) Compares() []Compare {
	return []Compare{{model.HAStatusPrefix + a.VMID.SID(), a.IfRevision}}
}

// Compares the acknowledgement and the file; nothing is written if it is Written.
func (a Acknowledge) Compares() []Compare {
	return []Compare{
		{model.ProtectedPrefix + a.VMID.String(), a.Revision},
		{model.GuestConfigKey(a.Node, a.VMID), a.ConfigRevision},
	}
}

// Compares the acknowledgement.
func (a Unacknowledge) Compares() []Compare {
	return []Compare{{model.ProtectedPrefix + a.VMID.String(), a.Revision}}
}
