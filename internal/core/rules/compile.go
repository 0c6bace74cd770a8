package rules

import (
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/pveconf"
)

// Compile returns the rules in effect. It drops those that Proxmox VE would drop, and all that [Check] names, until nothing
// contradicts anything.
func Compile(rs []pveconf.HARule, nodes []Node) *Set {
	out := &Set{resources: map[string]*Resource{}}
	why := map[string]string{}
	var all *ruleset
	for {
		all = newRuleset(slices.DeleteFunc(slices.Clone(rs), func(r pveconf.HARule) bool { return why[r.ID] != "" }), nodes)
		found := all.findings()
		if len(found) == 0 {
			break
		}
		for _, f := range found {
			all.drop(f, why)
		}
	}
	for _, r := range rs {
		if why[r.ID] != "" {
			out.dropped = append(out.dropped, Dropped{r.ID, why[r.ID]})
		}
	}
	out.index(all)
	return out
}

// drop notes which rules go for f, and why.
func (s *ruleset) drop(f finding, why map[string]string) {
	reason := s.minimal(f).reason
	for _, i := range set(append(slices.Clone(f.rules), f.drop...)...) {
		if id := s.rules[i].ID; why[id] == "" {
			why[id] = reason
		}
	}
}

// index writes down what s says of each resource.
func (s *Set) index(all *ruleset) {
	for i := range all.rules {
		r := &all.rules[i]
		switch {
		case r.Type == pveconf.NodeAffinity:
			s.nodeAffinity(r)
		case r.Strict && r.Domain == pveconf.DomainNode && r.Affinity == pveconf.Negative:
			s.apart(r)
		case !r.Strict || r.Domain != pveconf.DomainNode:
			s.group(r)
		}
	}
	bundles := all.bundles()
	for n, b := range bundles {
		s.together(n+1, sorted(b.resources))
	}
	for _, b := range bundles {
		s.partners(sorted(b.resources))
	}
	for _, r := range s.resources {
		slices.SortFunc(r.Apart, func(a, b Apart) int { return strings.Compare(a.SID, b.SID) })
		r.Apart = slices.CompactFunc(r.Apart, func(a, b Apart) bool { return a.SID == b.SID })
	}
}

// of is the entry of a resource, made if need be.
func (s *Set) of(sid string) *Resource {
	r := s.resources[sid]
	if r == nil {
		r = &Resource{}
		s.resources[sid] = r
	}
	return r
}

func (s *Set) nodeAffinity(r *pveconf.HARule) {
	a := &NodeAffinity{Rule: r.ID, Strict: r.Strict, Priority: make(map[string]int, len(r.Nodes))}
	for _, n := range r.Nodes {
		a.Priority[n.Name] = n.Priority
	}
	for _, sid := range r.Resources {
		s.of(sid).Affinity = a
	}
}

func (s *Set) apart(r *pveconf.HARule) {
	for _, sid := range r.Resources {
		entry := s.of(sid)
		for _, other := range r.Resources {
			if other != sid {
				entry.Apart = append(entry.Apart, Apart{SID: other, Rule: r.ID})
			}
		}
	}
}

func (s *Set) group(r *pveconf.HARule) {
	g := &Group{
		Rule: r.ID, Resources: r.Resources, Negative: r.Affinity == pveconf.Negative,
		Strict: r.Strict, Weight: r.Weight, Domain: r.Domain,
	}
	for _, sid := range r.Resources {
		s.of(sid).Others = append(s.of(sid).Others, g)
	}
}

// together ties a bundle: its members share the node affinity and the groups that one of them has, and stay away from
// whatever one of them must stay away from, and that from them. Proxmox VE goes this far and not further; see
// [Apart] for the rest.
func (s *Set) together(n int, sids []string) {
	var affinity *NodeAffinity
	var apart []Apart
	var groups []*Group
	for _, sid := range sids {
		r := s.of(sid)
		if r.Affinity != nil {
			affinity = r.Affinity
		}
		// only what rules say of sid itself counts, not what another bundle implied
		for _, a := range r.Apart {
			if !a.implied {
				apart = append(apart, a)
			}
		}
		for _, g := range r.Others {
			if !slices.Contains(groups, g) {
				groups = append(groups, g)
			}
		}
	}
	for i, sid := range sids {
		r := s.of(sid)
		r.Bundle, r.Affinity, r.Others = n, affinity, groups
		r.Together = slices.Delete(slices.Clone(sids), i, i+1)
		for _, a := range apart {
			s.imply(sid, Apart{SID: a.SID, Rule: a.Rule})
		}
	}
}

// partners keeps a bundle apart from the whole of each bundle with whose member one of its own is kept apart.
func (s *Set) partners(sids []string) {
	for _, from := range sids {
		for _, a := range s.of(from).Apart {
			if a.implied {
				continue
			}
			for _, to := range s.of(a.SID).Together {
				for _, sid := range sids {
					s.imply(sid, Apart{SID: to, Rule: a.Rule, Partners: true})
				}
			}
		}
	}
}

// imply keeps sid and a apart, if they are not already.
func (s *Set) imply(sid string, a Apart) {
	r := s.of(sid)
	if slices.ContainsFunc(r.Apart, func(o Apart) bool { return o.SID == a.SID }) {
		return
	}
	a.implied = true
	r.Apart = append(r.Apart, a)
	a.SID, sid = sid, a.SID
	other := s.of(sid)
	other.Apart = append(other.Apart, a)
}
