package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"sauh.dev/sauh/internal/store"
)

// next returns the watch's next batch, which must not be its end.
func next(t *testing.T, watch <-chan store.Batch) store.Batch {
	t.Helper()
	select {
	case b, ok := <-watch:
		if !ok || b.Err != nil {
			t.Fatalf("the watch ended: %v", b.Err)
		}
		return b
	case <-time.After(waitLimit):
		t.Fatalf("the watch was silent for %v", waitLimit)
	}
	return store.Batch{}
}

// collect reads until the change at revision end arrived, and checks that batches are in order.
func collect(t *testing.T, watch <-chan store.Batch, end int64) []store.Event {
	t.Helper()
	var events []store.Event
	for {
		b := next(t, watch)
		if len(events) > 0 && b.Events[0].ModRevision <= last(events).ModRevision {
			t.Errorf("a batch begins at revision %d after %d", b.Events[0].ModRevision, last(events).ModRevision)
		}
		if got := last(b.Events).ModRevision; got != b.Revision {
			t.Errorf("a batch of revision %d ends with a change of %d", b.Revision, got)
		}
		events = append(events, b.Events...)
		if b.Revision >= end {
			return events
		}
	}
}

// watchHasNoGap compares what a watch saw, reopened in between, with what the writers were told.
func watchHasNoGap(t *testing.T, c Cluster) {
	const writers, writes = 6, 30
	stores := c.Stores()
	_, start, err := stores[0].List(t.Context(), "gap/", store.Linearizable)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	want := map[int64]string{}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			s := stores[w%len(stores)]
			revision := int64(0)
			for i := range writes {
				key := fmt.Sprintf("gap/%d", w)
				got, err := s.Txn(t.Context(), replace(key, fmt.Sprint(i), revision))
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				revision = got
				mu.Lock()
				want[got] = fmt.Sprintf("%s=%d", key, i)
				mu.Unlock()
			}
		})
	}
	got := map[int64]string{}
	from := start + 1
	for len(got) < writers*writes && !t.Failed() {
		ctx, cancel := context.WithCancel(t.Context())
		watch := stores[len(got)%len(stores)].Watch(ctx, "gap/", from)
		for range 3 {
			b := next(t, watch)
			for _, ev := range b.Events {
				if _, twice := got[ev.ModRevision]; twice {
					t.Errorf("revision %d was delivered twice", ev.ModRevision)
				}
				got[ev.ModRevision] = fmt.Sprintf("%s=%s", ev.Key, ev.Value)
			}
			from = b.Revision + 1
			if len(got) >= writers*writes {
				break
			}
		}
		cancel()
		for range watch { // until it is closed
		}
	}
	wg.Wait()
	equal(t, "changes by revision", got, want)
}

func watchFromThePast(t *testing.T, c Cluster) {
	s := c.Stores()[0]
	first := mustTxn(t, s, create("past/a", "1"))
	second := mustTxn(t, s, replace("past/a", "2", first))
	third := mustTxn(t, s, store.Txn{If: []store.Cond{{Key: "past/a", Revision: second}}, Then: []store.Op{store.Delete("past/a")}})
	for _, st := range c.Stores() {
		equal(t, "history", collect(t, st.Watch(t.Context(), "past/", second), third), []store.Event{
			{KV: store.KV{Key: "past/a", Value: []byte("2"), CreateRevision: first, ModRevision: second}},
			{KV: store.KV{Key: "past/a", ModRevision: third}, Deleted: true},
		})
	}
}

// watchNeverSplits writes transactions of 20 keys, more than a thousand changes in
// all, and opens the watch afterwards, when the implementation has the most reason to cut.
func watchNeverSplits(t *testing.T, c Cluster) {
	const txns, keys = 60, 20
	stores := c.Stores()
	var first, end int64
	revisions := make([]int64, keys)
	for range txns {
		var txn store.Txn
		for k := range keys {
			key := fmt.Sprintf("split/%02d", k)
			txn.If = append(txn.If, store.Cond{Key: key, Revision: revisions[k]})
			txn.Then = append(txn.Then, store.Put(key, make([]byte, 100)))
		}
		end = mustTxn(t, stores[0], txn)
		if first == 0 {
			first = end
		}
		for k := range revisions {
			revisions[k] = end
		}
	}
	for _, s := range stores {
		watch := s.Watch(t.Context(), "split/", first)
		seen := 0
		for revision := int64(0); revision < end; {
			b := next(t, watch)
			revision = b.Revision
			count := map[int64]int{}
			for _, ev := range b.Events {
				count[ev.ModRevision]++
			}
			for rev, n := range count {
				if n != keys {
					t.Errorf("a batch has %d of the %d changes of revision %d", n, keys, rev)
				}
			}
			seen += len(b.Events)
		}
		equal(t, "number of changes", seen, txns*keys)
	}
}

func watchEndsWithContext(t *testing.T, c Cluster) {
	for name, prepare := range map[string]func(store.Store){
		"with nothing to tell": func(store.Store) {},
		"with a batch waiting": func(s store.Store) { mustTxn(t, s, create("end/a", "1")) },
	} {
		s := c.Stores()[0]
		ctx, cancel := context.WithCancel(t.Context())
		watch := s.Watch(ctx, "end/", 1)
		prepare(s)
		cancel()
		var err error
		for b := range watch {
			err = b.Err
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: the watch ended with %v, want context.Canceled", name, err)
		}
	}
}

func watchCompacted(t *testing.T, c Cluster) {
	s := c.Stores()[0]
	first := mustTxn(t, s, create("compact/a", "1"))
	second := mustTxn(t, s, replace("compact/a", "2", first))
	third := mustTxn(t, s, replace("compact/a", "3", second))
	c.Compact(t, third)
	var end error
	for b := range s.Watch(t.Context(), "compact/", first) {
		if end = b.Err; end == nil {
			t.Errorf("the watch delivered %v, want ErrCompacted", b)
		}
	}
	if !errors.Is(end, store.ErrCompacted) {
		t.Errorf("the watch ended with %v, want ErrCompacted", end)
	}
	events := collect(t, s.Watch(t.Context(), "compact/", third), third)
	equal(t, "value after the compaction", string(last(events).Value), "3")
}
