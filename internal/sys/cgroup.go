package sys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Cgroup is the directory of one cgroup in a cgroup v2 hierarchy. An error about
// one that does not exist satisfies errors.Is(err, fs.ErrNotExist).
type Cgroup string

// Create makes the directory and its parents; one that exists is left as it is.
func (c Cgroup) Create() error {
	if err := os.MkdirAll(string(c), 0o755); err != nil {
		return fmt.Errorf("create cgroup %s: %w", c, err)
	}
	return nil
}

// Remove removes the cgroup and those below it. The kernel refuses (EBUSY) while
// a living process is in one of them. A cgroup that does not exist is no error.
func (c Cgroup) Remove() error {
	entries, err := os.ReadDir(string(c))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", c, err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := Cgroup(filepath.Join(string(c), e.Name())).Remove(); err != nil {
			return err
		}
	}
	if err := unix.Rmdir(string(c)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cgroup %s: %w", c, err)
	}
	return nil
}

// Freeze tells the kernel to freeze every process of the cgroup, and those that
// enter it later. It does not wait: see Frozen and WaitFrozen.
func (c Cgroup) Freeze() error { return c.write("cgroup.freeze", "1") }

// Thaw lets the processes of a frozen cgroup run again.
func (c Cgroup) Thaw() error { return c.write("cgroup.freeze", "0") }

// Kill sends SIGKILL to every process that is in the cgroup now, frozen ones
// included. It does not wait: see Populated and WaitEmpty.
func (c Cgroup) Kill() error { return c.write("cgroup.kill", "1") }

// Frozen says whether the kernel confirms that nothing in the cgroup runs any more.
func (c Cgroup) Frozen() (bool, error) { return c.event("frozen") }

// Populated says whether a living process is in the cgroup or below it; a zombie is none.
func (c Cgroup) Populated() (bool, error) { return c.event("populated") }

// Procs lists the process ids in the cgroup itself.
func (c Cgroup) Procs() ([]int, error) {
	b, err := os.ReadFile(filepath.Join(string(c), "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", c, err)
	}
	var pids []int
	for field := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", c, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Add moves a process into the cgroup.
func (c Cgroup) Add(pid int) error { return c.write("cgroup.procs", strconv.Itoa(pid)) }

// WaitFrozen waits until the kernel confirms that the cgroup is frozen, or ctx is done.
func (c Cgroup) WaitFrozen(ctx context.Context) error { return c.wait(ctx, c.Frozen) }

// WaitEmpty waits until no living process is in the cgroup, or ctx is done. A
// cgroup that does not exist, or is removed meanwhile, is empty.
func (c Cgroup) WaitEmpty(ctx context.Context) error {
	err := c.wait(ctx, func() (bool, error) {
		populated, err := c.Populated()
		return !populated, err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// markPrefix is the class of extended attributes that only root may touch.
const markPrefix = "trusted."

// SetMark stores a value with the cgroup, as an extended attribute of its
// directory. It lives in the kernel's memory exactly as long as the cgroup does, and only
// root reads and writes it. The name is without the attribute's class, such as "sauh.guard".
func (c Cgroup) SetMark(name string, value []byte) error {
	if err := unix.Setxattr(string(c), markPrefix+name, value, 0); err != nil {
		return fmt.Errorf("mark cgroup %s: %w", c, err)
	}
	return nil
}

// Mark returns the value that SetMark stored; ok is false when there is none.
func (c Cgroup) Mark(name string) (value []byte, ok bool, err error) {
	buf := make([]byte, 64<<10) // the largest value that the kernel stores
	n, err := unix.Getxattr(string(c), markPrefix+name, buf)
	if errors.Is(err, unix.ENODATA) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read mark of cgroup %s: %w", c, err)
	}
	return buf[:n], true, nil
}

// ClearMark removes a mark; one that is not there is no error, nor is a cgroup that is gone.
func (c Cgroup) ClearMark(name string) error {
	err := unix.Removexattr(string(c), markPrefix+name)
	if err == nil || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("clear mark of cgroup %s: %w", c, err)
}

func (c Cgroup) write(file, value string) error {
	f, err := os.OpenFile(filepath.Join(string(c), file), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write %s of cgroup %s: %w", file, c, err)
	}
	_, err = f.WriteString(value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s of cgroup %s: %w", file, c, cgroupGone(err))
	}
	return nil
}

// cgroupGone turns ENODEV, the kernel's answer on a file whose cgroup was removed
// after the file was opened, into fs.ErrNotExist.
func cgroupGone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fs.ErrNotExist
	}
	return err
}

// CPUTime is the processor time that the cgroup and those below it have used since it was made; at the root of the
// hierarchy, all that the machine has used since its boot.
func (c Cgroup) CPUTime() (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join(string(c), "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("read the processor time of cgroup %s: %w", c, cgroupGone(err))
	}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == "usage_usec" {
			usec, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the processor time of cgroup %s: %w", c, err)
			}
			return time.Duration(usec) * time.Microsecond, nil
		}
	}
	return 0, fmt.Errorf("read the processor time of cgroup %s: no usage_usec in cpu.stat: cgroup v2 of Linux 5.8 or later is needed", c)
}

// event reads one of the flags in cgroup.events.
func (c Cgroup) event(key string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(string(c), "cgroup.events"))
	if err != nil {
		return false, fmt.Errorf("read events of cgroup %s: %w", c, cgroupGone(err))
	}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == key {
			return value == "1", nil
		}
	}
	return false, fmt.Errorf("read events of cgroup %s: no %q in it: cgroup v2 of Linux 5.2 or later is needed", c, key)
}

// wait evaluates done at each change of cgroup.events, which the kernel
// announces by POLLPRI, and every pollMS so that the end of ctx is seen.
func (c Cgroup) wait(ctx context.Context, done func() (bool, error)) error {
	const pollMS = 50
	f, err := os.Open(filepath.Join(string(c), "cgroup.events"))
	if err != nil {
		return fmt.Errorf("wait for cgroup %s: %w", c, err)
	}
	defer f.Close()
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
	buf := make([]byte, 256)
	for {
		// The kernel announces changes since the last read of this descriptor.
		if _, err := f.ReadAt(buf, 0); errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("wait for cgroup %s: %w", c, fs.ErrNotExist)
		}
		if ok, err := done(); ok || err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for cgroup %s: %w", c, ctx.Err())
		}
		if _, err := unix.Poll(fds, pollMS); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for cgroup %s: %w", c, err)
		}
	}
}
