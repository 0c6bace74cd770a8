package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/store"
)

// shutdownPatience is how long a guest that is asked to shut down has if nobody says otherwise.
const shutdownPatience = time.Minute

// haWorker is the shell of ha.Worker: it shows it this node's guests and does with them what it says.
type haWorker struct {
	node    string
	boot    string // boot id
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
	moves   *departures
	book    *rulebook
	params  ha.Params
	kicked  <-chan struct{} // has an element after something of this node changed
	// found raises the alarm about a QEMU, started then, that runs a guest of owner's here.
	found func(id model.VMID, owner string, started time.Time)

	mu    sync.Mutex
	leave leave // guarded by mu
}

// leave says whether a node that ends in order has nothing left to wait for, as of a view.
type leave struct {
	revision int64 // of the view
	may      bool
	why      string // it may not
	lonely   bool   // there was no quorum, or no lease, in it
}

// run keeps this node's HA resources in the state asked for.
func (w *haWorker) run(ctx context.Context) {
	changed, stop := w.mirror.Subscribe()
	defer stop()
	state := ha.NewWorker(w.node, w.params)
	machine{
		step: func(now time.Duration, ev ha.Event) (actions []ha.Action) {
			state = w.feedEnds(state, now, &actions)
			var more []ha.Action
			state, more = state.Step(now, ev)
			w.noteLeave(state, now, ev)
			return append(actions, more...)
		},
		view: func() ha.Event { return w.view() },
		do:   w.do,
		log:  logAction(w.log),
	}.run(ctx, changed, w.kicked)
}

// noteLeave keeps what the worker says after a step, for whoever waits for the node's orderly end.
func (w *haWorker) noteLeave(state ha.Worker, now time.Duration, ev ha.Event) {
	may, why := state.MayLeave(now)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leave.may, w.leave.why = may, why
	if v, ok := ev.(ha.LocalView); ok {
		w.leave.revision, w.leave.lonely = v.Revision, may && !(v.Quorate && v.LeaseValid)
	}
}

// mayLeave says what the worker said last, and of which view.
func (w *haWorker) mayLeave() leave {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leave
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
	c, err := readCluster(snap, w.book)
	v := ha.LocalView{
		Revision: snap.Revision(), Quorate: err == nil && w.quorate(), LeaseValid: valid,
		Guests: haGuests(snap, c, w.node), Resources: c.states, Config: c.config,
		Protected: c.protected, Intents: c.intents, Statuses: c.statuses, Commands: c.commands,
		Fenced: map[string]uint64{}, Members: map[string]int64{}, Processes: map[model.VMID]ha.Process{}, Busy: w.locks.holders(),
		Policy: c.policy, Mode: c.mode, Unix: c.unix, AwaitManager: ha.AwaitsManager(c.policy, c.rules),
		Request: c.requests[w.node].Value, Health: c.health[w.node].Value,
	}
	if mode := c.modes[w.node].Value; mode.BootID == w.boot {
		v.NodeMode = mode
	}
	for name, l := range c.live {
		if l.Value.Fenced {
			v.Fenced[name] = l.Value.Epoch
		}
	}
	for name, n := range c.nodes {
		v.Members[name] = n.Revision
	}
	groups := w.guard.Guarded()
	for id, p := range w.procs.list() {
		is := p.health()
		hp := ha.Process{Guarded: groups[id.String()], Answers: is.Answers, Sick: is.Sick}
		if p.incoming.Load() {
			hp.State = ha.ProcessIncoming
		}
		v.Processes[id] = hp
	}
	return v
}

// resources says which guests are HA's; the error means that nobody knows.
func (w *haWorker) resources() (func(model.VMID) bool, error) {
	c, err := readCluster(w.mirror.Snapshot(), w.book)
	return func(id model.VMID) bool { _, managed := c.states[id]; return managed }, err
}

// awaits says whether a guest starts by HA's word alone: it is an armed HA resource, and something may speak against its start that only the
// manager knows.
func (w *haWorker) awaits(id model.VMID) bool {
	v := w.view()
	_, managed := v.Resources[id]
	return managed && v.AwaitManager && v.Mode.At(v.Unix) == ha.Armed && v.Request.DisarmAt(v.Unix) == ha.Armed
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
	case ha.Reset:
		return w.underLock(a.VMID, "HA: reset", func() (int64, error) { return 0, w.doReset(ctx, a) })
	case ha.Handover:
		return w.underLock(a.VMID, "HA: hand over to "+a.To, func() (int64, error) { return w.doHandover(ctx, a) })
	case ha.Migrate:
		return 0, w.doMigrate(ctx, a) // the migration takes the lock itself
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
	if err := w.tasks.Wait(ctx, upid); errors.Is(err, storage.ErrAway) {
		return &awayError{err}
	} else if err != nil {
		return err
	}
	return nil
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
		if err := p.stop(ctx, a, t.Logf); err != nil {
			return err
		}
		return p.waitCleaned(ctx)
	})
	if err != nil {
		return err
	}
	return w.tasks.Wait(ctx, upid)
}

