package ha

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// decide looks at each guest anew and returns what is not under way already.
func (w *Worker) decide(now time.Duration) []Action {
	if !w.view.Quorate || !w.view.LeaseValid {
		at := now + w.p.Unable
		if end := w.since + w.p.TakeAfter; w.view.NodeMode.Ends != "" && now < end {
			at = min(at, end) // see MayLeave
		}
		return []Action{Wake{at}}
	}
	o := outbox{ledger: w.ledger, now: now}
	w.awaitArming(&o)
	mine := make(map[model.VMID]bool, len(w.view.Guests))
	for _, g := range w.inOrder() {
		mine[g.VMID] = true
		w.keep(&o, g)
	}
	for _, id := range slices.Sorted(maps.Keys(w.view.Processes)) {
		if !mine[id] && !w.leaveAlone(id) {
			w.act(&o, Discard{VMID: id, Reason: "its file is not under this node's path, and no migration brings it here"})
		}
	}
	w.release(&o, mine)
	return o.actions()
}

// awaitArming is as the manager's.
func (w *Worker) awaitArming(o *outbox) {
	for _, left := range []time.Duration{
		endsIn(w.view.Mode.Disarm, w.view.Mode.Until, w.view.Unix), endsIn(w.view.Request.Disarm, w.view.Request.Until, w.view.Unix),
	} {
		if left > 0 {
			o.wake(o.now + left)
		}
	}
}

// inOrder are the guests as they start; the view's own order where nothing is said.
func (w *Worker) inOrder() []Guest {
	ordered := func(g Guest) bool { return w.view.Config[g.VMID].Order > 0 }
	if !slices.ContainsFunc(w.view.Guests, ordered) {
		return w.view.Guests
	}
	out := slices.Clone(w.view.Guests)
	slices.SortStableFunc(out, func(a, b Guest) int {
		return cmp.Compare(startOrder(w.view.Config[a.VMID]), startOrder(w.view.Config[b.VMID]))
	})
	return out
}

// release gives up the acknowledgements of guests whose files were moved away by hand: the new owner waits for it.
func (w *Worker) release(o *outbox, mine map[model.VMID]bool) {
	if w.view.Members == nil {
		return
	}
	var left []model.VMID
	for id, p := range w.view.Protected {
		if _, runs := w.view.Processes[id]; p.Node == w.self && !mine[id] && !runs && !w.leaveAlone(id) {
			left = append(left, id)
		}
	}
	slices.Sort(left)
	for _, id := range left {
		w.act(o, Unacknowledge{id, w.view.Protected[id].Revision, "its file is not under this node's path any more"})
	}
}

