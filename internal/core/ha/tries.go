package ha

import (
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// tries is what the worker remembers of a guest.
type tries struct {
	state     pveconf.HAState // asked for; a change makes everything below anew
	attempts  int             // starts since the guest last ran stably
	failures  int             // ends and failed actions since then
	notBefore time.Duration   // of the next action
	away      bool            // that wait is for a storage: the guest may leave meanwhile
	aways     int             // starts in a row that failed for want of one,
	awaySince time.Duration   // the first then
	running   bool            // it was seen, or started,
	since     time.Duration   // then
	here      bool            // its QEMU was here at the last look
	ran       bool            // it was, and has ended
	endedAt   time.Duration   // then
	locked    bool            // its image was locked at the last start, and has been
	lockedAt  time.Duration   // since then
	stale     bool            // something was done that the view does not show
	note      string          // what happened last, for the status
	err       bool            // note is an error
	owed      int             // failed starts that the record does not have yet
	paid      int             // how many of them the record that is being written has
	stops     int             // stops that failed in a row
	// moveFailed says why the move that the record of revision moveOf wants has failed, "" if it has not.
	moveFailed string
	moveOf     int64
	asked      bool          // it waits for the manager's word to start,
	askedAt    time.Duration // since then
	waits      bool          // it waits for others to run,
	waitsAt    time.Duration // since then
}

// patient notes since when the image is locked and reports whether whoever holds it may still be the QEMU that a
// guard is about to kill.
func (t *tries) patient(now time.Duration, p Params) bool {
	if !t.locked {
		t.locked, t.lockedAt = true, now
	}
	return now-t.lockedAt < p.LockPatience
}

// fail counts one more failure and sets the wait after it: none after the first, then doubling.
func (t *tries) fail(now time.Duration, p Params) {
	var wait time.Duration
	if t.failures > 0 {
		wait = backoff(p.BackoffFirst, p.BackoffMax, t.failures)
	}
	t.notBefore = now + wait
	t.failures++
}

// count notes a failure that the record must know, and reports whether what is done to the guest next must wait for it. A move
// that failed must not keep the guest from running where it is: the manager sees to the wait.
func (t *tries) count(a Action) bool {
	switch a := a.(type) {
	case Start:
		t.owed++
	case Stop:
		t.stops++
	case Migrate:
		t.moveFailed, t.moveOf = t.note, a.StatusRevision
		return false
	case Handover:
		t.moveFailed, t.moveOf = t.note, a.StatusRevision
		return false
	}
	return true
}

// ended notes that the guest's QEMU is gone. One that ran stably starts with a clean sheet.
func (t *tries) ended(now time.Duration, p Params) {
	if now-t.since >= p.Stable {
		t.attempts, t.failures = 0, 0
	}
	t.running = false
	t.note, t.err = "its QEMU ended; it is started again", false
	t.fail(now, p)
}

// subject is the guest of an action that has the guest's key.
func subject(a Action) (model.VMID, bool) {
	switch a := a.(type) {
	case Start:
		return a.VMID, true
	case Stop:
		return a.VMID, true
	case Acknowledge:
		return a.VMID, true
	case Unacknowledge:
		return a.VMID, true
	case Discard:
		return a.VMID, true
	case Migrate:
		return a.VMID, true
	case Handover:
		return a.VMID, true
	case Reset:
		return a.VMID, true
	}
	return 0, false
}

// verb names an action in a sentence about its failure.
func verb(a Action) string {
	switch a.(type) {
	case Start:
		return "start"
	case Stop:
		return "stop"
	case Acknowledge:
		return "putting it under the guard"
	case Unacknowledge:
		return "taking it from the guard"
	case Migrate:
		return "migration"
	case Handover:
		return "handing it over"
	case Reset:
		return "reset"
	default:
		return "killing its leftover QEMU"
	}
}
