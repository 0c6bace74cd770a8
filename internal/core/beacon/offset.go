package beacon

import (
	"math"
	"time"
)

// window is the time after which the bounds on a clock begin to be forgotten; they are twice as old at most. In ten seconds
// some forty datagrams arrive, the fastest of which gives the bound.
const window = Keep / 2

// bounds hold the offset of a clock: a sender's time plus the offset is this node's.
type bounds struct{ lo, hi time.Duration }

func unbounded() bounds { return bounds{lo: math.MinInt64, hi: math.MaxInt64} }

// known reports whether there is a bound on both sides.
func (b bounds) known() bool { return b.lo != math.MinInt64 && b.hi != math.MaxInt64 }

func (b bounds) and(o bounds) bounds { return bounds{lo: max(b.lo, o.lo), hi: min(b.hi, o.hi)} }

// widen allows for d more on both sides.
func (b bounds) widen(d time.Duration) bounds {
	if b.lo != math.MinInt64 {
		b.lo -= d
	}
	if b.hi != math.MaxInt64 {
		b.hi += d
	}
	return b
}

// impossible reports whether no clock that drifts within its limits can be there.
func (b bounds) impossible() bool { return b.known() && b.lo-slack > b.hi+slack }

// offset keeps the tightest bounds of the last one to two windows.
//
// A message that was sent at s and arrived at r took no negative time, so the offset is at most r - s. A message of this node's, sent
// at s and arrived there at r, took none either, so it is at least s - r. Delays, queues and sleeps on
// either side make bounds wider and never wrong.
type offset struct {
	now, old bounds
	turned   time.Duration
}

func newOffset(at time.Duration) offset {
	return offset{now: unbounded(), old: unbounded(), turned: at}
}

// note takes in a bound. It reports false, and begins anew with what b says of the upper side, if
// the bounds contradict each other: one of the two clocks stood still or jumped. What was before
// cannot be placed any more.
func (o *offset) note(at time.Duration, b bounds) bool {
	if at-o.turned > window {
		o.old, o.now, o.turned = o.now, unbounded(), at
	}
	o.now = o.now.and(b)
	if !o.get().impossible() {
		return true
	}
	*o = newOffset(at)
	o.now.hi = b.hi
	return false
}

// resume begins anew after a silence, however long: what was known before it is kept, made wider by the drift, so that the next bounds
// show whether a clock stood still meanwhile. It reports false if nothing was known.
func (o *offset) resume(at time.Duration) bool {
	o.old, o.now, o.turned = o.get().widen(drift(at-o.turned)), unbounded(), at
	return o.old.known()
}

func (o *offset) get() bounds { return o.now.and(o.old) }
