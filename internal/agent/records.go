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

// editFile changes one configuration file by read, change, compare and write,
// again when somebody else was faster.
func editFile(ctx context.Context, st store.Store, what, key string, f func([]byte) ([]byte, error), also ...store.KV) error {
	for range 5 {
		kv, err := st.Get(ctx, key, store.Linearizable)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return writeError(what, err)
		}
		next, err := f(kv.Value)
		if err != nil {
			return err
		}
		txn := store.Txn{If: []store.Cond{{Key: key, Revision: kv.ModRevision}}, Then: []store.Op{store.Put(key, next)}}
		for _, a := range also {
			old, err := read(ctx, st, a.Key)
			if err != nil {
				return writeError(what, err)
			}
			txn.If = append(txn.If, store.Cond{Key: a.Key, Revision: old.ModRevision})
			txn.Then = append(txn.Then, store.Put(a.Key, a.Value))
		}
		_, err = st.Txn(ctx, txn)
		if !errors.Is(err, store.ErrConflict) {
			return writeError(what, err)
		}
	}
	return writeError(what, store.ErrConflict)
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
