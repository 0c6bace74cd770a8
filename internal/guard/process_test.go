package guard

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/sys"
)

// startProcess starts the guard as a process of its own and waits until it answers.
func startProcess(t *testing.T, rc roleConfig, files ...*os.File) (*Client, *os.Process) {
	t.Helper()
	cmd := spawn(t, "guard", rc, files...)
	var c *Client
	eventually(t, "the guard's process answers", func() (ok bool) {
		var err error
		c, err = Dial(t.Context(), rc.Socket)
		if err != nil {
			return false
		}
		s, err := c.Status(t.Context())
		return err == nil && s.PID == cmd.Process.Pid
	})
	return c, cmd.Process
}

func TestAnAgentThatStandsStillHasItsGuestsFrozenAndThawedWhenItGoesOn(t *testing.T) {
	rc := roleConfig{Socket: filepath.Join(t.TempDir(), "g.sock"), CgroupRoot: testRoot(t), Epoch: 7}
	c, _ := startProcess(t, rc)
	agent := spawn(t, "agent", rc)
	eventually(t, "protected", func() bool { return c.Protect(t.Context(), testGroup("100", 7)) == nil })
	file, _ := startGuest(t, rc.CgroupRoot, "100")

	must(t, agent.Process.Signal(syscall.SIGSTOP))
	eventually(t, "frozen", func() bool { return stateOf(t, c, "100") == lease.Frozen })
	rests(t, file)
	must(t, agent.Process.Signal(syscall.SIGCONT))
	eventually(t, "thawed", func() bool { return stateOf(t, c, "100") == lease.Running })
	grows(t, file)

	// The guard outlives its agent and takes the next one.
	must(t, agent.Process.Kill())
	eventually(t, "frozen again", func() bool { return stateOf(t, c, "100") == lease.Frozen })
	spawn(t, "agent", rc)
	grows(t, file)
}

// pipeHeld says whether somebody has the writing end of the pipe open.
func pipeHeld(t *testing.T, r *os.File) bool {
	t.Helper()
	must(t, r.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err := r.Read(make([]byte, 1))
	return os.IsTimeout(err)
}

func TestAGuardThatStandsStillHasFedNothingPastTheDeadline(t *testing.T) {
	rc := roleConfig{Socket: filepath.Join(t.TempDir(), "g.sock"), CgroupRoot: testRoot(t), Epoch: 7, Feeds: filepath.Join(t.TempDir(), "feeds")}
	reader, writer, err := os.Pipe()
	must(t, err)
	defer reader.Close()
	c, process := startProcess(t, rc, writer)
	writer.Close()
	eventually(t, "fed", func() bool { return lastFeed(t, rc.Feeds) > 0 })
	deadline := sys.BootTime() + shortParams().Lease
	must(t, c.Renew(t.Context(), 7, deadline))
	must(t, c.Protect(t.Context(), testGroup("100", 7)))
	startGuest(t, rc.CgroupRoot, "100")
	eventually(t, "the holder listens", func() bool { _, err := os.Stat(holderSocket(rc.Socket)); return err == nil })
	for sys.BootTime() < deadline-shortParams().FreezeMargin-50*time.Millisecond {
		<-time.After(10 * time.Millisecond)
	}
	must(t, process.Signal(syscall.SIGSTOP))
	if expires := lastFeed(t, rc.Feeds) + shortParams().Watchdog; expires > deadline {
		t.Errorf("the watchdog expires %v after the deadline", expires-deadline)
	}
}

func TestAKilledGuardDoesNotCloseTheWatchdogAndTheNextOneFreezesWhatItFinds(t *testing.T) {
	dir := t.TempDir()
	rc := roleConfig{Socket: filepath.Join(dir, "g.sock"), CgroupRoot: testRoot(t), Epoch: 7, Feeds: filepath.Join(dir, "feeds")}
	reader, writer, err := os.Pipe()
	must(t, err)
	defer reader.Close()
	c, process := startProcess(t, rc, writer)
	writer.Close()
	eventually(t, "fed", func() bool { return lastFeed(t, rc.Feeds) > 0 })
	must(t, c.Renew(t.Context(), 7, sys.BootTime()+shortParams().Lease))
	must(t, c.Protect(t.Context(), testGroup("100", 7)))
	file, _ := startGuest(t, rc.CgroupRoot, "100")
	must(t, os.MkdirAll(filepath.Join(GuestsDir(rc.CgroupRoot), "200"), 0o755))
	free, _ := startGuest(t, rc.CgroupRoot, "200") // never protected
	eventually(t, "the holder listens", func() bool { _, err := os.Stat(holderSocket(rc.Socket)); return err == nil })

	must(t, process.Kill())
	_, _ = process.Wait()
	if !pipeHeld(t, reader) {
		t.Fatal("the guard's death closed the watchdog")
	}
	second, err := os.OpenFile(filepath.Join(dir, "second"), os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	defer second.Close()
	c, next := startProcess(t, rc, second)
	eventually(t, "frozen", func() bool { return stateOf(t, c, "100") == lease.Frozen })
	rests(t, file)
	grows(t, free)
	eventually(t, "the first holder is gone", func() bool { return !pipeHeld(t, reader) })
	must(t, c.Renew(t.Context(), 7, sys.BootTime()+shortParams().Lease))
	grows(t, file)

	// The guard is told to stop, twice: it refuses, and obeys when the guest is dead.
	must(t, next.Signal(syscall.SIGTERM))
	eventually(t, "stopping", func() bool { s, err := c.Status(t.Context()); return err == nil && s.Stopping })
	must(t, next.Signal(syscall.SIGTERM))
	grows(t, free)
	must(t, c.Fence(t.Context(), 8))
	state, err := next.Wait()
	must(t, err)
	if state.ExitCode() != 0 {
		t.Errorf("the guard ended with %v", state)
	}
	grows(t, free)
}

func TestTheGuardProcessIsHardenedOrSaysThatItIsNot(t *testing.T) {
	rc := roleConfig{Socket: filepath.Join(t.TempDir(), "g.sock"), CgroupRoot: testRoot(t)}
	c, process := startProcess(t, rc)
	s, err := c.Status(t.Context())
	must(t, err)
	weak := strings.Join(s.Weak, "\n")
	proc := func(name string) string {
		b, err := os.ReadFile(filepath.Join("/proc", itoa(process.Pid), name))
		must(t, err)
		return string(b)
	}
	if got := proc("oom_score_adj"); got != "-1000\n" && !strings.Contains(weak, "out-of-memory killer") {
		t.Errorf("oom_score_adj is %q and the status is silent about it: %s", got, weak)
	}
	if strings.Contains(proc("status"), "VmLck:\t       0 kB") && !strings.Contains(weak, "lock memory") {
		t.Errorf("no memory is locked and the status is silent about it: %s", weak)
	}
	const policy = 40 // the field of /proc/PID/stat, counted from 0; 2 is SCHED_RR
	if got := strings.Fields(proc("stat"))[policy]; got != "2" && !strings.Contains(weak, "real-time") {
		t.Errorf("the scheduling policy is %s and the status is silent about it: %s", got, weak)
	}
}
