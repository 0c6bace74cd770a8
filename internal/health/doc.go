// Package health watches what a node's guests need, and the guests: [Node] probes storages and looks at the way out of the
// guests' bridges, [Guest] asks guest agents and listens to QEMU. Both tell what core/health makes of it, as a state that
// holds until the next call and not as events.
//
// It decides nothing about what is done (core/ha does), mounts and repairs nothing, and does not look at clocks.
//
// Invariants: a storage that hangs holds up nobody, neither this process nor its end, because only a child process ever
// touches it ([Child]); there is never more than one such child for a storage, across restarts of this process. Start reading
// with [Node] and DESIGN.md.
package health
