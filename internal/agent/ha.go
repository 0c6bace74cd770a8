package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
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
	changed, stop := m.mirror.Subscribe()
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

// managerView is what the manager decides from. A record that cannot be read must not look as if it were not there,
// so then nothing is decided: the view has no quorum.
func (m *member) managerView() ha.View {
	snap := m.mirror.Snapshot()
	c, err := readCluster(snap)
	manager, merr := mirror.Get[model.Manager](snap, model.ManagerKey)
	nodes, nerr := mirror.List[model.Node](snap, model.NodePrefix)
	readable := errors.Join(err, merr, nerr) == nil
	v := ha.View{
		Revision: snap.Revision(), Quorate: readable && m.st.Quorate(), Manager: manager.Value, ManagerRevision: manager.Revision,
		Resources: c.states, Guests: haGuests(snap, c.storages, ""), Protected: c.protected, Intents: c.intents, Statuses: c.statuses,
	}
	for name, n := range nodes {
		verdict, silence := m.live.Verdict(name)
		v.Members = append(v.Members, ha.Member{
			Name: name, Revision: n.Revision, MemoryMiB: n.Value.MemoryMiB, Storages: sharedOn(c.storages, name),
			Live: verdict.Live, LiveRevision: verdict.Revision, Silence: silence, MayTake: verdict.May, Why: verdict.Reason,
		})
	}
	return v
}

// clusterRecords is what both HA views read of the store.
type clusterRecords struct {
	storages  []pveconf.Storage
	states    map[model.VMID]pveconf.HAState
	protected map[model.VMID]ha.Protected
	intents   map[model.VMID]ha.Intent
	statuses  map[model.VMID]ha.StatusRecord
	live      map[string]mirror.Record[model.Live]
}

// readCluster reads them; with an error nothing may be decided: without one of these records guests would look unprotected,
// tied to their node, or not under way.
func readCluster(s mirror.Snapshot) (clusterRecords, error) {
	storages, err1 := mirror.Decode(s, storageCfgKey, pveconf.ParseStorages)
	resources, err2 := mirror.Decode(s, haResourcesKey, pveconf.ParseHAResources)
	c := clusterRecords{storages: storages.Value, states: statesOf(resources.Value)}
	var err3, err4, err5 error
	c.protected, err3 = protectedIn(s)
	c.intents, err4 = intentsIn(s)
	c.statuses = statusesIn(s)
	c.live, err5 = mirror.List[model.Live](s, model.LivePrefix)
	return c, errors.Join(err1, err2, err3, err4, err5)
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
func haGuests(s mirror.Snapshot, storages []pveconf.Storage, node string) []ha.Guest {
	var out []ha.Guest
	for _, f := range guestFilesIn(s) {
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

// byVMID lists the JSON records under prefix by guest. An error names the records that cannot be read.
func byVMID[T, U any](s mirror.Snapshot, prefix string, f func(mirror.Record[T]) U) (map[model.VMID]U, error) {
	out := map[model.VMID]U{}
	all, err := mirror.List[T](s, prefix)
	for key, rec := range all {
		if id, perr := model.ParseVMID(key); perr == nil {
			out[id] = f(rec)
		}
	}
	return out, err
}

func protectedIn(s mirror.Snapshot) (map[model.VMID]ha.Protected, error) {
	return byVMID(s, model.ProtectedPrefix, func(r mirror.Record[model.Protected]) ha.Protected {
		return ha.Protected{Protected: r.Value, Revision: r.Revision}
	})
}

func intentsIn(s mirror.Snapshot) (map[model.VMID]ha.Intent, error) {
	return byVMID(s, model.IntentPrefix, func(r mirror.Record[model.Intent]) ha.Intent {
		return ha.Intent{Intent: r.Value, Revision: r.Revision}
	})
}

// statusesIn lists what HA last said. Nothing is decided by it alone, so one that cannot be read is an empty one: it is written over.
func statusesIn(s mirror.Snapshot) map[model.VMID]ha.StatusRecord {
	out := map[model.VMID]ha.StatusRecord{}
	prefix := model.HAStatusPrefix + "vm:"
	for kv := range s.All(prefix) {
		r, _ := mirror.Get[ha.Status](s, kv.Key) // what cannot be read is in the log
		if id, err := model.ParseVMID(strings.TrimPrefix(kv.Key, prefix)); err == nil {
			out[id] = ha.StatusRecord{Status: r.Value, Revision: r.Revision}
		}
	}
	return out
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
	changed, stop := m.mirror.Subscribe()
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

// workerView is what the worker decides from; as with managerView, what cannot be read ends every decision.
func (m *member) workerView() ha.LocalView {
	snap := m.mirror.Snapshot()
	_, valid := m.lease.Valid()
	c, err := readCluster(snap)
	v := ha.LocalView{
		Revision: snap.Revision(), Quorate: err == nil && m.st.Quorate(), LeaseValid: valid,
		Guests: haGuests(snap, c.storages, m.name), Resources: c.states,
		Protected: c.protected, Intents: c.intents, Statuses: c.statuses,
		Fenced: map[string]uint64{}, Processes: map[model.VMID]ha.Process{}, Busy: m.locks.holders(),
	}
	for name, l := range c.live {
		if l.Value.Fenced {
			v.Fenced[name] = l.Value.Epoch
		}
	}
	groups := m.live.Guarded()
	for id, p := range m.procs.list() {
		hp := ha.Process{Guarded: groups[id.String()]}
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
	if err := m.live.Unprotect(ctx, a.VMID.String()); err != nil {
		return rev, fmt.Errorf("take guest %s from the guard: %w", a.VMID, err)
	}
	return rev, nil
}

func (m *member) doStart(ctx context.Context, a ha.Start) error {
	if m.procs.get(a.VMID) != nil {
		return nil
	}
	upid, err := m.agent.tasks.Start("hastart", a.VMID.String(), func(ctx context.Context, t *task.Task) error {
		t.Logf("%s", a.Why())
		return m.startGuest(ctx, startRequest{id: a.VMID, haOnly: true, pills: a.Pills, log: t.Logf})
	})
	if err != nil {
		return err
	}
	return m.agent.tasks.Wait(ctx, upid)
}

func (m *member) doStop(ctx context.Context, a ha.Stop) error {
	p := m.procs.get(a.VMID)
	if p == nil {
		return nil
	}
	upid, err := m.agent.tasks.Start("hastop", a.VMID.String(), func(ctx context.Context, t *task.Task) error {
		t.Logf("%s", a.Why())
		if err := p.shutdown(ctx, shutdownPatience); err != nil {
			if ctx.Err() != nil {
				return ctx.Err() // the agent ends or the task was cancelled: no reason to cut the guest's power
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
	return m.agent.tasks.Wait(ctx, upid)
}

func (m *member) doDiscard(ctx context.Context, a ha.Discard) error {
	p := m.procs.get(a.VMID)
	if p == nil {
		return nil
	}
	intent, err := mirror.Read[model.Intent](ctx, m.st, model.IntentPrefix+a.VMID.String())
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
