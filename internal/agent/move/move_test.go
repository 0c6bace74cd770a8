package move

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp/qmptest"
	"sauh.dev/sauh/internal/store"
)

// in runs f in a world of its own, in a bubble where time costs nothing.
func in(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(b *testing.T) {
		failed := t.Failed()
		w := newWorld(b)
		defer w.close()
		time.Sleep(100 * time.Millisecond) // the agents' first looks are over, the next are not due
		f(w)
		if t.Failed() && !failed {
			t.Log(w.story())
		}
	})
}

func TestARunningGuestMoves(t *testing.T) {
	in(t, func(w *world) {
		w.migrate(w.ctx)
		if err := <-w.result; err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		if err := w.verify(false); err != nil {
			t.Error(err)
		}
		if got := w.room.Running(); !slices.Equal(got, []string{nodeB}) {
			t.Errorf("runs on %q", got)
		}
		kv, err := w.judge.Get(w.ctx, model.ProtectedPrefix+guest.String(), store.Local)
		if err != nil || string(kv.Value) != `{"node":"n2"}` {
			t.Errorf("protected is %s, %v", kv.Value, err)
		}
	})
}

func TestAPausedGuestArrivesPaused(t *testing.T) {
	in(t, func(w *world) {
		q, err := w.nodes[nodeA].life().hold(w.ctx, w.nodes[nodeA].process())
		if err != nil {
			t.Fatal(err)
		}
		if err := q.QMP().Execute(w.ctx, "stop", nil, nil); err != nil {
			t.Fatal(err)
		}
		w.migrate(w.ctx)
		if err := <-w.result; err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		if got := w.nodes[nodeB].process().Status(); got != "paused" {
			t.Errorf("the target's guest is %q", got)
		}
		if v := w.room.Violations(); len(v) > 0 {
			t.Error(v)
		}
	})
}

func TestTheTargetContinuesOnlyAfterItIsTheOwner(t *testing.T) {
	in(t, func(w *world) {
		w.migrate(w.ctx)
		<-w.result
		synctest.Wait() // the source ends when the file has moved; the target continues then
		w.mu.Lock()
		defer w.mu.Unlock()
		at := func(p string) int { return slices.Index(w.points, p+" #1") }
		if at("n1 received") > at("n2 txn") || at("n2 txn answer") > at("n2 command cont") || at("n2 command cont") < 0 {
			t.Errorf("order of events: %q", w.points)
		}
		if at("n1 command cont") >= 0 {
			t.Error("the source was told to continue")
		}
	})
}

// fault is something that goes wrong, and how the world gets over it.
type fault struct {
	name    string
	strike  func(w *world, cancel context.CancelFunc)
	reboots bool // it costs the guest its memory
}

func later(w *world, d time.Duration, f func()) {
	w.wg.Add(1)
	go func() {
		defer w.wg.Done()
		if sleep(w.ctx, d) == nil {
			f()
		}
	}()
}

func killAgent(name string) func(*world, context.CancelFunc) {
	return func(w *world, _ context.CancelFunc) {
		m := w.nodes[name]
		m.life().kill()
		later(w, 2*time.Second, m.startAgent)
	}
}

func killQEMU(name string) func(*world, context.CancelFunc) {
	return func(w *world, _ context.CancelFunc) {
		if p := w.nodes[name].process(); p != nil {
			p.Die()
		}
	}
}

func powerOff(name string) func(*world, context.CancelFunc) {
	return func(w *world, _ context.CancelFunc) {
		m := w.nodes[name]
		w.mu.Lock()
		a := m.agent
		m.off, m.silent = true, time.Now()
		w.mu.Unlock()
		a.kill()
		if p := m.process(); p != nil {
			p.Die()
		}
		m.store.SetQuorum(false)
	}
}

// cutNetwork parts the two nodes, not the store, for a while.
func cutNetwork(w *world, _ context.CancelFunc) {
	set := func(cut bool) {
		w.room.Cut(cut)
		w.mu.Lock()
		w.rpcCut = cut
		w.mu.Unlock()
	}
	set(true)
	later(w, 20*time.Second, func() { set(false) })
}

func loseQuorum(names ...string) func(*world, context.CancelFunc) {
	return func(w *world, _ context.CancelFunc) {
		for _, n := range names {
			w.nodes[n].store.SetQuorum(false)
		}
		later(w, 8*time.Second, func() {
			for _, n := range names {
				w.nodes[n].store.SetQuorum(true)
			}
		})
	}
}

