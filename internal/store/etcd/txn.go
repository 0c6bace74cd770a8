package etcd

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	servererrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// A proposal in flight while the leader changes is dropped without an answer, so
// an attempt is given up long before etcd's own 7 s. Two attempts and a bit stay below the second
// that the contract allows.
const (
	attemptTimeout = 400 * time.Millisecond
	totalTimeout   = 950 * time.Millisecond
	retryPause     = 20 * time.Millisecond // after an attempt that failed at once
)

// slotCount is the number of transactions that one member has under way at a time; others wait their turn.
const slotCount = 32

// slot is a key that each transaction of one writer at a time compares and
// writes, so that of all its attempts one at most can be committed, and so that a later attempt
// recognises an earlier one.
type slot struct {
	key      string
	revision int64 // of the slot's last known write; a guess that the next attempt corrects
}

func newSlots(name string) chan *slot {
	slots := make(chan *slot, slotCount)
	for i := range slotCount {
		slots <- &slot{key: model.AppliedPrefix + name + "/" + strconv.Itoa(i)}
	}
	return slots
}

// newIDBase makes the transaction ids of this process differ from those of the member's earlier lives.
func newIDBase() string {
	b := make([]byte, 12)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b)
}

func (s *Server) newID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextID++
	return s.idBase + "-" + strconv.FormatUint(s.nextID, 16)
}

// Txn implements store.Store.
func (s *Server) Txn(ctx context.Context, t store.Txn) (int64, error) {
	if err := t.Validate(); err != nil {
		return 0, err
	}
	revision, err := s.txn(ctx, t)
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", describe(t), err)
	}
	return revision, nil
}

func describe(t store.Txn) string {
	switch len(t.Then) {
	case 0:
		return "nothing"
	case 1:
		return t.Then[0].Key
	}
	return fmt.Sprintf("%s and %d more", t.Then[0].Key, len(t.Then)-1)
}

func (s *Server) txn(ctx context.Context, t store.Txn) (int64, error) {
	total, cancel := context.WithTimeout(ctx, totalTimeout)
	defer cancel()
	var sl *slot
	select {
	case sl = <-s.slots:
	case <-total.Done():
		return 0, s.giveUp(ctx)
	case <-s.ctx.Done():
		return 0, store.ErrClosed
	}
	defer func() { s.slots <- sl }()

	id := s.newID()
	for {
		answer, err := s.attempt(total, sl, id, t)
		switch {
		case err == nil && answer.known:
			return answer.revision, answer.err
		case err == nil: // the slot had moved; its revision is right now
		case !isTransient(err):
			return 0, translate(err)
		}
		if err := s.pause(ctx, total, err); err != nil {
			return 0, err
		}
	}
}

// verdict is what one attempt found out.
type verdict struct {
	known    bool  // the transaction's fate is decided
	revision int64 // if err is nil
	err      error // store.ErrConflict
}

// attempt proposes t once. If it is not the first to arrive it learns from the slot what became of t.
func (s *Server) attempt(ctx context.Context, sl *slot, id string, t store.Txn) (verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	resp, err := s.commit(ctx, buildTxn(sl, id, t))
	if err != nil {
		return verdict{}, err
	}
	if resp.Succeeded {
		sl.revision = resp.Header.Revision
		return verdict{known: true, revision: resp.Header.Revision}, nil
	}
	before := sl.revision
	sl.revision = 0
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		sl.revision = kvs[0].ModRevision
		if string(kvs[0].Value) == id {
			return verdict{known: true, revision: kvs[0].ModRevision}, nil
		}
	}
	if sl.revision == before {
		return verdict{known: true, err: store.ErrConflict}, nil
	}
	return verdict{}, nil
}

// etcdTxn is one attempt in etcd's terms.
type etcdTxn struct {
	conds []clientv3.Cmp
	then  []clientv3.Op
	slot  string
}

func buildTxn(sl *slot, id string, t store.Txn) etcdTxn {
	et := etcdTxn{slot: sl.key}
	et.conds = append(et.conds, clientv3.Compare(clientv3.ModRevision(sl.key), "=", sl.revision))
	for _, c := range t.If {
		et.conds = append(et.conds, clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.Revision))
	}
	et.then = append(et.then, clientv3.OpPut(sl.key, id))
	for _, op := range t.Then {
		if op.Delete {
			et.then = append(et.then, clientv3.OpDelete(op.Key))
		} else {
			et.then = append(et.then, clientv3.OpPut(op.Key, string(op.Value)))
		}
	}
	return et
}

type txnResponse = clientv3.TxnResponse

// commitFunc sends one attempt.
type commitFunc func(ctx context.Context, t etcdTxn) (*txnResponse, error)

func (s *Server) commitOnce(ctx context.Context, t etcdTxn) (*txnResponse, error) {
	return s.client.KV.Txn(ctx).If(t.conds...).Then(t.then...).Else(clientv3.OpGet(t.slot)).Commit()
}

// pause waits a little after an attempt that failed early, and ends the retries when it is time.
func (s *Server) pause(ctx, total context.Context, failed error) error {
	wait := time.Duration(0)
	if failed != nil {
		wait = retryPause
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		if total.Err() == nil {
			return nil
		}
	case <-total.Done():
	case <-s.ctx.Done():
		return store.ErrClosed
	}
	return s.giveUp(ctx)
}

// giveUp tells the caller's own deadline from ours.
func (s *Server) giveUp(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.ctx.Err() != nil {
		return store.ErrClosed
	}
	return store.ErrNoQuorum
}

// isTransient: another attempt can succeed.
func isTransient(err error) bool {
	for _, e := range []error{
		context.DeadlineExceeded, context.Canceled,
		rpctypes.ErrNoLeader, rpctypes.ErrLeaderChanged, rpctypes.ErrNotLeader, rpctypes.ErrTimeout,
		rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrTimeoutDueToConnectionLost, rpctypes.ErrTimeoutWaitAppliedIndex,
		rpctypes.ErrTooManyRequests, rpctypes.ErrUnhealthy,
	} {
		if errors.Is(clientError(err), e) {
			return true
		}
	}
	return errors.Is(err, servererrors.ErrLeaderChanged)
}

// clientError brings an error of an in-process call into the form that rpctypes' values have.
func clientError(err error) error {
	var ee rpctypes.EtcdError
	if errors.As(err, &ee) {
		return err
	}
	return rpctypes.Error(err)
}

// translate maps errors for good to the contract's.
func translate(err error) error {
	switch e := clientError(err); {
	case errors.Is(e, rpctypes.ErrCompacted):
		return store.ErrCompacted
	case errors.Is(e, rpctypes.ErrStopped), errors.Is(err, servererrors.ErrStopped):
		return store.ErrClosed
	case errors.Is(e, rpctypes.ErrRequestTooLarge):
		return model.Invalidf("txn", "the values are larger than %d bytes together", maxRequestBytes)
	case errors.Is(e, rpctypes.ErrTooManyOps):
		return model.Invalidf("txn", "more than %d operations", maxTxnOps-1)
	}
	return err
}

// kvOf converts etcd's key to the store's.
func kvOf(kv *mvccpb.KeyValue) store.KV {
	return store.KV{Key: string(kv.Key), Value: bytes.Clone(kv.Value), CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision}
}
