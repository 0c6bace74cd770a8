package dir_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/units"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/storage/dir"
	"sauh.dev/sauh/internal/storage/storagetest"
)

func open(t *testing.T, cfg dir.Config) *dir.Driver {
	t.Helper()
	d, err := dir.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// tmpfs mounts a file system in memory for the length of the test.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("needs a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	return path
}

func suite(path func(t *testing.T) string) storagetest.Setup {
	return storagetest.Setup{
		New: func(t *testing.T) (storage.Driver, storage.Driver) {
			cfg := dir.Config{Name: "store", Path: path(t), Shared: true}
			return open(t, cfg), open(t, cfg)
		},
		Small: func(t *testing.T) storage.Driver {
			return open(t, dir.Config{Name: "store", Path: tmpfs(t, "16m")})
		},
		Gone: func(t *testing.T) storage.Driver {
			return open(t, dir.Config{Name: "store", Path: filepath.Join(t.TempDir(), "none")})
		},
	}
}

func TestDirPassesTheSuiteOnTheDisk(t *testing.T) {
	storagetest.Run(t, suite(func(t *testing.T) string { return t.TempDir() }))
}

func TestDirPassesTheSuiteInMemory(t *testing.T) {
	storagetest.Run(t, suite(func(t *testing.T) string { return tmpfs(t, "200m") }))
}

func TestAnUnmountedDirectoryIsUnavailable(t *testing.T) {
	path := t.TempDir()
	d := open(t, dir.Config{Name: "nas", Path: path, Mountpoint: "yes"})
	_, err := d.List(t.Context())
	if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "nothing is mounted on "+path) {
		t.Errorf("got %v", err)
	}
	mounted := open(t, dir.Config{Name: "nas", Path: tmpfs(t, "1m"), Mountpoint: "yes"})
	if _, err := mounted.List(t.Context()); err != nil {
		t.Errorf("mounted: %v", err)
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	for name, cfg := range map[string]dir.Config{
		"no name":            {Path: "/srv"},
		"name with a colon":  {Name: "a:b", Path: "/srv"},
		"name with a slash":  {Name: "a/b", Path: "/srv"},
		"relative path":      {Name: "nas", Path: "srv"},
		"path with dots":     {Name: "nas", Path: "/srv/../etc"},
		"the root":           {Name: "nas", Path: "/"},
		"path with a break":  {Name: "nas", Path: "/srv\n/x"},
		"strange mountpoint": {Name: "nas", Path: "/srv", Mountpoint: "perhaps"},
	} {
		if _, err := dir.New(cfg); !errors.Is(err, model.ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestAStorageWithoutImagesHoldsNoDisks(t *testing.T) {
	d := open(t, dir.Config{Name: "iso", Path: t.TempDir(), Content: []string{"iso", "backup"}})
	_, err := d.Allocate(t.Context(), storage.Allocation{VMID: 100, Size: units.MiB})
	if !errors.Is(err, model.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestOnlyASharedStorageHasPills(t *testing.T) {
	if got := open(t, dir.Config{Name: "nas", Path: "/srv/nas", Shared: true}).Pill("n1"); got != "/srv/nas/.sauh/fence/n1" {
		t.Errorf("shared: %q", got)
	}
	if got := open(t, dir.Config{Name: "nas", Path: "/srv/nas"}).Pill("n1"); got != "" {
		t.Errorf("not shared: %q", got)
	}
	if got := open(t, dir.Config{Name: "nas", Path: "/srv/nas", Shared: true}).Pill("../n1"); got != "" {
		t.Errorf("bad node name: %q", got)
	}
}

func TestAnImageWithABackingFileIsNotImported(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img")
	}
	path := filepath.Join(t.TempDir(), "overlay.qcow2")
	out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	d := open(t, dir.Config{Name: "nas", Path: t.TempDir()})
	_, err = d.Import(t.Context(), storage.Allocation{VMID: 100}, path)
	if !errors.Is(err, model.ErrInvalid) || !strings.Contains(err.Error(), "/etc/passwd") {
		t.Errorf("got %v", err)
	}
}

func TestAFailedAllocationLeavesNoFile(t *testing.T) {
	path := t.TempDir()
	d := open(t, dir.Config{Name: "nas", Path: path})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = d.Allocate(ctx, storage.Allocation{VMID: 100, Size: units.MiB, Format: storage.QCOW2})
	_, err := d.Allocate(t.Context(), storage.Allocation{VMID: 100, Size: 1 << 60})
	if !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("got %v", err)
	}
	left, err := filepath.Glob(filepath.Join(path, "images", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestTheRestOfANodeThatDiedIsClearedUp(t *testing.T) {
	path := t.TempDir()
	d := open(t, dir.Config{Name: "nas", Path: path})
	guest := filepath.Join(path, "images", "100")
	if err := os.MkdirAll(guest, 0o755); err != nil {
		t.Fatal(err)
	}
	old, young := filepath.Join(guest, ".sauh-part-1"), filepath.Join(guest, ".sauh-part-2")
	for file, age := range map[string]time.Duration{old: 2 * time.Hour, young: time.Minute} {
		when := time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chtimes(file, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Allocate(t.Context(), storage.Allocation{VMID: 100, Size: units.MiB}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old part is still there: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("the part of an import that runs is gone: %v", err)
	}
}

func TestASymbolicLinkIsNoVolume(t *testing.T) {
	path := t.TempDir()
	d := open(t, dir.Config{Name: "nas", Path: path})
	guest := filepath.Join(path, "images", "100")
	if err := errors.Join(os.MkdirAll(guest, 0o755), os.Symlink("/etc/passwd", filepath.Join(guest, "vm-100-disk-0.raw"))); err != nil {
		t.Fatal(err)
	}
	const id = "nas:100/vm-100-disk-0.raw"
	if _, _, err := d.File(t.Context(), id); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("File: %v", err)
	}
	if err := d.Delete(t.Context(), id); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("Delete: %v", err)
	}
	if vs, err := d.List(t.Context()); err != nil || len(vs) != 0 {
		t.Errorf("List: %v %v", vs, err)
	}
}
