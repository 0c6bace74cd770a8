package sim

import (
	"errors"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
)

// sourceRun is one run of the source's machine.
type sourceRun struct {
	driver
	id     model.VMID
	target *node
	task   string
	state  migrate.Source
	note   moveNote
	q, dst *qemu
	watch  *moveWatch
	done   func(error)
}

// migrate moves a guest of this node that runs. The caller holds the guest's lock.
func (a *agent) migrate(id model.VMID, target string, done func(error)) {
	to := a.s.nodeNamed(target)
	if a.claim[id] || to == nil {
		done(model.ErrBusy)
		return
	}
	a.claim[id] = true
	r := &sourceRun{id: id, target: to, task: a.s.newTask(a.node), done: done}
	r.state = migrate.Source{Config: migrate.Defaults()}
	r.driver = driver{
		a: a, began: a.node.local(), do: r.carryOut, finish: r.ended,
		step: func(now time.Duration, ev migrate.Event) (acts []migrate.Action) {
			r.state, acts = r.state.Step(now, ev)
			return acts
		},
	}
	a.moved[id] = r
	r.feed(migrate.Begin{})
	a.s.after(lookEvery, &a.node.agentProc, r.look)
}

func (r *sourceRun) ended(fin migrate.Finish) {
	a := r.a
	r.watch.stop()
	if r.q != nil {
		r.q.listen = nil
	}
	delete(a.moved, r.id)
	if r.note.task != "" {
		delete(a.node.notes, r.id)
	}
	a.claim[r.id] = false
	a.s.trace(a.node, "migration of vm:%s: %v %s", r.id, fin.OK, fin.Reason)
	if fin.OK {
		r.done(nil)
		return
	}
	r.done(errors.New(fin.Reason))
}

func (r *sourceRun) look() {
	if r.over {
		return
	}
	r.a.s.after(lookEvery, &r.a.node.agentProc, r.look)
	if r.busy || r.q == nil || r.q.listen == nil {
		r.feed(migrate.Tick{})
		return
	}
	var p migrate.Progress
	var st migrate.Migration
	q := r.q
	r.a.command(q, lookWait, func() {
		p = migrate.Progress{Round: q.rounds, Sent: q.sent}
		st.Status = q.mig
	}, func(ok bool) {
		if !ok {
			if !q.proc.up {
				r.feed(migrate.Gone{})
			}
			r.feed(migrate.Tick{})
			return
		}
		r.feed(p)
		r.feed(st)
		r.feed(migrate.Tick{})
	})
}

func (r *sourceRun) carryOut(act migrate.Action, done func(migrate.Event)) {
	a := r.a
	result := func(err error) {
		if err != nil {
			done(migrate.Failed{Reason: err.Error()})
			return
		}
		done(migrate.Done{})
	}
	switch act.(type) {
	case migrate.Check:
		r.check(result)
	case migrate.WriteIntent:
		r.writeIntent(done)
	case migrate.Prepare:
		r.prepare(result)
	case migrate.Transfer:
		q := r.q
		q.listen = r.feed
		a.command(q, qmpTimeout, func() { q.migrateTo(r.dst) }, func(ok bool) {
			if !ok {
				result(errFailed)
				return
			}
			result(nil)
		})
	case migrate.Brake:
		q := r.q
		a.command(q, qmpTimeout, func() { q.brake = true }, func(bool) { done(nil) })
	case migrate.Remove:
		a.destroy(r.q, func() { done(migrate.Done{}) })
	case migrate.Settle:
		r.settle(done)
	default:
		done(nil)
	}
}

func (r *sourceRun) check(result func(error)) {
	a := r.a
	r.q = a.proc(r.id)
	if r.q == nil {
		result(model.ErrNotFound)
		return
	}
	state := ""
	q := r.q
	a.command(q, qmpTimeout, func() { state = q.state }, func(ok bool) {
		if !ok || state != "running" && state != "paused" {
			result(model.ErrBusy)
			return
		}
		r.note = moveNote{role: migrate.RoleSource, running: state == "running"}
		if !a.observer.Online(r.target.name, a.node.local()) {
			result(model.ErrUnavailable)
			return
		}
		call(a, r.target, 5*time.Second, func(t *agent, answer func(error)) {
			switch {
			case !a.s.store.quorate(t.node) || !t.valid() || t.proc(r.id) != nil || t.end != nil || !a.s.guest(r.id).storage.reachable(t.node):
				answer(model.ErrUnavailable)
			default:
				answer(nil)
			}
		}, func(err error, ok bool) {
			if !ok {
				err = model.ErrUnavailable
			}
			result(err)
		})
	})
}

