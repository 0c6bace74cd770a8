package sim

import (
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
)

// endTime is how long people give a node to end, and to come back, at least.
const endTime = 20 * time.Second

// request has a person ask something of a node. What is written is what is wanted by then, so the order of writing does not matter.
func (s *sim) request(n *node, change func(*ha.NodeRequest)) {
	change(&n.wanted)
	s.edit(func() []op { return []op{{model.HARequestPrefix + n.name, n.wanted}} })
}

// setMode has a person disarm the cluster, or arm it.
func (s *sim) setMode(mode ha.Mode) {
	s.mode = mode
	s.edit(func() []op { return []op{{model.HAModeKey, s.mode}} })
}

// maintain puts a node in maintenance.
func (s *sim) maintain(f *Fault, n *node) func() {
	n.errand(min(s.now+f.For, max(s.plan.Over, s.now)))
	s.request(n, func(q *ha.NodeRequest) { q.Maintenance = true })
	return func() { s.request(n, func(q *ha.NodeRequest) { q.Maintenance = false }) }
}

// disarm disarms the cluster or one node, until a person arms it or for a time.
func (s *sim) disarm(f *Fault, n *node, r *rng) func() {
	how, until := ha.DisarmFreeze, int64(0)
	if r.chance(50) {
		how = ha.DisarmIgnore
	}
	one, timed := r.chance(40), r.chance(30)
	if timed {
		until = n.unix(s.now + f.For)
	}
	arm := func() { s.setMode(ha.Mode{}) }
	if one {
		s.request(n, func(q *ha.NodeRequest) { q.Disarm, q.Until = how, until })
		arm = func() { s.request(n, func(q *ha.NodeRequest) { q.Disarm, q.Until = ha.Armed, 0 }) }
	} else {
		s.setMode(ha.Mode{Disarm: how, Until: until})
	}
	if !timed {
		return arm
	}
	s.at(max(s.plan.Over, s.now), nil, arm) // clocks may have been set
	return nil
}

// endNode has a person end a node in order. Some nodes lose their power meanwhile, or their agent; some do not come back.
func (s *sim) endNode(f *Fault, n *node, r *rng) {
	a := n.agent
	if n.old || a == nil || !n.agentProc.runs() || !a.ha.running || a.end != nil {
		return
	}
	how, boots := ha.EndsReboot, n.boots
	if r.chance(50) {
		how = ha.EndsShutdown
	}
	over := min(s.now+max(f.For, endTime), max(s.plan.Over, s.now))
	n.errand(over)
	s.trace(n, "a person ends the node: %s, policy %s", how, s.shutdownPolicy())
	n.endInOrder(how)
	in, dark, power := r.between(0, 6*time.Second), r.chance(50), r.chance(40)
	switch {
	case power:
		s.after(in, nil, func() {
			if n.boots == boots {
				n.powerOff("power cut while it ends in order")
				n.darken(dark)
			}
		})
	case r.chance(30):
		s.after(in, &n.agentProc, func() {
			n.killAgent()
			s.after(r.between(200*time.Millisecond, 5*time.Second), &n.machine, n.startAgent)
		})
	}
	s.at(over, nil, func() {
		switch {
		case n.boots != boots:
		case n.agent != nil && n.agent.end != nil:
			n.reset("somebody presses the button")
		case !n.machine.up && how == ha.EndsShutdown && !power:
			n.darken(dark && r.chance(30))
		}
		if !n.machine.up && !n.bmc.power {
			n.bootLater()
		}
	})
}

// lastEnd is how a node was ended last, and in which boot.
type lastEnd struct {
	how  ha.NodeEnd
	boot string
	left time.Duration // when it said goodbye
}

// darken leaves a node without power for the rest of the life: what can run has to run without it. One may be.
func (n *node) darken(dark bool) {
	s := n.s
	if dark && s.dark == nil && s.now < s.plan.Over+time.Second {
		s.dark = n
		s.trace(n, "stays without power")
	}
}

// errand notes that people give guests a reason to leave the node until then, and some time after.
func (n *node) errand(until time.Duration) { n.errands = max(n.errands, until+lossOver) }

// lostFor says that a guest cannot be brought back from the node that has no power: it waits for its node, or nobody can know by a lease
// that it does not run there.
func (s *sim) lostFor(g *guest) bool {
	n := s.dark
	if n == nil || s.owner(g) != n {
		return false
	}
	live, _ := s.store.data[model.LivePrefix+n.name].val.(model.Live)
	p, _ := s.store.data[model.ProtectedPrefix+g.id.String()].val.(model.Protected)
	return s.awaited(n, live) || p.Node != n.name
}

// endExcuses says why a node that was ended in order must not be cut yet, "" if it may be.
func (s *sim) endExcuses(n *node, was model.Live) string {
	switch {
	case !was.Left || n.ended.boot != was.BootID:
		return ""
	case s.freezes(n.ended.how):
		return "its guests wait for it"
	case n.ended.how == ha.EndsReboot && s.now-n.ended.left < s.haParams.RebootPatience*99/100:
		return "it has just begun to reboot"
	}
	return ""
}

// unix is the node's wall clock at a time.
func (n *node) unix(at time.Duration) int64 { return 1_700_000_000 + int64((at+n.wall)/time.Second) }
