package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

const liveKey = model.LivePrefix + "n1"

// lives keeps the node's record alive until the function returned is called, at the latest until the test's end.
func (n *node) lives() (stop func()) {
	ctx, cancel := context.WithCancel(n.m.ctx)
	var wg sync.WaitGroup
	wg.Go(func() { n.m.live.run(ctx) })
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
	g := n.startGuard()
	before := sys.BootTime()
	n.lives()
	eventually(t, "the lease is valid", func() bool { _, ok := n.m.live.valid(); return ok })
	eventually(t, "it is renewed", func() bool { return len(g.calls("renew")) > 3 })
	last := time.Duration(0)
	for _, c := range g.calls("renew") {
		d := time.Duration(c.DeadlineNS)
		if d < before+shortLease().Lease || d > sys.BootTime()+shortLease().Lease || d <= last || c.Epoch != n.live().Epoch {
			t.Errorf("the guard was told epoch %d until %v, before that %v", c.Epoch, d, last)
		}
		last = d
	}
	select {
	case <-n.m.kicked:
	default:
		t.Error("the HA worker was not told that the lease is valid")
	}
	if l := n.live(); l.BootID != n.a.boot || l.Fenced || l.Seq == 0 {
		t.Errorf("the record is %+v", l)
	}
}

// A node whose guard does not answer could not keep the promise that its record makes.
func TestANodeWithoutAGuardDoesNotCountAsAlive(t *testing.T) {
	t.Run("none is there", func(t *testing.T) {
		n := newNode(t)
		if ev := n.m.live.writeGuarded(t.Context(), model.Live{BootID: "b"}, 0); ev != (lease.Unknown{}) {
			t.Errorf("the write is answered with %#v", ev)
		}
		if v := n.get(liveKey); v != "" {
			t.Errorf("the record was written: %s", v)
		}
	})
	t.Run("it hangs", func(t *testing.T) {
		n := newNode(t)
		ln, err := net.Listen("unix", n.paths.guardSocket()) // the kernel takes connections, nobody answers
		must(t, err)
		defer ln.Close()
		start := time.Now()
		if ev := n.m.live.writeGuarded(t.Context(), model.Live{BootID: "b"}, 0); ev != (lease.Unknown{}) {
			t.Errorf("the write is answered with %#v", ev)
		}
		if v, took := n.get(liveKey), time.Since(start); v != "" || took > 5*time.Second {
			t.Errorf("after %v the record is %q", took, v)
		}
	})
	t.Run("it stops answering", func(t *testing.T) {
		n := newNode(t)
		g := n.startGuard()
		n.lives()
		eventually(t, "the lease is valid", func() bool { _, ok := n.m.live.valid(); return ok })
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
	g := n.startGuard()
	g.answers(func(c guardCall) error {
		if c.Op == "renew" {
			return model.Errorf(model.ErrConflict, "epoch 0 is over")
		}
		return nil
	})
	n.lives()
	eventually(t, "the guard refused some renewals", func() bool { return len(g.calls("renew")) > 3 })
	if _, ok := n.m.live.valid(); ok {
		t.Error("the node believes in a lease that its guard does not know")
	}
	g.answers(nil)
	eventually(t, "the lease is valid once the guard took it", func() bool { _, ok := n.m.live.valid(); return ok })
}

func TestALeaseEndsAFreezeMarginEarly(t *testing.T) {
	n := newNode(t)
	l := n.m.live
	for _, c := range []struct {
		left time.Duration
		want bool
	}{{time.Hour, true}, {shortLease().FreezeMargin - time.Millisecond, false}, {-time.Second, false}} {
		l.mu.Lock()
		l.epoch, l.deadline = 7, sys.BootTime()+c.left
		l.mu.Unlock()
		if epoch, ok := l.valid(); ok != c.want || epoch != 7 {
			t.Errorf("%v before the deadline: epoch %d, valid %t", c.left, epoch, ok)
		}
	}
}

func TestAPausedRecordIsNotWrittenUntilItIsResumed(t *testing.T) {
	n := newNode(t)
	n.startGuard()
	n.m.live.pause()
	if ev := n.m.live.write(t.Context(), model.Live{BootID: "b"}, 0); ev != (lease.Unknown{}) || n.get(liveKey) != "" {
		t.Errorf("while paused: %#v, record %q", ev, n.get(liveKey))
	}
	n.m.live.resume()
	ev := n.m.live.write(t.Context(), model.Live{BootID: "b"}, 0)
	if c, ok := ev.(lease.Committed); !ok || c.Revision != n.cluster.Revision() {
		t.Errorf("after it: %#v", ev)
	}
	if ev := n.m.live.write(t.Context(), model.Live{BootID: "c"}, 0); ev != (lease.Conflict{}) {
		t.Errorf("another's record is written over: %#v", ev)
	}
	n.st.setQuorum(false)
	if ev := n.m.live.write(t.Context(), model.Live{BootID: "c"}, 5); ev != (lease.Unknown{}) {
		t.Errorf("without a quorum: %#v", ev)
	}
}

// No renewal may cross the transaction that takes the node out: pause waits for the one that is under way.
func TestPauseWaitsForAWriteThatIsUnderWay(t *testing.T) {
	n := newNode(t)
	inside, goOn := make(chan struct{}), make(chan struct{})
	n.st.onTxn(func(store.Txn) error { close(inside); <-goOn; return nil })
	var wg sync.WaitGroup
	wg.Go(func() { n.m.live.write(t.Context(), model.Live{BootID: "b"}, 0) })
	<-inside
	written := make(chan bool)
	wg.Go(func() { n.m.live.pause(); written <- n.get(liveKey) != "" })
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
		_, err = n.other.Txn(n.t.Context(), store.Txn{If: []store.Cond{{Key: liveKey, Revision: kv.ModRevision}}, Then: []store.Op{store.Put(liveKey, mustJSON(cut))}})
		if !errors.Is(err, store.ErrConflict) {
			must(n.t, err)
			return cut
		}
	}
}

func TestAFencedNodeRegistersAgainOnlyWhenItsGuestsAreDead(t *testing.T) {
	n := newNode(t)
	g := n.startGuard()
	n.lives()
	eventually(t, "the lease is valid", func() bool { _, ok := n.m.live.valid(); return ok })
	dead := make(chan struct{})
	g.answers(func(c guardCall) error {
		if c.Op == "fence" {
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
	if c := g.calls("fence")[0]; c.Epoch != cut.Epoch {
		t.Errorf("the guard kills what is older than epoch %d, want %d", c.Epoch, cut.Epoch)
	}
	if _, ok := n.m.live.valid(); ok {
		t.Error("a fenced node believes in its lease")
	}
	if diff := cmp.Diff(cut, n.live()); diff != "" {
		t.Errorf("the record changed while guests live:\n%s", diff)
	}
	close(dead)
	eventually(t, "the node lives again", func() bool { _, ok := n.m.live.valid(); return ok })
	if l := n.live(); l.Fenced || l.Epoch != cut.Epoch {
		t.Errorf("it registered as %+v", l)
	}
	if epoch, _ := n.m.live.valid(); epoch != cut.Epoch {
		t.Errorf("its lease is of epoch %d, want %d", epoch, cut.Epoch)
	}
}

func TestANodeWhoseRecordIsGoneKillsItsGuestsAndStaysAway(t *testing.T) {
	n := newNode(t)
	g := n.startGuard()
	n.lives()
	eventually(t, "the lease is valid", func() bool { _, ok := n.m.live.valid(); return ok })
	n.m.live.pause()
	n.delete(liveKey)
	n.m.live.resume()
	eventually(t, "the guard is told to kill", func() bool { return len(g.calls("fence")) > 0 })
	if c := g.calls("fence")[0]; c.Epoch <= 0 {
		t.Errorf("the guard kills what is older than epoch %d", c.Epoch)
	}
	if _, ok := n.m.live.valid(); ok || n.get(liveKey) != "" {
		t.Errorf("the node came back: %q", n.get(liveKey))
	}
}

func TestOtherNodesRenewalsAreNoted(t *testing.T) {
	n := newNode(t)
	slow := shortLease()
	slow.Renew = 300 * time.Millisecond // three of them are time enough for what follows
	n.m.live.mu.Lock()
	n.m.live.observer = lease.NewObserver(slow)
	n.m.live.mu.Unlock()
	if n.m.live.online("n2") {
		t.Error("a node that was never seen is online")
	}
	n.put(model.LivePrefix+"n2", `{"boot_id":"b","epoch":3,"seq":1}`)
	if !n.m.live.online("n2") {
		t.Error("a node whose renewal has just arrived is not online")
	}
	if v, silence := n.m.live.verdict("n2"); v.May || v.Live.Epoch != 3 || silence > time.Second {
		t.Errorf("its guests: %+v after %v", v, silence)
	}
	eventually(t, "three renewals are missed", func() bool { return !n.m.live.online("n2") })
	if s := n.m.live.haNode("n2"); s.State != "suspect" || s.Epoch != 3 {
		t.Errorf("a silent node is %+v", s)
	}
	n.put(model.LivePrefix+"n2", `{"boot_id":"b","epoch":4,"seq":1,"fenced":true,"by":"n3"}`)
	if v, _ := n.m.live.verdict("n2"); !v.May || n.m.live.haNode("n2").State != "fenced" {
		t.Errorf("a fenced node's guests: %+v", v)
	}
	n.put(model.LivePrefix+"n2", `{"boot_id":`)
	if v, _ := n.m.live.verdict("n2"); v.May {
		t.Errorf("a record that cannot be read: %+v", v)
	}
	n.put(model.LivePrefix+"n2", `{"boot_id":"b","epoch":4,"seq":2}`)
	n.delete(model.LivePrefix + "n2")
	if n.m.live.online("n2") {
		t.Error("a node whose record was deleted is online")
	}
}

// Groups of an earlier membership may live yet, and pills for it may lie on the storages.
func TestTheFirstEpochIsAboveEveryEarlierOne(t *testing.T) {
	for name, known := range map[string]uint64{"the guard knows none": 0, "the guard knows a later one": 1000} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			g := n.startGuard()
			g.mu.Lock()
			g.status.Epoch = known
			g.mu.Unlock()
			kv, _ := n.m.mirror.Snapshot().Get(model.NodePrefix + "n1")
			n.lives()
			eventually(t, "the node registered", func() bool { return n.get(liveKey) != "" })
			if got, want := n.live().Epoch, max(known+1, uint64(kv.CreateRevision)); got != want {
				t.Errorf("the first epoch is %d, want %d", got, want)
			}
		})
	}
}
