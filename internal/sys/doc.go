// Package sys is where Sauh touches the operating system directly: it is the
// only package with exec, mount, namespaces and raw system calls.
//
// It is thin: each function does one thing with the kernel and returns the
// kernel's answer with the operation and the object named. It decides nothing;
// what is done when belongs to its callers.
//
// Invariant: nothing here keeps state between calls except the file
// descriptors that a caller holds and closes. Start reading with the file that has the name of what
// you need: cgroup.go, watchdog.go, boottime.go.
package sys
