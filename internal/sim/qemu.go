package sim

import (
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/migrate"
)

// qemu is one process of a guest.
type qemu struct {
	proc    process
	n       *node
	g       *guest
	number  int
	started time.Duration
	state   string // query-status
	mig     string // query-migrate's status
	cg      *cgroup
	dying   bool
	frozen  bool
	stops   int // counts freezes: what was under way at one is delivered before anything that is written after its thaw
	images  bool
	// incoming: it was started to receive a migration.
	incoming bool
	peer     *qemu // the other side of a migration
	copying  int   // counts copies, so that events of an earlier one are void
	fresh    bool  // it has just booted
	memoryOf *qemu // whose memory it received
	wasRun   bool  // it ran when the copy began
	brake    bool
	sent     int64
	rounds   int
	listen   func(migrate.Event) // what the agent's migration hears
	guarded  bool                // the agent's note that the guard has it
	waits    bool                // the agent's note that it waits for a migration
	protect  bool                // it was started under the guard
	sick     ha.Sickness         // as its node's agent can tell
	epoch    uint64
}

func (q *qemu) String() string { return fmt.Sprintf("%s/%s#%d", q.n.name, q.g.sid, q.number) }

// writes reports whether the process can write to its disk now.
func (q *qemu) writes() bool { return q.proc.up && q.state == "running" && !q.frozen }

// QEMU's times.
const (
	qmpWay     = 300 * time.Microsecond
	qmpTimeout = 10 * time.Second
	lookWait   = 2 * time.Second
	startLeast = 60 * time.Millisecond
	startMost  = 300 * time.Millisecond
)

// launch makes the process in the cgroup. An image that another process has open, or a storage that
// cannot be reached, lets it fail; so does a guest that is told to.
func (n *node) launch(g *guest, incoming bool) (*qemu, startError) {
	s := n.s
	cg := n.group(g.id.String())
	switch {
	case cg == nil:
		return nil, startFailed // its group was killed meanwhile
	case cg.q != nil:
		return nil, startFailed
	case !g.storage.reachable(n):
		return nil, startFailed
	case !incoming && g.failStarts > 0 && (g.failsOn == "" || g.failsOn == n.name):
		g.failStarts--
		s.count(faultStartFails)
		return nil, startFailed
	case !incoming && g.storage.locks && g.locked != nil && g.locked.proc.up:
		return nil, startLocked
	}
	s.processes++
	q := &qemu{n: n, g: g, number: s.processes, started: s.now, cg: cg, incoming: incoming, waits: incoming, fresh: !incoming}
	q.proc.begin()
	q.state = "inmigrate"
	if cg.mark != nil {
		q.protect, q.epoch = true, cg.mark.Epoch
	}
	cg.q = q
	n.qemus = append(n.qemus, q)
	g.qemus = append(g.qemus, q)
	if cg.frozen {
		q.frozen = true
		s.stop(&q.proc)
	}
	if !incoming {
		q.open()
		q.run()
	}
	return q, startOK
}

type startError int

const (
	startOK startError = iota
	startFailed
	startLocked
)

// open takes the images.
func (q *qemu) open() {
	q.images = true
	q.g.locked = q
}

// run lets the guest run.
func (q *qemu) run() {
	if q.state == "running" {
		return
	}
	q.state = "running"
	q.n.s.trace(q.n, "qemu: %s runs", q)
	if q.writes() {
		q.g.canWrite(q)
	}
}

// halt has the guest stand still with everything written.
func (q *qemu) halt(state string) {
	wrote := q.writes()
	q.state = state
	if wrote {
		q.g.stopsWriting(q, false)
	}
}

func (q *qemu) freeze() {
	if q.frozen || !q.proc.up {
		return
	}
	wrote := q.writes()
	q.frozen = true
	q.n.s.stop(&q.proc)
	q.n.s.trace(q.n, "qemu: %s is frozen", q)
	if wrote {
		q.g.stopsWriting(q, true)
	}
}

func (q *qemu) thaw() {
	if !q.frozen || !q.proc.up {
		return
	}
	q.frozen = false
	q.stops++
	q.n.s.trace(q.n, "qemu: %s is thawed", q)
	if q.writes() {
		q.g.canWrite(q)
	}
	q.n.s.resume(&q.proc)
}

// end is the death of the process, by itself or by a signal.
func (q *qemu) end(why string) {
	if !q.proc.up {
		return
	}
	n := q.n
	q.vanish(why != "quit")
	n.s.trace(n, "qemu: %s ends: %s", q, why)
	for i, o := range n.qemus {
		if o == q {
			n.qemus = append(n.qemus[:i:i], n.qemus[i+1:]...)
			break
		}
	}
	if q.cg.q == q {
		q.cg.q = nil
	}
	if n.agent != nil {
		n.agent.noticeEnd(q)
	}
}

// vanish is the end as the world sees it.
func (q *qemu) vanish(unclean bool) {
	wrote := q.writes()
	q.proc.end()
	q.images = false
	if q.g.locked == q {
		q.g.locked = nil
	}
	for i, o := range q.g.qemus {
		if o == q {
			q.g.qemus = append(q.g.qemus[:i:i], q.g.qemus[i+1:]...)
			break
		}
	}
	if wrote {
		q.g.stopsWriting(q, unclean)
	}
	if p := q.peer; p != nil && p.peer == q {
		p.lostPeer()
	}
}

