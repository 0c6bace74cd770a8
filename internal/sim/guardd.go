package sim

import (
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
)

// guardDaemon is the guard's process around lease.Guard; see internal/guard.
type guardDaemon struct {
	n          *node
	state      lease.Guard
	wake       time.Duration // local time of the next step
	pending    time.Duration // true time of the event that is out for it
	fences     []fenceCall
	thawFailed []string
	lastPill   map[string]time.Duration
}

type fenceCall struct {
	epoch uint64
	reply func(error)
}

// The guard's times; see internal/guard and internal/agent.
const (
	localWay      = 60 * time.Microsecond
	pillPace      = 250 * time.Millisecond
	guardDeadline = 500 * time.Millisecond
	killDeadline  = 5 * time.Second
)

// startGuard starts the guard; groups that are marked were protected by an earlier one.
func (n *node) startGuard() {
	if n.guardProc.up {
		return
	}
	n.guardProc.begin()
	var found []lease.Group
	for _, g := range n.groups {
		if g.mark != nil {
			found = append(found, *g.mark)
		}
	}
	g := &guardDaemon{n: n, lastPill: map[string]time.Duration{}}
	if n.s.mut == mutGuardForgetsFound {
		found = nil
	}
	g.state = lease.NewGuard(n.params(), n.spec.watchdog, n.local(), found)
	n.guard = g
	n.s.trace(n, "guard: starts, %d groups found", len(found))
	_ = g.step(lease.Tick{})
}

func (g *guardDaemon) tick() {
	failed := g.thawFailed
	g.thawFailed = nil
	if len(failed) > 0 {
		_ = g.step(lease.Done{ThawFailed: failed})
		return
	}
	_ = g.step(lease.Tick{})
}

// step tells the machine ev and does what it says until there is nothing left to do now.
func (g *guardDaemon) step(ev lease.GuardEvent) error {
	n := g.n
	next, actions, refused := g.state.Step(n.local(), ev)
	g.state = next
	for len(actions) > 0 {
		done, progress := g.perform(actions)
		if !progress || n.guard != g || !n.guardProc.up {
			break
		}
		g.state, actions, _ = g.state.Step(n.local(), done)
	}
	if n.guard != g || !n.guardProc.up {
		return refused // the machine was reset
	}
	if len(g.fences) > 0 {
		g.answerFences()
	}
	g.readPills()
	g.schedule()
	return refused
}

// schedule keeps an event out for the time that the machine named.
func (g *guardDaemon) schedule() {
	n := g.n
	g.wake = g.state.Next(n.local())
	at := n.clk.when(g.wake)
	if g.pending > n.s.now && g.pending <= at {
		return
	}
	g.pending = at
	n.s.at(at, &n.guardProc, g.woken)
}

func (g *guardDaemon) woken() {
	if g.n.guard != g || g.n.s.now < g.pending {
		return
	}
	if g.n.local() < g.wake {
		g.pending = g.n.clk.when(g.wake)
		g.n.s.at(g.pending, &g.n.guardProc, g.woken)
		return
	}
	g.tick()
}

// perform does the actions in order; progress is false if nothing came of them yet.
func (g *guardDaemon) perform(actions []lease.GuardAction) (done lease.Done, progress bool) {
	n := g.n
	for _, a := range actions {
		switch a := a.(type) {
		case lease.Freeze:
			cg := n.group(a.Group.Name)
			if n.s.mut == mutFreezeNothing {
				done.Frozen = append(done.Frozen, a.Group.Name)
				continue
			}
			if cg == nil || cg.freeze() || n.s.mut == mutFreezeUnconfirmed {
				done.Frozen = append(done.Frozen, a.Group.Name)
			}
			n.s.trace(n, "guard: freezes %s", a.Group.Name)
		case lease.Thaw:
			n.s.trace(n, "guard: thaws %s", a.Group.Name)
			if cg := n.group(a.Group.Name); cg != nil {
				cg.thaw()
			}
		case lease.Kill:
			if g.kill(a.Group) {
				done.Dead = append(done.Dead, a.Group.Name)
			}
		case lease.Reset:
			if n.s.mut == mutNoReset {
				continue
			}
			n.reset(a.Reason)
			return lease.Done{}, false
		case lease.Feed:
			n.feed()
			done.Fed = true
		}
	}
	return done, done.Fed || len(done.Frozen)+len(done.Dead) > 0
}

