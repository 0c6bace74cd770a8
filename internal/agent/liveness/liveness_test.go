package liveness

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/mem"
	"sauh.dev/sauh/internal/sys"
)

const liveKey = model.LivePrefix + "n1"

// node is n1's liveness on a store in memory and with a guard that writes down what it is asked.
type node struct {
	t       *testing.T
	l       *Liveness
	g       *fakeGuard
	st      *hookedStore
	cluster *mem.Cluster
	other   *mem.Store // another node's view of the same store
	kicked  chan struct{}
	first   uint64
}

// hookedStore lets a test in before each transaction.
type hookedStore struct {
	*mem.Store
	mu     sync.Mutex
	before func() // guarded by mu
}

func (s *hookedStore) Txn(ctx context.Context, t store.Txn) (int64, error) {
	s.mu.Lock()
	before := s.before
	s.mu.Unlock()
	if before != nil {
		before()
	}
	return s.Store.Txn(ctx, t)
}

// guardCall is a request to the guard that changes something.
type guardCall struct {
	op       string
	epoch    uint64
	deadline time.Duration
	name     string
}

type fakeGuard struct {
	mu     sync.Mutex
	asked  []guardCall             // all but questions for the status
	answer func(c guardCall) error // nil: yes to everything
	status guard.Status
}

func (g *fakeGuard) call(c guardCall) error {
	g.mu.Lock()
	answer := g.answer
	if c.op != "status" {
		g.asked = append(g.asked, c)
	}
	g.mu.Unlock()
	if answer != nil {
		return answer(c)
	}
	return nil
}

func (g *fakeGuard) Renew(_ context.Context, epoch uint64, deadline time.Duration) error {
	return g.call(guardCall{op: "renew", epoch: epoch, deadline: deadline})
}

func (g *fakeGuard) Protect(_ context.Context, x lease.Group) error {
	return g.call(guardCall{op: "protect", name: x.Name})
}

func (g *fakeGuard) Unprotect(_ context.Context, name string) error {
	return g.call(guardCall{op: "unprotect", name: name})
}

func (g *fakeGuard) Fence(_ context.Context, epoch uint64) error {
	return g.call(guardCall{op: "fence", epoch: epoch})
}

func (g *fakeGuard) Status(context.Context) (guard.Status, error) {
	g.mu.Lock()
	s := g.status
	g.mu.Unlock()
	return s, g.call(guardCall{op: "status"})
}

func (g *fakeGuard) answers(f func(guardCall) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer = f
}

func (g *fakeGuard) has(groups ...lease.GroupStatus) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status.Groups = groups
}

func (g *fakeGuard) calls(op string) []guardCall {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []guardCall
	for _, c := range g.asked {
		if c.op == op {
			out = append(out, c)
		}
	}
	return out
}

// shortLease has renewals that a test can wait for.
func shortLease() lease.Params {
	return lease.Params{
		Lease: 4 * time.Second, Renew: 20 * time.Millisecond, Watchdog: 2 * time.Second,
		FreezeMargin: time.Second, InFlight: 100 * time.Millisecond, ClockErrorPPM: 1000,
	}
}

func newNode(t *testing.T) *node {
	t.Helper()
	c := mem.New()
	n := &node{t: t, g: &fakeGuard{}, st: &hookedStore{Store: c.Open("n1")}, cluster: c, other: c.Open("n2"), kicked: make(chan struct{}, 1)}
	t.Cleanup(func() { _ = n.st.Close(); _ = n.other.Close() })
	n.l = New(Config{
		Node: "n1", BootID: "boot", Params: shortLease(), Store: n.st, Guard: n.g, Clock: sys.BootTime,
		FirstEpoch: func() uint64 { return n.first }, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Changed: func() {
			select {
			case n.kicked <- struct{}{}:
			default:
			}
		},
	})
	return n
}

func (n *node) get(key string) string {
	n.t.Helper()
	kv, err := n.other.Get(n.t.Context(), key, store.Linearizable)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		n.t.Fatal(err)
	}
	return string(kv.Value)
}

func (n *node) delete(key string) {
	n.t.Helper()
	kv, err := n.other.Get(n.t.Context(), key, store.Linearizable)
	must(n.t, err)
	_, err = n.other.Txn(n.t.Context(), store.Txn{If: []store.Cond{{Key: key, Revision: kv.ModRevision}}, Then: []store.Op{store.Delete(key)}})
	must(n.t, err)
}

