package guard

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/sys"
)

func TestGuestIsFrozenBeforeTheDeadlineAndThawedWhenTheSameEpochIsRenewed(t *testing.T) {
	r := startRig(t)
	deadline := r.renew(1)
	must(t, r.client.Protect(t.Context(), testGroup("100", 1)))
	file, _ := startGuest(t, r.root, "100")
	eventually(t, "frozen", func() bool { return r.state("100") == lease.Frozen })
	if now := sys.BootTime(); now >= deadline {
		t.Errorf("confirmed %v after the deadline", now-deadline)
	}
	rests(t, file)
	feeds := r.dog.count()
	eventually(t, "the watchdog is fed while the guest is frozen", func() bool { return r.dog.count() > feeds+3 })
	rests(t, file)
	r.renew(1)
	grows(t, file)
}

func TestFenceReturnsWhenTheGuestsAreDeadAndTheirCgroupsGone(t *testing.T) {
	r := startRig(t)
	r.renew(1)
	must(t, r.client.Protect(t.Context(), testGroup("100", 1)))
	file, cmd := startGuest(t, r.root, "100")
	must(t, r.client.Fence(t.Context(), 2))
	dir := filepath.Join(GuestsDir(r.root), "100")
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cgroup is still there: %v", err)
	}
	eventually(t, "the process is gone", func() bool { return cmd.Process.Signal(syscall.Signal(0)) != nil })
	rests(t, file)
	must(t, r.client.Fence(t.Context(), 2)) // twice is once
	if err := r.client.Renew(t.Context(), 1, sys.BootTime()+time.Second); !errors.Is(err, model.ErrConflict) {
		t.Errorf("a renewal of the old epoch: %v", err)
	}
	if err := r.client.Protect(t.Context(), testGroup("100", 2)); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("protecting after the fencing, before a renewal: %v", err)
	}
	r.renew(2)
	must(t, r.client.Protect(t.Context(), testGroup("100", 2)))
	startGuest(t, r.root, "100")
}

func TestAFrozenGuestIsKilledByAPillOnItsStorage(t *testing.T) {
	r := startRig(t)
	pill := filepath.Join(t.TempDir(), "pill")
	must(t, os.WriteFile(pill, lease.FormatPill(1), 0o600))
	r.renew(1)
	must(t, r.client.Protect(t.Context(), testGroup("100", 1, pill, pill+".missing")))
	startGuest(t, r.root, "100")
	eventually(t, "frozen", func() bool { return r.state("100") == lease.Frozen })
	must(t, os.WriteFile(pill, lease.FormatPill(2), 0o600))
	eventually(t, "dead", func() bool { return r.state("100") == "" })
	if s, _ := r.client.Status(t.Context()); s.Epoch != 2 || s.Leased {
		t.Errorf("status after the pill: %+v", s)
	}
}

func TestANewerEpochKillsWhatTheOlderOneLeft(t *testing.T) {
	r := startRig(t)
	r.renew(1)
	must(t, r.client.Protect(t.Context(), testGroup("100", 1)))
	startGuest(t, r.root, "100")
	r.renew(2)
	eventually(t, "dead", func() bool { return r.state("100") == "" })
}

func TestGuardDoesNotStopWhileAGuestIsProtected(t *testing.T) {
	r := startRig(t)
	r.renew(1)
	must(t, r.client.Protect(t.Context(), testGroup("100", 1)))
	r.stop()
	eventually(t, "it says that it is stopping", func() bool {
		s, err := r.client.Status(t.Context())
		return err == nil && s.Stopping
	})
	if err := r.client.Protect(t.Context(), testGroup("101", 1)); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("protecting at a guard that is stopping: %v", err)
	}
	must(t, r.client.Unprotect(t.Context(), "100"))
	select {
	case err := <-r.ended:
		must(t, err)
		r.ended <- nil // for the cleanup
	case <-time.After(5 * time.Second):
		t.Fatal("it does not stop after the last guest is released")
	}
	if !r.dog.disarmed {
		t.Error("the watchdog is still armed")
	}
}

func TestReleasingAGuestLeavesItRunning(t *testing.T) {
	r := startRig(t)
	r.renew(1)
	must(t, r.client.Protect(t.Context(), testGroup("100", 1)))
	file, _ := startGuest(t, r.root, "100")
	must(t, r.client.Unprotect(t.Context(), "100"))
	if _, ok, err := sys.Cgroup(filepath.Join(GuestsDir(r.root), "100")).Mark(mark); ok || err != nil {
		t.Errorf("the mark of a released guest: %v, %v", ok, err)
	}
	must(t, r.client.Fence(t.Context(), 9))
	grows(t, file)
}

func TestAGuestOnAStorageWithLateWritesResetsTheMachine(t *testing.T) {
	r := startRig(t)
	g := testGroup("100", 1)
	g.OnDeadline = lease.ResetMachine
	deadline := r.renew(1)
	must(t, r.client.Protect(t.Context(), g))
	startGuest(t, r.root, "100")
	select {
	case <-r.resets:
	case <-time.After(10 * time.Second):
		t.Fatal("no reset")
	}
	if now := sys.BootTime(); now >= deadline {
		t.Errorf("reset %v after the deadline", now-deadline)
	}
	feeds := r.dog.count()
	_ = r.client.Renew(t.Context(), 1, sys.BootTime()+shortParams().Lease)
	<-time.After(300 * time.Millisecond)
	if r.dog.count() != feeds {
		t.Error("the watchdog is fed after the reset was ordered")
	}
}

