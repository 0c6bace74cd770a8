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
	"sauh.dev/sauh/internal/store"
)

// haManager is the shell of ha.State: it shows it the cluster and carries its decisions out, each by one transaction.
type haManager struct {
	node    string
	log     *slog.Logger
	st      store.Store
	quorate func() bool
	mirror  *mirror.Mirror
	live    observer
}

// run minds the whole cluster's guests whenever this node is the manager.
func (m *haManager) run(ctx context.Context) {
	changed, stop := m.mirror.Subscribe()
	defer stop()
	s := ha.New(m.node, ha.DefaultParams())
	machine{
		step: func(now time.Duration, ev ha.Event) (actions []ha.Action) {
			s, actions = s.Step(now, ev)
			return actions
		},
		view: func() ha.Event { return m.view() },
		do:   m.do,
		log:  logAction(m.log),
	}.run(ctx, changed)
}

// view is what the manager decides from. A record that cannot be read must not look as if it were not there,
// so then nothing is decided: the view has no quorum.
func (m *haManager) view() ha.View {
	snap := m.mirror.Snapshot()
	c, err := readCluster(snap)
	manager, merr := mirror.Get[model.Manager](snap, model.ManagerKey)
	nodes, nerr := mirror.List[model.Node](snap, model.NodePrefix)
	readable := errors.Join(err, merr, nerr) == nil
	v := ha.View{
		Revision: snap.Revision(), Quorate: readable && m.quorate(), Manager: manager.Value, ManagerRevision: manager.Revision,
		Resources: c.states, Guests: haGuests(snap, c.storages, ""), Protected: c.protected, Intents: c.intents, Statuses: c.statuses,
	}
	for name, n := range nodes {
		verdict, silence := m.live.Verdict(name)
		if n.Value.Leaving {
			verdict.Revision = 0 // it has no guests, and is no place for any
		}
		v.Members = append(v.Members, ha.Member{
			Name: name, Revision: n.Revision, MemoryMiB: n.Value.MemoryMiB, Storages: sharedOn(c.storages, name),
			Live: verdict.Live, LiveRevision: verdict.Revision, Silence: silence, MayTake: verdict.May, Why: verdict.Reason,
		})
	}
	return v
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

func setStatus(ctx context.Context, st store.Store, a ha.SetStatus) (int64, error) {
	return transact(ctx, st, a.Compares(), store.Put(model.HAStatusPrefix+a.VMID.SID(), mustJSON(a.Status)))
}

func (m *haManager) moveFile(ctx context.Context, a ha.Move) (int64, error) {
	from := model.GuestConfigKey(a.From, a.VMID)
	kv, err := m.st.Get(ctx, from, store.Linearizable)
	if errors.Is(err, store.ErrNotFound) {
		return 0, store.ErrConflict
	}
	if err != nil {
		return 0, err
	}
	return transact(ctx, m.st, a.Compares(),
		store.Delete(from), store.Put(model.GuestConfigKey(a.To, a.VMID), kv.Value),
		store.Put(model.ProtectedPrefix+a.VMID.String(), mustJSON(model.Protected{Node: a.To})))
}
