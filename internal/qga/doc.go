// Package qga speaks with the QEMU guest agent, the program inside a guest that answers over a virtio serial port:
// [Client] is the host's side of the dialogue, [Server] the guest's.
//
// It is not the monitor of QEMU itself (that is internal/qmp) and decides nothing: whether a guest that does not answer is
// sick is internal/core/health's business. Package qgatest is an agent with bad manners to test with.
//
// Invariants: what a guest says is never believed to be the answer to another question than the one asked, however late it
// comes; a guest can make a call fail and nothing else: it cannot hold it beyond its deadline, nor fill the host's
// memory. Start reading with [Client.Call].
package qga
