package sim

import (
	"fmt"
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
)

// Kind is a kind of fault.
type Kind string

// The kinds of faults.
const (
	faultCrash         Kind = "node-crash"
	faultPower         Kind = "power-loss"
	faultReboot        Kind = "reboot"
	faultAgentKill     Kind = "agent-kill"
	faultAgentPause    Kind = "agent-pause"
	faultGuardKill     Kind = "guard-kill"
	faultGuardPause    Kind = "guard-pause"
	faultIsolate       Kind = "partition-node"
	faultSplit         Kind = "partition-split"
	faultPair          Kind = "partition-pair"
	faultOneWay        Kind = "partition-one-way"
	faultFlap          Kind = "partition-flapping"
	faultLoss          Kind = "loss"
	faultDelay         Kind = "delay-and-reorder"
	faultDuplicate     Kind = "duplicate"
	faultWallClock     Kind = "wall-clock-jump"
	faultLeader        Kind = "store-leader-lost"
	faultSlowDisk      Kind = "store-slow-disk"
	faultLostAnswer    Kind = "store-lost-answer"
	faultBMCSilent     Kind = "bmc-silent"
	faultBMCLies       Kind = "bmc-off-too-early"
	faultBMCWrong      Kind = "bmc-of-another-node"
	faultDogLate       Kind = "watchdog-late"
	faultDogDead       Kind = "watchdog-never"
	faultBlocklistLate Kind = "blocklist-late"
	faultStorageCut    Kind = "storage-cut"
	faultSlowKill      Kind = "process-slow-to-die"
	faultQEMUCrash     Kind = "qemu-crash"
	faultStartFails    Kind = "start-fails"
	faultMoveFails     Kind = "migration-fails"
	faultPersonStart   Kind = "person-starts"
	faultPersonStop    Kind = "person-stops"
	faultPersonMove    Kind = "person-moves"
	faultPersonHA      Kind = "person-edits-resources"
	faultIsolateMove   Kind = "partition-during-migration"
	faultMovePhase     Kind = "migration-struck-at-a-phase"
	faultSlowApply     Kind = "store-member-lags"
	faultCutSlowFreeze Kind = "partition-and-slow-freeze"
	faultWhole         Kind = "partition-whole"
	faultTwoVersions   Kind = "two-versions"
	faultPersonRules   Kind = "person-edits-rules"
	faultPersonCommand Kind = "person-commands"
	faultPanic         Kind = "guest-panics"
	faultSilent        Kind = "guest-agent-silent"
	faultGuestNetwork  Kind = "guest-network-down"
	faultOrderly       Kind = "orderly-end"
	faultMaintenance   Kind = "maintenance"
	faultDisarm        Kind = "disarm"
)

// Fault is one thing that goes wrong, or that a person does.
type Fault struct {
	At   time.Duration `json:"at_ns"`
	Kind Kind          `json:"kind"`
	// For is how long it lasts.
	For time.Duration `json:"for_ns,omitempty"`
	// Node, Peer and Guest are indexes.
	Node  int `json:"node"`
	Peer  int `json:"peer,omitempty"`
	Guest int `json:"guest,omitempty"`
	// Seed is of the fault's own random numbers.
	Seed uint64 `json:"seed,omitempty"`
}

func (f Fault) String() string {
	return fmt.Sprintf("%8.3fs %-27s n%d peer n%d guest %d for %.3fs", f.At.Seconds(), f.Kind, f.Node+1, f.Peer+1, f.Guest, f.For.Seconds())
}

// Plan is all that goes wrong in a life.
type Plan struct {
	Faults []Fault `json:"faults"`
	// Over is when everything is healed, and Bound how long the cluster then has to come to rest.
	Over  time.Duration `json:"over_ns"`
	Bound time.Duration `json:"bound_ns"`
}

