package sim

import (
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
)

// bmc is a node's own small computer, on the management network.
type bmc struct {
	power   bool
	methods []ha.FenceMethod
	silent  bool          // a fault: it does not answer
	lies    time.Duration // a fault: it says "off" so long before it is
	wrong   *bmc          // a fault: whoever answers is another machine's; its system UUID shows that
	saysOff time.Duration // since when it says so; 0 for not
}

func (b *bmc) off(now time.Duration) {
	b.power = false
	if b.saysOff == 0 {
		b.saysOff = now
	}
}

func (b *bmc) on(time.Duration) { b.power, b.saysOff = true, 0 }

// askFence asks a BMC whether its node has power.
func (a *agent) askFence(act ha.AskFence, done func(int64, error)) {
	s, n := a.s, a.s.nodeNamed(act.Node)
	if s.mut == mutBMCErrorIsOff && n.bmc.silent {
		s.after(time.Second, &a.node.agentProc, func() {
			a.stepManager(ha.FenceResult{Action: act, Off: true})
			a.stepManager(a.managerView())
		})
		return
	}
	if n.bmc.silent || n.bmc.wrong != nil && s.mut != mutBMCUUIDIgnored {
		s.after(time.Second, &a.node.agentProc, func() { done(0, model.ErrUnavailable) })
		return
	}
	s.after(s.rng.between(20*time.Millisecond, 300*time.Millisecond), &a.node.agentProc, func() {
		b := &n.bmc
		if n.bmc.wrong != nil {
			b = n.bmc.wrong
		}
		off := b.saysOff != 0
		a.s.trace(a.node, "fence: the BMC of %s says off: %v", act.Node, off)
		a.stepManager(ha.FenceResult{Action: act, Off: off})
		a.stepManager(a.managerView())
	})
}

// shoot has a method switch the node off, or blocklist it.
func (a *agent) shoot(act ha.Shoot, done func(int64, error)) {
	s, n := a.s, a.s.nodeNamed(act.Node)
	s.result.Shots++
	if act.Blocklist {
		a.blocklist(act, n, done)
		return
	}
	if n.bmc.silent || n.bmc.wrong != nil {
		s.after(2*time.Second, &a.node.agentProc, func() { done(0, model.ErrUnavailable) })
		return
	}
	s.after(s.rng.between(50*time.Millisecond, 500*time.Millisecond), nil, func() {
		if n.bmc.lies > 0 {
			n.bmc.saysOff = s.now
		}
		s.after(n.bmc.lies, nil, func() { n.powerOff("shot by " + a.node.name) })
	})
	s.after(600*time.Millisecond, &a.node.agentProc, func() { done(0, nil) })
}

// blocklist has every RBD storage refuse what the node has open.
func (a *agent) blocklist(act ha.Shoot, n *node, done func(int64, error)) {
	s := a.s
	confirm := func() {
		a.stepManager(ha.FenceResult{Action: act, Guests: a.refusable(n)})
		a.stepManager(a.managerView())
	}
	if s.mut == mutBlocklistEarly {
		s.after(0, &a.node.agentProc, confirm)
		confirm, done = func() {}, func(int64, error) {}
	}
	s.after(s.rng.between(200*time.Millisecond, time.Second)+s.blocklistLate, &a.node.agentProc, func() {
		for _, st := range s.storages {
			if st.rbd {
				if !st.reachable(a.node) {
					done(0, model.ErrUnavailable)
					return
				}
				st.refused[n.i] = s.now
			}
		}
		s.trace(a.node, "fence: %s is blocklisted", n.name)
		confirm()
	})
}

// refusable are the node's guests that RBD storages keep from writing.
func (a *agent) refusable(n *node) []model.VMID {
	var out []model.VMID
	for _, g := range a.managerView().Guests {
		if g.Node == n.name && g.RBD {
			out = append(out, g.VMID)
		}
	}
	return out
}
