package sim

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
)

// agent is one life of a node's agent: the shell of the core, as internal/agent is.
type agent struct {
	s    *sim
	node *node

	// liveness
	renewer  lease.Renewer
	observer *lease.Observer
	epoch    uint64
	deadline time.Duration // local; 0 when there is none
	renewing time.Duration // when the renewal under way was sent, local

	view  views
	ha    machines
	procs []*qemu // those that it knows, by guest
	locks map[model.VMID]string
	moves map[model.VMID]*targetRun
	moved map[model.VMID]*sourceRun
	claim map[model.VMID]bool
	// arriving: the locks that are held for guests on their way here.
	arriving map[model.VMID]bool
	watchers []*moveWatch
	telling  bool    // its health
	end      *ending // the node ends in order; nil if not
	closed   bool    // and no guest starts any more
	forgot   bool    // what an earlier life said of the node's end
	looked   int64   // the revision of the view at which the worker looked last
}

// startAgent begins a life of the agent.
func (n *node) startAgent() {
	if n.agentProc.up || !n.machine.up {
		return
	}
	n.agentProc.begin()
	a := &agent{
		s: n.s, node: n, observer: lease.NewObserver(n.s.observerParams(), n.name),
		locks: map[model.VMID]string{}, moves: map[model.VMID]*targetRun{}, moved: map[model.VMID]*sourceRun{},
		claim: map[model.VMID]bool{}, arriving: map[model.VMID]bool{},
	}
	n.agent = a
	n.s.trace(n, "agent: starts")
	n.s.store.topology()
	if n.s.store.leader != nil && n.s.store.hears(n.s.store.leader, n) {
		n.s.store.catchUp()
	}
	loading := n.s.rng.between(100*time.Millisecond, 400*time.Millisecond)
	if n.s.scenario != nil {
		loading = 2 * time.Second
	}
	n.s.after(loading, &n.agentProc, a.open)
}

// killAgent ends the agent's process; QEMUs and guard run on.
func (n *node) killAgent() {
	if !n.agentProc.up {
		return
	}
	n.s.trace(n, "agent: killed")
	n.agentProc.end()
	n.agent = nil
	for _, q := range n.qemus {
		q.listen, q.guarded, q.waits = nil, false, false
	}
	n.lagging = true
	n.s.store.topology()
}

// open loads the copy of the store, adopts what runs, and begins to live.
func (a *agent) open() {
	a.view.load(a)
	for _, rec := range sortedPrefix(a.node.mirror, model.LivePrefix) {
		a.noteLive(rec)
	}
	a.adopt(func() {
		a.recoverMoves()
		a.firstEpoch(func(epoch uint64) {
			a.renewer = lease.NewRenewer(a.s.params, lease.Identity{
				BootID: a.bootID(), Online: int64(a.s.now / time.Second), MinEpoch: epoch,
			})
			a.live(lease.Tick{})
		})
		a.ha.start(a)
		if a.s.mut == mutForgetsEarly {
			a.forget()
		}
		a.publish()
		a.tellHealth()
		a.startOnBoot()
	})
}

func (a *agent) bootID() string { return a.node.name + "." + strconv.Itoa(a.node.boots) }

