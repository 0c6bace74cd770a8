package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// shutdownPatience is how long an HA resource that is asked to stop has before it is stopped hard.
const shutdownPatience = time.Minute

// machine is a state machine of core/ha in its loop: views and answers go in, actions come out.
type machine struct {
	step func(time.Duration, ha.Event) []ha.Action
	view func() ha.Event
	// do carries one action out; it returns the transaction's revision, if it was one.
	do  func(context.Context, ha.Action) (int64, error)
	log func(ha.Action, error)
}

// run feeds the machine until ctx is done, and waits for what it has begun.
func (mc machine) run(ctx context.Context, changes ...<-chan struct{}) {
	merged := make(chan struct{}, 1)
	results := make(chan ha.Event, 16)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, c := range changes {
		wg.Go(func() { forward(ctx, c, merged) })
	}
	var wake <-chan time.Time
	feed := func(ev ha.Event) {
		wake = nil
		for _, a := range mc.step(sys.BootTime(), ev) {
			if w, ok := a.(ha.Wake); ok {
				wake = time.After(max(w.At-sys.BootTime(), time.Millisecond))
				continue
			}
			wg.Go(func() { mc.carryOut(ctx, a, results) })
		}
	}
	for {
		feed(mc.view())
		select {
		case <-ctx.Done():
			return
		case <-merged:
		case <-wake:
		case ev := <-results:
			feed(ev)
		}
	}
}

func forward(ctx context.Context, from <-chan struct{}, to chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-from:
			select {
			case to <- struct{}{}:
			default:
			}
		}
	}
}

// carryOut does an action and feeds its outcome back.
func (mc machine) carryOut(ctx context.Context, a ha.Action, results chan<- ha.Event) {
	rev, err := mc.do(ctx, a)
	mc.log(a, err)
	var ev ha.Event = ha.ActionDone{Action: a, Revision: rev}
	if err != nil {
		ev = ha.ActionFailed{Action: a, Kind: failKind(err), Reason: err.Error()}
	}
	select {
	case results <- ev:
	case <-ctx.Done():
	}
}

// lockedError marks a start that another holder of the image's lock prevented.
type lockedError struct{ error }

func (e *lockedError) Unwrap() error { return e.error }

func failKind(err error) ha.FailKind {
	var locked *lockedError
	switch {
	case errors.As(err, &locked):
		return ha.FailLocked
	case errors.Is(err, store.ErrConflict), errors.Is(err, model.ErrBusy):
		return ha.FailConflict
	case errors.Is(err, model.ErrNoQuorum):
		return ha.FailUnready
	}
	return ha.FailOther
}

func (m *member) logAction(a ha.Action, err error) {
	_, status := a.(ha.SetStatus)
	switch {
	case err == nil && status:
		m.log.Debug("ha: done", "why", a.Why())
	case err == nil:
		m.log.Info("ha: done", "why", a.Why())
	case failKind(err) == ha.FailConflict:
		m.log.Debug("ha: overtaken", "why", a.Why(), "err", err)
	default:
		m.log.Warn("ha: not done", "why", a.Why(), "err", err)
	}
}

// runManager minds the whole cluster's guests whenever this node is the manager.
func (m *member) runManager(ctx context.Context) {
	changed, stop := m.mirror.subscribe()
	defer stop()
	s := ha.New(m.name, ha.DefaultParams())
	machine{
		step: func(now time.Duration, ev ha.Event) (actions []ha.Action) {
			s, actions = s.Step(now, ev)
			return actions
		},
		view: func() ha.Event { return m.managerView() },
		do:   m.doManager,
		log:  m.logAction,
	}.run(ctx, changed)
}

