// Package vmtest tries on a whole virtual machine, with a kernel of its own, what the machine room cannot
// show: real watchdog drivers that reset a machine.
//
// It has no code but tests, under the build tag room; they boot QEMU with Debian's standard
// kernel, without any network. Invariant: a QEMU that a test starts ends with it. Start reading with watchdog_test.go; what runs
// in the machine is in the directory init.
package vmtest
