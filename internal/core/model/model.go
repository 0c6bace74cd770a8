// Package model holds Sauh's nouns: nodes, liveness records, guests' owners,
// migration intents, tasks. It is pure data: no I/O, no clock, no goroutine.
//
// The invariants of each noun stand at its type; the keys under which the
// store keeps them are in keys.go; the errors that cross package borders are in
// errors.go. Start reading with [Node], [Live] and [Intent].
package model

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// VMID identifies a guest in the whole cluster, 100 to 999999999 as in Proxmox VE.
type VMID int

// Limits of a VMID, from the parameter pve-vmid of the Proxmox VE API.
const (
	MinVMID VMID = 100
	MaxVMID VMID = 999999999
)

// ParseVMID reads a decimal VMID and checks its range.
func ParseVMID(s string) (VMID, error) {
	n, err := strconv.Atoi(s)
	if err != nil || VMID(n) < MinVMID || VMID(n) > MaxVMID || strconv.Itoa(n) != s {
		return 0, Invalidf("vmid", "%q is not a guest id: use a number from %d to %d", s, MinVMID, MaxVMID)
	}
	return VMID(n), nil
}

// String prints the id in decimal.
func (id VMID) String() string { return strconv.Itoa(int(id)) }

// SID is the name of an HA resource, "vm:100".
func (id VMID) SID() string { return "vm:" + id.String() }

var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ValidateNodeName reports whether s can name a node: a DNS label in lower case.
func ValidateNodeName(s string) error {
	if !nodeName.MatchString(s) {
		return Invalidf("node", "%q is not a node name: use lower-case letters, digits and '-', at most 63 characters", s)
	}
	return nil
}

// Node is a member of the cluster, as recorded when it joined.
type Node struct {
	Name string `json:"name"`
	// ID is the node's number in the cluster, counted from 1, never used again while the node is a member.
	ID int `json:"nodeid"`
	// Mgmt and Cluster are the node's IP addresses in its two networks.
	Mgmt    string `json:"mgmt"`
	Cluster string `json:"cluster"`
	Votes   int    `json:"votes"`
	// MemberID is the store's own number of the node, in hexadecimal; empty until it is a voter.
	MemberID string `json:"member_id,omitempty"`
	Joined   int64  `json:"joined"` // Unix seconds
	// Rack and Site are the node's failure domains, as a person labelled it; "" if nobody did.
	Rack string `json:"rack,omitempty"`
	Site string `json:"site,omitempty"`
	// Leaving: the node is about to take itself out. No guest goes there, and nothing is changed through it.
	Leaving bool `json:"leaving,omitempty"`
	// What the node found out about itself at its last start.
	MemoryMiB int64  `json:"memory_mib,omitempty"`
	CPUs      int    `json:"cpus,omitempty"`
	Version   string `json:"version,omitempty"`
	QEMU      string `json:"qemu,omitempty"`  // version, "10.0.2"
	Accel     string `json:"accel,omitempty"` // "kvm" or "tcg"
	// UUID is the machine's own, as its firmware names it; "" where it names none.
	UUID string `json:"uuid,omitempty"`
	// Level tells which records the node's agent knows: ha.Level of its version. 0 is one that does not tell.
	Level int `json:"level,omitempty"`
}

// Live is a node's liveness record, renewed every R. Its owner writes it with
// a compare on the revision of its own last write; who takes the node's guests
// writes it with Fenced set and Epoch raised, so that exactly one of the two wins.
type Live struct {
	BootID string `json:"boot_id"`
	// Epoch counts the fencings of this node. It never goes down.
	Epoch uint64 `json:"epoch"`
	// Seq rises with each attempt to renew, committed or not, and never falls behind the boot clock in
	// microseconds, so a later life of the agent begins above it. It tells an agent which of its attempts was committed.
	Seq uint64 `json:"seq"`
	// Fenced means that the cut was made: the node must kill its protected guests
	// and register again before it may run any.
	Fenced bool `json:"fenced,omitempty"`
	// By names the node that made the cut.
	By string `json:"by,omitempty"`
	// Covers says which guests the proof behind the cut covers: "" all of them, else those alone that it names ("100,101"), because a storage
	// keeps them from writing; the others may be taken when the lease is over. It means something only while Fenced is set.
	Covers string `json:"covers,omitempty"`
	// Online is when this incarnation of the node registered, Unix seconds by its own clock.
	Online int64 `json:"online"`
	// Left means that the node stopped in good order, with no guest running.
	Left bool `json:"left,omitempty"`
}