func (m *member) managerView() ha.View {
	snap := m.mirror.snapshot()
	manager, _ := getJSON[model.Manager](snap, model.ManagerKey)
	conf, readable := m.haConfig(snap)
	v := ha.View{
		Revision: snap.rev, Quorate: readable && m.st.Quorate(), Manager: manager.Value, ManagerRevision: manager.Revision,
		Resources: conf.states, Guests: m.haGuests(snap, conf.storages, ""),
		Protected: protectedIn(snap), Intents: intentsIn(snap), Statuses: statusesIn(snap),
	}
	for name, n := range listJSON[model.Node](snap, model.NodePrefix) {
		verdict, silence := m.live.verdict(name)
		v.Members = append(v.Members, ha.Member{
			Name: name, Revision: n.Revision, MemoryMiB: n.Value.MemoryMiB, Storages: sharedOn(conf.storages, name),
			Live: verdict.Live, LiveRevision: verdict.Revision, Silence: silence, MayTake: verdict.May, Why: verdict.Reason,
		})
	}
	return v
}

// haConfig is what HA reads of the configuration. A file that cannot be read
// must stop every decision: without it guests would look unprotected, or tied to their node.
type haConfig struct {
	storages []pveconf.Storage
	states   map[model.VMID]pveconf.HAState
}

func (m *member) haConfig(rs records) (haConfig, bool) {
	stores, _ := rs.get(storageCfgKey)
	storages, err := pveconf.ParseStorages(stores.Value)
	if err != nil {
		m.log.Error("storage.cfg cannot be read, HA decides nothing", "err", err)
		return haConfig{}, false
	}
	kv, _ := rs.get(haResourcesKey)
	all, err := pveconf.ParseHAResources(kv.Value)
	if err != nil {
		m.log.Error("ha/resources.cfg cannot be read, HA decides nothing", "err", err)
		return haConfig{}, false
	}
	return haConfig{storages, statesOf(all)}, true
}

// sharedOn lists the storages on which node finds other nodes' volumes.
func sharedOn(all []pveconf.Storage, node string) []string {
	var out []string
	for _, s := range all {
		if s.Shared && !s.Disable && s.Unsupported == "" && s.OnNode(node) {
			out = append(out, s.ID)
		}
	}
	return out
}

// haGuests lists the guests' files as core/ha sees them; node "" means all.
func (m *member) haGuests(rs records, storages []pveconf.Storage, node string) []ha.Guest {
	var out []ha.Guest
	for _, f := range m.guestFilesIn(rs) {
		if node != "" && f.node != node {
			continue
		}
		names, local := volumesOf(f.conf, storages)
		out = append(out, ha.Guest{
			VMID: f.id, Node: f.node, Revision: f.revision, MemoryMiB: f.conf.MemoryMiB(), Storages: names, Local: local,
		})
	}
	return out
}

func byVMID[T, U any](rs records, prefix string, f func(record[T]) U) map[model.VMID]U {
	out := map[model.VMID]U{}
	for key, rec := range listJSON[T](rs, prefix) {
		if id, err := model.ParseVMID(key); err == nil {
			out[id] = f(rec)
		}
	}
	return out
}

func protectedIn(rs records) map[model.VMID]ha.Protected {
	return byVMID(rs, model.ProtectedPrefix, func(r record[model.Protected]) ha.Protected {
		return ha.Protected{Protected: r.Value, Revision: r.Revision}
	})
}

func intentsIn(rs records) map[model.VMID]ha.Intent {
	return byVMID(rs, model.IntentPrefix, func(r record[model.Intent]) ha.Intent {
		return ha.Intent{Intent: r.Value, Revision: r.Revision}
	})
}

func statusesIn(rs records) map[model.VMID]ha.StatusRecord {
	return byVMID(rs, model.HAStatusPrefix+"vm:", func(r record[ha.Status]) ha.StatusRecord {
		return ha.StatusRecord{Status: r.Value, Revision: r.Revision}
	})
}

// doManager carries out the manager's decisions: each is one transaction.
func (m *member) doManager(ctx context.Context, a ha.Action) (int64, error) {
	switch a := a.(type) {
	case ha.TakeManager:
		return m.transact(ctx, a.Compares(), store.Put(model.ManagerKey, mustJSON(a.Manager)))
	case ha.Cut:
		m.log.Warn("ha: "+a.Why(), "revision", a.LiveRevision)
		return m.transact(ctx, a.Compares(), store.Put(model.LivePrefix+a.Node, mustJSON(a.NewLive)))
	case ha.Move:
		return m.moveFile(ctx, a)
	case ha.ClearIntent:
		return m.transact(ctx, a.Compares(), store.Delete(model.IntentPrefix+a.VMID.String()))
	case ha.SetStatus:
		return m.setStatus(ctx, a)
	}
	return 0, fmt.Errorf("the manager cannot do %T", a)
}

