package sim

import (
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
)

const (
	// endPace is how often a node that ends looks whether its guests are gone; see internal/agent, as for the next one.
	endPace = 100 * time.Millisecond
	// leaveLimit bounds the last word.
	leaveLimit = 10 * time.Second
)

// ending is a node's orderly end, step by step as internal/agent has it. It dies with its agent.
type ending struct {
	a      *agent
	how    ha.NodeEnd
	rev    int64 // at which the cluster was told
	lonely bool  // it could not be
	begun  map[model.VMID]bool
	leftAt time.Duration
}

// endInOrder is a shutdown or reboot by command: the node says so, its guests leave or stop, it leaves, and the power goes.
func (n *node) endInOrder(how ha.NodeEnd) {
	a := n.agent
	if a == nil || !n.agentProc.runs() {
		n.die("switched off")
		if how == ha.EndsReboot {
			n.bootLater()
		}
		return
	}
	n.s.trace(n, "agent: ends in order: %s", how)
	n.ended = lastEnd{how: how, boot: a.bootID()}
	a.end = &ending{a: a, how: how, begun: map[model.VMID]bool{}}
	a.end.announce()
}

func (e *ending) in(d time.Duration, do func()) { e.a.s.after(d, &e.a.node.agentProc, do) }

// announce tells the cluster, unless the lease ends before that can be done.
func (e *ending) announce() {
	a, n := e.a, e.a.node
	key := model.HANodePrefix + n.name
	a.txn([]cond{{key, n.mirror[key].mod}}, []op{{key, ha.NodeMode{Ends: e.how, BootID: a.bootID()}}}, func(rep reply) {
		switch {
		case rep.err == nil:
			e.rev = rep.rev
			e.awaitWorker()
		case e.alone():
			e.lonely = true
			e.awaitWorker()
		default:
			e.in(time.Second, e.announce)
		}
	})
}

// alone: the worker lets the node go because it has had no quorum or no lease for so long.
func (e *ending) alone() bool {
	may, _ := e.a.ha.worker.MayLeave(e.a.node.local())
	return may && !(e.a.quorate() && e.a.valid())
}

// awaitWorker waits until HA has nothing left to do here, by a view in which the node ends.
func (e *ending) awaitWorker() {
	a := e.a
	may, _ := a.ha.worker.MayLeave(a.node.local())
	if !may || a.looked < e.rev && !e.alone() {
		e.in(endPace, e.awaitWorker)
		return
	}
	a.closed = true
	e.stopAll()
}

// stopAll ends what still runs: what HA does not care for.
func (e *ending) stopAll() {
	a := e.a
	for _, q := range a.procs {
		id := q.g.id
		if e.begun[id] || !a.lock(id, "the node ends") {
			continue
		}
		e.begun[id] = true
		a.stopGuest(q, shutdownPatience, func(err error) {
			if err == nil {
				a.unlock(id)
				return
			}
			a.destroy(q, func() { a.unlock(id) })
		})
	}
	if len(a.procs)+len(a.locks) > 0 {
		e.in(endPace, e.stopAll)
		return
	}
	e.leave()
}

// leave says goodbye. Without a quorum nobody can be told.
func (e *ending) leave() {
	if e.lonely {
		e.down()
		return
	}
	e.leftAt = e.a.s.now
	e.a.live(lease.Leave{})
	e.awaitLeft()
}

func (e *ending) awaitLeft() {
	if live, ok := e.a.renewer.Live(); (!ok || !live.Left) && e.a.s.now < e.leftAt+leaveLimit {
		e.in(endPace, e.awaitLeft)
		return
	}
	e.down()
}

// down brings the machine down, which takes a while.
func (e *ending) down() {
	n := e.a.node
	wait := time.Duration(0)
	if n.s.scenario == nil {
		wait = n.s.rng.between(0, 5*time.Second)
	}
	n.s.after(wait, &n.machine, func() {
		n.powerOff("it ended in order")
		if e.how == ha.EndsReboot {
			n.bootLater()
		}
	})
}

// forget deletes what an earlier life said of how this node ends. It is called once the node is registered: a node that left, and of which
// nothing says why, is one whose guests are taken.
func (a *agent) forget() {
	if a.forgot || a.end != nil || a.node.old || a.node.ended.boot == "" { // it never said anything
		return
	}
	a.forgot = true
	key := model.HANodePrefix + a.node.name
	again := func() {
		a.s.after(time.Second, &a.node.agentProc, func() {
			a.forgot = false
			a.forget()
		})
	}
	a.get(key, func(rep reply) {
		switch {
		case rep.err != nil:
			again()
		case rep.rec.mod != 0 && a.end == nil:
			a.txn([]cond{{key, rep.rec.mod}}, []op{{key, nil}}, func(rep reply) {
				if rep.err != nil {
					again()
				}
			})
		}
	})
}

// shutdownPolicy is datacenter.cfg's.
func (s *sim) shutdownPolicy() ha.ShutdownPolicy {
	center, ok := s.store.data[datacenterKey].val.(*datacenter)
	if !ok {
		return ha.ShutdownConditional
	}
	return center.policy.Shutdown
}

// awaited: by the records the guests of a node wait for it, because it ended in order and left.
func (s *sim) awaited(n *node, live model.Live) bool {
	mode, _ := s.store.data[model.HANodePrefix+n.name].val.(ha.NodeMode)
	return live.Left && mode.BootID == live.BootID && s.freezes(mode.Ends)
}

// freezes says whether the guests of a node that ends so wait for it.
func (s *sim) freezes(how ha.NodeEnd) bool {
	switch s.shutdownPolicy() {
	case ha.ShutdownFreeze:
		return how != ""
	case ha.ShutdownFailover, ha.ShutdownMigrate:
		return how == ha.EndsRestart
	default:
		return how != "" && how != ha.EndsShutdown
	}
}

// excuses is a planted bug: a node that falls silent while it ends in order is excused until its lease is over,
func (a *agent) excuses(r *nodeRecord) bool {
	m := r.mode
	return m.Ends != "" && m.BootID == r.live.BootID && !r.live.Left && !r.live.Fenced && a.s.freezes(m.Ends) &&
		!a.observer.MayTake(r.name, a.node.local()).May
}

// excusesNow: and nobody looks then, unless guests of a third node are watched.
func (a *agent) excusesNow() bool {
	for i := range a.view.nodes {
		r := &a.view.nodes[i]
		silence, known := a.observer.Silence(r.name, a.node.local())
		if !known || r.name == a.node.name || silence < a.s.params.SuspectAfter() || !a.excuses(r) {
			continue
		}
		return !slices.ContainsFunc(a.view.guests, func(g ha.Guest) bool { return g.Node != r.name && g.Node != a.node.name })
	}
	return false
}