func TestProtectRefusesWhatItCannotGuard(t *testing.T) {
	r := startRig(t)
	refuse := func(g lease.Group, kind error, part string) {
		t.Helper()
		err := r.client.Protect(t.Context(), g)
		if !errors.Is(err, kind) || !strings.Contains(err.Error(), part) {
			t.Errorf("Protect(%+v) = %v, want %v with %q", g, err, kind, part)
		}
	}
	refuse(testGroup("100", 1), model.ErrUnavailable, "no valid lease")
	r.renew(1)
	refuse(testGroup("100", 2), model.ErrConflict, "the lease is of epoch 1")
	refuse(testGroup("../100", 1), model.ErrInvalid, "cannot name a group")
	refuse(testGroup("", 1), model.ErrInvalid, "cannot name a group")
	refuse(lease.Group{Name: "100", Epoch: 1}, model.ErrInvalid, "use freeze or reset")
	g := testGroup("100", 1)
	g.Cgroup = "/sys/fs/cgroup/system.slice"
	refuse(g, model.ErrInvalid, "must be in")
	if err := r.client.Renew(t.Context(), 1, sys.BootTime()+time.Hour); !errors.Is(err, model.ErrInvalid) {
		t.Errorf("a lease of an hour: %v", err)
	}
	entries, err := os.ReadDir(GuestsDir(r.root))
	must(t, err)
	for _, e := range entries {
		if e.IsDir() {
			t.Errorf("a refused request left cgroup %s", e.Name())
		}
	}
}

func TestASecondGuardIsRefused(t *testing.T) {
	r := startRig(t)
	err := Run(t.Context(), Config{Socket: r.client.socket, CgroupRoot: r.root, Watchdog: NoWatchdog, Reset: func() error { return nil }})
	if !errors.Is(err, model.ErrExists) {
		t.Errorf("a second guard: %v", err)
	}
}

func TestGuardRefusesToRunWithoutWhatItNeeds(t *testing.T) {
	root := testRoot(t)
	held := errors.New("held by another process")
	noReset := func() error { return nil }
	open := func(err error, timeout time.Duration) func(string, time.Duration) (watchdog, error) {
		return func(string, time.Duration) (watchdog, error) { return &fakeDog{timeout: timeout}, err }
	}
	tests := []struct {
		name string
		cfg  Config
		want string
	}{
		{"a watchdog that is held", Config{CgroupRoot: root, Reset: noReset, open: open(held, 0)}, "held by another"},
		{"a watchdog that cannot be set", Config{CgroupRoot: root, Reset: noReset, open: open(nil, time.Minute)}, "cannot be set to 5s"},
		{"no way to reset", Config{CgroupRoot: root}, "no way to reset"},
		{"no cgroups", Config{CgroupRoot: t.TempDir(), Reset: noReset}, "not a cgroup v2 hierarchy"},
		{"bad times", Config{CgroupRoot: root, Reset: noReset, Params: lease.Params{Lease: 1}}, "longer than 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Socket = filepath.Join(t.TempDir(), "g.sock")
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := Run(ctx, tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Run() = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestStatusWithoutAWatchdogSaysSo(t *testing.T) {
	root := testRoot(t)
	socket := filepath.Join(t.TempDir(), "g.sock")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Socket: socket, CgroupRoot: root, Watchdog: NoWatchdog, Reset: func() error { return nil }})
	}()
	var s Status
	eventually(t, "it answers", func() (ok bool) {
		c, err := Dial(t.Context(), socket)
		if err == nil {
			s, err = c.Status(t.Context())
		}
		return err == nil
	})
	if s.Grade != GradeNone || len(s.Weak) != 1 || !strings.Contains(s.Weak[0], "there is no watchdog") {
		t.Errorf("status: %+v", s)
	}
	cancel()
	must(t, <-ended)
}

func TestACallWithoutAGuardSaysHowToStartOne(t *testing.T) {
	_, err := Dial(t.Context(), filepath.Join(t.TempDir(), "g.sock"))
	if !errors.Is(err, model.ErrUnavailable) || !strings.Contains(err.Error(), "sauh guard") {
		t.Errorf("Dial() = %v", err)
	}
}

func TestARequestWhoseCallerGaveUpIsRefused(t *testing.T) {
	r := startRig(t)
	r.renew(1)
	must(t, r.client.Protect(t.Context(), lease.Group{Name: "100", Epoch: 1, OnDeadline: lease.FreezeGroup}))
	_, err := r.client.exchange(t.Context(), request{Op: "unprotect", Name: "100", NotAfterNS: 1})
	must(t, err)
	if got := r.state("100"); got != lease.Running {
		t.Errorf("after a late unprotect the group is %q, want it still protected", got)
	}
}
