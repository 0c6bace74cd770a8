package agent

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/mem"
)

// startMirror follows a new cluster; the other view writes to it.
func startMirror(t *testing.T, onBatch func([]store.Event), prepare ...func(*testStore)) (*mirror, *testStore, *mem.Store) {
	t.Helper()
	c := mem.New()
	st, other := newTestStore(c), c.Open("n2")
	for _, f := range prepare {
		f(st)
	}
	m := newMirror(st, slog.New(slog.NewTextHandler(t.Output(), nil)), onBatch)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait(); _ = st.Close(); _ = other.Close() })
	wg.Go(func() { m.run(ctx) })
	<-m.loaded
	return m, st, other
}

func put(t *testing.T, st store.Store, pairs ...string) int64 {
	t.Helper()
	var tx store.Txn
	for i := 0; i < len(pairs); i += 2 {
		kv, _ := st.Get(t.Context(), pairs[i], store.Linearizable)
		tx.If = append(tx.If, store.Cond{Key: pairs[i], Revision: kv.ModRevision})
		op := store.Put(pairs[i], []byte(pairs[i+1]))
		if pairs[i+1] == "" {
			op = store.Delete(pairs[i])
		}
		tx.Then = append(tx.Then, op)
	}
	rev, err := st.Txn(t.Context(), tx)
	must(t, err)
	return rev
}

func (m *mirror) reaches(t *testing.T, rev int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("the mirror is at revision %d", rev), func() bool { return m.snapshot().rev >= rev })
}

func TestTheMirrorEqualsTheStoreUnderConcurrentWrites(t *testing.T) {
	m, _, other := startMirror(t, nil)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for i := range 200 {
				key := fmt.Sprintf("k/%d/%d", w, r.IntN(10))
				value := fmt.Sprint(i)
				if r.IntN(4) == 0 {
					value = "" // a deletion
				}
				put(t, other, key, value)
			}
		})
	}
	wg.Wait()
	m.reaches(t, put(t, other, "last", "1"))
	want, _, err := other.List(t.Context(), "", store.Linearizable)
	must(t, err)
	if diff := cmp.Diff(want, m.list("")); diff != "" {
		t.Error(diff)
	}
}

// The writer changes two keys at once, so a snapshot that shows them apart is of no revision.
func TestASnapshotIsOneRevision(t *testing.T) {
	m, _, other := startMirror(t, nil)
	put(t, other, "a", "0", "b", "0")
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 500 {
			put(t, other, "a", fmt.Sprint(i), "b", fmt.Sprint(i))
		}
	})
	for done := false; !done; {
		s := m.snapshot()
		a, _ := s.get("a")
		b, _ := s.get("b")
		if string(a.Value) != string(b.Value) || a.ModRevision != b.ModRevision || a.ModRevision > s.rev {
			t.Fatalf("at revision %d: a is %s of %d, b is %s of %d", s.rev, a.Value, a.ModRevision, b.Value, b.ModRevision)
		}
		done = string(a.Value) == "499"
	}
	wg.Wait()
}

func TestASnapshotStandsStill(t *testing.T) {
	m, _, other := startMirror(t, nil)
	m.reaches(t, put(t, other, "a", "1"))
	s := m.snapshot()
	m.reaches(t, put(t, other, "a", "", "b", "2"))
	if a, ok := s.get("a"); !ok || string(a.Value) != "1" || len(s.list("")) != 1 {
		t.Errorf("an old snapshot shows %v", s.list(""))
	}
}

// What happens while no watch runs is found by the next list, deletions included.
func TestAListAfterALostWatchTellsWhatChanged(t *testing.T) {
	var mu sync.Mutex
	var seen []store.Event
	broken := make(chan store.Batch)
	m, _, other := startMirror(t, func(events []store.Event) {
		mu.Lock()
		defer mu.Unlock()
		seen = events
	}, func(st *testStore) {
		put(t, st, "changed", "1", "deleted", "1", "kept", "1")
		st.watch = func(context.Context) chan store.Batch { return broken }
	})
	changes, stop := m.subscribe()
	defer stop()
	rev := put(t, other, "changed", "2", "deleted", "", "new", "1")
	broken <- store.Batch{Err: store.ErrCompacted}
	m.reaches(t, rev)
	<-changes
	mu.Lock()
	defer mu.Unlock()
	want := []string{"changed=2", "new=1", "deleted gone"}
	var got []string
	for _, e := range seen {
		line := e.Key + "=" + string(e.Value)
		if e.Deleted {
			line = e.Key + " gone"
		}
		got = append(got, line)
		if e.ModRevision != rev {
			t.Errorf("%s is of revision %d, want %d", line, e.ModRevision, rev)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	all, _, err := other.List(t.Context(), "", store.Linearizable)
	must(t, err)
	if diff := cmp.Diff(all, m.list("")); diff != "" {
		t.Error(diff)
	}
}

// The shell's liveness must hear of a renewal before a reader can see it.
func TestOnBatchSeesAChangeBeforeReadersDo(t *testing.T) {
	ready := make(chan *mirror, 1)
	var early []string
	m, _, other := startMirror(t, func(events []store.Event) {
		if len(events) == 0 {
			return // the first list
		}
		m := <-ready
		for _, e := range events {
			if kv, ok := m.get(e.Key); ok && kv.ModRevision >= e.ModRevision {
				early = append(early, e.Key)
			}
		}
		ready <- m
	})
	ready <- m
	m.reaches(t, put(t, other, "a", "1"))
	m.reaches(t, put(t, other, "a", "2", "b", "1"))
	<-ready
	if len(early) > 0 {
		t.Errorf("readers saw %v first", early)
	}
}

func TestSubscribersAreToldAndNobodyWaitsForThem(t *testing.T) {
	m, _, other := startMirror(t, nil)
	idle, stopIdle := m.subscribe()
	gone, stopGone := m.subscribe()
	stopGone()
	for i := range 10 {
		m.reaches(t, put(t, other, "a", fmt.Sprint(i)))
	}
	select {
	case <-idle:
	default:
		t.Error("a subscriber is not told")
	}
	select {
	case <-idle:
		t.Error("changes that nobody looked at pile up")
	case <-gone:
		t.Error("who ended the subscription is told")
	default:
	}
	stopIdle()
}

func TestRecordsThatAreNoJSONAreNotListed(t *testing.T) {
	m, _, other := startMirror(t, nil)
	rev := put(t, other, "r/good", `{"node":"n1","term":3}`, "r/bad", `{"node":`, "config/a", "x")
	m.reaches(t, rev)
	type manager struct {
		Node string `json:"node"`
		Term uint64 `json:"term"`
	}
	want := map[string]record[manager]{"good": {Value: manager{"n1", 3}, Revision: rev}}
	if diff := cmp.Diff(want, listJSON[manager](m, "r/")); diff != "" {
		t.Error(diff)
	}
	if _, ok := getJSON[manager](m, "r/bad"); ok {
		t.Error("a record that cannot be read is returned")
	}
	if v := m.configVersion(); v != rev {
		t.Errorf("the configuration's version is %d, want %d", v, rev)
	}
	put(t, other, "r/good", "")
	if !slices.ContainsFunc(m.snapshot().list("config/"), func(kv store.KV) bool { return kv.Key == "config/a" }) {
		t.Error("a snapshot lists by prefix")
	}
}
