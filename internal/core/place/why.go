package place

import (
	"fmt"
)

// refusal is what speaks against a node.
type refusal struct {
	kind             kind
	guest, node      int
	rule, text       string
	free, used, need int64
}

type kind int

const (
	fine kind = iota
	keptApart
	keptTogether
	noLabel
	domainTaken
	otherDomain
	triedBefore
	excluded
	noStorage
	noMemory
	full
)

// why is the clause for a node that was not chosen.
func (p *Planner) why(q *query, n int, d decision) string {
	nd := &p.nodes[n]
	switch nd.State {
	case Online:
	case Suspect:
		return nd.Name + " is silent"
	case Fenced:
		return nd.Name + " is fenced"
	case Maintenance:
		return nd.Name + " is in maintenance"
	default:
		return nd.Name + " is offline"
	}
	if !d.stay && p.s.why[n].kind == fine && !p.s.allowed[n] {
		return fmt.Sprintf("%s is not among the nodes of rule %s", nd.Name, q.rules.Affinity.Rule)
	}
	if r := p.s.why[n]; !d.stay && r.kind != fine {
		return p.refusal(nd.Name, r)
	}
	if r := p.capacity(q, n); r.kind != fine {
		return p.refusal(nd.Name, r)
	}
	if d.node >= 0 && q.rules != nil && q.rules.Affinity != nil && !d.stay {
		return fmt.Sprintf("%s comes after %s in rule %s", nd.Name, p.nodes[d.node].Name, q.rules.Affinity.Rule)
	}
	if d.stay {
		return fmt.Sprintf("%s need not leave %s for %s", q.sid, p.nodes[d.node].Name, nd.Name)
	}
	return nd.Name + " is not of the highest class of nodes that are there"
}

func (p *Planner) refusal(name string, r refusal) string {
	switch r.kind {
	case keptApart:
		return fmt.Sprintf("%s has %s, and rule %s keeps the two apart", name, p.guests[r.guest].sid, r.rule)
	case keptTogether:
		return fmt.Sprintf("those that must be with it are on %s, not on %s", p.nodes[r.node].Name, name)
	case noLabel:
		return fmt.Sprintf("%s has no label %s, and rule %s goes by it", name, r.text, r.rule)
	case domainTaken:
		return fmt.Sprintf("%s shares its %s with a guest from which rule %s keeps it apart", name, r.text, r.rule)
	case otherDomain:
		return fmt.Sprintf("%s is in another %s than those with which rule %s keeps it", name, r.text, r.rule)
	case triedBefore:
		return "its start failed on " + name
	case excluded:
		return name + " is excluded: " + r.text
	case noStorage:
		return name + " has no storage " + r.text
	case noMemory:
		return name + " has not told how much memory it has"
	case full:
		total := p.nodes[p.byName[name]].MemoryMiB
		return fmt.Sprintf("%s has %d MiB free of %d MiB (%d MiB configured, %d MiB reserved), the guest needs %d MiB",
			name, max(r.free, 0), total, r.used, p.c.ReserveMiB, r.need)
	default:
		return name + " could take it"
	}
}
