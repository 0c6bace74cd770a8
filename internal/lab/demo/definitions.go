package demo

import (
	"fmt"

	"sauh.dev/sauh/internal/lab/report"
)

// definitions says exactly what was measured, for the reader of the report.
func definitions() []report.Definition {
	return []report.Definition{
		{Term: "Machine room", Text: "Three nodes on one machine, each in pid, mount, network, uts, ipc and cgroup namespaces of its own with two network cards on two switches, running the production program with its defaults. Probes run in the room's own network, outside all nodes."},
		{Term: "Clock", Text: "All moments are CLOCK_BOOTTIME of the one machine, so times of different nodes and probes can be subtracted."},
		{Term: "Gap", Text: "The longest time between two consecutive echo answers, as they arrive at the client, of which any part lies between the begin of a move and " + settle.String() + " after its end. A UDP datagram is sent each 10 ms, answered or not; nothing is subtracted, so a guest that answers everything at once still shows a gap of 10 ms."},
		{Term: "Move", Text: "By Sauh: from the request to the source's agent until its task has ended (asked each 200 ms), the start of QEMU on the target included. By hand: the same for a person with two QMP prompts: start the target's QEMU, migrate-incoming, migrate, wait for completed, quit the source. Both have the same QEMU arguments, memory, bandwidth limit, downtime limit and network, and the guests do the same work."},
		{Term: "Pairs", Text: "Each move by Sauh has one by hand right before or after it, in turns. The medians of both are compared."},
		{Term: "QEMU's own count", Text: "What the source's QEMU says of its downtime: from the stop of the guest until everything is sent and the migration is over there. The target may resume before or after; for information."},
		{Term: "Work", Text: fmt.Sprintf("While they move, both guests send a stream of %d KiB/s over one connection that is never replaced, serve one download of %d MiB after the other whose SHA-256 is checked, answer the echo, and keep a ledger.", streamRate>>10, downloadMiB)},
		{Term: "Power cut", Text: "Both network cards of the node go dark at the switches, then all its processes are killed at one stroke, frozen ones too. The moment before the first of this is the cut."},
		{Term: "QEMU started elsewhere", Text: "The start time that the kernel noted (to 10 ms) for the QEMU process which then brought the guest back."},
		{Term: "Guest answers", Text: "The arrival of the first answer to an echo that was sent after that start."},
		{Term: "Fenced", Text: "When a node that lives was first seen to list the dead one as fenced, asked each 100 ms; for information."},
		{Term: "Manager and leader", Text: fmt.Sprintf("The node that is cut is at that moment manager of high availability, leader of the store, and runs the guest. Its limits are %s above those of a plain worker. If no node is both, the leader's agent is ended in good order until one is; that counts as a fault and is shown as one.", leaderExtra)},
		{Term: "Fault", Text: "From the moment before the power is cut until the node that was cut and every other one answer that the store is quorate, that there is a leader and a manager, and that all three nodes are online and none is fenced. Likewise from the end of an agent that was restarted."},
		{Term: "Quorate", Text: fmt.Sprintf("Each node with power is asked each second for the state of the cluster. An answer of “not quorate”, an error, or no answer within %s counts against it. What overlaps a fault does not count; it is shown.", pollTimeout)},
		{Term: "Ledger", Text: "A client sends numbered records; the guest writes each with O_DIRECT and O_DSYNC and acknowledges it then. After each move and each failover the client is stopped, the whole ledger is read back from the guest, and each record ever acknowledged is compared by number, content, checksum and writer. Missing: its slot is empty. Wrong: other content, a record in two slots, or a break in the chain of checksums. A record that was not acknowledged may be there or not. The room cannot lose what the host's page cache holds, so this proves that no second writer and no stale block got in, not that a disk keeps what was flushed."},
		{Term: "CPU and memory", Text: "Each second, of all processes in a node's cgroup (cgroup.procs), utime + stime and resident memory from /proc/PID/stat. A process that ends between two looks is not seen in its last moments, and memory that processes share (a program's text) counts for each."},
	}
}