// act gives an action on a guest out unless it must wait, and reports whether it is under way now.
func (w *Worker) act(o *outbox, a Action) {
	id, _ := subject(a)
	t := w.guests[id]
	if t.stale {
		return
	}
	if _, leaves := a.(Handover); o.now < t.notBefore && !(leaves && t.away) {
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

// managed: the guest is an HA resource and HA is armed for it.
func (w *Worker) managed(g Guest) bool {
	state, ha := w.view.Resources[g.VMID]
	return ha && state != pveconf.HAIgnored && !w.disarmed()
}

func (w *Worker) disarmed() bool {
	return w.view.Mode.At(w.view.Unix) != Armed || w.view.Request.DisarmAt(w.view.Unix) != Armed
}

// keep brings one guest of this node one step closer to what was asked for.
func (w *Worker) keep(o *outbox, g Guest) {
	prot := w.view.Protected[g.VMID]
	if in, ok := w.view.Intents[g.VMID]; ok && w.managed(g) {
		w.reportMigration(o, g, in)
	}
	if w.leaveAlone(g.VMID) {
		return
	}
	if !w.managed(g) {
		if prot.Node == w.self || prot.Revision == 0 && w.view.Processes[g.VMID].Guarded {
			w.act(o, Unacknowledge{g.VMID, prot.Revision, w.whyUnmanaged()}) // also when the record is gone and the guard did not answer
		}
		return
	}
	state, ends := w.view.Resources[g.VMID], w.view.NodeMode.Ends
	switch {
	case ends == EndsRestart:
		return // guests run on; the next agent looks after them
	case ends != "" && !w.mustLeave(g) && !w.wantsAway(w.view.Statuses[g.VMID]):
		w.end(o, g, string(ends))
		return
	}
	w.ask(o, g, state)
	w.report(o, g, state)
	if a := w.next(o, g, state, prot); a != nil {
		w.act(o, a)
	}
}

func (w *Worker) whyUnmanaged() string {
	if w.disarmed() {
		return "HA is disarmed"
	}
	return "it is no HA resource"
}

// end stops a guest because its node ends. The record stays: it says what to do after the boot, or elsewhere.
func (w *Worker) end(o *outbox, g Guest, ends string) {
	if _, runs := w.view.Processes[g.VMID]; runs && w.view.Statuses[g.VMID].State != StatusError {
		w.act(o, Stop{VMID: g.VMID, Kind: g.Kind, Reason: "its node ends in order (" + ends + ")"})
	}
}

// next is the first thing that is wrong with an HA resource of this node.
func (w *Worker) next(o *outbox, g Guest, state pveconf.HAState, prot Protected) Action {
	p, runs := w.view.Processes[g.VMID]
	st := w.view.Statuses[g.VMID]
	switch {
	case runs && p.State == ProcessIncoming:
		return Discard{g.VMID, true, "it waits for a migration that was decided otherwise"}
	case g.Local != "" && (prot.Node == w.self || prot.Revision == 0 && p.Guarded):
		return Unacknowledge{g.VMID, prot.Revision, "only this node has " + g.Local}
	case g.Local == "" && prot.Node != w.self && w.heldElsewhere(prot):
		return nil // its worker gives it up first
	case g.Local == "" && prot.Node != w.self:
		return Acknowledge{g.VMID, w.self, prot.Revision, g.Revision, false, "it is an HA resource"}
	case g.Local == "" && runs && !p.Guarded:
		return Acknowledge{g.VMID, w.self, prot.Revision, g.Revision, true, "its record stands, and the guard does not know it"}
	case w.stuck(st, state):
		return nil // until a person disables it
	case w.wantsAway(st) && (state == pveconf.HAStarted || !runs):
		return w.moveOn(o, g, st, prot, runs)
	case state == pveconf.HAStarted && !runs:
		return w.start(o, g, st)
	case state != pveconf.HAStarted && runs:
		return w.stop(g, state)
	case runs && p.Sick != "" && slices.Contains(w.view.Config[g.VMID].ResetOn, p.Sick):
		return Reset{g.VMID, g.Kind, "the guest is " + string(p.Sick)}
	}
	return nil
}

// heldElsewhere: another member may still run the guest under its guard, because the file was moved by hand.
func (w *Worker) heldElsewhere(prot Protected) bool {
	_, member := w.view.Members[prot.Node]
	_, fenced := w.view.Fenced[prot.Node]
	return member && !fenced
}

// stuck: the service is in error, and not disabled.
func (w *Worker) stuck(st StatusRecord, state pveconf.HAState) bool {
	return st.State == StatusError && w.limited() && state != pveconf.HADisabled
}

// limited: errors count. An agent without max_restart keeps trying, and what it calls an error is a note.
func (w *Worker) limited() bool { return w.view.Config != nil }

// wantsAway: the record asks this node to bring the guest to another.
func (w *Worker) wantsAway(st StatusRecord) bool {
	return st.moving() && st.Node == w.self && st.Target != w.self
}

// moveOn takes the next step of a move that the manager wants.
func (w *Worker) moveOn(o *outbox, g Guest, st StatusRecord, prot Protected, runs bool) Action {
	t := w.guests[g.VMID]
	to, member := w.view.Members[st.Target]
	switch {
	case t.moveFailed != "" && t.moveOf == st.Revision:
		return nil // the record will say so
	case !member, !runs && w.writing(o, g, t):
		return nil
	case runs && st.State == StatusMigrate:
		return Migrate{g.VMID, g.Kind, st.Target, st.Revision, st.Reason}
	case runs:
		return Stop{VMID: g.VMID, Kind: g.Kind, Hard: w.lostDisks(g), Reason: "it is relocated to " + st.Target + ": " + st.Reason}
	default:
		return Handover{
			VMID: g.VMID, Kind: g.Kind, From: w.self, To: st.Target, ConfigRevision: g.Revision, ProtectedRevision: prot.Revision,
			StatusRevision: st.Revision, ToRevision: to, Protected: prot.Node == w.self, Reason: st.Reason,
		}
	}
}

// stop ends a guest that is not to run, in the time that a person gave it.
func (w *Worker) stop(g Guest, state pveconf.HAState) Action {
	a := Stop{VMID: g.VMID, Kind: g.Kind, Reason: "the requested state is " + string(state)}
	if c, ok := w.view.Commands[g.VMID]; ok && c.Kind == CommandStop {
		a.Timeout = time.Duration(c.TimeoutSeconds) * time.Second
		a.Hard = c.TimeoutSeconds == 0
	}
	return a
}

// start starts a guest, if nothing speaks against it.
func (w *Worker) start(o *outbox, g Guest, st StatusRecord) Action {
	if !w.mayStart(o, g, st) {
		return nil
	}
	t := w.guests[g.VMID]
	if w.writing(o, g, t) {
		return nil
	}
	return Start{VMID: g.VMID, Kind: g.Kind, Attempt: t.attempts + 1, Pills: w.pills(g), Reason: startReason(t)}
}

// writing: writes of the QEMU that has ended may still be under way.
func (w *Worker) writing(o *outbox, g Guest, t tries) bool {
	until := t.endedAt + w.p.InFlight
	if !t.ran || g.Local != "" || o.now >= until {
		return false
	}
	o.wake(until)
	return true
}

func (w *Worker) mayStart(o *outbox, g Guest, st StatusRecord) bool {
	t := w.guests[g.VMID]
	conf, limited := w.view.Config[g.VMID]
	switch {
	case limited && (t.owed > 0 || w.unseen(g, st)):
		return false // the record does not have the last failure yet
	case limited && st.Node == w.self && st.State == StatusStarting && st.Failures > conf.MaxRestart:
		return false // the manager's turn
	case st.Node == w.self && st.Hold != "":
		return false
	case w.unanswered(o, t):
		return false
	}
	return w.dependencies(o, g) == "" || w.outOfPatience(o, g)
}

// outOfPatience: the guest has waited for others for too long; they may wait for it in turn.
func (w *Worker) outOfPatience(o *outbox, g Guest) bool {
	t := w.guests[g.VMID]
	if !t.waits {
		t.waits, t.waitsAt = true, o.now
		w.guests[g.VMID] = t
	}
	until := t.waitsAt + w.p.DependencyPatience
	if o.now < until {
		o.wake(until)
		return false
	}
	return true
}

// unseen: a record with more failures is on its way.
func (w *Worker) unseen(g Guest, st StatusRecord) bool {
	a, ok := w.ledger.pending(SetStatus{VMID: g.VMID, Kind: g.Kind}.Key()).(SetStatus)
	return ok && a.Status.Failures > st.Failures
}

// ask notes since when a guest that was stopped waits for the manager's word.
func (w *Worker) ask(o *outbox, g Guest, state pveconf.HAState) {
	t := w.guests[g.VMID]
	st := w.view.Statuses[g.VMID]
	_, runs := w.view.Processes[g.VMID]
	waits := w.view.AwaitManager && state == pveconf.HAStarted && !runs && needsPermit(st, w.self)
	if waits && !t.asked {
		t.askedAt = o.now
	}
	t.asked = waits
	w.guests[g.VMID] = t
}

// unanswered: the manager has not said yet that the guest may start; after a while that is taken for a yes.
func (w *Worker) unanswered(o *outbox, t tries) bool {
	if !t.asked || o.now-t.askedAt >= w.p.Permit {
		return false
	}
	o.wake(t.askedAt + w.p.Permit)
	return true
}

// dependencies says for what the guest waits before it starts, "" if for nothing.
func (w *Worker) dependencies(o *outbox, g Guest) string {
	for _, dep := range w.view.Config[g.VMID].After {
		if w.view.Resources[dep.VMID] != pveconf.HAStarted || dep.VMID == g.VMID {
			continue // it is not to run: nobody could wait for it
		}
		st := w.view.Statuses[dep.VMID]
		name := sid(w.view.Config[dep.VMID].Kind, dep.VMID)
		if st.State != StatusStarted && st.State != StatusMigrate {
			delete(w.seen, dep.VMID)
			return "it waits for " + name + " to run"
		}
		since, ok := w.seen[dep.VMID]
		if !ok {
			since = o.now
			w.seen[dep.VMID] = since
		}
		switch {
		case dep.Answers && !st.Ready:
			return "it waits for the agent of " + name
		case o.now < since+dep.Delay:
			o.wake(since + dep.Delay)
			return "it waits for " + name + " to have run for " + dep.Delay.String()
		}
	}
	return ""
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
