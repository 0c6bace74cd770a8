// Package move carries a live migration out: it feeds what QEMU, the store and
// the other node say to the state machines of core/migrate and does what they answer.
// It starts no QEMU and knows no network, guard or HTTP: the agent lends it those as functions.
//
// Invariants: the target lets the guest go on only after the transaction that made
// it the owner, and the source only after the one that deleted the intent; no memory
// runs of which it is not proved that it is the guest's newest. Both rest on
// core/migrate/DESIGN.md.
//
// Start reading with [Source] and [Target.Prepare], then settle.go, which is what a failed, a
// cancelled and an interrupted migration share.
package move

import (
	"context"
	"errors"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp"
	"sauh.dev/sauh/internal/store"
)

// ErrAbandoned is what a migration ends with when its agent is being stopped:
// nothing was undone, and Recover of the next agent goes on. Cancelling the context of Source with this
// cause asks for it; any other cause is the user's cancel.
var ErrAbandoned = errors.New("the agent stops: the migration is left to the next one")

// QEMU is a guest's process on this node.
type QEMU interface {
	// QMP is the connection to it. It stays the same; when it is over the process is taken to be gone.
	QMP() *qmp.Conn
	// Destroy ends the process, whatever its state, waits until it is gone and
	// removes what was made for it: cgroup, guard's protection, tap, sockets. Twice is once.
	Destroy(ctx context.Context) error
}

// StartRequest asks for a process that waits for a guest.
type StartRequest struct {
	VMID model.VMID
	// Config is the guest's file, which is still under the source's path.
	Config []byte
	// Protected: the guard must have the guest's cgroup before QEMU starts.
	Protected bool
	// Machine is the type that the guest runs on at the source, "" from a source that does not say.
	Machine string
}

// Peer is the agent of the target, seen from the source. Both calls are remote.
type Peer interface {
	// Prepare is answered by Target.Prepare.
	Prepare(ctx context.Context, r PrepareRequest) (PrepareAnswer, error)
	// Abort is answered by Target.Abort.
	Abort(ctx context.Context, r AbortRequest) error
}

// PrepareRequest travels to the target.
type PrepareRequest struct {
	VMID           model.VMID `json:"vmid"`
	Task           string     `json:"task"`
	IntentRevision int64      `json:"intent_revision"`
	// WasRunning: the guest shall run at the end. A paused guest arrives paused.
	WasRunning bool `json:"was_running"`
	// Machine is the type that the guest runs on.
	Machine string `json:"machine,omitempty"`
}

// PrepareAnswer says where the target's QEMU listens.
type PrepareAnswer struct {
	Host string `json:"host"`
	Port string `json:"port"`
	// MPTCP: it listens for multipath TCP.
	MPTCP bool `json:"mptcp,omitempty"`
}

// AbortRequest tells the target that the source has given up.
type AbortRequest struct {
	VMID   model.VMID `json:"vmid"`
	Task   string     `json:"task"`
	Reason string     `json:"reason"`
}

// Note is what a node remembers of a migration across a restart of its agent, but
// not across one of the machine: it is about a process.
type Note struct {
	Role           migrate.Role `json:"role"`
	Task           string       `json:"task"`
	IntentRevision int64        `json:"intent_revision"`
	WasRunning     bool         `json:"was_running"`
}

// Notes keep one Note a guest. Files in a directory that a boot empties do; see DirNotes.
type Notes interface {
	Save(id model.VMID, n Note) error
	// Load returns model.ErrNotFound.
	Load(id model.VMID) (Note, error)
	// Remove of what is not there is no error.
	Remove(id model.VMID) error
}

// Deps is what both sides need.
type Deps struct {
	Node   string // this node
	Store  store.Store
	Notes  Notes
	Claims *Claims // the agent's
	Config migrate.Config
	// Log takes a line for the task's log; nil drops it.
	Log func(id model.VMID, line string)
	// Find returns this node's process of the guest, connected, or model.ErrNotFound.
	Find func(ctx context.Context, id model.VMID) (QEMU, error)
}

// SourceDeps is what the source needs besides.
type SourceDeps struct {
	Deps
	Peer Peer
	// Check says why the guest cannot move: target, storage, bridge, memory, machine
	// type, CPU, accelerator. Nil checks nothing.
	Check func(ctx context.Context, r Request) error
	// Progress is told about ten times a second; it must not block. May be nil.
	Progress func(model.MigrationProgress)
}

// TargetDeps is what the target needs besides.
type TargetDeps struct {
	Deps
	// Listen is the address at which QEMU waits for the memory: this node's in the cluster network.
	Listen string
	// Start starts QEMU with -S -incoming defer. Nothing is left behind on an error.
	Start func(ctx context.Context, r StartRequest) (QEMU, error)
	// Protect puts the running process of a guest under the guard, for one that became protected under way.
	Protect func(ctx context.Context, id model.VMID) error
	// Ready says why this node must not let protected guests run now: no valid lease,
	// another epoch. It is asked just before the guest changes hands and must not block. Nil is always ready.
	Ready func(ctx context.Context, id model.VMID) error
	// Finished is told the end of each guest's arrival: owner says that the guest is now this
	// node's, with its process running (or gone, which Find tells). May be nil.
	Finished func(id model.VMID, owner bool, reason string)
}

// Request names one migration.
type Request struct {
	VMID   model.VMID
	Target string
	Task   string // UPID
	// Machine is the type that the guest runs on.
	Machine string
}

// Deadlines of what is asked of QEMU and of the target's agent.
const (
	// QEMU answers in a millisecond; a busy machine, or one that translates a lot of code, takes its time.
	qmpTimeout = 10 * time.Second
	// A look at the counters is not worth waiting for: the next one comes soon.
	lookTimeout = 2 * time.Second
	// Ten looks a second are smooth to a person and no load for QEMU.
	lookEvery = 100 * time.Millisecond
	// Starting QEMU takes less than a second where nothing is wrong with storage or network.
	prepareTimeout = 30 * time.Second
	// Telling the target that it is over is a courtesy: it watches the intent itself.
	abortTimeout = 2 * time.Second
	// How often the store is asked besides being watched, and how many unanswered questions in
	// a row mean that the quorum is lost, not that a leader is elected (1 to 2 s).
	storeEvery = time.Second
	storeLost  = 3
)

func (d Deps) log(id model.VMID, line string) {
	if d.Log != nil {
		d.Log(id, line)
	}
}
