package mem

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"sauh.dev/sauh/internal/store"
)

// The times of store/etcd: how long one attempt waits for its answer, and how
// long an operation tries in all, which stays below the second that the contract allows.
const (
	attemptTimeout = 400 * time.Millisecond
	totalTimeout   = 950 * time.Millisecond
)

// Store is one node's view of a Cluster.
type Store struct {
	cluster *Cluster
	name    string
	closed  chan struct{}
	once    sync.Once
	watches sync.WaitGroup

	// Guarded by cluster.mu.
	quorum      bool
	stale       map[string]store.KV // the data when the quorum was lost
	staleRev    int64
	loseAnswers int
	delay       time.Duration
}

var _ store.Store = (*Store)(nil)

// Name is the name that the view was opened with.
func (s *Store) Name() string { return s.name }

// SetQuorum cuts the view off from the majority, or connects it again. Cut off, it
// answers Local reads from the data as they were, and its watches stand still.
func (s *Store) SetQuorum(ok bool) {
	c := s.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.quorum && !ok {
		s.stale, s.staleRev = maps.Clone(c.data), c.revision
	}
	if ok {
		s.stale = nil
	}
	s.quorum = ok
	c.wakeLocked()
}

// LoseNextAnswers makes the next n attempts of this view's transactions happen without their answer arriving.
// The store itself tries again after 400 ms, so one transaction can use up two of them before it returns store.ErrNoQuorum.
func (s *Store) LoseNextAnswers(n int) {
	s.cluster.mu.Lock()
	defer s.cluster.mu.Unlock()
	s.loseAnswers = n
}

// SetDelay makes each request of this view take d before it reaches the cluster.
func (s *Store) SetDelay(d time.Duration) {
	s.cluster.mu.Lock()
	defer s.cluster.mu.Unlock()
	s.delay = d
}

// Close ends the view: watches end with store.ErrClosed, and so does every later call. It can be called twice.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.cluster.mu.Lock()
		defer s.cluster.mu.Unlock()
		close(s.closed)
	})
	s.watches.Wait()
	return nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, r store.Read) (store.KV, error) {
	var kv store.KV
	var found bool
	err := s.read(ctx, r, func(data map[string]store.KV, _ int64) {
		kv, found = data[key]
		kv = cloneKV(kv)
	})
	if err == nil && !found {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.KV{}, wrap("get", key, err)
	}
	return kv, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, r store.Read) ([]store.KV, int64, error) {
	var kvs []store.KV
	var revision int64
	err := s.read(ctx, r, func(data map[string]store.KV, rev int64) {
		kvs, revision = list(data, prefix), rev
	})
	if err != nil {
		return nil, 0, wrap("list", prefix, err)
	}
	return kvs, revision, nil
}

// Txn implements store.Store.
func (s *Store) Txn(ctx context.Context, t store.Txn) (int64, error) {
	if err := t.Validate(); err != nil {
		return 0, err
	}
	c := s.cluster
	c.mu.Lock()
	c.nextID++
	id := c.nextID
	c.mu.Unlock()
	total, cancel := context.WithTimeout(ctx, totalTimeout)
	defer cancel()
	for {
		revision, err := s.attempt(total, id, t)
		if err == nil || errors.Is(err, store.ErrConflict) {
			return revision, wrap("txn", describe(t), err)
		}
		if err := s.pause(ctx, total); err != nil {
			return 0, wrap("txn", describe(t), err)
		}
	}
}

// attempt sends t once. It returns nil, store.ErrConflict, or store.ErrNoQuorum when no answer came.
func (s *Store) attempt(ctx context.Context, id uint64, t store.Txn) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if err := s.reach(ctx); err != nil {
		return 0, store.ErrNoQuorum
	}
	c := s.cluster
	c.mu.Lock()
	revision, done := c.applied[id]
	if !done {
		if revision, done = c.commitLocked(t); done {
			c.applied[id] = revision
		}
	}
	lost := s.loseAnswers > 0
	if lost {
		s.loseAnswers--
	}
	c.mu.Unlock()
	switch {
	case lost:
		<-ctx.Done()
		return 0, store.ErrNoQuorum
	case !done:
		return 0, store.ErrConflict
	}
	return revision, nil
}

// reach waits until the request arrives at a majority, or ctx is done.
func (s *Store) reach(ctx context.Context) error {
	c := s.cluster
	c.mu.Lock()
	delay := s.delay
	c.mu.Unlock()
	if delay > 0 {
		if err := sleep(ctx, delay); err != nil {
			return err
		}
	}
	for {
		c.mu.Lock()
		quorum, changed := s.quorum, c.changed
		c.mu.Unlock()
		if quorum {
			return ctx.Err()
		}
		select {
		case <-changed:
		case <-s.closed:
			return store.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pause decides between two attempts: nil means try again.
func (s *Store) pause(ctx, total context.Context) error {
	select {
	case <-s.closed:
		return store.ErrClosed
	default:
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if total.Err() != nil {
		return store.ErrNoQuorum
	}
	return nil
}

// read calls f with the data of a Local or Linearizable read, under the lock.
func (s *Store) read(ctx context.Context, r store.Read, f func(map[string]store.KV, int64)) error {
	if r == store.Linearizable {
		total, cancel := context.WithTimeout(ctx, totalTimeout)
		defer cancel()
		if err := s.reach(total); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, store.ErrClosed) {
				return err
			}
			return store.ErrNoQuorum
		}
	}
	select {
	case <-s.closed:
		return store.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	default:
	}
	c := s.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.stale != nil {
		f(s.stale, s.staleRev)
		return nil
	}
	f(c.data, c.revision)
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
