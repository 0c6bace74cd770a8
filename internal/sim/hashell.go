package sim

import (
	"errors"
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
)

// shutdownPatience is how long an HA resource that is asked to stop has; see internal/agent.
const shutdownPatience = time.Minute

// machines are the agent's two state machines of core/ha in their loops: views and answers go in, actions come out.
type machines struct {
	running bool

	manager  ha.State
	mgrDirty bool
	mgrWake  int // counts wakes: an earlier one is void

	worker  ha.Worker
	wrkBusy bool // it asks the guard
	wrkDue  bool // a look is scheduled
	wrkAgn  bool // look again afterwards
	wrkWake int
	results []ha.Event
	ended   []model.VMID
}

func (m *machines) start(a *agent) {
	m.manager, m.worker = ha.New(a.node.name, a.s.haParams), ha.NewWorker(a.node.name, a.s.haParams)
	m.running = true
	m.changed(a)
}

// changed has both look anew.
func (m *machines) changed(a *agent) {
	if !m.running {
		return
	}
	if !m.mgrDirty {
		m.mgrDirty = true
		a.s.after(50*time.Microsecond, &a.node.agentProc, a.lookManager)
	}
	m.kick(a)
}

// kick has the worker look anew.
func (m *machines) kick(a *agent) {
	if !m.running || m.wrkDue {
		return
	}
	if m.wrkBusy {
		m.wrkAgn = true
		return
	}
	m.wrkDue = true
	a.s.after(50*time.Microsecond, &a.node.agentProc, a.lookWorker)
}

// gone tells the worker that a process ended.
func (m *machines) gone(a *agent, q *qemu) {
	m.ended = append(m.ended, q.g.id)
	m.kick(a)
}

func (a *agent) lookManager() {
	a.ha.mgrDirty = false
	a.stepManager(a.managerView())
}

func (a *agent) stepManager(ev ha.Event) {
	m := &a.ha
	if a.node.noManager {
		return
	}
	var actions []ha.Action
	a.s.result.ManagerSteps++
	m.manager, actions = m.manager.Step(a.node.local(), ev)
	m.mgrWake++
	for _, act := range actions {
		if w, ok := act.(ha.Wake); ok {
			if a.s.mut == mutEndingExcused && a.excusesNow() {
				continue
			}
			wake := m.mgrWake
			a.node.onNode(max(w.At, a.node.local()+time.Millisecond), &a.node.agentProc, func() {
				if m.mgrWake == wake && !m.mgrDirty {
					a.lookManager()
				}
			})
			continue
		}
		a.s.trace(a.node, "manager: %s", why(a, act))
		a.doManager(act, func(rev int64, err error) {
			if err != nil && a.s.tracing() {
				a.s.trace(a.node, "manager: not done (%v): %s", err, act.Key())
			}
			a.stepManager(outcome(act, rev, err))
			a.stepManager(a.managerView())
		})
	}
}

// why is the action's sentence; it is not made where nobody reads it.
func why(a *agent, act ha.Action) string {
	if !a.s.tracing() {
		return ""
	}
	return act.Why()
}

func outcome(act ha.Action, rev int64, err error) ha.Event {
	if err == nil {
		return ha.ActionDone{Action: act, Revision: rev}
	}
	kind := ha.FailOther
	switch {
	case errors.Is(err, errLocked):
		kind = ha.FailLocked
	case errors.Is(err, model.ErrConflict), errors.Is(err, model.ErrBusy):
		kind = ha.FailConflict
	case errors.Is(err, model.ErrNoQuorum), errors.Is(err, model.ErrUnavailable):
		kind = ha.FailUnready
	}
	return ha.ActionFailed{Action: act, Kind: kind, Reason: err.Error()}
}

