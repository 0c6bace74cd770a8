package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/etcd"
	"sauh.dev/sauh/internal/store/mem"
)

// testStore is a store in memory with a list of its keepers, and places for faults.
type testStore struct {
	*mem.Store

	mu        sync.Mutex
	members   []etcd.Member
	nextID    int
	noQuorum  bool
	addLost   bool                                   // AddLearner does it and answers addErr
	addErr    error                                  // AddLearner's answer
	beforeTxn func(store.Txn) error                  // sees each transaction first; its error is the answer
	watch     func(context.Context) chan store.Batch // takes the place of the next Watch
	promote   chan struct{}                          // closed: learners may vote
}

var _ memberStore = (*testStore)(nil)

func newTestStore(c *mem.Cluster) *testStore {
	return &testStore{
		Store: c.Open("n1"), members: []etcd.Member{{ID: "1", Name: "n1", PeerURLs: []string{"https://10.0.0.1:2380"}}},
		nextID: 2, promote: make(chan struct{}),
	}
}

func (s *testStore) Txn(ctx context.Context, t store.Txn) (int64, error) {
	s.mu.Lock()
	before := s.beforeTxn
	s.mu.Unlock()
	if before != nil {
		if err := before(t); err != nil {
			return 0, err
		}
	}
	return s.Store.Txn(ctx, t)
}

func (s *testStore) onTxn(f func(store.Txn) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beforeTxn = f
}

func (s *testStore) Watch(ctx context.Context, prefix string, from int64) <-chan store.Batch {
	s.mu.Lock()
	w := s.watch
	s.watch = nil
	s.mu.Unlock()
	if w != nil {
		return w(ctx)
	}
	return s.Store.Watch(ctx, prefix, from)
}

func (s *testStore) Quorate() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.noQuorum
}

func (s *testStore) setQuorum(ok bool) {
	s.SetQuorum(ok)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noQuorum = !ok
}

func (s *testStore) LeaderName() string                       { return "n1" }
func (s *testStore) TransferLeadership(context.Context) error { return nil }
func (s *testStore) Done() <-chan struct{}                    { return nil }
func (s *testStore) Err() error                               { return nil }
func (s *testStore) MemberID() string                         { return "1" }

func (s *testStore) Members(context.Context) ([]etcd.Member, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]etcd.Member(nil), s.members...), nil
}

func (s *testStore) AddLearner(_ context.Context, _ string, urls []string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.addErr != nil && !s.addLost {
		return "", s.addErr
	}
	id := strconv.Itoa(s.nextID)
	s.nextID++
	s.members = append(s.members, etcd.Member{ID: id, PeerURLs: urls, Learner: true})
	if s.addLost {
		return "", s.addErr
	}
	return id, nil
}

func (s *testStore) setAddErr(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addErr = err
}