// kill says whether the group is dead: its process gone, its cgroup removed.
func (g *guardDaemon) kill(gr lease.Group) bool {
	n := g.n
	cg := n.group(gr.Name)
	if cg == nil {
		return true
	}
	if n.s.mut == mutKillNothing {
		cg.mark = nil
		return true
	}
	n.s.trace(n, "guard: kills %s of epoch %d", gr.Name, gr.Epoch)
	cg.freeze()
	cg.kill()
	if n.s.mut == mutKillUnconfirmed {
		cg.mark = nil
		return true
	}
	return cg.q == nil && n.removeGroup(cg)
}

func (g *guardDaemon) answerFences() {
	waiting := g.fences[:0]
	for _, f := range g.fences {
		if g.state.Clean(f.epoch) {
			f.reply(nil)
		} else {
			waiting = append(waiting, f)
		}
	}
	g.fences = waiting
}

// readPills looks at the pills of frozen groups; the pill's path is "storage/node".
func (g *guardDaemon) readPills() {
	n := g.n
	paths := g.state.Pills()
	for _, path := range paths {
		last, read := g.lastPill[path]
		if read && n.s.now-last < pillPace {
			continue
		}
		g.lastPill[path] = n.s.now
		st := n.s.storage(path)
		if st == nil || !st.reachable(n) {
			continue
		}
		if epoch, ok := st.pills[n.i]; ok && n.s.mut != mutPillIgnored {
			n.s.after(time.Millisecond, &n.guardProc, func() {
				if n.guard == g {
					_ = g.step(lease.PillRead{Epoch: epoch})
				}
			})
		}
	}
}

// protect is the request: the mark comes before the protection.
func (g *guardDaemon) protect(gr lease.Group) error {
	n := g.n
	ev := lease.ProtectGroup{Group: gr}
	if _, _, err := g.state.Step(n.local(), ev); err != nil {
		return err
	}
	cg := n.makeGroup(gr.Name)
	if n.s.mut != mutNoMark {
		m := gr
		cg.mark = &m
	}
	return g.step(ev)
}

func (g *guardDaemon) unprotect(name string) error {
	if err := g.step(lease.UnprotectGroup{Name: name}); err != nil {
		return err
	}
	if cg := g.n.group(name); cg != nil {
		cg.mark = nil
	}
	return nil
}

// errGuard is what a caller gets when the guard does not answer.
func errGuard() error { return model.Errorf(model.ErrUnavailable, "the guard does not answer") }

// ask has the guard do something; do must call reply exactly once, at once or later. done gets the answer
// or, after the deadline, an error.
func (a *agent) ask(deadline time.Duration, do func(g *guardDaemon, reply func(error)), done func(error)) {
	n := a.node
	s := n.s
	until := s.now + deadline
	s.after(localWay, nil, func() {
		switch {
		case !n.guardProc.up:
			s.after(localWay, &n.agentProc, func() { done(errGuard()) })
			return
		case n.guardProc.stopped == 0:
			a.serve(until, do, done)
			return
		}
		n.guardProc.waiting = append(n.guardProc.waiting, func() {
			if s.now < until { // else the guard refuses: the caller has given up
				do(n.guard, func(error) {})
			}
		})
		s.at(until, &n.agentProc, func() { done(errGuard()) })
	})
}

// serve runs the request in the guard now.
func (a *agent) serve(until time.Duration, do func(g *guardDaemon, reply func(error)), done func(error)) {
	n := a.node
	s := n.s
	over := false
	do(n.guard, func(err error) {
		if over {
			return
		}
		over = true
		s.after(localWay, &n.agentProc, func() { done(err) })
	})
	if !over {
		s.at(until, &n.agentProc, func() {
			if !over {
				over = true
				done(errGuard())
			}
		})
	}
}