// doManager carries out the manager's decisions: each is one transaction, or a word with a BMC.
func (a *agent) doManager(act ha.Action, done func(int64, error)) {
	switch act := act.(type) {
	case ha.TakeManager:
		a.transact(act.Compares(), done, op{model.ManagerKey, act.Manager})
	case ha.Cut:
		if a.s.mut == mutCutUncompared {
			a.transact(nil, done, op{model.LivePrefix + act.Node, act.NewLive})
			return
		}
		if a.s.mut == mutCutSameEpoch {
			act.NewLive.Epoch--
		}
		a.transact(act.Compares(), done, op{model.LivePrefix + act.Node, act.NewLive})
	case ha.Move:
		a.moveFile(act, done)
	case ha.ClearIntent:
		a.transact(act.Compares(), done, op{model.IntentPrefix + act.VMID.String(), nil})
	case ha.SetStatus:
		a.setStatus(act, done)
	case ha.DropCommand:
		a.transact(act.Compares(), done, op{act.Compares()[0].Key, nil})
	case ha.NoteHistory:
		a.transact(act.Compares(), done, op{model.HAHistoryPrefix + act.Node, act.History})
	case ha.AskFence:
		a.askFence(act, done)
	case ha.Shoot:
		a.shoot(act, done)
	default:
		panic("sim: the manager cannot do " + act.Key())
	}
}

// transact makes a transaction of what an action compares.
func (a *agent) transact(compares []ha.Compare, done func(int64, error), ops ...op) {
	conds := make([]cond, 0, len(compares))
	for _, c := range compares {
		if a.s.leftOut(c.Key) {
			continue
		}
		conds = append(conds, cond{c.Key, c.Revision})
	}
	a.txn(conds, ops, func(rep reply) { done(rep.rev, rep.err) })
}

func (a *agent) setStatus(act ha.SetStatus, done func(int64, error)) {
	if a.node.old {
		act.Status = statusAsBefore(act.Status)
	}
	ops := []op{{act.Compares()[0].Key, act.Status}}
	if act.Command != 0 {
		ops = append(ops, op{act.Compares()[1].Key, nil})
	}
	a.transact(act.Compares(), done, ops...)
}

func (a *agent) moveFile(act ha.Move, done func(int64, error)) {
	from := model.GuestConfigKey(act.From, act.VMID)
	a.get(from, func(rep reply) {
		conf, ok := rep.rec.val.(*guestConf)
		switch {
		case rep.err != nil:
			done(0, rep.err)
			return
		case !ok:
			done(0, model.ErrConflict)
			return
		}
		if act.DropLock && conf.lock != "" {
			c := *conf
			c.lock = ""
			conf = &c
		}
		ops := []op{{from, nil}, {model.GuestConfigKey(act.To, act.VMID), conf}}
		if a.s.mut == mutMoveKeepsFile {
			ops = ops[1:]
		}
		ops = append(ops, op{model.ProtectedPrefix + act.VMID.String(), model.Protected{Node: act.To}})
		a.transact(act.Compares(), done, ops...)
	})
}

// lookWorker asks the guard what it has, and then has the worker look.
func (a *agent) lookWorker() {
	m := &a.ha
	m.wrkDue = false
	if m.wrkBusy {
		m.wrkAgn = true
		return
	}
	m.wrkBusy, m.wrkAgn = true, false
	var names []string
	a.ask(guardDeadline, func(g *guardDaemon, reply func(error)) {
		for _, gr := range g.state.Groups() {
			if gr.State != lease.Killing {
				names = append(names, gr.Name)
			}
		}
		reply(nil)
	}, func(err error) {
		view := a.workerView(names, err == nil)
		a.looked = view.Revision
		a.stepWorker(view)
		m.wrkBusy = false
		if len(m.results) > 0 {
			ev := m.results[0]
			m.results = slices.Delete(m.results, 0, 1)
			a.stepWorker(ev)
			m.wrkAgn = true
		}
		if m.wrkAgn {
			m.kick(a)
		}
	})
}

