//go:build linux

package sys

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// NamespaceKinds are the namespaces that OpenNamespaces opens, named as in /proc/PID/ns.
func NamespaceKinds() []string { return []string{"cgroup", "ipc", "uts", "net", "pid", "mnt"} }

// OpenNamespaces opens the namespaces of a process, one file for each of
// NamespaceKinds. They stay usable after the process ended. The caller closes them.
func OpenNamespaces(pid int) ([]*os.File, error) {
	var files []*os.File
	for _, kind := range NamespaceKinds() {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		if err != nil {
			CloseAll(files)
			return nil, fmt.Errorf("open namespaces of process %d: %w", pid, err)
		}
		files = append(files, f)
	}
	return files, nil
}

// CloseAll closes files.
func CloseAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// EnterNamespaces moves the calling goroutine's thread into the namespaces. The
// goroutine is locked to the thread for good: the thread ends with it and is
// never used for anything else. Processes that it starts live in the
// namespaces; the pid namespace concerns only them.
func EnterNamespaces(files []*os.File) error {
	runtime.LockOSThread()
	// A thread that shares its root and working directory with others may not change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare root directory: %w", err)
	}
	for _, f := range files {
		if err := unix.Setns(int(f.Fd()), 0); err != nil {
			return fmt.Errorf("enter namespace %s: %w", f.Name(), err)
		}
	}
	return nil
}

// ReadProcessMemory fills buf from the memory of another process at address.
func ReadProcessMemory(pid int, address uintptr, buf []byte) error {
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	remote := []unix.RemoteIovec{{Base: address, Len: len(buf)}}
	n, err := unix.ProcessVMReadv(pid, local, remote, 0)
	if err == nil && n < len(buf) {
		err = unix.EFAULT
	}
	if err != nil {
		return fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	return nil
}