// isolate cuts a node off from everything until it is fenced: its guard ends its
// guests at the deadline, and half a minute later it is back.
func isolate(name string) func(*world, context.CancelFunc) {
	return func(w *world, _ context.CancelFunc) {
		m := w.nodes[name]
		m.store.SetQuorum(false)
		w.room.Cut(true)
		w.mu.Lock()
		w.rpcCut = true
		m.silent = time.Now()
		w.mu.Unlock()
		later(w, 9*time.Second, func() {
			if p := m.process(); p != nil {
				p.Die()
			}
		})
		later(w, 30*time.Second, func() {
			m.store.SetQuorum(true)
			w.room.Cut(false)
			w.mu.Lock()
			w.rpcCut = false
			m.silent = time.Time{}
			w.mu.Unlock()
		})
	}
}

func loseAnswers(name string) func(*world, context.CancelFunc) {
	return func(w *world, _ context.CancelFunc) { w.nodes[name].store.LoseNextAnswers(2) }
}

func faults() []fault {
	return []fault{
		{"the source's agent dies", killAgent(nodeA), false},
		{"the target's agent dies", killAgent(nodeB), false},
		{"both agents die", func(w *world, c context.CancelFunc) { killAgent(nodeA)(w, c); killAgent(nodeB)(w, c) }, false},
		{"the source's QEMU dies", killQEMU(nodeA), true},
		{"the target's QEMU dies", killQEMU(nodeB), true},
		{"the source node loses power", powerOff(nodeA), true},
		{"the target node loses power", powerOff(nodeB), true},
		{"the source node is isolated", isolate(nodeA), true},
		{"the target node is isolated", isolate(nodeB), true},
		{"the network between the nodes is cut", cutNetwork, false},
		{"the source has no quorum", loseQuorum(nodeA), false},
		{"the target has no quorum", loseQuorum(nodeB), false},
		{"nobody has a quorum", loseQuorum(nodeA, nodeB), false},
		{"answers to the source are lost", loseAnswers(nodeA), false},
		{"answers to the target are lost", loseAnswers(nodeB), false},
		{"the user cancels", func(_ *world, cancel context.CancelFunc) { cancel() }, false},
	}
}

// paces are the orders in which the two sides can notice completion.
func paces() map[string]qmptest.Pace {
	p := qmptest.Pace{Round: 20 * time.Millisecond, Rounds: 3, Switch: 5 * time.Millisecond, Load: 3 * time.Millisecond, Slack: 2 * time.Millisecond}
	q := p
	q.Slack = -20 * time.Millisecond
	return map[string]qmptest.Pace{"target first": p, "source first": q}
}

// journey lists the points of an undisturbed migration.
func journey(t *testing.T, pace qmptest.Pace) (points []string) {
	t.Helper()
	in(t, func(w *world) {
		w.room.SetPace(pace)
		w.migrate(w.ctx)
		<-w.result
		time.Sleep(2 * time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		seen := map[string]bool{}
		for _, p := range w.points {
			// The looks at QEMU's counters are many and alike: two of each are enough.
			if strings.Contains(p, "query-migrate") && !strings.HasSuffix(p, "#1") && !strings.HasSuffix(p, "#2") {
				continue
			}
			if !seen[p] {
				seen[p] = true
				points = append(points, p)
			}
		}
	})
	return points
}

// Every fault at every point of the protocol: each command, its answer, each
// transaction before and after, each call to the target, each step of QEMU. At no instant may two
// guests run, and in the end exactly one does, where its file is, with nothing left over.
func TestAGuestRunsExactlyOnceWhateverFailsWherever(t *testing.T) {
	for order, pace := range paces() {
		points := journey(t, pace)
		if len(points) < 25 {
			t.Fatalf("only %d points: %q", len(points), points)
		}
		for _, f := range faults() {
			t.Run(order+"/"+f.name, func(t *testing.T) {
				struck, tried := 0, 0
				for i := 0; i < len(points); i += everyPoint {
					tried++
					if suffer(t, pace, f, points[i]) {
						struck++
					}
				}
				t.Logf("struck at %d of %d points", struck, tried)
				if struck < tried*8/10 {
					t.Errorf("the fault struck at %d of %d points only", struck, tried)
				}
			})
		}
	}
}

func suffer(t *testing.T, pace qmptest.Pace, f fault, point string) (struck bool) {
	t.Helper()
	in(t, func(w *world) {
		w.room.SetPace(pace)
		ctx, cancel := context.WithCancel(w.ctx)
		defer cancel()
		w.strikeAt(point, func() { f.strike(w, cancel) })
		w.migrate(ctx)
		time.Sleep(60 * time.Second)
		select {
		case err := <-w.result:
			w.mu.Lock()
			struck = w.struck
			w.mu.Unlock()
			if err == nil && !slices.Equal(w.room.Running(), []string{nodeB}) && !f.reboots {
				t.Errorf("%s at %q: success was told, and the guest runs on %q", f.name, point, w.room.Running())
			}
		default:
			t.Errorf("%s at %q: the migration did not end", f.name, point)
		}
		if err := w.verify(f.reboots); err != nil {
			t.Errorf("%s at %q: %v", f.name, point, err)
		}
	})
	return struck
}

func TestACancelIsToldToTheCaller(t *testing.T) {
	in(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.ctx)
		w.strikeAt("n1 migrating #1", cancel)
		w.migrate(ctx)
		err := <-w.result
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the guest stays on this node") {
			t.Errorf("got %v", err)
		}
		if got := w.room.Running(); !slices.Equal(got, []string{nodeA}) {
			t.Errorf("runs on %q", got)
		}
	})
}

