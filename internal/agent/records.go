package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// writeError turns the store's errors into sentences.
func writeError(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrNoQuorum):
		return model.Errorf(model.ErrNoQuorum, "%s: no quorum: most of the cluster's nodes do not answer, so nothing can be changed now (see `sauh cluster status`)", what)
	case errors.Is(err, store.ErrConflict):
		return model.Errorf(model.ErrConflict, "%s: someone else changed it at the same moment: look again and repeat", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// editTries is how often an edit is repeated when somebody else was faster.
const editTries = 5

// read is a linearizable Get for which a key that is not there is an empty one of revision 0.
func read(ctx context.Context, st store.Store, key string) (store.KV, error) {
	kv, err := st.Get(ctx, key, store.Linearizable)
	if errors.Is(err, store.ErrNotFound) {
		return store.KV{Key: key}, nil
	}
	return kv, err
}

// editKeys changes keys in one transaction by read, change, compare and write, again when somebody else was faster. f is given their values, nil for
// one that is not there, and returns the new ones in the same order, nil for one that is not to be there.
func editKeys(ctx context.Context, st store.Store, what string, keys []string, f func(old [][]byte) ([][]byte, error)) error {
	for range editTries {
		txn, old := store.Txn{}, make([][]byte, len(keys))
		for i, key := range keys {
			kv, err := read(ctx, st, key)
			if err != nil {
				return writeError(what, err)
			}
			old[i] = kv.Value
			txn.If = append(txn.If, store.Cond{Key: key, Revision: kv.ModRevision})
		}
		next, err := f(old)
		if err != nil {
			return err
		}
		for i, key := range keys {
			switch {
			case next[i] != nil:
				txn.Then = append(txn.Then, store.Put(key, next[i]))
			case txn.If[i].Revision != 0:
				txn.Then = append(txn.Then, store.Delete(key))
			}
		}
		if len(txn.Then) == 0 {
			return nil // they are not there already
		}
		if _, err = st.Txn(ctx, txn); !errors.Is(err, store.ErrConflict) {
			return writeError(what, err)
		}
	}
	return writeError(what, store.ErrConflict)
}

// editFile changes one configuration file, which may become empty and stays.
func editFile(ctx context.Context, st store.Store, what, key string, f func(old []byte) ([]byte, error)) error {
	return editRecord(ctx, st, what, key, func(old []byte) ([]byte, error) {
		next, err := f(old)
		if next == nil {
			next = []byte{}
		}
		return next, err
	})
}

// editRecord changes one record; nil deletes it.
func editRecord(ctx context.Context, st store.Store, what, key string, f func(old []byte) ([]byte, error)) error {
	return editKeys(ctx, st, what, []string{key}, func(old [][]byte) ([][]byte, error) {
		next, err := f(old[0])
		return [][]byte{next}, err
	})
}

// retryNoQuorum repeats f while it reports that there is no quorum, for at most limit.
func retryNoQuorum(ctx context.Context, limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if !errors.Is(err, store.ErrNoQuorum) || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		sleep(ctx, 100*time.Millisecond)
	}
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
