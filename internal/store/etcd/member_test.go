package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// join adds a member to a running cluster as the agent does.
func (c *testCluster) join(t *testing.T) *Server {
	t.Helper()
	cfg := c.config(t, len(c.configs))
	urls := PeerURLs(cfg.Addresses, cfg.PeerPort)
	first := c.servers[0]
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	id, err := first.AddLearner(ctx, cfg.Name, urls)
	if err != nil {
		t.Fatal(err)
	}
	again, err := first.AddLearner(ctx, cfg.Name, urls)
	if err != nil || again != id {
		t.Errorf("second AddLearner: %q, error %v; want %q", again, err, id)
	}
	members, err := first.Members(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Existing, cfg.Initial = true, InitialMembers(members, cfg.Name, urls)
	s, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.configs, c.servers = append(c.configs, cfg), append(c.servers, s)
	if s.MemberID() != id {
		t.Errorf("the new member has the id %s, want %s", s.MemberID(), id)
	}
	if err := first.Promote(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := first.Promote(ctx, id); err != nil {
		t.Errorf("second Promote: %v", err)
	}
	return s
}

func names(t *testing.T, s *Server) string {
	t.Helper()
	members, err := s.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range members {
		name := m.Name
		if m.Learner {
			name += " learner"
		}
		out = append(out, name)
	}
	return strings.Join(out, ", ")
}

func TestAClusterGrowsFromOneToThreeAndAMemberCanBeTakenOut(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.start(t, 0)
	eventually(t, "a leader", 5*time.Second, c.servers[0].Quorate)
	start := time.Now()
	for range 2 {
		s := c.join(t)
		t.Logf("%s joined %v after the beginning", s.name, time.Since(start).Round(time.Millisecond))
		eventually(t, "a write by the new member", 5*time.Second, func() bool {
			_, err := s.Txn(t.Context(), store.Txn{If: []store.Cond{{Key: "by/" + s.name}}, Then: []store.Op{store.Put("by/"+s.name, nil)}})
			return err == nil
		})
	}
	eventually(t, "three voters", 5*time.Second, func() bool { return names(t, c.servers[2]) == "n1, n2, n3" })
	if _, err := c.servers[0].AddLearner(t.Context(), "n2", []string{"https://127.0.0.9:2380"}); !errors.Is(err, model.ErrExists) {
		t.Errorf("AddLearner of a name that is taken: error %v, want ErrExists", err)
	}
	if _, err := c.servers[0].AddLearner(t.Context(), "n4", PeerURLs(c.configs[1].Addresses, 0)); !errors.Is(err, model.ErrExists) {
		t.Errorf("AddLearner of an address that is taken: error %v, want ErrExists", err)
	}

	watch := c.servers[2].Watch(t.Context(), "", 0)
	id := c.servers[2].MemberID()
	for range 2 { // twice is once
		if err := c.servers[0].RemoveMember(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-c.servers[2].Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the member that was removed does not stop")
	}
	if err := c.servers[2].Err(); !errors.Is(err, ErrRemoved) {
		t.Errorf("Err: %v, want ErrRemoved", err)
	}
	var end error
	for b := range watch {
		end = b.Err
	}
	if !errors.Is(end, store.ErrClosed) {
		t.Errorf("its watch ended with %v, want ErrClosed", end)
	}
	if _, err := c.servers[2].Get(t.Context(), "by/n2", store.Local); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Get on it: error %v, want ErrClosed", err)
	}
	eventually(t, "two voters", 5*time.Second, func() bool { return names(t, c.servers[0]) == "n1, n2" })
}

func TestAMemberKeepsItsDataAndIdentityOverARestart(t *testing.T) {
	c := newCluster(t, 1)
	c.start(t, 0)
	eventually(t, "a write", 5*time.Second, func() bool {
		_, err := c.servers[0].Txn(t.Context(), store.Txn{If: []store.Cond{{Key: "k"}}, Then: []store.Op{store.Put("k", []byte("v"))}})
		return err == nil
	})
	id := c.servers[0].MemberID()
	c.stop(t, 0)
	c.configs[0].Initial = nil // not needed any more
	c.start(t, 0)
	kv, err := c.servers[0].Get(t.Context(), "k", store.Local)
	if err != nil || string(kv.Value) != "v" || c.servers[0].MemberID() != id {
		t.Errorf("after the restart: value %q, error %v, member %s; want v and %s", kv.Value, err, c.servers[0].MemberID(), id)
	}
	// The slots that the earlier life wrote are in the way of no write.
	eventually(t, "a write after the restart", 5*time.Second, func() bool {
		_, err := c.servers[0].Txn(t.Context(), store.Txn{If: []store.Cond{{Key: "k2"}}, Then: []store.Op{store.Put("k2", nil)}})
		return err == nil
	})
	size := int64(0)
	err = filepath.WalkDir(c.configs[0].DataDir, func(_ string, d os.DirEntry, err error) error {
		if info, e := d.Info(); e == nil && !d.IsDir() {
			size += info.Size()
		}
		return err
	})
	t.Logf("a small member takes %d MiB of disk (error %v)", size>>20, err)
	if size > 64<<20 {
		t.Errorf("a small member takes %d MiB of disk, want at most 64", size>>20)
	}
}

func TestAMemberListensOnItsOwnAddressesOnlyAndWantsACertificateOfTheCA(t *testing.T) {
	c := newCluster(t, 1)
	c.start(t, 0)
	cfg := c.configs[0]
	if ls := len(c.servers[0].etcd.Clients); ls != 0 {
		t.Errorf("%d client listeners, want none", ls)
	}
	strangers, err := certs.NewCA("strangers", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := strangers.Issue("n9", cfg.Addresses, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	friend, err := c.ca.Issue("n9", cfg.Addresses, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		pair certs.Pair
		ok   bool
	}{"of the CA": {friend, true}, "of another CA": {stranger, false}} {
		for _, a := range cfg.Addresses {
			if ok := talks(t, a, certs.Client(tc.pair, c.ca.Cert, nil)); ok != tc.ok {
				t.Errorf("certificate %s at %s: accepted %v, want %v", name, a, ok, tc.ok)
			}
		}
	}
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", "2380"))
	if err == nil && strings.HasPrefix(conn.RemoteAddr().String(), c.net) {
		t.Error("the member listens on an address that it was not given")
	}
	if err == nil {
		_ = conn.Close()
	}
}

// talks reports whether the member at address answers an HTTP request.
func talks(t *testing.T, address string, cfg *tls.Config) bool {
	t.Helper()
	d := tls.Dialer{Config: cfg}
	conn, err := d.DialContext(t.Context(), "tcp", net.JoinHostPort(address, "2380"))
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("GET /version HTTP/1.0\r\n\r\n")); err != nil {
		return false
	}
	n, err := conn.Read(make([]byte, 16))
	return err == nil && n > 0
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	c := newCluster(t, 1)
	for name, change := range map[string]func(*Config){
		"no name":           func(c *Config) { c.Name = "" },
		"no directory":      func(c *Config) { c.DataDir = "" },
		"no address":        func(c *Config) { c.Addresses = nil },
		"not among initial": func(c *Config) { c.Initial = map[string][]string{"n9": {"https://127.0.0.1:2380"}} },
	} {
		cfg := c.configs[0]
		change(&cfg)
		if _, err := Start(t.Context(), cfg); !errors.Is(err, model.ErrInvalid) {
			t.Errorf("%s: error %v, want ErrInvalid", name, err)
		}
	}
}

func TestInitialMembersNamesThoseThatNeverStarted(t *testing.T) {
	got := InitialMembers([]Member{
		{ID: "1", Name: "n1", PeerURLs: []string{"https://a:1", "https://b:1"}},
		{ID: "2", PeerURLs: []string{"https://b:3", "https://a:3"}},
		{ID: "3", PeerURLs: []string{"https://a:2"}},
	}, "n3", []string{"https://a:3", "https://b:3"})
	want := map[string][]string{
		"n1": {"https://a:1", "https://b:1"}, "n3": {"https://a:3", "https://b:3"}, "member-3": {"https://a:2"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("InitialMembers (-want +got):\n%s", d)
	}
}

func TestALateDuplicateIsNotAppliedAgain(t *testing.T) {
	c := newCluster(t, 1)
	c.start(t, 0)
	s := c.servers[0]
	eventually(t, "a leader", 5*time.Second, s.Quorate)
	// Every attempt is sent once more, later, as a network does that delivers late.
	var sent []etcdTxn
	plain := s.commit
	s.commit = commitFunc(func(ctx context.Context, tx etcdTxn) (*txnResponse, error) {
		sent = append(sent, tx)
		return plain(ctx, tx)
	})
	key := "intent/100"
	create := store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, nil)}}
	revision, err := s.Txn(t.Context(), create)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Txn(t.Context(), store.Txn{If: []store.Cond{{Key: key, Revision: revision}}, Then: []store.Op{store.Delete(key)}}); err != nil {
		t.Fatal(err)
	}
	for _, tx := range slices.Clone(sent) {
		resp, err := s.commitOnce(t.Context(), tx)
		if err != nil || resp.Succeeded {
			t.Errorf("a duplicate was applied (error %v)", err)
		}
	}
	if _, err := s.Get(t.Context(), key, store.Linearizable); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get: error %v, want ErrNotFound: the duplicate brought the key back", err)
	}
}

func TestAnAttemptThatArrivesAfterItsCallerGaveUpCannotFollowTheNextTransactionOfItsSlot(t *testing.T) {
	c := newCluster(t, 1)
	c.start(t, 0)
	s := c.servers[0]
	eventually(t, "a leader", 5*time.Second, s.Quorate)
	s.slots = make(chan *slot, 1)
	s.slots <- &slot{key: model.AppliedPrefix + "n1/0"}
	put := func(key string) store.Txn {
		return store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, nil)}}
	}
	var late etcdTxn
	plain := s.commit
	s.commit = commitFunc(func(ctx context.Context, tx etcdTxn) (*txnResponse, error) {
		late = tx
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if _, err := s.Txn(t.Context(), put("a")); !errors.Is(err, store.ErrNoQuorum) {
		t.Fatalf("Txn: error %v, want ErrNoQuorum", err)
	}
	s.commit = plain
	if _, err := s.Txn(t.Context(), put("b")); err != nil {
		t.Fatal(err)
	}
	if resp, err := s.commitOnce(t.Context(), late); err != nil || resp.Succeeded {
		t.Errorf("the late attempt was applied (error %v)", err)
	}
}
