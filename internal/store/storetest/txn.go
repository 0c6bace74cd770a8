package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

func txnCreatesOnlyOnce(t *testing.T, c Cluster) {
	s := c.Stores()[0]
	rev := mustTxn(t, s, create("create/a", "1"))
	if _, err := s.Txn(t.Context(), create("create/a", "2")); !errors.Is(err, store.ErrConflict) {
		t.Errorf("second creation: error %v, want ErrConflict", err)
	}
	want := store.KV{Key: "create/a", Value: []byte("1"), CreateRevision: rev, ModRevision: rev}
	equal(t, "key", mustGet(t, s, "create/a"), want)
}

func txnComparesRevisions(t *testing.T, c Cluster) {
	s := c.Stores()[0]
	first := mustTxn(t, s, create("swap/a", "1"))
	second := mustTxn(t, s, replace("swap/a", "2", first))
	if second <= first {
		t.Errorf("revision %d after %d, want it to rise", second, first)
	}
	if _, err := s.Txn(t.Context(), replace("swap/a", "3", first)); !errors.Is(err, store.ErrConflict) {
		t.Errorf("stale revision: error %v, want ErrConflict", err)
	}
	want := store.KV{Key: "swap/a", Value: []byte("2"), CreateRevision: first, ModRevision: second}
	equal(t, "key", mustGet(t, s, "swap/a"), want)
}

func txnDeletes(t *testing.T, c Cluster) {
	s := c.Stores()[0]
	first := mustTxn(t, s, create("delete/a", "1"))
	del := store.Txn{If: []store.Cond{{Key: "delete/a", Revision: first}}, Then: []store.Op{store.Delete("delete/a")}}
	mustTxn(t, s, del)
	if _, err := s.Get(t.Context(), "delete/a", store.Linearizable); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get of a deleted key: error %v, want ErrNotFound", err)
	}
	if _, err := s.Txn(t.Context(), del); !errors.Is(err, store.ErrConflict) {
		t.Errorf("second deletion: error %v, want ErrConflict", err)
	}
	again := mustTxn(t, s, create("delete/a", "2"))
	equal(t, "create revision", mustGet(t, s, "delete/a").CreateRevision, again)
}

func txnIsAtomic(t *testing.T, c Cluster) {
	s := c.Stores()[0]
	rev := mustTxn(t, s, store.Txn{
		If:   []store.Cond{{Key: "atomic/a"}, {Key: "atomic/b"}},
		Then: []store.Op{store.Put("atomic/a", []byte("1")), store.Put("atomic/b", []byte("1"))},
	})
	_, err := s.Txn(t.Context(), store.Txn{ // moves a to c, but b is compared wrongly
		If:   []store.Cond{{Key: "atomic/a", Revision: rev}, {Key: "atomic/b", Revision: rev + 1}, {Key: "atomic/c"}},
		Then: []store.Op{store.Delete("atomic/a"), store.Put("atomic/c", []byte("1"))},
	})
	if !errors.Is(err, store.ErrConflict) {
		t.Errorf("error %v, want ErrConflict", err)
	}
	kvs, _, err := s.List(t.Context(), "atomic/", store.Linearizable)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "keys", kvs, []store.KV{
		{Key: "atomic/a", Value: []byte("1"), CreateRevision: rev, ModRevision: rev},
		{Key: "atomic/b", Value: []byte("1"), CreateRevision: rev, ModRevision: rev},
	})
}

func txnRefusesUncompared(t *testing.T, c Cluster) {
	s := c.Stores()[0]
	put := func(key string) store.Op { return store.Put(key, []byte("1")) }
	for name, txn := range map[string]store.Txn{
		"no compare":        {Then: []store.Op{put("bad/a")}},
		"another compared":  {If: []store.Cond{{Key: "bad/b"}}, Then: []store.Op{put("bad/a")}},
		"delete uncompared": {If: []store.Cond{{Key: "bad/a"}}, Then: []store.Op{put("bad/a"), store.Delete("bad/b")}},
		"written twice":     {If: []store.Cond{{Key: "bad/a"}}, Then: []store.Op{put("bad/a"), put("bad/a")}},
		"compared twice":    {If: []store.Cond{{Key: "bad/a"}, {Key: "bad/a", Revision: 1}}, Then: []store.Op{put("bad/a")}},
		"empty key":         {If: []store.Cond{{}}, Then: []store.Op{put("")}},
		"the store's own":   create(model.AppliedPrefix+"n1/0", "1"),
	} {
		if _, err := s.Txn(t.Context(), txn); !errors.Is(err, model.ErrInvalid) {
			t.Errorf("%s: error %v, want ErrInvalid", name, err)
		}
	}
	if _, err := s.Get(t.Context(), "bad/a", store.Linearizable); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get: error %v, want ErrNotFound: a refused transaction was written", err)
	}
}

func oneWriterWins(t *testing.T, c Cluster) {
	const writers = 16
	stores := c.Stores()
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			_, errs[i] = stores[i%len(stores)].Txn(t.Context(), create("race/a", strconv.Itoa(i)))
		})
	}
	wg.Wait()
	var winners []string
	for i, err := range errs {
		switch {
		case err == nil:
			winners = append(winners, strconv.Itoa(i))
		case !errors.Is(err, store.ErrConflict):
			t.Errorf("writer %d: error %v, want ErrConflict", i, err)
		}
	}
	equal(t, "winners", winners, []string{string(mustGet(t, stores[0], "race/a").Value)})
}