// weighted lists the kinds with how often each is drawn.
func weighted() []struct {
	kind   Kind
	weight int
} {
	return []struct {
		kind   Kind
		weight int
	}{
		{faultCrash, 6},
		{faultPower, 10},
		{faultReboot, 4},
		{faultAgentKill, 8},
		{faultAgentPause, 10},
		{faultGuardKill, 6},
		{faultGuardPause, 6},
		{faultIsolate, 16},
		{faultSplit, 5},
		{faultPair, 5},
		{faultOneWay, 6},
		{faultFlap, 4},
		{faultLoss, 4},
		{faultDelay, 4},
		{faultDuplicate, 3},
		{faultWallClock, 2},
		{faultLeader, 5},
		{faultSlowDisk, 4},
		{faultLostAnswer, 8},
		{faultBMCSilent, 4},
		{faultBMCLies, 3},
		{faultBMCWrong, 6},
		{faultDogLate, 3},
		{faultDogDead, 4},
		{faultBlocklistLate, 2},
		{faultStorageCut, 3},
		{faultSlowKill, 3},
		{faultQEMUCrash, 6},
		{faultStartFails, 4},
		{faultMoveFails, 2},
		{faultPersonStart, 4},
		{faultPersonStop, 4},
		{faultPersonMove, 16},
		{faultPersonHA, 9},
		{faultIsolateMove, 6},
		{faultMovePhase, 14},
		{faultSlowApply, 8},
		{faultCutSlowFreeze, 4},
		{faultWhole, 3},
		{faultTwoVersions, 8},
		{faultPersonRules, 5},
		{faultPersonCommand, 8},
		{faultPanic, 3},
		{faultSilent, 3},
		{faultGuestNetwork, 4},
		{faultOrderly, 16},
		{faultMaintenance, 6},
		{faultDisarm, 6},
	}
}

// makePlan draws the faults of a life: none in a few, many at once in some.
func makePlan(s *sim, r *rng) Plan {
	p := Plan{Over: s.end - 210*time.Second, Bound: 150 * time.Second}
	if p.Over < 60*time.Second {
		return p
	}
	kinds, total := weighted(), 0
	for _, k := range kinds {
		total += k.weight
	}
	count := 0
	switch x := r.n(100); {
	case x < 4:
	case x < 70:
		count = 1 + r.n(6)
	default:
		count = 6 + r.n(12)
	}
	storm := r.chance(35) // all within a minute
	from, to := 25*time.Second, p.Over-20*time.Second
	if storm {
		from = r.between(from, to-60*time.Second)
		to = from + 60*time.Second
	}
	for range count {
		x, i := r.n(total), 0
		for x >= kinds[i].weight {
			x -= kinds[i].weight
			i++
		}
		f := Fault{
			At: r.between(from, to), Kind: kinds[i].kind, For: lengthOf(r), Node: r.n(len(s.nodes)), Peer: r.n(len(s.nodes)),
			Guest: r.n(len(s.guests)), Seed: r.next(),
		}
		p.Faults = append(p.Faults, f)
	}
	slices.SortStableFunc(p.Faults, func(a, b Fault) int { return int(a.At - b.At) })
	return p
}

// lengthOf draws how long a fault lasts: often about as long as a lease, where everything is decided.
func lengthOf(r *rng) time.Duration {
	switch x := r.n(100); {
	case x < 30:
		return r.between(500*time.Millisecond, 8*time.Second)
	case x < 75:
		return r.between(8*time.Second, 20*time.Second)
	default:
		return r.between(20*time.Second, 120*time.Second)
	}
}

// inject does one fault, and schedules its end.
func (s *sim) inject(f *Fault) {
	n := s.nodes[f.Node%len(s.nodes)]
	r := newRNG(f.Seed)
	s.count(f.Kind)
	s.trace(nil, "FAULT %s", f)
	undo := s.strike(f, n, &r)
	if undo == nil {
		return
	}
	s.at(min(s.now+f.For, max(s.plan.Over, s.now)), nil, func() {
		s.trace(nil, "END   %s", f)
		undo()
	})
}

