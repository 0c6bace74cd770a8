package lab

import "time"

// PowerAction is what can be done to a node's power.
type PowerAction string

// Off kills every process of the node at once; On boots it; Cycle is both; Reset
// is Cycle and is counted as a reset. Shutdown and Reboot are an administrator's: the node runs what its systemd
// would run before it stops the services (`sauh node drain`), stops them in order, and goes down.
const (
	PowerOff   PowerAction = "off"
	PowerOn    PowerAction = "on"
	PowerCycle PowerAction = "cycle"
	PowerReset PowerAction = "reset"

	PowerShutdown PowerAction = "shutdown"
	PowerReboot   PowerAction = "reboot"
)

// Power states of a node.
const (
	StateOn     = "on"
	StateOff    = "off"
	StateFailed = "failed" // it did not boot, or its init died; Why says more
)

// PowerResult is what a power action did.
type PowerResult struct {
	Node  string `json:"node"`
	Power string `json:"power"` // the state after
	// Changed is false if the node was in that state already.
	Changed bool `json:"changed"`
	// CutAt is when the power was cut; zero if it was not.
	CutAt time.Time `json:"cut_at,omitzero"`
	// Killed is how long it took from the cut until no process of the node was left.
	Killed time.Duration `json:"killed_ns,omitempty"`
	// Booted is how long it took from power on until the units were started.
	Booted time.Duration `json:"booted_ns,omitempty"`
}

// Partition says which packets the switches drop. Several add up until Heal.
type Partition struct {
	// Groups of nodes: packets between nodes of different groups are dropped, both
	// ways. Nodes in no group keep all their connections.
	Groups [][]string `json:"groups"`
	// OneWay drops only packets from earlier groups to later ones.
	OneWay bool `json:"one_way,omitempty"`
	// Network is Mgmt, Cluster, or AllNetworks (the zero value).
	Network Network `json:"network,omitempty"`
}

// Drop is one direction in which a switch drops packets.
type Drop struct {
	Network Network `json:"network"`
	From    string  `json:"from"`
	To      string  `json:"to"`
}

// ResetRecord tells that a node was reset, and why.
type ResetRecord struct {
	At  time.Time `json:"at"`
	Why string    `json:"why"`
}

// Status is what a room looks like now.
type Status struct {
	Name   string       `json:"name"`
	Dir    string       `json:"dir"`
	Cgroup string       `json:"cgroup"` // on the host
	PID    int          `json:"pid"`    // the supervisor's, on the host
	Since  time.Time    `json:"since"`
	Nodes  []NodeStatus `json:"nodes"`
	Drops  []Drop       `json:"drops"`
}

// NodeStatus is one node of it.
type NodeStatus struct {
	Node    string        `json:"node"`
	Power   string        `json:"power"`
	Since   time.Time     `json:"since"` // of this power state
	Why     string        `json:"why,omitempty"`
	Boots   int           `json:"boots"`
	BootID  string        `json:"boot_id,omitempty"`
	Resets  []ResetRecord `json:"resets"`
	Mgmt    bool          `json:"mgmt"` // link of the management network up
	Cluster bool          `json:"cluster"`
	// MgmtAddress and ClusterAddress are the node's own.
	MgmtAddress    string `json:"mgmt_address"`
	ClusterAddress string `json:"cluster_address"`
	Watchdog       string `json:"watchdog"`
	// BMC is the machine's management controller; it has power of its own.
	BMC *BMCStatus `json:"bmc,omitempty"`
	// PID is the node's init and PIDs its processes, both as the host numbers them.
	PID  int   `json:"pid,omitempty"`
	PIDs []int `json:"pids"`
}
