package move

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp/qmptest"
	"sauh.dev/sauh/internal/store"
)

// in runs f in a world of its own, in a bubble where time costs nothing.
func in(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		f(w)
		if t.Failed() {
			t.Log(w.story())
		}
	})
}

func TestARunningGuestMoves(t *testing.T) {
	in(t, func(w *world) {
		w.migrate(t.Context())
		if err := <-w.result; err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		if err := w.verify(false); err != nil {
			t.Error(err)
		}
		if got := w.room.Running(); !slices.Equal(got, []string{target}) {
			t.Errorf("runs on %q", got)
		}
		kv, err := w.judge.Get(t.Context(), model.ProtectedPrefix+guest.String(), store.Local)
		if err != nil || string(kv.Value) != `{"node":"n2"}` {
			t.Errorf("protected is %s, %v", kv.Value, err)
		}
	})
}

func TestAPausedGuestArrivesPaused(t *testing.T) {
	in(t, func(w *world) {
		q, err := w.nodes[source].agent.hold(t.Context(), w.nodes[source].process())
		if err != nil {
			t.Fatal(err)
		}
		if err := q.QMP().Execute(t.Context(), "stop", nil, nil); err != nil {
			t.Fatal(err)
		}
		w.migrate(t.Context())
		if err := <-w.result; err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		if got := w.nodes[target].process().Status(); got != "paused" {
			t.Errorf("the target's guest is %q", got)
		}
		if v := w.room.Violations(); len(v) > 0 {
			t.Error(v)
		}
	})
}

func TestTheTargetContinuesOnlyAfterItIsTheOwner(t *testing.T) {
	in(t, func(w *world) {
		w.migrate(t.Context())
		<-w.result
		w.mu.Lock()
		defer w.mu.Unlock()
		at := func(p string) int { return slices.Index(w.points, p+" #1") }
		if at("n2 target completed") > at("n2 txn") || at("n2 txn answer") > at("n2 command cont") || at("n2 command cont") < 0 {
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
		w.mu.Lock()
		a := m.agent
		w.mu.Unlock()
		a.kill()
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
		{"the source's agent dies", killAgent(source), false},
		{"the target's agent dies", killAgent(target), false},
		{"both agents die", func(w *world, c context.CancelFunc) { killAgent(source)(w, c); killAgent(target)(w, c) }, false},
		{"the source's QEMU dies", killQEMU(source), true},
		{"the target's QEMU dies", killQEMU(target), true},
		{"the source node loses power", powerOff(source), true},
		{"the target node loses power", powerOff(target), true},
		{"the source node is isolated", isolate(source), true},
		{"the target node is isolated", isolate(target), true},
		{"the network between the nodes is cut", cutNetwork, false},
		{"the source has no quorum", loseQuorum(source), false},
		{"the target has no quorum", loseQuorum(target), false},
		{"nobody has a quorum", loseQuorum(source, target), false},
		{"answers to the source are lost", loseAnswers(source), false},
		{"answers to the target are lost", loseAnswers(target), false},
		{"the user cancels", func(_ *world, cancel context.CancelFunc) { cancel() }, false},
	}
}

// paces are the orders in which the two sides can notice completion.
func paces() map[string]qmptest.Pace {
	p := qmptest.Pace{Round: 20 * time.Millisecond, Rounds: 3, Switch: 5 * time.Millisecond, Slack: 2 * time.Millisecond}
	q := p
	q.Slack = -20 * time.Millisecond
	return map[string]qmptest.Pace{"target first": p, "source first": q}
}

// journey lists the points of an undisturbed migration.
func journey(t *testing.T, pace qmptest.Pace) (points []string) {
	t.Helper()
	in(t, func(w *world) {
		w.room.SetPace(pace)
		w.migrate(t.Context())
		<-w.result
		time.Sleep(2 * time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		seen := map[string]bool{}
		for _, p := range w.points {
			// The looks at QEMU's counters are many and alike: two of each are enough.
			if n := strings.TrimSuffix(p, p[strings.LastIndex(p, "#"):]); strings.Contains(p, "query-migrate") && !strings.HasSuffix(p, "#1") && !strings.HasSuffix(p, "#2") {
				_ = n
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
				for _, p := range points {
					suffer(t, pace, f, p)
				}
			})
		}
	}
}

func suffer(t *testing.T, pace qmptest.Pace, f fault, point string) {
	t.Helper()
	in(t, func(w *world) {
		w.room.SetPace(pace)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w.mu.Lock()
		w.count = map[string]int{}
		w.at, w.strike = point, func() { f.strike(w, cancel) }
		w.mu.Unlock()
		w.migrate(ctx)
		time.Sleep(60 * time.Second)
		select {
		case err := <-w.result:
			if err == nil && f.name == "the user cancels" && !w.struck {
				t.Errorf("%s: the point was not reached", point)
			}
		default:
			t.Errorf("%s at %q: the migration did not end", f.name, point)
		}
		if err := w.verify(f.reboots); err != nil {
			t.Errorf("%s at %q: %v", f.name, point, err)
		}
	})
}

func TestACancelIsToldToTheCaller(t *testing.T) {
	in(t, func(w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		w.at, w.strike = "n1 migrating #1", cancel
		w.migrate(ctx)
		err := <-w.result
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the guest stays on this node") {
			t.Errorf("got %v", err)
		}
		if got := w.room.Running(); !slices.Equal(got, []string{source}) {
			t.Errorf("runs on %q", got)
		}
	})
}
