package api

import (
	"context"
	"time"
)

// What the server needs of high availability, one interface a noun. All of it concerns the whole cluster, except
// HANodes.EndNode and what HAFencing asks of a BMC, which this node does itself.

// Section is one entry of a configuration file such as ha/rules.cfg, as it stands there.
type Section struct {
	Type   string            `json:"type"`
	ID     string            `json:"id"`
	Values map[string]string `json:"values"`
}

// Sections are a file of them.
type Sections struct {
	List   []Section `json:"list"`
	Digest string    `json:"digest"` // SHA-1 of the file, hexadecimal
	// Dropped says of rules by their ID why they have no effect.
	Dropped map[string]string `json:"dropped,omitempty"`
}

// Edit changes one entry, or a file of lines "key: value".
type Edit struct {
	Set    map[string]string
	Delete []string
	// Digest is that of the file which the change is meant for; "" skips the check. Another one is ErrConflict.
	Digest string
}

// HAResource is a guest that is protected.
type HAResource struct {
	SID     string `json:"sid"`   // "vm:100"
	State   string `json:"state"` // requested: started, stopped, disabled, ignored
	Comment string `json:"comment,omitempty"`
	// Values are the other keys of its section: max_restart, max_relocate, failback, auto-rebalance, order, after, reset-on.
	Values map[string]string `json:"values,omitempty"`
	// Digest is that of ha/resources.cfg.
	Digest string `json:"digest,omitempty"`
	// What is: filled in by HAStatus.
	Node   string `json:"node,omitempty"`
	Status string `json:"status,omitempty"` // started, stopped, starting, fence, recovery, migrate, error …
	Reason string `json:"reason,omitempty"`
	Target string `json:"target,omitempty"` // of migrate and relocate
	// The settings in effect: filled in by HAStatus, and by the client of what is configured.
	MaxRestart  int  `json:"max_restart"`
	MaxRelocate int  `json:"max_relocate"`
	Failback    bool `json:"failback"`
	Rebalance   bool `json:"auto_rebalance"`
}

// HAStatus is what `ha status` prints.
type HAStatus struct {
	// Alarms are what nobody may overlook: a guest that runs twice. The server collects them from all nodes that answer.
	Alarms []HAAlarm `json:"alarms"`
	// Problems are configuration files that cannot be read, by which nothing is decided, rules without effect, and nodes of which no beacons are heard.
	Problems []string `json:"problems,omitempty"`
	Manager  string   `json:"manager"`
	Quorate  bool     `json:"quorate"`
	// Disarm is "freeze" or "ignore" while the cluster is disarmed, until Until (Unix seconds; 0 is for good).
	Disarm   string         `json:"disarm,omitempty"`
	Until    int64          `json:"until,omitempty"`
	Nodes    []HANodeStatus `json:"nodes"`
	Services []HAResource   `json:"services"`
	// Tolerance is missing where nobody can say it now.
	Tolerance *HATolerance `json:"tolerance,omitempty"`
}

// HAAlarm is something that must never happen and was seen.
type HAAlarm struct {
	SID  string `json:"sid"`
	Unix int64  `json:"unix"` // when it was seen first
	Text string `json:"text"` // a sentence: what was seen, and what to do
	// SeenBy are the nodes that saw it, the first of which says Text.
	SeenBy []string `json:"seen_by,omitempty"`
}

// HANodeStatus is a node as the node that answers sees it.
type HANodeStatus struct {
	Node      string `json:"node"`
	State     string `json:"state"` // online, suspect, fenced, left
	Epoch     uint64 `json:"epoch"`
	SilenceMS int64  `json:"silence_ms"` // since the last renewal arrived here
	// Mode is maintenance, restart, reboot or shutdown while the node is in that, or ends so; "" else.
	Mode string `json:"mode,omitempty"`
	// Disarm is "freeze" or "ignore" while this one node is disarmed, until Until.
	Disarm string `json:"disarm,omitempty"`
	Until  int64  `json:"until,omitempty"`
	// Quarantine is why the node is no target although it is there, Lost what it lost (storages, the guests' network); "" for nothing.
	Quarantine string `json:"quarantine,omitempty"`
	Lost       string `json:"lost,omitempty"`
	Rack       string `json:"rack,omitempty"`
	Site       string `json:"site,omitempty"`
	// Load is missing where guests are not placed by measured load, and of a node that is not online.
	Load *HALoad `json:"load,omitempty"`
	// Fencing are the methods of ha/fence.cfg for this node; the lease is always there besides.
	Fencing []HAFenceMethod `json:"fencing,omitempty"`
}

