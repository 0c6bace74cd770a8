// Package storetest is the conformance suite of store.Store: what stands in its
// contract is a test here, and every implementation passes all of them.
//
// It measures nothing and knows no implementation. Invariant: a test uses keys under a
// prefix of its own, so that all of them can share one cluster. Start reading with [Run].
package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/store"
)

// Cluster is an implementation under test with the faults that the suite needs.
type Cluster interface {
	// Stores are the views of the nodes, two at least, of one replicated memory.
	Stores() []store.Store
	// SetQuorum(false) leaves the first store running without a majority; SetQuorum(true) brings the rest back.
	// The other stores may be new ones afterwards.
	SetQuorum(t *testing.T, ok bool)
	// LoseNextAnswers makes the next n attempts of the first store's transactions happen without an answer.
	LoseNextAnswers(n int)
	// Compact drops the history below revision.
	Compact(t *testing.T, revision int64)
}

// answerLimit is the contract's second, and slack for a machine that is busy with other tests.
const (
	answerLimit = time.Second
	slack       = 300 * time.Millisecond
	waitLimit   = 20 * time.Second // for things that only have to happen
)

// Run runs the suite on one cluster made by open.
func Run(t *testing.T, open func(t *testing.T) Cluster) {
	c := open(t)
	waitWritable(t, c.Stores()[0])
	for _, test := range []struct {
		name string
		run  func(*testing.T, Cluster)
	}{
		{"TxnCreatesAKeyOnlyWhenItDoesNotExist", txnCreatesOnlyOnce},
		{"TxnReplacesAValueOnlyAtTheRevisionCompared", txnComparesRevisions},
		{"TxnDeletesAtTheRevisionComparedAndTheKeyCanBeCreatedAgain", txnDeletes},
		{"TxnWritesAllKeysOrNone", txnIsAtomic},
		{"TxnRefusesAWriteThatIsNotCompared", txnRefusesUncompared},
		{"OneOfManyWritersWinsACompareAndSwap", oneWriterWins},
		{"CountersOfConcurrentWritersLoseNothing", countersLoseNothing},
		{"ListIsInOrderAndItsRevisionIsWhereAWatchGoesOn", listOrderAndRevision},
		{"AWriteIsSeenByALinearizableReadOfAnotherStore", writesAreSeenElsewhere},
		{"WatchDeliversEveryChangeInOrderUnderConcurrentWriters", watchHasNoGap},
		{"WatchStartsInThePast", watchFromThePast},
		{"WatchNeverSplitsATransaction", watchNeverSplits},
		{"WatchEndsWithItsContext", watchEndsWithContext},
		{"WatchFromACompactedRevisionSaysSo", watchCompacted},
		{"AWriteWhoseAnswerWasLostHappensOnce", lostAnswerHappensOnce},
		{"AnOperationEndsWithItsContext", operationEndsWithContext},
		{"WithoutQuorumReadsAnswerAndWritesFailWithinASecond", withoutQuorum},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
}

// waitWritable waits until the store commits, which a cluster that has just started needs a moment for.
func waitWritable(t *testing.T, s store.Store) {
	t.Helper()
	deadline := time.Now().Add(waitLimit)
	for {
		_, err := s.Txn(t.Context(), store.Txn{If: []store.Cond{{Key: "storetest/ready"}}})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the store is not writable after %v: %v", waitLimit, err)
		}
		pause(t.Context(), 10*time.Millisecond)
	}
}

// pause waits between two looks at something real.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func create(key, value string) store.Txn {
	return replace(key, value, 0)
}

func replace(key, value string, revision int64) store.Txn {
	return store.Txn{If: []store.Cond{{Key: key, Revision: revision}}, Then: []store.Op{store.Put(key, []byte(value))}}
}

func mustTxn(t *testing.T, s store.Store, txn store.Txn) int64 {
	t.Helper()
	revision, err := s.Txn(t.Context(), txn)
	if err != nil {
		t.Fatalf("Txn(%v): %v", txn, err)
	}
	return revision
}

func mustGet(t *testing.T, s store.Store, key string) store.KV {
	t.Helper()
	kv, err := s.Get(t.Context(), key, store.Linearizable)
	if err != nil {
		t.Fatalf("Get(%s): %v", key, err)
	}
	return kv
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// within fails the test if f takes longer than the contract allows.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if d := time.Since(start); d > answerLimit+slack {
		t.Errorf("%s took %v, want at most %v", what, d, answerLimit)
	}
}
