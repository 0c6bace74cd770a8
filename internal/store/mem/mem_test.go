package mem_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/mem"
	"sauh.dev/sauh/internal/store/storetest"
)

// cluster is three views for the conformance suite.
type cluster struct {
	mem   *mem.Cluster
	views []*mem.Store
}

func open(t *testing.T) storetest.Cluster {
	c := &cluster{mem: mem.New()}
	for _, name := range []string{"n1", "n2", "n3"} {
		s := c.mem.Open(name)
		t.Cleanup(func() { _ = s.Close() })
		c.views = append(c.views, s)
	}
	return c
}

func (c *cluster) Stores() []store.Store {
	var out []store.Store
	for _, s := range c.views {
		out = append(out, s)
	}
	return out
}

func (c *cluster) SetQuorum(_ *testing.T, ok bool)      { c.views[0].SetQuorum(ok) }
func (c *cluster) LoseNextAnswers(n int)                { c.views[0].LoseNextAnswers(n) }
func (c *cluster) Compact(_ *testing.T, revision int64) { c.mem.Compact(revision) }

func TestMemKeepsTheContract(t *testing.T) { storetest.Run(t, open) }

func create(key string) store.Txn {
	return store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, []byte("1"))}}
}

func TestAViewWithoutQuorumAnswersFromItsOldCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := mem.New()
		a, b := c.Open("n1"), c.Open("n2")
		a.SetQuorum(false)
		if _, err := b.Txn(t.Context(), create("k")); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Get(t.Context(), "k", store.Local); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Local Get in the minority: error %v, want ErrNotFound", err)
		}
		a.SetQuorum(true)
		if _, err := a.Get(t.Context(), "k", store.Local); err != nil {
			t.Errorf("Local Get after the minority ended: %v", err)
		}
	})
}

func TestAWriteWithoutQuorumFailsAfter950Milliseconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New().Open("n1")
		s.SetQuorum(false)
		start := time.Now()
		_, err := s.Txn(t.Context(), create("k"))
		if !errors.Is(err, store.ErrNoQuorum) || time.Since(start) != 950*time.Millisecond {
			t.Errorf("error %v after %v, want ErrNoQuorum after 950ms", err, time.Since(start))
		}
	})
}

func TestAWriteGoesThroughWhenTheQuorumReturnsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New().Open("n1")
		s.SetQuorum(false)
		time.AfterFunc(500*time.Millisecond, func() { s.SetQuorum(true) })
		if _, err := s.Txn(t.Context(), create("k")); err != nil {
			t.Errorf("Txn: %v", err)
		}
	})
}

func TestAWriteAllOfWhoseAnswersAreLostHappenedAndSaysNoQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New().Open("n1")
		s.LoseNextAnswers(3)
		if _, err := s.Txn(t.Context(), create("k")); !errors.Is(err, store.ErrNoQuorum) {
			t.Errorf("Txn: error %v, want ErrNoQuorum", err)
		}
		if _, err := s.Get(t.Context(), "k", store.Linearizable); err != nil {
			t.Errorf("Get: %v", err)
		}
	})
}

func TestDelayedRequestsTakeThatLongOrFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New().Open("n1")
		s.SetDelay(100 * time.Millisecond)
		start := time.Now()
		if _, err := s.Txn(t.Context(), create("k")); err != nil || time.Since(start) != 100*time.Millisecond {
			t.Errorf("Txn: error %v after %v, want none after 100ms", err, time.Since(start))
		}
		s.SetDelay(2 * time.Second)
		if _, err := s.Txn(t.Context(), create("l")); !errors.Is(err, store.ErrNoQuorum) {
			t.Errorf("Txn: error %v, want ErrNoQuorum", err)
		}
	})
}

func TestCloseEndsWatchesAndCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New().Open("n1")
		watch := s.Watch(t.Context(), "", 0)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if b := <-watch; !errors.Is(b.Err, store.ErrClosed) {
			t.Errorf("watch ended with %v, want ErrClosed", b.Err)
		}
		if _, err := s.Get(t.Context(), "k", store.Local); !errors.Is(err, store.ErrClosed) {
			t.Errorf("Get: error %v, want ErrClosed", err)
		}
	})
}