// HALoad is what is used of a node, its guests included, as an average of about the last minute.
type HALoad struct {
	// Measured: the node has told what still counts. While one node online has not, guests are placed by what is configured.
	Measured     bool    `json:"measured"`
	CPU          float64 `json:"cpu"` // processors: 1.5 is one and a half
	CPUs         int     `json:"cpus"`
	MemoryMiB    int64   `json:"memory_mib"`
	MaxMemoryMiB int64   `json:"max_memory_mib"`
}

// HAFenceMethod is a way to prove a node dead sooner than the lease does.
type HAFenceMethod struct {
	Method string `json:"method"` // "redfish: n2-bmc"
	Node   string `json:"node"`
	// Grade is rehearsed, untried, unidentified or worthless; Reason says why it is worthless.
	Grade  string `json:"grade"`
	Reason string `json:"reason,omitempty"`
	// Tried is when it was rehearsed last, Unix seconds, 0 for never; Failed why that failed; Switched whether the node was switched off by it.
	Tried    int64  `json:"tried,omitempty"`
	Failed   string `json:"failed,omitempty"`
	Switched bool   `json:"switched,omitempty"`
	TookMS   int64  `json:"took_ms,omitempty"`
}

// HATolerance is how many nodes may fail.
type HATolerance struct {
	// Nodes may fail, whichever they are, and every protected guest comes back. If not Exact, more were not tried.
	Nodes int  `json:"nodes"`
	Exact bool `json:"exact"`
	// Failed are the first nodes found whose loss is too much, Lost the guests that would not come back then.
	Failed []string      `json:"failed,omitempty"`
	Lost   []HAPlacement `json:"lost,omitempty"`
	// Quorum: guests would find places, but one node more would take the majority, and nothing would be decided.
	Quorum bool `json:"quorum,omitempty"`
	// Wanted is failures-to-tolerate of datacenter.cfg; Warn: a start that breaks it is allowed with a word.
	Wanted int  `json:"wanted,omitempty"`
	Warn   bool `json:"warn,omitempty"`
}

// HAPlacement is where a guest would go, To "" for nowhere, and why.
type HAPlacement struct {
	SID    string `json:"sid"`
	From   string `json:"from"`
	To     string `json:"to,omitempty"`
	Reason string `json:"reason"`
}

// HAPlan is what would happen if nodes were lost at once.
type HAPlan struct {
	Lost []string `json:"lost"`
	// Moves are the protected guests of the nodes lost, in the order in which they would be placed.
	Moves []HAPlacement `json:"moves"`
	// Down are guests that nobody would bring back, and why: they are not protected, or are not to run.
	Down []HAPlacement `json:"down"`
	// Quorate: the nodes that are left are enough to decide anything.
	Quorate bool `json:"quorate"`
}

// HAExplanation is all that is known of why a guest is where and as it is.
type HAExplanation struct {
	HAResource
	Since int64 `json:"since,omitempty"` // of Status, Unix seconds
	// Hold says why it may not start, "" if it may. Failures, Tried, MoveFailures and Away are counted since it last ran or stayed.
	Hold         string   `json:"hold,omitempty"`
	Failures     int      `json:"failures,omitempty"`
	Tried        []string `json:"tried,omitempty"`
	MoveFailures int      `json:"move_failures,omitempty"`
	Away         string   `json:"away,omitempty"` // the node in maintenance to which it returns
	// Protected: its node's guard has it. Command is one that waits to be carried out.
	Protected bool   `json:"protected"`
	Command   string `json:"command,omitempty"`
	// Rules are those that name it, as sentences.
	Rules []string `json:"rules,omitempty"`
	// Nodes says of each node whether it could take the guest, as if its own were lost.
	Nodes []HAVerdict `json:"nodes"`
	// Log are the last decisions, the newest last.
	Log []HADecision `json:"log"`
}

// HAVerdict is what the placement thinks of a node.
type HAVerdict struct {
	Node   string `json:"node"`
	OK     bool   `json:"ok"`
	Chosen bool   `json:"chosen,omitempty"`
	Reason string `json:"reason"`
}

