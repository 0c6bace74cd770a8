package move

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp"
	"sauh.dev/sauh/internal/store"
)

// failure is a migration's end that is not the one wished for.
type failure struct {
	text  string
	cause error // may be nil
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.cause }

// Source moves a guest of this node to another one and returns when that is over:
// nil if the guest now belongs to the target, otherwise an error that says why not and where
// the guest is. When ctx ends the migration is cancelled and the guest stays, unless the
// memory is already on the target: then the store decides and Source waits for it. An error wraps
// the first thing that went wrong, such as an error of Check, of Peer, or ctx's; ErrAbandoned
// means that nothing is settled.
//
// It returns model.ErrBusy while the guest is claimed by another migration.
//
// Source returns only when it is known where the guest is, so without a quorum it may take long.
func Source(ctx context.Context, d SourceDeps, r Request) error {
	free, err := d.Claims.Claim(r.VMID)
	if err != nil {
		return fmt.Errorf("migrate guest %s to %s: %w", r.VMID, r.Target, err)
	}
	defer free()
	base, abandon := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abandon(nil)
	unlink := context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), ErrAbandoned) {
			abandon(ErrAbandoned)
		}
	})
	defer unlink()
	s := &source{SourceDeps: d, Request: r, user: ctx, state: migrate.Source{Config: d.Config}}
	s.driver = driver{began: time.Now(), step: s.step, do: s.do}
	defer s.stop()
	fin, err := s.run(base)
	if err != nil {
		return fmt.Errorf("migrate guest %s to %s: %w", r.VMID, r.Target, err)
	}
	d.log(r.VMID, fin.Reason)
	if s.note.Task != "" {
		if err := d.Notes.Remove(r.VMID); err != nil {
			d.log(r.VMID, err.Error())
		}
	}
	if !fin.OK {
		return &failure{text: fmt.Sprintf("migrate guest %s to %s: %s", r.VMID, r.Target, fin.Reason), cause: s.cause}
	}
	return nil
}

// source is one run of the source's machine.
type source struct {
	SourceDeps
	Request
	driver
	user  context.Context // ends when the user cancels
	state migrate.Source
	note  Note
	qemu  QEMU
	to    PrepareAnswer
	cause error // the first error

	events      <-chan qmp.Event
	unsubscribe context.CancelFunc
	observer    *observer
}

func (s *source) step(now time.Duration, ev migrate.Event) (actions []migrate.Action) {
	s.state, actions = s.state.Step(now, ev)
	return actions
}

// stop ends what the run started.
func (s *source) stop() {
	s.observer.stop()
	if s.unsubscribe != nil {
		s.unsubscribe()
	}
}

func (s *source) run(ctx context.Context) (*migrate.Finish, error) {
	fin, err := s.feed(ctx, migrate.Begin{})
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	cancelled := s.user.Done()
	for fin == nil && err == nil {
		var evs []migrate.Event
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-cancelled:
			cancelled = nil
			s.blame(context.Cause(s.user))
			evs = []migrate.Event{migrate.Cancel{}}
		case ev, ok := <-s.events:
			evs = s.heard(ctx, ev, ok)
		case ev := <-s.observer.events():
			evs = []migrate.Event{ev}
		case <-ticker.C:
			evs = s.look(ctx)
		}
		fin, err = s.feed(ctx, evs...)
	}
	return fin, err
}

// heard turns an event of QEMU into the machine's. MIGRATION does not say why it failed: that is asked for.
func (s *source) heard(ctx context.Context, ev qmp.Event, ok bool) []migrate.Event {
	if !ok {
		s.events = nil
		return []migrate.Event{migrate.Gone{}}
	}
	e, ok := translate(ev)
	if !ok {
		return nil
	}
	m, ok := e.(migrate.Migration)
	switch {
	case ok && m.Status == "failed":
		return s.look(ctx)
	case ok && m.Status == "completed":
		// The last figures, the downtime among them, are known only now.
		return append(s.look(ctx), e)
	}
	return []migrate.Event{e}
}

// look asks QEMU how far it is. A QEMU that does not answer in time is asked again soon.
func (s *source) look(ctx context.Context) []migrate.Event {
	if s.events == nil {
		return []migrate.Event{migrate.Tick{}}
	}
	i, err := monitor{s.qemu.QMP()}.info(ctx)
	if err != nil {
		return []migrate.Event{migrate.Tick{}}
	}
	if s.Progress != nil {
		s.Progress(i.progress(s.state.Phase))
	}
	return []migrate.Event{
		migrate.Progress{Round: i.RAM.Rounds, Sent: i.RAM.Transferred, Remaining: i.RAM.Remaining},
		migrate.Migration{Status: i.Status, Reason: i.Error},
		migrate.Tick{},
	}
}