func (m *member) transact(ctx context.Context, compares []ha.Compare, ops ...store.Op) (int64, error) {
	t := store.Txn{Then: ops}
	for _, c := range compares {
		t.If = append(t.If, store.Cond{Key: c.Key, Revision: c.Revision})
	}
	return m.st.Txn(ctx, t)
}

func (m *member) setStatus(ctx context.Context, a ha.SetStatus) (int64, error) {
	return m.transact(ctx, a.Compares(), store.Put(model.HAStatusPrefix+a.VMID.SID(), mustJSON(a.Status)))
}

func (m *member) moveFile(ctx context.Context, a ha.Move) (int64, error) {
	from := model.GuestConfigKey(a.From, a.VMID)
	kv, err := m.st.Get(ctx, from, store.Linearizable)
	if errors.Is(err, store.ErrNotFound) {
		return 0, store.ErrConflict
	}
	if err != nil {
		return 0, err
	}
	return m.transact(ctx, a.Compares(),
		store.Delete(from), store.Put(model.GuestConfigKey(a.To, a.VMID), kv.Value),
		store.Put(model.ProtectedPrefix+a.VMID.String(), mustJSON(model.Protected{Node: a.To})))
}

// runWorker keeps this node's HA resources in the state asked for.
func (m *member) runWorker(ctx context.Context) {
	changed, stop := m.mirror.subscribe()
	defer stop()
	w := ha.NewWorker(m.name, ha.DefaultParams())
	machine{
		step: func(now time.Duration, ev ha.Event) (actions []ha.Action) {
			w = m.feedEnds(w, now, &actions)
			var more []ha.Action
			w, more = w.Step(now, ev)
			return append(actions, more...)
		},
		view: func() ha.Event { return m.workerView() },
		do:   m.doWorker,
		log:  m.logAction,
	}.run(ctx, changed, m.kicked)
}

// feedEnds tells the worker of the processes that ended since it was asked last.
func (m *member) feedEnds(w ha.Worker, now time.Duration, actions *[]ha.Action) ha.Worker {
	for {
		select {
		case id := <-m.procs.gone:
			var more []ha.Action
			w, more = w.Step(now, ha.ProcessGone{VMID: id})
			for _, a := range more {
				if _, wake := a.(ha.Wake); !wake { // the next step says when to wake
					*actions = append(*actions, a)
				}
			}
		default:
			return w
		}
	}
}

func (m *member) workerView() ha.LocalView {
	snap := m.mirror.snapshot()
	_, valid := m.live.valid()
	conf, readable := m.haConfig(snap)
	v := ha.LocalView{
		Revision: snap.rev, Quorate: readable && m.st.Quorate(), LeaseValid: valid,
		Guests: m.haGuests(snap, conf.storages, m.name), Resources: conf.states,
		Protected: protectedIn(snap), Intents: intentsIn(snap), Statuses: statusesIn(snap),
		Fenced: map[string]uint64{}, Processes: map[model.VMID]ha.Process{}, Busy: m.locks.holders(),
	}
	for name, l := range listJSON[model.Live](snap, model.LivePrefix) {
		if l.Value.Fenced {
			v.Fenced[name] = l.Value.Epoch
		}
	}
	groups, known := m.live.guarded(m.ctx)
	for id, p := range m.procs.list() {
		if known {
			p.guarded.Store(groups[id.String()])
		}
		hp := ha.Process{Guarded: p.guarded.Load()}
		if p.incoming.Load() {
			hp.State = ha.ProcessIncoming
		}
		v.Processes[id] = hp
	}
	return v
}

