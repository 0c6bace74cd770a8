package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sauh.dev/sauh/internal/core/health"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp/qmptest"
	"sauh.dev/sauh/internal/sys"
)

// fakeProcess is a Process whose monitor is a fake. The process itself is this test, which does not end.
func fakeProcess(t *testing.T) (*Process, *qmptest.QEMU) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sauh-qmp-") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ticks, err := sys.ProcessStart(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	spec := smallSpec()
	spec.RunDir = dir
	spec.Disks = []Disk{{ID: "virtio0", Volume: "nas:100/vm-100-disk-0.raw"}, {ID: "scsi1", Volume: "local:100/x.raw"}}
	r := qmptest.NewRoom()
	t.Cleanup(r.Close)
	q := r.Start("a")
	if err := q.Listen(t.Context(), spec.QMPSocket()); err != nil {
		t.Fatal(err)
	}
	p, err := watch(spec, Facts{PID: os.Getpid(), StartTicks: ticks})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, q
}

// follow collects incidents until the test ends.
type followed struct {
	mu   sync.Mutex
	seen []health.Incident
}

func follow(t *testing.T, p *Process) *followed {
	t.Helper()
	f := &followed{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Follow(ctx, func(i health.Incident) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.seen = append(f.seen, i)
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

func (f *followed) all() []health.Incident {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen)
}

// want waits until exactly these were told.
func (f *followed) want(t *testing.T, want ...health.Incident) {
	t.Helper()
	diff := func() string {
		return cmp.Diff(want, f.all(), cmpopts.IgnoreFields(health.Incident{}, "Time"))
	}
	deadline := time.After(5 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); diff() != ""; {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("(-want +got):\n%s", diff())
		}
	}
}

func TestWhatHappensToAGuestReachesWhoeverFollowsIt(t *testing.T) {
	p, q := fakeProcess(t)
	f := follow(t, p)
	status := health.Incident{Kind: health.StatusKnown, Status: "running"}
	f.want(t, status)
	q.Event("GUEST_PANICKED", map[string]any{"action": "run"})
	q.Event("NIC_RX_FILTER_CHANGED", map[string]any{"name": "net0", "path": "/x"})
	q.Event("BLOCK_IO_ERROR", map[string]any{
		"device": "", "qom-path": "/machine/peripheral/virtio0/virtio-backend", "operation": "write", "action": "stop", "nospace": true, "reason": "No space left on device",
	})
	q.Event("BLOCK_IO_ERROR", map[string]any{"device": "", "node-name": "drive-scsi1", "operation": "read", "action": "report", "reason": "Input/output error"})
	q.Event("BLOCK_IO_ERROR", map[string]any{"device": "", "node-name": "#block123", "operation": "read", "action": "report", "reason": "Input/output error"})
	q.Event("STOP", nil)
	q.Event("RESUME", nil)
	q.Event("RESET", map[string]any{"guest": true, "reason": "guest-reset"})
	q.Event("WATCHDOG", map[string]any{"action": "reset"})
	f.want(
		t, status, health.Incident{Kind: health.Panicked, Action: "run"},
		health.Incident{Kind: health.IOError, Disk: "virtio0", Volume: "nas:100/vm-100-disk-0.raw", Write: true, NoSpace: true, Reason: "No space left on device", Action: "stop"},
		health.Incident{Kind: health.IOError, Disk: "scsi1", Volume: "local:100/x.raw", Reason: "Input/output error", Action: "report"},
		health.Incident{Kind: health.IOError, Reason: "Input/output error", Action: "report"},
		health.Incident{Kind: health.Stopped}, health.Incident{Kind: health.Resumed}, health.Incident{Kind: health.Reset},
		health.Incident{Kind: health.WatchdogFired, Action: "reset"},
	)
}

func TestWhoComesLateIsToldOfTheErrorThatStoppedTheGuest(t *testing.T) {
	p, q := fakeProcess(t)
	q.Handle("query-status", func(json.RawMessage) (any, error) { return map[string]any{"status": "io-error", "running": false}, nil })
	q.Handle("query-block", func(json.RawMessage) (any, error) {
		return json.RawMessage(`[{"device":"","qdev":"/machine/peripheral/virtio0/virtio-backend","io-status":"failed"},
			{"device":"","qdev":"scsi1","io-status":"ok"}, {"device":"cd","removable":true}]`), nil
	})
	follow(t, p).want(
		t, health.Incident{Kind: health.StatusKnown, Status: "io-error"},
		health.Incident{Kind: health.IOError, Disk: "virtio0", Volume: "nas:100/vm-100-disk-0.raw", Reason: "it stands still for an I/O error", Action: "stop"},
	)
}

func TestAfterALostConnectionTheStatusIsToldAnew(t *testing.T) {
	p, q := fakeProcess(t)
	f := follow(t, p)
	f.want(t, health.Incident{Kind: health.StatusKnown, Status: "running"})
	q.Handle("query-status", func(json.RawMessage) (any, error) {
		return map[string]any{"status": "guest-panicked", "running": false}, nil
	})
	_ = p.current().Close()
	f.want(t, health.Incident{Kind: health.StatusKnown, Status: "running"}, health.Incident{Kind: health.StatusKnown, Status: "guest-panicked"})
}

func TestFollowEndsWithTheProcessThatWasClosed(t *testing.T) {
	p, _ := fakeProcess(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Follow(t.Context(), func(health.Incident) {})
	}()
	if _, err := p.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Close()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("it goes on")
	}
}

