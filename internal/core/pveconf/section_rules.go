package pveconf

import (
	"slices"
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// RuleType is the kind of an HA rule.
type RuleType string

// The types of ha/rules.cfg.
const (
	NodeAffinity     RuleType = "node-affinity"     // resources and the nodes on which they belong
	ResourceAffinity RuleType = "resource-affinity" // resources that belong together, or apart
)

// Affinity says whether resources belong together or apart.
type Affinity string

// The two affinities of a resource-affinity rule.
const (
	Positive Affinity = "positive"
	Negative Affinity = "negative"
)

// Domain is what resources share, or must not share: a failure domain.
type Domain string

// The failure domains, each within the next.
const (
	DomainNode Domain = "node"
	DomainRack Domain = "rack"
	DomainSite Domain = "site"
)

// DefaultWeight is that of a soft rule without one; MaxWeight bounds the sum of all of a guest's weights.
const (
	DefaultWeight = 100
	MaxWeight     = 1000
)

// RuleNode is a node of a node-affinity rule. Of the nodes that are there, those with the highest priority are used.
type RuleNode struct {
	Name     string
	Priority int // 0 or more; 0 where the file says nothing
}

// HARule is one section of ha/rules.cfg.
type HARule struct {
	Type RuleType
	ID   string
	// Disabled rules have no effect.
	Disabled bool
	// Resources are SIDs, in the order of the file, none twice.
	Resources []string
	// Nodes are those of a node-affinity rule, in the order of the file, none twice.
	Nodes []RuleNode
	// Affinity and Domain are those of a resource-affinity rule.
	Affinity Affinity
	Domain   Domain
	// Strict rules are never broken by a placement. Where the file says nothing, a node-affinity rule
	// is not strict and a resource-affinity rule is.
	Strict bool
	// Weight is that of a resource-affinity rule that is not strict, 1 to MaxWeight; 0 in all others.
	Weight  int
	Comment string
	// Section is where it came from; it keeps order, comments and unknown keys.
	Section Section
}

// ParseHARules reads ha/rules.cfg; what is wrong is an *model.InvalidError with its line. Whether rules
// contradict one another is not its business: see package rules.
func ParseHARules(text []byte) ([]HARule, error) {
	f, err := ParseSections(text)
	if err != nil {
		return nil, err
	}
	out := make([]HARule, 0, len(f.Sections))
	lines := make(map[string]int, len(f.Sections))
	for _, s := range f.Sections {
		r, err := HARuleFromSection(s)
		if err != nil {
			return nil, err
		}
		if line, ok := lines[r.ID]; ok {
			return nil, invalidLine(s.Line, "rule", "%s stands already in line %d: give one of the two another name", r.ID, line)
		}
		lines[r.ID] = s.Line
		out = append(out, r)
	}
	return out, nil
}

// HARuleFromSection reads one section of ha/rules.cfg; errors as ParseHARules.
func HARuleFromSection(s Section) (HARule, error) {
	r := HARule{Type: RuleType(s.Type), ID: s.ID, Section: s}
	if !configID.MatchString(s.ID) {
		return HARule{}, invalidLine(s.Line, "rule", "%q is no name of a rule: use at least two letters, digits, '-' and '_', a letter first", s.ID)
	}
	if err := r.readCommon(s); err != nil {
		return HARule{}, err
	}
	switch r.Type {
	case NodeAffinity:
		return r, r.readNodeAffinity(s)
	case ResourceAffinity:
		return r, r.readResourceAffinity(s)
	}
	return HARule{}, invalidLine(s.Line, "type", "%q is no type of rule: use node-affinity or resource-affinity", s.Type)
}

func (r *HARule) readCommon(s Section) (err error) {
	if r.Disabled, err = s.boolean("disable", false); err != nil {
		return err
	}
	if r.Resources, err = s.sids("resources"); err != nil {
		return err
	}
	if len(r.Resources) == 0 {
		return s.invalid("resources", "rule %s names no resource: list some, such as vm:100,vm:101", s.ID)
	}
	r.Comment, err = s.comment()
	return err
}

func (r *HARule) readNodeAffinity(s Section) (err error) {
	if err := s.without("a node-affinity rule", "affinity", "weight", "domain"); err != nil {
		return err
	}
	if r.Nodes, err = s.ruleNodes("nodes"); err != nil {
		return err
	}
	if len(r.Nodes) == 0 {
		return s.invalid("nodes", "rule %s names no node: list some, such as n1:2,n2", s.ID)
	}
	r.Strict, err = s.boolean("strict", false)
	return err
}

func (r *HARule) readResourceAffinity(s Section) (err error) {
	if err := s.without("a resource-affinity rule", "nodes"); err != nil {
		return err
	}
	v, _ := s.Get("affinity")
	r.Affinity = Affinity(v)
	if r.Affinity != Positive && r.Affinity != Negative {
		return s.invalid("affinity", "%q is not allowed: use positive to keep the resources together, negative to keep them apart", v)
	}
	if r.Strict, err = s.boolean("strict", true); err != nil {
		return err
	}
	if r.Domain, err = s.domain(); err != nil {
		return err
	}
	r.Weight, err = s.weight(r.Strict)
	return err
}

// without refuses keys that a rule of this type cannot have.
func (s Section) without(what string, keys ...string) error {
	for _, k := range keys {
		if _, ok := s.Get(k); ok {
			return s.invalid(k, "%s has none: leave it out", what)
		}
	}
	return nil
}

func (s Section) domain() (Domain, error) {
	v, ok := s.Get("domain")
	if !ok {
		return DomainNode, nil
	}
	if d := Domain(v); d == DomainNode || d == DomainRack || d == DomainSite {
		return d, nil
	}
	return "", s.invalid("domain", "%q is not allowed: use node, rack or site", v)
}

func (s Section) weight(strict bool) (int, error) {
	v, ok := s.Get("weight")
	switch {
	case !ok && strict:
		return 0, nil
	case !ok:
		return DefaultWeight, nil
	case strict:
		return 0, s.invalid("weight", "a strict rule has none: leave it out, or add strict 0")
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > MaxWeight {
		return 0, s.invalid("weight", "%q is not a weight: use 1 to %d", v, MaxWeight)
	}
	return n, nil
}

// sids reads a list of HA resources. Proxmox VE takes any word of lower-case letters as a type.
func (s Section) sids(key string) ([]string, error) {
	words := s.list(key)
	for i, w := range words {
		if !haSID.MatchString(w) {
			return nil, s.invalid(key, "%q is no HA resource: write its type and id, such as vm:100", w)
		}
		if slices.Contains(words[:i], w) {
			return nil, s.invalid(key, "%s stands there twice: remove one of the two", w)
		}
	}
	return words, nil
}

// ruleNodes reads "n1:2,n2".
func (s Section) ruleNodes(key string) ([]RuleNode, error) {
	var out []RuleNode
	for _, w := range s.list(key) {
		name, pri, has := strings.Cut(w, ":")
		n := RuleNode{Name: name}
		if err := model.ValidateNodeName(name); err != nil {
			return nil, s.invalid(key, "%q is not a node: write its name, and a priority where you want one, such as n1:2", w)
		}
		if has {
			var err error
			if n.Priority, err = strconv.Atoi(pri); err != nil || n.Priority < 0 || n.Priority > maxPriority {
				return nil, s.invalid(key, "%q has no valid priority: use 0 to %d, such as n1:2", w, maxPriority)
			}
		}
		if slices.ContainsFunc(out, func(o RuleNode) bool { return o.Name == name }) {
			return nil, s.invalid(key, "%s stands there twice: remove one of the two", name)
		}
		out = append(out, n)
	}
	return out, nil
}

// PrintHARules writes ha/rules.cfg from the rules' fields; lines whose meaning did not change stay as they
// are. Comments after the last section are dropped: who wants to keep them edits the SectionFile.
func PrintHARules(rules []HARule) ([]byte, error) {
	var f SectionFile
	for _, r := range rules {
		s, err := r.section()
		if err != nil {
			return nil, err
		}
		f.Sections = append(f.Sections, s)
	}
	return f.Print()
}

// section writes the fields that differ from those in r.Section back into it, and validates the result.
func (r HARule) section() (Section, error) {
	s := r.Section
	s.Type, s.ID = string(r.Type), r.ID
	old, err := HARuleFromSection(s)
	if err != nil || s.Line == 0 {
		old = HARule{Strict: r.Type == ResourceAffinity, Domain: DomainNode}
	}
	if !slices.Equal(r.Resources, old.Resources) {
		s = s.With("resources", strings.Join(r.Resources, ","))
	}
	if r.Type == NodeAffinity && !slices.Equal(r.Nodes, old.Nodes) {
		s = s.With("nodes", printRuleNodes(r.Nodes))
	}
	if r.Type == ResourceAffinity {
		s = r.affinityInto(s, old)
	}
	if r.Strict != old.Strict {
		s = s.With("strict", digit(r.Strict))
	}
	s = s.toggle("disable", r.Disabled, old.Disabled)
	if r.Comment != old.Comment {
		s = s.withText("comment", r.Comment)
	}
	_, err = HARuleFromSection(s)
	return s, err
}

func (r HARule) affinityInto(s Section, old HARule) Section {
	if r.Affinity != old.Affinity {
		s = s.With("affinity", string(r.Affinity))
	}
	if d := r.Domain; d != old.Domain && (d != "" || old.Domain != DomainNode) {
		s = s.With("domain", string(d))
	}
	switch {
	case r.Weight == old.Weight:
	case r.Weight == 0:
		s = s.Without("weight")
	default:
		s = s.With("weight", strconv.Itoa(r.Weight))
	}
	return s
}

func printRuleNodes(nodes []RuleNode) string {
	words := make([]string, len(nodes))
	for i, n := range nodes {
		words[i] = n.Name
		if n.Priority != 0 {
			words[i] += ":" + strconv.Itoa(n.Priority)
		}
	}
	return strings.Join(words, ",")
}

// toggle sets or removes a flag if it changed.
func (s Section) toggle(key string, now, before bool) Section {
	switch {
	case now == before:
		return s
	case now:
		return s.With(key, "1")
	}
	return s.Without(key)
}