// doWorker carries out the worker's decisions under the guest's lock.
func (m *member) doWorker(ctx context.Context, a ha.Action) (int64, error) {
	switch a := a.(type) {
	case ha.SetStatus:
		return m.setStatus(ctx, a)
	case ha.Acknowledge:
		return m.underLock(a.VMID, "HA: protect", func() (int64, error) { return m.doAcknowledge(ctx, a) })
	case ha.Unacknowledge:
		return m.underLock(a.VMID, "HA: end protection", func() (int64, error) { return m.doUnacknowledge(ctx, a) })
	case ha.Start:
		return m.underLock(a.VMID, "HA: start", func() (int64, error) { return 0, m.doStart(ctx, a) })
	case ha.Stop:
		return m.underLock(a.VMID, "HA: stop", func() (int64, error) { return 0, m.doStop(ctx, a) })
	case ha.Discard:
		return m.underLock(a.VMID, "HA: kill a leftover", func() (int64, error) { return 0, m.doDiscard(ctx, a) })
	}
	return 0, fmt.Errorf("the worker cannot do %T", a)
}

func (m *member) underLock(id model.VMID, what string, f func() (int64, error)) (int64, error) {
	unlock, err := m.locks.tryLock(id, what)
	if err != nil {
		return 0, err
	}
	defer unlock()
	return f()
}

func (m *member) doAcknowledge(ctx context.Context, a ha.Acknowledge) (int64, error) {
	at := m.term()
	f, err := m.ownGuestFile(a.VMID)
	if err != nil {
		return 0, err
	}
	if m.procs.get(a.VMID) != nil {
		if err := m.guardGuest(ctx, a.VMID, f.conf, at); err != nil {
			return 0, err
		}
	}
	if a.Written {
		return 0, nil
	}
	return m.transact(ctx, a.Compares(), store.Put(model.ProtectedPrefix+a.VMID.String(), mustJSON(model.Protected{Node: m.name})))
}

func (m *member) doUnacknowledge(ctx context.Context, a ha.Unacknowledge) (int64, error) {
	rev, err := m.transact(ctx, a.Compares(), store.Delete(model.ProtectedPrefix+a.VMID.String()))
	if err != nil {
		return 0, err
	}
	err = m.live.ask(ctx, func(ctx context.Context, g *guard.Client) error { return g.Unprotect(ctx, a.VMID.String()) })
	if err != nil {
		return rev, fmt.Errorf("take guest %s from the guard: %w", a.VMID, err)
	}
	m.procs.setGuarded(a.VMID, false)
	return rev, nil
}

func (m *member) doStart(ctx context.Context, a ha.Start) error {
	if m.procs.get(a.VMID) != nil {
		return nil
	}
	upid := m.agent.tasks.start("hastart", a.VMID.String(), func(ctx context.Context, t *task) error {
		t.logf("%s", a.Why())
		return m.startGuest(ctx, startRequest{id: a.VMID, haOnly: true, pills: a.Pills, log: t.logf})
	})
	return m.agent.tasks.waitErr(ctx, upid)
}

func (m *member) doStop(ctx context.Context, a ha.Stop) error {
	p := m.procs.get(a.VMID)
	if p == nil {
		return nil
	}
	upid := m.agent.tasks.start("hastop", a.VMID.String(), func(ctx context.Context, t *task) error {
		t.logf("%s", a.Why())
		if err := p.shutdown(ctx, shutdownPatience); err != nil {
			if ctx.Err() != nil {
				return ctx.Err() // the agent ends or the task was cancelled: no reason to cut the guest's power
			}
			t.logf("%v: stopping it", err)
			if err := p.endNow(ctx); err != nil {
				return err
			}
		}
		return p.waitCleaned(ctx)
	})
	return m.agent.tasks.waitErr(ctx, upid)
}

func (m *member) doDiscard(ctx context.Context, a ha.Discard) error {
	p := m.procs.get(a.VMID)
	if p == nil {
		return nil
	}
	intent, err := readJSON[model.Intent](ctx, m.st, model.IntentPrefix+a.VMID.String())
	if err != nil {
		return err
	}
	_, err = m.st.Get(ctx, model.GuestConfigKey(m.name, a.VMID), store.Linearizable)
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

// frozen reports whether the guest's cgroup is frozen.
func (m *member) frozen(id model.VMID) bool {
	frozen, err := sys.Cgroup(m.agent.opts.Paths.cgroupOf(id.String())).Frozen()
	return err == nil && frozen
}
