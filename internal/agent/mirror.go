package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"sort"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/store"
)

// mirror is this node's copy of the whole store in memory, kept by one watch.
// It answers without quorum and may be stale: whoever decides from it compares
// the revisions it gives in a transaction.
type mirror struct {
	st  store.Store
	log *slog.Logger
	// onBatch sees each batch as it arrives, before readers do.
	onBatch func([]store.Event)
	loaded  chan struct{} // closed after the first list

	mu   sync.RWMutex
	kv   map[string]store.KV    // guarded by mu
	rev  int64                  // guarded by mu
	subs map[chan struct{}]bool // guarded by mu
}

func newMirror(st store.Store, log *slog.Logger, onBatch func([]store.Event)) *mirror {
	return &mirror{st: st, log: log, onBatch: onBatch, loaded: make(chan struct{}), kv: map[string]store.KV{}, subs: map[chan struct{}]bool{}}
}

// run keeps the copy until ctx is done.
func (m *mirror) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := m.follow(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("store watch ended, listing again", "err", err)
			sleep(ctx, 200*time.Millisecond)
		}
	}
}

func (m *mirror) follow(ctx context.Context) error {
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
func (m *mirror) replace(kvs []store.KV, rev int64) {
	next := make(map[string]store.KV, len(kvs))
	var events []store.Event
	m.mu.RLock()
	for _, kv := range kvs {
		next[kv.Key] = kv
		if m.kv[kv.Key].ModRevision != kv.ModRevision {
			events = append(events, store.Event{KV: kv})
		}
	}
	for key := range m.kv {
		if _, ok := next[key]; !ok {
			events = append(events, store.Event{KV: store.KV{Key: key, ModRevision: rev}, Deleted: true})
		}
	}
	m.mu.RUnlock()
	if m.onBatch != nil {
		m.onBatch(events)
	}
	m.mu.Lock()
	m.kv, m.rev = next, rev
	select {
	case <-m.loaded:
	default:
		close(m.loaded)
	}
	m.mu.Unlock()
	m.notify()
}

func (m *mirror) apply(b store.Batch) {
	if m.onBatch != nil {
		m.onBatch(b.Events)
	}
	m.mu.Lock()
	quiet := true
	for _, e := range b.Events {
		if e.Deleted {
			delete(m.kv, e.Key)
		} else {
			m.kv[e.Key] = e.KV
		}
		quiet = quiet && quietKey(e.Key)
	}
	m.rev = b.Revision
	m.mu.Unlock()
	if !quiet {
		m.notify()
	}
}

// quietKey tells the keys that change each second and concern nobody who waits for a change.
func quietKey(key string) bool {
	return strings.HasPrefix(key, "applied/")
}

func (m *mirror) notify() {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for c := range m.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// subscribe returns a channel that has an element after each change, and the way to end it.
func (m *mirror) subscribe() (<-chan struct{}, func()) {
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

func (m *mirror) get(key string) (store.KV, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	kv, ok := m.kv[key]
	return kv, ok
}

func (m *mirror) list(prefix string) []store.KV {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return listKV(m.kv, prefix)
}

func listKV(all map[string]store.KV, prefix string) []store.KV {
	var out []store.KV
	for k, kv := range all {
		if strings.HasPrefix(k, prefix) {
			out = append(out, kv)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key < out[j].Key })
	return out
}

// records is what can be looked up: the mirror, or a snapshot of it.
type records interface {
	get(key string) (store.KV, bool)
	list(prefix string) []store.KV
}

// snapshot is the mirror at one revision.
type snapshot struct {
	kv  map[string]store.KV
	rev int64
}

func (m *mirror) snapshot() snapshot {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return snapshot{kv: maps.Clone(m.kv), rev: m.rev}
}

func (s snapshot) get(key string) (store.KV, bool) {
	kv, ok := s.kv[key]
	return kv, ok
}

func (s snapshot) list(prefix string) []store.KV { return listKV(s.kv, prefix) }

// configVersion is the highest revision of a configuration file.
func (m *mirror) configVersion() int64 {
	var v int64
	for _, kv := range m.list("config/") {
		v = max(v, kv.ModRevision)
	}
	return v
}

// listJSON decodes all records under prefix, by the rest of the key.
func listJSON[T any](m records, prefix string) map[string]record[T] {
	out := map[string]record[T]{}
	for _, kv := range m.list(prefix) {
		var v T
		if json.Unmarshal(kv.Value, &v) == nil {
			out[strings.TrimPrefix(kv.Key, prefix)] = record[T]{Value: v, Revision: kv.ModRevision}
		}
	}
	return out
}

// record is a decoded value and the revision to compare.
type record[T any] struct {
	Value    T
	Revision int64
}

func getJSON[T any](m records, key string) (record[T], bool) {
	kv, ok := m.get(key)
	var r record[T]
	if !ok || json.Unmarshal(kv.Value, &r.Value) != nil {
		return r, false
	}
	r.Revision = kv.ModRevision
	return r, true
}

// readJSON reads a record from the store; a key that is not there is revision 0 and no error.
func readJSON[T any](ctx context.Context, st store.Store, key string) (record[T], error) {
	var r record[T]
	kv, err := st.Get(ctx, key, store.Linearizable)
	if errors.Is(err, store.ErrNotFound) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	r.Revision = kv.ModRevision
	return r, json.Unmarshal(kv.Value, &r.Value)
}

func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic("encode a plain record: " + err.Error())
	}
	return data
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
