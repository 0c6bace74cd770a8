package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/etcd"
)

// awaitVote waits until the cluster made this node a voter: this very one, for a store that catches up shows the records of an
// earlier membership of the same name, too.
func (m *membership) awaitVote(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	for {
		kv, err := m.st.Get(ctx, model.NodePrefix+m.node, store.Local)
		var n model.Node
		if err == nil && json.Unmarshal(kv.Value, &n) == nil && n.Votes > 0 && n.MemberID == m.st.MemberID() {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("did not become a voter in %s", joinLimit)
		case <-m.st.Done():
			return errors.New("the cluster took the membership back")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// catchUp returns when the mirror shows the store as it was when catchUp was called, or later.
func (m *membership) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	var rev int64
	err := retryNoQuorum(ctx, joinLimit, func() (err error) {
		_, rev, err = m.st.List(ctx, model.NodePrefix, store.Linearizable)
		return err
	})
	if err != nil {
		return writeError("catch up with the cluster", err)
	}
	return m.roster.mirror.Await(ctx, rev)
}

// admit is the member's side of a join. Every refusal comes before anything was changed.
func (m *membership) admit(ctx context.Context, r joinRequest, now time.Time) (joinReply, error) {
	if err := m.standing(); err != nil {
		return joinReply{}, err
	}
	if err := model.ValidateNodeName(r.Node.Name); err != nil {
		return joinReply{}, err
	}
	secret, err := m.checkSecret(ctx, r, now)
	if err != nil {
		return joinReply{}, err
	}
	if d := now.Sub(time.Unix(0, r.Time)); d > maxClockDifference || d < -maxClockDifference {
		return joinReply{}, model.Errorf(model.ErrInvalid, "the clock of %s is off by %.1f s against %s: at most %s is allowed; set it (for example with chrony) and join again", r.Node.Name, -d.Seconds(), m.node, maxClockDifference)
	}
	cluster, err := m.st.Get(ctx, model.ClusterKey, store.Linearizable)
	if err != nil {
		return joinReply{}, writeError("admit "+r.Node.Name, err)
	}
	node, err := m.newNode(ctx, r.Node, now)
	if err != nil {
		return joinReply{}, err
	}
	ca, err := m.loadCA(ctx)
	if err != nil {
		return joinReply{}, err
	}
	cert, err := ca.Sign([]byte(r.CSR), node.Name, []string{node.Mgmt, node.Cluster}, now)
	if err != nil {
		return joinReply{}, model.Invalidf("csr", "%v", err)
	}
	if err := m.reserve(ctx, r, secret, cluster, node); err != nil {
		return joinReply{}, err
	}
	id, err := m.st.AddLearner(ctx, node.Name, peerURLs(node))
	if err != nil {
		m.takeBack(node, "", &secret, r.ID)
		return joinReply{}, fmt.Errorf("add %s to the store (is another node joining right now? then try again): %w", node.Name, err)
	}
	members, err := m.st.Members(ctx)
	if err != nil {
		m.takeBack(node, id, &secret, r.ID)
		return joinReply{}, writeError("admit "+node.Name, err)
	}
	initial := etcd.InitialMembers(members, node.Name, peerURLs(node))
	m.wg.Go(func() { m.promote(node, id) })
	return joinReply{Cluster: m.cluster, Node: node, CA: string(certs.EncodeCert(ca.Cert)), Cert: string(certs.EncodeCert(cert)), Initial: initial}, nil
}

func (m *membership) checkSecret(ctx context.Context, r joinRequest, now time.Time) (mirror.Record[joinSecret], error) {
	refuse := func(why string) error {
		return model.Errorf(model.ErrInvalid, "the join key %s: make a new one with `sauh cluster key` on a member", why)
	}
	s, err := mirror.Read[joinSecret](ctx, m.st, model.JoinPrefix+r.ID)
	switch {
	case err != nil:
		return s, writeError("check the join key", err)
	case s.Revision == 0:
		return s, refuse("is unknown or was used already")
	case !s.Value.matches(r.Secret):
		return s, refuse("is wrong")
	case now.Unix() >= s.Value.Expires:
		return s, refuse("expired at " + time.Unix(s.Value.Expires, 0).UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	return s, nil
}

// newNode gives the joining node its number, and refuses a name or an address that is taken.
func (m *membership) newNode(ctx context.Context, n model.Node, now time.Time) (model.Node, error) {
	kvs, _, err := m.st.List(ctx, model.NodePrefix, store.Linearizable)
	if err != nil {
		return n, writeError("admit "+n.Name, err)
	}
	var members []model.Node
	for _, kv := range kvs {
		var x model.Node
		if err := json.Unmarshal(kv.Value, &x); err != nil {
			return n, fmt.Errorf("read %s: %w", kv.Key, err)
		}
		members = append(members, x)
	}
	if len(members) >= maxVoters {
		return n, model.Errorf(model.ErrBusy, "cluster %s has %d nodes: this version of Sauh takes no more", m.cluster.Name, len(members))
	}
	n.ID, n.Votes, n.MemberID, n.Joined, n.Leaving = 1, 0, "", now.Unix(), false
	for _, x := range members {
		switch {
		case x.Name == n.Name:
			return n, model.Errorf(model.ErrExists, "the name %s is taken in cluster %s: choose another with --node-name, or remove the old node with `sauh cluster remove %s`", n.Name, m.cluster.Name, n.Name)
		case x.Mgmt == n.Mgmt || x.Cluster == n.Cluster || x.Mgmt == n.Cluster || x.Cluster == n.Mgmt:
			return n, model.Errorf(model.ErrExists, "the addresses %s and %s belong to node %s already: correct /etc/sauh/agent.json on %s", n.Mgmt, n.Cluster, x.Name, n.Name)
		}
		n.ID = max(n.ID, x.ID+1)
	}
	return n, nil
}

// reserve uses the secret up and records the node, without a vote yet. The
// cluster's record, read before the nodes were, is compared and written again,
// so that of two joins at once one starts over and no number is given twice.
func (m *membership) reserve(ctx context.Context, r joinRequest, s mirror.Record[joinSecret], cluster store.KV, n model.Node) error {
	_, err := m.st.Txn(ctx, store.Txn{
		If: []store.Cond{
			{Key: model.JoinPrefix + r.ID, Revision: s.Revision},
			{Key: model.NodePrefix + n.Name},
			{Key: model.ClusterKey, Revision: cluster.ModRevision},
		},
		Then: []store.Op{
			store.Delete(model.JoinPrefix + r.ID),
			store.Put(model.NodePrefix+n.Name, mustJSON(n)),
			store.Put(model.ClusterKey, cluster.Value),
		},
	})
	return writeError("admit "+n.Name, err)
}

// promote makes the learner a voter as soon as it has caught up, and takes the
// join back when that does not happen in time.
func (m *membership) promote(node model.Node, id string) {
	name := node.Name
	ctx, cancel := context.WithTimeout(m.ctx, joinLimit)
	defer cancel()
	for {
		err := m.st.Promote(ctx, id)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			m.log.Warn("node did not catch up in time, its join is taken back", "node", name, "err", err)
			m.takeBack(node, id, nil, "")
			return
		}
		sleep(ctx, 200*time.Millisecond)
	}
	if err := m.recordVote(ctx, name, id); err != nil {
		m.log.Warn("vote of the new node not recorded, its join is taken back", "node", name, "err", err)
		m.takeBack(node, id, nil, "")
		return
	}
	m.log.Info("node joined", "node", name)
}

// recordVote writes that a node is a voter, however often its record changes meanwhile: the node itself writes it, too.
func (m *membership) recordVote(ctx context.Context, name, id string) error {
	for {
		n, err := mirror.Read[model.Node](ctx, m.st, model.NodePrefix+name)
		if err == nil && n.Revision == 0 {
			return nil // removed again
		}
		if err == nil {
			n.Value.Votes, n.Value.MemberID = 1, id
			_, err = m.st.Txn(ctx, store.Txn{
				If:   []store.Cond{{Key: model.NodePrefix + name, Revision: n.Revision}},
				Then: []store.Op{store.Put(model.NodePrefix+name, mustJSON(n.Value))},
			})
		}
		again := errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNoQuorum)
		if !again || ctx.Err() != nil {
			return err
		}
		sleep(ctx, 100*time.Millisecond)
	}
}

// takeBackLimit bounds the undoing of a join: a store that elects a leader answers again within seconds.
const takeBackLimit = 10 * time.Second

// takeBack undoes reserve and AddLearner, each until it succeeded or the time is over. id is "" if the answer of AddLearner was
// lost: the learner may be there all the same, and is known by its addresses alone then.
func (m *membership) takeBack(node model.Node, id string, secret *mirror.Record[joinSecret], secretID string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), takeBackLimit)
	defer cancel()
	steps := []func() error{
		func() error { return m.deleteRecords(ctx, node.Name) },
		func() error { return m.removeLearner(ctx, node, id) },
	}
	if secret != nil {
		key := model.JoinPrefix + secretID
		steps = append(steps, func() error {
			if kv, err := m.st.Get(ctx, key, store.Linearizable); err == nil && kv.ModRevision != 0 {
				return nil // an earlier attempt whose answer was lost
			}
			_, err := m.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, mustJSON(secret.Value))}})
			return err
		})
	}
	for _, step := range steps {
		err := step()
		for err != nil && ctx.Err() == nil {
			sleep(ctx, 200*time.Millisecond)
			err = step()
		}
		if err != nil {
			m.log.Error("a join was not taken back completely: run `sauh cluster remove`", "node", node.Name, "err", err)
		}
	}
}

// removeLearner takes a joining node out of the store's members; one that is not there is no error.
func (m *membership) removeLearner(ctx context.Context, node model.Node, id string) error {
	members, err := m.st.Members(ctx)
	if err != nil {
		return err
	}
	for _, x := range members {
		same := x.Name == "" && x.Learner && slices.ContainsFunc(peerURLs(node), func(u string) bool { return slices.Contains(x.PeerURLs, u) })
		if x.ID == id || id == "" && same {
			return m.st.RemoveMember(ctx, x.ID)
		}
	}
	return nil
}

func (m *membership) loadCA(ctx context.Context) (certs.Pair, error) {
	cert, err := m.st.Get(ctx, caCertKey, store.Linearizable)
	if err != nil {
		return certs.Pair{}, writeError("read the cluster's CA", err)
	}
	key, err := m.st.Get(ctx, caKeyKey, store.Linearizable)
	if err != nil {
		return certs.Pair{}, writeError("read the cluster's CA", err)
	}
	return certs.ParsePair(cert.Value, key.Value)
}
