package sim

import (
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// storage is what disks stand on, reachable from every node or, with local set, from one.
type storage struct {
	s     *sim
	name  string
	local *node
	// lateWrites: what a node has handed to the network may arrive long after its process was frozen or died,
	// as long as the node's kernel lives. Such a storage says so, and its guests' nodes are reset at the deadline.
	lateWrites bool
	// locks: an image is locked by the QEMU that has it open.
	locks bool
	// rbd: it can refuse a node (a blocklist).
	cut   []int          // by node: how many faults keep it from the storage
	pills map[int]uint64 // by node: the epoch written for its guard
	// refused is how long a node's writes have been refused (a blocklist): by node, true time of the entry.
	refused map[int]time.Duration
	rbd     bool
}

func (st *storage) reachable(n *node) bool {
	return n.machine.up && st.cut[n.i] == 0 && (st.local == nil || st.local == n)
}

// storage finds a storage by its name, or the pill's path, which is the same here.
func (s *sim) storage(name string) *storage {
	for _, st := range s.storages {
		if st.name == name {
			return st
		}
	}
	return nil
}

// guest is a guest with its one disk.
type guest struct {
	s       *sim
	id      model.VMID
	sid     string
	conf    *guestConf
	storage *storage
	// qemus are its processes anywhere, in the order of their start.
	qemus []*qemu
	// newest is the process that wrote last: nobody else's memory goes with the disk.
	newest *qemu
	locked *qemu // who has the image open
	// faults
	failStarts   int // so many starts fail yet
	failMoves    int
	failsOn      string // starts fail there alone; "" for everywhere
	wontStop     bool
	startTime    time.Duration
	downAt       time.Duration // when it stopped running; 0 while it runs
	strike       *moveStrike   // a fault that waits for a phase of a migration
	movesAllowed int           // by people; each allows one
	homes        int           // bits of the nodes that it left because of what people did there
	moves        []move
	load         ha.Load
	outages      []outage
}

// guestConf is a guest's file.
type guestConf struct {
	memoryMiB int64
	cpus      int
	storage   string
	lock      string
}

// canWrite is called when q can write from now on, and asks the disk whether anybody else can.
func (g *guest) canWrite(q *qemu) {
	if g.storage.refuses(q.n, q.started) {
		return
	}
	if g.downAt > 0 {
		g.outages = append(g.outages, outage{g.downAt, g.s.now})
		g.s.result.MaxOutage = max(g.s.result.MaxOutage, g.s.now-g.downAt)
		g.downAt = 0
	}
	for _, o := range g.qemus {
		if o != q && o.writes() && !g.storage.refuses(o.n, o.started) {
			g.s.check.broken(ruleOneWriter, "%s: %s and %s write its disk", g.sid, o, q)
		}
	}
	switch {
	case g.newest == q || g.newest == nil:
	case q.fresh: // it has read the disk after the last write of any other
	case q.memoryOf == g.newest:
	default:
		g.s.check.broken(ruleOldMemory, "%s: %s goes on with old memory, %s wrote since", g.sid, q, g.newest)
	}
	g.newest, q.fresh, q.memoryOf = q, false, nil
	g.s.check.runs(g, q)
}

// stopsWriting is called when q, which wrote, cannot any more; unclean says that writes may be under way.
func (g *guest) stopsWriting(q *qemu, unclean bool) {
	if res, ok := g.s.store.data[haResourcesKey].val.(*resources); ok && res.states[g.id] == pveconf.HAStarted {
		g.downAt = g.s.now // who is to stand still is not down
	}
	if unclean {
		g.inFlight(q)
	}
}

// swept is the longest that what a dead process or a dead machine had handed out is under way while nothing is wrong with the network.
const swept = 50 * time.Millisecond

// inFlight delivers a write of q that was under way when q was frozen or died. How long it takes is the storage's worst: what a
// frozen node's kernel has is sent again when the network heals, as long as the kernel lives.
func (g *guest) inFlight(q *qemu) {
	s, n := g.s, q.n
	boots, most := n.boots, swept
	switch {
	case !q.frozen || !n.machine.up:
	case g.storage.lateWrites && !s.store.quorate(n):
		most = 60 * time.Second
	default:
		most = s.params.InFlight
	}
	q.stops++
	stops := q.stops
	s.after(s.rng.between(0, most), nil, func() {
		if most == swept || n.machine.up && n.boots == boots && q.stops == stops {
			g.arrives(q)
		}
	})
}

// arrives is a late write at the disk.
func (g *guest) arrives(q *qemu) {
	if g.storage.refuses(q.n, q.started) {
		return
	}
	g.s.result.LateWrites++
	if g.newest != q {
		g.s.check.broken(ruleLateWrite, "%s: a write of %s arrives after %s wrote", g.sid, q, g.newest)
	}
}

// refuses reports whether the storage takes nothing from what the node had open before the entry was made.
func (st *storage) refuses(n *node, since time.Duration) bool {
	at, ok := st.refused[n.i]
	return ok && since <= at
}
