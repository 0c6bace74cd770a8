// Package sim lives simulated clusters: the real core of HA, lease, guard, migration and placement on simulated time, network,
// store, disks, watchdogs, BMCs and QEMUs, with faults, and checks that no disk ever has two writers.
//
// It is not a model of the core: that is called as the agent calls it, and this package is the agent. It knows no real clock, network or file.
//
// Invariant: a life is a function of its seed. One queue of events, one generator of random numbers, no goroutine within a life, no loop over a map whose order
// could be seen. Start reading with DESIGN.md, [Run] and check.go.
package sim

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// Options say which lives to live.
type Options struct {
	Seed uint64
	// Length of the life; 0 is ten minutes.
	Length time.Duration
	// Faults replaces the plan that the seed makes, if Given is set.
	Faults []Fault
	Given  bool
	// Mutation plants the bug of that name; "" plants none.
	Mutation string
	// Trace gets a line for each thing of note; nil for none.
	Trace io.Writer
}

// Result is what came of a life.
type Result struct {
	Seed      uint64     `json:"seed"`
	Violation *Violation `json:"violation,omitempty"`
	Plan      Plan       `json:"plan"`
	// Placement is the cluster's one rule for placement, "" for none.
	Placement string        `json:"placement,omitempty"`
	Injected  map[Kind]int  `json:"injected,omitempty"`
	Length    time.Duration `json:"length_ns"`
	Events    int           `json:"events"`
	Commits   int64         `json:"commits"`
	Cuts      int           `json:"cuts"`
	Moves     int           `json:"moves"`
	Resets    int           `json:"resets"`
	Shots     int           `json:"shots"`
	// LateWrites arrived after their process was frozen or dead.
	LateWrites   int `json:"late_writes"`
	ManagerSteps int `json:"manager_steps"`
	// MaxOutage is the longest time that an HA guest that was to run did not, ended by its running again.
	MaxOutage time.Duration `json:"max_outage_ns"`
}

// sim is one life: the world and everything in it.
type sim struct {
	engine
	seed      uint64
	params    lease.Params
	haParams  ha.Params
	nodes     []*node
	byName    map[string]*node
	guests    []*guest // by id
	storages  []*storage
	links     []link
	store     *store
	check     *checks
	plan      Plan
	mut       mutation
	fencing   bool // beacons and BMCs are configured
	contacts  []contact
	mode      ha.Mode // that people want; the store says so as soon as somebody can write it
	dark      *node   // it stays without power to the end; nil for none
	processes int
	tasks     int

	blocklistLate time.Duration
	out           io.Writer
	result        Result
	violation     *Violation
	end           time.Duration
	scenario      *scenarioRun
}

// contact is when one node last could hear another one's beacon.
type contact struct {
	up   bool
	last time.Duration
}

// Run lives one life.
func Run(o Options) Result {
	s := newLife(o)
	s.live()
	s.result.Violation = s.violation
	s.result.Plan = s.plan
	s.result.Events, s.result.Commits = s.events, s.store.rev
	return s.result
}

// newLife makes the world of a seed.
func newLife(o Options) *sim {
	s := &sim{seed: o.Seed, out: o.Trace, byName: map[string]*node{}}
	s.rng = newRNG(o.Seed)
	s.end = o.Length
	if s.end == 0 {
		s.end = 10 * time.Minute
	}
	for _, m := range Mutations() {
		if m.Name == o.Mutation {
			s.mut = m.is
		}
	}
	s.result = Result{Seed: o.Seed, Length: s.end, Injected: map[Kind]int{}}
	shape := newRNG(o.Seed ^ 0x5eed)
	s.makeParams(&shape)
	s.makeNodes(&shape)
	s.makeGuests(&shape)
	s.plan = makePlan(s, &shape)
	if o.Given {
		s.plan.Faults = o.Faults
	}
	s.plan.begins(s)
	s.makeStore()
	return s
}

func (s *sim) makeParams(r *rng) {
	s.params = lease.DefaultParams()
	if r.chance(20) { // the fast profile's lease
		s.params.Lease, s.params.Watchdog, s.params.FreezeMargin = 5*time.Second, 2*time.Second, 500*time.Millisecond
	}
	s.haParams = ha.DefaultParams()
	s.haParams.TakeAfter = s.params.TakeAfter()
	s.fencing = r.chance(50)
}

