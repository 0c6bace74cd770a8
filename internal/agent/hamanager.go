package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/store"
)

// haManager is the shell of ha.State: it shows it the cluster and carries its decisions out, each by one transaction.
type haManager struct {
	node    string
	log     *slog.Logger
	st      store.Store
	quorate func() bool
	mirror  *mirror.Mirror
	live    watcher
	book    *rulebook
	fencing *fencing
	params  ha.Params
	kicked  <-chan struct{} // has an element after the quorum came or went
}

// watcher knows how other nodes are, and whether this one has a lease.
type watcher interface {
	observer
	Valid() (epoch uint64, ok bool)
}

// run minds the whole cluster's guests whenever this node is the manager.
func (m *haManager) run(ctx context.Context) {
	changed, stop := m.mirror.Subscribe()
	defer stop()
	s := ha.New(m.node, m.params)
	machine{
		step: func(now time.Duration, ev ha.Event) (actions []ha.Action) {
			s, actions = s.Step(now, ev)
			m.fencing.active.Store(s.Active())
			return actions
		},
		view:  func() ha.Event { return m.view() },
		do:    m.do,
		fence: m.fencing.answer,
		log:   logAction(m.log),
	}.run(ctx, changed, m.kicked)
}

// view is what the manager decides from. A record that cannot be read must not look as if it were not there,
// so then nothing is decided: the view has no quorum.
func (m *haManager) view() ha.View {
	snap := m.mirror.Snapshot()
	c, err := readCluster(snap, m.book)
	manager, merr := mirror.Get[model.Manager](snap, model.ManagerKey)
	readable := errors.Join(err, merr) == nil
	_, valid := m.live.Valid()
	v := ha.View{
		Revision: snap.Revision(), Quorate: readable && m.quorate(), LeaseValid: valid, Manager: manager.Value, ManagerRevision: manager.Revision,
		Resources: c.states, Config: c.config, Guests: haGuests(snap, c, ""), Protected: c.protected, Intents: c.intents, Statuses: c.statuses,
		Commands: c.commands, Policy: c.policy, Mode: c.mode, Rules: c.rules, Unix: c.unix,
	}
	loads := m.measured(snap, c, v.Guests)
	measure(v.Guests, loads)
	rest(v.Guests, m.idle(snap, c))
	for name, n := range c.nodes {
		member := m.member(snap, c, name, n)
		member.Load = ha.Load(loads.Nodes[name])
		v.Members = append(v.Members, member)
	}
	return v
}

// member is a member as this node sees it. A history that cannot be read is an empty one: it is written over.
func (m *haManager) member(snap mirror.Snapshot, c clusterRecords, name string, n mirror.Record[model.Node]) ha.Member {
	verdict, _ := m.live.Verdict(name)
	if n.Value.Leaving {
		verdict.Revision = 0 // it has no guests, and is no place for any
	}
	history, _ := mirror.Get[ha.History](snap, model.HAHistoryPrefix+name)
	out := ha.Member{
		Name: name, Revision: n.Revision, MemoryMiB: n.Value.MemoryMiB, CPUs: n.Value.CPUs, Storages: sharedOn(c.storages, name),
		Live: verdict.Live, LiveRevision: verdict.Revision, Silence: verdict.Silent, MayTake: verdict.May, Why: verdict.Reason, Wait: verdict.Wait,
		Request: c.requests[name].Value, Mode: c.modes[name].Value, Health: c.health[name].Value,
		History: history.Value, HistoryRevision: history.Revision, Rack: n.Value.Rack, Site: n.Value.Site, Level: n.Value.Level,
	}
	if name != m.node {
		m.fencing.describe(snap, &out)
		if out.Heard > 0 {
			out.Heard = max(min(out.Heard, verdict.Present), 1)
		}
	}
	return out
}

// do carries out the manager's decisions: each is one transaction.
func (m *haManager) do(ctx context.Context, a ha.Action) (int64, error) {
	switch a := a.(type) {
	case ha.TakeManager:
		return transact(ctx, m.st, a.Compares(), store.Put(model.ManagerKey, mustJSON(a.Manager)))
	case ha.Cut:
		m.log.Warn("ha: "+a.Why(), "revision", a.LiveRevision)
		return transact(ctx, m.st, a.Compares(), store.Put(model.LivePrefix+a.Node, mustJSON(a.NewLive)))
	case ha.Move:
		return m.moveFile(ctx, a)
	case ha.ClearIntent:
		return transact(ctx, m.st, a.Compares(), store.Delete(model.IntentPrefix+a.VMID.String()))
	case ha.SetStatus:
		return setStatus(ctx, m.st, a)
	case ha.DropCommand:
		return transact(ctx, m.st, a.Compares(), store.Delete(a.Compares()[0].Key))
	case ha.NoteHistory:
		return transact(ctx, m.st, a.Compares(), store.Put(model.HAHistoryPrefix+a.Node, mustJSON(a.History)))
	}
	return 0, fmt.Errorf("the manager cannot do %T", a)
}

// transact writes what an action says, comparing what it says and nothing else.
func transact(ctx context.Context, st store.Store, compares []ha.Compare, ops ...store.Op) (int64, error) {
	t := store.Txn{Then: ops}
	for _, c := range compares {
		t.If = append(t.If, store.Cond{Key: c.Key, Revision: c.Revision})
	}
	return st.Txn(ctx, t)
}

// setStatus writes a status, and deletes the command that it acts on.
func setStatus(ctx context.Context, st store.Store, a ha.SetStatus) (int64, error) {
	compares := a.Compares()
	ops := []store.Op{store.Put(compares[0].Key, mustJSON(a.Status))}
	if a.Command != 0 {
		ops = append(ops, store.Delete(compares[1].Key))
	}
	return transact(ctx, st, compares, ops...)
}

// fileToMove reads the guest's file that is to stand under another path; one that is not there any more is a conflict.
func fileToMove(ctx context.Context, st store.Store, key string) ([]byte, error) {
	kv, err := st.Get(ctx, key, store.Linearizable)
	if errors.Is(err, store.ErrNotFound) {
		return nil, store.ErrConflict
	}
	return kv.Value, err
}

func (m *haManager) moveFile(ctx context.Context, a ha.Move) (int64, error) {
	from := model.GuestConfigKey(a.From, a.VMID)
	file, err := fileToMove(ctx, m.st, from)
	if err != nil {
		return 0, err
	}
	if a.DropLock {
		conf, err := pveconf.ParseGuest(file)
		if err != nil {
			return 0, fmt.Errorf("take the lock off %s: %w", from, err)
		}
		conf.Delete("lock")
		file = conf.Bytes()
	}
	return transact(ctx, m.st, a.Compares(),
		store.Delete(from), store.Put(model.GuestConfigKey(a.To, a.VMID), file),
		store.Put(model.ProtectedPrefix+a.VMID.String(), mustJSON(model.Protected{Node: a.To})))
}
