package move

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp"
	"sauh.dev/sauh/internal/store"
)

// Target receives guests on this node. Its methods are safe for concurrent use.
type Target struct {
	deps TargetDeps
	ctx  context.Context // ends with Close
	end  context.CancelCauseFunc
	wg   sync.WaitGroup

	mu   sync.Mutex
	runs map[model.VMID]*target
}

// NewTarget returns a Target; the caller closes it.
func NewTarget(d TargetDeps) *Target {
	t := &Target{deps: d, runs: map[model.VMID]*target{}}
	t.ctx, t.end = context.WithCancelCause(context.Background())
	return t
}

// Close leaves every guest that is arriving as it is, for Recover of the next agent, and waits for what runs.
func (t *Target) Close() {
	t.end(ErrAbandoned)
	t.wg.Wait()
}

// Prepare starts the process that waits for the guest and returns where it
// listens. The rest happens in the background: when the memory is here the guest becomes
// this node's own and goes on; when it does not arrive the process is removed. It
// returns model.ErrBusy while the guest is claimed or a process of it is here, store.ErrConflict when
// the intent is not there, and the errors of Start.
func (t *Target) Prepare(ctx context.Context, r PrepareRequest) (PrepareAnswer, error) {
	run, err := t.begin(r)
	if err != nil {
		return PrepareAnswer{}, fmt.Errorf("receive guest %s: %w", r.VMID, err)
	}
	select {
	case <-run.prepared:
		if run.cause != nil {
			return PrepareAnswer{}, fmt.Errorf("receive guest %s: %w", r.VMID, run.cause)
		}
		return run.answer, nil
	case <-ctx.Done():
		run.abort("the source did not wait for the target")
		return PrepareAnswer{}, fmt.Errorf("receive guest %s: %w", r.VMID, ctx.Err())
	}
}

// Abort gives up receiving the guest and waits until that is settled, at most as
// long as ctx lasts. A guest that has changed hands stays, and an unknown one is no error.
func (t *Target) Abort(ctx context.Context, r AbortRequest) error {
	t.mu.Lock()
	run := t.runs[r.VMID]
	t.mu.Unlock()
	if run == nil || run.note.Task != r.Task {
		return nil
	}
	run.abort(r.Reason)
	select {
	case <-run.over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop receiving guest %s: %w", r.VMID, ctx.Err())
	}
}

func (t *Target) begin(r PrepareRequest) (*target, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return nil, ErrAbandoned
	}
	free, err := t.deps.Claims.Claim(r.VMID)
	if err != nil {
		return nil, err
	}
	n := Note{Role: migrate.RoleTarget, Task: r.Task, IntentRevision: r.IntentRevision, WasRunning: r.WasRunning}
	run := &target{
		committer: committer{TargetDeps: t.deps, id: r.VMID, note: n},
		state:     migrate.Target{Limit: targetLimit(t.deps.Config)},
		machine:   r.Machine,
		aborts:    make(chan string, 1),
		prepared:  make(chan struct{}),
		over:      make(chan struct{}),
	}
	run.driver = driver{began: time.Now(), step: run.step, do: run.do}
	t.runs[r.VMID] = run
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		tell := run.run(t.ctx)
		t.mu.Lock()
		delete(t.runs, r.VMID)
		t.mu.Unlock()
		free()
		tell()
		close(run.over)
	}()
	return run, nil
}

// targetLimit is more than the source can need, so that the source gives up first.
func targetLimit(c migrate.Config) time.Duration {
	return c.Limit + c.SwitchoverLimit + c.OwnershipLimit + prepareTimeout
}

// target is one run of the target's machine.
type target struct {
	committer
	driver
	state    migrate.Target
	machine  string // that the guest runs on
	qemu     QEMU
	answer   PrepareAnswer
	cause    error         // why Prepare failed
	prepared chan struct{} // answer and cause are final
	aborts   chan string
	over     chan struct{}

	events      <-chan qmp.Event
	unsubscribe context.CancelFunc
	observer    *observer
	arrived     time.Time
}

func (r *target) step(now time.Duration, ev migrate.Event) (actions []migrate.Action) {
	r.state, actions = r.state.Step(now, ev)
	return actions
}

// abort asks once; further reasons add nothing.
func (r *target) abort(reason string) {
	select {
	case r.aborts <- reason:
	default:
	}
}

// run returns what tells the end, to be called when the claim is free again.
func (r *target) run(ctx context.Context) (tell func()) {
	fin, err := r.loop(ctx)
	r.observer.stop()
	if r.unsubscribe != nil {
		r.unsubscribe()
	}
	r.ready(context.Cause(ctx))
	if err != nil {
		return func() {} // abandoned
	}
	if fin.Reason != "" {
		r.log(r.id, fin.Reason)
	}
	if err := r.Notes.Remove(r.id); err != nil {
		r.log(r.id, err.Error())
	}
	return func() {
		if r.Finished != nil {
			r.Finished(r.id, fin.OK, fin.Reason)
		}
	}
}

