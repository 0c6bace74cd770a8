package sim

import (
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
)

// node is a machine with what runs on it.
type node struct {
	s       *sim
	i       int
	name    string
	machine process
	boots   int
	clk     clock
	ppm     int64
	crashed bool // the kernel is dead, the power on

	agentProc process
	agent     *agent // of the present life, or the last one
	guardProc process
	guard     *guardDaemon

	// The member of the store: a copy of the log up to applied, which outlives the agent.
	mirror    map[string]record
	wall      time.Duration // how far its wall clock is off
	applied   int
	lagging   bool
	atCommit  func()        // a fault: done once when the node's next renewal is committed
	slowApply time.Duration // a fault: added to each delivery
	guardDied time.Duration
	quorate   bool // as it was when the topology last changed
	deliverAt time.Duration
	deliver   func()

	groups []*cgroup // sorted by name
	qemus  []*qemu   // processes of this boot that have not ended, in the order of their start
	notes  map[model.VMID]moveNote
	dog    watchdog
	bmc    bmc
	spec   nodeSpec

	booted      int  // the boot whose guests were started
	cfsFails    bool // a scenario keeps its agent from the store
	noManager   bool // a scenario stopped its manager
	loseAnswers int
	killSlow    time.Duration // added to the death of a process: one that waits for a storage
	freezeSlow  time.Duration // added to each freeze
	old         bool          // its agent is of the earlier version
	lost        wellness
	wanted      ha.NodeRequest // what people ask of it
	ended       lastEnd
	errands     time.Duration // until then guests may leave it because of what people do with it
}

// nodeSpec is what a node tells of itself.
type nodeSpec struct {
	memoryMiB int64
	cpus      int
	storages  []string
	watchdog  bool
}

// watchdog is the timer in the hardware: its clock is true time.
type watchdog struct {
	armed bool
	fed   time.Duration
	watch bool          // an event is out that looks at it
	late  time.Duration // a fault: it fires so much later
	dead  bool          // a fault: it never fires
}

// cgroup holds at most one QEMU.
type cgroup struct {
	n          *node
	name       string
	mark       *lease.Group // the guard's, for a guard that starts later
	wantFrozen bool
	frozen     bool
	orders     int // counts changes of wantFrozen, so that a late freeze does not undo a thaw
	q          *qemu
	gone       bool
}

// local is the node's CLOCK_BOOTTIME.
func (n *node) local() time.Duration { return n.clk.read(n.s.now) }

// onNode has do happen to a process of n when its clock shows local.
func (n *node) onNode(local time.Duration, p *process, do func()) { n.s.at(n.clk.when(local), p, do) }

func (n *node) params() lease.Params { return n.s.params }

// boot switches the machine on; its processes follow.
func (n *node) boot() {
	s := n.s
	if n.machine.up {
		return
	}
	n.machine.begin()
	n.boots++
	n.crashed = false
	n.clk = clock{boot: s.now, ppm: n.ppm}
	n.dog.armed, n.dog.fed = false, 0
	n.lagging = true
	s.trace(n, "boots, boot %d", n.boots)
	if s.scenario != nil { // all at once, in the order of their names
		s.after(500*time.Millisecond, &n.machine, n.startGuard)
		s.after(time.Second, &n.machine, n.startAgent)
	} else {
		s.after(s.rng.between(300*time.Millisecond, 800*time.Millisecond), &n.machine, n.startGuard)
		s.after(s.rng.between(time.Second, 2*time.Second), &n.machine, n.startAgent)
	}
	s.store.topology()
}

// die ends everything on the machine at once: power cut, reset, or a crash of the kernel.
func (n *node) die(why string) {
	s := n.s
	if !n.machine.up {
		return
	}
	s.trace(n, "dies: %s", why)
	n.machine.end()
	n.agentProc.end()
	n.guardProc.end()
	n.guardDied = s.now
	n.agent, n.guard = nil, nil
	for _, q := range n.qemus {
		q.vanish(true)
	}
	n.qemus, n.groups = nil, nil
	clear(n.notes)
	n.lagging = true
	s.store.topology()
}

// powerOff is the power supply going away.
func (n *node) powerOff(why string) {
	n.die(why)
	n.crashed = false
	n.dog.armed = false
	n.bmc.off(n.s.now)
}