func (s *sim) makeNodes(r *rng) {
	count := 3
	switch x := r.n(100); {
	case x >= 88:
		count = 5
	case x >= 65:
		count = 4
	}
	for i := range count {
		s.addNode(fmt.Sprintf("n%d", i+1), nodeSpec{memoryMiB: 64 << 10, cpus: 16, watchdog: true}, int64(r.n(2001)-1000))
	}
	s.linkUp()
	shared := &storage{s: s, name: "nas", lateWrites: r.chance(30), locks: r.chance(40), rbd: false}
	s.addStorage(shared)
	if s.fencing && r.chance(50) {
		s.addStorage(&storage{s: s, name: "rbd", lateWrites: r.chance(50), rbd: true})
	}
	for _, n := range s.nodes {
		for _, st := range s.storages {
			n.spec.storages = append(n.spec.storages, st.name)
		}
		if s.fencing {
			n.bmc.methods = []ha.FenceMethod{{Name: "ipmi", Rehearsed: true}}
			if len(s.storages) > 1 {
				n.bmc.methods = append(n.bmc.methods, ha.FenceMethod{Name: "ceph", Blocklist: true, Rehearsed: true})
			}
		}
	}
}

func (s *sim) addNode(name string, spec nodeSpec, ppm int64) *node {
	n := &node{s: s, i: len(s.nodes), name: name, mirror: map[string]record{}, notes: map[model.VMID]moveNote{}, spec: spec, ppm: ppm}
	n.deliver = n.deliverNext
	n.bmc.power = true
	s.nodes = append(s.nodes, n)
	s.byName[name] = n
	return n
}

// linkUp makes the network once all nodes are there.
func (s *sim) linkUp() {
	s.links = make([]link, len(s.nodes)*len(s.nodes))
	s.contacts = make([]contact, len(s.links))
}

func (s *sim) addStorage(st *storage) {
	st.cut, st.pills, st.refused = make([]int, len(s.nodes)), map[int]uint64{}, map[int]time.Duration{}
	s.storages = append(s.storages, st)
}

func (s *sim) makeGuests(r *rng) {
	for i := range 2 + r.n(5) {
		st := s.storages[r.n(len(s.storages))]
		conf := &guestConf{memoryMiB: int64(1+r.n(4)) << 10, cpus: 1 + r.n(4), storage: st.name}
		s.addGuest("vm", model.VMID(100+i), conf)
	}
}

func (s *sim) addGuest(kind string, id model.VMID, conf *guestConf) *guest {
	g := &guest{s: s, id: id, sid: kind + ":" + id.String(), conf: conf, storage: s.storage(conf.storage)}
	i, _ := slices.BinarySearchFunc(s.guests, id, func(g *guest, id model.VMID) int { return int(g.id) - int(id) })
	s.guests = slices.Insert(s.guests, i, g)
	return g
}

// makeStore writes what the cluster begins with: members, files, resources.
func (s *sim) makeStore() {
	s.store = &store{s: s, data: map[string]record{}}
	s.check = newChecks(s)
	for _, n := range s.nodes {
		s.store.seed(model.NodePrefix+n.name, model.Node{Name: n.name, ID: n.i + 1, MemoryMiB: n.spec.memoryMiB, Level: n.level()})
	}
	res := &resources{states: map[model.VMID]pveconf.HAState{}, config: map[model.VMID]ha.Resource{}}
	homes := len(s.nodes)
	if r := newRNG(s.seed ^ 0x40e5); r.chance(25) { // they begin on one node or two
		homes = 1 + r.n(2)
	}
	for i, g := range s.guests {
		n := s.nodes[i%homes]
		s.store.seed(model.GuestConfigKey(n.name, g.id), g.conf)
		if i == len(s.guests)-1 && i > 2 {
			continue // one guest that is no HA resource
		}
		res.states[g.id] = pveconf.HAStarted
		res.config[g.id] = g.resource()
	}
	s.store.seed(haResourcesKey, res)
	s.seedRule()
	s.seedPolicy()
}

// seedRule gives some clusters a rule.
func (s *sim) seedRule() {
	r := newRNG(s.seed ^ 0x401e)
	if len(s.guests) < 3 || !r.chance(30) {
		return
	}
	text := ruleTexts()[r.n(3)]
	set, err := readRules(text, s.nodes)
	if err != nil {
		panic("sim: " + err.Error())
	}
	s.result.Placement = set.name
	s.store.seed(haRulesKey, set)
}

