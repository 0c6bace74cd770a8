package ha

import (
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/health"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
)

// Status is the JSON under ha/service/<sid>: what the owner's worker or the manager last decided, and all that
// must not be forgotten when either restarts. Fields that a reader does not know are dropped when it writes; each is such that its absence is safe.
type Status struct {
	State  StatusState `json:"state"`
	Node   string      `json:"node"`
	Reason string      `json:"reason,omitempty"`
	// Target of migrate and relocate.
	Target string `json:"target,omitempty"`
	// Failures counts the starts that failed on Node since the guest last ran or was asked for anew.
	Failures int `json:"failures,omitempty"`
	// Tried are the nodes on which it was given up since then, one twice if it was given up there twice.
	Tried []string `json:"tried,omitempty"`
	// MoveFailures counts the moves that failed in a row.
	MoveFailures int `json:"move_failures,omitempty"`
	// Away is the node in maintenance that the guest left, and to which it returns.
	Away string `json:"away,omitempty"`
	// Hold says why the manager does not let it start, "" if it may.
	Hold string `json:"hold,omitempty"`
	// Ready: the guest agent has answered since the guest started.
	Ready bool `json:"ready,omitempty"`
	// Since is when State last changed, Unix seconds by the writer's clock.
	Since int64 `json:"since,omitempty"`
	// Log are the last decisions, the newest last.
	Log []Decision `json:"log,omitempty"`
}

// Decision is one line of a service's history.
type Decision struct {
	Unix   int64       `json:"unix"`
	By     string      `json:"by"`
	State  StatusState `json:"state"`
	Node   string      `json:"node"`
	Target string      `json:"target,omitempty"`
	Reason string      `json:"reason,omitempty"`
}

// MaxLog is how many decisions a record keeps.
const MaxLog = 8

// StatusState is what `ha status` shows. The words are Proxmox VE's.
type StatusState string

// The states of an HA resource.
const (
	StatusStarting StatusState = "starting" // the owner's worker starts it, or may
	StatusStarted  StatusState = "started"  // it runs
	StatusStopping StatusState = "request_stop"
	StatusStopped  StatusState = "stopped"
	StatusMigrate  StatusState = "migrate"  // the owner's worker moves it to Target while it runs
	StatusRelocate StatusState = "relocate" // the owner's worker stops it and hands it over to Target
	StatusError    StatusState = "error"    // nothing is tried until a person disables it
	StatusFreeze   StatusState = "freeze"   // its node ends in order, or HA is disarmed: nothing is done
	StatusIgnored  StatusState = "ignored"  // HA is disarmed: as if it were no HA resource
	StatusFence    StatusState = "fence"    // its node is being cut off
	StatusRecovery StatusState = "recovery" // its node is lost and it waits for a place
)

// StatusRecord is a Status and its revision in the store.
type StatusRecord struct {
	Status
	Revision int64
}

// Says reports whether s says the same as o; when it was said does not count.
func (s Status) Says(o Status) bool {
	return s.State == o.State && s.Node == o.Node && s.Reason == o.Reason && s.Target == o.Target &&
		s.Failures == o.Failures && slices.Equal(s.Tried, o.Tried) && s.MoveFailures == o.MoveFailures &&
		s.Away == o.Away && s.Hold == o.Hold && s.Ready == o.Ready
}

// after is s as it is written over old: with the time, and the log continued.
func (s Status) after(old Status, by string, unix int64) Status {
	s.Since = old.Since
	if s.State != old.State || old.Since == 0 {
		s.Since = unix
	}
	s.Log = append(slices.Clone(old.Log), Decision{unix, by, s.State, s.Node, s.Target, s.Reason})
	s.Log = s.Log[max(0, len(s.Log)-MaxLog):]
	return s
}

// moving: the record asks the owner's worker to bring the guest to Target.
func (s Status) moving() bool {
	return (s.State == StatusMigrate || s.State == StatusRelocate) && s.Target != ""
}