func (a *agent) stepWorker(ev ha.Event) {
	m := &a.ha
	var actions, more []ha.Action
	for _, id := range m.ended {
		m.worker, more = m.worker.Step(a.node.local(), ha.ProcessGone{VMID: id})
		actions = append(actions, withoutWake(more)...)
	}
	m.ended = m.ended[:0]
	m.worker, more = m.worker.Step(a.node.local(), ev)
	actions = append(actions, more...)
	m.wrkWake++
	for _, act := range actions {
		if w, ok := act.(ha.Wake); ok {
			wake := m.wrkWake
			a.node.onNode(max(w.At, a.node.local()+time.Millisecond), &a.node.agentProc, func() {
				if m.wrkWake == wake {
					m.kick(a)
				}
			})
			continue
		}
		a.s.trace(a.node, "worker: %s", why(a, act))
		a.doWorker(act, func(rev int64, err error) {
			if err != nil && a.s.tracing() {
				a.s.trace(a.node, "worker: not done (%v): %s", err, act.Key())
			}
			m.results = append(m.results, outcome(act, rev, err))
			m.kick(a)
		})
	}
}

func withoutWake(actions []ha.Action) []ha.Action {
	return slices.DeleteFunc(actions, func(a ha.Action) bool {
		_, wake := a.(ha.Wake)
		return wake
	})
}

// doWorker carries out the worker's decisions under the guest's lock.
func (a *agent) doWorker(act ha.Action, done func(int64, error)) {
	switch act := act.(type) {
	case ha.SetStatus:
		a.setStatus(act, done)
	case ha.Acknowledge:
		a.underLock(act.VMID, "HA: protect", done, func(done func(int64, error)) { a.doAcknowledge(act, done) })
	case ha.Unacknowledge:
		a.underLock(act.VMID, "HA: end protection", done, func(done func(int64, error)) { a.doUnacknowledge(act, done) })
	case ha.Start:
		a.underLock(act.VMID, "HA: start", done, func(done func(int64, error)) { a.doStart(act, done) })
	case ha.Stop:
		a.underLock(act.VMID, "HA: stop", done, func(done func(int64, error)) { a.doStop(act, done) })
	case ha.Discard:
		a.underLock(act.VMID, "HA: kill a leftover", done, func(done func(int64, error)) { a.doDiscard(act, done) })
	case ha.Handover:
		a.underLock(act.VMID, "HA: hand over", done, func(done func(int64, error)) { a.doHandover(act, done) })
	case ha.Migrate:
		a.underLock(act.VMID, "HA: migrate", done, func(done func(int64, error)) { a.doMigrate(act, done) })
	case ha.Reset:
		a.underLock(act.VMID, "HA: reset", done, func(done func(int64, error)) { a.doReset(act, done) })
	default:
		panic("sim: the worker cannot do " + act.Key())
	}
}

func (a *agent) underLock(id model.VMID, what string, done func(int64, error), do func(func(int64, error))) {
	if !a.lock(id, what) {
		// Not at once: the machine that asked is in the middle of a step.
		a.s.after(0, &a.node.agentProc, func() { done(0, model.ErrBusy) })
		return
	}
	do(func(rev int64, err error) {
		a.s.after(0, &a.node.agentProc, func() {
			a.unlock(id)
			done(rev, err)
		})
	})
}

func (a *agent) doAcknowledge(act ha.Acknowledge, done func(int64, error)) {
	at := a.term()
	g := a.s.guest(act.VMID)
	write := func(err error) {
		if err != nil || act.Written {
			done(0, err)
			return
		}
		a.transact(act.Compares(), done, op{model.ProtectedPrefix + act.VMID.String(), model.Protected{Node: a.node.name}})
	}
	if _, mine := a.node.mirror[model.GuestConfigKey(a.node.name, act.VMID)]; !mine {
		done(0, model.ErrNotFound)
		return
	}
	if a.proc(act.VMID) == nil || a.s.mut == mutAckUnguarded {
		write(nil)
		return
	}
	a.guardGuest(g, at, write)
}

