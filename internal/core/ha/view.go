package ha

import (
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// Params are the times by which both state machines go. Take [DefaultParams] and change what differs.
type Params struct {
	// Suspect: a node silent for so long is no target any more, and if it is the manager's, it is replaced.
	Suspect time.Duration
	// Poll is how often a view is asked for while a node is silent and may not be taken yet, so it delays a failover.
	Poll time.Duration
	// Retry is the wait after an action that failed.
	Retry time.Duration
	// ReserveMiB is the memory of each node that guests must not take.
	ReserveMiB int64
	// LockRetry and LockPatience: how often, and for how long, a start is repeated while the image is locked.
	LockRetry, LockPatience time.Duration
	// BackoffFirst and BackoffMax: the waits before the start of a guest that keeps dying or does not start are
	// 0, BackoffFirst, then twice the last one, up to BackoffMax.
	BackoffFirst, BackoffMax time.Duration
	// Stable: a guest that ran for so long starts again without a wait.
	Stable time.Duration
}

// DefaultParams are those of production.
func DefaultParams() Params {
	return Params{
		Suspect:      3 * time.Second, // three renewals missed
		Poll:         100 * time.Millisecond,
		Retry:        250 * time.Millisecond,
		ReserveMiB:   1024, // agent, guard, store and kernel
		LockRetry:    250 * time.Millisecond,
		LockPatience: 30 * time.Second, // three leases: by then the old node's guard has killed what held it
		BackoffFirst: time.Second,
		BackoffMax:   30 * time.Second,
		Stable:       time.Minute,
	}
}

// Member is a member of the cluster as the agent sees it.
type Member struct {
	Name string
	// Revision is that of node/<name>.
	Revision  int64
	MemoryMiB int64
	// Storages are those on which this member finds the volumes of other nodes' guests: configured for it, enabled, shared.
	Storages []string
	// Live and LiveRevision are live/<name>; revision 0 means that it never registered.
	Live         model.Live
	LiveRevision int64
	// Silence is the time since the last change of live/<name> arrived here, at the moment the view was made.
	Silence time.Duration
	// MayTake: by the rules of the lease the member cannot be running protected guests any more, provided that live/<name>
	// still has LiveRevision. Why says the reason, for or against.
	MayTake bool
	Why     string
}

// Guest is one guest's file.
type Guest struct {
	VMID      model.VMID
	Node      string // whose path it is under
	Revision  int64
	MemoryMiB int64
	// Storages are those of its volumes.
	Storages []string
	// Local names a volume or device that only Node has, "" if there is none. Such a guest cannot move, so it is not put under the guard.
	Local string
}

// Protected is a protected/<vmid> record.
type Protected struct {
	model.Protected
	Revision int64
}

// Intent is an intent/<vmid> record.
type Intent struct {
	model.Intent
	Revision int64
}

// Status is the JSON under ha/service/<sid>: what the owner's worker, or the manager while the owner is lost, last decided.
type Status struct {
	State  StatusState `json:"state"`
	Node   string      `json:"node"`
	Reason string      `json:"reason,omitempty"`
}

// StatusState is what `ha status` shows. The words are Proxmox VE's.
type StatusState string

// The states of an HA resource. Fence and Recovery are the manager's, the others the worker's.
const (
	StatusStarting StatusState = "starting"
	StatusStarted  StatusState = "started"
	StatusStopping StatusState = "request_stop"
	StatusStopped  StatusState = "stopped"
	StatusMigrate  StatusState = "migrate"
	StatusError    StatusState = "error"
	StatusFence    StatusState = "fence"    // its node is being cut off
	StatusRecovery StatusState = "recovery" // its node is lost and it waits for a place
)

// StatusRecord is a Status and its revision in the store.
type StatusRecord struct {
	Status
	Revision int64
}

// View is an event: all that the manager looks at. The agent feeds one whenever
// something in it changed, and when a Wake is due.
type View struct {
	// Revision of the store that the view shows; no record in it is older.
	Revision int64
	Quorate  bool
	// Manager and ManagerRevision are ha/manager; revision 0 means that there is none.
	Manager         model.Manager
	ManagerRevision int64
	Members         []Member
	// Resources are the supported ones of ha/resources.cfg with their requested state.
	Resources map[model.VMID]pveconf.HAState
	// Guests are all of the cluster; those that are not HA resources count as load.
	Guests    []Guest
	Protected map[model.VMID]Protected
	Intents   map[model.VMID]Intent
	Statuses  map[model.VMID]StatusRecord
}

// LocalView is an event: all that a node's worker looks at. The agent feeds one whenever something in it changed, when a
// Wake is due, and after each answer that it fed; that one is made after the action was carried out.
type LocalView struct {
	// Revision of the store that the view shows; no record in it is older, and Fenced is not older than Guests.
	Revision int64
	Quorate  bool
	// LeaseValid: this node is registered with its current epoch and its lease is not over.
	LeaseValid bool
	// Guests are those under this node's path.
	Guests    []Guest
	Resources map[model.VMID]pveconf.HAState
	Protected map[model.VMID]Protected
	Intents   map[model.VMID]Intent
	Statuses  map[model.VMID]StatusRecord
	// Fenced maps each member whose live record has Fenced set to the record's epoch.
	Fenced map[string]uint64
	// Processes are the QEMUs on this machine, whosever guest they are.
	Processes map[model.VMID]Process
	// Busy maps a guest to the task on this node that has it in hand (a migration, a person's start or stop). The worker
	// leaves it alone meanwhile.
	Busy map[model.VMID]string
}

// Process is a QEMU on this machine.
type Process struct {
	State ProcessState
	// Guarded: the guard confirmed that it watches this guest.
	Guarded bool
}

// ProcessState is what the agent knows of a QEMU.
type ProcessState int

// The states that make a difference here.
const (
	ProcessRunning  ProcessState = iota // any state of a guest that has run: paused and frozen too
	ProcessIncoming                     // started to receive a migration, and never continued
)

// Event is View, LocalView, Tick, ActionDone, ActionFailed or ProcessGone.
type Event interface{ isEvent() }

// Tick says that time passed; it answers Wake where no new view is to be had.
type Tick struct{}

// ActionDone says that an action was carried out.
type ActionDone struct {
	Action Action
	// Revision is that of the transaction, 0 where the action is none. What it wrote is awaited in a view of this revision or a later one.
	Revision int64
}

// ActionFailed says that an action had no effect.
type ActionFailed struct {
	Action Action
	Kind   FailKind
	// Reason is the error's text.
	Reason string
}

// FailKind says how an action failed.
type FailKind int

// The kinds that make a difference.
const (
	FailOther    FailKind = iota
	FailConflict          // a compare did not hold, or what the decision rested on is no longer so: nothing is wrong
	FailLocked            // Start only: another process has an image open
)

// ProcessGone says that a QEMU of this machine ended, whatever the cause. It
// comes at once, before a view without the process.
type ProcessGone struct{ VMID model.VMID }

func (View) isEvent()         {}
func (LocalView) isEvent()    {}
func (Tick) isEvent()         {}
func (ActionDone) isEvent()   {}
func (ActionFailed) isEvent() {}
func (ProcessGone) isEvent()  {}
