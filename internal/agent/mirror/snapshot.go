package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"

	"sauh.dev/sauh/internal/store"
)

// Snapshot is the store at one revision. It is a value that stands still; the zero value is empty, at revision 0.
type Snapshot struct {
	log *slog.Logger
	rev int64
	all table
}

// Revision is the store's revision that the snapshot shows.
func (s Snapshot) Revision() int64 { return s.rev }

// Get returns a key as it is in the snapshot.
func (s Snapshot) Get(key string) (store.KV, bool) {
	if e := s.all.get(key); e != nil {
		return e.kv, true
	}
	return store.KV{}, false
}

// All yields the keys that begin with prefix, in order.
func (s Snapshot) All(prefix string) iter.Seq[store.KV] {
	return func(yield func(store.KV) bool) {
		for e := range s.all.from(prefix) {
			if !yield(e.kv) {
				return
			}
		}
	}
}

// Record is a decoded value and the revision to compare. Revision 0 means that there is none.
type Record[T any] struct {
	Value    T
	Revision int64
}

// Decode returns what parse makes of a key's value; no key gives the zero Record and no error. parse
// runs once a revision of the key, and everybody is given the same value, so nobody may change it. An error of
// parse is returned to each caller and logged once. All callers of a key must use the same parse.
func Decode[T any](s Snapshot, key string, parse func([]byte) (T, error)) (Record[T], error) {
	e := s.all.get(key)
	if e == nil {
		return Record[T]{}, nil
	}
	return decode(s, e, parse)
}

func decode[T any](s Snapshot, e *entry, parse func([]byte) (T, error)) (Record[T], error) {
	r := Record[T]{Revision: e.kv.ModRevision}
	d := e.decoded.Load()
	if d == nil {
		v, err := parse(e.kv.Value)
		if err != nil {
			err = fmt.Errorf("%s: %w", e.kv.Key, err)
		}
		d = &decoded{v, err}
		if e.decoded.CompareAndSwap(nil, d) && err != nil && s.log != nil {
			s.log.Error("a record cannot be read: whoever decides by it decides nothing", "key", e.kv.Key, "revision", e.kv.ModRevision, "err", err)
		}
	}
	r.Value, _ = d.value.(T)
	return r, d.err
}

// Get decodes a JSON record as Decode does.
func Get[T any](s Snapshot, key string) (Record[T], error) { return Decode(s, key, fromJSON[T]) }

// List decodes the JSON records under prefix, by the rest of the key. With an error that names those
// that cannot be read, it still returns the others.
func List[T any](s Snapshot, prefix string) (map[string]Record[T], error) {
	out := map[string]Record[T]{}
	var errs []error
	for e := range s.all.from(prefix) {
		r, err := decode(s, e, fromJSON[T])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out[strings.TrimPrefix(e.kv.Key, prefix)] = r
	}
	return out, errors.Join(errs...)
}

// Read is Get for those who may not trust the copy: it reads st itself, linearizably. Errors: those of store.Get but
// ErrNotFound, and a record that cannot be decoded.
func Read[T any](ctx context.Context, st store.Store, key string) (Record[T], error) {
	kv, err := st.Get(ctx, key, store.Linearizable)
	if errors.Is(err, store.ErrNotFound) {
		return Record[T]{}, nil
	}
	if err != nil {
		return Record[T]{}, err
	}
	v, err := fromJSON[T](kv.Value)
	if err != nil {
		return Record[T]{}, fmt.Errorf("%s: %w", key, err)
	}
	return Record[T]{Value: v, Revision: kv.ModRevision}, nil
}

func fromJSON[T any](data []byte) (T, error) {
	var v T
	err := json.Unmarshal(data, &v)
	return v, err
}