// CoversGuests is Live.Covers of a proof about these guests alone.
func CoversGuests(ids []VMID) string {
	var names []string
	for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
		names = append(names, id.String())
	}
	return strings.Join(names, ",")
}

// CoversGuest says whether the proof behind the cut covers a guest.
func (l Live) CoversGuest(id VMID) bool {
	return l.Covers == "" || slices.Contains(strings.Split(l.Covers, ","), id.String())
}

// Protected says that every QEMU process of a guest on Node runs under the
// guard, so that the guest may be taken over when Node's lease is over. Only
// Node itself writes it, after its guard confirmed, or the transaction that
// moves the guest's file to Node.
type Protected struct {
	Node string `json:"node"`
}

// Intent announces a live migration before anything happens, and is deleted by
// the transaction that ends it. While it exists no other path starts, stops or moves the guest.
type Intent struct {
	VMID   VMID   `json:"vmid"`
	Source string `json:"source"`
	Target string `json:"target"`
	// SourceEpoch and TargetEpoch are the two nodes' epochs when the intent was written.
	SourceEpoch uint64 `json:"source_epoch"`
	TargetEpoch uint64 `json:"target_epoch"`
	Task        string `json:"task"` // UPID
}

// Guest is one row of a list of guests.
type Guest struct {
	VMID      VMID   `json:"vmid"`
	Node      string `json:"node"`
	Name      string `json:"name,omitempty"`
	Status    string `json:"status"`              // "running", "stopped", "unknown"
	Reason    string `json:"reason,omitempty"`    // why the status is unknown, if its node says so
	QMPStatus string `json:"qmpstatus,omitempty"` // QEMU's own: "running", "paused", "inmigrate" …
	Lock      string `json:"lock,omitempty"`
	PID       int    `json:"pid,omitempty"`
	MemoryMiB int64  `json:"memory_mib,omitempty"`
	CPUs      int    `json:"cpus,omitempty"`
	Uptime    int64  `json:"uptime,omitempty"` // seconds
	Frozen    bool   `json:"frozen,omitempty"`
	HA        string `json:"hastate,omitempty"`
}

// Task is a running or ended operation. Its UPID has the form that Proxmox VE
// gives it.
type Task struct {
	UPID  string `json:"upid"`
	Node  string `json:"node"`
	Type  string `json:"type"`
	ID    string `json:"id"`
	User  string `json:"user"`
	Start int64  `json:"starttime"`
	// End is 0 while the task runs.
	End int64 `json:"endtime,omitempty"`
	// ExitStatus is "OK" or the error's text once the task ended.
	ExitStatus string `json:"exitstatus,omitempty"`
	// Progress is the last report of a migration.
	Progress *MigrationProgress `json:"progress,omitempty"`
}

// UPID prints a task id in the form UPID:<node>:<pid>:<pstart>:<starttime>:<type>:<id>:<user>:
func UPID(node string, pid int, pstart uint32, start time.Time, typ, id, user string) string {
	return fmt.Sprintf("UPID:%s:%08X:%08X:%08X:%s:%s:%s:", node, pid, pstart, start.Unix(), typ, id, user)
}

// MigrationProgress is what a person watches while a guest moves.
type MigrationProgress struct {
	Phase            string `json:"phase"` // the names of core/migrate's phases
	Round            int    `json:"round"` // pre-copy rounds, counted from 1
	TransferredBytes int64  `json:"transferred_bytes"`
	RemainingBytes   int64  `json:"remaining_bytes"`
	TotalBytes       int64  `json:"total_bytes"`
	DirtyBytesPerSec int64  `json:"dirty_bytes_per_sec"`
	BytesPerSec      int64  `json:"bytes_per_sec"`
	// ExpectedDowntimeMS and DowntimeMS are QEMU's expected-downtime and downtime.
	ExpectedDowntimeMS int64 `json:"expected_downtime_ms"`
	DowntimeMS         int64 `json:"downtime_ms,omitempty"`
	TotalMS            int64 `json:"total_ms,omitempty"`
}

// Version is what `sauh version` prints.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"repoid"`
	Go      string `json:"go"`
}
