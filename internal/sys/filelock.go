//go:build linux

package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// TryLockRange takes an exclusive lock on n bytes of f from offset start, which
// lasts until f is closed. It is an open file description lock, the kind that QEMU takes
// on its images. Where another open file holds a lock in the range, the error has
// unix.EAGAIN in its chain. f must be open for writing.
func TryLockRange(f *os.File, start, n int64) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: start, Len: n}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}
