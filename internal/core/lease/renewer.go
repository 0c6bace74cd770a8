package lease

import (
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Identity is what a Renewer knows of its node when it starts.
type Identity struct {
	BootID string
	// Online is when the agent started, Unix seconds; it goes into the record of a node that registers.
	Online int64
	// MinEpoch is the epoch that the guard of this boot knows, 0 if none: a
	// record that does not exist is made with it, so that the guard never sees the epoch go down.
	MinEpoch uint64
}

// Event is what a Renewer is told.
type Event interface{ isEvent() }

// Action is what a Renewer wants done. The outcome of Read, Renew and Register comes
// back as exactly one event each, before which the Renewer wants nothing else.
type Action interface{ isAction() }

type (
	// Tick says that time has passed.
	Tick struct{}
	// Committed says that the last Renew or Register was committed at Revision.
	Committed struct{ Revision int64 }
	// Conflict says that its compare did not hold, so it changed nothing and never will.
	Conflict struct{}
	// Unknown says that the answer to the last Read, Renew or Register was lost. The write may be committed, now or later.
	Unknown struct{}
	// ReadBack is the answer to Read.
	ReadBack struct {
		Live     model.Live
		Revision int64
	}
	// ReadMissing is the answer to Read when there is no record.
	ReadMissing struct{}
	// FencedHandled says that the guard confirmed that no protected guest of an epoch before Epoch lives.
	FencedHandled struct{ Epoch uint64 }
	// Leave says that the node stops in good order and has no guest running.
	Leave struct{}
)

type (
	// Read asks for a linearizable read of the node's own record.
	Read struct{}
	// Renew asks for a transaction that compares the record's revision with IfRevision and writes Live.
	Renew struct {
		Live       model.Live
		IfRevision int64
	}
	// Register is a Renew that makes the node a living member again: the first
	// one of a boot, of a node that was fenced, or of one that had left. IfRevision 0 demands that there is no record.
	Register struct {
		Live       model.Live
		IfRevision int64
	}
	// Extend tells the guard that protected guests of Epoch may run until Deadline.
	Extend struct {
		Epoch    uint64
		Deadline time.Duration
	}
	// Fenced says that the node was cut off: have the guard kill everything before Epoch, then report FencedHandled.
	Fenced struct{ Epoch uint64 }
	// Removed says that the record of this node is gone or belongs to another machine. Have the
	// guard kill everything before Epoch; the Renewer is at its end.
	Removed struct{ Epoch uint64 }
)

func (Tick) isEvent()          {}
func (Committed) isEvent()     {}
func (Conflict) isEvent()      {}
func (Unknown) isEvent()       {}
func (ReadBack) isEvent()      {}
func (ReadMissing) isEvent()   {}
func (FencedHandled) isEvent() {}
func (Leave) isEvent()         {}

func (Read) isAction()     {}
func (Renew) isAction()    {}
func (Register) isAction() {}
func (Extend) isAction()   {}
func (Fenced) isAction()   {}
func (Removed) isAction()  {}

type phase int

const (
	reading phase = iota // the record is to be read
	renewing
	fenced // waits for FencedHandled
	left
	removed
)

// attempt is a write whose outcome was not seen yet.
type attempt struct {
	live model.Live
	sent time.Duration
}

// Renewer is a node's own liveness: it keeps the node's record alive and says
// until when the node may run protected guests. It is a value; Step returns the next one.
type Renewer struct {
	p  Params
	id Identity

	phase   phase
	busy    bool          // an action is out and its event has not come
	due     time.Duration // when to do the next thing, unless busy
	leaving bool

	known bool // live and rev hold what was last read or written
	live  model.Live
	rev   int64

	attempts   []attempt // ordered by time; the newest one may be in flight
	lastSeq    uint64
	handled    uint64 // the epoch of the last FencedHandled
	hasHandled bool
}

// NewRenewer starts a Renewer. It begins with reading the record, so an agent that was
// restarted extends nothing before a renewal of its own is committed.
func NewRenewer(p Params, id Identity) Renewer { return Renewer{p: p, id: id} }

// Step tells the Renewer what happened at now and returns what is to be done.
func (r Renewer) Step(now time.Duration, ev Event) (Renewer, []Action) {
	r.attempts = slices.Clone(r.attempts)
	switch ev := ev.(type) {
	case Tick:
	case Committed:
		return r.committed(now, ev.Revision)
	case Conflict:
		r.busy = false
		r.reread(now)
	case Unknown:
		r.unknown(now)
	case ReadBack:
		return r.readBack(now, ev)
	case ReadMissing:
		return r.missing(now)
	case FencedHandled:
		r.fencedHandled(now, ev.Epoch)
	case Leave:
		r.leaving = true
		r.due = now
	}
	return r.next(now)
}

// Wake returns when the next Tick is wanted; ok is false while an event is
// outstanding or nothing will ever be wanted.
func (r Renewer) Wake() (at time.Duration, ok bool) {
	return r.due, !r.busy && (r.phase == reading || r.phase == renewing)
}

// Live is the record that is in the store for all this node knows; ok is false before it was read or written.
func (r Renewer) Live() (live model.Live, ok bool) { return r.live, r.known }

// next does what is due.
func (r Renewer) next(now time.Duration) (Renewer, []Action) {
	if r.busy || now < r.due {
		return r, nil
	}
	switch r.phase {
	case reading:
		r.busy = true
		return r, []Action{Read{}}
	case renewing:
		return r.send(now)
	case fenced, left, removed:
	}
	return r, nil
}

// send writes the record. The sequence number is unique among all attempts of
// this boot, those of an earlier agent included, because it never falls behind the clock in
// microseconds; so a record that is read back with it was written by this very attempt.
func (r Renewer) send(now time.Duration) (Renewer, []Action) {
	r.lastSeq = max(r.lastSeq+1, uint64(now/time.Microsecond))
	live := r.live
	register := !r.known || live.BootID != r.id.BootID || live.Fenced || live.Left
	if register {
		live.Online = r.id.Online
	}
	live.BootID, live.Seq, live.Fenced, live.By, live.Left = r.id.BootID, r.lastSeq, false, "", r.leaving
	r.attempts = append(r.attempts, attempt{live: live, sent: now})
	r.busy = true
	if register {
		return r, []Action{Register{Live: live, IfRevision: r.rev}}
	}
	return r, []Action{Renew{Live: live, IfRevision: r.rev}}
}

func (r Renewer) committed(now time.Duration, revision int64) (Renewer, []Action) {
	if !r.busy || r.phase != renewing || len(r.attempts) == 0 {
		return r, nil
	}
	r.busy = false
	a := r.attempts[len(r.attempts)-1]
	r, actions := r.accept(now, a, revision)
	r, more := r.next(now)
	return r, append(actions, more...)
}

// accept takes over the record that attempt a has written.
func (r Renewer) accept(now time.Duration, a attempt, revision int64) (Renewer, []Action) {
	r.known, r.live, r.rev = true, a.live, revision
	r.attempts = slices.DeleteFunc(r.attempts, func(o attempt) bool { return o.live.Seq <= a.live.Seq })
	if a.live.Left {
		r.phase = left
		return r, nil
	}
	r.phase = renewing
	r.due = a.sent + r.p.Renew
	if r.leaving {
		r.due = now
	}
	return r, []Action{Extend{Epoch: a.live.Epoch, Deadline: a.sent + r.p.Lease}}
}

// reread makes the Renewer look at the record before it writes again.
func (r *Renewer) reread(now time.Duration) {
	if r.phase == renewing {
		r.phase, r.due = reading, now
	}
}

func (r *Renewer) unknown(now time.Duration) {
	if !r.busy {
		return
	}
	r.busy = false
	if r.phase == reading {
		r.due = now + r.p.Renew/4 // a bounded pace against a store without a quorum
		return
	}
	r.reread(now)
}

func (r Renewer) readBack(now time.Duration, ev ReadBack) (Renewer, []Action) {
	if !r.busy || r.phase != reading {
		return r, nil
	}
	r.busy = false
	wasMine := r.known && r.live.BootID == r.id.BootID
	if ev.Live.BootID != r.id.BootID && wasMine {
		r.phase = removed
		return r, []Action{Removed{Epoch: max(ev.Live.Epoch, r.live.Epoch+1)}}
	}
	if i := slices.IndexFunc(r.attempts, func(a attempt) bool { return a.live == ev.Live }); i >= 0 {
		r, actions := r.accept(now, r.attempts[i], ev.Revision)
		r, more := r.next(now)
		return r, append(actions, more...)
	}
	r.known, r.live, r.rev = true, ev.Live, ev.Revision
	sameBoot := ev.Live.BootID == r.id.BootID
	if ev.Live.Fenced && sameBoot && (!r.hasHandled || ev.Live.Epoch > r.handled) {
		r.phase = fenced
		return r, []Action{Fenced{Epoch: ev.Live.Epoch}}
	}
	r.phase, r.due = renewing, now
	return r.next(now)
}

func (r Renewer) missing(now time.Duration) (Renewer, []Action) {
	if !r.busy || r.phase != reading {
		return r, nil
	}
	r.busy = false
	if r.known {
		r.phase = removed
		return r, []Action{Removed{Epoch: r.live.Epoch + 1}}
	}
	r.live, r.rev = model.Live{Epoch: r.id.MinEpoch}, 0
	r.phase, r.due = renewing, now
	return r.next(now)
}

func (r *Renewer) fencedHandled(now time.Duration, epoch uint64) {
	r.handled, r.hasHandled = max(r.handled, epoch), true
	if r.phase == fenced && epoch >= r.live.Epoch {
		r.phase, r.due = renewing, now
	}
}
