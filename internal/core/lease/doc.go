// Package lease is the arithmetic and the state machines that keep two nodes
// from running one guest: until when a node may run protected guests, when another may take
// them over, and what the guard does at each instant in between.
//
// It is pure: it reads no clock, opens no file and starts no goroutine. All
// times are durations on the CLOCK_BOOTTIME of the machine that asks; times of two machines are
// never compared. It does not talk to the store, the guard process or the kernel: the agent and internal/guard
// carry out its actions and tell it what came of them.
//
// Invariants:
//   - a deadline is counted from the time at which a renewal that was committed
//     was sent, never from the answer;
//   - a taker counts from the arrival of the last renewal, and longer than the
//     holder by everything that two clocks may disagree;
//   - at each instant, either every protected group is confirmed frozen or dead,
//     or the watchdog resets the machine no later than at the deadline.
//
// Start reading with [Params], then [Renewer] (a node's own liveness),
// [Observer] (everybody else's) and [Guard].
package lease
