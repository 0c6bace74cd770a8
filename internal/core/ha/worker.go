package ha

import (
	"fmt"
	"maps"
	"slices"
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
}

// tries is what the worker remembers of a guest.
type tries struct {
	state     pveconf.HAState // asked for; a change makes everything below anew
	attempts  int             // starts since the guest last ran stably
	failures  int             // ends and failed actions since then
	notBefore time.Duration   // of the next action
	running   bool            // it was seen, or started,
	since     time.Duration   // then
	locked    bool            // its image was locked at the last start, and has been
	lockedAt  time.Duration   // since then
	stale     bool            // something was done that the view does not show
	note      string          // what happened last, for the status
	err       bool            // note is an error
}

// NewWorker makes the worker of the node self.
func NewWorker(self string, p Params) Worker {
	return Worker{self: self, p: p, ledger: newLedger(), guests: make(map[model.VMID]tries)}
}

// Step feeds an event at now, on the clock of all other calls, and returns what is to be done. w itself stays as it is.
func (w Worker) Step(now time.Duration, ev Event) (Worker, []Action) {
	w.ledger = w.ledger.clone()
	w.guests = maps.Clone(w.guests)
	switch ev := ev.(type) {
	case LocalView:
		w.look(ev)
	case ProcessGone:
		w.view.Processes = maps.Clone(w.view.Processes)
		delete(w.view.Processes, ev.VMID)
		w.change(ev.VMID, func(t *tries) { t.stale = false })
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

func (w *Worker) look(v LocalView) {
	w.view, w.ready = v, true
	w.ledger.caughtUp(v.Revision)
	for id := range w.guests {
		w.change(id, func(t *tries) { t.stale = false })
	}
}

// change edits what is remembered of a guest.
func (w *Worker) change(id model.VMID, edit func(*tries)) {
	t := w.guests[id]
	edit(&t)
	w.guests[id] = t
}

func (w *Worker) done(now time.Duration, a Action) {
	id, ok := subject(a)
	if !ok {
		return
	}
	w.change(id, func(t *tries) {
		t.stale, t.note, t.err = true, "", false
		if _, started := a.(Start); started {
			t.running, t.since, t.locked = true, now, false
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
		switch {
		case ev.Kind == FailConflict:
			t.notBefore = now + w.p.Retry
		case ev.Kind == FailLocked && t.patient(now, w.p):
			t.notBefore = now + w.p.LockRetry
			t.note, t.err = "its image is still locked by another process; retrying", false
		default:
			t.fail(now, w.p)
			t.note, t.err = verb(ev.Action)+" failed: "+ev.Reason, true
		}
		t.locked = t.locked && ev.Kind == FailLocked
	})
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
		wait = min(p.BackoffFirst<<min(t.failures-1, 20), p.BackoffMax)
	}
	t.notBefore = now + wait
	t.failures++
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

// observe notes which guests run and which have ended.
func (w *Worker) observe(now time.Duration) {
	known := make(map[model.VMID]bool)
	for _, g := range w.view.Guests {
		known[g.VMID] = true
		t := w.guests[g.VMID]
		if state := w.view.Resources[g.VMID]; t.state != state {
			t = tries{state: state, stale: t.stale}
		}
		p, runs := w.view.Processes[g.VMID]
		runs = runs && p.State == ProcessRunning
		switch {
		case t.stale:
		case w.leaveAlone(g.VMID):
			t.running = false
		case runs && !t.running:
			t.running, t.since, t.locked = true, now, false
			t.note, t.err = "", false
		case !runs && t.running && t.state == pveconf.HAStarted:
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

// leaveAlone: a task or a migration has the guest in hand.
func (w *Worker) leaveAlone(id model.VMID) bool {
	_, intent := w.view.Intents[id]
	_, busy := w.view.Busy[id]
	return intent || busy
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
	default:
		return "killing its leftover QEMU"
	}
}

// decide looks at each guest anew and returns what is not under way already.
func (w *Worker) decide(now time.Duration) []Action {
	if !w.view.Quorate || !w.view.LeaseValid {
		return nil
	}
	o := outbox{ledger: w.ledger, now: now}
	mine := make(map[model.VMID]bool)
	for _, g := range w.view.Guests {
		mine[g.VMID] = true
		w.keep(&o, g)
	}
	for _, id := range slices.Sorted(maps.Keys(w.view.Processes)) {
		if !mine[id] && !w.leaveAlone(id) {
			w.act(&o, Discard{VMID: id, Reason: "its file is not under this node's path, and no migration brings it here"})
		}
	}
	return o.actions()
}

// act gives an action on a guest out unless it must wait, and reports whether it is under way now.
func (w *Worker) act(o *outbox, a Action) {
	id, _ := subject(a)
	t := w.guests[id]
	if t.stale {
		return
	}
	if o.now < t.notBefore {
		o.wake(t.notBefore)
		return
	}
	before := len(o.list)
	o.add(a)
	if _, start := a.(Start); start && len(o.list) > before {
		t.attempts++
	}
	w.guests[id] = t
}

// keep brings one guest of this node one step closer to what was asked for.
func (w *Worker) keep(o *outbox, g Guest) {
	state, ha := w.view.Resources[g.VMID]
	prot := w.view.Protected[g.VMID]
	if in, ok := w.view.Intents[g.VMID]; ok && ha {
		w.status(o, g.VMID, StatusMigrate, "from "+in.Source+" to "+in.Target)
	}
	if w.leaveAlone(g.VMID) {
		return
	}
	if !ha || state == pveconf.HAIgnored {
		if prot.Node == w.self {
			w.act(o, Unacknowledge{g.VMID, prot.Revision, "it is no HA resource"})
		}
		return
	}
	w.report(o, g, state)
	if a := w.next(g, state, prot); a != nil {
		w.act(o, a)
	}
}

// next is the first thing that is wrong with an HA resource of this node.
func (w *Worker) next(g Guest, state pveconf.HAState, prot Protected) Action {
	p, runs := w.view.Processes[g.VMID]
	t := w.guests[g.VMID]
	switch {
	case runs && p.State == ProcessIncoming:
		return Discard{g.VMID, true, "it waits for a migration that was decided otherwise"}
	case g.Local != "" && prot.Node == w.self:
		return Unacknowledge{g.VMID, prot.Revision, "only this node has " + g.Local}
	case g.Local == "" && prot.Node != w.self:
		return Acknowledge{g.VMID, w.self, prot.Revision, g.Revision, false, "it is an HA resource"}
	case g.Local == "" && runs && !p.Guarded:
		return Acknowledge{g.VMID, w.self, prot.Revision, g.Revision, true, "its record stands, and the guard does not know it"}
	case state == pveconf.HAStarted && !runs:
		return Start{VMID: g.VMID, Attempt: t.attempts + 1, Pills: w.pills(g), Reason: startReason(t)}
	case state != pveconf.HAStarted && runs:
		return Stop{VMID: g.VMID, Reason: "the requested state is " + string(state)}
	}
	return nil
}

func startReason(t tries) string {
	if t.note != "" {
		return t.note
	}
	return "the requested state is started"
}

// pills are for every fenced node: one of them may hold the image, by a QEMU that its guard froze. A node that has
// registered again has none left; to it a pill with its own epoch says nothing.
func (w *Worker) pills(g Guest) []Pill {
	if g.Local != "" {
		return nil
	}
	var out []Pill
	for _, node := range slices.Sorted(maps.Keys(w.view.Fenced)) {
		if node != w.self {
			out = append(out, Pill{node, w.view.Fenced[node]})
		}
	}
	return out
}

// report writes the guest's status.
func (w *Worker) report(o *outbox, g Guest, state pveconf.HAState) {
	t := w.guests[g.VMID]
	if t.stale {
		return
	}
	p, runs := w.view.Processes[g.VMID]
	runs = runs && p.State == ProcessRunning
	reason := t.note
	if reason == "" && g.Local != "" {
		reason = fmt.Sprintf("without protection: only %s has %s", w.self, g.Local)
	}
	w.status(o, g.VMID, t.status(state == pveconf.HAStarted, runs), reason)
}

// status is what the guest is, given whether it is wanted to run, and runs.
func (t tries) status(wanted, runs bool) StatusState {
	switch {
	case wanted && runs:
		return StatusStarted
	case t.err:
		return StatusError
	case wanted:
		return StatusStarting
	case runs:
		return StatusStopping
	default:
		return StatusStopped
	}
}

func (w *Worker) status(o *outbox, id model.VMID, state StatusState, reason string) {
	st := Status{State: state, Node: w.self, Reason: reason}
	if old := w.view.Statuses[id]; !old.Says(st) {
		o.add(SetStatus{VMID: id, IfRevision: old.Revision, Status: st})
	}
}
