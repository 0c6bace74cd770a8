// Package mem is the in-memory twin of store/etcd: one [Cluster] holds the data,
// and each node of a test opens its own view of it with [Cluster.Open].
//
// It keeps the contract of store.Store, the times included, and has knobs for the faults
// that the real store has: a view without quorum, answers that get lost, a slow network. It is
// for tests and the simulator; it keeps everything in memory and survives nothing.
//
// Invariant: the history of a Cluster is one sequence of revisions; a view that lost its
// quorum sees a prefix of it. Start reading with [Store.Txn].
package mem

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"sauh.dev/sauh/internal/store"
)

// Cluster is the replicated memory that all views share.
type Cluster struct {
	mu        sync.Mutex
	revision  int64               // of the last change
	compacted int64               // history before this revision is gone
	data      map[string]store.KV // at revision
	history   []change            // of the revisions above compacted, in order
	applied   map[uint64]int64    // attempts that were committed: transaction id → revision
	nextID    uint64              // of transactions
	changed   chan struct{}       // closed and replaced at each change that a waiter may care about
}

// change is everything that one revision did.
type change struct {
	revision int64
	events   []store.Event
}

// New returns an empty cluster at revision 1, where etcd begins too.
func New() *Cluster {
	return &Cluster{
		revision: 1,
		data:     map[string]store.KV{},
		applied:  map[uint64]int64{},
		changed:  make(chan struct{}),
	}
}

// Open returns the view of one node. Views share the data and have faults of their own.
func (c *Cluster) Open(name string) *Store {
	return &Store{cluster: c, name: name, quorum: true, closed: make(chan struct{})}
}

// Revision is the revision of the last change.
func (c *Cluster) Revision() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.revision
}

// Compact forgets the history before revision: a watch from an earlier one ends with store.ErrCompacted.
func (c *Cluster) Compact(revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.compacted = max(c.compacted, revision)
	c.history = slices.DeleteFunc(c.history, func(ch change) bool { return ch.revision < c.compacted })
	c.wakeLocked()
}

func (c *Cluster) wakeLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// commitLocked applies t unless a compare fails, which is told by ok.
func (c *Cluster) commitLocked(t store.Txn) (revision int64, ok bool) {
	for _, cond := range t.If {
		if c.data[cond.Key].ModRevision != cond.Revision {
			return 0, false
		}
	}
	c.revision++
	ch := change{revision: c.revision}
	for _, op := range t.Then {
		if ev, happened := c.applyLocked(op); happened {
			ch.events = append(ch.events, ev)
		}
	}
	if len(ch.events) > 0 {
		c.history = append(c.history, ch)
	}
	c.wakeLocked()
	return c.revision, true
}

func (c *Cluster) applyLocked(op store.Op) (store.Event, bool) {
	old, existed := c.data[op.Key]
	if op.Delete {
		delete(c.data, op.Key)
		return store.Event{KV: store.KV{Key: op.Key, ModRevision: c.revision}, Deleted: true}, existed
	}
	kv := store.KV{Key: op.Key, Value: slices.Clone(op.Value), CreateRevision: c.revision, ModRevision: c.revision}
	if existed {
		kv.CreateRevision = old.CreateRevision
	}
	c.data[op.Key] = kv
	return store.Event{KV: cloneKV(kv)}, true
}

func cloneKV(kv store.KV) store.KV {
	kv.Value = slices.Clone(kv.Value)
	return kv
}

// list returns the keys of data under prefix in order.
func list(data map[string]store.KV, prefix string) []store.KV {
	var kvs []store.KV
	for _, key := range slices.Sorted(maps.Keys(data)) {
		if strings.HasPrefix(key, prefix) {
			kvs = append(kvs, cloneKV(data[key]))
		}
	}
	return kvs
}
