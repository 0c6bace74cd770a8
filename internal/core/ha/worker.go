package ha

import (
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// Worker is the state machine of one node that keeps its HA resources in the state asked for. It remembers only how often
// and when guests were started. Without a quorum or a valid lease it does nothing. The zero value is not usable, see [NewWorker].
type Worker struct {
	self   string
	p      Params
	view   LocalView
	ready  bool
	ledger ledger
	guests map[model.VMID]tries
	lonely bool          // there has been no quorum or lease
	since  time.Duration // since then
	// seen are when the guests on which others wait were first seen to run.
	seen map[model.VMID]time.Duration
}

// NewWorker makes the worker of the node self.
func NewWorker(self string, p Params) Worker {
	return Worker{self: self, p: p, ledger: newLedger(), guests: make(map[model.VMID]tries), seen: make(map[model.VMID]time.Duration)}
}

// Step feeds an event at now, on the clock of all other calls, and returns what is to be done. It consumes w: only the worker returned
// may be used again. The maps of a LocalView must not change after it was fed.
func (w Worker) Step(now time.Duration, ev Event) (Worker, []Action) {
	switch ev := ev.(type) {
	case LocalView:
		w.look(now, ev)
	case ProcessGone:
		w.gone(ev.VMID)
	case ActionDone:
		w.ledger.done(ev)
		w.done(now, ev.Action)
	case ActionFailed:
		w.failed(now, ev)
	}
	if !w.ready {
		return w, nil
	}
	w.observe(now)
	return w, w.decide(now)
}

func (w *Worker) look(now time.Duration, v LocalView) {
	w.view, w.ready = v, true
	w.ledger.caughtUp(v.Revision)
	for id, t := range w.guests {
		if t.stale {
			t.stale = false
			w.guests[id] = t
		}
	}
	if able := v.Quorate && v.LeaseValid; able || !w.lonely {
		w.lonely, w.since = !able, now
	}
}

// gone notes that a QEMU has ended. The view's own map stays as it is.
func (w *Worker) gone(id model.VMID) {
	left := make(map[model.VMID]Process, len(w.view.Processes))
	for other, p := range w.view.Processes {
		if other != id {
			left[other] = p
		}
	}
	w.view.Processes = left
	w.change(id, func(t *tries) { t.stale = false })
}

// change edits what is remembered of a guest.
func (w *Worker) change(id model.VMID, edit func(*tries)) {
	t := w.guests[id]
	edit(&t)
	w.guests[id] = t
}

func (w *Worker) done(now time.Duration, a Action) {
	if s, ok := a.(SetStatus); ok {
		w.change(s.VMID, func(t *tries) { t.owed, t.paid = max(t.owed-t.paid, 0), 0 })
	}
	id, ok := subject(a)
	if !ok {
		return
	}
	w.change(id, func(t *tries) {
		t.stale, t.note, t.err = true, "", false
		switch a.(type) {
		case Start:
			t.running, t.since, t.locked, t.owed, t.paid, t.aways = true, now, false, 0, 0, 0
		case Stop:
			t.stops, t.running = 0, false
		case Reset:
			t.fail(now, w.p)
		}
	})
}

func (w *Worker) failed(now time.Duration, ev ActionFailed) {
	id, ok := subject(ev.Action)
	if !ok {
		w.ledger.failed(ev.Action, now+w.p.Retry)
		return
	}
	w.ledger.failed(ev.Action, 0)
	w.change(id, func(t *tries) {
		t.away = false
		aways := t.aways
		if ev.Kind != FailAway {
			t.aways = 0
		}
		switch {
		case ev.Kind == FailConflict:
			t.notBefore = now + w.p.Retry
		case ev.Kind == FailUnready: // nothing is wrong with the guest: not counted
			t.notBefore = now + w.p.LockRetry
			t.note, t.err = verb(ev.Action)+" waits: "+ev.Reason, false
		case ev.Kind == FailLocked && t.patient(now, w.p):
			t.notBefore = now + w.p.LockRetry
			t.note, t.err = "its image is still locked by another process; retrying", false
		case w.withoutDisks(now, ev, aways, t): // as above; who waits for a storage waits longer
			t.note, t.err = verb(ev.Action)+" waits: "+ev.Reason, false
			t.notBefore, t.aways, t.away = now+w.awayWait(aways), aways+1, true
		default:
			t.note, t.err = verb(ev.Action)+" failed: "+ev.Reason, true
			if t.count(ev.Action) {
				t.fail(now, w.p)
			}
		}
		t.locked = t.locked && ev.Kind == FailLocked
	})
}

// observe notes which guests run and which have ended.
func (w *Worker) observe(now time.Duration) {
	known := make(map[model.VMID]bool, len(w.view.Guests))
	for _, g := range w.view.Guests {
		known[g.VMID] = true
		t := w.guests[g.VMID]
		if state := w.view.Resources[g.VMID]; t.state != state {
			t = tries{state: state, stale: t.stale, here: t.here, ran: t.ran, endedAt: t.endedAt}
		}
		p, runs := w.view.Processes[g.VMID]
		runs = runs && p.State == ProcessRunning
		if t.here && !runs {
			t.ran, t.endedAt = true, now
		}
		t.here = runs
		switch {
		case t.stale:
		case w.leaveAlone(g.VMID), !runs && w.ending(g.VMID):
			t.running = false
		case runs && !t.running:
			t.running, t.since, t.locked = true, now, false
			t.note, t.err = "", false
		case !runs && t.running && t.state == pveconf.HAStarted && w.view.NodeMode.Ends == "":
			t.ended(now, w.p)
		case !runs:
			t.running = false
		}
		w.guests[g.VMID] = t
	}
	for id := range w.guests {
		if _, stray := w.view.Processes[id]; !known[id] && !stray {
			delete(w.guests, id)
		}
	}
}

// ending: this worker has the guest's QEMU ended, or moved, at the moment.
func (w *Worker) ending(id model.VMID) bool {
	switch w.ledger.flying[Stop{VMID: id}.Key()].(type) {
	case Stop, Migrate, Discard:
		return true
	}
	return false
}

// leaveAlone: a task or a migration has the guest in hand.
func (w *Worker) leaveAlone(id model.VMID) bool {
	_, intent := w.view.Intents[id]
	_, busy := w.view.Busy[id]
	return intent || busy
}

// runs: the guest's QEMU is here and has run.
func (w *Worker) runs(id model.VMID) bool {
	p, ok := w.view.Processes[id]
	return ok && p.State == ProcessRunning
}

// MayLeave says whether a node that ends in order (LocalView.NodeMode) has nothing left to wait for, or else for what it waits. The agent
// asks after each step; it then ends what HA does not care for, and its lease with it.
func (w Worker) MayLeave(now time.Duration) (bool, string) {
	if !w.ready {
		return false, "it has not seen the cluster yet"
	}
	if w.lonely {
		if left := w.p.TakeAfter - (now - w.since); left > 0 {
			return false, "there is no quorum"
		}
		return true, ""
	}
	for _, g := range w.view.Guests {
		_, ha := w.view.Resources[g.VMID]
		if !ha || !w.managed(g) {
			continue
		}
		if _, acting := w.ledger.flying["guest "+g.VMID.SID()]; acting || w.leaveAlone(g.VMID) {
			return false, "something is being done with " + g.SID()
		}
		if w.mustLeave(g) {
			return false, fmt.Sprintf("%s has not left yet", g.SID())
		}
		if _, runs := w.view.Processes[g.VMID]; runs && w.view.Statuses[g.VMID].State != StatusError {
			return false, fmt.Sprintf("%s still runs", g.SID())
		}
	}
	return true, ""
}

// mustLeave: the node ends only when this guest is elsewhere.
func (w *Worker) mustLeave(g Guest) bool {
	return w.view.Policy.Shutdown == ShutdownMigrate && g.Local == "" &&
		w.view.Resources[g.VMID] == pveconf.HAStarted && w.view.Statuses[g.VMID].State != StatusError
}
