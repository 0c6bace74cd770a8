package sim

import (
	"errors"
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
)

// moveNote is what a node remembers of a migration across a restart of its agent; see internal/agent/move.
type moveNote struct {
	role    migrate.Role
	task    string
	intent  int64
	running bool
}

// Deadlines and paces of a migration; see internal/agent/move.
const (
	lookEvery      = 100 * time.Millisecond
	prepareTimeout = 30 * time.Second
	abortTimeout   = 2 * time.Second
	storeEvery     = time.Second
	settleFirst    = 20 * time.Millisecond
	settleMost     = 500 * time.Millisecond
	recoverAgain   = 2 * time.Second
)

var errFenced = errors.New("this node was fenced since the migration began")

// driver runs one of the machines: an event, what comes of it, the results, until nothing is left.
type driver struct {
	a       *agent
	began   time.Duration
	step    func(now time.Duration, ev migrate.Event) []migrate.Action
	do      func(act migrate.Action, done func(migrate.Event))
	finish  func(migrate.Finish)
	results []migrate.Event
	outside []migrate.Event
	busy    bool
	over    bool
}

// feed takes an event from outside.
func (d *driver) feed(ev migrate.Event) {
	if !d.over {
		d.outside = append(d.outside, ev)
		d.pump()
	}
}

func (d *driver) pump() {
	for !d.busy && !d.over {
		var ev migrate.Event
		switch {
		case len(d.results) > 0:
			ev, d.results = d.results[0], d.results[1:]
		case len(d.outside) > 0:
			ev, d.outside = d.outside[0], d.outside[1:]
		default:
			return
		}
		d.busy = true
		d.run(d.step(d.a.node.local()-d.began, ev))
	}
}

func (d *driver) run(actions []migrate.Action) {
	if len(actions) == 0 {
		d.busy = false
		d.a.s.after(0, &d.a.node.agentProc, d.pump)
		return
	}
	if fin, ok := actions[0].(migrate.Finish); ok {
		d.over = true
		d.finish(fin)
		return
	}
	d.do(actions[0], func(ev migrate.Event) {
		if ev != nil {
			d.results = append(d.results, ev)
		}
		d.run(actions[1:])
	})
}

// moveWatch tells one side what the store says: the intent's fate, the other node's end, a lost quorum.
type moveWatch struct {
	a      *agent
	id     model.VMID
	note   moveNote
	other  string
	epoch  uint64
	tell   func(migrate.Event)
	silent int
	over   bool
	asking bool
}

func (a *agent) watchMove(id model.VMID, n moveNote, other string, epoch uint64, tell func(migrate.Event)) *moveWatch {
	w := &moveWatch{a: a, id: id, note: n, other: other, epoch: epoch, tell: tell}
	a.watchers = append(a.watchers, w)
	a.s.after(storeEvery, &a.node.agentProc, w.tick)
	return w
}

func (w *moveWatch) stop() {
	if w == nil || w.over {
		return
	}
	w.over = true
	for i, o := range w.a.watchers {
		if o == w {
			w.a.watchers = append(w.a.watchers[:i:i], w.a.watchers[i+1:]...)
			return
		}
	}
}

func (w *moveWatch) saw(rec record) {
	if rec.key == model.IntentPrefix+w.id.String() {
		w.ask()
	}
}

func (w *moveWatch) tick() {
	if w.over {
		return
	}
	w.a.s.after(storeEvery, &w.a.node.agentProc, w.tick)
	if n := w.a.view.node(w.other); n.liveRev != 0 {
		switch {
		case n.live.Fenced:
			w.tell(migrate.Failed{Reason: "node " + w.other + " was fenced"})
		case n.live.Epoch != w.epoch:
			w.tell(migrate.Failed{Reason: "node " + w.other + " was fenced since the migration began"})
		}
	}
	if !w.over {
		w.ask()
	}
}

func (w *moveWatch) ask() {
	if w.asking {
		return
	}
	w.asking = true
	w.a.fate(w.id, w.note, func(f migrate.Fate, err error) {
		w.asking = false
		switch {
		case w.over:
		case errors.Is(err, model.ErrNoQuorum):
			if w.silent++; w.silent == 3 {
				w.tell(migrate.NoQuorum{})
			}
		case err == nil:
			w.silent = 0
			if f != migrate.Pending {
				w.tell(migrate.Decided{Fate: f})
			}
		}
	})
}

// holding is what the store says about a guest and this node.
type holding struct {
	intent, owner, proven bool
	revision              int64 // of the intent, if there is any
	in                    model.Intent
}

