package mirror

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/mem"
)

// faulty is a store with a place for a broken watch.
type faulty struct {
	*mem.Store
	mu    sync.Mutex
	watch func(context.Context) chan store.Batch // takes the place of the next Watch; guarded by mu
}

func (s *faulty) Watch(ctx context.Context, prefix string, from int64) <-chan store.Batch {
	s.mu.Lock()
	w := s.watch
	s.watch = nil
	s.mu.Unlock()
	if w != nil {
		return w(ctx)
	}
	return s.Store.Watch(ctx, prefix, from)
}

func list(s Snapshot, prefix string) []store.KV { return slices.Collect(s.All(prefix)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls something real.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// startMirror follows a new cluster; the other view writes to it.
func startMirror(t *testing.T, onBatch func([]store.Event), prepare ...func(*faulty)) (*Mirror, *faulty, *mem.Store) {
	t.Helper()
	c := mem.New()
	st, other := &faulty{Store: c.Open("n1")}, c.Open("n2")
	for _, f := range prepare {
		f(st)
	}
	m := New(st, slog.New(slog.NewTextHandler(t.Output(), nil)), onBatch)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait(); _ = st.Close(); _ = other.Close() })
	wg.Go(func() { m.Run(ctx) })
	<-m.Loaded()
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

func (m *Mirror) reaches(t *testing.T, rev int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("the mirror is at revision %d", rev), func() bool { return m.Snapshot().Revision() >= rev })
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
	if diff := cmp.Diff(want, list(m.Snapshot(), "")); diff != "" {
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
		s := m.Snapshot()
		a, _ := s.Get("a")
		b, _ := s.Get("b")
		if string(a.Value) != string(b.Value) || a.ModRevision != b.ModRevision || a.ModRevision > s.Revision() {
			t.Fatalf("at revision %d: a is %s of %d, b is %s of %d", s.Revision(), a.Value, a.ModRevision, b.Value, b.ModRevision)
		}
		done = string(a.Value) == "499"
	}
	wg.Wait()
}

func TestASnapshotStandsStill(t *testing.T) {
	m, _, other := startMirror(t, nil)
	m.reaches(t, put(t, other, "a", "1"))
	s := m.Snapshot()
	m.reaches(t, put(t, other, "a", "", "b", "2"))
	if a, ok := s.Get("a"); !ok || string(a.Value) != "1" || len(list(s, "")) != 1 {
		t.Errorf("an old snapshot shows %v", list(s, ""))
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
	}, func(st *faulty) {
		put(t, st, "changed", "1", "deleted", "1", "kept", "1")
		st.watch = func(context.Context) chan store.Batch { return broken }
	})
	changes, stop := m.Subscribe()
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
	if diff := cmp.Diff(all, list(m.Snapshot(), "")); diff != "" {
		t.Error(diff)
	}
}

