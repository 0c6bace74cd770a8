// Package api serves Sauh over HTTP in the wire format of Proxmox VE. It knows
// paths, parameters and JSON shapes, and nothing of how things are done: that is
// behind the interfaces in backend.go, which the agent implements.
package api

import (
	"context"
	"io"
	"net/http"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/storage"
)

// The interfaces below are what the HTTP server needs from the agent. All
// methods concern the whole cluster when they read the store, and this node
// when they do something: the server has already forwarded a request that names another node.
// Errors are those of core/model; their texts are sentences for a person.

// ClusterStatus is what `cluster status` prints.
type ClusterStatus struct {
	Name          string       `json:"name"`
	UUID          string       `json:"uuid"`
	Local         string       `json:"local"` // the node that answers
	Quorate       bool         `json:"quorate"`
	ExpectedVotes int          `json:"expected_votes"`
	TotalVotes    int          `json:"total_votes"` // votes of the nodes that are online
	Quorum        int          `json:"quorum"`
	Leader        string       `json:"leader"`  // node of the store's leader, "" without one
	Manager       string       `json:"manager"` // node that decides about HA
	ConfigVersion int64        `json:"config_version"`
	Nodes         []NodeStatus `json:"nodes"`
}

// NodeStatus is one row of it.
type NodeStatus struct {
	model.Node
	Online      bool   `json:"online"`
	OnlineSince int64  `json:"online_since,omitempty"` // Unix seconds
	Epoch       uint64 `json:"epoch"`
	Fenced      bool   `json:"fenced,omitempty"`
}

// GuardStatus is what a node knows of its own fencing guard.
type GuardStatus struct {
	Connected   bool     `json:"connected"`
	Epoch       uint64   `json:"epoch"`
	LeaseMS     int64    `json:"lease_ms"` // until the deadline; negative when it passed
	Frozen      []string `json:"frozen,omitempty"`
	Watchdog    string   `json:"watchdog"`
	WatchdogSec int      `json:"watchdog_timeout_s,omitempty"`
}

// NodeInfo is what a node measures of itself.
type NodeInfo struct {
	Node          string      `json:"node"`
	UptimeSec     int64       `json:"uptime"`
	CPU           float64     `json:"cpu"` // fraction of all cores busy since the last question
	CPUs          int         `json:"cpus"`
	MemoryTotal   int64       `json:"memory_total"` // bytes
	MemoryUsed    int64       `json:"memory_used"`
	Version       string      `json:"version"`
	QEMU          string      `json:"qemu"`
	Accel         string      `json:"accel"`
	AccelReason   string      `json:"accel_reason,omitempty"`
	AgentPID      int         `json:"agent_pid"`
	Guard         GuardStatus `json:"guard"`
	ClusterMember bool        `json:"cluster_member"`
}

// CreateClusterRequest makes a cluster of this one node.
type CreateClusterRequest struct {
	Name     string `json:"clustername"`
	NodeName string `json:"nodename"` // "" takes the host's name
	Mgmt     string `json:"mgmt"`     // addresses; "" takes those of agent.json
	Cluster  string `json:"cluster"`
	// HAProfile names the times of the lease, for good: "default" (or ""), or "fast" with half of them.
	HAProfile string `json:"ha_profile"`
}

// JoinKey is what `cluster key` prints, readable and encoded.
type JoinKey struct {
	Key         string   `json:"key"`
	Fingerprint string   `json:"fingerprint"` // SHA-256 of the cluster CA
	Addresses   []string `json:"addresses"`
	Expires     int64    `json:"expires"` // Unix seconds
}

// Cluster makes, shows and changes the membership.
type Cluster interface {
	Version() model.Version
	Status(ctx context.Context) (ClusterStatus, error)
	Create(ctx context.Context, r CreateClusterRequest) error
	// Key makes a one-time join secret.
	Key(ctx context.Context, valid time.Duration) (JoinKey, error)
	// Join makes this node a member of the cluster that made key.
	Join(ctx context.Context, key, nodeName string) error
	// Leave takes this node out; once it has begun it goes on when ctx ends. The last node leaves only if destroy is the
	// cluster's name, which ends the cluster; for other nodes it is "". Remove takes another node out, which must be off.
	Leave(ctx context.Context, destroy string) error
	Remove(ctx context.Context, node string) error
	// Nodes lists the members from this node's copy of the store.
	Nodes(ctx context.Context) ([]model.Node, error)
	Info(ctx context.Context) (NodeInfo, error)
}

// CreateGuestRequest is the configuration of a new guest as key=value pairs in
// the Proxmox VE form ("virtio0": "nas:1,format=qcow2" allocates 1 GiB, "nas:0,import-from=/path" copies a file).
type CreateGuestRequest struct {
	VMID   model.VMID
	Params map[string]string
	Start  bool
}