func TestAResetGuestRunsAgainUnlessItWasPaused(t *testing.T) {
	for status, want := range map[string][]string{
		"running":        {"qmp_capabilities", "query-status", "system_reset"},
		"paused":         {"qmp_capabilities", "query-status", "system_reset"},
		"guest-panicked": {"qmp_capabilities", "query-status", "system_reset", "query-status", "query-status", "cont"},
		"io-error":       {"qmp_capabilities", "query-status", "system_reset", "query-status", "query-status", "cont"},
	} {
		t.Run(status, func(t *testing.T) {
			p, q := fakeProcess(t)
			asked := 0
			q.Handle("query-status", func(json.RawMessage) (any, error) {
				if asked++; asked > 2 { // QEMU takes its time
					return map[string]any{"status": "prelaunch"}, nil
				}
				return map[string]any{"status": status}, nil
			})
			q.Handle("system_reset", func(json.RawMessage) (any, error) { return nil, nil })
			if err := p.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, q.Commands()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAGuestThatMigratesIsNotReset(t *testing.T) {
	for _, status := range []string{"inmigrate", "finish-migrate", "postmigrate"} {
		p, q := fakeProcess(t)
		q.Handle("query-status", func(json.RawMessage) (any, error) { return map[string]any{"status": status}, nil })
		if err := p.Reset(t.Context()); !errors.Is(err, model.ErrBusy) || slices.Contains(q.Commands(), "system_reset") || slices.Contains(q.Commands(), "cont") {
			t.Errorf("%s: %v after %v", status, err, q.Commands())
		}
	}
}

func TestARealGuestIsResetAndTellsOfIt(t *testing.T) {
	b := newBench(t)
	s := b.spec(100)
	s.Machine, s.Paused, s.GuestAgent = "pc+sauh1", false, true
	p := b.start(t, s)
	f := follow(t, p)
	f.want(t, health.Incident{Kind: health.StatusKnown, Status: "running"})
	for _, pause := range []bool{true, false} {
		if err := p.PauseOnPanic(t.Context(), pause); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.want(t, health.Incident{Kind: health.StatusKnown, Status: "running"}, health.Incident{Kind: health.Reset})
	if _, err := os.Stat(s.AgentSocket()); err != nil {
		t.Error(err)
	}
	s.VMID, s.Machine, s.Disks = 101, "q35+sauh1", nil
	if s, err := b.start(t, s).Status(t.Context()); err != nil || !s.Running {
		t.Errorf("q35: %+v %v", s, err)
	}
}
