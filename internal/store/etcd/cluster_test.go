package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// testCluster is members on loopback addresses of their own, with mutual TLS.
type testCluster struct {
	ca      certs.Pair
	net     string // "127.a.b"
	configs []Config
	servers []*Server
	lose    atomic.Int32
}

// newCluster makes the configurations of n members and starts none. Each member has two addresses.
func newCluster(t *testing.T, n int) *testCluster {
	t.Helper()
	ca, err := certs.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := &testCluster{ca: ca, net: fmt.Sprintf("127.%d.%d", 1+rand.IntN(250), 1+rand.IntN(250))}
	initial := map[string][]string{}
	for i := range n {
		cfg := c.config(t, i)
		initial[cfg.Name] = PeerURLs(cfg.Addresses, cfg.PeerPort)
		c.configs = append(c.configs, cfg)
	}
	for i := range c.configs {
		c.configs[i].Initial = initial
	}
	c.servers = make([]*Server, n)
	t.Cleanup(func() { c.close(t) })
	return c
}

// config is that of member number i, alone in its cluster.
func (c *testCluster) config(t *testing.T, i int) Config {
	t.Helper()
	name := fmt.Sprintf("n%d", i+1)
	addresses := []string{fmt.Sprintf("%s.%d", c.net, 10+i), fmt.Sprintf("%s.%d", c.net, 110+i)}
	dir := t.TempDir()
	cfg := Config{
		Name: name, DataDir: filepath.Join(dir, "etcd"), Addresses: addresses, Token: t.Name(),
		TLS:     writeCerts(t, c.ca, dir, name, addresses),
		Initial: map[string][]string{name: PeerURLs(addresses, 0)},
		Logger:  slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	return cfg
}

func writeCerts(t *testing.T, ca certs.Pair, dir, name string, addresses []string) TLSFiles {
	t.Helper()
	pair, err := ca.Issue(name, addresses, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := TLSFiles{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "node.pem"), Key: filepath.Join(dir, "node.key")}
	if err := sys.WriteFile(f.CA, certs.EncodeCert(ca.Cert)); err != nil {
		t.Fatal(err)
	}
	if err := pair.Save(f.Cert, f.Key); err != nil {
		t.Fatal(err)
	}
	return f
}

// start starts the members numbered, one after the other: new members that start at the same time ask each other
// what they know, and wait a second for each address that listens already and does not answer yet.
func (c *testCluster) start(t *testing.T, members ...int) {
	t.Helper()
	for _, i := range members {
		s, err := Start(t.Context(), c.configs[i])
		if err != nil {
			t.Fatalf("start %s: %v", c.configs[i].Name, err)
		}
		c.servers[i] = s
	}
}

// stop closes the members numbered, one after the other.
func (c *testCluster) stop(t *testing.T, members ...int) {
	t.Helper()
	for _, i := range members {
		if c.servers[i] == nil {
			continue
		}
		if err := c.servers[i].Close(); err != nil {
			t.Errorf("close %s: %v", c.configs[i].Name, err)
		}
		c.servers[i] = nil
	}
}

// close stops all members, the leader last: beside others that stop it would wait 7 s for one of them to follow it.
func (c *testCluster) close(t *testing.T) {
	var wg sync.WaitGroup
	var leader []int
	for i, s := range c.servers {
		if s != nil && s.Leader() == s.MemberID() {
			leader = append(leader, i)
			continue
		}
		wg.Go(func() { c.stop(t, i) })
	}
	wg.Wait()
	c.stop(t, leader...)
}

// losing puts the loss of answers in front of a server's commits.
func (c *testCluster) losing(s *Server) {
	s.commit = func(ctx context.Context, t etcdTxn) (*txnResponse, error) {
		resp, err := s.commitOnce(ctx, t)
		if err == nil && c.lose.Load() > 0 {
			c.lose.Add(-1)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return resp, err
	}
}

func (c *testCluster) Stores() []store.Store {
	var out []store.Store
	for _, s := range c.servers {
		out = append(out, s)
	}
	return out
}

func (c *testCluster) SetQuorum(t *testing.T, ok bool) {
	if ok {
		c.start(t, 1, 2)
		return
	}
	c.stop(t, 1, 2)
}

func (c *testCluster) LoseNextAnswers(n int) { c.lose.Store(int32(n)) }

func (c *testCluster) Compact(t *testing.T, revision int64) {
	t.Helper()
	if _, err := c.servers[0].client.Compact(t.Context(), revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatalf("compact: %v", err)
	}
}

// eventually polls until ok, which it must be within limit.
func eventually(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		timer := time.NewTimer(5 * time.Millisecond)
		<-timer.C
	}
}

// testWriter sends etcd's warnings to the test's log while the test runs.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Logf("%s", p)
	}
	return len(p), nil
}