// Resource is what ha/resources.cfg says of one resource beyond its requested state.
type Resource struct {
	// Kind is the type of the service, "vm" where it is "".
	Kind string
	// MaxRestart is how often a start that failed is repeated on the same node, MaxRelocate how often the guest is then tried elsewhere.
	MaxRestart, MaxRelocate int
	// NoFailback: it stays where it is while the rules allow it, also if they prefer another node.
	NoFailback bool
	// Order: of several that start at the same time, the lower one goes first; 0 is the last.
	Order int
	// After lists what must run before it starts.
	After []Dependency
	// NoRebalance: the balancer leaves it where it is.
	NoRebalance bool
	// ResetOn are the sicknesses that reset the guest.
	ResetOn []Sickness
}

// Dependency is a guest that must run first.
type Dependency struct {
	VMID model.VMID
	// Answers: its guest agent must have answered. Else it must have run for Delay.
	Answers bool
	Delay   time.Duration
}

// Sickness is what can be wrong with a guest whose QEMU runs.
type Sickness = health.Sickness

// The sicknesses that an agent can tell.
const (
	SickPanicked = health.SickPanicked
	SickSilent   = health.SickSilent
)

func sid(kind string, id model.VMID) string {
	if kind == "" {
		return id.SID()
	}
	return kind + ":" + id.String()
}

// Command is the JSON under ha/command/<sid>: what a person wants done once. The API writes it; the transaction that acts on it, or refuses it, deletes it. With
// CommandStop the API sets the requested state to stopped in the same transaction.
type Command struct {
	Kind CommandKind `json:"kind"`
	// Target of migrate and relocate.
	Target string `json:"target,omitempty"`
	// TimeoutSeconds of stop: how long the guest may take to shut down before it is ended hard; 0 ends it hard at once.
	TimeoutSeconds int `json:"timeout_seconds,omitempty"`
}

// CommandKind is what to do.
type CommandKind string

// The commands for a service.
const (
	CommandMigrate  CommandKind = "migrate"
	CommandRelocate CommandKind = "relocate"
	CommandStop     CommandKind = "stop"
)

// CommandRecord is a Command and its revision in the store.
type CommandRecord struct {
	Command
	Revision int64
}

// NodeRequest is the JSON under ha/request/<node>: what a person wants of a node. The API writes it.
type NodeRequest struct {
	// Maintenance: the guests leave, live where they can, and return when it ends. It outlasts a reboot.
	Maintenance bool `json:"maintenance,omitempty"`
	// Disarm takes the node's guests out of HA, until Until (Unix seconds; 0 is for good). Since is when a person wanted it.
	Disarm Disarm `json:"disarm,omitempty"`
	Until  int64  `json:"until,omitempty"`
	Since  int64  `json:"since,omitempty"`
}

// Mode is the JSON under ha/mode: it disarms the whole cluster, until Until (Unix seconds; 0 is for good). Since is when a person wanted it.
type Mode struct {
	Disarm Disarm `json:"disarm,omitempty"`
	Until  int64  `json:"until,omitempty"`
	Since  int64  `json:"since,omitempty"`
}

// Disarm says what becomes of guests for which HA is disarmed. In both cases no node is fenced for them and they leave the guard.
type Disarm string

// The ways to disarm.
const (
	Armed        Disarm = ""
	DisarmFreeze Disarm = "freeze" // they stay as they are, commands are refused
	DisarmIgnore Disarm = "ignore" // as if they were no HA resources: a person may start, stop and move them
)

// disarmed is what holds at unix of what was disarmed until then.
func disarmed(d Disarm, until, unix int64) Disarm {
	if until != 0 && unix >= until {
		return Armed
	}
	return d
}

// At is what holds at a time.
func (m Mode) At(unix int64) Disarm { return disarmed(m.Disarm, m.Until, unix) }

// DisarmAt is what holds at a time for the node.
func (r NodeRequest) DisarmAt(unix int64) Disarm { return disarmed(r.Disarm, r.Until, unix) }

// maxEndWait bounds the wait for an Until: the clock that it is of may be set.
const maxEndWait = time.Minute