// The guest's file comes back to a node that still has the memory of before: it must not run again.

func TestASourceDoesNotRunMemoryThatTheTargetOutran(t *testing.T) {
	in(t, func(w *world) {
		w.strikeAt("n2 txn answer #1", func() {
			m := w.nodes[nodeA]
			m.life().kill()
			later(w, 3*time.Second, func() { powerOff(nodeB)(w, nil) })
			later(w, 20*time.Second, m.startAgent)
		})
		w.migrate(w.ctx)
		time.Sleep(time.Minute)
		if err := w.verify(true); err != nil {
			t.Error(err)
		}
		if got := w.room.Running(); !slices.Equal(got, []string{nodeA}) || w.booted() != 2 {
			t.Errorf("runs on %q after %d boots", got, w.booted())
		}
	})
}

func TestATargetDoesNotRunMemoryThatTheSourceOutran(t *testing.T) {
	for name, strike := range map[string]func(w *world){
		"without a quorum": func(w *world) {
			w.nodes[nodeB].store.SetQuorum(false)
			later(w, 40*time.Second, func() { w.nodes[nodeB].store.SetQuorum(true) })
		},
		"without its agent": func(w *world) {
			w.nodes[nodeB].life().kill()
			later(w, 40*time.Second, w.nodes[nodeB].startAgent)
		},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(w *world) {
				w.strikeAt("n1 received #1", func() {
					strike(w)
					later(w, 10*time.Second, func() { powerOff(nodeA)(w, nil) })
				})
				w.migrate(w.ctx)
				time.Sleep(time.Minute)
				if err := w.verify(true); err != nil {
					t.Error(err)
				}
				if got := w.room.Running(); !slices.Equal(got, []string{nodeB}) || w.booted() != 2 {
					t.Errorf("runs on %q after %d boots", got, w.booted())
				}
			})
		})
	}
}

func TestAGuestThatDoesNotConvergeGetsALongerPause(t *testing.T) {
	in(t, func(w *world) {
		w.room.SetPace(qmptest.Pace{Round: 200 * time.Millisecond, Rounds: 3, Downtime: 350 * time.Millisecond})
		w.migrate(w.ctx)
		if err := <-w.result; err != nil {
			t.Error(err)
		}
		if !w.said("allowing a pause of 400 ms") {
			t.Errorf("log: %q", w.lines)
		}
	})
}

func TestAGuestThatNeverConvergesStays(t *testing.T) {
	in(t, func(w *world) {
		w.room.SetPace(qmptest.Pace{Round: 200 * time.Millisecond, Rounds: 3, Downtime: time.Minute})
		w.migrate(w.ctx)
		err := <-w.result
		if err == nil || !strings.Contains(err.Error(), "could not be copied within 10m0s") {
			t.Errorf("got %v", err)
		}
		time.Sleep(3 * time.Second)
		if err := w.verify(false); err != nil {
			t.Error(err)
		}
		if got := w.room.Running(); !slices.Equal(got, []string{nodeA}) {
			t.Errorf("runs on %q", got)
		}
	})
}

func TestWithoutAQuorumAMigrationIsRefusedWithinASecond(t *testing.T) {
	in(t, func(w *world) {
		w.nodes[nodeA].store.SetQuorum(false)
		began := time.Now()
		w.migrate(w.ctx)
		err := <-w.result
		if !errors.Is(err, store.ErrNoQuorum) || time.Since(began) > time.Second {
			t.Errorf("got %v after %s", err, time.Since(began))
		}
	})
}

func TestAGuestIsMovedByOneTaskAtATime(t *testing.T) {
	in(t, func(w *world) {
		a := w.nodes[nodeA].life()
		w.migrate(w.ctx)
		time.Sleep(30 * time.Millisecond)
		err := Source(w.ctx, SourceDeps{Deps: a.deps(), Peer: peer{w}}, Request{VMID: guest, Target: nodeB, Task: "UPID:2"})
		if !errors.Is(err, model.ErrBusy) {
			t.Errorf("a second migration: %v", err)
		}
		if err := <-w.result; err != nil {
			t.Error(err)
		}
	})
}