// stop ends the guest as HA wants it ended.
func (p *proc) stop(ctx context.Context, a ha.Stop, logf func(string, ...any)) error {
	if a.Hard {
		return p.endNow(ctx)
	}
	err := p.shutdown(ctx, a.Timeout)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // nobody wants it any more, or the agent ends: no reason to cut the guest's power
	}
	logf("%v: stopping it", err)
	return p.endNow(ctx)
}

// resetDeadline bounds the question to QEMU.
const resetDeadline = 5 * time.Second

func (w *haWorker) doReset(ctx context.Context, a ha.Reset) error {
	p := w.procs.get(a.VMID)
	if p == nil {
		return store.ErrConflict
	}
	ctx, cancel := context.WithTimeout(ctx, resetDeadline)
	defer cancel()
	if err := p.Execute(ctx, "system_reset", nil, nil); err != nil {
		return fmt.Errorf("reset guest %s: %w", a.VMID, err)
	}
	return nil
}

// doHandover gives a guest of which nothing is left here to another node, in one transaction.
func (w *haWorker) doHandover(ctx context.Context, a ha.Handover) (int64, error) {
	if err := w.procs.absent(a.VMID); err != nil {
		return 0, err
	}
	from := model.GuestConfigKey(a.From, a.VMID)
	file, err := fileToMove(ctx, w.st, from)
	if err != nil {
		return 0, err
	}
	ops := []store.Op{store.Delete(from), store.Put(model.GuestConfigKey(a.To, a.VMID), file)}
	if a.Protected {
		ops = append(ops, store.Put(model.ProtectedPrefix+a.VMID.String(), mustJSON(model.Protected{Node: a.To})))
	}
	return transact(ctx, w.st, a.Compares(), ops...)
}

// doMigrate moves a guest that runs by the one migration path, as a task.
func (w *haWorker) doMigrate(ctx context.Context, a ha.Migrate) error {
	still := func(ctx context.Context) error {
		rec, err := mirror.Read[ha.Status](ctx, w.st, model.HAStatusPrefix+ha.Guest{VMID: a.VMID, Kind: a.Kind}.SID())
		if err == nil && rec.Revision != a.StatusRevision {
			err = store.ErrConflict
		}
		return err
	}
	if err := still(ctx); err != nil {
		return err
	}
	f, err := w.files.owner(a.VMID)
	if err == nil && f.node == a.Target {
		return nil
	}
	upid, err := w.moves.migrate(ctx, a.VMID, a.Target, true, func(ctx context.Context, t *task.Task) error {
		t.Logf("%s", a.Why())
		return still(ctx)
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
	if !mine {
		w.judgeStray(ctx, a.VMID, p)
	}
	if err := p.Kill(ctx); err != nil {
		return err
	}
	return p.waitCleaned(ctx)
}

// strayLimit bounds the question to a QEMU that is to be killed.
const strayLimit = 500 * time.Millisecond

// judgeStray raises the alarm about a QEMU that is to be killed if it runs a guest that its owner may have run at the same time. What is
// frozen, waits for a migration or has migrated away has not; and an owner waits while the guest's record names this node.
func (w *haWorker) judgeStray(ctx context.Context, id model.VMID, p *proc) {
	f, err := w.files.owner(id)
	if err != nil || f.node == w.node || p.incoming.Load() || w.procs.frozen(id) {
		return
	}
	if w.holds(ctx, id) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, strayLimit)
	defer cancel()
	s, err := p.Status(ctx)
	switch {
	case err != nil:
		w.log.Warn("a guest's QEMU is killed that does not say whether it ran, and is not frozen", "vmid", id, "owner", f.node, "err", err)
	case s.Status == "running":
		w.found(id, f.node, p.Facts().Started)
	}
}

// holds: the guest's protection names this node, so nobody else runs it. What cannot be read in time does not say so.
func (w *haWorker) holds(ctx context.Context, id model.VMID) bool {
	ctx, cancel := context.WithTimeout(ctx, strayLimit)
	defer cancel()
	held, err := mirror.Read[model.Protected](ctx, w.st, model.ProtectedPrefix+id.String())
	return err == nil && held.Value.Node == w.node
}