// endsIn is how long to wait before looking if what was disarmed is armed again; 0 if that does not end by itself, or has.
func endsIn(d Disarm, until, unix int64) time.Duration {
	if until == 0 || disarmed(d, until, unix) == Armed {
		return 0
	}
	return time.Duration(min(until-unix, int64(maxEndWait/time.Second))) * time.Second
}

// NodeMode is the JSON under ha/node/<node>: the node ends in order. The node itself writes it first of all, and deletes it when it serves again. It says nothing when
// BootID is not that of live/<node>, so nobody need delete it after a reboot.
type NodeMode struct {
	Ends   NodeEnd `json:"ends"`
	BootID string  `json:"boot_id"`
}

// NodeEnd is how a node ends.
type NodeEnd string

// The orderly ends.
const (
	EndsRestart  NodeEnd = "restart" // the agent alone: guests run on
	EndsReboot   NodeEnd = "reboot"
	EndsShutdown NodeEnd = "shutdown"
)

// NodeIdle is the JSON under ha/idle/<node>: which of its guests outside HA do not run. One that is not named may run. It is a hint for the
// placement, in force during one boot of the node and while the node is there.
type NodeIdle struct {
	BootID string       `json:"boot_id"`
	Guests []model.VMID `json:"guests,omitempty"`
}

// NodeHealth is the JSON under ha/health/<node>: the node itself writes it when it has lost something for long enough to be sure.
type NodeHealth struct {
	// Lost are storages that give errors or do not answer: guests with volumes there relocate.
	Lost []string `json:"lost,omitempty"`
	// Doubt are storages of which it is not known whether they are well, told at once: no guest is brought here for one of them, and none leaves.
	Doubt []string `json:"doubt,omitempty"`
	// NetworkDown names the guests' network if its link is down: guests migrate away.
	NetworkDown string `json:"network_down,omitempty"`
}

// History is the JSON under ha/history/<node>: the manager's memory of a node's silences, for the quarantine.
type History struct {
	Silences []Silence `json:"silences,omitempty"`
}

// Silence is one time that a node was suspect.
type Silence struct {
	Revision int64 `json:"revision"` // of the live record that was not renewed; it tells one silence from another
	Unix     int64 `json:"unix"`
}

// Policy is what datacenter.cfg says.
type Policy struct {
	Shutdown ShutdownPolicy
	// Tolerate is the number of nodes that may fail such that all guests come back; a start that would break it
	// is refused, or with WarnOnly allowed with a word. 0 asks for nothing.
	Tolerate int
	WarnOnly bool
	// Placing is how nodes compare, Overcommit lets them take more memory than they have.
	Placing    place.Mode
	Overcommit bool
	// RebalanceOnStart: a guest that was stopped starts on the best node, not on its own.
	RebalanceOnStart bool
	// Rebalance: guests that run are moved for a better balance, by Balance.
	Rebalance bool
	Balance   place.BalanceParams
}

// ShutdownPolicy says what becomes of guests when their node ends in order.
type ShutdownPolicy string

// The policies of Proxmox VE. "" is conditional.
const (
	ShutdownConditional ShutdownPolicy = "conditional" // reboot: freeze; shutdown: failover
	ShutdownFreeze      ShutdownPolicy = "freeze"      // they are stopped, and wait for the node
	ShutdownFailover    ShutdownPolicy = "failover"    // they are stopped, and start elsewhere
	ShutdownMigrate     ShutdownPolicy = "migrate"     // they leave before, and return
)

// freezes says whether guests of a node that ends so wait for it.
func (p Policy) freezes(end NodeEnd) bool {
	switch p.Shutdown {
	case ShutdownFreeze:
		return true
	case ShutdownFailover, ShutdownMigrate:
		return end == EndsRestart
	default:
		return end != EndsShutdown
	}
}

// FenceMethod is a configured way to prove a member dead.
type FenceMethod struct {
	Name string
	// Blocklist: it shuts the member out of the storage and proves nothing for guests with disks elsewhere. Else it is about the power.
	Blocklist bool
	// Rehearsed: the last rehearsal went well. One that did not proves nothing and is not used.
	Rehearsed bool
	// Order: methods of the same order shoot at once, those of a higher one when the lower ones have failed or cannot.
	Order int
}