func (s *testStore) Promote(ctx context.Context, id string) error {
	select {
	case <-s.promote:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.members {
		if s.members[i].ID == id {
			s.members[i].Learner = false
		}
	}
	return nil
}

func (s *testStore) RemoveMember(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.members {
		if s.members[i].ID == id {
			s.members = append(s.members[:i:i], s.members[i+1:]...)
			return nil
		}
	}
	return nil
}

// node is an agent that is a member of a cluster of its own, named n1, whose store is in memory.
type node struct {
	t       *testing.T
	a       *Agent
	m       *member
	st      *testStore
	cluster *mem.Cluster
	other   *mem.Store // another node's view of the same store
	paths   Paths
	closed  bool
	lease   *heldLease
}

// shortLease has renewals that a test can wait for.
func shortLease() lease.Params {
	return lease.Params{
		Lease: 4 * time.Second, Renew: 20 * time.Millisecond, Watchdog: 2 * time.Second,
		FreezeMargin: time.Second, InFlight: 100 * time.Millisecond, ClockErrorPPM: 1000,
	}
}

// newAgentAt makes an agent in a directory of its own, short enough for the paths of sockets.
func newAgentAt(t *testing.T) *Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "sauh")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := Paths{Config: filepath.Join(dir, "agent.json"), State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run"), CgroupRoot: filepath.Join(dir, "cg")}
	must(t, os.WriteFile(p.Config, []byte(`{"node":"n1","mgmt":"10.0.0.1","cluster":"10.0.1.1","bridge":"vmbr0"}`), 0o600))
	a, err := newAgent(t.Context(), Options{Paths: p, Lease: shortLease(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	must(t, err)
	a.host.version, a.host.accel = "10.0.2", qemu.Accel{Name: qemu.TCG}
	close(a.host.probed)
	t.Cleanup(func() { a.tasks.Stop(errors.New("the test ends")) })
	return a
}

func newNode(t *testing.T) *node {
	t.Helper()
	a := newAgentAt(t)
	c := mem.New()
	ca, err := certs.NewCA("test", time.Now())
	must(t, err)
	n := &node{t: t, a: a, st: newTestStore(c), cluster: c, other: c.Open("n2"), paths: a.opts.Paths}
	n.m = newTestMember(a, n.st, certs.Fingerprint(ca.Cert))
	n.lease = &heldLease{real: n.m.live}
	n.m.starter.lease, n.m.worker.lease = n.lease, n.lease
	t.Cleanup(n.close)
	must(t, n.m.membership.seed(t.Context(), n.m.cluster, model.Node{Name: "n1", ID: 1, Votes: 1, Mgmt: "10.0.0.1", Cluster: "10.0.1.1"}, ca))
	n.follows()
	return n
}

// follows lets the node see its store, and makes it a member.
func (n *node) follows() {
	n.m.wg.Go(func() { n.m.mirror.Run(n.m.ctx) })
	<-n.m.mirror.Loaded()
	n.a.current.Store(n.m)
}

func newTestMember(a *Agent, st memberStore, fingerprint string) *member {
	m := newMember(identity{name: "n1", cluster: model.Cluster{Name: "test", UUID: newUUID()}, caFingerprint: fingerprint}, a.log)
	m.wire(a, st, a.opts.Lease)
	return m
}

// close ends the membership, and is also called at the test's end.
func (n *node) close() {
	if !n.closed {
		n.closed = true
		n.a.tasks.Stop(errors.New("the test ends"))
		n.m.close()
		_ = n.other.Close()
	}
}

// put writes a key, whatever is in it, and waits until the mirror has it.
func (n *node) put(key, value string) int64 {
	n.t.Helper()
	rev := putKey(n.t, n.other, key, value)
	n.follow()
	return rev
}

func putKey(t *testing.T, st store.Store, key, value string) int64 {
	t.Helper()
	kv, err := st.Get(t.Context(), key, store.Linearizable)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	rev, err := st.Txn(t.Context(), store.Txn{If: []store.Cond{{Key: key, Revision: kv.ModRevision}}, Then: []store.Op{store.Put(key, []byte(value))}})
	must(t, err)
	return rev
}

func (n *node) delete(key string) {
	n.t.Helper()
	kv, err := n.other.Get(n.t.Context(), key, store.Linearizable)
	must(n.t, err)
	_, err = n.other.Txn(n.t.Context(), store.Txn{If: []store.Cond{{Key: key, Revision: kv.ModRevision}}, Then: []store.Op{store.Delete(key)}})
	must(n.t, err)
	n.follow()
}

// follow waits until the mirror shows the store as it is.
func (n *node) follow() {
	n.t.Helper()
	want := n.cluster.Revision()
	eventually(n.t, "the mirror follows", func() bool { return n.m.mirror.Snapshot().Revision() >= want })
}

// get returns a key's value, "" if there is none.
func (n *node) get(key string) string {
	n.t.Helper()
	kv, err := n.other.Get(n.t.Context(), key, store.Linearizable)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		n.t.Fatal(err)
	}
	return string(kv.Value)
}

// dump is everything that the store holds, and who keeps it.
type dump struct {
	Keys    map[string]string
	Members []etcd.Member
}

func (n *node) dump() dump {
	n.t.Helper()
	kvs, _, err := n.other.List(n.t.Context(), "", store.Linearizable)
	must(n.t, err)
	d := dump{Keys: map[string]string{}}
	for _, kv := range kvs {
		d.Keys[kv.Key] = string(kv.Value)
	}
	d.Members, err = n.st.Members(n.t.Context())
	must(n.t, err)
	return d
}

// storage makes the storage named over a directory of the test's and returns that.
func (n *node) storage(name, more string) (dir string) {
	n.t.Helper()
	dir = n.t.TempDir()
	n.put(storageCfgKey, n.get(storageCfgKey)+"dir: "+name+"\n\tpath "+dir+"\n\tcontent images\n"+more+"\n")
	return dir
}

// leased gives the node a lease of epoch that lasts for the test.
func (n *node) leased(epoch uint64) {
	*n.lease = heldLease{epoch: epoch, held: true, real: n.m.live}
}

// heldLease is the node's own lease until a test says otherwise.
type heldLease struct {
	real  leaseholder
	epoch uint64
	held  bool
}

// Valid implements leaseholder.
func (l *heldLease) Valid() (uint64, bool) {
	if l.held {
		return l.epoch, true
	}
	return l.real.Valid()
}

// runs makes the node believe that the guest runs here, until the function returned is called.
func (n *node) runs(id model.VMID) (ended func()) {
	n.m.procs.mu.Lock()
	n.m.procs.all[id] = newProc(&qemu.Process{}, false)
	n.m.procs.mu.Unlock()
	ended = func() {
		n.m.procs.mu.Lock()
		defer n.m.procs.mu.Unlock()
		delete(n.m.procs.all, id)
	}
	n.t.Cleanup(ended)
	return ended
}

// guardCall is a request to the guard.
type guardCall struct {
	Op         string       `json:"op"`
	Epoch      uint64       `json:"epoch"`
	DeadlineNS int64        `json:"deadline_ns"`
	Group      *lease.Group `json:"group"`
	Name       string       `json:"name"`
}

// fakeGuard speaks the guard's protocol, writes down what it is asked and protects nothing.
type fakeGuard struct {
	mu     sync.Mutex
	asked  []guardCall             // all but questions for the status
	answer func(c guardCall) error // nil: yes to everything
	status guard.Status
}

// startGuard serves the node's guard socket.
func (n *node) startGuard() *fakeGuard {
	n.t.Helper()
	g := &fakeGuard{}
	ln, err := net.Listen("unix", n.paths.guardSocket())
	must(n.t, err)
	var wg sync.WaitGroup
	n.t.Cleanup(func() { n.close(); ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer conn.Close(); g.serve(conn) })
		}
	})
	return g
}