// reset is a hardware reset: the machine boots again.
func (n *node) reset(why string) {
	if !n.machine.up && !n.crashed {
		return
	}
	n.s.result.Resets++
	n.s.check.reset(n, why)
	n.die(why)
	n.crashed = false
	n.dog.armed = false
	n.bootLater()
}

// bootLater has the machine boot, unless somebody switches it off meanwhile.
func (n *node) bootLater() {
	if n == n.s.dark {
		return
	}
	boots := n.boots
	n.bmc.on(n.s.now)
	least, most := 10*time.Second, 25*time.Second
	if n.s.scenario != nil { // as in the reference, a reboot takes no time of its own
		least, most = 2*time.Second, 3*time.Second
	}
	n.s.after(n.s.rng.between(least, most), nil, func() {
		if n.boots == boots && n.bmc.power {
			n.boot()
		}
	})
}

// crash is a kernel that stands still: nothing on the machine runs any more, and only the watchdog ends that.
func (n *node) crash() {
	n.die("the kernel crashed")
	n.crashed = true
}

// feed feeds the watchdog, which arms it.
func (n *node) feed() {
	n.dog.armed, n.dog.fed = n.s.mut != mutWatchdogUnarmed, n.s.now
	n.watchDog()
}

// watchDog keeps one event out that looks whether the watchdog was fed.
func (n *node) watchDog() {
	if n.dog.watch {
		return
	}
	n.dog.watch = true
	timeout := n.params().Watchdog
	if n.s.mut == mutWatchdogSlow {
		timeout *= 3
	}
	n.s.at(n.dog.fed+timeout+n.dog.late, nil, func() {
		n.dog.watch = false
		switch {
		case !n.dog.armed || n.dog.dead:
		case n.s.now >= n.dog.fed+timeout+n.dog.late:
			n.reset("the watchdog")
		default:
			n.watchDog()
		}
	})
}

func (n *node) group(name string) *cgroup {
	for _, g := range n.groups {
		if g.name == name {
			return g
		}
	}
	return nil
}

// makeGroup creates the cgroup, or returns the one that is there.
func (n *node) makeGroup(name string) *cgroup {
	if g := n.group(name); g != nil {
		return g
	}
	g := &cgroup{n: n, name: name}
	i := 0
	for i < len(n.groups) && n.groups[i].name < name {
		i++
	}
	n.groups = append(n.groups, nil)
	copy(n.groups[i+1:], n.groups[i:])
	n.groups[i] = g
	return g
}

// removeGroup removes an empty cgroup; one with a process stays, as in the kernel.
func (n *node) removeGroup(g *cgroup) bool {
	if g.q != nil {
		return false
	}
	for i, o := range n.groups {
		if o == g {
			n.groups = append(n.groups[:i], n.groups[i+1:]...)
			break
		}
	}
	g.gone = true
	return true
}

// freeze orders the group to freeze and reports whether it is frozen.
func (g *cgroup) freeze() bool {
	if g.wantFrozen {
		return g.frozen
	}
	g.wantFrozen = true
	g.orders++
	order := g.orders
	s := g.n.s
	s.after(s.rng.between(100*time.Microsecond, 8*time.Millisecond)+g.n.freezeSlow, &g.n.machine, func() {
		if g.orders == order && !g.gone {
			g.frozen = true
			if g.q != nil {
				g.q.freeze()
			}
		}
	})
	return false
}

func (g *cgroup) thaw() {
	if !g.wantFrozen {
		return
	}
	g.wantFrozen = false
	g.orders++
	if !g.frozen {
		return
	}
	g.frozen = false
	if g.q != nil {
		g.q.thaw()
	}
}

// kill has the group's process die soon.
func (g *cgroup) kill() {
	q := g.q
	if q == nil || q.dying {
		return
	}
	q.dying = true
	s := g.n.s
	s.after(s.rng.between(500*time.Microsecond, 20*time.Millisecond)+g.n.killSlow, &g.n.machine, func() { q.end("killed") })
}

// process finds the QEMU of a guest on this machine.
func (n *node) process(id model.VMID) *qemu {
	for _, q := range n.qemus {
		if q.g.id == id {
			return q
		}
	}
	return nil
}
