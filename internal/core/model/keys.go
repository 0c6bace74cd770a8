package model

import (
	"fmt"
	"strings"
)

// Keys of the store. Configuration files stand under ConfigPrefix with the path
// that Proxmox VE gives them; everything else is JSON of the type named.
const (
	ConfigPrefix    = "config/"
	ClusterKey      = "cluster"       // Cluster
	NodePrefix      = "node/"         // + name: Node
	LivePrefix      = "live/"         // + name: Live
	ProtectedPrefix = "protected/"    // + vmid: Protected
	IntentPrefix    = "intent/"       // + vmid: Intent
	TaskPrefix      = "task/"         // + UPID: Task, when it ended
	JoinPrefix      = "join/"         // + secret id: one-time join secrets
	ManagerKey      = "ha/manager"    // Manager
	HAStatusPrefix  = "ha/service/"   // + sid: what the manager and the worker last decided
	VMIDPrefix      = "vmid/"         // + vmid: taken by the guest that has the number, so that no two nodes create it at once; the node's name
	HACommandPrefix = "ha/command/"   // + sid: a person's command for one service, until it is acted on
	HARequestPrefix = "ha/request/"   // + name: what a person wants of a node: maintenance, disarm
	HANodePrefix    = "ha/node/"      // + name: what a node says of its own orderly end
	HAHealthPrefix  = "ha/health/"    // + name: what a node lost: storages, the guests' network
	HALoadPrefix    = "ha/load/"      // + name: what a node measured that it and its guests use, core/load.Record
	HAIdlePrefix    = "ha/idle/"      // + name: which of its guests outside HA do not run
	HAHistoryPrefix = "ha/history/"   // + name: when a node was silent
	HAModeKey       = "ha/mode"       // whether HA is disarmed
	HARehearsals    = "ha/rehearsal/" // + name: how the ways to fence a node were tried last, []core/fence.Rehearsal
	AppliedPrefix   = "applied/"      // the store's own: which transactions were committed
)

// Cluster is the record made by cluster create.
type Cluster struct {
	Name    string `json:"name"`
	UUID    string `json:"uuid"`
	Created int64  `json:"created"` // Unix seconds
	// HAProfile names the times of the lease; see core/lease. It is chosen when the cluster is made and never changed.
	HAProfile string `json:"ha_profile,omitempty"`
}

// Manager names the node whose agent decides about HA. It is a hint for
// efficiency: each of its decisions is a transaction that stands by itself.
type Manager struct {
	Node string `json:"node"`
	Term uint64 `json:"term"`
}

// GuestConfigPath is the path of a guest's file; it says which node owns the guest.
func GuestConfigPath(node string, id VMID) string {
	return fmt.Sprintf("nodes/%s/qemu-server/%d.conf", node, id)
}

// GuestConfigKey is the store's key of a guest's file.
func GuestConfigKey(node string, id VMID) string { return ConfigPrefix + GuestConfigPath(node, id) }

// ParseGuestConfigKey is the inverse of GuestConfigKey; ok is false for other keys.
func ParseGuestConfigKey(key string) (node string, id VMID, ok bool) {
	rest, found := strings.CutPrefix(key, ConfigPrefix+"nodes/")
	if !found {
		return "", 0, false
	}
	node, rest, found = strings.Cut(rest, "/qemu-server/")
	num, conf := strings.CutSuffix(rest, ".conf")
	if !found || !conf {
		return "", 0, false
	}
	id, err := ParseVMID(num)
	return node, id, err == nil
}