// seen shows the node a record of n2's, "" for its deletion.
func (n *node) seen(rev int64, value string) {
	n.l.Observe([]store.Event{{KV: store.KV{Key: model.LivePrefix + "n2", Value: []byte(value), ModRevision: rev}, Deleted: value == ""}})
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

// lives keeps the node's record alive until the function returned is called, at the latest until the test's end.
func (n *node) lives() (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(n.t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { n.l.Run(ctx) })
	stop = func() { cancel(); wg.Wait() }
	n.t.Cleanup(stop)
	return stop
}

func (n *node) live() model.Live {
	n.t.Helper()
	var l model.Live
	if v := n.get(liveKey); v != "" {
		must(n.t, json.Unmarshal([]byte(v), &l))
	}
	return l
}

func TestARenewalReachesTheGuardAndMakesTheLeaseValid(t *testing.T) {
	n := newNode(t)
	g := n.g
	before := sys.BootTime()
	n.lives()
	eventually(t, "the lease is valid", func() bool { _, ok := n.l.Valid(); return ok })
	eventually(t, "it is renewed", func() bool { return len(g.calls("renew")) > 3 })
	last := time.Duration(0)
	for _, c := range g.calls("renew") {
		d := c.deadline
		if d < before+shortLease().Lease || d > sys.BootTime()+shortLease().Lease || d <= last || c.epoch != n.live().Epoch {
			t.Errorf("the guard was told epoch %d until %v, before that %v", c.epoch, d, last)
		}
		last = d
	}
	select {
	case <-n.kicked:
	default:
		t.Error("the HA worker was not told that the lease is valid")
	}
	if l := n.live(); l.BootID != "boot" || l.Fenced || l.Seq == 0 {
		t.Errorf("the record is %+v", l)
	}
}

// A node whose guard does not answer could not keep the promise that its record makes.
func TestANodeWithoutAGuardDoesNotCountAsAlive(t *testing.T) {
	t.Run("none is there", func(t *testing.T) {
		n := newNode(t)
		n.l.Guard = guard.New(filepath.Join(t.TempDir(), "none"))
		if ev := n.l.writeGuarded(t.Context(), model.Live{BootID: "b"}, 0); ev != (lease.Unknown{}) {
			t.Errorf("the write is answered with %#v", ev)
		}
		if v := n.get(liveKey); v != "" {
			t.Errorf("the record was written: %s", v)
		}
	})
	t.Run("it hangs", func(t *testing.T) {
		n := newNode(t)
		socket := filepath.Join(t.TempDir(), "s")
		n.l.Guard = guard.New(socket)
		ln, err := net.Listen("unix", socket) // the kernel takes connections, nobody answers
		must(t, err)
		defer ln.Close()
		start := time.Now()
		if ev := n.l.writeGuarded(t.Context(), model.Live{BootID: "b"}, 0); ev != (lease.Unknown{}) {
			t.Errorf("the write is answered with %#v", ev)
		}
		if v, took := n.get(liveKey), time.Since(start); v != "" || took > 5*time.Second {
			t.Errorf("after %v the record is %q", took, v)
		}
	})
	t.Run("it stops answering", func(t *testing.T) {
		n := newNode(t)
		g := n.g
		n.lives()
		eventually(t, "the lease is valid", func() bool { _, ok := n.l.Valid(); return ok })
		silent := make(chan struct{}, 1)
		g.answers(func(guardCall) error {
			select {
			case silent <- struct{}{}:
			default:
			}
			return errors.New("the guard is in trouble")
		})
		<-silent
		<-silent // the write that may have been under way at the first is over
		rev := n.cluster.Revision()
		for range 5 {
			<-silent
		}
		if got := n.cluster.Revision(); got != rev {
			t.Error("the record was renewed all the same")
		}
		g.answers(nil)
		eventually(t, "the guard is back and so is the node", func() bool { return n.cluster.Revision() > rev })
	})
}

func TestALeaseThatTheGuardDidNotTakeIsNone(t *testing.T) {
	n := newNode(t)
	g := n.g
	g.answers(func(c guardCall) error {
		if c.op == "renew" {
			return model.Errorf(model.ErrConflict, "epoch 0 is over")
		}
		return nil
	})
	n.lives()
	eventually(t, "the guard refused some renewals", func() bool { return len(g.calls("renew")) > 3 })
	if _, ok := n.l.Valid(); ok {
		t.Error("the node believes in a lease that its guard does not know")
	}
	g.answers(nil)
	eventually(t, "the lease is valid once the guard took it", func() bool { _, ok := n.l.Valid(); return ok })
}

func TestALeaseEndsAFreezeMarginEarly(t *testing.T) {
	n := newNode(t)
	l := n.l
	for _, c := range []struct {
		left time.Duration
		want bool
	}{{time.Hour, true}, {shortLease().FreezeMargin - time.Millisecond, false}, {-time.Second, false}} {
		l.mu.Lock()
		l.epoch, l.deadline = 7, sys.BootTime()+c.left
		l.mu.Unlock()
		if epoch, ok := l.Valid(); ok != c.want || epoch != 7 {
			t.Errorf("%v before the deadline: epoch %d, valid %t", c.left, epoch, ok)
		}
	}
}

func TestAPausedRecordIsNotWrittenUntilItIsResumed(t *testing.T) {
	n := newNode(t)
	n.l.Pause()
	if ev := n.l.write(t.Context(), model.Live{BootID: "b"}, 0); ev != (lease.Unknown{}) || n.get(liveKey) != "" {
		t.Errorf("while paused: %#v, record %q", ev, n.get(liveKey))
	}
	n.l.Resume()
	ev := n.l.write(t.Context(), model.Live{BootID: "b"}, 0)
	if c, ok := ev.(lease.Committed); !ok || c.Revision != n.cluster.Revision() {
		t.Errorf("after it: %#v", ev)
	}
	if ev := n.l.write(t.Context(), model.Live{BootID: "c"}, 0); ev != (lease.Conflict{}) {
		t.Errorf("another's record is written over: %#v", ev)
	}
	n.st.SetQuorum(false)
	if ev := n.l.write(t.Context(), model.Live{BootID: "c"}, 5); ev != (lease.Unknown{}) {
		t.Errorf("without a quorum: %#v", ev)
	}
}

// No renewal may cross the transaction that takes the node out: pause waits for the one that is under way.
func TestPauseWaitsForAWriteThatIsUnderWay(t *testing.T) {
	n := newNode(t)
	inside, goOn := make(chan struct{}), make(chan struct{})
	n.st.before = func() { close(inside); <-goOn }
	var wg sync.WaitGroup
	wg.Go(func() { n.l.write(t.Context(), model.Live{BootID: "b"}, 0) })
	<-inside
	written := make(chan bool)
	wg.Go(func() { n.l.Pause(); written <- n.get(liveKey) != "" })
	close(goOn)
	if !<-written {
		t.Error("pause returned before the write was over")
	}
	wg.Wait()
}

// fence cuts the node off, as another node's manager does, however often it renews meanwhile.
func (n *node) fence() model.Live {
	n.t.Helper()
	for {
		kv, err := n.other.Get(n.t.Context(), liveKey, store.Linearizable)
		must(n.t, err)
		var l model.Live
		must(n.t, json.Unmarshal(kv.Value, &l))
		cut := lease.Cut(l, "n2")
		value, err := json.Marshal(cut)
		must(n.t, err)
		_, err = n.other.Txn(n.t.Context(), store.Txn{If: []store.Cond{{Key: liveKey, Revision: kv.ModRevision}}, Then: []store.Op{store.Put(liveKey, value)}})
		if !errors.Is(err, store.ErrConflict) {
			must(n.t, err)
			return cut
		}
	}
}

func TestAFencedNodeRegistersAgainOnlyWhenItsGuestsAreDead(t *testing.T) {
	n := newNode(t)
	g := n.g
	n.lives()
	eventually(t, "the lease is valid", func() bool { _, ok := n.l.Valid(); return ok })
	dead := make(chan struct{})
	g.answers(func(c guardCall) error {
		if c.op == "fence" {
			select {
			case <-dead:
			default:
				return errors.New("a guest does not die")
			}
		}
		return nil
	})
	cut := n.fence()
	eventually(t, "the guard is told to kill, again and again", func() bool { return len(g.calls("fence")) > 1 })
	if c := g.calls("fence")[0]; c.epoch != cut.Epoch {
		t.Errorf("the guard kills what is older than epoch %d, want %d", c.epoch, cut.Epoch)
	}
	if _, ok := n.l.Valid(); ok {
		t.Error("a fenced node believes in its lease")
	}
	if diff := cmp.Diff(cut, n.live()); diff != "" {
		t.Errorf("the record changed while guests live:\n%s", diff)
	}
	close(dead)
	eventually(t, "the node lives again", func() bool { _, ok := n.l.Valid(); return ok })
	if l := n.live(); l.Fenced || l.Epoch != cut.Epoch {
		t.Errorf("it registered as %+v", l)
	}
	if epoch, _ := n.l.Valid(); epoch != cut.Epoch {
		t.Errorf("its lease is of epoch %d, want %d", epoch, cut.Epoch)
	}
}

func TestANodeWhoseRecordIsGoneKillsItsGuestsAndStaysAway(t *testing.T) {
	n := newNode(t)
	g := n.g
	n.lives()
	eventually(t, "the lease is valid", func() bool { _, ok := n.l.Valid(); return ok })
	n.l.Pause()
	n.delete(liveKey)
	n.l.Resume()
	eventually(t, "the guard is told to kill", func() bool { return len(g.calls("fence")) > 0 })
	if c := g.calls("fence")[0]; c.epoch <= 0 {
		t.Errorf("the guard kills what is older than epoch %d", c.epoch)
	}
	if _, ok := n.l.Valid(); ok || n.get(liveKey) != "" {
		t.Errorf("the node came back: %q", n.get(liveKey))
	}
}

func TestOtherNodesRenewalsAreNoted(t *testing.T) {
	n := newNode(t)
	var now time.Duration
	n.l.Clock = func() time.Duration { return now }
	if n.l.Online("n2") {
		t.Error("a node that was never seen is online")
	}
	n.seen(1, `{"boot_id":"b","epoch":3,"seq":1}`)
	now += shortLease().Renew
	if !n.l.Online("n2") {
		t.Error("a node whose renewal has just arrived is not online")
	}
	if v, silence := n.l.Verdict("n2"); v.May || v.Live.Epoch != 3 || silence != shortLease().Renew {
		t.Errorf("its guests: %+v after %v", v, silence)
	}
	now += shortLease().SuspectAfter()
	if n.l.Online("n2") {
		t.Error("a node that missed three renewals is online")
	}
	n.seen(2, `{"boot_id":"b","epoch":4,"seq":1,"fenced":true,"by":"n3"}`)
	if v, _ := n.l.Verdict("n2"); !v.May || n.l.Online("n2") {
		t.Errorf("a fenced node's guests: %+v", v)
	}
	n.seen(3, `{"boot_id":`)
	if v, _ := n.l.Verdict("n2"); v.May {
		t.Errorf("a record that cannot be read: %+v", v)
	}
	n.seen(4, `{"boot_id":"b","epoch":4,"seq":2}`)
	n.seen(5, "")
	if n.l.Online("n2") {
		t.Error("a node whose record was deleted is online")
	}
}

// Groups of an earlier membership may live yet, and pills for it may lie on the storages.
func TestTheFirstEpochIsAboveEveryEarlierOne(t *testing.T) {
	for name, known := range map[string]uint64{"the guard knows none": 0, "the guard knows a later one": 1000} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			g := n.g
			g.mu.Lock()
			g.status.Epoch = known
			g.mu.Unlock()
			n.first = 5
			n.lives()
			eventually(t, "the node registered", func() bool { return n.get(liveKey) != "" })
			if got, want := n.live().Epoch, max(known+1, 5); got != want {
				t.Errorf("the first epoch is %d, want %d", got, want)
			}
		})
	}
}

