//go:build linux

package sys

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ProcessStart returns the moment at which the process pid started, in clock
// ticks since the machine did. Together with the boot id it tells a process from a
// later one with the same number. A process that is gone, or a zombie, gives
// os.ErrProcessDone.
func ProcessStart(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, os.ErrProcessDone
	} else if err != nil {
		return 0, err
	}
	// The name in parentheses may itself hold blanks and parentheses.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// ProcessMemory is the memory of a process that is in RAM, in bytes. fs.ErrNotExist if there is no such process.
func ProcessMemory(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0, fmt.Errorf("read the memory of process %d: statm is %q", pid, b)
	}
	pages, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	return pages * int64(os.Getpagesize()), nil
}

// ProcessArgs returns the argument vector of the process pid. A process that is
// gone gives os.ErrProcessDone.
func ProcessArgs(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, os.ErrProcessDone
	} else if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00"), nil
}

// TryLockFile opens the file at path, makes it if need be, and takes the lock on it
// that lasts until the file is closed or this process ends. While another one holds
// it the error has unix.EWOULDBLOCK in its chain.
func TryLockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// FileSystem is what statfs tells of the file system at a path, in bytes.
type FileSystem struct {
	Total     int64
	Free      int64
	Available int64 // to processes without privileges
}

// StatFS asks the file system that holds path for its space.
func StatFS(path string) (FileSystem, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return FileSystem{}, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	unit := s.Bsize
	return FileSystem{
		Total:     int64(s.Blocks) * unit,
		Free:      int64(s.Bfree) * unit,
		Available: int64(s.Bavail) * unit,
	}, nil
}