// seedPolicy says what becomes of guests when their node ends in order.
func (s *sim) seedPolicy() {
	r := newRNG(s.seed ^ 0xe4d)
	policies := []ha.ShutdownPolicy{ha.ShutdownConditional, ha.ShutdownFreeze, ha.ShutdownFailover, ha.ShutdownMigrate}
	center, err := readDatacenter("ha: shutdown_policy=" + string(policies[r.n(len(policies))]) + "\n")
	if err != nil {
		panic("sim: " + err.Error())
	}
	s.store.seed(datacenterKey, center)
}

// live runs the life to its end or to the first broken rule.
func (s *sim) live() {
	for _, n := range s.nodes {
		s.after(s.rng.between(0, 500*time.Millisecond), nil, n.boot)
	}
	for i := range s.plan.Faults {
		f := &s.plan.Faults[i]
		s.at(f.At, nil, func() { s.inject(f) })
	}
	s.at(s.plan.Over, nil, s.heal)
	s.at(s.plan.Over+s.plan.Bound, nil, s.check.rest)
	s.at(s.end-time.Millisecond, nil, func() {
		s.check.rest()
		s.check.placed()
		s.check.quiet(s.end - 20*time.Second)
	})
	for s.violation == nil && s.step(s.end) {
	}
}

// heard is how long ago a could last hear the beacon of n.
func (s *sim) heard(a, n *node) time.Duration {
	c := &s.contacts[a.i*len(s.nodes)+n.i]
	if c.up {
		return 0
	}
	return s.now - c.last
}

// quorumKick has the agents look anew whose member hears a leader again, or none any more.
func (s *sim) quorumKick() {
	for _, n := range s.nodes {
		q := s.store.quorate(n)
		if q != n.quorate && n.agent != nil && n.agentProc.up {
			a := n.agent
			s.after(10*time.Millisecond, &n.agentProc, func() { a.ha.changed(a) })
		}
		n.quorate = q
	}
}

// topology is told of every change of who lives and who can speak to whom.
func (s *sim) topology() {
	for _, a := range s.nodes {
		for _, n := range s.nodes {
			c := &s.contacts[a.i*len(s.nodes)+n.i]
			up := n.agentProc.runs() && s.linked(n, a)
			if up || c.up {
				c.last = s.now
			}
			c.up = up
		}
	}
}

func (s *sim) nodeNamed(name string) *node { return s.byName[name] }

func (s *sim) guest(id model.VMID) *guest {
	for _, g := range s.guests {
		if g.id == id {
			return g
		}
	}
	return nil
}

func (s *sim) tracing() bool { return s.out != nil }

// trace writes a line of what happened. n nil is the world.
func (s *sim) trace(n *node, format string, args ...any) {
	if s.out == nil {
		return
	}
	name := "world"
	if n != nil {
		name = n.name
	}
	fmt.Fprintf(s.out, "%11.6f %-5s %s\n", s.now.Seconds(), name, fmt.Sprintf(format, args...))
}

// describe says where a guest is, for a person.
func (s *sim) describe(g *guest) string {
	var b strings.Builder
	for _, n := range s.nodes {
		if hasKey(s.store.data, model.GuestConfigKey(n.name, g.id)) {
			fmt.Fprintf(&b, "its file is on %s (up %v)", n.name, n.machine.up)
		}
	}
	for _, q := range g.qemus {
		fmt.Fprintf(&b, ", %s is %s, frozen %v", q, q.state, q.frozen)
	}
	if st, ok := s.store.data[model.HAStatusPrefix+g.sid].val.(ha.Status); ok {
		fmt.Fprintf(&b, ", status %s on %s: %s", st.State, st.Node, st.Reason)
	}
	return b.String()
}

func (s *sim) count(k Kind) { s.result.Injected[k]++ }

// move is one change of a guest's node.
type move struct {
	at       time.Duration
	from, to string
	recovery bool
}

func (g *guest) kind() string {
	if kind, _, _ := strings.Cut(g.sid, ":"); kind != "vm" {
		return kind
	}
	return ""
}

func (g *guest) storageList() []string { return []string{g.storage.name} }

func (g *guest) noLive() string {
	if g.kind() == "fa" {
		return "it is of a type that cannot"
	}
	return ""
}
