package rules

import (
	"cmp"
	"slices"

	"sauh.dev/sauh/internal/core/pveconf"
)

// Check finds the contradictions among the rules that are not disabled, in a cluster of these nodes: none means that the
// rules may be written. The smallest contradictions come first, then in the order of the file. Contradictions that
// rest on the same resources of the same rules are named once, by their smallest part.
func Check(rs []pveconf.HARule, nodes []Node) []Conflict {
	all := newRuleset(rs, nodes)
	var out []Conflict
	var seen [][]int
	for _, f := range all.findings() {
		f = all.minimal(f)
		if !slices.ContainsFunc(seen, func(o []int) bool { return slices.Equal(o, f.rules) }) {
			seen = append(seen, f.rules)
			out = append(out, all.conflict(f))
		}
	}
	slices.SortStableFunc(out, func(a, b Conflict) int { return cmp.Compare(len(a.Rules), len(b.Rules)) })
	return out
}

// ruleset is the enabled rules, indexed.
type ruleset struct {
	nodes  []Node
	byName map[string]Node
	rules  []pveconf.HARule // enabled, in the order of the file
	// affinities maps a resource to its node-affinity rules.
	affinities map[string][]int
	// positives maps a resource to the strict positive rules that it is in.
	positives map[string][]int
}

// finding is a contradiction, by the indexes of its rules.
type finding struct {
	rules     []int // sorted
	drop      []int // those that Proxmox VE drops for it, besides rules
	resources []string
	reason    string
}

func newRuleset(rs []pveconf.HARule, nodes []Node) *ruleset {
	s := &ruleset{nodes: nodes, byName: map[string]Node{}, affinities: map[string][]int{}, positives: map[string][]int{}}
	for _, n := range nodes {
		s.byName[n.Name] = n
	}
	for _, r := range rs {
		if r.Disabled {
			continue
		}
		i := len(s.rules)
		s.rules = append(s.rules, r)
		for _, sid := range r.Resources {
			switch {
			case r.Type == pveconf.NodeAffinity:
				s.affinities[sid] = append(s.affinities[sid], i)
			case r.Strict && r.Affinity == pveconf.Positive:
				s.positives[sid] = append(s.positives[sid], i)
			}
		}
	}
	return s
}

// findings runs all checks.
func (s *ruleset) findings() []finding {
	var out []finding
	for i, r := range s.rules {
		if r.Type == pveconf.ResourceAffinity {
			out = append(out, s.tooFew(i, r)...)
		}
		if r.Type == pveconf.ResourceAffinity && r.Strict {
			out = append(out, s.tooMany(i, r)...)
			out = append(out, s.priorities(i, r)...)
			out = append(out, s.togetherAndApart(i, r)...)
			out = append(out, s.crowded(i, r)...)
			out = append(out, s.noCommonDomain(i, r)...)
		}
	}
	out = append(out, s.twoAffinities()...)
	return append(out, s.affinitiesOfBundles()...)
}

func (s *ruleset) conflict(f finding) Conflict {
	c := Conflict{Resources: f.resources, Reason: f.reason}
	for _, i := range f.rules {
		c.Rules = append(c.Rules, s.rules[i].ID)
	}
	return c
}

// minimal leaves out rules as long as a contradiction remains, and returns what is left of it. The checks name small
// sets already; this makes sure that none could be left out.
func (s *ruleset) minimal(f finding) finding {
	for again := true; again; {
		again = false
		for i := range f.rules {
			rest := slices.Delete(slices.Clone(f.rules), i, i+1)
			if smaller, ok := s.within(rest); ok {
				f, again = smaller, true
				break
			}
		}
	}
	return f
}

// within finds a contradiction among some of the rules.
func (s *ruleset) within(some []int) (finding, bool) {
	part := make([]pveconf.HARule, len(some))
	for i, r := range some {
		part[i] = s.rules[r]
	}
	found := newRuleset(part, s.nodes).findings()
	if len(found) == 0 {
		return finding{}, false
	}
	f := found[0]
	f.rules = slices.Clone(f.rules)
	for i, r := range f.rules {
		f.rules[i] = some[r]
	}
	return f, true
}

// bundles are the sets of resources that node-level positive rules tie together, each with the rules that do, in the order of the file.
func (s *ruleset) bundles() []bundle {
	var out []bundle
	done := make([]bool, len(s.rules))
	for i := range s.rules {
		if done[i] || !s.ties(i, pveconf.DomainNode) {
			continue
		}
		b := bundle{resources: map[string]bool{}}
		queue := []int{i}
		done[i] = true
		for len(queue) > 0 {
			r := queue[0]
			queue = queue[1:]
			b.rules = append(b.rules, r)
			for _, sid := range s.rules[r].Resources {
				b.resources[sid] = true
				for _, next := range s.positives[sid] {
					if !done[next] && s.ties(next, pveconf.DomainNode) {
						done[next] = true
						queue = append(queue, next)
					}
				}
			}
		}
		slices.Sort(b.rules)
		out = append(out, b)
	}
	return out
}

type bundle struct {
	rules     []int
	resources map[string]bool
}

// rank orders domains: what shares one shares all that follow.
func rank(d pveconf.Domain) int {
	return slices.Index([]pveconf.Domain{pveconf.DomainNode, pveconf.DomainRack, pveconf.DomainSite}, d)
}

// ties reports whether rule i keeps its resources within one domain of level d.
func (s *ruleset) ties(i int, d pveconf.Domain) bool {
	r := s.rules[i]
	return r.Type == pveconf.ResourceAffinity && r.Strict && r.Affinity == pveconf.Positive && rank(r.Domain) <= rank(d)
}

// path finds the fewest rules that tie from to a resource for which goal holds, at level d; ok is false if none do.
// With goal(from) the path is empty.
func (s *ruleset) path(from string, d pveconf.Domain, goal func(sid string) bool) (to string, rules []int, ok bool) {
	type step struct {
		sid  string
		rule int
		back int
	}
	steps := []step{{from, -1, -1}}
	seen := map[string]bool{from: true}
	used := map[int]bool{}
	for at := 0; at < len(steps); at++ {
		if goal(steps[at].sid) {
			for i := at; steps[i].back >= 0; i = steps[i].back {
				rules = append(rules, steps[i].rule)
			}
			return steps[at].sid, rules, true
		}
		for _, r := range s.positives[steps[at].sid] {
			if used[r] || !s.ties(r, d) {
				continue
			}
			used[r] = true
			for _, sid := range s.rules[r].Resources {
				if !seen[sid] {
					seen[sid] = true
					steps = append(steps, step{sid, r, at})
				}
			}
		}
	}
	return "", nil, false
}

// set sorts and removes duplicates.
func set(rules ...int) []int {
	slices.Sort(rules)
	return slices.Compact(rules)
}