// strike does a fault and returns what undoes it, nil if nothing need be.
func (s *sim) strike(f *Fault, n *node, r *rng) (undo func()) {
	switch f.Kind {
	case faultCrash:
		n.crash()
		return func() {
			if n.crashed {
				n.reset("somebody presses the button")
			}
		}
	case faultPower:
		n.powerOff("power cut")
		return func() { n.bootLater() }
	case faultReboot:
		n.reset("somebody presses the button")
	case faultAgentKill:
		n.killAgent()
		s.after(r.between(200*time.Millisecond, 5*time.Second), &n.machine, n.startAgent)
	case faultAgentPause:
		if r.chance(40) {
			return s.pauseAtCommit(n)
		}
		return s.pause(&n.agentProc, true)
	case faultGuardKill:
		if n.dog.dead || n.dog.late > 0 {
			return nil // as below
		}
		n.killGuard()
		s.after(r.between(200*time.Millisecond, 8*time.Second), &n.machine, n.startGuard)
	case faultGuardPause:
		if n.dog.dead || n.dog.late > 0 {
			return nil // more than the design promises to survive
		}
		return s.pause(&n.guardProc, false)
	case faultDogLate, faultDogDead:
		return s.strikeDog(f, n, r)
	case faultBMCSilent, faultBMCLies, faultBMCWrong, faultBlocklistLate:
		return s.strikeFence(f, n, r)
	case faultQEMUCrash, faultStartFails, faultMoveFails, faultPersonStart, faultPersonStop, faultPersonMove, faultPersonHA, faultIsolateMove, faultMovePhase,
		faultPersonCommand, faultPanic, faultSilent:
		return s.strikeGuest(f, r)
	case faultPersonRules:
		s.personRules(f, r)
	case faultTwoVersions:
		n.upgrade(r)
	case faultGuestNetwork:
		return n.lose(&n.lost.network)
	case faultOrderly:
		s.endNode(f, n, r)
	case faultMaintenance:
		return s.maintain(f, n)
	case faultDisarm:
		return s.disarm(f, n, r)
	case faultStorageCut, faultSlowKill, faultCutSlowFreeze:
		return s.strikeStorage(f, n, r)
	case faultLeader, faultSlowDisk, faultLostAnswer, faultDuplicate, faultWallClock, faultSlowApply:
		return s.strikeStore(f, n, r)
	default:
		return s.strikeNet(f, n, r)
	}
	return nil
}

// pause stops a process. A pause does not outlast the process.
func (s *sim) pause(p *process, member bool) func() {
	if !p.up {
		return nil
	}
	life := p.life
	s.stop(p)
	if member {
		s.changed()
	}
	return func() {
		if p.up && p.life == life {
			s.resume(p)
			if member {
				s.changed()
			}
		}
	}
}

// pauseAtCommit stops the agent at the worst moment: its next renewal is committed, and it has not got the answer.
func (s *sim) pauseAtCommit(n *node) func() {
	var undo func()
	n.atCommit = func() { undo = s.pause(&n.agentProc, true) }
	return func() {
		n.atCommit = nil
		if undo != nil {
			undo()
		}
	}
}

// changed tells whoever looks at who lives and who is linked.
func (s *sim) changed() { s.store.topology() }

func (n *node) killGuard() {
	if !n.guardProc.up {
		return
	}
	n.s.trace(n, "guard: killed")
	n.guardDied = n.s.now
	n.guardProc.end()
	n.guard = nil
}

func (s *sim) strikeDog(f *Fault, n *node, r *rng) func() {
	if n.guardProc.stopped > 0 || !n.guardProc.up {
		return nil
	}
	if f.Kind == faultDogLate {
		n.dog.late = r.between(10*time.Millisecond, 400*time.Millisecond)
		return func() { n.dog.late = 0 }
	}
	n.dog.dead = true
	heal := func() {}
	if r.chance(80) {
		heal = s.cutLinks(func(a, b *node) bool { return a == n || b == n })
	}
	return func() {
		n.dog.dead = false
		n.watchDog()
		heal()
	}
}

func (s *sim) strikeFence(f *Fault, n *node, r *rng) func() {
	switch f.Kind {
	case faultBMCSilent, faultBMCWrong:
		return s.strikeBMC(f, n, r)
	case faultBMCLies:
		n.bmc.lies = r.between(50*time.Millisecond, 400*time.Millisecond)
		return func() { n.bmc.lies = 0 }
	default:
		s.blocklistLate = r.between(time.Second, 8*time.Second)
		return func() { s.blocklistLate = 0 }
	}
}

