// Package rules turns the rules of ha/rules.cfg into what a placement can ask: where may a resource be, which
// nodes come first, with whom must it be, and away from whom. And it finds what contradicts what.
//
// It knows the cluster's nodes and their failure domains, and nothing of which nodes are there at the moment or where
// guests run: that is package place.
//
// Invariant: the effective rules of a [Set] contradict one another nowhere. A rule that takes part in a
// contradiction is dropped, as Proxmox VE does, and named with its reason; it should not have come so far, because
// [Check] says so when a rule is written. Start reading with [Check] and [Compile]; the semantics stand in ../place/DESIGN.md.
package rules

import (
	"sauh.dev/sauh/internal/core/pveconf"
)

// Node is a member of the cluster and where it stands. An empty label means that nobody said.
type Node struct {
	Name, Rack, Site string
}

// Domain is the failure domain of n at level d: its name, its rack within its site, its site. "" if the label is missing.
func (n Node) Domain(d pveconf.Domain) string {
	switch {
	case d == pveconf.DomainSite:
		return n.Site
	case d == pveconf.DomainRack && n.Rack != "":
		return n.Site + "/" + n.Rack
	case d == pveconf.DomainRack:
		return ""
	}
	return n.Name
}

// Conflict is a contradiction: the rules that make it, none of which could be left out, and why.
type Conflict struct {
	// Rules are the ids, in the order of the file. No smaller part of them contradicts itself.
	Rules []string
	// Resources are those about which the rules disagree.
	Resources []string
	// Reason is a sentence without a full stop: "vm:1 must be with vm:2 (rule a) and apart from it (rule b)".
	Reason string
}

// Dropped is a rule that has no effect, and the contradiction that it is part of.
type Dropped struct {
	Rule   string
	Reason string
}

// Set is the effective rules, indexed by resource. It is immutable; the zero value and nil have no rules.
type Set struct {
	resources map[string]*Resource
	dropped   []Dropped
}

// Resource is what the rules say of one resource.
type Resource struct {
	// Affinity is the resource's node affinity, nil if it has none. Members of one positive rule share it.
	Affinity *NodeAffinity
	// Together are those with which it must share a node, without itself, sorted.
	Together []string
	// Bundle numbers the sets of resources that must share a node, from 1; 0 if it is in none.
	Bundle int
	// Apart are those with which it must not share a node, sorted by name.
	Apart []Apart
	// Others are its rules on racks and sites, and the soft ones, in the order of the file.
	Others []*Group
}

// Apart is a resource from which another must stay away, and the rule that says so.
type Apart struct {
	SID, Rule string
	// Partners: neither stands in the rule itself, a partner of each does. It follows once both are with their partners, so it
	// need not drive anybody away, but whoever is placed anew had better know it.
	Partners bool
	// implied: no rule names both; a partner of at least one of the two stands in the rule.
	implied bool
}

// NodeAffinity is a node-affinity rule in effect.
type NodeAffinity struct {
	Rule   string
	Strict bool
	// Priority maps the rule's nodes to their priorities. For a rule that is not strict, all other nodes follow in one class.
	Priority map[string]int
}

// Group is a resource-affinity rule on a rack or a site, or a soft one.
type Group struct {
	Rule      string
	Resources []string
	Negative  bool
	Strict    bool
	Weight    int // 0 if strict
	Domain    pveconf.Domain
}

// Dropped lists the rules without effect, in the order of the file.
func (s *Set) Dropped() []Dropped {
	if s == nil {
		return nil
	}
	return s.dropped
}

// Of returns what the rules say of a resource, nil if nothing.
func (s *Set) Of(sid string) *Resource {
	if s == nil {
		return nil
	}
	return s.resources[sid]
}
