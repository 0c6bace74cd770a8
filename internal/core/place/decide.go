package place

import (
	"cmp"
	"slices"

	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

// query is a request with its names resolved.
type query struct {
	sid      string
	self     int // -1 if the cluster does not list it
	rules    *rules.Resource
	partners partners
	// memMiB is its own memory, or that of a whole bundle; alongMiB is that of the partners that would have to come along.
	memMiB   int64
	cpus     float64
	alongMiB int64
	storages []string // those of the partners too
	alone    []string // its own
	exclude  map[string]string
	tried    []string
	prefer   Preference
	node     int
	home     int
	// keep: it stays where it is allowed, even if there is a better class.
	keep bool
}

func (p *Planner) query(r Request) query {
	q := query{
		sid: r.Name(), self: -1, memMiB: r.MemoryMiB, cpus: r.CPUs, storages: r.Storages, exclude: r.Exclude, tried: r.Tried,
		prefer: r.Prefer, node: p.index(r.Node), home: p.index(r.Home), keep: r.NoFailback,
	}
	if i, ok := p.bySID[q.sid]; ok {
		q.self = i
	}
	q.rules = p.c.Rules.Of(q.sid)
	q.partners = p.partnersOf(q.rules)
	p.bringAlong(&q)
	return q
}

// bringAlong counts the partners that go where the guest goes: all of them if it leaves a node, and those whose node is lost.
func (p *Planner) bringAlong(q *query) {
	own := q.storages
	for _, i := range q.partners.together {
		g := &p.guests[i]
		if g.Idle || q.prefer == Best && (!g.HA || p.destination(g) >= 0) {
			continue
		}
		q.alongMiB += g.MemoryMiB
		for _, s := range g.Storages {
			if !slices.Contains(q.storages, s) {
				q.storages = append(slices.Clip(q.storages), s)
			}
		}
	}
	q.alone = own
}

// decision is the answer to a query. Its good nodes are ordered, the best first.
type decision struct {
	node int // -1 for none
	stay bool
	good []int
}

// decide finds a node for q. Why a node is refused is left in p.s.why.
func (p *Planner) decide(q *query) decision {
	if q.rules == nil && q.prefer == Stay && p.isOnline(q.node) && (q.home < 0 || q.home == q.node) {
		clear(p.s.penalty)
		clear(p.s.score)
		return decision{node: q.node, stay: true}
	}
	d := p.search(q)
	if d.node < 0 && q.prefer == Best && q.alongMiB > 0 {
		// no node has room for all of them: better one than none
		q.alongMiB, q.storages = 0, q.alone
		d = p.search(q)
	}
	return d
}

// search goes through the classes of nodes, the best first.
func (p *Planner) search(q *query) decision {
	p.rulesOut(q)
	ok := p.acceptable(q)
	if q.prefer == Stay && q.keep && ok {
		return decision{node: q.node, stay: true}
	}
	classes := p.classesOf(q.rules)
	for _, c := range classes {
		if d, done := p.inClass(q, c); done {
			return d
		}
		if q.prefer == Next || q.prefer == Stay && ok {
			break
		}
	}
	if q.prefer == Stay && p.there(q.node) {
		return decision{node: q.node, stay: true}
	}
	return decision{node: -1}
}

// acceptable: the guest breaks no strict rule where it is.
func (p *Planner) acceptable(q *query) bool {
	return p.isOnline(q.node) && p.s.allowed[q.node] && (p.s.why[q.node].kind == fine || p.s.together[q.node] > 0)
}

// rulesOut notes for each node what the rules say, apart from priorities and being together.
func (p *Planner) rulesOut(q *query) {
	clear(p.s.why)
	clear(p.s.allowed)
	clear(p.s.together)
	clear(p.s.alreadyM)
	clear(p.s.penalty)
	clear(p.s.score)
	for _, c := range p.classesOf(q.rules) {
		for _, n := range c.nodes {
			p.s.allowed[n] = true
		}
	}
	for _, i := range q.partners.together {
		if n := p.destination(&p.guests[i]); n >= 0 {
			p.s.together[n]++
			p.s.alreadyM[n] += p.guests[i].MemoryMiB
		}
	}
	for _, a := range q.partners.apart {
		g := &p.guests[a.guest]
		if g.Idle || a.partners && q.prefer != Best {
			continue
		}
		for _, n := range [2]int{g.node, g.target} {
			if p.isOnline(n) && p.s.why[n].kind == fine {
				p.s.why[n] = refusal{kind: keptApart, guest: a.guest, rule: a.rule}
			}
		}
	}
	if q.rules != nil {
		for _, g := range q.rules.Others {
			p.group(q, g)
		}
	}
}

// group notes what a rule on racks or sites, or a soft one, says of each node.
func (p *Planner) group(q *query, g *rules.Group) {
	level := slices.Index([]pveconf.Domain{pveconf.DomainNode, pveconf.DomainRack, pveconf.DomainSite}, g.Domain)
	taken := map[string]int{}
	for _, sid := range g.Resources {
		i, ok := p.bySID[sid]
		if !ok || i == q.self || p.guests[i].Idle || slices.Contains(q.partners.together, i) {
			continue
		}
		for _, n := range p.whereabouts(&p.guests[i], g.Negative) {
			taken[p.nodes[n].domains[level]]++
		}
	}
	most := ""
	for d, n := range taken {
		if d != "" && (most == "" || n > taken[most] || n == taken[most] && d < most) {
			most = d
		}
	}
	for _, n := range p.online {
		d := p.nodes[n].domains[level]
		bad := d == "" || g.Negative && taken[d] > 0 || !g.Negative && most != "" && d != most
		switch {
		case !bad:
		case !g.Strict:
			p.s.penalty[n] += g.Weight
		case p.s.why[n].kind == fine && d == "":
			p.s.why[n] = refusal{kind: noLabel, rule: g.Rule, text: string(g.Domain)}
		case p.s.why[n].kind == fine && g.Negative:
			p.s.why[n] = refusal{kind: domainTaken, rule: g.Rule, text: string(g.Domain)}
		case p.s.why[n].kind == fine:
			p.s.why[n] = refusal{kind: otherDomain, rule: g.Rule, text: string(g.Domain)}
		}
	}
}

// whereabouts are the nodes on which a guest stands in the way of others, or the one to which others must come: what is on a node that
// is silent or in maintenance is in the way there, and nobody comes to it.
func (p *Planner) whereabouts(g *guest, negative bool) []int {
	if !negative {
		if n := p.destination(g); n >= 0 {
			return []int{n}
		}
		return nil
	}
	var out []int
	for _, n := range [2]int{g.node, g.target} {
		if p.there(n) {
			out = append(out, n)
		}
	}
	return out
}

// inClass looks for the best node of a class; done is false if there is none.
func (p *Planner) inClass(q *query, c class) (d decision, done bool) {
	left := p.s.good[:0]
	for _, n := range c.nodes {
		if p.s.why[n].kind == fine && q.prefer == Next && slices.Contains(q.tried, p.nodes[n].Name) {
			p.s.why[n] = refusal{kind: triedBefore}
		}
		if p.s.why[n].kind == fine {
			left = append(left, n)
		}
	}
	left = p.keepTogether(q, left)
	if q.home >= 0 && slices.Contains(left, q.home) && (q.home == q.node || p.capacity(q, q.home).kind == fine) {
		return decision{node: q.home, stay: q.home == q.node, good: []int{q.home}}, true
	}
	if q.prefer == Stay && q.node >= 0 && slices.Contains(left, q.node) {
		return decision{node: q.node, stay: true}, true
	}
	good := left[:0]
	for _, n := range left {
		if p.s.why[n] = p.capacity(q, n); p.s.why[n].kind == fine {
			good = append(good, n)
		}
	}
	if len(good) == 0 {
		return decision{}, false
	}
	p.order(q, good)
	return decision{node: p.pick(q, good), good: good}, true
}

// keepTogether leaves the node with most of those that the guest must be with, if one of nodes has any.
func (p *Planner) keepTogether(q *query, nodes []int) []int {
	most := -1
	for _, n := range nodes {
		if t := p.s.together[n]; t > 0 && (most < 0 || t > p.s.together[most]) {
			most = n
		}
	}
	if most < 0 && q.prefer == Best {
		// they are in a lower class: it starts there, with them, and they move together; or where it must not be: it waits until they left
		for _, n := range p.online {
			if p.s.together[n] > 0 && p.s.allowed[n] && (most < 0 || p.s.together[n] > p.s.together[most]) {
				most = n
			}
		}
	}
	if most < 0 {
		return nodes
	}
	out := nodes[:0]
	for _, n := range nodes {
		if n == most {
			out = append(out, n)
		} else {
			p.s.why[n] = refusal{kind: keptTogether, node: most}
		}
	}
	return out
}

// order sorts nodes: fewest broken soft rules, then the mode's own measure, then by name.
func (p *Planner) order(q *query, nodes []int) {
	p.scores(q)
	slices.SortFunc(nodes, func(a, b int) int {
		return cmp.Or(cmp.Compare(p.s.penalty[a], p.s.penalty[b]), cmp.Compare(p.s.score[b], p.s.score[a]), cmp.Compare(a, b))
	})
}

// pick takes the first; after a failed start, the one that follows the guest's own.
func (p *Planner) pick(q *query, ordered []int) int {
	if q.prefer == Next {
		if i := slices.Index(ordered, q.node); i >= 0 && i < len(ordered)-1 {
			return ordered[i+1]
		}
	}
	return ordered[0]
}

// scores fills p.s.score: more is better. The guest itself counts nowhere.
func (p *Planner) scores(q *query) {
	if q.self >= 0 {
		p.count(&p.guests[q.self], -1)
		defer p.count(&p.guests[q.self], 1)
	}
	if p.mode == Basic {
		for _, n := range p.online {
			p.s.score[n] = -float64(p.nodes[n].guests)
		}
		return
	}
	cpu, mem := make([]float64, len(p.online)), make([]float64, len(p.online))
	for i, n := range p.online {
		cpu[i], mem[i] = p.load(n)
	}
	l := newLoads(cpu, mem)
	var t topsis
	alternatives := make([][criteria]float64, len(p.online))
	for i, n := range p.online {
		c := change{at: i, cpu: cpu[i], mem: mem[i] + float64(q.memMiB)/float64(p.nodes[n].MemoryMiB)}
		c.cpu += float64(p.milliCPUs(q.cpus, n)) / float64(1000*p.nodes[n].CPUs)
		alternatives[i] = l.alternative(c, change{at: -1})
		t.see(alternatives[i])
	}
	for i, n := range p.online {
		p.s.score[n] = t.score(alternatives[i])
	}
}

// capacity says what of the machine itself speaks against n.
func (p *Planner) capacity(q *query, n int) refusal {
	nd := &p.nodes[n]
	if why, ok := q.exclude[nd.Name]; ok {
		return refusal{kind: excluded, text: why}
	}
	for _, s := range q.storages {
		if !nd.storages[s] {
			return refusal{kind: noStorage, text: s}
		}
	}
	if nd.MemoryMiB <= 0 {
		return refusal{kind: noMemory}
	}
	used := nd.configuredMiB - p.ownMiB(q, n)
	need := q.memMiB + q.alongMiB - p.already(q, n)
	if free := nd.MemoryMiB - p.c.ReserveMiB - used; !p.c.Overcommit && need > free {
		return refusal{kind: full, free: free, used: used, need: need}
	}
	return refusal{}
}

// ownMiB is what of n's configured memory is the guest's own.
func (p *Planner) ownMiB(q *query, n int) int64 {
	if q.self < 0 {
		return 0
	}
	if g := &p.guests[q.self]; !g.Idle && (g.node == n || g.target == n) {
		return g.MemoryMiB
	}
	return 0
}

// already is the memory of the partners that need not come along to n.
func (p *Planner) already(q *query, n int) int64 {
	if q.alongMiB == 0 || q.prefer == Best {
		return 0
	}
	return p.s.alreadyM[n]
}
