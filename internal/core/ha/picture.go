package ha

import (
	"maps"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
)

// Picture is a view as people ask about it: the nodes as the manager judges them, and where its planner would put a guest.
// It decides nothing and writes nothing. See [Look].
type Picture struct{ d *decision }

// Look makes the picture of a view that was just made on the node self.
func Look(self string, p Params, v View) Picture {
	s := New(self, p)
	s.view, s.ready = v, true
	d := &decision{State: &s, out: outbox{ledger: s.ledger}}
	d.survey()
	return Picture{d}
}

// NodePicture is what the manager thinks of a member beyond its records. Each sentence is "" if it is not so.
type NodePicture struct {
	State place.NodeState
	// Shun says why no guest is placed there although it may be there; Leaving, why its guests are to leave; Frozen, why they wait for it.
	Shun, Leaving, Frozen string
	// Ends is how it ends in order, Disarm whether HA is disarmed for it now, by itself or with the cluster.
	Ends   NodeEnd
	Disarm Disarm
	// Quarantined: it was silent too often of late and is a target only if there is no other.
	Quarantined bool
}

// Node is what the manager thinks of a member; the zero value for what is none.
func (p Picture) Node(name string) NodePicture {
	n := p.d.nodes[name]
	if n == nil {
		return NodePicture{}
	}
	return NodePicture{p.d.state(n), n.shun, n.leaving, n.frozen, n.ends, n.disarm, n.quarantined}
}

// Cluster is what plans are made of if nodes are lost: a node that takes no guests counts as one in maintenance, and the
// guests of one that is disarmed are not brought back.
func (p Picture) Cluster() place.Cluster {
	c := p.d.cluster()
	for i := range c.Nodes {
		if n := &c.Nodes[i]; n.State == place.Online && p.d.nodes[n.Name].shun != "" {
			n.State = place.Maintenance
		}
	}
	for i := range c.Guests {
		g := &c.Guests[i]
		if n := p.d.nodes[g.Node]; n != nil && n.disarm != Armed {
			g.HA = false
		}
		g.HA = g.HA && p.d.view.Guests[i].Local == "" // the two lists have the same order
	}
	return c
}

func (p Picture) guest(id model.VMID) Guest {
	for i := range p.d.view.Guests {
		if p.d.view.Guests[i].VMID == id {
			return p.d.view.Guests[i]
		}
	}
	return Guest{}
}

// Elsewhere is where a guest would go if its node were lost now, "" for nowhere, and what speaks for and against each node.
func (p Picture) Elsewhere(id model.VMID) (node string, verdicts []place.Verdict) {
	g := p.guest(id)
	if g.VMID == 0 {
		return "", nil
	}
	pl := p.d.placing()
	r := pl.request(g, place.Request{})
	r.Exclude = maps.Clone(pl.avoid)
	r.Exclude[g.Node] = "it is its node now"
	return pl.planner.Choose(r)
}

// Disarmed says whether HA is disarmed for a guest's node, by itself or with the cluster.
func (p Picture) Disarmed(id model.VMID) bool {
	n := p.d.nodes[p.guest(id).Node]
	return n != nil && n.disarm != Armed
}

// Refusal says why the manager would refuse a command now, "" if it would not, and who would go along by rule.
func (p Picture) Refusal(id model.VMID, c Command) (refusal string, with []string) {
	g := p.guest(id)
	n := p.d.nodes[g.Node]
	switch {
	case !p.d.isHA(id):
		return "it is no HA resource", nil
	case n == nil:
		return g.Node + " is no member of the cluster", nil
	case n.disarm != Armed:
		return "HA is disarmed", nil
	case p.d.view.Statuses[id].State == StatusError:
		return "the service is in error: disable it first", nil
	}
	return p.d.refusal(n, &g, CommandRecord{Command: c})
}

// Block is a resource that keeps another from going to a node, and the kind of rule that says so.
type Block struct {
	SID string
	// ByNodes: a node-affinity rule of SID itself; else it is a resource-affinity rule between the two.
	ByNodes bool
	Rule    string
}

// Blocks are the rules that keep a guest from target.
func (p Picture) Blocks(id model.VMID, target string) []Block {
	g := p.guest(id)
	of := p.d.view.Rules.Of(g.SID())
	if of == nil {
		return nil
	}
	var out []Block
	if a := of.Affinity; a != nil && a.Strict {
		if _, ok := a.Priority[target]; !ok {
			out = append(out, Block{SID: g.SID(), ByNodes: true, Rule: a.Rule})
		}
	}
	there := make(map[string]bool)
	for _, o := range p.d.placing().cluster.Guests {
		there[o.Name()] = !o.Idle && (o.Node == target || o.Target == target)
	}
	for _, a := range of.Apart {
		if there[a.SID] {
			out = append(out, Block{SID: a.SID, Rule: a.Rule})
		}
	}
	return out
}
