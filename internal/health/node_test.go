package health

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	core "sauh.dev/sauh/internal/core/health"
)

// world is the storages and bridges of a test.
type world struct {
	mu      sync.Mutex
	result  map[string]error
	hangs   map[string]bool
	bridges map[string]core.Bridge
	lookErr error
	probing map[string]int
	probes  map[string]int
	most    int
	states  []State
}

func newWorld() *world {
	return &world{result: map[string]error{}, hangs: map[string]bool{}, bridges: map[string]core.Bridge{}, probing: map[string]int{}, probes: map[string]int{}}
}

func (w *world) do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

type fakeProber struct {
	w    *world
	name string
}

func (p fakeProber) Close() error { return nil }

func (p fakeProber) Probe(ctx context.Context) error {
	w := p.w
	w.do(func() {
		w.probes[p.name]++
		w.probing[p.name]++
		w.most = max(w.most, w.probing[p.name])
	})
	defer w.do(func() { w.probing[p.name]-- })
	for {
		var err error
		hangs := false
		w.do(func() { hangs, err = w.hangs[p.name], w.result[p.name] })
		if !hangs {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// live runs a Node on simulated time.
func live(t *testing.T, f func(w *world, n *Node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		n := New(Config{
			Params: core.DefaultParams(),
			Open:   func(target Target) Prober { return fakeProber{w, target.Name} },
			Look: func([]string) (map[string]core.Bridge, error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				seen := map[string]core.Bridge{}
				for name, b := range w.bridges {
					seen[name] = b
				}
				if w.lookErr != nil {
					return nil, w.lookErr
				}
				return seen, nil
			},
			Changed: func(s State) { w.do(func() { w.states = append(w.states, s) }) },
			Log:     slog.New(slog.DiscardHandler),
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); n.Run(ctx) }()
		f(w, n)
		cancel()
		<-done
		if w.most > 1 {
			t.Errorf("%d probes of one storage at once", w.most)
		}
	})
}

func wantState(t *testing.T, n *Node, want State) {
	t.Helper()
	if diff := cmp.Diff(want, n.State()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAStorageThatHangsIsLostInTimeAndComesBack(t *testing.T) {
	live(t, func(w *world, n *Node) {
		n.Set([]Target{{Name: "nas"}, {Name: "ceph"}}, nil)
		time.Sleep(time.Minute + time.Second) // between two probes
		wantState(t, n, State{})
		w.do(func() { w.hangs["nas"] = true })
		time.Sleep(16 * time.Second)
		lost := State{Storages: []Finding{{"nas", "no answer for 12s"}}}
		wantState(t, n, lost)
		time.Sleep(time.Hour)
		w.do(func() { w.hangs["nas"] = false })
		time.Sleep(20 * time.Second)
		wantState(t, n, lost)
		time.Sleep(15 * time.Second)
		wantState(t, n, State{})
		if diff := cmp.Diff([]State{lost, {}}, w.states); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAStorageThatFailsIsLost(t *testing.T) {
	live(t, func(w *world, n *Node) {
		n.Set([]Target{{Name: "nas"}}, nil)
		time.Sleep(time.Minute + time.Second) // between two probes
		w.do(func() { w.result["nas"] = errors.New("input/output error") })
		time.Sleep(16 * time.Second)
		// Probes begin at any moment, so it was four of them or five.
		st := n.State()
		if len(st.Storages) != 1 || st.Storages[0].Name != "nas" ||
			strings.TrimLeft(st.Storages[0].Reason, "45") != " probes in a row failed: input/output error" {
			t.Error(st)
		}
	})
}

func TestAnErrorOfAGuestHasItsStorageProbedAtOnce(t *testing.T) {
	live(t, func(w *world, n *Node) {
		n.Set([]Target{{Name: "nas"}}, nil)
		time.Sleep(time.Minute + 1500*time.Millisecond)
		before := 0
		w.do(func() { before = w.probes["nas"] })
		n.GuestError("nas", "100", "Input/output error")
		n.GuestError("nas", "101", "Input/output error")
		n.GuestError("unknown", "102", "Input/output error")
		time.Sleep(time.Millisecond)
		w.do(func() {
			if got := w.probes["nas"] - before; got != 1 {
				t.Errorf("%d more probes", got)
			}
		})
	})
}

func TestSetTwiceIsOnceAndWhatIsNotNamedIsForgotten(t *testing.T) {
	live(t, func(w *world, n *Node) {
		for range 2 {
			n.Set([]Target{{Name: "a"}, {Name: "b", Command: []string{"x"}}}, nil)
			time.Sleep(time.Second)
		}
		w.do(func() {
			if diff := cmp.Diff(map[string]int{"a": 1, "b": 1}, w.probes); diff != "" {
				t.Error(diff)
			}
			w.hangs["a"], w.hangs["b"] = true, true
		})
		time.Sleep(time.Minute + time.Second) // between two probes
		if len(n.State().Storages) != 2 {
			t.Errorf("%+v", n.State())
		}
		n.Set([]Target{{Name: "b", Command: []string{"y"}}}, nil) // b begins anew
		time.Sleep(time.Second)
		wantState(t, n, State{})
		w.do(func() {
			if w.probing["a"] != 0 || w.probing["b"] != 1 {
				t.Errorf("%v", w.probing)
			}
		})
		n.Set(nil, nil)
	})
}

func TestAStorageThatIsOnRecordAsLostBeginsAsThat(t *testing.T) {
	live(t, func(w *world, n *Node) {
		n.Set([]Target{{Name: "nas", Lost: true}}, nil)
		for range 10 {
			time.Sleep(2 * time.Second)
			n.Set([]Target{{Name: "nas", Lost: true}}, nil)
		}
		if s := n.State().Storages; len(s) != 1 || s[0].Name != "nas" {
			t.Errorf("%+v", s)
		}
		time.Sleep(12 * time.Second)
		wantState(t, n, State{})
	})
}

func TestALinkThatGoesDownIsTold(t *testing.T) {
	live(t, func(w *world, n *Node) {
		carries := func(yes bool) {
			w.do(func() {
				w.bridges["vmbr0"] = core.Bridge{There: true, Up: true, Cards: []core.Card{{Name: "eth0", Carries: yes, State: "down"}}}
			})
		}
		carries(true)
		n.Set(nil, []string{"vmbr0"})
		time.Sleep(time.Minute + time.Second) // between two probes
		carries(false)
		time.Sleep(5 * time.Second)
		down := State{Networks: []Finding{{"vmbr0", "no network card has a link: eth0 is down"}}}
		wantState(t, n, down)
		w.do(func() { w.lookErr = errors.New("no memory") })
		carries(true)
		time.Sleep(time.Minute + time.Second) // between two probes
		wantState(t, n, down)                 // nothing is known, so nothing changes
		w.do(func() { w.lookErr = nil })
		time.Sleep(12 * time.Second)
		wantState(t, n, State{})
		var told []State
		w.do(func() { told = slices.Clone(w.states) })
		if diff := cmp.Diff([]State{down, {}}, told); diff != "" {
			t.Error(diff)
		}
	})
}