func (g *fakeGuard) serve(conn net.Conn) {
	in, out := bufio.NewScanner(conn), json.NewEncoder(conn)
	for in.Scan() {
		var c guardCall
		if json.Unmarshal(in.Bytes(), &c) != nil {
			return
		}
		if out.Encode(g.handle(c)) != nil {
			return
		}
	}
}

func (g *fakeGuard) handle(c guardCall) any {
	type response struct {
		OK     bool          `json:"ok"`
		Error  string        `json:"error,omitempty"`
		Kind   string        `json:"kind,omitempty"`
		Status *guard.Status `json:"status,omitempty"`
	}
	g.mu.Lock()
	answer, status := g.answer, g.status
	if c.Op != "status" {
		g.asked = append(g.asked, c)
	}
	g.mu.Unlock()
	if answer != nil {
		if err := answer(c); err != nil {
			return response{Error: err.Error(), Kind: model.KindOf(err)}
		}
	}
	if c.Op == "status" {
		return response{OK: true, Status: &status}
	}
	return response{OK: true}
}

func (g *fakeGuard) answers(f func(guardCall) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer = f
}

// has says which groups are in the guard's status.
func (g *fakeGuard) has(groups ...lease.GroupStatus) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status.Groups = groups
}

func (g *fakeGuard) calls(ops ...string) []guardCall {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []guardCall
	for _, c := range g.asked {
		for _, op := range ops {
			if c.Op == op {
				out = append(out, c)
			}
		}
	}
	return out
}

// eventually polls something real.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused checks an error's kind and its sentence.
func refused(t *testing.T, err, kind error, sentence string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v is not of the kind %q", err, kind)
	}
	if err == nil || err.Error() != sentence {
		t.Errorf("the answer is\n%v\nwant\n%s", err, sentence)
	}
}

// tasksEnd waits for all tasks.
func (n *node) tasksEnd() {
	n.t.Helper()
	list, err := n.a.tasks.ListTasks(n.t.Context())
	must(n.t, err)
	for _, t := range list {
		_ = n.a.tasks.Wait(n.t.Context(), t.UPID) // whether it failed is not the question
	}
}

// lives keeps the node's record alive until the test's end.
func (n *node) lives() {
	ctx, cancel := context.WithCancel(n.m.ctx)
	var wg sync.WaitGroup
	wg.Go(func() { n.m.live.Run(ctx) })
	n.t.Cleanup(func() { cancel(); wg.Wait() })
}

func (n *node) live() model.Live {
	n.t.Helper()
	var l model.Live
	if v := n.get(model.LivePrefix + "n1"); v != "" {
		must(n.t, json.Unmarshal([]byte(v), &l))
	}
	return l
}

// fence cuts the node off, as another node's manager does, however often it renews meanwhile.
func (n *node) fence() model.Live {
	n.t.Helper()
	key := model.LivePrefix + "n1"
	for {
		kv, err := n.other.Get(n.t.Context(), key, store.Linearizable)
		must(n.t, err)
		var l model.Live
		must(n.t, json.Unmarshal(kv.Value, &l))
		cut := lease.Cut(l, "n2")
		_, err = n.other.Txn(n.t.Context(), store.Txn{If: []store.Cond{{Key: key, Revision: kv.ModRevision}}, Then: []store.Op{store.Put(key, mustJSON(cut))}})
		if !errors.Is(err, store.ErrConflict) {
			must(n.t, err)
			return cut
		}
	}
}

// must1 is for calls that return a value and an error: must1(f())(t).
func must1[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}
