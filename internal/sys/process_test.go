//go:build linux

package sys_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sauh.dev/sauh/internal/sys"
)

// sleeper starts a process that waits to be ended.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd
}

func TestAPidFDTellsTheEndOfAProcess(t *testing.T) {
	cmd := sleeper(t)
	p, err := sys.OpenPidFD(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Ended() {
		t.Error("it has ended before it was killed")
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil || !p.Ended() {
			t.Errorf("Wait: %v, Ended: %v", err, p.Ended())
		}
	case <-time.After(time.Second):
		t.Error("the end was not told within a second")
	}
}

func TestAClosedPidFDEndsItsWait(t *testing.T) {
	p, err := sys.OpenPidFD(sleeper(t).Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	p.Close()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("Wait says that a living process has ended")
		}
	case <-time.After(5 * time.Second):
		t.Error("Wait goes on after Close")
	}
}

func TestAProcessThatIsGoneIsDone(t *testing.T) {
	cmd := sleeper(t)
	pid := cmd.Process.Pid
	start, err := sys.ProcessStart(pid)
	if err != nil || start == 0 {
		t.Errorf("start %d, %v", start, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if _, err := sys.OpenPidFD(pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("OpenPidFD: %v", err)
	}
	if _, err := sys.ProcessStart(pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("ProcessStart: %v", err)
	}
	if _, err := sys.ProcessArgs(pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("ProcessArgs: %v", err)
	}
}

func TestAFileIsLockedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := sys.TryLockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sys.TryLockFile(path); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("second: %v", err)
	}
	first.Close()
	again, err := sys.TryLockFile(path)
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	defer again.Close()
	if err := sys.TryLockRange(again, 100, 10); err != nil {
		t.Fatal(err)
	}
	other, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := sys.TryLockRange(other, 109, 1); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("overlapping range: %v", err)
	}
	if err := sys.TryLockRange(other, 110, 1); err != nil {
		t.Errorf("range beside it: %v", err)
	}
}
