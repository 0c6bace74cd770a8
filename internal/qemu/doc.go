// Package qemu is a guest as a process: what QEMU is told (Spec → Argv), how it
// is started, found again, watched and ended.
//
// It is not the QEMU Machine Protocol (that is internal/qmp), knows neither the
// store nor the cluster, makes no bridge and no tap, and does not decide whether a guest
// may run: who starts a protected guest has asked the guard before.
//
// Invariants: Argv is a pure function, so two nodes with the same Spec have the
// same machine; a QEMU process is in its guest's cgroup from its first
// instruction, so that freezing or killing the cgroup gets all of it; a Start that returns
// an error has left no process behind. DESIGN.md beside this file tells the files and the
// life of a process. Start reading with [Spec], [Argv] and [Start].
package qemu