// HADecision is one line of a service's history.
type HADecision struct {
	Unix   int64  `json:"unix"`
	By     string `json:"by"`
	State  string `json:"state"`
	Node   string `json:"node"`
	Target string `json:"target,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// HA is what is protected.
type HA interface {
	HAResources(ctx context.Context) ([]HAResource, error)
	// HAAdd protects a guest: SID, State, Comment and Values count. ErrExists if it is.
	HAAdd(ctx context.Context, r HAResource) error
	HASet(ctx context.Context, sid string, e Edit) error
	// HARemove protects it no longer; with purge the rules forget it too, and one that is left empty goes.
	HARemove(ctx context.Context, sid string, purge bool) error
	HAStatus(ctx context.Context) (HAStatus, error)
	HAExplain(ctx context.Context, sid string) (HAExplanation, error)
	// HAWhatIf plans the loss of nodes with the planner that would be used.
	HAWhatIf(ctx context.Context, nodes []string) (HAPlan, error)
}

// HAAlarms are those that this node's double-run detector raised. They stay until a person acknowledges them.
type HAAlarms interface {
	Alarms(ctx context.Context) ([]HAAlarm, error)
	// AcknowledgeAlarms ends this node's alarms about a guest. A guest that goes on running twice raises another.
	AcknowledgeAlarms(ctx context.Context, sid string) error
}

// HARules are ha/rules.cfg, and ha/groups.cfg to read. A file that would contradict itself is refused with ErrInvalid.
type HARules interface {
	Rules(ctx context.Context) (Sections, error)
	AddRule(ctx context.Context, rule Section) error
	SetRule(ctx context.Context, id string, e Edit) error
	RemoveRule(ctx context.Context, id string) error
	Groups(ctx context.Context) (Sections, error)
}

// HAMove is the answer to the wish that a guest move.
type HAMove struct {
	SID  string `json:"sid"`
	Node string `json:"node"`
	// With go along, because a rule keeps them together.
	With []string `json:"with,omitempty"`
	// Blocking are why it cannot be; then nothing was asked for.
	Blocking []HABlocking `json:"blocking,omitempty"`
}

// HABlocking is a resource that keeps another from going somewhere.
type HABlocking struct {
	SID   string `json:"sid"`
	Cause string `json:"cause"` // node-affinity or resource-affinity
}

// HADisarm takes guests out of HA for a time.
type HADisarm struct {
	Mode string        // freeze or ignore
	Node string        // "" for the whole cluster
	For  time.Duration // whole seconds; 0 is until it is armed again
}

// HAServices is what a person wants done with guests.
type HAServices interface {
	// Move asks that a guest go to node: while it runs (kind "migrate") or by a stop and a start ("relocate").
	Move(ctx context.Context, sid, kind, node string) (HAMove, error)
	// StopService asks that a guest be stopped and stay so; after timeout it is stopped hard.
	StopService(ctx context.Context, sid string, timeout time.Duration) error
}

// HANodes is what a person wants of nodes, and of the cluster.
type HANodes interface {
	Maintenance(ctx context.Context, node string, on bool) error
	Disarm(ctx context.Context, d HADisarm) error
	// Arm ends it, of one node or, with "", of the cluster.
	Arm(ctx context.Context, node string) error
	// Label says in which rack and site a node stands; nil leaves it.
	Label(ctx context.Context, node string, rack, site *string) error
	// EndNode ends this node in order: its guests leave by the policy of datacenter.cfg, then it goes down. It returns when that has begun.
	EndNode(ctx context.Context, reboot bool) error
	// DrainNode ends this node as EndNode does, but leaves the machine to the caller: it returns when that may go down.
	DrainNode(ctx context.Context, reboot bool) error
}

// HAFenceFile is ha/fence.cfg.
type HAFenceFile struct {
	Text   string `json:"text"`
	Digest string `json:"digest"`
}

// HAFencing is ha/fence.cfg and what is behind it.
type HAFencing interface {
	FenceFile(ctx context.Context) (HAFenceFile, error)
	// SetFenceFile replaces the file; digest as in Edit.
	SetFenceFile(ctx context.Context, text, digest string) error
	// SetFenceMethod changes one section, or makes it where Section.Type is set and there is none. A secret that is not "" becomes its password
	// and its password-file in the same step; without one the password-file that is set must be there.
	SetFenceMethod(ctx context.Context, s Section, e Edit, secret string) error
	RemoveFenceMethod(ctx context.Context, id string) error
	// SetFenceSecret writes a password to priv/fence/<name>; "" deletes it. Nobody can read it back.
	SetFenceSecret(ctx context.Context, name, secret string) error
	FenceMethods(ctx context.Context) ([]HAFenceMethod, error)
	// FenceTest tries the methods of a node that is there and notes how it went. With switching the node, which must be empty, is really switched off.
	FenceTest(ctx context.Context, node string, switching bool) ([]HAFenceMethod, error)
}

// DatacenterOptions are the lines of datacenter.cfg that work.
type DatacenterOptions interface {
	Options(ctx context.Context) (values map[string]string, digest string, err error)
	SetOptions(ctx context.Context, e Edit) error
}