// holding reads it, the intent first: once it is gone, only the file counts.
func (a *agent) holding(id model.VMID, n moveNote, done func(holding, error)) {
	a.get(model.IntentPrefix+id.String(), func(rep reply) {
		in, _ := rep.rec.val.(model.Intent)
		h := holding{in: in, revision: rep.rec.mod, intent: rep.rec.mod != 0 && in.Task == n.task}
		if rep.err != nil {
			done(h, rep.err)
			return
		}
		a.get(model.GuestConfigKey(a.node.name, id), func(rep reply) {
			h.owner = rep.rec.mod != 0
			if rep.err != nil || h.intent || !h.owner || n.intent == 0 {
				done(h, rep.err)
				return
			}
			if n.role == migrate.RoleSource {
				h.proven = rep.rec.create < n.intent
			} else {
				h.proven = rep.rec.create == a.s.store.deletion(model.IntentPrefix+id.String(), n.intent)
			}
			done(h, nil)
		})
	})
}

// deletion is the revision that deleted a key after the revision given.
func (st *store) deletion(key string, after int64) int64 {
	for _, ch := range st.log[after:] {
		for _, rec := range ch.recs {
			if rec.key == key && rec.val == nil {
				return ch.rev
			}
		}
	}
	return 0
}

// fate says what became of the intent, for the side that the note is of.
func (a *agent) fate(id model.VMID, n moveNote, done func(migrate.Fate, error)) {
	a.holding(id, n, func(h holding, err error) {
		switch {
		case err != nil:
			done(migrate.Pending, err)
		case h.intent:
			done(migrate.Pending, nil)
		case h.owner && h.proven:
			done(migrate.Mine, nil)
		default:
			done(migrate.Theirs, nil)
		}
	})
}

// liveEpoch reads a node's epoch; err when it was fenced or never lived.
func (a *agent) liveEpoch(node string, local bool, done func(epoch uint64, mod int64, err error)) {
	answer := func(rep reply) {
		live, _ := rep.rec.val.(model.Live)
		switch {
		case rep.err != nil:
			done(0, 0, rep.err)
		case rep.rec.mod == 0:
			done(0, 0, model.ErrUnavailable)
		case live.Fenced:
			done(live.Epoch, rep.rec.mod, model.ErrUnavailable)
		default:
			done(live.Epoch, rep.rec.mod, nil)
		}
	}
	if local {
		answer(reply{rec: a.node.mirror[model.LivePrefix+node]})
		return
	}
	a.get(model.LivePrefix+node, answer)
}

// release deletes the intent of the revision given.
func (a *agent) release(id model.VMID, revision int64, done func(error)) {
	key := model.IntentPrefix + id.String()
	a.txn([]cond{{key, revision}}, []op{{key, nil}}, func(rep reply) { done(rep.err) })
}

// settling is one run of migrate.Resolve to its end.
type settling struct {
	a       *agent
	id      model.VMID
	note    moveNote
	q       *qemu
	giveUp  bool
	commit  *committer
	grace   time.Duration
	began   time.Duration
	pause   time.Duration
	refused int
	done    func(migrate.Verdict)
}

func (st *settling) run() {
	st.began, st.pause = st.a.node.local(), settleFirst
	st.once()
}

func (st *settling) once() {
	st.facts(func(f migrate.Facts, rev int64, err error) {
		if err != nil {
			st.rest()
			return
		}
		f.Waited = st.a.node.local() - st.began
		d := migrate.Resolve(f)
		if d.Step == migrate.StepNothing {
			st.done(d.Verdict)
			return
		}
		if st.a.s.tracing() {
			st.a.s.trace(st.a.node, "settle vm:%s as %s: %s: %s", st.id, st.note.role, d.Step, d.Reason)
		}
		st.do(d.Step, rev, func(err error) {
			if err == nil && d.Step != migrate.StepWait && d.Step != migrate.StepCancel {
				st.pause = settleFirst
				st.a.s.after(0, &st.a.node.agentProc, st.once)
				return
			}
			st.rest()
		})
	})
}

func (st *settling) rest() {
	st.a.s.after(st.pause, &st.a.node.agentProc, st.once)
	st.pause = min(2*st.pause, settleMost)
}

// facts of this moment, and the intent's revision if there is one.
func (st *settling) facts(done func(migrate.Facts, int64, error)) {
	a := st.a
	f := migrate.Facts{Role: st.note.role, GiveUp: st.giveUp, WasRunning: st.note.running, Grace: st.grace, Refused: st.refused}
	a.holding(st.id, st.note, func(h holding, err error) {
		if err != nil {
			done(f, 0, err)
			return
		}
		if h.intent {
			st.note.intent = h.revision
		}
		f.Intent, f.Owner, f.Proven = h.intent, h.owner, h.proven
		ask := func() { st.ask(f, h.revision, done) }
		if !f.Intent || f.Role != migrate.RoleTarget {
			ask()
			return
		}
		a.liveEpoch(a.node.name, false, func(epoch uint64, _ int64, err error) {
			if errors.Is(err, model.ErrNoQuorum) {
				done(f, 0, err)
				return
			}
			f.Live = err == nil && epoch == h.in.TargetEpoch
			a.liveEpoch(h.in.Source, false, func(epoch uint64, _ int64, err error) {
				if errors.Is(err, model.ErrNoQuorum) {
					done(f, 0, err)
					return
				}
				f.GiveUp = f.GiveUp || err != nil || epoch != h.in.SourceEpoch
				ask()
			})
		})
	})
}

