package ha

import (
	"maps"
	"time"
)

// ledger remembers which actions are under way, so that none is given out twice.
type ledger struct {
	flying  map[string]Action        // given out, not answered
	settled map[string]Action        // done; given out again only if it differs, that is, once the view shows more
	retryAt map[string]time.Duration // failed; not before
}

func newLedger() ledger {
	return ledger{make(map[string]Action), make(map[string]Action), make(map[string]time.Duration)}
}

func (l ledger) clone() ledger {
	return ledger{maps.Clone(l.flying), maps.Clone(l.settled), maps.Clone(l.retryAt)}
}

func (l ledger) done(a Action) {
	delete(l.flying, a.Key())
	delete(l.retryAt, a.Key())
	l.settled[a.Key()] = a
}

func (l ledger) failed(a Action, retryAt time.Duration) {
	delete(l.flying, a.Key())
	l.retryAt[a.Key()] = retryAt
}

// outbox collects the actions of one Step and notes them in the ledger.
type outbox struct {
	ledger
	now  time.Duration
	list []Action
	next time.Duration // 0: no wake
}

// add gives a out, unless one like it is under way, was just done, or failed a moment ago.
func (o *outbox) add(a Action) {
	if _, ok := o.flying[a.Key()]; ok {
		return
	}
	if at, ok := o.retryAt[a.Key()]; ok && o.now < at {
		o.wake(at)
		return
	}
	if settled, ok := o.settled[a.Key()]; ok && sameFacts(settled, a) {
		return
	}
	o.flying[a.Key()] = a
	o.list = append(o.list, a)
}

// wake asks to be called at, or earlier.
func (o *outbox) wake(at time.Duration) {
	if o.next == 0 || at < o.next {
		o.next = at
	}
}

// actions are those given out, the wake last.
func (o *outbox) actions() []Action {
	if o.next > 0 {
		return append(o.list, Wake{o.next})
	}
	return o.list
}

// sameFacts reports whether two actions compare the same revisions, so that the second would fail after the first.
func sameFacts(a, b Action) bool {
	type comparer interface{ Compares() []Compare }
	ca, ok := a.(comparer)
	cb, ok2 := b.(comparer)
	if !ok || !ok2 {
		return false
	}
	fa, fb := ca.Compares(), cb.Compares()
	if len(fa) != len(fb) {
		return false
	}
	for i := range fa {
		if fa[i] != fb[i] {
			return false
		}
	}
	return true
}
