package sys

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LockMemory keeps this process in memory: pages that were touched are never
// swapped out, and the executable's own pages are all read in now, so that no later step
// waits for a disk. Memory that the process maps but never touches is not filled.
func LockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	return lockMappings(exe)
}

// lockMappings reads and locks the readable mappings of the file at path.
func lockMappings(path string) error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[5] != path || !strings.HasPrefix(fields[1], "r") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		lo, err1 := strconv.ParseUint(from, 16, 64)
		hi, err2 := strconv.ParseUint(to, 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("lock memory: %w", err)
		}
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK, uintptr(lo), uintptr(hi-lo), 0); errno != 0 {
			return fmt.Errorf("lock memory of %s: %w", path, errno)
		}
	}
	return lines.Err()
}

// schedParam is struct sched_param.
type schedParam struct{ Priority int32 }

// SetRealtime gives every thread of this process the scheduling class SCHED_RR
// with the priority given (1 to 99); threads made later inherit it.
func SetRealtime(priority int) error {
	done := map[int]bool{}
	for {
		tids, err := threads()
		if err != nil {
			return fmt.Errorf("set real-time priority: %w", err)
		}
		before := len(done)
		for _, tid := range tids {
			if done[tid] {
				continue
			}
			if err := setScheduler(tid, priority); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("set real-time priority: %w", err)
			}
			done[tid] = true
		}
		// A thread may have been made, by one not yet changed, while the list was read.
		if len(done) == before {
			return nil
		}
	}
}

func threads() ([]int, error) {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, err
	}
	tids := make([]int, 0, len(entries))
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		tids = append(tids, tid)
	}
	return tids, nil
}

func setScheduler(tid, priority int) error {
	const schedRR = 2 // SCHED_RR of linux/sched.h
	p := schedParam{Priority: int32(priority)}
	_, _, errno := unix.Syscall(unix.SYS_SCHED_SETSCHEDULER, uintptr(tid), schedRR, uintptr(unsafe.Pointer(&p)))
	if errno != 0 {
		return errno
	}
	return nil
}

// NeverOOM tells the kernel's out-of-memory killer to leave this process alone.
func NeverOOM() error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		return fmt.Errorf("exempt from the out-of-memory killer: %w", err)
	}
	return nil
}