// writeIntent is S1.
func (r *sourceRun) writeIntent(done func(migrate.Event)) {
	a := r.a
	refuse := func(err error) { done(migrate.Failed{Reason: err.Error()}) }
	in := model.Intent{VMID: r.id, Source: a.node.name, Target: r.target.name, Task: r.task}
	a.liveEpoch(a.node.name, false, func(epoch uint64, _ int64, err error) {
		if err != nil {
			refuse(err)
			return
		}
		in.SourceEpoch = epoch
		a.liveEpoch(r.target.name, false, func(epoch uint64, _ int64, err error) {
			if err != nil {
				refuse(err)
				return
			}
			in.TargetEpoch = epoch
			a.get(model.GuestConfigKey(a.node.name, r.id), func(rep reply) {
				if rep.err != nil || rep.rec.mod == 0 {
					refuse(model.ErrNotFound)
					return
				}
				r.putIntent(in, rep.rec, done)
			})
		})
	})
}

func (r *sourceRun) putIntent(in model.Intent, conf record, done func(migrate.Event)) {
	a := r.a
	key := model.IntentPrefix + r.id.String()
	a.txn([]cond{{conf.key, conf.mod}, {key, 0}}, []op{{key, in}}, func(rep reply) {
		if rep.err != nil {
			uncertain := errors.Is(rep.err, model.ErrNoQuorum)
			if uncertain {
				r.note.task = r.task
			}
			done(migrate.Failed{Reason: rep.err.Error(), Uncertain: uncertain})
			return
		}
		r.note.task, r.note.intent = r.task, rep.rev
		a.node.notes[r.id] = r.note
		r.watch = a.watchMove(r.id, r.note, r.target.name, in.TargetEpoch, r.feed)
		done(migrate.Done{})
	})
}

type prepareAnswer struct {
	q   *qemu
	err error
}

func (r *sourceRun) prepare(result func(error)) {
	note := moveNote{role: migrate.RoleTarget, task: r.task, intent: r.note.intent, running: r.note.running}
	call(r.a, r.target, prepareTimeout, func(t *agent, answer func(prepareAnswer)) {
		t.servePrepare(r.id, note, answer)
	}, func(ans prepareAnswer, ok bool) {
		if !ok {
			ans.err = model.ErrUnavailable
		}
		r.dst = ans.q
		result(ans.err)
	})
}

func (r *sourceRun) settle(done func(migrate.Event)) {
	a := r.a
	r.watch.stop()
	r.watch = nil
	st := &settling{a: a, id: r.id, note: r.note, q: r.q}
	st.done = func(v migrate.Verdict) {
		end := func() { done(migrate.Settled{Verdict: v}) }
		if v == migrate.VerdictMoved {
			end()
			return
		}
		call(a, r.target, abortTimeout, func(t *agent, answer func(bool)) {
			run := t.moves[r.id]
			if run == nil || run.note.task != r.note.task {
				answer(true)
				return
			}
			run.feed(migrate.Abort{Reason: "the source gave up"})
			run.waiting = append(run.waiting, func() { answer(true) })
		}, func(bool, bool) { end() })
	}
	st.run()
}

// targetRun is one run of the target's machine.
type targetRun struct {
	driver
	committer
	state    migrate.Target
	q        *qemu
	prepared func(prepareAnswer) // nil once it was called
	watch    *moveWatch
	waiting  []func()
}

// servePrepare starts the process that waits for a guest; its lock is held until the migration ended here.
func (a *agent) servePrepare(id model.VMID, note moveNote, answer func(prepareAnswer)) {
	if a.end != nil || !a.lock(id, "arriving") {
		answer(prepareAnswer{err: model.ErrBusy})
		return
	}
	if a.claim[id] {
		a.unlock(id)
		answer(prepareAnswer{err: model.ErrBusy})
		return
	}
	a.claim[id] = true
	c := migrate.Defaults()
	t := &targetRun{committer: committer{a: a, id: id, note: note}, prepared: answer}
	t.state = migrate.Target{Limit: c.Limit + c.SwitchoverLimit + c.OwnershipLimit + prepareTimeout}
	t.driver = driver{
		a: a, began: a.node.local(), do: t.carryOut, finish: t.ended,
		step: func(now time.Duration, ev migrate.Event) (acts []migrate.Action) {
			t.state, acts = t.state.Step(now, ev)
			return acts
		},
	}
	a.moves[id] = t
	t.feed(migrate.Begin{})
	a.s.after(storeEvery, &a.node.agentProc, t.look)
}