func (a *agent) doUnacknowledge(act ha.Unacknowledge, done func(int64, error)) {
	unprotect := func(rev int64, err error) {
		if err != nil {
			done(0, err)
			return
		}
		a.ask(guardDeadline, func(g *guardDaemon, reply func(error)) {
			reply(g.unprotect(act.VMID.String()))
		}, func(err error) {
			if q := a.proc(act.VMID); q != nil && err == nil {
				q.guarded, q.protect = false, false
			}
			done(rev, err)
		})
	}
	if a.s.mut == mutUnackLate {
		a.ask(guardDeadline, func(g *guardDaemon, reply func(error)) { reply(g.unprotect(act.VMID.String())) }, func(error) {
			a.s.after(5*time.Second, &a.node.agentProc, func() {
				a.transact(act.Compares(), done, op{model.ProtectedPrefix + act.VMID.String(), nil})
			})
		})
		return
	}
	a.transact(act.Compares(), unprotect, op{model.ProtectedPrefix + act.VMID.String(), nil})
}

func (a *agent) doStart(act ha.Start, done func(int64, error)) {
	if a.proc(act.VMID) != nil {
		done(0, nil)
		return
	}
	a.startGuest(startRequest{id: act.VMID, haOnly: true, pills: act.Pills}, func(err error) { done(0, err) })
}

func (a *agent) doStop(act ha.Stop, done func(int64, error)) {
	q := a.proc(act.VMID)
	if q == nil {
		done(0, nil)
		return
	}
	patience := shutdownPatience
	if act.Timeout > 0 {
		patience = act.Timeout
	}
	if act.Hard {
		patience = 0
	}
	a.stopGuest(q, patience, func(err error) { done(0, err) })
}

func (a *agent) doDiscard(act ha.Discard, done func(int64, error)) {
	q := a.proc(act.VMID)
	if q == nil {
		done(0, nil)
		return
	}
	a.get(model.IntentPrefix+act.VMID.String(), func(intent reply) {
		if intent.err != nil {
			done(0, intent.err)
			return
		}
		a.get(model.GuestConfigKey(a.node.name, act.VMID), func(conf reply) {
			switch {
			case conf.err != nil:
				done(0, conf.err)
			case intent.rec.mod != 0 || conf.rec.mod != 0 && !(act.Incoming && q.waits):
				done(0, model.ErrConflict)
			default:
				a.destroy(q, func() { done(0, nil) })
			}
		})
	})
}

// doHandover gives a guest that does not run to another node.
func (a *agent) doHandover(act ha.Handover, done func(int64, error)) {
	if g := a.s.guest(act.VMID); g.failMoves > 0 {
		g.failMoves--
		done(0, errFailed)
		return
	}
	if a.proc(act.VMID) != nil || a.node.group(act.VMID.String()) != nil {
		done(0, model.ErrBusy)
		return
	}
	from := model.GuestConfigKey(act.From, act.VMID)
	a.get(from, func(rep reply) {
		conf, ok := rep.rec.val.(*guestConf)
		switch {
		case rep.err != nil:
			done(0, rep.err)
			return
		case !ok:
			done(0, model.ErrConflict)
			return
		}
		ops := []op{{from, nil}, {model.GuestConfigKey(act.To, act.VMID), conf}}
		if act.Protected {
			ops = append(ops, op{model.ProtectedPrefix + act.VMID.String(), model.Protected{Node: act.To}})
		}
		a.transact(act.Compares(), done, ops...)
	})
}

// doMigrate moves a guest that runs.
func (a *agent) doMigrate(act ha.Migrate, done func(int64, error)) {
	a.get(model.HAStatusPrefix+a.s.guest(act.VMID).sid, func(rep reply) {
		switch {
		case rep.err != nil:
			done(0, rep.err)
		case rep.rec.mod != act.StatusRevision:
			done(0, model.ErrConflict)
		default:
			a.migrate(act.VMID, act.Target, func(err error) { done(0, err) })
		}
	})
}
