package place

import (
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/rules"
)

// NodeState is what the caller knows of a node's liveness.
type NodeState int

// The states of a node; only Online nodes are chosen.
const (
	Offline NodeState = iota // never registered, or left in good order
	Online
	Suspect     // silent for longer than usual
	Fenced      // the cut was made and it has not registered again
	Maintenance // there, and to be left: its guests go elsewhere and come back
)

// Mode is what makes a node the better one.
type Mode int

// The modes, with Proxmox VE's meaning of crs: ha=….
const (
	Basic   Mode = iota // the number of guests
	Static              // configured cpus and memory
	Dynamic             // measured cpus and memory
)

// String is the word of datacenter.cfg.
func (m Mode) String() string {
	switch m {
	case Static:
		return "static"
	case Dynamic:
		return "dynamic"
	default:
		return "basic"
	}
}

// Node is a candidate.
type Node struct {
	Name  string
	State NodeState
	// MemoryMiB is the machine's memory; 0 means that the node has not told, and refuses it.
	MemoryMiB int64
	// CPUs are the machine's processors; Static and Dynamic need them.
	CPUs int
	// Storages are those on which this node finds the volumes of guests that come from other nodes.
	Storages []string
	// Rack and Site are the node's failure domains, "" where nobody said.
	Rack, Site string
	// UsedCPUs and UsedMiB are what the node measured last, its guests included, if Measured is set. Dynamic needs them of
	// all nodes that are online, and falls back to Static without.
	Measured bool
	UsedCPUs float64
	UsedMiB  int64
}

// Guest is a guest that has a place, or had one on a node that is lost.
type Guest struct {
	VMID model.VMID
	// SID is its name in rules; "" stands for vm:<VMID>.
	SID string
	// Node is where it is, and Target where it is going, "" if it stays. It counts on both, and for those who must be with it on Target alone.
	Node, Target string
	// MemoryMiB and CPUs are what it may use; CPUs 0 means as much as there is.
	MemoryMiB int64
	CPUs      float64
	// UsedCPUs and UsedMiB are what it was measured to use.
	UsedCPUs float64
	UsedMiB  int64
	// Idle: it does not run and is not being started, so it uses nothing, and no rule asks where it is.
	Idle bool
	// Starting: it is being started on Node, whose measurement does not show it yet.
	Starting bool
	// HA: it is an HA resource that is to run. Only such guests are evaluated, rebalanced and brought back.
	HA bool
	// NoFailback leaves it where it is allowed when a better class of nodes is there.
	NoFailback bool
	// NoRebalance: the balancer leaves it where it is.
	NoRebalance bool
	// Home is the node from which a maintenance drove it; it goes back when it can. "" if there is none.
	Home string
	// Storages are those of its volumes.
	Storages []string
}

// Name is the guest's SID.
func (g Guest) Name() string {
	if g.SID != "" {
		return g.SID
	}
	return g.VMID.SID()
}

// Cluster is all that a placement looks at.
type Cluster struct {
	Nodes  []Node
	Guests []Guest
	// ReserveMiB is the memory of each node that guests must not take.
	ReserveMiB int64
	Mode       Mode
	// Rules are those in effect; nil for none.
	Rules *rules.Set
	// Overcommit lets a node take more configured memory than it has, as Proxmox VE does.
	Overcommit bool
}

// Preference says how much a guest clings to its node.
type Preference int

// The preferences.
const (
	Best Preference = iota // the best node there is: its node is lost, or it is about to start
	Stay                   // where it is if it may; else the best
	Next                   // not where it was tried: its start failed there
)

// Request is the guest that needs a place. If the cluster lists it already, it does not count against itself.
type Request struct {
	VMID model.VMID
	// SID is its name in rules; "" stands for vm:<VMID>.
	SID       string
	MemoryMiB int64
	CPUs      float64  // 0 means as much as there is
	Storages  []string // that the node must have
	// Exclude maps a node to the reason why it must not be chosen.
	Exclude map[string]string
	// Prefer, and what Stay and Next need: the node where it is, those where its start failed, and the rest as in [Guest].
	Prefer     Preference
	Node       string
	Tried      []string
	NoFailback bool
	Home       string
}

// Name is the guest's SID.
func (r Request) Name() string {
	if r.SID != "" {
		return r.SID
	}
	return r.VMID.SID()
}

// Request is what g needs to be placed anew.
func (g Guest) Request(p Preference) Request {
	return Request{
		VMID: g.VMID, SID: g.SID, MemoryMiB: g.MemoryMiB, CPUs: g.CPUs, Storages: g.Storages,
		Prefer: p, Node: g.Node, NoFailback: g.NoFailback, Home: g.Home,
	}
}
