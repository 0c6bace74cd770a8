package sim

import (
	"errors"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// startRequest says which guest to start and in what way.
type startRequest struct {
	id     model.VMID
	haOnly bool
	pills  []ha.Pill
}

// ownership is what the store says of a guest, read linearizably.
type ownership struct {
	conf, protected, intent record
	state                   pveconf.HAState
}

var (
	errLocked = errors.New("another process has the image open")
	errFailed = errors.New("QEMU does not start")
)

// readOwnership reads everything that decides whether this node may start a guest, one key after the other.
func (a *agent) readOwnership(id model.VMID, done func(ownership, error)) {
	var o ownership
	a.get(model.GuestConfigKey(a.node.name, id), func(rep reply) {
		o.conf = rep.rec
		if rep.err != nil {
			done(o, rep.err)
			return
		}
		if rep.rec.mod == 0 && a.s.mut != mutStartWithoutFile {
			done(o, model.ErrNotFound)
			return
		}
		a.get(model.ProtectedPrefix+id.String(), func(rep reply) {
			o.protected = rep.rec
			if rep.err != nil {
				done(o, rep.err)
				return
			}
			a.get(model.IntentPrefix+id.String(), func(rep reply) {
				o.intent = rep.rec
				if rep.err != nil {
					done(o, rep.err)
					return
				}
				a.get(haResourcesKey, func(rep reply) {
					if res, ok := rep.rec.val.(*resources); ok {
						o.state = res.states[id]
					}
					done(o, rep.err)
				})
			})
		})
	})
}

// term is the node's lease as it was at one moment.
type term struct {
	epoch uint64
	valid bool
}

func (a *agent) term() term { return term{a.epoch, a.valid()} }

// startGuest is the one way to a running guest. The caller holds the guest's lock.
func (a *agent) startGuest(r startRequest, done func(error)) {
	if a.proc(r.id) != nil {
		done(model.ErrBusy)
		return
	}
	if a.closed {
		done(model.ErrUnavailable)
		return
	}
	at := a.term()
	a.readOwnership(r.id, func(o ownership, err error) {
		conf, ok := o.conf.val.(*guestConf)
		switch {
		case err != nil:
			done(err)
			return
		case o.intent.mod != 0:
			done(model.ErrBusy)
			return
		case r.haOnly && o.state != pveconf.HAStarted:
			done(model.ErrConflict)
			return
		case !ok:
			conf = a.s.guest(r.id).conf // a mutation starts without the file
		}
		if conf.lock != "" {
			done(errFailed)
			return
		}
		a.writePills(conf, r.pills, func() { a.launch(r.id, o, at, done) })
	})
}

// writePills tells the guards of fenced nodes, through the guest's storage.
func (a *agent) writePills(conf *guestConf, pills []ha.Pill, done func()) {
	st := a.s.storage(conf.storage)
	if len(pills) == 0 || st == nil {
		done()
		return
	}
	wait := a.s.rng.between(2*time.Millisecond, 20*time.Millisecond)
	if !st.reachable(a.node) {
		wait = 2 * time.Second
	}
	a.s.after(wait, &a.node.agentProc, func() {
		if st.reachable(a.node) {
			for _, p := range pills {
				if n := a.s.nodeNamed(p.Node); n != nil {
					st.pills[n.i] = max(st.pills[n.i], p.Epoch)
				}
			}
		}
		done()
	})
}

// launch protects the guest if it must be, and starts QEMU.
func (a *agent) launch(id model.VMID, o ownership, at term, done func(error)) {
	p, _ := o.protected.val.(model.Protected)
	mine := o.protected.mod != 0 && p.Node == a.node.name
	g := a.s.guest(id)
	protect := mine || o.state != "" && g.storage.local == nil
	a.prepareGroup(g, protect, at, func(err error) {
		if err != nil {
			done(err)
			return
		}
		start := func() {
			a.s.after(a.s.rng.between(startLeast, startMost)+g.startTime, &a.node.agentProc, func() { a.exec(g, protect, false, done) })
		}
		if !protect || mine {
			start()
			return
		}
		a.acknowledge(id, o.protected.mod, o.conf.mod, func(rep reply) {
			if rep.err != nil {
				a.dropGroup(id, protect, func() { done(rep.err) })
				return
			}
			start()
		})
	})
}

// exec makes the process.
func (a *agent) exec(g *guest, protect, incoming bool, done func(error)) {
	q, why := a.node.launch(g, incoming)
	if why != startOK {
		g.movesAllowed++ // HA may try it elsewhere
		a.dropGroup(g.id, protect, func() {
			if why == startLocked {
				done(errLocked)
				return
			}
			done(errFailed)
		})
		return
	}
	q.guarded = protect
	a.addProc(q)
	done(nil)
}

// prepareGroup makes the cgroup of a guest: by the guard, if the guest is protected.
func (a *agent) prepareGroup(g *guest, protect bool, at term, done func(error)) {
	if protect && a.s.mut != mutStartUnguarded {
		a.guardGuest(g, at, done)
		return
	}
	a.node.makeGroup(g.id.String())
	done(nil)
}

// dropGroup undoes prepareGroup.
func (a *agent) dropGroup(id model.VMID, protect bool, done func()) {
	if !protect {
		if cg := a.node.group(id.String()); cg != nil && cg.q == nil && cg.mark == nil {
			a.node.removeGroup(cg)
		}
		done()
		return
	}
	a.unguard(id, done)
}

// guardGuest puts a guest's cgroup under the guard, which refuses without a valid lease and for another epoch.
func (a *agent) guardGuest(g *guest, at term, done func(error)) {
	if !at.valid {
		done(model.ErrNoQuorum)
		return
	}
	gr := lease.Group{Name: g.id.String(), Cgroup: g.id.String(), Epoch: at.epoch, OnDeadline: lease.FreezeGroup}
	if g.storage.lateWrites && a.s.mut != mutLateWritesFreeze {
		gr.OnDeadline = lease.ResetMachine
	}
	gr.Pills = append(gr.Pills, g.storage.name)
	a.ask(guardDeadline, func(d *guardDaemon, reply func(error)) {
		reply(d.protect(gr))
	}, func(err error) {
		if a.s.mut == mutStartUnconfirmed {
			err = nil
			a.node.makeGroup(gr.Name)
		}
		if err == nil {
			if q := a.proc(g.id); q != nil {
				q.guarded = true
			}
		}
		done(err)
	})
}

// acknowledge writes that every QEMU of the guest on this node is under the guard.
func (a *agent) acknowledge(id model.VMID, protectedRev, confRev int64, done func(reply)) {
	key := model.ProtectedPrefix + id.String()
	a.txn([]cond{{key, protectedRev}, {model.GuestConfigKey(a.node.name, id), confRev}},
		[]op{{key, model.Protected{Node: a.node.name}}}, done)
}

// stopGuest ends a guest: it is asked first, and killed when it does not listen.
func (a *agent) stopGuest(q *qemu, patience time.Duration, done func(error)) {
	until := a.s.now + patience
	if q.g.wontStop {
		a.s.after(2*time.Second, &a.node.agentProc, func() { done(errFailed) })
		return
	}
	if patience > 0 {
		a.command(q, qmpTimeout, func() {
			a.s.after(a.s.rng.between(200*time.Millisecond, 3*time.Second), &q.proc, func() { q.end("quit") })
		}, func(bool) {})
	}
	var wait func()
	wait = func() {
		switch {
		case a.proc(q.g.id) != q:
			done(nil)
		case a.s.now >= until+5*time.Second:
			done(errFailed)
		default:
			a.s.after(100*time.Millisecond, &a.node.agentProc, wait)
		}
	}
	if patience > 0 {
		a.s.at(until, &a.node.agentProc, func() {
			if q.proc.up {
				q.cg.kill()
			}
		})
	} else {
		q.cg.kill()
	}
	wait()
}

// destroy ends a process and waits until it is cleaned up.
func (a *agent) destroy(q *qemu, done func()) {
	if q == nil {
		done()
		return
	}
	q.cg.kill()
	var wait func()
	wait = func() {
		if a.proc(q.g.id) != q {
			done()
			return
		}
		a.s.after(2*time.Millisecond, &a.node.agentProc, wait)
	}
	wait()
}

// startOnBoot starts this node's guests that are no HA resources, once after each boot.
func (a *agent) startOnBoot() {
	n := a.node
	if n.booted == n.boots {
		return
	}
	if !a.s.store.quorate(n) {
		a.s.after(time.Second, &n.agentProc, a.startOnBoot)
		return
	}
	n.booted = n.boots
	for _, g := range a.s.guests {
		if _, mine := n.mirror[model.GuestConfigKey(n.name, g.id)]; !mine || a.view.res.states[g.id] != "" || a.proc(g.id) != nil {
			continue
		}
		if a.lock(g.id, "start at boot") {
			a.startGuest(startRequest{id: g.id}, func(error) { a.unlock(g.id) })
		}
	}
}