// A status that was asked for before the guard took a group, and arrives after it, knows nothing of that group.
func TestAnAnswerThatCrossedAChangeSaysNothingOfTheGroups(t *testing.T) {
	n := newNode(t)
	n.g.has(lease.GroupStatus{Group: lease.Group{Name: "101"}, State: lease.Running}, lease.GroupStatus{Group: lease.Group{Name: "102"}, State: lease.Killing})
	must(t, n.l.Refresh(t.Context()))
	if diff := cmp.Diff(map[string]bool{"101": true, "102": false}, n.l.Guarded()); diff != "" {
		t.Error(diff)
	}
	<-n.kicked
	n.g.answers(func(c guardCall) error {
		if c.op == "status" {
			return n.l.Protect(t.Context(), lease.Group{Name: "100"})
		}
		return nil
	})
	must(t, n.l.Refresh(t.Context()))
	if diff := cmp.Diff(map[string]bool{"100": true, "101": true, "102": false}, n.l.Guarded()); diff != "" {
		t.Error(diff)
	}
	n.g.answers(nil)
	must(t, n.l.Unprotect(t.Context(), "101"))
	if diff := cmp.Diff(map[string]bool{"100": true, "102": false}, n.l.Guarded()); diff != "" {
		t.Error(diff)
	}
}

