// Package fence decides what counts as a proof that a node's guests are dead,
// or that the storage refuses them, so that they may be started elsewhere before
// the node's lease is over.
//
// It is pure: it reads no clock, asks no BMC and starts no goroutine. All times
// are on the CLOCK_BOOTTIME of the machine that asks. The drivers and the race
// between them are in internal/fence; why no fault of a BMC makes
// anything worse than the lease stands in internal/fence/DESIGN.md.
//
// Invariant: what is doubtful is no proof. A proof that is refused costs the rest of the
// lease and nothing else. Start reading with [Judge], then [Proof].
package fence