// strikeBMC takes a node's BMC away, or puts one in its place that belongs to a machine outside the cluster which is off; in half of all
// cases the node cannot be heard either.
func (s *sim) strikeBMC(f *Fault, n *node, r *rng) func() {
	heal := func() {}
	if r.chance(50) {
		heal = s.cutLinks(func(a, b *node) bool { return a == n || b == n })
	}
	if f.Kind == faultBMCSilent {
		n.bmc.silent = true
	} else {
		n.bmc.wrong = &bmc{saysOff: max(1, s.now)}
	}
	return func() {
		n.bmc.silent, n.bmc.wrong = false, nil
		heal()
	}
}

func (s *sim) strikeStorage(f *Fault, n *node, r *rng) func() {
	if f.Kind == faultCutSlowFreeze {
		n.freezeSlow = r.between(500*time.Millisecond, 3*time.Second)
		heal := s.cutLinks(func(a, b *node) bool { return a == n || b == n })
		return func() {
			n.freezeSlow = 0
			heal()
		}
	}
	if f.Kind == faultSlowKill {
		n.killSlow = r.between(100*time.Millisecond, 3*time.Second)
		if r.chance(30) {
			n.freezeSlow = r.between(50*time.Millisecond, 2*time.Second)
		}
		return func() { n.killSlow, n.freezeSlow = 0, 0 }
	}
	st := s.storages[f.Peer%len(s.storages)]
	st.cut[n.i]++
	back := n.lose(&n.lost.storage)
	return func() {
		st.cut[n.i]--
		back()
	}
}

func (s *sim) strikeStore(f *Fault, n *node, r *rng) func() {
	st := s.store
	switch f.Kind {
	case faultLeader:
		st.leader = nil
		st.term++
		s.quorumKick()
		st.elect()
	case faultSlowDisk:
		slow := r.between(20*time.Millisecond, 700*time.Millisecond)
		st.slow += slow
		return func() { st.slow -= slow }
	case faultLostAnswer:
		n.loseAnswers += 1 + r.n(6)
	case faultSlowApply:
		n.slowApply = r.between(500*time.Millisecond, 6*time.Second)
		return func() { n.slowApply = 0 }
	case faultDuplicate:
		st.duplicates += 1 + r.n(10)
	default:
		n.wall += r.between(-2*time.Hour, 2*time.Hour)
	}
	return nil
}

func (s *sim) strikeNet(f *Fault, n *node, r *rng) func() {
	peer := s.nodes[f.Peer%len(s.nodes)]
	switch f.Kind {
	case faultIsolate:
		return s.cutLinks(func(a, b *node) bool { return a == n || b == n })
	case faultWhole:
		return s.cutLinks(func(a, b *node) bool { return true })
	case faultSplit:
		side := make([]bool, len(s.nodes))
		for i := range side {
			side[i] = r.chance(50)
		}
		return s.cutLinks(func(a, b *node) bool { return side[a.i] != side[b.i] })
	case faultPair:
		return s.cutLinks(func(a, b *node) bool { return a == n && b == peer || a == peer && b == n })
	case faultOneWay:
		if r.chance(50) {
			return s.cutLinks(func(a, _ *node) bool { return a == n })
		}
		return s.cutLinks(func(_, b *node) bool { return b == n })
	case faultFlap:
		s.flap(n, s.now+f.For, r)
	case faultLoss, faultDelay:
		for i := range s.links {
			if f.Kind == faultLoss {
				s.links[i].loss += 20
			} else {
				s.links[i].extra += 300 * time.Millisecond
			}
		}
		return func() {
			for i := range s.links {
				if f.Kind == faultLoss {
					s.links[i].loss -= 20
				} else {
					s.links[i].extra -= 300 * time.Millisecond
				}
			}
		}
	default:
	}
	return nil
}

// cutLinks cuts the directions chosen and returns what heals them.
func (s *sim) cutLinks(which func(from, to *node) bool) func() {
	var cut []*link
	for _, a := range s.nodes {
		for _, b := range s.nodes {
			if a != b && which(a, b) {
				l := s.link(a, b)
				l.cut++
				cut = append(cut, l)
			}
		}
	}
	s.changed()
	return func() {
		for _, l := range cut {
			l.cut--
		}
		s.changed()
	}
}

// flap cuts a node off and lets it back, over and over.
func (s *sim) flap(n *node, until time.Duration, r *rng) {
	if s.now >= min(until, s.plan.Over) {
		return
	}
	heal := s.cutLinks(func(a, b *node) bool { return a == n || b == n })
	s.after(r.between(200*time.Millisecond, 4*time.Second), nil, func() {
		heal()
		s.after(r.between(100*time.Millisecond, 3*time.Second), nil, func() { s.flap(n, until, r) })
	})
}

