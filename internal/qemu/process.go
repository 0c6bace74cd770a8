package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp"
	"sauh.dev/sauh/internal/sys"
)

// qmpTimeout bounds every dialogue with a monitor whose caller set no shorter
// deadline. A healthy QEMU answers in milliseconds; the one that does not is frozen, or hangs on its storage.
const qmpTimeout = 3 * time.Second

// killTimeout bounds the wait for the end of a killed process. A process in an
// uninterruptible wait for its storage ends only when that answers.
const killTimeout = 10 * time.Second

// Process is a QEMU process of a guest. It is safe for concurrent use. Close
// forgets the process and leaves it running; its end is told by Done.
type Process struct {
	spec  Spec
	facts Facts

	pidfd *sys.PidFD
	done  chan struct{} // closed when the process ended
	wg    sync.WaitGroup

	// dialing is a lock that a context can give up waiting for. Its holder may dial and set conn.
	dialing chan struct{}
	mu      sync.Mutex
	conn    *qmp.Conn
	closed  bool
}

// Facts are what is known of a process since its start.
type Facts struct {
	PID int `json:"pid"`
	// StartTicks and BootID tell the process from a later one with the same number.
	StartTicks uint64    `json:"start_ticks"`
	BootID     string    `json:"boot_id"`
	Cgroup     string    `json:"cgroup"`
	Started    time.Time `json:"started"`
}

// watch refers to the process that facts name.
func watch(spec Spec, facts Facts) (*Process, error) {
	pidfd, err := sys.OpenPidFD(facts.PID)
	if err != nil {
		return nil, err
	}
	// The number may have changed hands before it was opened; not after.
	if ticks, err := sys.ProcessStart(facts.PID); err != nil || ticks != facts.StartTicks {
		_ = pidfd.Close()
		return nil, fmt.Errorf("process %d: %w", facts.PID, os.ErrProcessDone)
	}
	p := &Process{spec: spec, facts: facts, pidfd: pidfd, done: make(chan struct{}), dialing: make(chan struct{}, 1)}
	p.wg.Go(func() {
		if pidfd.Wait() == nil {
			close(p.done)
		}
	})
	return p, nil
}

// PID is the process id in this node.
func (p *Process) PID() int { return p.facts.PID }

// Spec is what the process was started with.
func (p *Process) Spec() Spec { return p.spec }

// Facts tells where and when the process started.
func (p *Process) Facts() Facts { return p.facts }

// Done is closed when the process has ended, whoever ended it. It stays open
// after Close.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not ended.
func (p *Process) Running() bool { return !p.pidfd.Ended() }

// Close drops the connection and the watch. The process goes on; Adopt finds it again.
func (p *Process) Close() error {
	p.mu.Lock()
	conn := p.conn
	p.conn, p.closed = nil, true
	p.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
	err := p.pidfd.Close()
	p.wg.Wait()
	return err
}

// QMP returns the connection to the process's monitor, and dials it if there
// is none. The connection belongs to p. It returns within three seconds: a QEMU that is frozen
// gives model.ErrUnavailable, one that has ended model.ErrNotFound.
func (p *Process) QMP(ctx context.Context) (*qmp.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	select {
	case p.dialing <- struct{}{}:
		defer func() { <-p.dialing }()
	case <-ctx.Done():
		return nil, p.explain(ctx.Err())
	}
	if conn := p.current(); conn != nil {
		return conn, nil
	}
	conn, err := qmp.Dial(ctx, p.spec.QMPSocket())
	if err != nil {
		return nil, p.explain(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = conn.Close()
		return nil, fmt.Errorf("monitor of guest %s: %w", p.spec.VMID, os.ErrClosed)
	}
	p.conn = conn
	return conn, nil
}

// current returns the connection unless it is over.
func (p *Process) current() *qmp.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		return nil
	}
	select {
	case <-p.conn.Done():
		_ = p.conn.Close()
		p.conn = nil
	default:
	}
	return p.conn
}

// Execute runs one QMP command within three seconds, or ctx's shorter deadline.
// Errors: model.ErrUnavailable if QEMU does not answer, model.ErrNotFound if it has ended, *qmp.Error if it refuses.
func (p *Process) Execute(ctx context.Context, command string, args, out any) error {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	conn, err := p.QMP(ctx)
	if err != nil {
		return err
	}
	if err := conn.Execute(ctx, command, args, out); err != nil {
		return fmt.Errorf("%s of guest %s: %w", command, p.spec.VMID, p.explain(err))
	}
	return nil
}