// adopt takes over the processes that an earlier agent started; a group without one leaves the guard.
func (a *agent) adopt(done func()) {
	n := a.node
	var names []string
	a.ask(guardDeadline, func(g *guardDaemon, reply func(error)) {
		for _, m := range g.state.Groups() {
			if m.State != lease.Killing {
				names = append(names, m.Name)
			}
		}
		reply(nil)
	}, func(error) {
		for _, q := range n.qemus {
			if a.s.mut == mutThawUnchecked {
				q.cg.thaw()
			}
			_, noted := n.notes[q.g.id]
			q.guarded = contains(names, q.g.id.String())
			q.waits = q.incoming && (noted || q.state == "inmigrate")
			a.addProc(q)
		}
		for _, name := range names {
			if id, err := model.ParseVMID(name); err == nil && a.s.mut == mutUnguardOnStart {
				a.ask(guardDeadline, func(g *guardDaemon, reply func(error)) { reply(g.unprotect(name)) }, func(error) {})
			} else if err == nil && a.proc(id) == nil {
				a.unguard(id, func() {})
			}
		}
		done()
	})
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func (a *agent) proc(id model.VMID) *qemu {
	for _, q := range a.procs {
		if q.g.id == id {
			return q
		}
	}
	return nil
}

func (a *agent) addProc(q *qemu) {
	i := 0
	for i < len(a.procs) && a.procs[i].g.id < q.g.id {
		i++
	}
	a.procs = append(a.procs, nil)
	copy(a.procs[i+1:], a.procs[i:])
	a.procs[i] = q
	a.kick()
}

// noticeEnd is told that a process of this machine ended: clean up, then tell the worker.
func (a *agent) noticeEnd(q *qemu) {
	a.s.after(time.Millisecond, &a.node.agentProc, func() {
		a.unguard(q.g.id, func() {
			for i, o := range a.procs {
				if o == q {
					a.procs = append(a.procs[:i:i], a.procs[i+1:]...)
					a.ha.gone(a, q)
					break
				}
			}
		})
	})
}

// unguard takes a group out of the guard's care if nothing runs in it.
func (a *agent) unguard(id model.VMID, done func()) {
	if cg := a.node.group(id.String()); cg != nil && cg.q != nil {
		done()
		return
	}
	a.ask(guardDeadline, func(g *guardDaemon, reply func(error)) {
		reply(g.unprotect(id.String()))
	}, func(error) {
		if cg := a.node.group(id.String()); cg != nil && cg.q == nil && cg.mark == nil {
			a.node.removeGroup(cg)
		}
		done()
	})
}

// live feeds the renewer and does what it says, in order.
func (a *agent) live(ev lease.Event) {
	r, actions := a.renewer.Step(a.node.local(), ev)
	a.renewer = r
	a.liveDo(actions, nil)
}

func (a *agent) liveDo(actions []lease.Action, answer lease.Event) {
	if len(actions) == 0 {
		if answer != nil {
			a.live(answer)
			return
		}
		if at, ok := a.renewer.Wake(); ok {
			a.node.onNode(at, &a.node.agentProc, a.liveTick)
		}
		return
	}
	rest := actions[1:]
	then := func(ev lease.Event) {
		if ev == nil {
			ev = answer
		}
		a.liveDo(rest, ev)
	}
	switch act := actions[0].(type) {
	case lease.Read:
		a.get(model.LivePrefix+a.node.name, func(rep reply) { then(readAnswer(rep)) })
	case lease.Renew:
		a.writeLive(act.Live, act.IfRevision, then)
	case lease.Register:
		a.s.trace(a.node, "agent: registers with epoch %d", act.Live.Epoch)
		a.writeLive(act.Live, act.IfRevision, then)
	case lease.Extend:
		a.extend(act, func() { then(nil) })
	case lease.Fenced:
		a.s.trace(a.node, "agent: was fenced with epoch %d", act.Epoch)
		if a.s.mut == mutFencedIgnored {
			then(lease.FencedHandled(act))
			return
		}
		a.killBefore(act.Epoch, func() { then(lease.FencedHandled(act)) })
	case lease.Removed:
		a.killBefore(act.Epoch, func() { then(nil) })
	}
}

func (a *agent) liveTick() { a.live(lease.Tick{}) }

func readAnswer(rep reply) lease.Event {
	if rep.err != nil {
		return lease.Unknown{}
	}
	live, ok := rep.rec.val.(model.Live)
	if !ok {
		return lease.ReadMissing{}
	}
	return lease.ReadBack{Live: live, Revision: rep.rec.mod}
}

// writeLive writes the record if the guard answers.
func (a *agent) writeLive(live model.Live, rev int64, done func(lease.Event)) {
	sent := a.node.local()
	write := func(err error) {
		if err != nil {
			a.s.after(a.s.params.Renew, &a.node.agentProc, func() { done(lease.Unknown{}) })
			return
		}
		key := model.LivePrefix + a.node.name
		conds := []cond{{key, rev}}
		if a.s.mut == mutRenewUncompared {
			conds = nil
		}
		a.renewing = sent
		a.txn(conds, []op{{key, live}}, func(rep reply) {
			switch {
			case rep.err == nil:
				done(lease.Committed{Revision: rep.rev})
			case errors.Is(rep.err, model.ErrConflict):
				if a.s.mut == mutConflictIsCommit {
					done(lease.Committed{Revision: rev + 1})
					return
				}
				done(lease.Conflict{})
			default:
				if a.s.mut == mutUnknownIsCommit {
					done(lease.Committed{Revision: rev})
					return
				}
				done(lease.Unknown{})
			}
		})
	}
	if a.s.mut == mutRenewWithoutGuard {
		write(nil)
		return
	}
	a.ask(guardDeadline, replyNil, write)
}

func replyNil(_ *guardDaemon, reply func(error)) { reply(nil) }

// extend tells the guard the deadline; what it has confirmed counts as a lease.
func (a *agent) extend(act lease.Extend, done func()) {
	n := a.node
	switch a.s.mut {
	case mutDeadlineFromAck:
		act.Deadline = n.local() + a.s.params.Lease
	case mutDeadlineTwice:
		act.Deadline += a.s.params.Lease / 2
	default:
	}
	a.ask(guardDeadline, func(g *guardDaemon, reply func(error)) {
		ev := lease.Renewal(act)
		if a.s.mut == mutDeadlineTwice {
			ev.Deadline = min(ev.Deadline, n.local()+a.s.params.Lease)
		}
		reply(g.step(ev))
	}, func(err error) {
		if err == nil {
			was := a.valid()
			a.epoch, a.deadline = act.Epoch, act.Deadline
			if !was {
				a.ha.changed(a)
				a.forget()
			}
		}
		done()
	})
}

// valid reports whether this node's lease is not over.
func (a *agent) valid() bool {
	return a.deadline-a.s.params.FreezeMargin > a.node.local()
}

// killBefore returns when the guard has confirmed that no protected guest of an earlier epoch lives.
func (a *agent) killBefore(epoch uint64, done func()) {
	a.deadline = 0
	a.kick()
	deadline := killDeadline
	a.ask(deadline, func(g *guardDaemon, reply func(error)) {
		if a.s.mut == mutFenceEpoch {
			epoch--
		}
		_ = g.step(lease.FenceOrder{Epoch: epoch})
		g.fences = append(g.fences, fenceCall{epoch, reply})
		g.answerFences()
	}, func(err error) {
		if err == nil {
			done()
			return
		}
		a.s.after(200*time.Millisecond, &a.node.agentProc, func() { a.killBefore(epoch, done) })
	})
}

// firstEpoch is the epoch for a record that does not exist. It waits for the guard.
func (a *agent) firstEpoch(done func(uint64)) {
	var epoch uint64
	a.ask(guardDeadline, func(g *guardDaemon, reply func(error)) {
		epoch = g.state.Epoch()
		reply(nil)
	}, func(err error) {
		if err != nil {
			a.s.after(a.s.params.Renew, &a.node.agentProc, func() { a.firstEpoch(done) })
			return
		}
		done(max(epoch+1, uint64(a.node.mirror[model.NodePrefix+a.node.name].create)))
	})
}

// observe takes in a change that has arrived here.
func (a *agent) observe(ch *change) {
	if a.view.prot == nil {
		return // open loads everything at once
	}
	quiet := true
	for _, rec := range ch.recs {
		if strings.HasPrefix(rec.key, model.LivePrefix) {
			a.noteLive(rec)
			if !a.view.live(rec) {
				continue
			}
		} else {
			a.view.changed(rec)
		}
		quiet = false
		for _, w := range a.watchers {
			w.saw(rec)
		}
	}
	a.view.rev = ch.rev
	if !quiet {
		a.ha.changed(a)
	}
}

func (a *agent) noteLive(rec record) {
	name := rec.key[len(model.LivePrefix):]
	live, ok := rec.val.(model.Live)
	if !ok {
		a.observer.Forget(name)
		return
	}
	if a.node.old {
		live.Covers = ""
	}
	at := a.node.local()
	if a.s.mut == mutArrivalBackdated {
		at -= 4 * time.Second
	}
	a.observer.Note(name, live, rec.mod, at)
}

// get reads a key linearizably.
func (a *agent) get(key string, done func(reply)) {
	if a.s.mut == mutLocalReads {
		rec := a.node.mirror[key]
		a.s.after(30*time.Microsecond, &a.node.agentProc, func() { done(reply{rev: a.view.rev, rec: rec}) })
		return
	}
	a.s.store.submit(&request{a: a, read: key, done: done})
}

// txn makes a transaction.
func (a *agent) txn(conds []cond, ops []op, done func(reply)) {
	a.s.store.submit(&request{a: a, conds: conds, ops: ops, done: done})
}

// kick makes the worker look again.
func (a *agent) kick() { a.ha.kick(a) }

// lock takes a guest's lock.
func (a *agent) lock(id model.VMID, what string) bool {
	if _, held := a.locks[id]; held {
		return false
	}
	a.locks[id] = what
	a.kick()
	return true
}

func (a *agent) unlock(id model.VMID) {
	delete(a.locks, id)
	a.kick()
}

// quorate is what the agent believes. A scenario may keep it from the store while its member goes on.
func (a *agent) quorate() bool { return a.s.store.quorate(a.node) && !a.node.cfsFails }
