// Package store is the cluster's replicated memory: a flat map of keys to bytes
// with one revision counter, read, watched and changed by compare-and-swap.
//
// The embedded etcd lives in store/etcd, an in-memory twin in store/mem; both
// pass the suite in store/storetest. This package holds the contract alone.
//
// Invariant: every key that a transaction writes is compared in the same
// transaction, so a proposal that the network delivers late, or twice, changes
// nothing that it should not. Start reading with [Store].
package store

import (
	"context"
	"errors"

	"sauh.dev/sauh/internal/core/model"
)

var (
	// ErrNotFound: no such key.
	ErrNotFound = model.ErrNotFound
	// ErrConflict: a compare of the transaction did not hold; nothing was written.
	ErrConflict = model.ErrConflict
	// ErrNoQuorum: no majority answered in time. A transaction that returns it may
	// still be committed later: read the keys again. The same Txn sent again is
	// another one: its compares fail if the first was committed.
	ErrNoQuorum = model.ErrNoQuorum
	// ErrCompacted: the revision asked for is gone; list again and watch from there.
	ErrCompacted = errors.New("revision compacted")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store closed")
)

// KV is a key, its value and the revisions that created and last changed it.
type KV struct {
	Key            string
	Value          []byte
	CreateRevision int64
	ModRevision    int64
}

// Read says how fresh an answer must be.
type Read int

const (
	// Linearizable reads see every write that was acknowledged before; they need a quorum.
	Linearizable Read = iota
	// Local reads answer from this node's copy, also without a quorum, and may be stale.
	Local
)

// Cond compares a key's last change. Revision 0 demands that the key does not exist.
type Cond struct {
	Key      string
	Revision int64
}

// Op puts a value, or deletes the key.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
}

// Txn is one atomic change: all of If hold, then all of Then happens. Each key
// in Then must also stand in If; a Txn that breaks this rule is refused as invalid.
type Txn struct {
	If   []Cond
	Then []Op
}

// Event is one change of one key. Deleted keys carry only Key and ModRevision.
type Event struct {
	KV
	Deleted bool
}

// Batch is all changes of one or more revisions, in order, never split inside a revision.
type Batch struct {
	Revision int64
	Events   []Event
	// Err ends the watch: ErrCompacted, ErrClosed or the context's error. The channel is closed after it.
	Err error
}

// Store is safe for concurrent use. Every method returns when ctx is done, and
// without a quorum within a second.
type Store interface {
	// Get returns ErrNotFound, ErrNoQuorum (Linearizable only).
	Get(ctx context.Context, key string, r Read) (KV, error)
	// List returns the keys under prefix in order, and the revision of the answer to watch from (+1).
	List(ctx context.Context, prefix string, r Read) ([]KV, int64, error)
	// Txn commits t and returns its revision. It retries within about a second when an answer is lost,
	// and recognises an attempt of its own that had been committed, so t happens at most once.
	// Errors: ErrConflict, ErrNoQuorum, model.ErrInvalid.
	Txn(ctx context.Context, t Txn) (int64, error)
	// Watch delivers every change under prefix from revision from (inclusive) without a gap, until ctx is done.
	Watch(ctx context.Context, prefix string, from int64) <-chan Batch
}

// Put is an Op that sets key.
func Put(key string, value []byte) Op { return Op{Key: key, Value: value} }

// Delete is an Op that removes key.
func Delete(key string) Op { return Op{Key: key, Delete: true} }
