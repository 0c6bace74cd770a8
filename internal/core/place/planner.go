package place

import (
	"cmp"
	"math"
	"slices"

	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

// Planner is a cluster indexed for many questions, each answer counting for the next. It is not safe for concurrent use.
type Planner struct {
	c      Cluster
	mode   Mode // c.Mode, or the best one for which the nodes have told enough
	nodes  []node
	byName map[string]int
	guests []guest
	bySID  map[string]int
	online []int // indexes of nodes, by name

	classes  map[*rules.NodeAffinity][]class // nil stands for no affinity
	partners map[*rules.Resource]partners
	s        scratch

	work   int     // see Work
	trials int     // under way
	log    []guest // as they were before they were changed, while there are trials
}

// node is a node and what counts on it.
type node struct {
	Node
	storages map[string]bool
	domains  [3]string // by rank: its name, rack and site; "" without a label
	guests   int
	// configuredMiB and milliCPUs are the guests' sums; usedMilli and usedMiB are measured, with what comes and goes since.
	configuredMiB, milliCPUs int64
	usedMilli, usedMiB       int64
}

// guest is a guest with its nodes' indexes, -1 for none.
type guest struct {
	Guest
	sid          string
	node, target int
	rules        *rules.Resource
}

// class is nodes online of one priority, by name. first is false for all but the highest.
type class struct {
	nodes []int
	first bool
}

// partners are the guests that rules name and the cluster has.
type partners struct {
	together []int
	apart    []apart
}

type apart struct {
	guest    int
	rule     string
	partners bool
}

// scratch is memory that is used anew for each question.
type scratch struct {
	why      []refusal
	allowed  []bool
	together []int   // guests on each node that the guest must be with
	alreadyM []int64 // their memory
	penalty  []int
	score    []float64
	good     []int
}

// NewPlanner indexes c; c stays as it is.
func NewPlanner(c Cluster) *Planner {
	p := &Planner{
		c: c, byName: make(map[string]int, len(c.Nodes)), bySID: make(map[string]int, len(c.Guests)),
		partners: map[*rules.Resource]partners{},
	}
	p.c.Nodes, p.c.Guests = nil, nil
	for _, n := range c.Nodes {
		p.nodes = append(p.nodes, newNode(n))
	}
	slices.SortStableFunc(p.nodes, func(a, b node) int { return cmp.Compare(a.Name, b.Name) })
	for i, n := range p.nodes {
		p.byName[n.Name] = i
	}
	p.statesChanged()
	p.guests = make([]guest, 0, len(c.Guests))
	for _, g := range c.Guests {
		p.add(g)
	}
	n := len(p.nodes)
	p.s = scratch{
		why: make([]refusal, n), allowed: make([]bool, n), together: make([]int, n), alreadyM: make([]int64, n),
		penalty: make([]int, n), score: make([]float64, n), good: make([]int, 0, n),
	}
	return p
}

func newNode(n Node) node {
	out := node{Node: n, storages: make(map[string]bool, len(n.Storages)), usedMilli: milli(n.UsedCPUs), usedMiB: n.UsedMiB}
	for _, s := range n.Storages {
		out.storages[s] = true
	}
	labels := rules.Node{Name: n.Name, Rack: n.Rack, Site: n.Site}
	for i, d := range []pveconf.Domain{pveconf.DomainNode, pveconf.DomainRack, pveconf.DomainSite} {
		out.domains[i] = labels.Domain(d)
	}
	return out
}

// milli is cpus in thousandths, so that sums do not depend on their order.
func milli(cpus float64) int64 { return int64(math.Round(1000 * cpus)) }

// statesChanged works out again which nodes are there.
func (p *Planner) statesChanged() {
	p.online = p.online[:0]
	p.classes = map[*rules.NodeAffinity][]class{}
	cpus, measured := true, true
	for i, n := range p.nodes {
		if n.State == Online {
			p.online = append(p.online, i)
			cpus = cpus && n.CPUs > 0 && n.MemoryMiB > 0
			measured = measured && n.Measured
		}
	}
	p.mode = p.c.Mode
	if p.mode == Dynamic && !measured {
		p.mode = Static
	}
	if !cpus {
		p.mode = Basic
	}
}

// index is the node of that name, -1 if there is none.
func (p *Planner) index(name string) int {
	if i, ok := p.byName[name]; ok {
		return i
	}
	return -1
}

func (p *Planner) isOnline(i int) bool { return i >= 0 && p.nodes[i].State == Online }

// there reports whether guests on node i still run, as far as anybody knows.
func (p *Planner) there(i int) bool {
	return i >= 0 && (p.nodes[i].State == Online || p.nodes[i].State == Suspect || p.nodes[i].State == Maintenance)
}

func (p *Planner) add(g Guest) int {
	sid := g.Name()
	i := len(p.guests)
	if old, ok := p.bySID[sid]; ok {
		i = old
		p.counted(&p.guests[i], -1)
	} else {
		p.guests = append(p.guests, guest{})
		p.bySID[sid] = i
	}
	p.guests[i] = guest{Guest: g, sid: sid, node: p.index(g.Node), target: -1, rules: p.c.Rules.Of(sid)}
	if g.Target != "" && g.Target != g.Node {
		p.guests[i].target = p.index(g.Target)
	}
	p.counted(&p.guests[i], 1)
	return i
}

// counted adds a guest of the cluster as it came: what it uses on its node is measured there, unless it is starting.
func (p *Planner) counted(g *guest, sign int) {
	if g.Idle {
		return
	}
	if g.node >= 0 {
		p.config(g.node, g, sign)
		if g.Starting {
			p.use(g.node, p.milliCPUs(g.CPUs, g.node), g.MemoryMiB, sign)
		}
	}
	if g.target >= 0 {
		p.config(g.target, g, sign)
		cpu, mem := p.usage(g, g.target)
		p.use(g.target, cpu, mem, sign)
	}
}

// count adds or takes away a guest whole, its measured use included.
func (p *Planner) count(g *guest, sign int) {
	p.counted(g, sign)
	if !g.Idle && !g.Starting && g.node >= 0 {
		p.use(g.node, milli(g.UsedCPUs), g.UsedMiB, sign)
	}
}

func (p *Planner) config(n int, g *guest, sign int) {
	p.nodes[n].guests += sign
	p.nodes[n].configuredMiB += int64(sign) * g.MemoryMiB
	p.nodes[n].milliCPUs += int64(sign) * p.milliCPUs(g.CPUs, n)
}

func (p *Planner) use(n int, cpu, mem int64, sign int) {
	p.nodes[n].usedMilli += int64(sign) * cpu
	p.nodes[n].usedMiB += int64(sign) * mem
}

// milliCPUs is what a guest may use of node n: without a limit, all of it.
func (p *Planner) milliCPUs(cpus float64, n int) int64 {
	if cpus <= 0 {
		return 1000 * int64(p.nodes[n].CPUs)
	}
	return milli(cpus)
}

// usage is what a guest brings along to n: what was measured, or all that it may use if nothing was.
func (p *Planner) usage(g *guest, n int) (cpu, mem int64) {
	if g.Starting {
		return p.milliCPUs(g.CPUs, n), g.MemoryMiB
	}
	return milli(g.UsedCPUs), g.UsedMiB
}

// load is what the mode looks at on node n, in parts of what n has.
func (p *Planner) load(n int) (cpu, mem float64) {
	nd := &p.nodes[n]
	c, m := nd.milliCPUs, nd.configuredMiB
	if p.mode == Dynamic {
		c, m = max(nd.usedMilli, 0), max(nd.usedMiB, 0)
	}
	return float64(c) / float64(1000*nd.CPUs), float64(m) / float64(nd.MemoryMiB)
}

// Place puts a guest on node, where it is being started; it leaves where it was. A node that the cluster does not have is no place.
func (p *Planner) Place(r Request, node string) {
	i, ok := p.bySID[r.Name()]
	if !ok {
		i = p.add(Guest{VMID: r.VMID, SID: r.SID, MemoryMiB: r.MemoryMiB, CPUs: r.CPUs, Storages: r.Storages, Idle: true})
		p.partners = map[*rules.Resource]partners{}
	}
	p.remember(i)
	g := &p.guests[i]
	p.count(g, -1)
	g.Node, g.Target, g.node, g.target = node, "", p.index(node), -1
	g.MemoryMiB, g.CPUs, g.Idle, g.Starting = r.MemoryMiB, r.CPUs, false, true
	p.count(g, 1)
}

// Move lets a guest that the cluster lists go to target; it counts on both nodes until it is Placed.
func (p *Planner) Move(sid, target string) {
	i, ok := p.bySID[sid]
	if !ok || p.index(target) == p.guests[i].node {
		return
	}
	p.remember(i)
	g := &p.guests[i]
	p.count(g, -1)
	g.Target, g.target = target, p.index(target)
	p.count(g, 1)
}

// partnersOf resolves the guests that r names.
func (p *Planner) partnersOf(r *rules.Resource) partners {
	if r == nil {
		return partners{}
	}
	if known, ok := p.partners[r]; ok {
		return known
	}
	var out partners
	for _, sid := range r.Together {
		if i, ok := p.bySID[sid]; ok {
			out.together = append(out.together, i)
		}
	}
	for _, a := range r.Apart {
		if i, ok := p.bySID[a.SID]; ok {
			out.apart = append(out.apart, apart{i, a.Rule, a.Partners})
		}
	}
	p.partners[r] = out
	return out
}

// classesOf sorts the nodes online by what r's node affinity thinks of them.
func (p *Planner) classesOf(r *rules.Resource) []class {
	var a *rules.NodeAffinity
	if r != nil {
		a = r.Affinity
	}
	if known, ok := p.classes[a]; ok {
		return known
	}
	out := p.sortClasses(a)
	p.classes[a] = out
	return out
}

func (p *Planner) sortClasses(a *rules.NodeAffinity) []class {
	if a == nil {
		return []class{{p.online, true}}
	}
	const others = -1 // lower than any priority
	byPriority := map[int][]int{}
	for _, n := range p.online {
		pri, named := a.Priority[p.nodes[n].Name]
		if !named {
			pri = others
		}
		if named || !a.Strict {
			byPriority[pri] = append(byPriority[pri], n)
		}
	}
	priorities := make([]int, 0, len(byPriority))
	for pri := range byPriority {
		priorities = append(priorities, pri)
	}
	slices.SortFunc(priorities, func(a, b int) int { return cmp.Compare(b, a) })
	var out []class
	for i, pri := range priorities {
		out = append(out, class{byPriority[pri], i == 0})
	}
	return out
}

// destination is where a guest is or will be, -1 if it is nowhere that counts.
func (p *Planner) destination(g *guest) int {
	switch {
	case g.Idle:
		return -1
	case p.isOnline(g.target):
		return g.target
	case p.isOnline(g.node):
		return g.node
	}
	return -1
}
