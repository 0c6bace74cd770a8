package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// membership says who belongs to the cluster and changes it: the first records, join keys, and nodes that come (admit.go) and
// go (leave.go, which has the order of the steps and what a crash between two of them leaves).
type membership struct {
	node          string
	cluster       model.Cluster
	caFingerprint string
	log           *slog.Logger
	st            memberStore
	roster        roster
	files         guestFiles
	locks         *guestLocks
	live          renewal
	leaving       *atomic.Bool    // nothing may come here any more
	ctx           context.Context //nolint:containedctx // its life, which a join outlasts its request by
	wg            sync.WaitGroup  // joins under way
}

// renewal is what writes this node's liveness record.
type renewal interface {
	Pause()
	Resume()
}

// wait returns when no join is under way; they end with ctx.
func (m *membership) wait() { m.wg.Wait() }

// key makes a one-time join key.
func (m *membership) key(ctx context.Context, valid time.Duration) (api.JoinKey, error) {
	if valid == 0 {
		valid = time.Hour
	}
	if valid < time.Second || valid > 7*24*time.Hour {
		return api.JoinKey{}, model.Invalidf("valid", "%s is not a time for which a key can be valid: use one second to seven days", valid)
	}
	secret, stored := newSecret()
	stored.Expires, stored.By = time.Now().Add(valid).Unix(), m.node
	k := joinKey{Cluster: m.cluster.Name, Fingerprint: m.caFingerprint, ID: newUUID(), Secret: secret, Expires: stored.Expires}
	for _, n := range m.roster.nodes() {
		k.Addresses = append(k.Addresses, net.JoinHostPort(n.Mgmt, apiPort), net.JoinHostPort(n.Cluster, apiPort))
	}
	key := model.JoinPrefix + k.ID
	_, err := m.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, mustJSON(stored))}})
	if err != nil {
		return api.JoinKey{}, writeError("make a join key", err)
	}
	return api.JoinKey{Key: k.encode(), Fingerprint: k.Fingerprint, Addresses: k.Addresses, Expires: k.Expires}, nil
}

// seed writes what a new cluster begins with.
func (m *membership) seed(ctx context.Context, cluster model.Cluster, node model.Node, ca certs.Pair) error {
	node.MemberID = m.st.MemberID()
	keyPEM, err := certs.EncodeKey(ca.Key)
	if err != nil {
		return err
	}
	values := map[string][]byte{
		model.ClusterKey:                   mustJSON(cluster),
		model.NodePrefix + node.Name:       mustJSON(node),
		caCertKey:                          certs.EncodeCert(ca.Cert),
		caKeyKey:                           keyPEM,
		model.ConfigPrefix + "storage.cfg": {},
	}
	var t store.Txn
	for k, v := range values {
		t.If = append(t.If, store.Cond{Key: k})
		t.Then = append(t.Then, store.Put(k, v))
	}
	// A fresh store has to elect itself before it takes a write.
	return retryNoQuorum(ctx, 15*time.Second, func() error {
		_, err := m.st.Txn(ctx, t)
		return err
	})
}

// dropNode takes another node, which is off and has no guests, out of the store's membership and deletes its records.
func (m *membership) dropNode(ctx context.Context, node string) error {
	if ids := m.files.of(node); len(ids) > 0 {
		return m.ownsGuests(node, ids)
	}
	if err := m.deleteRecords(ctx, node); err != nil {
		return writeError("remove "+node, err)
	}
	id, err := m.memberID(ctx, node)
	if err != nil || id == "" {
		return err
	}
	if err := m.st.RemoveMember(ctx, id); err != nil {
		return fmt.Errorf("%s is out of the cluster, but not yet out of the store's voters (run the command again): %w", node, err)
	}
	return nil
}

// deleteRecords deletes what says that node is a member, unless it changes meanwhile.
func (m *membership) deleteRecords(ctx context.Context, node string) error {
	var t store.Txn
	for _, key := range []string{model.NodePrefix + node, model.LivePrefix + node} {
		kv, err := m.st.Get(ctx, key, store.Linearizable)
		if errors.Is(err, store.ErrNotFound) {
			t.If = append(t.If, store.Cond{Key: key})
			continue
		}
		if err != nil {
			return err
		}
		t.If = append(t.If, store.Cond{Key: key, Revision: kv.ModRevision})
		t.Then = append(t.Then, store.Delete(key))
	}
	if len(t.Then) == 0 {
		return nil
	}
	_, err := m.st.Txn(ctx, t)
	return err
}

func (m *membership) memberID(ctx context.Context, node string) (string, error) {
	members, err := m.st.Members(ctx)
	if err != nil {
		return "", writeError("look up "+node, err)
	}
	for _, x := range members {
		if x.Name == node {
			return x.ID, nil
		}
	}
	return "", nil
}
