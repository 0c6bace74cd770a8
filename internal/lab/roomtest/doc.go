// Package roomtest proves the promises of the whole on the real thing: three nodes in a
// machine room, real QEMU, the probe guest, and faults. It has only tests, under the build
// tag "room", because they need root and minutes: `make room` runs them.
//
// It is not where a rule is tested in all its cases; that is next to the rule. Here each
// test is one sentence of the manual, told as a dialogue, and what it says is measured.
//
// Invariant: during all of it a sampler looks at the guests' cgroups on every node, and no
// two QEMU processes of one guest may ever run at the same time (sampler_test.go). DESIGN.md has
// the rules for writing such a test. Start reading with room_test.go.
package roomtest
