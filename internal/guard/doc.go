// Package guard is the fencing guard: a small process of its own that knows one
// thing, until when this node may run protected guests. At the deadline it freezes them, and it
// alone holds the watchdog. The package has the process ([Main], [Run]) and its client ([Client]).
//
// It decides nothing by itself: what is to be done at which instant is the pure
// machine lease.Guard; this package carries its actions out on cgroups and the
// watchdog. It knows neither the store nor the network nor QEMU.
//
// Invariant: whatever happens to this process, at the deadline every protected
// group is confirmed frozen or dead, or the watchdog resets the machine. Why that holds is
// in DESIGN.md. Start reading with loop.go.
package guard
