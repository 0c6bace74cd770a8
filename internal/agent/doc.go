// Package agent is the shell of a node: it feeds events to the pure packages
// under core, carries out the actions they return, and wires the drivers
// (store, guard, qemu, storage, network) and the API together. Decisions are made elsewhere.
//
// Its parts know one another only through what their constructors are given, which all stands in member.wire:
//
//   - starter: the one path that leads to a QEMU process; procs: the processes there are
//   - inventory, operations (with creation), departures: what a person may ask of guests
//   - arrivals: guests that come from other nodes, and migrations that broke off
//   - haManager, haWorker: the loops of core/ha; resources: its configuration; haResources, haStatus, haRules, haServices,
//     haNodes, haFencing, haOptions: what a person may see and change of it
//   - membership: nodes that come and go; peers: the way to their agents; roster: who they are
//   - storages; and in packages of their own mirror, liveness, task and move
//
// Invariants: starter.start in start.go is the only path that leads to a QEMU process that may
// run, and it takes the epoch before it reads ownership, storages and HA resources linearizably; only the guard makes a
// protected guest's cgroup; a guest's operations are serialised by its lock in guestLocks; nothing here trusts the
// mirror for a decision that a transaction does not compare again.
//
// Start reading with [Run], then member.go, which is what runs while the node
// belongs to a cluster, then start.go.
package agent
