package sim

import (
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
)

// Two versions of the agent at once: a node may begin its life with an agent from before HA was extended, and is upgraded by the fault
// two-versions. Such an agent knows nothing of rules, limits, commands, orderly ends, health and fencing methods; of the records that both
// know it reads what it knows and drops the rest when it writes.

// begins has the nodes that will be upgraded begin with the older agent.
func (p Plan) begins(s *sim) {
	for _, f := range p.Faults {
		if f.Kind == faultTwoVersions {
			s.nodes[f.Node%len(s.nodes)].old = true
		}
	}
}

// upgrade puts the present agent in the place of the older one.
func (n *node) upgrade(r *rng) {
	if !n.old {
		return
	}
	n.old = false
	n.s.trace(n, "is upgraded")
	n.killAgent()
	n.s.after(r.between(500*time.Millisecond, 5*time.Second), &n.machine, n.startAgent)
}

// level is what the node's agent says of itself.
func (n *node) level() int {
	if n.old {
		return 0
	}
	return ha.Level
}

// publish has the node's record say of what version its agent is.
func (a *agent) publish() {
	key := model.NodePrefix + a.node.name
	rec := a.node.mirror[key]
	n, ok := rec.val.(model.Node)
	if !ok || n.Level == a.node.level() {
		return
	}
	n.Level = a.node.level()
	a.txn([]cond{{key, rec.mod}}, []op{{key, n}}, func(rep reply) {
		if rep.err != nil {
			a.s.after(time.Second, &a.node.agentProc, a.publish)
		}
	})
}

// asBefore is the view of an agent of the earlier version.
func asBefore(v ha.View) ha.View {
	v.Config, v.Commands, v.Rules, v.Unix = nil, nil, nil, 0
	v.Policy, v.Mode = ha.Policy{}, ha.Mode{}
	for i := range v.Members {
		m := &v.Members[i]
		m.Request, m.Mode, m.Health, m.History = ha.NodeRequest{}, ha.NodeMode{}, ha.NodeHealth{}, ha.History{}
		m.Heard, m.Fencing, m.Beacons = 0, nil, false
	}
	return v
}

// localAsBefore is the worker's.
func localAsBefore(v ha.LocalView) ha.LocalView {
	v.Config, v.Commands, v.Members, v.AwaitManager, v.Unix = nil, nil, nil, false, 0
	v.Policy, v.Mode, v.Request, v.NodeMode, v.Health = ha.Policy{}, ha.Mode{}, ha.NodeRequest{}, ha.NodeMode{}, ha.NodeHealth{}
	for id, p := range v.Processes {
		p.Answers, p.Sick = false, ""
		v.Processes[id] = p
	}
	return v
}

// statusAsBefore is what was in a service's record.
func statusAsBefore(st ha.Status) ha.Status {
	return ha.Status{State: st.State, Node: st.Node, Reason: st.Reason, Since: st.Since}
}
