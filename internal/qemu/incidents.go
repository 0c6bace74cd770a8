package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/health"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp"
)

const (
	// followRetry is the wait before a monitor that does not answer, because QEMU is frozen, is dialled again.
	followRetry = time.Second
	// resetPoll is how often QEMU is asked whether it has carried a reset out.
	resetPoll = 10 * time.Millisecond
)

// Follow calls tell with what happens to the guest, in order, until ctx is done, the process has ended or p is closed. It begins
// with the guest's status, and tells that again whenever the connection to QEMU was lost meanwhile, because what
// happened then is not known; a guest that stands still for an I/O error is told of once more too. tell must return soon.
// Nothing is left running when it returns.
func (p *Process) Follow(ctx context.Context, tell func(health.Incident)) {
	for p.Running() && ctx.Err() == nil {
		if errors.Is(p.follow(ctx, tell), os.ErrClosed) {
			return
		}
		select {
		case <-ctx.Done():
		case <-p.done:
		case <-time.After(followRetry):
		}
	}
}

// follow is Follow over one connection.
func (p *Process) follow(ctx context.Context, tell func(health.Incident)) error {
	conn, err := p.QMP(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := conn.Subscribe(ctx) // before the question, so that nothing falls between the two
	if err := p.tellStatus(ctx, tell); err != nil {
		return err
	}
	for ev := range events {
		if i, ok := p.incident(ev); ok {
			tell(i)
		}
	}
	return conn.Err()
}

func (p *Process) tellStatus(ctx context.Context, tell func(health.Incident)) error {
	s, err := p.Status(ctx)
	if err != nil {
		return err
	}
	tell(health.Incident{Kind: health.StatusKnown, Status: s.Status, Time: time.Now()})
	if s.Status != "io-error" {
		return nil
	}
	var blocks []struct {
		QDev     string `json:"qdev"`
		IOStatus string `json:"io-status"`
	}
	if err := p.Execute(ctx, "query-block", nil, &blocks); err != nil {
		return err
	}
	for _, b := range blocks {
		if b.IOStatus == "failed" || b.IOStatus == "nospace" {
			i := p.onDisk(health.Incident{Kind: health.IOError, NoSpace: b.IOStatus == "nospace", Action: "stop", Time: time.Now()}, b.QDev)
			i.Reason = "it stands still for an I/O error"
			tell(i)
		}
	}
	return nil
}

// incident translates an event; ok is false for those that tell nothing about the guest's health.
func (p *Process) incident(ev qmp.Event) (i health.Incident, ok bool) {
	var d struct {
		Action    string `json:"action"`
		QOMPath   string `json:"qom-path"`
		Node      string `json:"node-name"`
		Operation string `json:"operation"`
		NoSpace   bool   `json:"nospace"`
		Reason    string `json:"reason"`
	}
	if len(ev.Data) > 0 && json.Unmarshal(ev.Data, &d) != nil {
		return i, false // QEMU's own events have these fields in these types, whatever else they have
	}
	i.Time, i.Action, i.Reason = ev.Time, d.Action, d.Reason
	switch ev.Name {
	case "GUEST_PANICKED":
		i.Kind = health.Panicked
	case "BLOCK_IO_ERROR":
		i.Kind, i.Write, i.NoSpace = health.IOError, d.Operation == "write", d.NoSpace
		i = p.onDisk(i, d.QOMPath, d.Node)
	case "STOP", "SUSPEND":
		i.Kind = health.Stopped
	case "RESUME", "WAKEUP":
		i.Kind = health.Resumed
	case "RESET":
		i.Kind, i.Reason = health.Reset, ""
	case "WATCHDOG":
		i.Kind = health.WatchdogFired
	default:
		return i, false
	}
	return i, true
}

// onDisk names the disk of i, of which QEMU has given the places: "/machine/peripheral/virtio0/virtio-backend", "drive-virtio0".
func (p *Process) onDisk(i health.Incident, places ...string) health.Incident {
	for _, place := range places {
		for part := range strings.SplitSeq(place, "/") {
			part = strings.TrimPrefix(strings.TrimPrefix(part, "drive-"), "file-")
			for _, d := range p.spec.Disks {
				if d.ID == part {
					i.Disk, i.Volume = d.ID, d.Volume
					return i
				}
			}
		}
	}
	return i
}

// PauseOnPanic says what QEMU does when the guest's kernel panics: hold it, so that its state "guest-panicked" is there to be
// seen until somebody resets it, whoever missed the event; or nothing, as it is at each start: then what the guest does
// about it goes its way. It is not part of what migrates.
func (p *Process) PauseOnPanic(ctx context.Context, pause bool) error {
	action := "none"
	if pause {
		action = "pause"
	}
	return p.Execute(ctx, "set-action", map[string]string{"panic": action}, nil)
}

// Reset has the guest boot anew, as the reset button does: what it had not written out is lost. A guest that stands still because
// something went wrong with it (panic, I/O error, its watchdog) runs afterwards; one that was paused stays paused. model.ErrBusy:
// it is migrating, or has migrated. Other errors as Execute.
func (p *Process) Reset(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	was, err := p.Status(ctx)
	if err != nil {
		return err
	}
	stuck := false
	switch was.Status {
	case "inmigrate", "finish-migrate", "postmigrate", "colo", "save-vm", "restore-vm":
		return model.Errorf(model.ErrBusy, "guest %s cannot be reset while it migrates (%s)", p.spec.VMID, was.Status)
	case "guest-panicked", "io-error", "watchdog", "internal-error":
		stuck = true
	}
	if err := p.Execute(ctx, "system_reset", nil, nil); err != nil || !stuck {
		return err
	}
	// QEMU carries it out after it has answered, and cont before that would let the sick guest run on.
	for now := was; now.Status == was.Status; {
		select {
		case <-ctx.Done():
			return p.explain(ctx.Err())
		case <-time.After(resetPoll):
		}
		if now, err = p.Status(ctx); err != nil {
			return err
		}
	}
	return p.Continue(ctx)
}
