package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/core/model"
)

// childDir, in its environment, makes this test program a child that probes that directory.
const childDir = "SAUH_HEALTH_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := Serve(os.Stdin, os.Stdout, func() error { return ProbeDir(dir, "test") }); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child probes dir with a process. lock is its file.
func child(t *testing.T, dir, lock string) *Child {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	c := NewChild([]string{"/usr/bin/env", childDir + "=" + dir, self}, lock)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func short(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAStorageThatIsWellPassesItsProbe(t *testing.T) {
	dir := t.TempDir()
	c := child(t, dir, filepath.Join(t.TempDir(), "run", "nas.probe"))
	for range 3 {
		must(t, c.Probe(t.Context()))
	}
	if st, err := os.Stat(filepath.Join(dir, ".sauh", "health", "test")); err != nil || st.Size() != probeSize {
		t.Errorf("%v %v", st, err)
	}
	pid := c.running.os.Pid
	must(t, c.Close())
	must(t, c.Close())
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d is left: %v", pid, err)
	}
}

func TestAStorageThatFailsSaysHow(t *testing.T) {
	c := child(t, "/nowhere/at all", filepath.Join(t.TempDir(), "lock"))
	for range 2 {
		if err := c.Probe(t.Context()); err == nil || err.Error() != "stat /nowhere/at all: no such file or directory" {
			t.Errorf("got %v", err)
		}
	}
}

func TestAProbeThatWasKilledIsStartedAnew(t *testing.T) {
	c := child(t, t.TempDir(), filepath.Join(t.TempDir(), "lock"))
	must(t, c.Probe(t.Context()))
	must(t, c.running.os.Kill())
	if err := c.Probe(t.Context()); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	must(t, c.Probe(t.Context()))
}

func TestAProbeThatCannotBeStartedSaysSo(t *testing.T) {
	c := NewChild([]string{"/nowhere/sauh"}, filepath.Join(t.TempDir(), "lock"))
	if err := c.Probe(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// hang mounts a file system on dir of which nobody answers for: each call on it waits. The function returned makes every call fail,
// those that wait included.
func hang(t *testing.T, dir string) (fail func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs /dev/fuse: %v", err)
	}
	if err := unix.Mount("test", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		_ = unix.Close(fd)
		t.Skipf("needs to mount: %v", err)
	}
	closed := false
	fail = func() {
		if !closed {
			closed = true
			_ = unix.Close(fd)
		}
	}
	t.Cleanup(func() { fail(); _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return fail
}

func TestAStorageThatHangsHoldsNobodyUp(t *testing.T) {
	dir, lock := t.TempDir(), filepath.Join(t.TempDir(), "lock")
	fail := hang(t, dir)
	c := child(t, dir, lock)
	start := time.Now()
	if err := c.Probe(short(t, 300*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 3*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
	// As after a restart of the agent, while the child still hangs.
	other := child(t, dir, lock)
	err := other.Probe(t.Context())
	if !errors.Is(err, model.ErrUnavailable) || !strings.Contains(err.Error(), "still hangs") || other.running != nil {
		t.Errorf("a second process for one storage: %v", err)
	}
	fail()
	line := <-c.running.answers
	if err := answered(line); err == nil || !strings.Contains(err.Error(), "not connected") {
		t.Errorf("the late answer: %q %v", line, err)
	}
	must(t, unix.Unmount(dir, 0))
	must(t, c.Probe(t.Context())) // the same child, when the storage is back
	must(t, c.Close())
	must(t, other.Probe(t.Context()))
}

func TestAChildEndsWithItsAgent(t *testing.T) {
	c := child(t, t.TempDir(), filepath.Join(t.TempDir(), "lock"))
	must(t, c.Probe(t.Context()))
	must(t, c.running.in.Close()) // as the end of the process that holds it does
	if !c.running.over(5 * time.Second) {
		t.Error("it goes on")
	}
}

func TestAFullStorageIsNotLost(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs to mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	must(t, ProbeDir(dir, "n1"))
	must(t, os.Remove(filepath.Join(dir, "big")))
	must(t, ProbeDir(dir, "n1"))
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if err := ProbeDir(dir, "n1"); !errors.Is(err, unix.EROFS) {
		t.Errorf("a storage that became read-only: %v", err)
	}
}

func TestTheDialogueIsAWordEach(t *testing.T) {
	var out bytes.Buffer
	n := 0
	probe := func() error {
		if n++; n == 2 {
			return errors.New("it is \"gone\"\nfor good")
		}
		return nil
	}
	must(t, Serve(strings.NewReader("probe\nprobe\nprobe\n"), &out, probe))
	want := "ok\nerror \"it is \\\"gone\\\"\\nfor good\"\nok\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	for line, want := range map[string]string{
		"ok":                      "<nil>",
		`error "it is \"gone\""`:  `it is "gone"`,
		"error it":                `the probe says "error it", which is no answer`,
		"":                        `the probe says "", which is no answer`,
		strings.Repeat("x", 1000): `the probe says "` + strings.Repeat("x", 80) + `", which is no answer`,
	} {
		if got := fmt.Sprint(answered(line)); got != want {
			t.Errorf("%q: %s, want %s", line, got, want)
		}
	}
	if err := Serve(strings.NewReader("hello\n"), &out, probe); err == nil {
		t.Error("it took another question")
	}
}
