package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"sauh.dev/sauh/internal/store"
)

// Get implements store.Store.
func (s *Server) Get(ctx context.Context, key string, r store.Read) (store.KV, error) {
	resp, err := s.read(ctx, key, r)
	if err == nil && len(resp.Kvs) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.KV{}, fmt.Errorf("read %s: %w", key, err)
	}
	return kvOf(resp.Kvs[0]), nil
}

// List implements store.Store.
func (s *Server) List(ctx context.Context, prefix string, r store.Read) ([]store.KV, int64, error) {
	resp, err := s.read(ctx, prefix, r, clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
	if err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", prefix, err)
	}
	kvs := make([]store.KV, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		kvs[i] = kvOf(kv)
	}
	return kvs, resp.Header.Revision, nil
}

func (s *Server) read(ctx context.Context, key string, r store.Read, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if r == store.Local {
		opts = append(opts, clientv3.WithSerializable())
	}
	total, cancel := context.WithTimeout(ctx, totalTimeout)
	defer cancel()
	for {
		if ctx.Err() != nil || s.ctx.Err() != nil {
			return nil, s.giveUp(ctx)
		}
		resp, err := s.client.KV.Get(total, key, opts...)
		if err == nil {
			return resp, nil
		}
		if !isTransient(err) {
			return nil, translate(err)
		}
		if err := s.pause(ctx, total, err); err != nil {
			return nil, err
		}
	}
}

// Watch implements store.Store. From 0 or below means: from the next change on.
func (s *Server) Watch(ctx context.Context, prefix string, from int64) <-chan store.Batch {
	ch := make(chan store.Batch, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || s.ctx.Err() != nil {
		finish(ch, store.ErrClosed)
		return ch
	}
	s.routines.Add(1)
	go func() {
		defer s.routines.Done()
		finish(ch, s.watch(ctx, prefix, from, ch))
	}()
	return ch
}

// watch copies etcd's responses, each of which holds whole revisions, until it
// returns the reason for the end. It reads this member's own copy, which goes on without a leader.
func (s *Server) watch(ctx context.Context, prefix string, from int64, ch chan<- store.Batch) error {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	responses := s.client.Watch(wctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(max(from, 0)))
	for {
		select {
		case resp, ok := <-responses:
			if !ok {
				return s.watchEnd(ctx, nil)
			}
			if err := resp.Err(); err != nil {
				return s.watchEnd(ctx, err)
			}
			if len(resp.Events) == 0 {
				continue
			}
			select {
			case ch <- batchOf(resp.Events):
			case <-ctx.Done():
				return ctx.Err()
			case <-s.ctx.Done():
				return store.ErrClosed
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return store.ErrClosed
		}
	}
}

func (s *Server) watchEnd(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil || s.ctx.Err() != nil:
		return store.ErrClosed
	case errors.Is(clientError(err), rpctypes.ErrCompacted):
		return store.ErrCompacted
	}
	return translate(err)
}

func batchOf(events []*clientv3.Event) store.Batch {
	b := store.Batch{Revision: events[len(events)-1].Kv.ModRevision, Events: make([]store.Event, len(events))}
	for i, ev := range events {
		if ev.Type == clientv3.EventTypeDelete {
			b.Events[i] = store.Event{KV: store.KV{Key: string(ev.Kv.Key), ModRevision: ev.Kv.ModRevision}, Deleted: true}
			continue
		}
		b.Events[i] = store.Event{KV: kvOf(ev.Kv)}
	}
	return b
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
