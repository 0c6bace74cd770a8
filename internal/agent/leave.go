package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/etcd"
)

// How a node leaves. Once the first step is taken the node's own agent takes the others, whatever becomes of who asked for
// it; an agent that ends in between leaves them to the next one (watchLeaving).
//
//  1. Nothing may arrive here, and no guest is being worked on.
//  2. The mark: the node's record says Leaving, by a transaction that compares and writes the cluster's record too, so that
//     two nodes cannot both count on the other to stay. From now on the node's API refuses changes, and whoever would
//     bring a guest here compares the record and fails.
//  3. The guests' files are listed. One that came before the mark takes the mark back: the node stays.
//  4. The node's records are deleted. It is a member no more; the others refuse its certificate.
//  5. The store takes it out of its members.
//  6. What protected guests there are is killed, and the membership is wiped from the disk, its file first.
//
// A crash before 2 has changed nothing. After 2 or 4 the next agent finds the record leaving or gone and goes on from there;
// after 5 its store says that it was removed, and it wipes. The last node of a cluster goes from 3 to 6.

// leaveAgain is how long a step that failed rests before it is tried again.
const leaveAgain = time.Second

// Leave implements api.Cluster.
func (a *Agent) Leave(ctx context.Context, destroy string) error {
	a.joining.Lock()
	m, err := a.member()
	if err != nil {
		a.joining.Unlock()
		return err
	}
	done := make(chan error, 1)
	a.wg.Go(func() {
		defer a.joining.Unlock()
		err := m.membership.mark(m.ctx, destroy)
		if err == nil {
			err = a.takeOut(m)
		}
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// takeOut completes the leaving of a node that is marked, or of which the records are gone.
func (a *Agent) takeOut(m *member) error {
	if err := m.membership.takeOut(m.ctx); err != nil {
		return err
	}
	a.dissolve(m, "left cluster "+m.cluster.Name)
	return nil
}

// watchLeaving completes what an earlier agent, or another node's `cluster remove`, has begun.
func (a *Agent) watchLeaving(m *member) {
	changed, stop := m.mirror.Subscribe()
	defer stop()
	for m.ctx.Err() == nil {
		if m.membership.standing() == nil {
			select {
			case <-changed:
			case <-m.ctx.Done():
			}
			continue
		}
		a.joining.Lock() // nobody else takes it out meanwhile
		if a.current.Load() == m {
			if err := a.takeOut(m); err != nil && !errors.Is(err, errStays) && m.ctx.Err() == nil {
				a.log.Warn("this node is not out of the cluster yet", "err", err)
			}
		}
		a.joining.Unlock()
		sleep(m.ctx, leaveAgain)
	}
}

// errStays: the node's record stands and is not marked.
var errStays = errors.New("this node is a member and stays one")

// standing says why nothing may be changed through this node, nil while it is a member that stays. It asks the mirror: what a
// change rests on is compared by its own transaction.
func (m *membership) standing() error {
	rec, err := mirror.Get[model.Node](m.roster.mirror.Snapshot(), model.NodePrefix+m.node)
	switch {
	case err != nil: // it is in the log, and says nothing of leaving
		return nil
	case rec.Revision == 0:
		return model.Errorf(model.ErrUnavailable, "%s is no member of cluster %s any more and takes itself out: nothing can be changed through it", m.node, m.cluster.Name)
	case rec.Value.Leaving:
		return model.Errorf(model.ErrUnavailable, "%s is leaving cluster %s: nothing can be changed through it; `sauh cluster leave` waits until it is out", m.node, m.cluster.Name)
	}
	return nil
}

// mark takes the steps 1 and 2. destroy is the name of the cluster if it shall end with this node, else "".
func (m *membership) mark(ctx context.Context, destroy string) (err error) {
	m.leaving.Store(true)
	defer func() {
		if err != nil {
			m.leaving.Store(false)
		}
	}()
	if destroy != "" && destroy != m.cluster.Name {
		return model.Invalidf("clustername", "this node's cluster is %s, not %s", m.cluster.Name, destroy)
	}
	if busy := m.locks.holders(); len(busy) > 0 {
		return model.Errorf(model.ErrBusy, "guests are being worked on here (%v): wait until that is done", busy)
	}
	if ids := m.files.of(m.node); len(ids) > 0 {
		return m.ownsGuests(m.node, ids)
	}
	for range 5 {
		err = m.markOnce(ctx, destroy != "")
		if !errors.Is(err, store.ErrConflict) {
			break
		}
	}
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNoQuorum) {
		return writeError("leave the cluster", err)
	}
	return err
}

func (m *membership) ownsGuests(node string, ids []model.VMID) error {
	return model.Errorf(model.ErrBusy, "%s still owns guests (%s): migrate or destroy them first", node, joinIDs(ids))
}

func (m *membership) markOnce(ctx context.Context, last bool) error {
	cluster, err := m.st.Get(ctx, model.ClusterKey, store.Linearizable)
	if err != nil {
		return err
	}
	self, others, err := m.readNodes(ctx)
	if err != nil || self.Revision == 0 || self.Value.Leaving {
		return err
	}
	staying := slices.DeleteFunc(slices.Clone(others), func(n model.Node) bool { return n.Leaving })
	switch {
	case last && len(others) > 0:
		return model.Errorf(model.ErrBusy, "cluster %s has other nodes (%s): run `sauh cluster leave` on each of them first", m.cluster.Name, nodeNames(others))
	case !last && len(staying) == 0:
		return model.Errorf(model.ErrBusy, "%s is the last node of cluster %s: there is nobody left to keep it; `sauh cluster destroy %s` ends it for good", m.node, m.cluster.Name, m.cluster.Name)
	}
	self.Value.Leaving = true
	key := model.NodePrefix + m.node
	_, err = m.st.Txn(ctx, store.Txn{
		If:   []store.Cond{{Key: key, Revision: self.Revision}, {Key: model.ClusterKey, Revision: cluster.ModRevision}},
		Then: []store.Op{store.Put(key, mustJSON(self.Value)), store.Put(model.ClusterKey, cluster.Value)},
	})
	return err
}

func nodeNames(nodes []model.Node) string {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
	}
	return strings.Join(names, ", ")
}

// readNodes reads this node's record and the others', linearizably.
func (m *membership) readNodes(ctx context.Context) (self mirror.Record[model.Node], others []model.Node, err error) {
	kvs, _, err := m.st.List(ctx, model.NodePrefix, store.Linearizable)
	if err != nil {
		return self, nil, err
	}
	for _, kv := range kvs {
		var n model.Node
		if err := json.Unmarshal(kv.Value, &n); err != nil {
			return self, nil, fmt.Errorf("read %s: %w", kv.Key, err)
		}
		if n.Name == m.node {
			self = mirror.Record[model.Node]{Value: n, Revision: kv.ModRevision}
		} else {
			others = append(others, n)
		}
	}
	return self, others, nil
}

// takeOut takes the steps 3 to 5, again and again until they are done: nothing but a guest that is here after all, or the end
// of ctx, stops it. errStays if there is nothing to do.
func (m *membership) takeOut(ctx context.Context) error {
	m.leaving.Store(true)
	told := false
	for {
		err := m.takeOutOnce(ctx)
		switch {
		case err == nil, errors.Is(err, etcd.ErrRemoved):
			return nil
		case errors.Is(err, errStays), errors.Is(err, errOwner):
			m.leaving.Store(false)
			return err
		case m.removed():
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("leave the cluster: %w", err)
		}
		if !told {
			m.log.Warn("this node is leaving and cannot go on yet", "err", err)
		}
		told = true
		sleep(ctx, leaveAgain)
	}
}

// removed reports whether the store ended because the others took this node out.
func (m *membership) removed() bool {
	select {
	case <-m.st.Done():
		return errors.Is(m.st.Err(), etcd.ErrRemoved)
	default:
		return false
	}
}

// errOwner: a guest is here, so the node stays.
var errOwner = model.Errorf(model.ErrBusy, "this node got a guest while it was about to leave, and stays a member")

func (m *membership) takeOutOnce(ctx context.Context) error {
	self, others, err := m.readNodes(ctx)
	if err != nil {
		return err
	}
	if self.Revision != 0 && !self.Value.Leaving {
		return errStays
	}
	if busy := m.locks.holders(); len(busy) > 0 {
		return model.Errorf(model.ErrBusy, "guests are being worked on here (%v)", busy)
	}
	ids, err := m.guestsHere(ctx, len(others) == 0)
	if err != nil {
		return err
	}
	if len(ids) > 0 && self.Revision != 0 {
		if err := m.unmark(ctx, self); err != nil {
			return err
		}
		return fmt.Errorf("%w: migrate or destroy guest %s first", errOwner, joinIDs(ids))
	}
	if len(others) == 0 {
		return nil
	}
	return m.dropSelf(ctx)
}

// guestsHere lists the guests under this node's path, or under any.
func (m *membership) guestsHere(ctx context.Context, anywhere bool) ([]model.VMID, error) {
	prefix := model.ConfigPrefix + "nodes/"
	if !anywhere {
		prefix += m.node + "/"
	}
	kvs, _, err := m.st.List(ctx, prefix, store.Linearizable)
	var ids []model.VMID
	for _, kv := range kvs {
		if _, id, ok := model.ParseGuestConfigKey(kv.Key); ok {
			ids = append(ids, id)
		}
	}
	return ids, err
}

func (m *membership) unmark(ctx context.Context, self mirror.Record[model.Node]) error {
	self.Value.Leaving = false
	key := model.NodePrefix + m.node
	_, err := m.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key, Revision: self.Revision}}, Then: []store.Op{store.Put(key, mustJSON(self.Value))}})
	return err
}

// dropSelf takes the steps 4 and 5.
func (m *membership) dropSelf(ctx context.Context) error {
	m.live.Pause() // no renewal may cross the transaction below
	defer m.live.Resume()
	if m.st.LeaderName() == m.node {
		if err := m.st.TransferLeadership(ctx); err != nil {
			m.log.Warn("leadership not handed over before leaving", "err", err)
		}
	}
	if err := m.deleteRecords(ctx, m.node); err != nil {
		return err
	}
	return m.st.RemoveMember(ctx, m.st.MemberID())
}