// GuestConfig is a guest's file, parsed.
type GuestConfig struct {
	Values map[string]string // keys in the file, Proxmox VE form
	Keys   []string          // in the order of the file
	Digest string            // SHA-1 of the file, hexadecimal
	Node   string
}

// Guests acts on guests of this node. Methods that return a UPID have started a task.
type Guests interface {
	// List returns all guests of the cluster; those of nodes that do not answer have status "unknown".
	List(ctx context.Context) ([]model.Guest, error)
	// ListLocal returns this node's guests.
	ListLocal(ctx context.Context) ([]model.Guest, error)
	// Owner says which node has the guest's file, also without quorum.
	Owner(ctx context.Context, id model.VMID) (string, error)
	NextID(ctx context.Context) (model.VMID, error)
	Get(ctx context.Context, id model.VMID) (model.Guest, error)
	Config(ctx context.Context, id model.VMID) (GuestConfig, error)
	// SetConfig changes and deletes keys; digest "" skips the check.
	SetConfig(ctx context.Context, id model.VMID, set map[string]string, del []string, digest string) error
	Create(ctx context.Context, r CreateGuestRequest) (upid string, err error)
	Destroy(ctx context.Context, id model.VMID) (upid string, err error)
	Start(ctx context.Context, id model.VMID) (upid string, err error)
	// Shutdown asks by ACPI and, with force, stops the guest after timeout.
	Shutdown(ctx context.Context, id model.VMID, timeout time.Duration, force bool) (upid string, err error)
	Stop(ctx context.Context, id model.VMID) (upid string, err error)
	Migrate(ctx context.Context, id model.VMID, target string, online bool) (upid string, err error)
	// Console connects to the serial port; the caller closes it.
	Console(ctx context.Context, id model.VMID) (io.ReadWriteCloser, error)
}

// LogLine is one line of a task's log.
type LogLine struct {
	N int    `json:"n"`
	T string `json:"t"`
}

// Tasks shows and cancels tasks of this node.
type Tasks interface {
	ListTasks(ctx context.Context) ([]model.Task, error)
	Task(ctx context.Context, upid string) (model.Task, error)
	TaskLog(ctx context.Context, upid string, start, limit int) ([]LogLine, int, error)
	CancelTask(ctx context.Context, upid string) error
}

// StorageInfo is one configured storage as seen from this node.
type StorageInfo struct {
	Storage string `json:"storage"`
	Type    string `json:"type"`
	Path    string `json:"path,omitempty"`
	Content string `json:"content"`
	Shared  bool   `json:"shared"`
	// LateWrites: what a node that was cut off had begun to write may still arrive, so the node is reset.
	LateWrites bool   `json:"late_writes"`
	Active     bool   `json:"active"`
	Reason     string `json:"reason,omitempty"` // why it is not active
	storage.Capacity
}

// Storages configures storages and handles volumes.
type Storages interface {
	ListStorages(ctx context.Context) ([]StorageInfo, error)
	// AddStorage takes the keys of storage.cfg: type, path, shared, content, late-writes.
	AddStorage(ctx context.Context, name string, params map[string]string) error
	RemoveStorage(ctx context.Context, name string) error
	Content(ctx context.Context, name string) ([]storage.Volume, error)
	AllocateVolume(ctx context.Context, name string, a storage.Allocation) (storage.Volume, error)
	DeleteVolume(ctx context.Context, volid string) error
}

// Peers reaches the other nodes of the cluster.
type Peers interface {
	// LocalNode is this node's name, "" before it is a member.
	LocalNode() string
	// RoundTripper returns a transport to the API of another member that tries both
	// of its addresses, with mutual TLS. model.ErrNotFound for a node that is no member.
	RoundTripper(node string) (http.RoundTripper, error)
	// Handler serves what only members and joining nodes may call, under /api2/json/sauh/peer/ and /api2/json/sauh/join.
	Handler() http.Handler
}

// Backend is the agent as the server sees it: one field a role, so that a test fakes only what it needs.
type Backend struct {
	// ReadOnly says why nothing may be changed through this node, and returns nil while it may. nil always allows it.
	ReadOnly func() error
	// Absent says why all but Cluster and Tasks are nil: this node is no member. It is nil on a member.
	Absent   func() error
	Cluster  Cluster
	Guests   Guests
	Tasks    Tasks
	Storages Storages
	HA       HA
	Alarms   HAAlarms
	Rules    HARules
	Services HAServices
	Nodes    HANodes
	Fencing  HAFencing
	Options  DatacenterOptions
	Peers    Peers
}