// ready answers Prepare, once.
func (r *target) ready(cause error) {
	select {
	case <-r.prepared:
	default:
		r.cause = cause
		close(r.prepared)
	}
}

func (r *target) loop(ctx context.Context) (*migrate.Finish, error) {
	fin, err := r.feed(ctx, migrate.Begin{})
	ticker := time.NewTicker(storeEvery)
	defer ticker.Stop()
	for fin == nil && err == nil {
		var evs []migrate.Event
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case reason := <-r.aborts:
			evs = []migrate.Event{migrate.Abort{Reason: reason}}
		case ev, ok := <-r.events:
			evs = r.heard(ctx, ev, ok)
		case ev := <-r.observer.events():
			evs = []migrate.Event{ev}
		case <-ticker.C:
			evs = append(r.look(ctx), migrate.Tick{})
		}
		fin, err = r.feed(ctx, evs...)
	}
	return fin, err
}

func (r *target) heard(ctx context.Context, ev qmp.Event, ok bool) []migrate.Event {
	if !ok {
		r.events = nil
		return []migrate.Event{migrate.Gone{}}
	}
	e, ok := translate(ev)
	if !ok {
		return nil
	}
	if m, ok := e.(migrate.Migration); ok && m.Status == "failed" {
		return r.look(ctx)
	}
	return []migrate.Event{e}
}

// look is the safety net below the events.
func (r *target) look(ctx context.Context) []migrate.Event {
	if r.events == nil {
		return nil
	}
	i, err := monitor{r.qemu.QMP()}.info(ctx)
	if err != nil {
		return nil
	}
	return []migrate.Event{migrate.Migration{Status: i.Status, Reason: i.Error}}
}

func (r *target) do(ctx context.Context, a migrate.Action) migrate.Event {
	switch a := a.(type) {
	case migrate.Report:
		r.log(r.id, a.Line)
	case migrate.Start:
		err := r.start(ctx)
		r.ready(err)
		if err != nil {
			return migrate.Failed{Reason: err.Error()}
		}
		return migrate.Done{}
	case migrate.Commit:
		r.arrived = time.Now()
		return migrate.Decided{Fate: r.decide(ctx, r.qemu.QMP().Done())}
	case migrate.Continue:
		return r.proceed(ctx)
	case migrate.Announce:
		if err := (monitor{r.qemu.QMP()}).announce(ctx); err != nil {
			r.log(r.id, fmt.Sprintf("the switches were not told where the guest is: %v", err))
		}
	case migrate.Settle:
		return r.settle(ctx)
	}
	return nil
}

// start checks the request against the store, and starts and prepares QEMU.
func (r *target) start(ctx context.Context) error {
	if _, err := r.Find(ctx, r.id); !errors.Is(err, model.ErrNotFound) {
		if err != nil {
			return err
		}
		return model.Errorf(model.ErrBusy, "node %s still has a process of guest %s: try again in a few seconds", r.Node, r.id)
	}
	if err := r.load(ctx); err != nil {
		return err
	}
	if epoch, _, err := r.epoch(ctx, r.Node, store.Linearizable); err != nil {
		return err
	} else if epoch != r.intent.TargetEpoch {
		return errFenced
	}
	if err := r.Notes.Save(r.id, r.note); err != nil {
		return err
	}
	r.guarded = r.protect.ModRevision != 0
	q, err := r.Start(ctx, StartRequest{VMID: r.id, Config: r.conf.Value, Protected: r.guarded, Machine: r.machine})
	if err != nil {
		return err
	}
	r.qemu = q
	sub, cancel := context.WithCancel(ctx)
	r.unsubscribe = cancel
	r.events = q.QMP().Subscribe(sub)
	if r.answer, err = (monitor{q.QMP()}).listen(ctx, r.Listen, r.Config.MPTCP); err != nil {
		return err
	}
	r.observer = r.observe(ctx, r.id, r.note, r.intent.Source, r.intent.SourceEpoch)
	return nil
}

// proceed lets the guest go on, unless its user had paused it before the migration.
func (r *target) proceed(ctx context.Context) migrate.Event {
	owned := time.Now()
	if r.note.WasRunning {
		if err := (monitor{r.qemu.QMP()}).cont(ctx); err != nil {
			return migrate.Failed{Reason: err.Error()}
		}
	}
	r.log(r.id, fmt.Sprintf("the guest goes on here: change of owner %.1f ms, continue %.1f ms",
		milliseconds(owned.Sub(r.arrived)), milliseconds(time.Since(owned))))
	return migrate.Done{}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (r *target) settle(ctx context.Context) migrate.Event {
	r.observer.stop()
	r.observer = nil
	run := &settling{deps: r.Deps, id: r.id, note: r.note, qemu: r.qemu, giveUp: true, commit: &r.committer}
	v, err := run.run(ctx)
	if err != nil {
		return nil // ctx ended
	}
	return migrate.Settled{Verdict: v}
}