// A transaction that compares with revision 0 asks for a missing intent: that must never be the one that moves the guest.
func TestACommitterWithoutAnIntentTakesNothing(t *testing.T) {
	in(t, func(w *world) {
		c := committer{TargetDeps: w.nodes[nodeB].life().targetDeps(), id: guest, note: Note{Task: "UPID:1"}}
		if err := c.load(w.ctx); !errors.Is(err, store.ErrConflict) {
			t.Errorf("load: %v", err)
		}
		c.conf, _ = w.judge.Get(w.ctx, model.GuestConfigKey(nodeA, guest), store.Linearizable)
		c.protect, _ = w.judge.Get(w.ctx, model.ProtectedPrefix+guest.String(), store.Linearizable)
		c.intentKV.Key, c.intent.TargetEpoch = intentKey(guest), 1
		if err := c.try(w.ctx, store.Linearizable); !errors.Is(err, store.ErrConflict) {
			t.Errorf("try: %v", err)
		}
		if err := w.verify(false); err != nil {
			t.Error(err)
		}
	})
}

func TestATargetThatWasFencedTakesNothing(t *testing.T) {
	in(t, func(w *world) {
		d := w.nodes[nodeA].life().deps()
		_, rev, _, err := d.writeIntent(w.ctx, Request{VMID: guest, Target: nodeB, Task: "UPID:1"})
		if err != nil {
			t.Fatal(err)
		}
		n := Note{Role: migrate.RoleTarget, Task: "UPID:1", IntentRevision: rev}
		c := committer{TargetDeps: w.nodes[nodeB].life().targetDeps(), id: guest, note: n}
		if err := c.load(w.ctx); err != nil {
			t.Fatal(err)
		}
		_, live, err := c.epoch(w.ctx, nodeB, store.Linearizable)
		if err != nil {
			t.Fatal(err)
		}
		late, err := c.txn(live)
		if err != nil {
			t.Fatal(err)
		}
		w.put(model.LivePrefix+nodeB, model.Live{Epoch: 2, Fenced: true})
		if err := c.try(w.ctx, store.Linearizable); !errors.Is(err, errFenced) {
			t.Errorf("fenced: %v", err)
		}
		w.put(model.LivePrefix+nodeB, model.Live{Epoch: 2})
		if err := c.try(w.ctx, store.Linearizable); !errors.Is(err, errFenced) {
			t.Errorf("fenced and back: %v", err)
		}
		if _, err := c.Store.Txn(w.ctx, late); !errors.Is(err, store.ErrConflict) {
			t.Errorf("fenced between the look and the transaction: %v", err)
		}
		w.put(model.LivePrefix+nodeB, model.Live{Epoch: 1})
		c.Ready = func(context.Context, model.VMID) error { return errDead }
		if err := c.try(w.ctx, store.Linearizable); !errors.Is(err, errDead) {
			t.Errorf("without a lease: %v", err)
		}
		if err := d.release(w.ctx, guest, rev); err != nil {
			t.Error(err)
		}
	})
}

func TestAGuestThatBecomesProtectedUnderWayIsProtectedBeforeItMoves(t *testing.T) {
	in(t, func(w *world) {
		d := w.nodes[nodeA].life().deps()
		_, rev, _, err := d.writeIntent(w.ctx, Request{VMID: guest, Target: nodeB, Task: "UPID:1"})
		if err != nil {
			t.Fatal(err)
		}
		protected := 0
		deps := w.nodes[nodeB].life().targetDeps()
		deps.Protect = func(context.Context, model.VMID) error { protected++; return nil }
		c := committer{TargetDeps: deps, id: guest, note: Note{Task: "UPID:1", IntentRevision: rev}}
		if err := c.once(w.ctx); err != nil || protected != 1 {
			t.Errorf("protected %d times, %v", protected, err)
		}
		kv, err := w.judge.Get(w.ctx, model.ProtectedPrefix+guest.String(), store.Local)
		if err != nil || string(kv.Value) != `{"node":"n2"}` {
			t.Errorf("protected is %s, %v", kv.Value, err)
		}
	})
}

func TestNotesAreFiles(t *testing.T) {
	d := DirNotes{Dir: t.TempDir()}
	if _, err := d.Load(guest); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("before: %v", err)
	}
	want := Note{Role: migrate.RoleTarget, Task: "UPID:1", IntentRevision: 7, WasRunning: true}
	for range 2 {
		if err := d.Save(guest, want); err != nil {
			t.Error(err)
		}
	}
	got, err := d.Load(guest)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for range 2 {
		if err := d.Remove(guest); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.Load(guest); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("after: %v", err)
	}
}