// Whoever shows or decides goes on with what the guard confirmed last.
func TestWhatTheGuardConfirmedStandsWhileItDoesNotAnswer(t *testing.T) {
	n := newNode(t)
	if _, err := n.l.Status(); err == nil {
		t.Error("a guard that was never asked has a status")
	}
	n.g.status = guard.Status{Epoch: 3, Leased: true, LeftMS: 5000}
	n.g.has(lease.GroupStatus{Group: lease.Group{Name: "100"}, State: lease.Frozen})
	must(t, n.l.Refresh(t.Context()))
	silent := errors.New("it hangs")
	n.g.answers(func(guardCall) error { return silent })
	if err := n.l.Refresh(t.Context()); !errors.Is(err, silent) {
		t.Error(err)
	}
	s, err := n.l.Status()
	if !errors.Is(err, silent) || s.Epoch != 3 || s.LeftMS > 5000 || !n.l.Guarded()["100"] {
		t.Errorf("%+v, %v, %v", s, err, n.l.Guarded())
	}
}

func TestANodeThatLeavesSaysSoAndHasNoLease(t *testing.T) {
	n := newNode(t)
	n.lives()
	eventually(t, "the lease is valid", func() bool { _, ok := n.l.Valid(); return ok })
	must(t, n.l.Leave(t.Context()))
	if live := n.live(); !live.Left || live.Fenced {
		t.Errorf("the record is %+v", live)
	}
	if _, ok := n.l.Valid(); ok {
		t.Error("a node that left has a lease")
	}
	rev := n.cluster.Revision()
	<-time.After(10 * shortLease().Renew)
	if n.cluster.Revision() != rev {
		t.Error("the record of a node that left is renewed")
	}
	must(t, n.l.Leave(t.Context())) // a second time is the same
	n.l.Return()
	eventually(t, "the node is back", func() bool { _, ok := n.l.Valid(); return ok })
	if live := n.live(); live.Left {
		t.Errorf("the record is %+v", live)
	}
}