func (t *targetRun) ended(fin migrate.Finish) {
	a := t.driver.a
	t.watch.stop()
	if t.q != nil {
		t.q.listen = nil
	}
	t.ready(errors.New(fin.Reason))
	delete(a.moves, t.id)
	delete(a.node.notes, t.id)
	a.claim[t.id] = false
	if p := a.proc(t.id); fin.OK && p != nil {
		p.waits = false
	}
	a.unlock(t.id)
	for _, f := range t.waiting {
		f()
	}
}

func (t *targetRun) ready(err error) {
	if t.prepared != nil {
		t.prepared(prepareAnswer{q: t.q, err: err})
		t.prepared = nil
	}
}

func (t *targetRun) look() {
	if t.over {
		return
	}
	a := t.driver.a
	a.s.after(storeEvery, &a.node.agentProc, t.look)
	if t.busy || t.q == nil || t.q.listen == nil {
		t.feed(migrate.Tick{})
		return
	}
	q := t.q
	var st migrate.Migration
	a.command(q, lookWait, func() { st.Status = q.mig }, func(ok bool) {
		switch {
		case ok:
			t.feed(st)
		case !q.proc.up:
			t.feed(migrate.Gone{})
		}
		t.feed(migrate.Tick{})
	})
}

func (t *targetRun) carryOut(act migrate.Action, done func(migrate.Event)) {
	a := t.driver.a
	switch act.(type) {
	case migrate.Start:
		t.start(func(err error) {
			t.ready(err)
			if err != nil {
				done(migrate.Failed{Reason: err.Error()})
				return
			}
			done(migrate.Done{})
		})
	case migrate.Commit:
		if a.s.mut == mutContBeforeCommit {
			q := t.q
			a.command(q, qmpTimeout, func() { q.cont() }, func(bool) {})
		}
		t.decide(true, settleFirst, func() bool { return !t.q.proc.up }, func(f migrate.Fate) { done(migrate.Decided{Fate: f}) })
	case migrate.Continue:
		t.proceed(done)
	case migrate.Settle:
		t.watch.stop()
		t.watch = nil
		st := &settling{a: a, id: t.id, note: t.note, q: t.q, giveUp: true, commit: &t.committer}
		st.done = func(v migrate.Verdict) { done(migrate.Settled{Verdict: v}) }
		st.run()
	default:
		done(nil)
	}
}

// start checks the request against the store, and starts QEMU.
func (t *targetRun) start(done func(error)) {
	a := t.driver.a
	if a.proc(t.id) != nil {
		done(model.ErrBusy)
		return
	}
	t.load(func(err error) {
		if err != nil {
			done(err)
			return
		}
		a.liveEpoch(a.node.name, false, func(epoch uint64, _ int64, err error) {
			if err != nil || epoch != t.intent.TargetEpoch {
				done(errFenced)
				return
			}
			a.node.notes[t.id] = t.note
			t.guarded = t.protect.mod != 0
			g := a.s.guest(t.id)
			a.prepareGroup(g, t.guarded, a.term(), func(err error) {
				if err != nil {
					done(err)
					return
				}
				a.s.after(a.s.rng.between(startLeast, startMost), &a.node.agentProc, func() {
					a.exec(g, t.guarded, true, func(err error) { t.started(err, done) })
				})
			})
		})
	})
}

func (t *targetRun) started(err error, done func(error)) {
	a := t.driver.a
	if err == nil {
		t.q = a.proc(t.id)
		t.q.listen = t.feed
		t.watch = a.watchMove(t.id, t.note, t.intent.Source, t.intent.SourceEpoch, t.feed)
	}
	done(err)
}

// proceed lets the guest go on, unless it was paused before.
func (t *targetRun) proceed(done func(migrate.Event)) {
	a, q := t.driver.a, t.q
	if !t.note.running {
		done(migrate.Done{})
		return
	}
	went := false
	a.command(q, qmpTimeout, func() { went = q.cont() }, func(ok bool) {
		if !ok || !went {
			done(migrate.Failed{Reason: "QEMU refuses"})
			return
		}
		done(migrate.Done{})
	})
}

