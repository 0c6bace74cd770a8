package ha

import (
	"maps"
	"slices"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

// AwaitsManager says whether a guest that was stopped starts only by the manager's word: something may speak against it
// that only the manager knows. The agent sets LocalView.AwaitManager to it.
func AwaitsManager(p Policy, r *rules.Set) bool {
	return r != nil || p.Tolerate > 0 || p.RebalanceOnStart
}

// placing is the cluster as the placement sees it in one look.
type placing struct {
	d       *decision
	cluster place.Cluster
	planner *place.Planner
	guests  map[string]*Guest // by sid
	shun    map[string]string // nodes that are there and no targets, with the reason
	avoid   map[string]string // and those besides that are quarantined
}

func (d *decision) placing() *placing {
	if d.place == nil {
		d.place = &placing{d: d, cluster: d.cluster(), guests: make(map[string]*Guest, len(d.view.Guests))}
		d.place.planner = place.NewPlanner(d.place.cluster)
		for i := range d.view.Guests {
			g := &d.view.Guests[i]
			d.place.guests[g.SID()] = g
		}
		d.place.exclude()
	}
	return d.place
}

// exclude lists the nodes that are not chosen.
func (p *placing) exclude() {
	p.shun, p.avoid = make(map[string]string), make(map[string]string)
	for name, n := range p.d.nodes {
		switch {
		case n.shun != "":
			p.shun[name], p.avoid[name] = n.shun, n.shun
		case n.quarantined:
			p.avoid[name] = "it was silent too often of late"
		}
	}
}

// choose finds a node for g; how says what it prefers. The choice counts for the next ones.
func (p *placing) choose(g Guest, how place.Request) (string, []place.Verdict) {
	to, verdicts := p.find(g, how)
	if to != "" {
		p.planner.Place(p.request(g, how), to)
	}
	return to, verdicts
}

// find is choose, and nothing counts yet.
func (p *placing) find(g Guest, how place.Request) (string, []place.Verdict) {
	r := p.request(g, how)
	r.Exclude = p.doubting(g)
	to, verdicts := p.planner.Choose(r)
	if to == "" && len(r.Exclude) > len(p.shun) {
		r.Exclude = p.shun
		to, verdicts = p.planner.Choose(r)
	}
	return to, verdicts
}

// doubting is avoid, and the nodes besides that do not know whether they have the guest's storages.
func (p *placing) doubting(g Guest) map[string]string {
	out := p.avoid
	for name, n := range p.d.nodes {
		why := n.doubts(&g)
		if _, known := p.avoid[name]; why == "" || known || name == g.Node {
			continue
		}
		if len(out) == len(p.avoid) {
			out = maps.Clone(p.avoid)
		}
		out[name] = why
	}
	return out
}

func (p *placing) request(g Guest, how place.Request) place.Request {
	how.VMID, how.SID, how.MemoryMiB, how.CPUs, how.Storages = g.VMID, g.SID(), g.MemoryMiB, float64(g.CPUs), g.Storages
	how.Node, how.NoFailback, how.Home = g.Node, p.d.view.Config[g.VMID].NoFailback, p.d.view.Statuses[g.VMID].Away
	return how
}

// cluster is the view as the placement needs it.
func (d *decision) cluster() place.Cluster {
	pol := d.view.Policy
	c := place.Cluster{ReserveMiB: d.p.ReserveMiB, Mode: pol.Placing, Overcommit: pol.Overcommit, Rules: d.view.Rules}
	c.Nodes = make([]place.Node, 0, len(d.names))
	for _, name := range d.names {
		c.Nodes = append(c.Nodes, d.placeNode(d.nodes[name]))
	}
	c.Guests = make([]place.Guest, 0, len(d.view.Guests))
	for i := range d.view.Guests {
		c.Guests = append(c.Guests, d.placeGuest(&d.view.Guests[i]))
	}
	return c
}

func (d *decision) placeNode(n *node) place.Node {
	storages := n.Storages
	if len(n.Health.Lost) > 0 {
		storages = without(storages, n.Health.Lost)
	}
	return place.Node{
		Name: n.Name, State: d.state(n), MemoryMiB: n.MemoryMiB, CPUs: n.CPUs, Storages: storages, Rack: n.Rack, Site: n.Site,
		Measured: n.Load != Load{}, UsedCPUs: n.Load.CPU, UsedMiB: n.Load.MemoryMiB,
	}
}

func (d *decision) placeGuest(g *Guest) place.Guest {
	conf, st := d.view.Config[g.VMID], d.view.Statuses[g.VMID]
	state, ha := d.view.Resources[g.VMID]
	pg := place.Guest{
		VMID: g.VMID, SID: g.SID(), Node: g.Node, MemoryMiB: g.MemoryMiB, CPUs: float64(g.CPUs), Idle: g.Idle,
		UsedCPUs: g.Load.CPU, UsedMiB: g.Load.MemoryMiB, Storages: g.Storages,
		NoFailback: conf.NoFailback, NoRebalance: conf.NoRebalance || g.Lock != "" || g.Local != "", Home: st.Away,
	}
	if to, ok := d.movedTo(*g); ok {
		pg.Node = to
	}
	if to := d.target(*g, st); to != "" && to != g.Node {
		pg.Target = to
	}
	if ha && state != pveconf.HAIgnored {
		waits := d.oneByOne() && needsPermit(st, g.Node) && st.State != StatusIgnored // it has no place yet, and is not owed one
		pg.HA = state == pveconf.HAStarted && st.State != StatusError && !waits
		pg.Idle = !pg.HA && st.State != StatusStarted && st.Revision != 0 || waits
		pg.Starting = st.State == StatusStarting || g.Unmeasured && st.State == StatusStarted && st.Node == g.Node
	}
	return pg
}

// oneByOne: guests that wait to start are no load, and get a place one after the other, each counting for the next.
func (d *decision) oneByOne() bool {
	return d.view.Policy.Tolerate > 0 || d.view.Policy.RebalanceOnStart
}

// target is where g is going by its record, or by one that is being written.
func (d *decision) target(g Guest, st StatusRecord) string {
	if a, ok := d.ledger.pending(SetStatus{VMID: g.VMID, Kind: g.Kind}.Key()).(SetStatus); ok && a.IfRevision >= st.Revision {
		st.Status = a.Status
	}
	if in, ok := d.view.Intents[g.VMID]; ok {
		return in.Target
	}
	if st.moving() && st.Node == g.Node {
		return st.Target
	}
	return ""
}

func without(all, lost []string) []string {
	var out []string
	for _, s := range all {
		if !slices.Contains(lost, s) {
			out = append(out, s)
		}
	}
	return out
}

// isHA: the guest is an HA resource that is taken care of.
func (d *decision) isHA(id model.VMID) bool {
	s, ok := d.view.Resources[id]
	return ok && s != pveconf.HAIgnored
}
