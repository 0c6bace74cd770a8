package pveconf

import (
	"slices"
)

// HAGroup is one section of ha/groups.cfg, the form that preceded ha/rules.cfg.
type HAGroup struct {
	ID    string
	Nodes []RuleNode
	// Restricted groups' resources run on the group's nodes or not at all.
	Restricted bool
	// NoFailback leaves a resource where it is when a node of a higher priority comes back.
	NoFailback bool
	Comment    string
	// Section is where it came from.
	Section Section
}

// ParseHAGroups reads ha/groups.cfg; what is wrong is an *model.InvalidError with its line.
func ParseHAGroups(text []byte) ([]HAGroup, error) {
	f, err := ParseSections(text)
	if err != nil {
		return nil, err
	}
	out := make([]HAGroup, 0, len(f.Sections))
	for _, s := range f.Sections {
		g, err := groupFromSection(s)
		if err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, nil
}

func groupFromSection(s Section) (g HAGroup, err error) {
	g = HAGroup{ID: s.ID, Section: s}
	switch {
	case s.Type != "group":
		return HAGroup{}, invalidLine(s.Line, "type", "%q is not allowed: only group is", s.Type)
	case !configID.MatchString(s.ID):
		return HAGroup{}, invalidLine(s.Line, "group", "%q is no name of a group: use at least two letters, digits, '-' and '_', a letter first", s.ID)
	}
	if g.Nodes, err = s.ruleNodes("nodes"); err != nil {
		return HAGroup{}, err
	}
	if len(g.Nodes) == 0 {
		return HAGroup{}, s.invalid("nodes", "group %s names no node: list some, such as n1:2,n2", s.ID)
	}
	if g.Restricted, err = s.boolean("restricted", false); err != nil {
		return HAGroup{}, err
	}
	if g.NoFailback, err = s.boolean("nofailback", false); err != nil {
		return HAGroup{}, err
	}
	g.Comment, _ = s.Get("comment")
	return g, nil
}

// GroupsToRules converts groups as Proxmox VE 9 does: each group that has resources becomes the node-affinity rule
// ha-group-<id>, after those that are there (one of that name is replaced), its nofailback becomes the resources'
// failback, and the resources name no group any more. A resource of a group that does not exist only loses the name.
// The arguments stay as they are.
func GroupsToRules(groups []HAGroup, rules []HARule, resources []HAResource) ([]HARule, []HAResource) {
	rules, resources = slices.Clone(rules), slices.Clone(resources)
	members := make(map[string][]string)
	for i, r := range resources {
		g := slices.IndexFunc(groups, func(g HAGroup) bool { return g.ID == r.Group })
		if r.Group == "" {
			continue
		}
		if g >= 0 {
			members[r.Group] = append(members[r.Group], r.SID())
			resources[i].Failback = !groups[g].NoFailback
		}
		resources[i].Group = ""
	}
	for _, g := range groups {
		sids := members[g.ID]
		if len(sids) == 0 {
			continue
		}
		slices.Sort(sids)
		rule := HARule{Type: NodeAffinity, ID: "ha-group-" + g.ID, Resources: sids, Nodes: g.Nodes, Strict: g.Restricted, Comment: g.Comment}
		if rule.Comment == "" {
			rule.Comment = "Generated from HA group '" + g.ID + "'."
		}
		rules = slices.DeleteFunc(rules, func(r HARule) bool { return r.ID == rule.ID })
		rules = append(rules, rule)
	}
	return rules, resources
}
