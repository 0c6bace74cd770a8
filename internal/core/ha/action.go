package ha

import (
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

// Cut fences Node: it puts NewLive under live/<node>, provided the record is still the one that was silent for the lease, or that the
// proof is about.
type Cut struct {
	Node         string
	LiveRevision int64
	NewLive      model.Live
	Reason       string
}

// AskFence asks a method whether Node has power, without changing anything. It is answered by FenceResult or ActionFailed. The
// agent makes sure that the one who answers is the node's own (its system UUID) and gives up soon: Params.Ask goes on without it.
type AskFence struct {
	Node, Method string
	Reason       string
}

// Shoot has a method switch Node off, or blocklist it. A blocklist entry is answered by FenceResult when it was verified; else by ActionDone, and whether the
// node has power is asked for afterwards. No transaction voids a shot, so right before it the agent makes sure by linearizable reads that live/<node>
// still has LiveRevision and that this node is still the manager, that its own lease is valid, and that nothing was heard of the node since the action was given
// out. If that is not so: FailConflict.
type Shoot struct {
	Node, Method string
	// Blocklist is that of the method.
	Blocklist    bool
	LiveRevision int64
	Reason       string
}

// NoteHistory puts ha/history/<node>.
type NoteHistory struct {
	Node     string
	Revision int64
	History  History
	Reason   string
}

// DropCommand deletes a command that cannot be carried out.
type DropCommand struct {
	VMID     model.VMID
	Kind     string
	Revision int64
	Reason   string
}

// Move puts a guest's file under To's path, deletes it under From's, and writes protected/<vmid> = {To}.
type Move struct {
	VMID     model.VMID
	From, To string
	// LiveRevision is that of From's record, which says Fenced. ToRevision is that of node/<To>, so that
	// nothing moves to a node that was removed meanwhile.
	LiveRevision, ConfigRevision, ProtectedRevision, ToRevision int64
	Reason                                                      string
	Kind                                                        string
	// DropLock: the configuration's lock is of a task that died with From (backup, migrate, snapshot …) and is removed from the file.
	DropLock bool
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
	Kind       string
	// Command is the revision of the command that the status acts on, and that the transaction deletes; 0 for none.
	Command int64
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
	Kind   string
}

// Pill tells the guard of a node that was fenced, through the storage, to kill what it froze.
type Pill struct {
	Node  string
	Epoch uint64
}

// Stop ends a guest: shutdown, and after Timeout harder means. Its requested state is stopped or disabled, or it is relocated, or its node ends.
type Stop struct {
	VMID   model.VMID
	Reason string
	Kind   string
	// Timeout is what a person set; 0 is the agent's own.
	Timeout time.Duration
	// Hard ends it at once: a person wants it so, or its storage is lost, and it could not shut down.
	Hard bool
}

// Reset resets a guest whose kernel panicked or whose agent is silent.
type Reset struct {
	VMID   model.VMID
	Kind   string
	Reason string
}

// Migrate moves a guest that runs to Target, live, by the agent's one migration path, which writes the intent first. The agent
// makes sure by linearizable reads that the status record has StatusRevision. A guest that is on Target already is ActionDone.
type Migrate struct {
	VMID           model.VMID
	Kind           string
	Target         string
	StatusRevision int64
	Reason         string
}

// Handover gives a guest that does not run to another node: in one transaction its file moves to To's path and protected/<vmid>, if
// From is in it, becomes {To}. The agent holds the guest's lock, and makes sure that no QEMU and no group of the guest is there, from before until after.
type Handover struct {
	VMID                                              model.VMID
	Kind                                              string
	From, To                                          string // From is this node
	ConfigRevision, ProtectedRevision, StatusRevision int64
	ToRevision                                        int64 // of node/<To>
	// Protected: protected/<vmid> names From and is to name To; else it is left alone.
	Protected bool
	Reason    string
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
