package rules

import (
	"fmt"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/pveconf"
)

// tooFew: a rule between resources needs two of them.
func (s *ruleset) tooFew(i int, r pveconf.HARule) []finding {
	if len(r.Resources) >= 2 {
		return nil
	}
	return []finding{{
		rules: []int{i}, resources: r.Resources,
		reason: fmt.Sprintf("rule %s is about %s alone, and %s affinity needs two resources", r.ID, r.Resources[0], r.Affinity),
	}}
}

// tooMany: resources apart need a domain each.
func (s *ruleset) tooMany(i int, r pveconf.HARule) []finding {
	domains := s.domains(r.Domain, s.nodes)
	if r.Affinity != pveconf.Negative || len(s.nodes) == 0 || len(r.Resources) <= len(domains) {
		return nil
	}
	return []finding{{
		rules: []int{i}, resources: r.Resources,
		reason: fmt.Sprintf("rule %s keeps %d resources apart, and the cluster has %s", r.ID, len(r.Resources), count(len(domains), r.Domain)),
	}}
}

// domains are the different domains of the nodes, without those that have no label.
func (s *ruleset) domains(d pveconf.Domain, nodes []Node) map[string]bool {
	out := map[string]bool{}
	for _, n := range nodes {
		if name := n.Domain(d); name != "" {
			out[name] = true
		}
	}
	return out
}

// twoAffinities: of two node-affinity rules for one resource neither is the first.
func (s *ruleset) twoAffinities() []finding {
	var out []finding
	index := map[[2]int]int{}
	for _, a := range s.rules {
		if a.Type != pveconf.NodeAffinity {
			continue
		}
		for _, sid := range a.Resources {
			rules := s.affinities[sid]
			if len(rules) < 2 || s.rules[rules[0]].ID != a.ID {
				continue
			}
			for _, other := range rules[1:] {
				pair := [2]int{rules[0], other}
				at, known := index[pair]
				if !known {
					at = len(out)
					index[pair] = at
					out = append(out, finding{rules: pair[:], drop: rules})
				}
				f := &out[at]
				f.resources = append(f.resources, sid)
				f.reason = fmt.Sprintf("the rules %s and %s both say on which nodes %s %s", a.ID, s.rules[other].ID, words(f.resources), belongs(f.resources))
			}
		}
	}
	return out
}

// affinitiesOfBundles: resources that share a node share their node affinity, so there may be one only.
func (s *ruleset) affinitiesOfBundles() []finding {
	var out []finding
	for _, b := range s.bundles() {
		var affinities []int
		for _, sid := range sorted(b.resources) {
			affinities = append(affinities, s.affinities[sid]...)
		}
		affinities = set(affinities...)
		if len(affinities) < 2 {
			continue
		}
		var best finding
		for _, a := range affinities {
			for _, from := range s.rules[a].Resources {
				_, path, ok := s.path(from, pveconf.DomainNode, func(sid string) bool {
					return slices.ContainsFunc(s.affinities[sid], func(o int) bool { return o != a })
				})
				if !ok || best.rules != nil && len(path)+2 >= len(best.rules) {
					continue
				}
				best = s.disagree(from, a, path)
			}
		}
		best.drop = set(append(slices.Clone(b.rules), affinities...)...)
		out = append(out, best)
	}
	return out
}

// disagree names the other end of path, whose node affinity is another than a, which is that of from.
func (s *ruleset) disagree(from string, a int, path []int) finding {
	to, other := from, a
	s.path(from, pveconf.DomainNode, func(sid string) bool {
		at := slices.IndexFunc(s.affinities[sid], func(o int) bool { return o != a })
		if at >= 0 {
			to, other = sid, s.affinities[sid][at]
		}
		return at >= 0
	})
	return finding{
		rules: set(append([]int{a, other}, path...)...), resources: pair(from, to),
		reason: fmt.Sprintf("%s must share a node (%s), and %s says on which nodes %s belongs while %s says it of %s",
			words(pair(from, to)), s.named(path), s.named([]int{a}), from, s.named([]int{other}), to),
	}
}

