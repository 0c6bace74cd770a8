// Package agent is the shell of a node: it feeds events to the pure packages
// under core, carries out the actions they return, and wires the drivers
// (store, guard, qemu, storage, network) and the API together. Decisions are made elsewhere.
//
// Invariants: startGuest in start.go is the only path that leads to a QEMU process that may
// run, and it checks ownership, lease and epoch itself; a guest's operations are
// serialised by its lock in guestLocks; nothing here trusts the mirror for a
// decision that a transaction does not compare again.
//
// Start reading with [Run], then member.go, which is what runs while the node
// belongs to a cluster, then liveness.go.
package agent
