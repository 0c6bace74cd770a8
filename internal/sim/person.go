package sim

import (
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// ruleTexts are the rules that a cluster may have: about the first two guests.
func ruleTexts() []string {
	return []string{
		"resource-affinity: apart\n\tresources vm:100,vm:101\n\taffinity negative\n",
		"resource-affinity: together\n\tresources vm:100,vm:101\n\taffinity positive\n",
		"node-affinity: home\n\tresources vm:100\n\tnodes n1:2,n2:1\n\tstrict 1\n",
	}
}

// personMoves has a person move a guest that runs, at its node.
func (s *sim) personMoves(g *guest, r *rng) {
	n := s.owner(g)
	target := s.nodes[r.n(len(s.nodes))]
	if n == nil || n == target || n.agent == nil || !n.agentProc.runs() {
		return
	}
	a := n.agent
	if a.proc(g.id) == nil || a.view.prot == nil || !a.lock(g.id, "migration") {
		return
	}
	g.movesAllowed++
	s.trace(n, "a person moves %s to %s", g.sid, target.name)
	a.migrate(g.id, target.name, func(error) { a.unlock(g.id) })
}

// atDesk is the agent through which a person works, nil if it does not answer.
func (s *sim) atDesk(f *Fault) *agent {
	n := s.nodes[f.Node%len(s.nodes)]
	if n.agent == nil || !n.agentProc.runs() || n.agent.view.res == nil {
		return nil
	}
	return n.agent
}

// resource is what ha/resources.cfg says of a guest beyond its state.
func (g *guest) resource() ha.Resource {
	return ha.Resource{MaxRestart: 1, MaxRelocate: 1, ResetOn: g.resetOn()}
}

// personWrites has a person change what is asked of a guest.
func (s *sim) personWrites(f *Fault, g *guest, r *rng) {
	a := s.atDesk(f)
	if a == nil {
		return
	}
	rec := a.node.mirror[haResourcesKey]
	res, ok := rec.val.(*resources)
	if !ok {
		return
	}
	state := pveconf.HAStarted
	old := res.states[g.id]
	switch f.Kind {
	case faultPersonStop:
		state = pveconf.HAStopped
	case faultPersonHA:
		state = []pveconf.HAState{pveconf.HAIgnored, pveconf.HADisabled, "", pveconf.HAStopped, pveconf.HAStarted}[r.n(5)]
	default:
	}
	if old == "" && f.Kind != faultPersonHA {
		return
	}
	s.trace(a.node, "a person asks that %s be %q", g.sid, state)
	a.txn([]cond{{haResourcesKey, rec.mod}}, []op{{haResourcesKey, res.with(g.id, state, g.resource())}}, func(reply) {})
}

// personCommands has a person command HA to move a guest, or to stop it in so many seconds.
func (s *sim) personCommands(f *Fault, g *guest, r *rng) {
	a := s.atDesk(f)
	if a == nil {
		return
	}
	key := model.HACommandPrefix + g.sid
	rec, conf := a.node.mirror[key], a.node.mirror[haResourcesKey]
	res, ok := conf.val.(*resources)
	if !ok || res.states[g.id] == "" {
		return
	}
	c := ha.Command{Kind: ha.CommandMigrate, Target: s.nodes[r.n(len(s.nodes))].name}
	conds, ops := []cond{{key, rec.mod}}, []op{{key, nil}}
	switch r.n(3) {
	case 0:
		c.Kind = ha.CommandRelocate
	case 1:
		c = ha.Command{Kind: ha.CommandStop, TimeoutSeconds: r.n(4)}
		conds = append(conds, cond{haResourcesKey, conf.mod})
		ops = append(ops, op{haResourcesKey, res.with(g.id, pveconf.HAStopped, g.resource())})
	default:
	}
	if c.Target != "" {
		g.movesAllowed++
	}
	ops[0].val = c
	s.trace(a.node, "a person commands %s: %s %s", g.sid, c.Kind, c.Target)
	a.txn(conds, ops, func(reply) {})
}

// personRules has a person write another rule for placement, or none.
func (s *sim) personRules(f *Fault, r *rng) {
	a := s.atDesk(f)
	if a == nil || len(s.guests) < 3 {
		return
	}
	text, all := "", ruleTexts()
	if i := r.n(len(all) + 1); i < len(all) {
		text = all[i]
	}
	set, err := readRules(text, s.nodes)
	if err != nil {
		panic("sim: " + err.Error())
	}
	s.trace(a.node, "a person writes the rule %q", set.name)
	a.txn([]cond{{haRulesKey, a.node.mirror[haRulesKey].mod}}, []op{{haRulesKey, set}}, func(reply) {})
}