// priorities: which class of nodes is the highest changes as nodes come and go, and with it which resources could be together or apart.
func (s *ruleset) priorities(i int, r pveconf.HARule) []finding {
	if r.Domain != pveconf.DomainNode {
		return nil
	}
	var paired []int
	worst, at := -1, ""
	for _, sid := range r.Resources {
		for _, a := range s.affinities[sid] {
			paired = append(paired, a)
			if worst < 0 && classes(s.rules[a].Nodes) > 1 {
				worst, at = a, sid
			}
		}
	}
	if worst < 0 {
		return nil
	}
	return []finding{{
		rules: set(i, worst), drop: set(paired...), resources: []string{at},
		reason: fmt.Sprintf("%s is in rule %s and in rule %s, which gives its nodes different priorities: resources that belong together or apart need nodes of one priority",
			at, r.ID, s.rules[worst].ID),
	}}
}

func classes(nodes []pveconf.RuleNode) int {
	seen := map[int]bool{}
	for _, n := range nodes {
		seen[n.Priority] = true
	}
	return len(seen)
}

// togetherAndApart: what positive rules tie together, a negative one must not part.
func (s *ruleset) togetherAndApart(i int, r pveconf.HARule) []finding {
	if r.Affinity != pveconf.Negative {
		return nil
	}
	var best finding
	var dropped []int
	for _, from := range r.Resources {
		to, path, ok := s.path(from, r.Domain, func(sid string) bool { return sid != from && slices.Contains(r.Resources, sid) })
		if !ok {
			continue
		}
		dropped = append(dropped, s.tiedTo(from, r.Domain)...)
		if best.rules == nil || len(path)+1 < len(best.rules) {
			best = finding{
				rules: set(append([]int{i}, path...)...), resources: pair(from, to),
				reason: fmt.Sprintf("%s must be together (%s) and must not share a %s (rule %s)", words(pair(from, to)), s.named(path), r.Domain, r.ID),
			}
		}
	}
	if best.rules == nil {
		return nil
	}
	best.drop = set(dropped...)
	return []finding{best}
}

// tiedTo are all rules that tie sid, directly or not, at level d.
func (s *ruleset) tiedTo(sid string, d pveconf.Domain) []int {
	var out []int
	seen := map[string]bool{sid: true}
	for queue := []string{sid}; len(queue) > 0; queue = queue[1:] {
		for _, r := range s.positives[queue[0]] {
			if !s.ties(r, d) || slices.Contains(out, r) {
				continue
			}
			out = append(out, r)
			for _, next := range s.rules[r].Resources {
				if !seen[next] {
					seen[next] = true
					queue = append(queue, next)
				}
			}
		}
	}
	return out
}

// located is a node-affinity rule, and which resources of a negative rule it confines.
type located struct {
	rule      int
	via       []int // positive rules that tie a resource to one of the rule's
	resources []string
	domains   []string
}

// crowded: resources apart, confined to fewer domains than they are.
func (s *ruleset) crowded(i int, r pveconf.HARule) []finding {
	if r.Affinity != pveconf.Negative {
		return nil
	}
	confined, drop := s.confined(r)
	few := smallest(confined)
	if few == nil {
		return nil
	}
	f := finding{rules: []int{i}, drop: drop}
	domains := map[string]bool{}
	for _, l := range few {
		f.rules = append(append(f.rules, l.rule), l.via...)
		f.resources = append(f.resources, l.resources...)
		for _, d := range l.domains {
			domains[d] = true
		}
	}
	slices.Sort(f.resources)
	f.rules = set(f.rules...)
	f.reason = fmt.Sprintf("rule %s keeps %s apart, and %s %s them to %s", r.ID, words(f.resources),
		s.named(slices.DeleteFunc(slices.Clone(f.rules), func(o int) bool { return o == i })), confine(len(f.rules)-1), count(len(domains), r.Domain))
	return []finding{f}
}

// confined groups r's resources by the nearest node-affinity rule; direct are those rules that name one of them.
func (s *ruleset) confined(r pveconf.HARule) (out []located, direct []int) {
	for _, sid := range r.Resources {
		near, path, ok := s.path(sid, pveconf.DomainNode, func(o string) bool { return len(s.affinities[o]) > 0 })
		if !ok {
			continue
		}
		a := s.affinities[near][0]
		if len(path) == 0 {
			direct = append(direct, s.affinities[near]...)
		}
		at := slices.IndexFunc(out, func(l located) bool { return l.rule == a })
		if at < 0 {
			at = len(out)
			out = append(out, located{rule: a, domains: s.domainsOf(s.rules[a].Nodes, r.Domain)})
		}
		out[at].via = append(out[at].via, path...)
		out[at].resources = append(out[at].resources, sid)
	}
	return out, set(direct...)
}