func (s *source) blame(err error) {
	if s.cause == nil {
		s.cause = err
	}
}

// failed is the event for an error; what fails because the user cancelled is a cancel.
func (s *source) failed(err error) migrate.Event {
	if s.user.Err() != nil && errors.Is(err, s.user.Err()) {
		s.blame(context.Cause(s.user))
		return migrate.Cancel{}
	}
	s.blame(err)
	return migrate.Failed{Reason: err.Error()}
}

func (s *source) result(err error) migrate.Event {
	if err != nil {
		return s.failed(err)
	}
	return migrate.Done{}
}

func (s *source) do(ctx context.Context, a migrate.Action) migrate.Event {
	switch a := a.(type) {
	case migrate.Report:
		s.log(s.VMID, a.Line)
	case migrate.Check:
		return s.result(s.check())
	case migrate.WriteIntent:
		return s.writeIntent(ctx)
	case migrate.Prepare:
		return s.result(s.prepare())
	case migrate.Transfer:
		return s.result(s.transfer(ctx, a))
	case migrate.SetDowntime:
		s.mention(monitor{s.qemu.QMP()}.setDowntime(ctx, a.Downtime))
	case migrate.Brake:
		s.mention(monitor{s.qemu.QMP()}.brake(ctx))
	case migrate.Remove:
		return s.result(s.qemu.Destroy(ctx))
	case migrate.Settle:
		return s.settle(ctx)
	}
	return nil
}

func (s *source) mention(err error) {
	if err != nil {
		s.log(s.VMID, err.Error())
	}
}

func (s *source) check() error {
	q, err := s.Find(s.user, s.VMID)
	if errors.Is(err, model.ErrNotFound) {
		return model.Errorf(model.ErrNotFound, "guest %s does not run on node %s: move it without --online", s.VMID, s.Node)
	}
	if err != nil {
		return err
	}
	s.qemu = q
	status, err := monitor{q.QMP()}.status(s.user)
	if err != nil {
		return err
	}
	if status != "running" && status != "paused" {
		return model.Errorf(model.ErrBusy, "guest %s cannot be moved while QEMU is in state %q", s.VMID, status)
	}
	s.note = Note{Role: migrate.RoleSource, WasRunning: status == "running"}
	if s.Check == nil {
		return nil
	}
	return s.Check(s.user, s.Request)
}

func (s *source) writeIntent(ctx context.Context) migrate.Event {
	in, rev, sent, err := s.Deps.writeIntent(ctx, s.Request)
	if err != nil {
		s.blame(err)
		uncertain := sent && errors.Is(err, store.ErrNoQuorum)
		if uncertain {
			s.note.Task = s.Task
		}
		return migrate.Failed{Reason: err.Error(), Uncertain: uncertain}
	}
	s.note.Task, s.note.IntentRevision = s.Task, rev
	if err := s.Notes.Save(s.VMID, s.note); err != nil {
		s.blame(err)
		return migrate.Failed{Reason: err.Error(), Uncertain: true}
	}
	s.observer = s.observe(ctx, s.VMID, s.note, s.Target, in.TargetEpoch)
	return migrate.Done{}
}

func (s *source) prepare() error {
	ctx, cancel := context.WithTimeout(s.user, prepareTimeout)
	defer cancel()
	var err error
	s.to, err = s.Peer.Prepare(ctx, PrepareRequest{
		VMID: s.VMID, Task: s.Task, IntentRevision: s.note.IntentRevision, WasRunning: s.note.WasRunning, Machine: s.Machine,
	})
	return err
}

// transfer listens to QEMU before it begins, so that nothing of this migration is
// missed and nothing of an earlier one heard.
func (s *source) transfer(ctx context.Context, how migrate.Transfer) error {
	sub, cancel := context.WithCancel(ctx)
	s.unsubscribe = cancel
	s.events = s.qemu.QMP().Subscribe(sub)
	return monitor{s.qemu.QMP()}.transfer(ctx, s.to, how)
}

func (s *source) settle(ctx context.Context) migrate.Event {
	s.observer.stop()
	s.observer = nil
	run := &settling{deps: s.Deps, id: s.VMID, note: s.note, qemu: s.qemu}
	v, err := run.run(ctx)
	if err != nil {
		return nil // ctx ended
	}
	if v != migrate.VerdictMoved {
		short, cancel := context.WithTimeout(ctx, abortTimeout)
		defer cancel()
		s.mention(s.Peer.Abort(short, AbortRequest{VMID: s.VMID, Task: s.Task, Reason: s.state.Reason}))
	}
	return migrate.Settled{Verdict: v}
}
