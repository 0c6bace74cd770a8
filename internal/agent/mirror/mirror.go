// Package mirror is a node's copy of the whole store in memory, kept by one watch.
//
// It answers without a quorum and may be stale. It decides nothing, and it is no cache that may be
// trusted: whoever decides from it compares the revisions that it gives in a transaction.
//
// Invariants: a snapshot is the store at exactly one revision and never changes; a change costs a few hundred
// pointers, not a copy of everything; a value is decoded once a revision, however often it is asked for; a record that
// cannot be decoded is an error, never an absence.
//
// Start reading with [Mirror.Snapshot], then [Decode] and [List].
package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// again is how long a watch that broke off rests before the store is listed anew.
const again = 200 * time.Millisecond

// Mirror follows a store. It is safe for concurrent use.
type Mirror struct {
	st      store.Store
	log     *slog.Logger
	onBatch func([]store.Event)
	loaded  chan struct{} // closed after the first list

	mu   sync.RWMutex
	now  Snapshot               // guarded by mu
	subs map[chan struct{}]bool // guarded by mu
}

// New makes the copy of st; Run fills it. onBatch, if not nil, sees each batch of changes before any reader does; it must not block.
func New(st store.Store, log *slog.Logger, onBatch func([]store.Event)) *Mirror {
	if onBatch == nil {
		onBatch = func([]store.Event) {}
	}
	return &Mirror{st: st, log: log, onBatch: onBatch, loaded: make(chan struct{}), now: Snapshot{log: log}, subs: map[chan struct{}]bool{}}
}

// Loaded is closed once the store was read for the first time.
func (m *Mirror) Loaded() <-chan struct{} { return m.loaded }

// Run keeps the copy until ctx is done. After a watch that broke off it lists anew and tells onBatch what differs, deletions included.
func (m *Mirror) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := m.follow(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("store watch ended, listing again", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(again):
			}
		}
	}
}

func (m *Mirror) follow(ctx context.Context) error {
	kvs, rev, err := m.st.List(ctx, "", store.Local)
	if err != nil {
		return err
	}
	m.replace(kvs, rev)
	for b := range m.st.Watch(ctx, "", rev+1) {
		if b.Err != nil {
			return b.Err
		}
		m.apply(b)
	}
	return errors.New("watch closed")
}

// replace takes a fresh list, and tells onBatch what differs.
func (m *Mirror) replace(kvs []store.KV, rev int64) {
	old := m.Snapshot()
	next := Snapshot{log: m.log, rev: rev, all: tableOf(kvs)}
	var events []store.Event
	for _, kv := range kvs {
		if was, _ := old.Get(kv.Key); was.ModRevision != kv.ModRevision {
			events = append(events, store.Event{KV: kv})
		}
	}
	for e := range old.all.from("") {
		if _, ok := next.Get(e.kv.Key); !ok {
			events = append(events, store.Event{KV: store.KV{Key: e.kv.Key, ModRevision: rev}, Deleted: true})
		}
	}
	m.onBatch(events)
	m.mu.Lock()
	m.now = next
	select {
	case <-m.loaded:
	default:
		close(m.loaded)
	}
	m.mu.Unlock()
	m.notify()
}

func (m *Mirror) apply(b store.Batch) {
	m.onBatch(b.Events)
	next := m.Snapshot() // nobody else writes it
	// What the store notes for itself changes with every write, renewals come from every node each second, and what nodes
	// measured every few seconds: none of it concerns anybody who waits for a change.
	quiet := true
	for _, e := range b.Events {
		quiet = quiet && (strings.HasPrefix(e.Key, model.AppliedPrefix) || strings.HasPrefix(e.Key, model.HALoadPrefix) || isRenewal(next, e))
		if e.Deleted {
			next.all = next.all.without(e.Key)
		} else {
			next.all = next.all.with(&entry{kv: e.KV})
		}
	}
	next.rev = b.Revision
	m.mu.Lock()
	m.now = next
	m.mu.Unlock()
	if !quiet {
		m.notify()
	}
}

// isRenewal: the event changes nothing in a liveness record but its number. Whoever counts renewals sees them in onBatch.
func isRenewal(was Snapshot, e store.Event) bool {
	if e.Deleted || !strings.HasPrefix(e.Key, model.LivePrefix) {
		return false
	}
	old, err := Get[model.Live](was, e.Key)
	var live model.Live
	if err != nil || old.Revision == 0 || json.Unmarshal(e.Value, &live) != nil {
		return false
	}
	live.Seq = old.Value.Seq
	return live == old.Value
}

func (m *Mirror) notify() {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for c := range m.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Subscribe returns a channel that has an element after each change but renewals and measurements, and the way to end it. Changes that
// nobody has looked at do not pile up.
func (m *Mirror) Subscribe() (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	m.mu.Lock()
	m.subs[c] = true
	m.mu.Unlock()
	return c, func() {
		m.mu.Lock()
		delete(m.subs, c)
		m.mu.Unlock()
	}
}

// awaitAgain is how often Await looks: a change that concerns nobody is not told to subscribers.
const awaitAgain = 5 * time.Millisecond

// Await returns when the copy shows revision or a later one, or ctx's error.
func (m *Mirror) Await(ctx context.Context, revision int64) error {
	tick := time.NewTicker(awaitAgain)
	defer tick.Stop()
	for m.Snapshot().Revision() < revision {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("follow the store to revision %d: %w", revision, ctx.Err())
		}
	}
	return nil
}

// Snapshot is the copy as it is now. It costs nothing.
func (m *Mirror) Snapshot() Snapshot {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.now
}