// domainsOf are the domains of a rule's nodes; one that the cluster does not have counts as a domain of its own.
func (s *ruleset) domainsOf(nodes []pveconf.RuleNode, d pveconf.Domain) []string {
	var out []string
	for _, n := range nodes {
		name := n.Name
		if known, ok := s.byName[n.Name]; ok {
			name = known.Domain(d)
		}
		if name != "" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// exhaustive is up to how many rules all subsets are tried: 4096 of them.
const exhaustive = 12

// smallest returns the fewest of all that have more resources than domains, nil if there are none. Beyond exhaustive rules it
// leaves out what it can, which is minimal and need not be the smallest.
func smallest(all []located) []located {
	if len(all) > exhaustive {
		return reduced(all)
	}
	var best []located
	for mask := 1; mask < 1<<len(all); mask++ {
		var some []located
		for i := range all {
			if mask&(1<<i) != 0 {
				some = append(some, all[i])
			}
		}
		if (best == nil || weight(some) < weight(best)) && overfull(some) {
			best = some
		}
	}
	return best
}

// weight is the number of rules that name these.
func weight(some []located) int {
	n := len(some)
	for _, l := range some {
		n += len(set(slices.Clone(l.via)...))
	}
	return n
}

func reduced(all []located) []located {
	for _, l := range all {
		if overfull([]located{l}) {
			return []located{l}
		}
	}
	if !overfull(all) {
		return nil
	}
	for i := 0; i < len(all); {
		if rest := slices.Delete(slices.Clone(all), i, i+1); overfull(rest) {
			all = rest
			continue
		}
		i++
	}
	return all
}

func overfull(some []located) bool {
	domains := map[string]bool{}
	n := 0
	for _, l := range some {
		n += len(l.resources)
		for _, d := range l.domains {
			domains[d] = true
		}
	}
	return n > len(domains)
}

// noCommonDomain: resources that must share a rack or a site, on nodes that have none in common.
func (s *ruleset) noCommonDomain(i int, r pveconf.HARule) []finding {
	if r.Affinity != pveconf.Positive || r.Domain == pveconf.DomainNode {
		return nil
	}
	f := finding{rules: []int{i}}
	var common []string
	for _, sid := range r.Resources {
		for _, a := range s.affinities[sid] {
			if !s.rules[a].Strict {
				continue
			}
			domains := s.domainsOf(s.rules[a].Nodes, r.Domain)
			if len(f.rules) > 1 {
				domains = slices.DeleteFunc(domains, func(d string) bool { return !slices.Contains(common, d) })
			}
			common = domains
			f.rules = append(f.rules, a)
			f.resources = append(f.resources, sid)
		}
	}
	f.rules = set(f.rules...)
	if len(f.rules) < 3 || len(common) > 0 {
		return nil
	}
	f.reason = fmt.Sprintf("rule %s keeps %s in one %s, and %s leave them none in common", r.ID, words(f.resources), r.Domain,
		s.named(slices.DeleteFunc(slices.Clone(f.rules), func(o int) bool { return o == i })))
	return []finding{f}
}

// named lists rules: "rule a", "the rules a, b and c".
func (s *ruleset) named(rules []int) string {
	ids := make([]string, len(rules))
	for i, r := range set(slices.Clone(rules)...) {
		ids[i] = s.rules[r].ID
	}
	if len(ids) == 1 {
		return "rule " + ids[0]
	}
	return "the rules " + words(ids)
}

// words joins names as a person would, and stops after eight.
func words(names []string) string {
	const most = 8
	switch n := len(names); {
	case n == 0:
		return ""
	case n == 1:
		return names[0]
	case n > most:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), n-most)
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

func belongs(names []string) string {
	if len(names) == 1 {
		return "belongs"
	}
	return "belong"
}

func confine(rules int) string {
	if rules == 1 {
		return "confines"
	}
	return "confine"
}

func count(n int, d pveconf.Domain) string {
	if n == 1 {
		return "1 " + string(d)
	}
	return fmt.Sprintf("%d %ss", n, d)
}

func pair(a, b string) []string {
	out := []string{a, b}
	slices.Sort(out)
	return out
}

func sorted(m map[string]bool) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
