package ha

import (
	"time"

	"sauh.dev/sauh/internal/core/health"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

// Params are the times by which both state machines go. Take [DefaultParams] and change what differs.
type Params struct {
	// Suspect: a node silent for so long is no target any more, and if it is the manager's, it is replaced.
	Suspect time.Duration
	// Poll is how often a view is asked for while a node is silent and may not be taken yet, so it delays a failover.
	Poll time.Duration
	// Retry is the wait after an action that failed.
	Retry time.Duration
	// Unable is how often a view is asked for while there is no quorum or no valid lease: nothing in the store tells of their return, so
	// whoever misses it must not stand still for ever.
	Unable time.Duration
	// ReserveMiB is the memory of each node that guests must not take.
	ReserveMiB int64
	// LockRetry and LockPatience: how often, and for how long, a start is repeated while the image is locked.
	LockRetry, LockPatience time.Duration
	// BackoffFirst and BackoffMax: the waits before the start of a guest that keeps dying or does not start are
	// 0, BackoffFirst, then twice the last one, up to BackoffMax.
	BackoffFirst, BackoffMax time.Duration
	// Stable: a guest that ran for so long starts again without a wait.
	Stable time.Duration
	// Ask: a node not heard of by any path for so long is asked for a proof of its death, AskEvery so often. Off that was
	// read for Confirm, by one answer or by two, with no sign of life in between or after, is one.
	Ask, AskEvery, Confirm time.Duration
	// RefusedFirst and RefusedMax: a method that gave no answer twice in a row for one reason is asked again after RefusedFirst, then twice the
	// last wait, up to RefusedMax.
	RefusedFirst, RefusedMax time.Duration
	// FenceDelay: a node not heard of by any path for so long is shot, if a guest would be recovered by it.
	FenceDelay time.Duration
	// TakeAfter is the lease's own wait (lease.Params.TakeAfter).
	TakeAfter time.Duration
	// InFlight is how long a write of a QEMU that has ended may be under way on a shared storage (lease.Params.InFlight): the guest starts here again
	// no sooner, because its successor must not be overtaken.
	InFlight time.Duration
	// RebootPatience is how long the guests of a node that reboots in order wait for it, where the policy does not freeze them.
	RebootPatience time.Duration
	// FleeAfter: a guest leaves a node for a storage that this has lost when the loss has been on record for so long. By then all other nodes that
	// share the fault have told it (health.Params.Spread), so those that have not are well. Nor does a guest leave until so long after another node has regained the storage. 0 waits for nobody.
	FleeAfter time.Duration
	// AwayPatience: starts that fail for want of a storage that their node does not say to have lost are the guest's failures after so long. A node tells a
	// loss in less.
	AwayPatience time.Duration
	// Permit is how long a guest that may start only by the manager's word waits for that word.
	Permit time.Duration
	// DependencyPatience: a guest that waits so long for others to run starts without them.
	DependencyPatience time.Duration
	// StopTries: a guest that could not be stopped so often is in error.
	StopTries int
	// MoveBackoff: a guest whose move failed waits so long until the manager tries again, twice as long each further time, up to MoveBackoffMax.
	MoveBackoff, MoveBackoffMax time.Duration
	// MovesPerNode is how many guests may move to or from a node at a time, by the manager's choice.
	MovesPerNode int
	// A node that was silent FlapCount times within FlapWindow is quarantined: no target for Quarantine after the last.
	FlapCount              int
	FlapWindow, Quarantine time.Duration
	// Remeasure is how often the balance is looked at where it is made by what was measured: of measurements nobody is told.
	Remeasure time.Duration
}

// DefaultParams are those of production.
func DefaultParams() Params {
	return Params{
		Suspect:      3 * time.Second, // three renewals missed
		Poll:         100 * time.Millisecond,
		Retry:        250 * time.Millisecond,
		Unable:       time.Second, // the agent tells much sooner; this is for what it misses
		ReserveMiB:   1024,        // agent, guard, store and kernel
		LockRetry:    250 * time.Millisecond,
		LockPatience: 30 * time.Second, // three leases: by then the old node's guard has killed what held it
		BackoffFirst: time.Second,
		BackoffMax:   30 * time.Second,
		Stable:       time.Minute,

		Ask:            2 * time.Second, // asking harms nobody
		AskEvery:       250 * time.Millisecond,
		Confirm:        500 * time.Millisecond,
		RefusedFirst:   time.Second,
		RefusedMax:     10 * time.Second,
		FenceDelay:     6 * time.Second,
		TakeAfter:      lease.DefaultParams().TakeAfter(),
		InFlight:       lease.DefaultParams().InFlight,
		RebootPatience: time.Minute, // the delay after which Proxmox VE would recover them
		FleeAfter:      health.DefaultParams().Spread(),
		AwayPatience:   45 * time.Second, // LostAfter, a probe, and half a minute for a node that was cut off to be sure
		Permit:         5 * time.Second,
		StopTries:      3,
		// Longer than any guest takes to boot; it ends the wait of those that wait for each other.
		DependencyPatience: 5 * time.Minute,
		MoveBackoff:        2 * time.Second,
		MoveBackoffMax:     30 * time.Second,
		MovesPerNode:       4,
		FlapCount:          3,
		FlapWindow:         10 * time.Minute,
		Quarantine:         10 * time.Minute,
		Remeasure:          10 * time.Second, // the least time between two records of one node
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
	// Wait is how long the silence must last yet for MayTake, if that is all that is missing and it is known; 0 else. It saves the polling.
	Wait time.Duration
	// Heard is the time since the last sign of life by any path: a renewal, or a beacon on either network. It
	// counts only where Fencing is used; an agent that leaves it 0 never shoots.
	Heard time.Duration
	// Beacons: this agent listens to beacons and has heard one of this member's. Renewals alone cannot tell a member that is silent from an agent that stood
	// still, so without it the member is asked for and never shot.
	Beacons bool
	// Fencing are the configured ways to prove the member dead, in the order of their use.
	Fencing []FenceMethod
	// Request, Mode, Health and History are the records of the member; a record that is not there is its zero value.
	Request         NodeRequest
	Mode            NodeMode
	Health          NodeHealth
	History         History
	HistoryRevision int64
	// CPUs is the number of processors, Load what is used of the member at the moment, by its guests and by all else.
	CPUs int
	Load Load
	// Rack and Site are the member's failure domains, "" where nobody said.
	Rack, Site string
	// Level is that of the member's agent, see [Level].
	Level int
}

// Level is what this version knows of the records, and says in node/<name>. At 1 it knows Live.Covers, whose absence would not be safe: to
// an older agent each cut is about all guests. So nothing is done on a blocklist alone while a member does not know it.
const Level = 1

// Load is what was measured, lossy and a few seconds old. The zero value is "not known".
type Load struct {
	CPU       float64 // processors in use: 1.5 is one and a half
	MemoryMiB int64
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
	// Kind is the service's type, "vm" where it is "".
	Kind string
	// Unmeasured: its node has told what its guests use, and not yet of this one. While it runs it counts as what it may use.
	Unmeasured bool
	// Lock is the guest's configuration lock, "" if there is none. Such a guest is not moved by choice.
	Lock string
	// RBD: all its writable disks are on RBD, so that a blocklist entry can prove that its old QEMU writes nothing.
	RBD bool
	// NoLive says why it cannot migrate while it runs, "" if it can. It is relocated instead, as each ct is.
	NoLive string
	CPUs   int
	Load   Load
	// Idle: it is known not to run, because its node says so or it is a template. It tells of guests that are no HA resources; of the
	// others their status does.
	Idle bool
}

// SID is the name of the guest's service, "vm:100".
func (g Guest) SID() string { return sid(g.Kind, g.VMID) }

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

// View is an event: all that the manager looks at. The agent feeds one whenever
// something in it changed, and when a Wake is due.
type View struct {
	// Revision of the store that the view shows; no record in it is older.
	Revision int64
	Quorate  bool
	// LeaseValid: this node is registered in this boot and its lease is not over. Without it nothing is decided, because then its own record is
	// of an earlier boot, and so is what else the store says of it.
	LeaseValid bool
	// Manager and ManagerRevision are ha/manager; revision 0 means that there is none.
	Manager         model.Manager
	ManagerRevision int64
	Members         []Member
	// Resources are the supported ones of ha/resources.cfg with their requested state.
	Resources map[model.VMID]pveconf.HAState
	// Guests are all of the cluster; those that are not HA resources count as load, unless they are Idle.
	Guests    []Guest
	Protected map[model.VMID]Protected
	Intents   map[model.VMID]Intent
	Statuses  map[model.VMID]StatusRecord
	// Config is what ha/resources.cfg says beyond the requested state. A resource that is missing has no limits on its tries.
	Config   map[model.VMID]Resource
	Commands map[model.VMID]CommandRecord
	Policy   Policy
	Mode     Mode
	// Rules are those of ha/rules.cfg, compiled for these members; nil for none.
	Rules *rules.Set
	// Unix is the wall clock in seconds. It is compared with Until of what was disarmed for a time and kept in histories; nothing
	// else depends on it.
	Unix int64
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
	// Config, Commands, Policy, Mode and Unix are as in View.
	Config   map[model.VMID]Resource
	Commands map[model.VMID]CommandRecord
	Policy   Policy
	Mode     Mode
	Unix     int64
	// Members maps each member to the revision of node/<name>. Without it no guest is handed over.
	Members map[string]int64
	// Request, NodeMode and Health are this node's records. A mode of another boot is none.
	Request  NodeRequest
	NodeMode NodeMode
	Health   NodeHealth
	// AwaitManager: a guest that was stopped starts only when the manager says so, because rules, an order or a limit may speak against it. It is
	// set where such things are configured. What ran already, and what the manager moved here, does not wait.
	AwaitManager bool
}

// Process is a QEMU on this machine.
type Process struct {
	State ProcessState
	// Guarded: the guard confirmed that it watches this guest.
	Guarded bool
	// Answers: the guest agent has answered since the guest started.
	Answers bool
	// Sick says what is wrong with a guest that runs: SickPanicked or SickSilent, "" if nothing is known to be.
	Sick Sickness
}

// ProcessState is what the agent knows of a QEMU.
type ProcessState int

// The states that make a difference here.
const (
	ProcessRunning  ProcessState = iota // any state of a guest that has run: paused and frozen too
	ProcessIncoming                     // started to receive a migration, and never continued
)

// Event is View, LocalView, Tick, ActionDone, ActionFailed, FenceResult or ProcessGone.
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
	FailAway              // Start only: a storage of the guest does not answer here, is not mounted, or its connection is broken
	FailUnready           // the node cannot at the moment, whatever the guest: no quorum, a lease too short, the guard does not answer
)

// ProcessGone says that a QEMU of this machine ended, whatever the cause. It
// comes at once, before a view without the process.
type ProcessGone struct{ VMID model.VMID }

// FenceResult is the outcome of AskFence, and of Shoot by a blocklist, instead of ActionDone.
type FenceResult struct {
	Action Action
	// Off: the method says that the node has no power. Everything else, errors included, is no answer and changes nothing. Lasted is how long
	// it was read for, between the first reading and the last: 0 if it was read once.
	Off    bool
	Lasted time.Duration
	// Guests are those that the storage was seen to keep from writing, and that no other client has open.
	Guests []model.VMID
}

func (FenceResult) isEvent()  {}
func (View) isEvent()         {}
func (LocalView) isEvent()    {}
func (Tick) isEvent()         {}
func (ActionDone) isEvent()   {}
func (ActionFailed) isEvent() {}
func (ProcessGone) isEvent()  {}