// explain turns an error of the connection into a sentence; QEMU's own refusals stay.
func (p *Process) explain(err error) error {
	var refusal *qmp.Error
	switch {
	case errors.As(err, &refusal) || errors.Is(err, model.ErrUnavailable) || errors.Is(err, model.ErrNotFound):
		return err
	case !p.Running():
		return model.Errorf(model.ErrNotFound, "guest %s is not running any more", p.spec.VMID)
	case errors.Is(err, context.Canceled):
		return err
	}
	return model.Errorf(model.ErrUnavailable, "QEMU of guest %s (process %d) does not answer: it is frozen or hangs on its storage (%v)", p.spec.VMID, p.facts.PID, err)
}

// Status is the answer to QMP's query-status.
type Status struct {
	Status  string `json:"status"` // "running", "paused", "inmigrate", "io-error", "postmigrate" …
	Running bool   `json:"running"`
}

// Status asks QEMU for the guest's state. Errors as Execute.
func (p *Process) Status(ctx context.Context) (Status, error) {
	var s Status
	err := p.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// Continue runs a paused guest.
func (p *Process) Continue(ctx context.Context) error { return p.Execute(ctx, "cont", nil, nil) }

// Powerdown presses the guest's ACPI power button and returns at once; Done tells when it is off.
func (p *Process) Powerdown(ctx context.Context) error {
	return p.Execute(ctx, "system_powerdown", nil, nil)
}

// Quit tells QEMU to end, disks flushed, and waits for it until ctx is done.
func (p *Process) Quit(ctx context.Context) error {
	// QEMU may be gone before its answer is: then there is nothing left to ask for.
	if err := p.Execute(ctx, "quit", nil, nil); err != nil && p.Running() && !errors.Is(err, qmp.ErrClosed) {
		return err
	}
	return p.Wait(ctx)
}

// Wait returns nil when the process has ended.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return model.Errorf(model.ErrBusy, "guest %s (process %d) is still there: %v", p.spec.VMID, p.facts.PID, ctx.Err())
	}
}

// Kill ends everything in the guest's cgroup at one stroke, frozen or not, and
// waits for its end, at most ten seconds. nil means that nothing of it runs any more.
func (p *Process) Kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := killCgroup(ctx, p.facts.Cgroup); err != nil {
		return fmt.Errorf("kill guest %s: %w", p.spec.VMID, err)
	}
	return p.Wait(ctx)
}

// killCgroup kills what is in a cgroup and waits until it is empty; a cgroup that is not there is empty.
func killCgroup(ctx context.Context, dir string) error {
	group := sys.Cgroup(dir)
	if err := group.Kill(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return group.WaitEmpty(ctx)
}

// Cleanup removes the files and the cgroup that an ended process has left. It is
// idempotent, and refuses with model.ErrBusy while the process runs. Whoever protected the cgroup takes
// the protection away before.
func (p *Process) Cleanup() error {
	if p.Running() {
		return model.Errorf(model.ErrBusy, "guest %s still runs as process %d", p.spec.VMID, p.facts.PID)
	}
	return errors.Join(removeFiles(p.spec.RunDir, p.spec.VMID), sys.Cgroup(p.facts.Cgroup).Remove())
}

// removeFiles removes what a process left, the state file last, so that a
// clean-up that is cut short is found again. Logs of the serial port stay: they tell why a guest ended.
func removeFiles(runDir string, id model.VMID) error {
	files := []string{suffixPID, suffixQMP, suffixSpare, suffixAgent, "serial0", "serial1", "serial2", "serial3", suffixErr, suffixState}
	for _, suffix := range files {
		if err := os.Remove(runFile(runDir, id, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("clean up guest %s: %w", id, err)
		}
	}
	return nil
}

// Console connects to a guest's first serial port; the caller closes it. QEMU
// serves one console at a time, a second one sees nothing until the first is closed.
// model.ErrNotFound if the guest does not run here.
func Console(ctx context.Context, runDir string, id model.VMID) (net.Conn, error) {
	var d net.Dialer
	path := filepath.Join(runDir, id.String()+".serial0")
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, model.Errorf(model.ErrNotFound, "guest %s has no console here: it does not run on this node (%v)", id, err)
	}
	return conn, nil
}