func countersLoseNothing(t *testing.T, c Cluster) {
	const writers, rounds = 8, 10
	stores := c.Stores()
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for range rounds {
				if err := increment(t.Context(), stores[i%len(stores)], "counter/a"); err != nil {
					t.Errorf("writer %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	equal(t, "counter", string(mustGet(t, stores[0], "counter/a").Value), strconv.Itoa(writers*rounds))
}

// increment adds 1 to the number at key, trying again when another writer was faster.
func increment(ctx context.Context, s store.Store, key string) error {
	for {
		kv, err := s.Get(ctx, key, store.Linearizable)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		n, _ := strconv.Atoi(string(kv.Value))
		_, err = s.Txn(ctx, replace(key, strconv.Itoa(n+1), kv.ModRevision))
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

func listOrderAndRevision(t *testing.T, c Cluster) {
	s := c.Stores()[0]
	for _, key := range []string{"list/b", "list/a", "list/c/d", "listen"} {
		mustTxn(t, s, create(key, key))
	}
	kvs, revision, err := s.List(t.Context(), "list/", store.Linearizable)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, kv := range kvs {
		keys = append(keys, kv.Key)
	}
	equal(t, "keys", keys, []string{"list/a", "list/b", "list/c/d"})

	want := mustTxn(t, s, create("list/e", "1"))
	batch := next(t, s.Watch(t.Context(), "list/", revision+1))
	equal(t, "first change after the list", batch, store.Batch{Revision: want, Events: []store.Event{
		{KV: store.KV{Key: "list/e", Value: []byte("1"), CreateRevision: want, ModRevision: want}},
	}})
}

func writesAreSeenElsewhere(t *testing.T, c Cluster) {
	stores := c.Stores()
	for i := range 20 {
		key := fmt.Sprintf("elsewhere/%d", i)
		mustTxn(t, stores[i%len(stores)], create(key, "1"))
		mustGet(t, stores[(i+1)%len(stores)], key)
	}
}

func lostAnswerHappensOnce(t *testing.T, c Cluster) {
	s := c.Stores()[0]
	_, revision, err := s.List(t.Context(), "lost/", store.Linearizable)
	if err != nil {
		t.Fatal(err)
	}
	c.LoseNextAnswers(1)
	var created int64
	within(t, "a write whose answer was lost", func() { created = mustTxn(t, s, create("lost/a", "1")) })
	equal(t, "revision", mustGet(t, s, "lost/a").ModRevision, created)

	del := store.Txn{If: []store.Cond{{Key: "lost/a", Revision: created}}, Then: []store.Op{store.Delete("lost/a")}}
	c.LoseNextAnswers(1)
	deleted := mustTxn(t, s, del)

	last := mustTxn(t, s, create("lost/end", "1"))
	var got []int64
	for _, ev := range collect(t, s.Watch(t.Context(), "lost/", revision+1), last) {
		got = append(got, ev.ModRevision)
	}
	equal(t, "changes", got, []int64{created, deleted, last})
	c.LoseNextAnswers(0)
}

func operationEndsWithContext(t *testing.T, c Cluster) {
	s := c.Stores()[0]
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Txn(ctx, create("context/a", "1")); !errors.Is(err, context.Canceled) {
		t.Errorf("Txn: error %v, want context.Canceled", err)
	}
	if _, err := s.Get(ctx, "context/a", store.Linearizable); !errors.Is(err, context.Canceled) {
		t.Errorf("Get: error %v, want context.Canceled", err)
	}
	if _, _, err := s.List(ctx, "context/", store.Local); !errors.Is(err, context.Canceled) {
		t.Errorf("List: error %v, want context.Canceled", err)
	}
}

func withoutQuorum(t *testing.T, c Cluster) {
	s := c.Stores()[0]
	rev := mustTxn(t, s, create("quorum/a", "1"))
	mustGet(t, s, "quorum/a")
	_, listed, err := s.List(t.Context(), "quorum/", store.Linearizable)
	if err != nil {
		t.Fatal(err)
	}
	watch := s.Watch(t.Context(), "quorum/", listed+1)

	c.SetQuorum(t, false)
	within(t, "a local read", func() {
		kv, err := s.Get(t.Context(), "quorum/a", store.Local)
		if err != nil {
			t.Errorf("Local Get: %v", err)
		}
		equal(t, "local copy", kv, store.KV{Key: "quorum/a", Value: []byte("1"), CreateRevision: rev, ModRevision: rev})
	})
	within(t, "a local list", func() {
		if kvs, _, err := s.List(t.Context(), "quorum/", store.Local); err != nil || len(kvs) != 1 {
			t.Errorf("Local List: %v, error %v; want one key", kvs, err)
		}
	})
	refused := map[string]func() error{
		"Get":  func() error { _, err := s.Get(t.Context(), "quorum/a", store.Linearizable); return err },
		"List": func() error { _, _, err := s.List(t.Context(), "quorum/", store.Linearizable); return err },
		"Txn":  func() error { _, err := s.Txn(t.Context(), replace("quorum/a", "2", rev)); return err },
		"Txn of a new key": func() error {
			_, err := s.Txn(t.Context(), create("quorum/b", "1"))
			return err
		},
	}
	for name, f := range refused {
		within(t, name, func() {
			if err := f(); !errors.Is(err, store.ErrNoQuorum) {
				t.Errorf("%s: error %v, want ErrNoQuorum", name, err)
			}
		})
	}

	back := time.Now()
	c.SetQuorum(t, true)
	waitWritable(t, s)
	t.Logf("writable %v after the others began to come back", time.Since(back).Round(time.Millisecond))
	end := mustTxn(t, s, create("quorum/end", "1"))
	equal(t, "last change that the watch saw", last(collect(t, watch, end)).Key, "quorum/end")
}

func last(events []store.Event) store.Event { return events[len(events)-1] }
