package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/etcd"
)

// loopback returns an address on which nothing of this machine listens at etcd's port.
func loopback(t *testing.T) string {
	t.Helper()
	for range 20 {
		addr := fmt.Sprintf("127.%d.%d.%d", 64+rand.IntN(64), rand.IntN(256), 1+rand.IntN(250))
		ln, err := net.Listen("tcp", net.JoinHostPort(addr, fmt.Sprint(etcd.DefaultPeerPort)))
		if err == nil {
			must(t, ln.Close())
			return addr
		}
	}
	t.Skip("needs a free loopback address for etcd's port")
	return ""
}

// A join against the store of production: the learner is really there, and goes again with the join.
func TestAJoinAgainstARealStore(t *testing.T) {
	a := newAgentAt(t)
	p := a.opts.Paths
	self := model.Node{Name: "n1", ID: 1, Votes: 1, Mgmt: loopback(t), Cluster: loopback(t)}
	ca, err := certs.NewCA("test", time.Now())
	must(t, err)
	must(t, a.issueOwnCert(ca, self, time.Now()))
	st, err := etcd.Start(t.Context(), etcd.Config{
		Name: "n1", DataDir: filepath.Join(p.State, "etcd"), Addresses: []string{self.Cluster, self.Mgmt}, Token: "test",
		TLS: etcd.TLSFiles{CA: p.caCert(), Cert: p.nodeCert(), Key: p.nodeKey()}, Initial: map[string][]string{"n1": peerURLs(self)},
		Logger: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	m := newTestMember(a, st, certs.Fingerprint(ca.Cert))
	n := &node{t: t, a: a, m: m, paths: p}
	t.Cleanup(func() {
		if !n.closed {
			m.close()
		}
	})
	must(t, m.membership.seed(t.Context(), m.cluster, self, ca))
	n.follows()
	if rec, err := mirror.Read[model.Node](t.Context(), st, model.NodePrefix+"n1"); err != nil || rec.Value.MemberID != st.MemberID() {
		t.Errorf("the first record is %+v: %v", rec.Value, err)
	}
	if err := m.membership.seed(t.Context(), m.cluster, self, ca); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a cluster is made twice: %v", err)
	}

	now := time.Now()
	r := n.request(2, now)
	r.Node.Mgmt, r.Node.Cluster = loopback(t), loopback(t)
	reply, err := m.membership.admit(t.Context(), r, now)
	must(t, err)
	want := map[string][]string{"n1": peerURLs(self), "n2": peerURLs(reply.Node)}
	slices.Sort(want["n1"]) // as the store lists them
	slices.Sort(reply.Initial["n1"])
	if diff := cmp.Diff(want, reply.Initial); diff != "" {
		t.Error(diff)
	}
	members, err := st.Members(t.Context())
	must(t, err)
	if len(members) != 2 || !members[0].Learner {
		t.Errorf("the store's members are %+v", members)
	}

	m.cancel() // what the agent's end does to a join that is under way
	eventually(t, "the join is taken back", func() bool {
		members, err := st.Members(t.Context())
		_, gone := st.Get(t.Context(), model.NodePrefix+"n2", store.Linearizable)
		return err == nil && len(members) == 1 && errors.Is(gone, store.ErrNotFound)
	})
	n.closed = true
	m.close()
	if _, err := st.Get(t.Context(), model.ClusterKey, store.Linearizable); !errors.Is(err, store.ErrClosed) {
		t.Errorf("the store goes on after the member's end: %v", err)
	}
}
