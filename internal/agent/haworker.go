package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// shutdownPatience is how long an HA resource that is asked to stop has before it is stopped hard.
const shutdownPatience = time.Minute

// haWorker is the shell of ha.Worker: it shows it this node's guests and does with them what it says.
type haWorker struct {
	node    string
	log     *slog.Logger
	st      store.Store
	quorate func() bool
	mirror  *mirror.Mirror
	files   guestFiles
	lease   leaseholder
	guard   groupGuard
	procs   *procs
	locks   *guestLocks
	tasks   *task.List
	starter *starter
	kicked  <-chan struct{} // has an element after something of this node changed
}

// run keeps this node's HA resources in the state asked for.
func (w *haWorker) run(ctx context.Context) {
	changed, stop := w.mirror.Subscribe()
	defer stop()
	state := ha.NewWorker(w.node, ha.DefaultParams())
	machine{
		step: func(now time.Duration, ev ha.Event) (actions []ha.Action) {
			state = w.feedEnds(state, now, &actions)
			var more []ha.Action
			state, more = state.Step(now, ev)
			return append(actions, more...)
		},
		view: func() ha.Event { return w.view() },
		do:   w.do,
		log:  logAction(w.log),
	}.run(ctx, changed, w.kicked)
}

// feedEnds tells the worker of the processes that ended since it was asked last.
func (w *haWorker) feedEnds(state ha.Worker, now time.Duration, actions *[]ha.Action) ha.Worker {
	for {
		select {
		case id := <-w.procs.gone:
			var more []ha.Action
			state, more = state.Step(now, ha.ProcessGone{VMID: id})
			for _, a := range more {
				if _, wake := a.(ha.Wake); !wake { // the next step says when to wake
					*actions = append(*actions, a)
				}
			}
		default:
			return state
		}
	}
}

// view is what the worker decides from; as with the manager's, what cannot be read ends every decision.
func (w *haWorker) view() ha.LocalView {
	snap := w.mirror.Snapshot()
	_, valid := w.lease.Valid()
	c, err := readCluster(snap)
	v := ha.LocalView{
		Revision: snap.Revision(), Quorate: err == nil && w.quorate(), LeaseValid: valid,
		Guests: haGuests(snap, c.storages, w.node), Resources: c.states,
		Protected: c.protected, Intents: c.intents, Statuses: c.statuses,
		Fenced: map[string]uint64{}, Processes: map[model.VMID]ha.Process{}, Busy: w.locks.holders(),
	}
	for name, l := range c.live {
		if l.Value.Fenced {
			v.Fenced[name] = l.Value.Epoch
		}
	}
	groups := w.guard.Guarded()
	for id, p := range w.procs.list() {
		hp := ha.Process{Guarded: groups[id.String()]}
		if p.incoming.Load() {
			hp.State = ha.ProcessIncoming
		}
		v.Processes[id] = hp
	}
	return v
}

// do carries out the worker's decisions under the guest's lock.
func (w *haWorker) do(ctx context.Context, a ha.Action) (int64, error) {
	switch a := a.(type) {
	case ha.SetStatus:
		return setStatus(ctx, w.st, a)
	case ha.Acknowledge:
		return w.underLock(a.VMID, "HA: protect", func() (int64, error) { return w.doAcknowledge(ctx, a) })
	case ha.Unacknowledge:
		return w.underLock(a.VMID, "HA: end protection", func() (int64, error) { return w.doUnacknowledge(ctx, a) })
	case ha.Start:
		return w.underLock(a.VMID, "HA: start", func() (int64, error) { return 0, w.doStart(ctx, a) })
	case ha.Stop:
		return w.underLock(a.VMID, "HA: stop", func() (int64, error) { return 0, w.doStop(ctx, a) })
	case ha.Discard:
		return w.underLock(a.VMID, "HA: kill a leftover", func() (int64, error) { return 0, w.doDiscard(ctx, a) })
	}
	return 0, fmt.Errorf("the worker cannot do %T", a)
}

func (w *haWorker) underLock(id model.VMID, what string, f func() (int64, error)) (int64, error) {
	unlock, err := w.locks.tryLock(id, what)
	if err != nil {
		return 0, err
	}
	defer unlock()
	return f()
}

func (w *haWorker) doAcknowledge(ctx context.Context, a ha.Acknowledge) (int64, error) {
	at := w.starter.term()
	f, err := w.files.readable(a.VMID)
	if err != nil {
		return 0, err
	}
	if w.procs.get(a.VMID) != nil {
		set, err := w.starter.storages.read(ctx)
		if err != nil {
			return 0, err
		}
		if err := w.starter.protect(ctx, a.VMID, f.conf, set, at); err != nil {
			return 0, err
		}
	}
	if a.Written {
		return 0, nil
	}
	return transact(ctx, w.st, a.Compares(), store.Put(model.ProtectedPrefix+a.VMID.String(), mustJSON(model.Protected{Node: w.node})))
}

func (w *haWorker) doUnacknowledge(ctx context.Context, a ha.Unacknowledge) (int64, error) {
	rev, err := transact(ctx, w.st, a.Compares(), store.Delete(model.ProtectedPrefix+a.VMID.String()))
	if err != nil {
		return 0, err
	}
	if err := w.guard.Unprotect(ctx, a.VMID.String()); err != nil {
		return rev, fmt.Errorf("take guest %s from the guard: %w", a.VMID, err)
	}
	return rev, nil
}

func (w *haWorker) doStart(ctx context.Context, a ha.Start) error {
	if w.procs.get(a.VMID) != nil {
		return nil
	}
	upid, err := w.tasks.Start("hastart", a.VMID.String(), func(ctx context.Context, t *task.Task) error {
		t.Logf("%s", a.Why())
		return w.starter.start(ctx, startRequest{id: a.VMID, haOnly: true, pills: a.Pills, log: t.Logf})
	})
	if err != nil {
		return err
	}
	return w.tasks.Wait(ctx, upid)
}

func (w *haWorker) doStop(ctx context.Context, a ha.Stop) error {
	p := w.procs.get(a.VMID)
	if p == nil {
		return nil
	}
	upid, err := w.tasks.Start("hastop", a.VMID.String(), func(ctx context.Context, t *task.Task) error {
		t.Logf("%s", a.Why())
		ctx, release := w.whileStopWanted(ctx, a.VMID)
		defer release()
		if err := p.shutdown(ctx, shutdownPatience); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx) // nobody wants it any more, or the agent ends: no reason to cut the guest's power
			}
			t.Logf("%v: stopping it", err)
			if err := p.endNow(ctx); err != nil {
				return err
			}
		}
		return p.waitCleaned(ctx)
	})
	if err != nil {
		return err
	}
	return w.tasks.Wait(ctx, upid)
}

func (w *haWorker) doDiscard(ctx context.Context, a ha.Discard) error {
	p := w.procs.get(a.VMID)
	if p == nil {
		return nil
	}
	intent, err := mirror.Read[model.Intent](ctx, w.st, model.IntentPrefix+a.VMID.String())
	if err != nil {
		return err
	}
	_, err = w.st.Get(ctx, model.GuestConfigKey(w.node, a.VMID), store.Linearizable)
	mine := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if intent.Revision != 0 || mine && !(a.Incoming && p.incoming.Load()) {
		return store.ErrConflict
	}
	if err := p.Kill(ctx); err != nil {
		return err
	}
	return p.waitCleaned(ctx)
}
