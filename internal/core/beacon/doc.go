// Package beacon finds guests that run on two nodes at once, and knows how long
// each node has been silent. It is the thinking half: what the nodes tell each other, and what follows from it.
//
// It is pure: it reads no clock, opens no socket and starts no goroutine. All times are durations on the
// CLOCK_BOOTTIME of some node; whose is said at each field. Times of two nodes are compared only through the bounds
// that an exchange of datagrams puts on the distance of their clocks (offset.go); wall clocks play no part. It
// does not decide what is done about a double run: that is a person's.
//
// Invariants:
//   - an alarm is raised only if, wherever within those bounds the other clocks stand, both nodes ran the guest for longer
//     than [Tolerance] at the same time;
//   - nothing is concluded from what was not said: a lost datagram, a missing guest or a silent node never is evidence;
//   - what a datagram says is used only if it was made after this node began to listen, and once.
//
// Start reading with DESIGN.md beside internal/beacon, then [Claim], [Recorder] (what a node says of itself) and
// [Detector] (what it makes of what the others say).
package beacon