// The shell's liveness must hear of a renewal before a reader can see it.
func TestOnBatchSeesAChangeBeforeReadersDo(t *testing.T) {
	ready := make(chan *Mirror, 1)
	var early []string
	m, _, other := startMirror(t, func(events []store.Event) {
		if len(events) == 0 {
			return // the first list
		}
		m := <-ready
		for _, e := range events {
			if kv, ok := m.Snapshot().Get(e.Key); ok && kv.ModRevision >= e.ModRevision {
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
	idle, stopIdle := m.Subscribe()
	gone, stopGone := m.Subscribe()
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

// A record that cannot be read must not look as if it were not there: whoever decides would decide wrongly.
// Each node renews every second; whoever counts that sees it in onBatch.
func TestRenewalsAreNoChange(t *testing.T) {
	m, _, other := startMirror(t, nil)
	changes, stop := m.Subscribe()
	defer stop()
	told := func(want bool) bool {
		limit := 50 * time.Millisecond
		if want {
			limit = 10 * time.Second
		}
		select {
		case <-changes:
			return true
		case <-time.After(limit):
			return false
		}
	}
	key := model.LivePrefix + "n1"
	for _, c := range []struct {
		value string
		want  bool
	}{
		{`{"boot_id":"b","epoch":1,"seq":1}`, true},
		{`{"boot_id":"b","epoch":1,"seq":2}`, false},
		{`{"boot_id":"b","epoch":1,"seq":3,"left":true}`, true},
		{`{"boot_id":"b","epoch":2,"seq":3,"fenced":true}`, true},
		{`{"boot`, true},
		{`{"boot_id":"b","epoch":2,"seq":4}`, true},
		{`{"boot_id":"b","epoch":2,"seq":5}`, false},
	} {
		m.reaches(t, put(t, other, key, c.value))
		if got := told(c.want); got != c.want {
			t.Errorf("%s: told %v", c.value, got)
		}
	}
	rev := put(t, other, model.HALoadPrefix+"n1", `{"boot_id":"b","at":1}`)
	m.reaches(t, rev)
	if told(false) {
		t.Error("what a node measured is told")
	}
	if kv, ok := m.Snapshot().Get(model.HALoadPrefix + "n1"); !ok || kv.ModRevision != rev {
		t.Error("what a node measured is not there")
	}
}

func TestARecordThatCannotBeReadIsAnErrorAndIsLoggedOnce(t *testing.T) {
	m, _, other := startMirror(t, nil)
	var log bytes.Buffer
	m.log = slog.New(slog.NewTextHandler(&log, nil))
	m.mu.Lock()
	m.now.log = m.log
	m.mu.Unlock()
	rev := put(t, other, "r/good", `{"node":"n1","term":3}`, "r/bad", `{"node":`)
	m.reaches(t, rev)
	want := map[string]Record[model.Manager]{"good": {Value: model.Manager{Node: "n1", Term: 3}, Revision: rev}}
	for range 3 {
		s := m.Snapshot()
		got, err := List[model.Manager](s, "r/")
		if diff := cmp.Diff(want, got); diff != "" || err == nil || !strings.HasPrefix(err.Error(), "r/bad: ") {
			t.Errorf("%v\n%s", err, diff)
		}
		if r, err := Get[model.Manager](s, "r/bad"); err == nil || r.Revision != rev {
			t.Errorf("the bad record alone: %+v, %v", r, err)
		}
		if r, err := Get[model.Manager](s, "r/none"); err != nil || r.Revision != 0 {
			t.Errorf("no record: %+v, %v", r, err)
		}
	}
	if n := strings.Count(log.String(), "r/bad revision="); n != 1 {
		t.Errorf("the record is named %d times in the log:\n%s", n, log.String())
	}
	m.reaches(t, put(t, other, "r/bad", "worse"))
	_, _ = List[model.Manager](m.Snapshot(), "r/")
	if n := strings.Count(log.String(), "key=r/bad"); n != 2 {
		t.Errorf("another bad revision is another line, not %d in all:\n%s", n, log.String())
	}
}

func TestAValueIsDecodedOnceARevision(t *testing.T) {
	m, _, other := startMirror(t, nil)
	m.reaches(t, put(t, other, "a", "1", "b", "1"))
	parsed := 0
	parse := func(data []byte) (string, error) { parsed++; return string(data), nil }
	for i := range 10 {
		m.reaches(t, put(t, other, "b", fmt.Sprint(i)))
		if r, err := Decode(m.Snapshot(), "a", parse); err != nil || r.Value != "1" {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if parsed != 1 {
		t.Errorf("a value that did not change was decoded %d times", parsed)
	}
	m.reaches(t, put(t, other, "a", "2"))
	if r, _ := Decode(m.Snapshot(), "a", parse); r.Value != "2" || parsed != 2 {
		t.Errorf("after a change: %+v, decoded %d times", r, parsed)
	}
}

// The table against a map, with old tables kept and looked at again.
func TestATableIsASortedMapThatNeverChanges(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	want := map[string]int64{}
	var now table
	type kept struct {
		t    table
		want map[string]int64
	}
	var old []kept
	check := func(k kept) {
		t.Helper()
		for _, prefix := range []string{"", "k1", "k11", "z"} {
			var got, expect []string
			for e := range k.t.from(prefix) {
				got = append(got, fmt.Sprint(e.kv.Key, e.kv.ModRevision))
			}
			for key, rev := range k.want {
				if strings.HasPrefix(key, prefix) {
					expect = append(expect, key)
					if e := k.t.get(key); e == nil || e.kv.ModRevision != rev {
						t.Fatalf("%s is %v, want revision %d", key, e, rev)
					}
				}
			}
			slices.Sort(expect)
			for i, key := range expect {
				expect[i] = fmt.Sprint(key, k.want[key])
			}
			if diff := cmp.Diff(expect, got); diff != "" {
				t.Fatalf("under %q: %s", prefix, diff)
			}
		}
	}
	for i := range 20000 {
		key := fmt.Sprintf("k%d", r.IntN(3000))
		// It grows at first and shrinks to nothing in the end.
		if r.IntN(20000) < i {
			delete(want, key)
			now = now.without(key)
		} else {
			want[key] = int64(i)
			now = now.with(&entry{kv: store.KV{Key: key, ModRevision: int64(i)}})
		}
		if i%2000 == 0 {
			old = append(old, kept{now, maps.Clone(want)})
		}
	}
	for key := range want {
		now = now.without(key)
	}
	old = append(old, kept{now, nil})
	for _, k := range old {
		check(k)
		for _, c := range k.t.chunks {
			if len(c) == 0 || len(c) > 2*chunk {
				t.Errorf("a chunk of %d", len(c))
			}
		}
	}
}

func TestARevisionIsAwaitedUntilTheCopyShowsIt(t *testing.T) {
	late := make(chan struct{})
	m, _, other := startMirror(t, nil, func(st *faulty) {
		st.watch = func(context.Context) chan store.Batch { // one that sees nothing, and ends when it is told to
			c := make(chan store.Batch)
			go func() { <-late; close(c) }()
			return c
		}
	})
	rev := put(t, other, "x", "1")
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Await(short, rev); err == nil {
		t.Error("the copy does not show it, and the wait ended")
	}
	close(late)
	must(t, m.Await(t.Context(), rev))
	if _, ok := m.Snapshot().Get("x"); !ok {
		t.Error("the wait ended and the copy does not show it")
	}
}
