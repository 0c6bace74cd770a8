package sim

import (
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
)

// guestNetwork is the network of all guests.
const guestNetwork = "vmbr0"

const (
	// lossSeen is how long something must be gone before its node is sure; see internal/agent.
	lossSeen = 6 * time.Second
	// lossOver is for how long after its end a loss is still a reason to move: a decision made before the quorum was lost is carried out
	// when it is back.
	lossOver = 150 * time.Second
)

// wellness is what a node has lost.
type wellness struct {
	network int           // so many faults have its guests' network down
	storage int           // and keep it from a storage
	until   time.Duration // guests may leave it until then for what it had lost
}

// lose notes that the node loses something, and returns what gives it back.
func (n *node) lose(count *int) (back func()) {
	*count++
	n.lookAfterHealth(lossSeen)
	return func() {
		*count--
		n.lost.until = n.s.now + lossOver
		n.lookAfterHealth(time.Second)
	}
}

// unwell: guests have a reason to leave.
func (n *node) unwell() bool {
	return n.lost.network+n.lost.storage > 0 || n.lost.until > n.s.now
}

// lookAfterHealth has the agent look what the node has, a while from now.
func (n *node) lookAfterHealth(in time.Duration) {
	if a := n.agent; a != nil {
		n.s.after(in, &n.agentProc, a.tellHealth)
	}
}

// tellHealth has the node's record say what it has lost.
func (a *agent) tellHealth() {
	n := a.node
	if a.telling || n.old || a.view.prot == nil {
		return
	}
	var want ha.NodeHealth
	if n.lost.network > 0 {
		want.NetworkDown = guestNetwork
	}
	for _, st := range a.s.storages {
		if st.cut[n.i] > 0 {
			want.Lost = append(want.Lost, st.name)
		}
	}
	key := model.HAHealthPrefix + n.name
	rec := n.mirror[key]
	said, _ := rec.val.(ha.NodeHealth)
	if said.NetworkDown == want.NetworkDown && slices.Equal(said.Lost, want.Lost) {
		return
	}
	var val any = want
	if want.NetworkDown == "" && len(want.Lost) == 0 {
		val = nil
	}
	a.telling = true
	a.s.trace(n, "agent: its health is %+v", want)
	a.txn([]cond{{key, rec.mod}}, []op{{key, val}}, func(reply) {
		a.s.after(time.Second, &n.agentProc, func() { // until the record says so
			a.telling = false
			a.tellHealth()
		})
	})
}

// resetOn is which sicknesses reset a guest: those of every other one.
func (g *guest) resetOn() []ha.Sickness {
	if g.id%2 == 0 {
		return []ha.Sickness{ha.SickPanicked, ha.SickSilent}
	}
	return nil
}

// sicken lets a guest that runs panic, or its agent fall silent; its node's agent learns of it a while later.
func (g *guest) sicken(with ha.Sickness, in time.Duration) {
	s := g.s
	for _, q := range g.qemus {
		if q.state != "running" {
			continue
		}
		s.after(in, &q.proc, func() {
			q.sick = with
			s.trace(q.n, "qemu: %s is %s", q, with)
			if q.n.agent != nil {
				q.n.agent.kick()
			}
		})
		return
	}
}

// doReset is system_reset.
func (a *agent) doReset(act ha.Reset, done func(int64, error)) {
	q := a.proc(act.VMID)
	if q == nil {
		done(0, model.ErrConflict)
		return
	}
	a.command(q, 5*time.Second, func() {
		a.s.check.guestReset(q)
		if a.s.mut != mutResetNothing {
			q.sick = ""
		}
	}, func(ok bool) {
		if !ok {
			done(0, errFailed)
			return
		}
		done(0, nil)
	})
}

// guestReset checks that a guest is reset only for a reason.
func (c *checks) guestReset(q *qemu) {
	c.s.trace(q.n, "qemu: %s is reset", q)
	if q.sick == "" || !slices.Contains(q.g.resetOn(), q.sick) {
		c.broken(ruleReset, "%s is reset and is %q", q, q.sick)
	}
}