func TestANodeThatCannotSayThatItLeftGivesUpWithItsCaller(t *testing.T) {
	n := newNode(t)
	n.lives()
	eventually(t, "the lease is valid", func() bool { _, ok := n.l.Valid(); return ok })
	n.st.SetQuorum(false)
	ctx, cancel := context.WithTimeout(t.Context(), 5*shortLease().Renew)
	defer cancel()
	if err := n.l.Leave(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	n.l.Return()
	n.st.SetQuorum(true)
	eventually(t, "it lives on", func() bool { _, ok := n.l.Valid(); return ok && !n.live().Left })
}

func TestACutIsNoSignOfLife(t *testing.T) {
	n := newNode(t)
	var now time.Duration
	n.l.Clock = func() time.Duration { return now }
	if _, ok := n.l.Renewed("n2"); ok {
		t.Error("a node that was never seen was heard of")
	}
	now = time.Second
	n.seen(1, `{"boot_id":"b","epoch":3,"seq":1}`)
	now = time.Minute
	n.seen(2, `{"boot_id":"b","epoch":4,"seq":1,"fenced":true,"by":"n3"}`)
	if at, ok := n.l.Renewed("n2"); !ok || at != time.Second {
		t.Errorf("it was heard of at %v, %v", at, ok)
	}
}
