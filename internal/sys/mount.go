//go:build linux

package sys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Mount is one mount(2) as data. Bind mounts have an empty Type and unix.MS_BIND in Flags.
type Mount struct {
	Source string
	Target string
	Type   string
	Flags  uintptr
	Data   string
}

// Do makes the target (a directory, or an empty file when a file is bound) and
// mounts. Flags that the kernel ignores in a bind, such as read-only, are
// applied by a second call.
func (m Mount) Do() error {
	if err := m.makeTarget(); err != nil {
		return fmt.Errorf("mount %s: %w", m.Target, err)
	}
	if err := unix.Mount(m.Source, m.Target, m.Type, m.Flags&^unix.MS_RDONLY|m.readOnly(), m.Data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.what(), m.Target, err)
	}
	if m.Flags&unix.MS_BIND == 0 || m.Flags&unix.MS_RDONLY == 0 {
		return nil
	}
	err := unix.Mount("", m.Target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	if err != nil {
		return fmt.Errorf("make %s read-only: %w", m.Target, err)
	}
	return nil
}

func (m Mount) readOnly() uintptr {
	if m.Flags&unix.MS_BIND != 0 {
		return 0
	}
	return m.Flags & unix.MS_RDONLY
}

func (m Mount) what() string {
	if m.Flags&unix.MS_BIND != 0 {
		return m.Source
	}
	return m.Type
}

func (m Mount) makeTarget() error {
	if _, err := os.Lstat(m.Target); err == nil {
		return nil
	}
	if m.Flags&unix.MS_BIND != 0 {
		if fi, err := os.Stat(m.Source); err != nil {
			return err
		} else if !fi.IsDir() {
			return touch(m.Target)
		}
	}
	return os.MkdirAll(m.Target, 0o755)
}

func touch(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// MountAll does the mounts in order and stops at the first that fails.
func MountAll(mounts []Mount) error {
	for _, m := range mounts {
		if err := m.Do(); err != nil {
			return err
		}
	}
	return nil
}

// PrivateMounts cuts the calling mount namespace off from its parent: what is
// mounted in either is no longer seen in the other.
func PrivateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

// PivotRoot makes the mount point root the root of the calling process's mount
// namespace and lets go of the old root.
func PivotRoot(root string) error {
	// pivot_root(".", ".") stacks the old root under the new one, from where it is
	// detached: no directory for it is needed. See pivot_root(2).
	steps := []func() error{
		func() error { return unix.Chdir(root) },
		func() error { return unix.PivotRoot(".", ".") },
		func() error { return unix.Unmount(".", unix.MNT_DETACH) },
		func() error { return unix.Chdir("/") },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("pivot root to %s: %w", root, err)
		}
	}
	return nil
}

// Device makes a character device node with mode 0666.
func Device(path string, major, minor uint32) error {
	if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))); err != nil {
		return fmt.Errorf("make device %s: %w", path, err)
	}
	return os.Chmod(path, 0o666)
}

// CopyDevice makes at path the same device node as at like. It does nothing if
// like does not exist.
func CopyDevice(path, like string) error {
	var st unix.Stat_t
	if err := unix.Stat(like, &st); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look at device %s: %w", like, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(path, st.Mode, int(st.Rdev)); err != nil {
		return fmt.Errorf("make device %s: %w", path, err)
	}
	return nil
}
