package ha

import (
	"maps"
	"time"
)

// ledger remembers which actions are under way, so that none is given out twice.
type ledger struct {
	flying  map[string]Action        // given out, not answered
	settled map[string]settled       // carried out, and no view shows it yet
	retryAt map[string]time.Duration // failed; not before
}

// settled is a transaction that was committed.
type settled struct {
	action   Action
	revision int64
}

func newLedger() ledger {
	return ledger{make(map[string]Action), make(map[string]settled), make(map[string]time.Duration)}
}

func (l ledger) done(ev ActionDone) {
	key := ev.Action.Key()
	delete(l.flying, key)
	delete(l.retryAt, key)
	if ev.Revision > 0 {
		l.settled[key] = settled{ev.Action, ev.Revision}
	}
}

func (l ledger) failed(a Action, retryAt time.Duration) {
	delete(l.flying, a.Key())
	l.retryAt[a.Key()] = retryAt
}

// caughtUp forgets what a view of this revision shows.
func (l ledger) caughtUp(revision int64) {
	maps.DeleteFunc(l.settled, func(_ string, s settled) bool { return s.revision <= revision })
}

// pending is the action under this key that a view does not show yet, nil if there is none.
func (l ledger) pending(key string) Action {
	if a, ok := l.flying[key]; ok {
		return a
	}
	return l.settled[key].action
}

// outbox collects the actions of one Step and notes them in the ledger.
type outbox struct {
	ledger
	now  time.Duration
	list []Action
	next time.Duration // 0: no wake
}

// add gives a out, unless one like it is under way, is not in the view yet, or failed a moment ago.
func (o *outbox) add(a Action) {
	key := a.Key()
	if o.pending(key) != nil {
		return
	}
	if at, ok := o.retryAt[key]; ok && o.now < at {
		o.wake(at)
		return
	}
	o.flying[key] = a
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