// ask adds what QEMU says; a process that is gone is cleaned up.
func (st *settling) ask(f migrate.Facts, rev int64, done func(migrate.Facts, int64, error)) {
	q := st.q
	if q == nil {
		done(f, rev, nil)
		return
	}
	var state, mig string
	st.a.command(q, lookWait, func() { state, mig = q.state, q.mig }, func(ok bool) {
		if !q.proc.up {
			f.QEMU, f.Migration = "", ""
			st.a.destroy(q, func() { done(f, rev, nil) })
			return
		}
		if !ok {
			done(f, rev, errFailed)
			return
		}
		f.QEMU, f.Migration = state, mig
		done(f, rev, nil)
	})
}

func (st *settling) do(step migrate.Step, rev int64, done func(error)) {
	a := st.a
	switch step {
	case migrate.StepRelease:
		a.release(st.id, rev, func(err error) {
			if errors.Is(err, model.ErrConflict) {
				err = nil // somebody else decided: look again
			}
			done(err)
		})
	case migrate.StepCommit:
		st.commit.once(done)
	case migrate.StepCancel:
		a.command(st.q, qmpTimeout, st.q.cancel, func(bool) { done(nil) })
	case migrate.StepResume:
		q, went := st.q, false
		a.command(q, qmpTimeout, func() { went = q.cont() }, func(ok bool) {
			if !ok || !went {
				st.refused++
				done(errFailed)
				return
			}
			done(nil)
		})
	case migrate.StepDestroy:
		a.destroy(st.q, func() {
			st.q = nil
			done(nil)
		})
	default:
		done(nil)
	}
}

// recoverMoves settles migrations that an earlier agent of this node left, now and as long as there are any.
func (a *agent) recoverMoves() {
	n := a.node
	for _, q := range a.procs {
		if _, ok := n.notes[q.g.id]; ok {
			a.settle(q.g.id)
		}
	}
	for _, g := range a.s.guests {
		if in, ok := a.view.intents[g.id]; ok && (in.Source == n.name || in.Target == n.name) {
			a.settle(g.id)
		}
	}
	a.s.after(recoverAgain, &n.agentProc, a.recoverAgain)
}

func (a *agent) recoverAgain() {
	for _, g := range a.s.guests {
		if in, ok := a.view.intents[g.id]; ok && in.Source == a.node.name {
			a.settle(g.id)
		}
	}
	a.s.after(recoverAgain, &a.node.agentProc, a.recoverAgain)
}

// settle recovers one guest's migration, unless something has the guest's lock.
func (a *agent) settle(id model.VMID) {
	if a.locks[id] != "" || a.claim[id] {
		return
	}
	a.lock(id, "settling an interrupted migration")
	a.claim[id] = true
	q := a.proc(id)
	a.recall(id, q, func(n moveNote, found bool, err error) {
		end := func() {
			a.claim[id] = false
			a.unlock(id)
		}
		if err != nil {
			a.s.after(recoverAgain, &a.node.agentProc, func() {
				end()
				a.settle(id)
			})
			return
		}
		if !found {
			end()
			return
		}
		st := &settling{a: a, id: id, note: n, q: q, grace: migrate.Defaults().OwnershipLimit, commit: &committer{a: a, id: id, note: n}}
		st.done = func(v migrate.Verdict) {
			if a.s.tracing() {
				a.s.trace(a.node, "settled vm:%s: %s", id, v)
			}
			delete(a.node.notes, id)
			if p := a.proc(id); p != nil {
				p.waits = p.incoming && p.state == "inmigrate"
			}
			end()
		}
		st.run()
	})
}

// recall returns the note, or what it would say if the agent had come to write it.
func (a *agent) recall(id model.VMID, q *qemu, done func(n moveNote, found bool, err error)) {
	n, noted := a.node.notes[id]
	a.get(model.IntentPrefix+id.String(), func(rep reply) {
		in, _ := rep.rec.val.(model.Intent)
		concerned := rep.rec.mod != 0 && (in.Source == a.node.name || in.Target == a.node.name)
		switch {
		case rep.err != nil:
			done(n, false, rep.err)
		case noted && (!concerned || in.Task == n.task):
			done(n, true, nil)
		case !concerned:
			done(n, false, nil)
		default:
			n = moveNote{role: migrate.RoleTarget, task: in.Task, intent: rep.rec.mod, running: true}
			if in.Source != a.node.name || q == nil {
				if in.Source == a.node.name {
					n.role = migrate.RoleSource
				}
				done(n, true, nil)
				return
			}
			n.role = migrate.RoleSource
			state := ""
			a.command(q, qmpTimeout, func() { state = q.state }, func(ok bool) {
				if !ok {
					done(n, false, errFailed)
					return
				}
				n.running = state != "paused"
				done(n, true, nil)
			})
		}
	})
}

func (s *sim) newTask(n *node) string {
	s.tasks++
	return fmt.Sprintf("%s/%d", n.name, s.tasks)
}
