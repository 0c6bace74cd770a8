// Package lab is the machine room: whole nodes on one Linux box, each with its
// own processes, mounts, network cards, hostname, cgroups and watchdog, so that
// the production code runs unchanged and can be cut from power or network.
//
// It is not a simulation (that is sim) and no part of production: nothing below
// agent knows it. The probe guest is lab/guest, the watchdog device lab/watchdog.
//
// Invariant: everything of a room hangs on one pid namespace and one cgroup, so
// that [Down] removes it also after a crash; the host sees no interface, no mount
// and no namespace by name. The protocol stands in DESIGN.md. Start reading with
// [Config], [Up] and [Room]; room.go is the supervisor, boot.go a node's pid 1.
package lab