// strikeGuest is what happens to a guest, and what people do.
func (s *sim) strikeGuest(f *Fault, r *rng) func() {
	g := s.guests[f.Guest%len(s.guests)]
	switch f.Kind {
	case faultQEMUCrash:
		for _, q := range g.qemus {
			q.end("crashed")
			break
		}
	case faultPersonCommand:
		s.personCommands(f, g, r)
	case faultPanic:
		g.sicken(ha.SickPanicked, 50*time.Millisecond)
	case faultSilent:
		g.sicken(ha.SickSilent, r.between(time.Second, 10*time.Second))
	case faultStartFails:
		g.failStarts += 1 + r.n(3)
	case faultMoveFails:
		g.failMoves++
		s.personMoves(g, r)
	case faultPersonMove:
		s.personMoves(g, r)
	case faultMovePhase:
		g.strike = &moveStrike{phase: movePhase(r.n(int(phases))), seed: r.next(), length: f.For}
		s.personMoves(g, r)
	case faultIsolateMove:
		s.personMoves(g, r)
		n := s.nodes[f.Node]
		if owner := s.owner(g); owner != nil && r.chance(50) {
			n = owner
		}
		s.after(r.between(10*time.Millisecond, 3*time.Second), nil, func() {
			heal := s.cutLinks(func(a, b *node) bool { return a == n || b == n })
			s.at(min(s.now+f.For, max(s.plan.Over, s.now)), nil, heal)
		})
	default:
		s.personWrites(f, g, r)
	}
	return nil
}

// owner is the node whose path the guest's file is under.
func (s *sim) owner(g *guest) *node {
	for _, n := range s.nodes {
		if hasKey(s.store.data, model.GuestConfigKey(n.name, g.id)) {
			return n
		}
	}
	return nil
}

// heal ends everything that is still wrong.
func (s *sim) heal() {
	s.trace(nil, "all faults end")
	for i := range s.links {
		s.links[i].loss, s.links[i].extra = 0, 0
	}
	for _, g := range s.guests {
		g.failStarts, g.failMoves, g.strike = 0, 0, nil
	}
	for _, n := range s.nodes {
		n.loseAnswers = 0
		switch {
		case n == s.dark:
		case !n.machine.up && !n.bmc.power:
			n.bmc.on(s.now)
			n.boot()
		case !n.machine.up && n.crashed:
			n.reset("somebody presses the button")
		}
	}
	s.store.duplicates = 0
	s.changed()
}

// movePhase is a moment of a migration.
type movePhase int

const (
	phaseSetup movePhase = iota
	phaseSwitchover
	phaseCompleted
	phaseReceived
	phases
)

// moveStrike is a fault that strikes when a migration comes to its phase.
type moveStrike struct {
	phase  movePhase
	seed   uint64
	length time.Duration
}

// phase is told where a migration is; q is its source.
func (s *sim) phase(q *qemu, p movePhase) {
	st := q.g.strike
	if st == nil || st.phase != p || q.peer == nil && p < phaseReceived {
		return
	}
	q.g.strike = nil
	r := newRNG(st.seed)
	n := q.n
	if r.chance(60) {
		for _, t := range s.nodes {
			if t != q.n && t.process(q.g.id) != nil {
				n = t
			}
		}
	}
	s.trace(n, "FAULT strikes the migration of %s at phase %d", q.g.sid, p)
	length := min(st.length, max(0, s.plan.Over-s.now))
	undo := func() {}
	switch r.n(6) {
	case 0, 1:
		undo = s.cutLinks(func(a, b *node) bool { return a == n || b == n })
	case 2:
		n.killAgent()
		s.after(r.between(200*time.Millisecond, 8*time.Second), &n.machine, n.startAgent)
	case 3:
		if u := s.pause(&n.agentProc, true); u != nil {
			undo = u
		}
	case 4:
		n.loseAnswers += 1 + r.n(4)
	default:
		n.powerOff("power cut")
		undo = n.bootLater
	}
	s.after(length, nil, undo)
}