// command has the process do something; done hears whether it did, or false after the deadline. What a frozen process was
// told it does when it is thawed.
func (a *agent) command(q *qemu, deadline time.Duration, do func(), done func(ok bool)) {
	s, n := a.s, a.node
	s.after(qmpWay, nil, func() {
		switch {
		case !q.proc.up:
			s.after(qmpWay, &n.agentProc, func() { done(false) })
		case q.proc.stopped > 0:
			q.proc.waiting = append(q.proc.waiting, do)
			s.after(deadline, &n.agentProc, func() { done(false) })
		default:
			do()
			s.after(qmpWay, &n.agentProc, func() { done(true) })
		}
	})
}

// tell passes an event on to the agent's migration.
func (q *qemu) tell(ev migrate.Event) {
	if q.listen == nil {
		return
	}
	q.n.s.after(qmpWay, &q.n.agentProc, func() {
		if q.listen != nil {
			q.listen(ev)
		}
	})
}

// migrateTo begins to copy the memory to dst.
func (q *qemu) migrateTo(dst *qemu) {
	s := q.n.s
	q.peer, q.mig, q.wasRun = dst, "setup", q.state == "running"
	q.copying++
	q.rounds, q.sent, q.brake = 0, 0, false
	copying := q.copying
	if dst == nil || !dst.proc.up || !s.linked(q.n, dst.n) {
		q.fail(copying)
		return
	}
	dst.peer, dst.mig = q, "active"
	dst.copying++
	s.after(5*time.Millisecond, &q.proc, func() { q.round(copying) })
}

// round is one round of the copy.
func (q *qemu) round(copying int) {
	if q.copying != copying || q.mig != "setup" && q.mig != "active" {
		return
	}
	s, dst := q.n.s, q.peer
	if q.mig == "setup" {
		s.phase(q, phaseSetup)
	}
	q.mig = "active"
	linked := s.linked(q.n, dst.n) && s.linked(dst.n, q.n) && !dst.frozen
	if linked {
		q.rounds++
		q.sent += 64 << 20
	}
	if q.g.failMoves > 0 && linked && s.rng.chance(50) {
		q.g.failMoves--
		s.count(faultMoveFails)
		q.fail(copying)
		return
	}
	if linked && q.rounds >= 3 && !q.brake {
		wrote := q.state == "running"
		s.phase(q, phaseSwitchover)
		q.halt("finish-migrate")
		if wrote {
			q.tell(migrate.Stopped{})
		}
		s.after(s.rng.between(3*time.Millisecond, 25*time.Millisecond), &q.proc, func() { q.finish(copying) })
		return
	}
	s.after(s.rng.between(50*time.Millisecond, 400*time.Millisecond), &q.proc, func() { q.round(copying) })
}

// finish sends the last byte: from then on the source cannot fail.
func (q *qemu) finish(copying int) {
	if q.copying != copying || q.mig != "active" {
		return
	}
	s, dst := q.n.s, q.peer
	if !s.linked(q.n, dst.n) && s.rng.chance(50) {
		// The kernel does not take the last byte; the stream waits.
		s.after(100*time.Millisecond, &q.proc, func() { q.finish(copying) })
		return
	}
	q.mig, q.state = "completed", "postmigrate"
	q.images = false
	if q.g.locked == q {
		q.g.locked = nil
	}
	q.tell(migrate.Migration{Status: "completed"})
	s.phase(q, phaseCompleted)
	dst.receive(q, dst.copying)
}

// receive brings the last byte to the target, as long as TCP tries.
func (q *qemu) receive(src *qemu, copying int) {
	s := q.n.s
	if !q.proc.up || q.copying != copying || q.mig != "active" {
		return
	}
	if !s.linked(src.n, q.n) {
		if src.proc.up {
			s.after(200*time.Millisecond, nil, func() { q.receive(src, copying) })
		}
		return
	}
	s.after(s.delay(src.n, q.n), &q.proc, func() {
		if q.copying != copying || q.mig != "active" {
			return
		}
		q.mig, q.state, q.memoryOf = "completed", "paused", src
		q.sick = src.sick
		q.peer, src.peer = nil, nil
		s.phase(src, phaseReceived)
		q.tell(migrate.Migration{Status: "completed"})
	})
}

// fail ends the copy at the source: QEMU goes on by itself.
func (q *qemu) fail(copying int) {
	if q.copying != copying || q.mig == "completed" {
		return
	}
	q.mig = "failed"
	dst := q.peer
	q.peer = nil
	if q.state == "finish-migrate" {
		if q.wasRun {
			q.run()
		} else {
			q.state = "paused"
		}
	}
	q.tell(migrate.Migration{Status: "failed"})
	if dst != nil && dst.peer == q && dst.mig == "active" {
		dst.peer, dst.mig = nil, "failed"
		dst.tell(migrate.Migration{Status: "failed"})
	}
}

// lostPeer: the other side's process ended.
func (q *qemu) lostPeer() {
	s, copying := q.n.s, q.copying
	s.after(s.rng.between(100*time.Microsecond, 300*time.Microsecond), &q.proc, func() {
		if q.copying != copying {
			return
		}
		if q.incoming && q.state == "inmigrate" {
			q.peer = nil
			if q.mig == "active" {
				q.mig = "failed"
				q.tell(migrate.Migration{Status: "failed"})
			}
			return
		}
		q.fail(copying)
	})
}

// cancel is migrate_cancel.
func (q *qemu) cancel() {
	switch q.mig {
	case "setup", "active":
		copying := q.copying
		q.fail(copying)
		q.mig = "cancelled"
	}
}

// cont lets the guest go on; it is refused without the image.
func (q *qemu) cont() bool {
	if q.state == "running" {
		return true
	}
	if q.state == "inmigrate" {
		return false
	}
	if g := q.g; !q.images && g.storage.locks && g.locked != nil && g.locked != q && g.locked.proc.up {
		return false
	}
	q.open()
	q.run()
	return true
}
