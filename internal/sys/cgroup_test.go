package sys_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/sys"
)

// newCgroup makes a cgroup that the test's end kills and removes.
func newCgroup(t *testing.T) sys.Cgroup {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root, err := sys.Cgroup2Root()
	if err != nil {
		t.Skip("needs cgroup v2:", err)
	}
	dir, err := os.MkdirTemp(root, "sauh-sys-test-")
	if err != nil {
		t.Skip("needs a writable cgroup v2:", err)
	}
	c := sys.Cgroup(dir)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(c.Kill(), c.WaitEmpty(ctx), c.Remove()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	return c
}

// startCounter starts a process in the cgroup that appends to a file without end.
func startCounter(t *testing.T, c sys.Cgroup) (file string) {
	t.Helper()
	dir, err := os.Open(string(c))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	file = filepath.Join(t.TempDir(), "count")
	cmd := exec.Command("sh", "-c", "while :; do echo x >> "+file+"; sleep 0.005; done")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	grows(t, file)
	return file
}

func size(file string) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return info.Size()
}

// grows waits until the file has become longer.
func grows(t *testing.T, file string) {
	t.Helper()
	before := size(file)
	for end := time.Now().Add(5 * time.Second); size(file) <= before; <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not grow", file)
		}
	}
}

// rests checks that the file stays as it is for a while.
func rests(t *testing.T, file string) {
	t.Helper()
	before := size(file)
	<-time.After(150 * time.Millisecond)
	if after := size(file); after != before {
		t.Fatalf("%s grew from %d to %d bytes", file, before, after)
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAFrozenCgroupStandsStillAndGoesOnWhenThawed(t *testing.T) {
	c := newCgroup(t)
	file := startCounter(t, c)
	must(t, c.Freeze())
	must(t, c.WaitFrozen(within(t, 5*time.Second)))
	rests(t, file)
	must(t, c.Thaw())
	grows(t, file)
	if frozen, err := c.Frozen(); frozen || err != nil {
		t.Errorf("after the thaw Frozen() = %v, %v", frozen, err)
	}
}

func TestKillEndsAFrozenCgroupAndRemoveThenWorks(t *testing.T) {
	c := newCgroup(t)
	startCounter(t, c)
	must(t, c.Freeze())
	must(t, c.WaitFrozen(within(t, 5*time.Second)))
	if err := c.Remove(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("removing a populated cgroup: %v, want EBUSY", err)
	}
	must(t, c.Kill())
	must(t, c.WaitEmpty(within(t, 5*time.Second)))
	must(t, c.Remove())
	must(t, c.Remove())
	must(t, c.WaitEmpty(within(t, time.Second)))
	if err := c.Freeze(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("freezing a cgroup that is gone: %v, want fs.ErrNotExist", err)
	}
}

func TestAnEmptyCgroupIsFrozenAndSoIsWhoEntersIt(t *testing.T) {
	c := newCgroup(t)
	must(t, c.Freeze())
	must(t, c.WaitFrozen(within(t, time.Second)))
	cmd := exec.Command("sleep", "60")
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	must(t, c.Add(cmd.Process.Pid))
	must(t, c.WaitFrozen(within(t, 5*time.Second)))
	if got, err := c.Procs(); err != nil || fmt.Sprint(got) != fmt.Sprint([]int{cmd.Process.Pid}) {
		t.Errorf("Procs() = %v, %v", got, err)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	c := newCgroup(t)
	startCounter(t, c)
	if err := c.WaitEmpty(within(t, 60*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitEmpty of a populated cgroup = %v", err)
	}
}

func TestAMarkStaysWithItsCgroup(t *testing.T) {
	c := newCgroup(t)
	if _, ok, err := c.Mark("sauh.test"); ok || err != nil {
		t.Fatalf("Mark() of an unmarked cgroup = %v, %v", ok, err)
	}
	value := strings.Repeat("x", 1000)
	must(t, c.SetMark("sauh.test", []byte(value)))
	if got, ok, err := c.Mark("sauh.test"); string(got) != value || !ok || err != nil {
		t.Errorf("Mark() = %d bytes, %v, %v", len(got), ok, err)
	}
	must(t, c.ClearMark("sauh.test"))
	must(t, c.ClearMark("sauh.test"))
	if _, ok, _ := c.Mark("sauh.test"); ok {
		t.Error("a cleared mark is still there")
	}
}

func TestACgroupCountsTheProcessorTimeOfWhatIsBelowIt(t *testing.T) {
	c := newCgroup(t)
	idle, err := c.CPUTime()
	if err != nil || idle != 0 {
		t.Errorf("a new cgroup has used %s, %v", idle, err)
	}
	below := sys.Cgroup(filepath.Join(string(c), "below"))
	if err := below.Create(); err != nil {
		t.Fatal(err)
	}
	startCounter(t, below)
	for end := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
		used, err := c.CPUTime()
		if err != nil {
			t.Fatal(err)
		}
		if used > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it has used nothing")
		}
	}
	if _, err := sys.Cgroup(filepath.Join(string(c), "none")).CPUTime(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a cgroup that is not there: %v", err)
	}
}

func TestProcessorTimeNeedsTheKernelsWord(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]time.Duration{"usage_usec 1500\nuser_usec 3\n": 1500 * time.Microsecond, "user_usec 3\n": -1, "usage_usec x\n": -1} {
		if err := os.WriteFile(filepath.Join(dir, "cpu.stat"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := sys.Cgroup(dir).CPUTime(); got != max(want, 0) || (err != nil) != (want < 0) {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
}

func TestAProcessHasMemory(t *testing.T) {
	if got, err := sys.ProcessMemory(os.Getpid()); err != nil || got < 1<<20 || got > 1<<34 {
		t.Errorf("%d bytes, %v", got, err)
	}
	if _, err := sys.ProcessMemory(1 << 30); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a process that is not there: %v", err)
	}
}

func TestBootTimeAdvancesAndTheBootIDDoesNot(t *testing.T) {
	a, b := sys.BootTime(), sys.BootTime()
	if a <= 0 || b < a {
		t.Errorf("BootTime() went from %v to %v", a, b)
	}
	id, err := sys.BootID()
	again, _ := sys.BootID()
	if err != nil || len(id) != 36 || id != again {
		t.Errorf("BootID() = %q then %q, %v", id, again, err)
	}
}

func TestAWatchdogThatIsNoneIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "watchdog")
	must(t, os.WriteFile(file, nil, 0o600))
	for path, want := range map[string]string{file: "WDIOC_GETSUPPORT", file + "x": "no such file"} {
		if _, err := sys.OpenWatchdog(path, 5*time.Second); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("OpenWatchdog(%s) = %v, want %q", path, err, want)
		}
	}
	if _, err := sys.OpenWatchdog(file, 1500*time.Millisecond); err == nil {
		t.Error("a timeout of 1.5 s was accepted")
	}
}
