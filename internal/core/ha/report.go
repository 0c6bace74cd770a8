package ha

import (
	"fmt"

	"sauh.dev/sauh/internal/core/pveconf"
)

// report writes the guest's record: what is, and what must not be forgotten. What the manager wants done stays until it is done, or has failed.
func (w *Worker) report(o *outbox, g Guest, state pveconf.HAState) {
	t, old := w.guests[g.VMID], w.view.Statuses[g.VMID]
	if t.stale || w.stuck(old, state) || old.Revision == 0 && w.unanswered(o, t) {
		return // the manager has the first word
	}
	runs := w.runs(g.VMID)
	if w.wantsAway(old) && (state == pveconf.HAStarted || !runs) {
		if why := w.moveBroken(t, old); why != "" {
			w.write(o, g, w.unmoved(old, why, runs, state))
		}
		return
	}
	st := w.state(o, g, old, state, runs)
	w.write(o, g, st)
}

// moveBroken says why the move that the record wants has failed, "" if it has not.
func (w *Worker) moveBroken(t tries, old StatusRecord) string {
	_, member := w.view.Members[old.Target]
	switch {
	case t.moveFailed != "" && t.moveOf == old.Revision:
		return t.moveFailed
	case !member && w.view.Members != nil:
		return old.Target + " is no member of the cluster"
	case t.stops >= w.p.StopTries && old.State == StatusRelocate:
		return "it could not be stopped: " + t.note
	}
	return ""
}

// unmoved is the record of a guest that stays where it is.
func (w *Worker) unmoved(old StatusRecord, why string, runs bool, state pveconf.HAState) Status {
	st := old.Status
	st.Target, st.Reason = "", why
	st.MoveFailures++
	st.State = tries{}.status(state == pveconf.HAStarted, runs)
	return st
}

// state is the guest's record as it should be.
func (w *Worker) state(o *outbox, g Guest, old StatusRecord, state pveconf.HAState, runs bool) Status {
	t := w.guests[g.VMID]
	wanted := state == pveconf.HAStarted
	st := old.Status
	if st.Node != w.self {
		st.Failures, st.MoveFailures, st.Hold = 0, 0, "" // it has come here
	}
	if old.moving() || st.Away == w.self {
		st.Away = other(st.Away, w.self)
	}
	st.Node, st.Target = w.self, ""
	st.Failures += t.owed
	st.State = w.judge(o, t, st, wanted, runs)
	switch {
	case !wanted:
		st.Failures, st.Tried, st.MoveFailures, st.Hold = 0, nil, 0, ""
	case runs:
		st.Failures, st.Tried, st.Hold = 0, nil, ""
	}
	st.Ready = runs && (st.Ready || w.view.Processes[g.VMID].Answers) && wanted
	st.Reason = w.reason(o, g, t, st, old)
	if st.State == StatusStopping && state == pveconf.HAStopped && w.limited() && t.stops >= w.p.StopTries {
		st.State, st.Reason = StatusError, t.note
	}
	return st
}

func other(node, self string) string {
	if node == self {
		return ""
	}
	return node
}

// judge names the state.
func (w *Worker) judge(o *outbox, t tries, st Status, wanted, runs bool) StatusState {
	if w.view.Config != nil {
		t.err = false // a failure is counted, not an end
	}
	if wanted && !runs && (st.Hold != "" || w.unanswered(o, t)) {
		return StatusStopped
	}
	return t.status(wanted, runs)
}

// reason is the sentence of the record.
func (w *Worker) reason(o *outbox, g Guest, t tries, st Status, old StatusRecord) string {
	switch {
	case w.keepsReason(g, st, old):
		return old.Reason
	case t.note != "":
		return t.note
	case st.Hold != "":
		return st.Hold
	case g.Local != "":
		return fmt.Sprintf("without protection: only %s has %s", w.self, g.Local)
	case w.view.Protected[g.VMID].Node != w.self && w.heldElsewhere(w.view.Protected[g.VMID]):
		return "it waits until " + w.view.Protected[g.VMID].Node + " gives it up"
	case st.State == StatusStarting:
		if why := w.dependencies(o, g); why != "" {
			return why
		}
		if old.Failures > 0 && old.Node == w.self || old.State == StatusStarting && old.Node == w.self {
			return old.Reason
		}
	case st.State == StatusStarted && old.State == StatusStarted && old.Node == w.self && old.MoveFailures > 0:
		return old.Reason // why it could not move
	}
	return ""
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

// reportMigration shows a migration that the manager did not ask for.
func (w *Worker) reportMigration(o *outbox, g Guest, in Intent) {
	old := w.view.Statuses[g.VMID]
	if old.moving() || old.State == StatusError && w.limited() {
		return
	}
	st := old.Status
	st.State, st.Node, st.Reason = StatusMigrate, w.self, "from "+in.Source+" to "+in.Target
	w.write(o, g, st)
}

// write gives out what the record should say. A stop that a person asked for is over when the guest is stopped.
func (w *Worker) write(o *outbox, g Guest, st Status) {
	old := w.view.Statuses[g.VMID]
	var command int64
	if c, ok := w.view.Commands[g.VMID]; ok && c.Kind == CommandStop && (st.State == StatusStopped || st.State == StatusError) {
		command = c.Revision
	}
	if old.Says(st) && command == 0 {
		return
	}
	before := len(o.list)
	o.add(SetStatus{
		VMID: g.VMID, Kind: g.Kind, IfRevision: old.Revision, Command: command, Status: st.after(old.Status, w.self, w.view.Unix),
	})
	if len(o.list) > before {
		w.change(g.VMID, func(t *tries) { t.paid = t.owed })
	}
}
