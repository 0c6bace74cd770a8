package mem

import (
	"context"
	"fmt"
	"strings"

	"sauh.dev/sauh/internal/store"
)

// Watch implements store.Store. From 0 or below means: from the next change on.
func (s *Store) Watch(ctx context.Context, prefix string, from int64) <-chan store.Batch {
	if from <= 0 {
		from = s.cluster.Revision() + 1
	}
	ch := make(chan store.Batch, 1)
	if !s.startWatch() {
		finish(ch, store.ErrClosed)
		return ch
	}
	go func() {
		defer s.watches.Done()
		s.watch(ctx, prefix, from, ch)
	}()
	return ch
}

// startWatch counts a watch in, unless the view is closed.
func (s *Store) startWatch() bool {
	s.cluster.mu.Lock()
	defer s.cluster.mu.Unlock()
	select {
	case <-s.closed:
		return false
	default:
		s.watches.Add(1)
		return true
	}
}

func (s *Store) watch(ctx context.Context, prefix string, from int64, ch chan store.Batch) {
	for {
		batch, changed, err := s.next(prefix, from)
		if err != nil {
			finish(ch, fmt.Errorf("watch %s from revision %d: %w", prefix, from, err))
			return
		}
		var out chan store.Batch
		if len(batch.Events) > 0 {
			out, changed = ch, nil
		}
		select {
		case out <- batch:
			from = batch.Revision + 1
		case <-changed:
		case <-s.closed:
			finish(ch, store.ErrClosed)
			return
		case <-ctx.Done():
			finish(ch, ctx.Err())
			return
		}
	}
}

// next collects what this view can see under prefix from revision from.
func (s *Store) next(prefix string, from int64) (store.Batch, <-chan struct{}, error) {
	c := s.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if from < c.compacted {
		return store.Batch{}, nil, store.ErrCompacted
	}
	var b store.Batch
	for _, change := range c.history {
		if change.revision < from || (s.stale != nil && change.revision > s.staleRev) {
			continue
		}
		for _, ev := range change.events {
			if strings.HasPrefix(ev.Key, prefix) {
				b.Revision = change.revision
				b.Events = append(b.Events, store.Event{KV: cloneKV(ev.KV), Deleted: ev.Deleted})
			}
		}
	}
	return b, c.changed, nil
}

// finish ends a watch: a batch that nobody took makes room for the last word.
// The caller is the channel's only sender, so the send cannot block.
func finish(ch chan store.Batch, err error) {
	select {
	case <-ch:
	default:
	}
	ch <- store.Batch{Err: err}
	close(ch)
}

func describe(t store.Txn) string {
	if len(t.Then) > 0 {
		return t.Then[0].Key
	}
	return "without writes"
}

func wrap(op, key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", op, key, err)
}