// committer makes the transaction that gives the guest to this node.
type committer struct {
	a       *agent
	id      model.VMID
	note    moveNote
	guarded bool

	intent        model.Intent
	intentRev     int64
	conf, protect record
}

// load reads what is compared.
func (c *committer) load(done func(error)) {
	a := c.a
	a.get(model.IntentPrefix+c.id.String(), func(rep reply) {
		in, _ := rep.rec.val.(model.Intent)
		switch {
		case rep.err != nil:
			done(rep.err)
			return
		case rep.rec.mod == 0 || rep.rec.mod != c.note.intent || in.Task != c.note.task || in.Target != a.node.name:
			done(model.ErrConflict)
			return
		}
		rev := rep.rec.mod
		a.get(model.GuestConfigKey(in.Source, c.id), func(rep reply) {
			if rep.err != nil || rep.rec.mod == 0 {
				done(orNotFound(rep.err))
				return
			}
			conf := rep.rec
			a.get(model.ProtectedPrefix+c.id.String(), func(rep reply) {
				if rep.err == nil {
					c.intent, c.intentRev, c.conf, c.protect = in, rev, conf, rep.rec
				}
				done(rep.err)
			})
		})
	})
}

func orNotFound(err error) error {
	if err == nil {
		return model.ErrNotFound
	}
	return err
}

// guard makes sure that what the transaction says about protection is true.
func (c *committer) guard(done func(error)) {
	if c.protect.mod == 0 || c.guarded {
		done(nil)
		return
	}
	c.a.guardGuest(c.a.s.guest(c.id), c.a.term(), func(err error) {
		c.guarded = err == nil
		done(err)
	})
}

// once does everything from the start; a conflict is no error, the caller looks again anyway.
func (c *committer) once(done func(error)) {
	end := func(err error) {
		if errors.Is(err, model.ErrConflict) {
			err = nil
		}
		done(err)
	}
	c.load(func(err error) {
		if err != nil {
			end(err)
			return
		}
		c.guard(func(err error) {
			if err != nil {
				end(err)
				return
			}
			c.try(false, end)
		})
	})
}

// try sends the transaction, which compares the node's own liveness record too.
func (c *committer) try(local bool, done func(error)) {
	a := c.a
	if c.intentRev == 0 {
		done(model.ErrConflict)
		return
	}
	if !a.valid() {
		done(model.ErrUnavailable)
		return
	}
	a.liveEpoch(a.node.name, local, func(epoch uint64, mod int64, err error) {
		if mod != 0 && (err != nil || epoch != c.intent.TargetEpoch) {
			done(errFenced)
			return
		}
		if err != nil {
			done(err)
			return
		}
		to := model.GuestConfigKey(a.node.name, c.id)
		intent, protect := model.IntentPrefix+c.id.String(), model.ProtectedPrefix+c.id.String()
		conds := []cond{{intent, c.intentRev}, {c.conf.key, c.conf.mod}, {to, 0}, {protect, c.protect.mod}, {model.LivePrefix + a.node.name, mod}}
		if a.s.mut == mutCommitWithoutIntent {
			conds = conds[1:2]
		}
		ops := []op{{c.conf.key, nil}, {to, c.conf.val}, {intent, nil}}
		if c.protect.mod != 0 {
			ops = append(ops, op{protect, model.Protected{Node: a.node.name}})
		}
		a.txn(conds, ops, func(rep reply) { done(rep.err) })
	})
}

// decide sends the transaction until it is known who owns the guest.
func (c *committer) decide(local bool, pause time.Duration, gone func() bool, done func(migrate.Fate)) {
	a := c.a
	c.try(local, func(err error) {
		if err == nil {
			done(migrate.Mine)
			return
		}
		a.fate(c.id, c.note, func(f migrate.Fate, ferr error) {
			switch {
			case a.s.mut == mutCommitUnknownIsMine && errors.Is(err, model.ErrNoQuorum):
				done(migrate.Mine)
				return
			case ferr == nil && f != migrate.Pending:
				done(f)
				return
			case gone(), errors.Is(err, errFenced) && !local:
				done(migrate.Theirs)
				return
			}
			wait := pause
			if errors.Is(err, model.ErrConflict) {
				wait = 0
			} else {
				pause = min(2*pause, settleMost)
			}
			a.s.after(wait, &a.node.agentProc, func() {
				c.load(func(err error) {
					if err != nil {
						c.decide(false, pause, gone, done)
						return
					}
					c.guard(func(error) { c.decide(false, pause, gone, done) })
				})
			})
		})
	})
}
