package agent

import (
	"context"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
	"sauh.dev/sauh/internal/store"
)

// haRules are ha/rules.cfg, and ha/groups.cfg to read. It implements api.HARules.
type haRules struct {
	st     store.Store
	mirror *mirror.Mirror
	roster roster
	// known are the HA resources.
	known func() ([]pveconf.HAResource, error)
	// view says which rules have no effect.
	view func() ha.View
}

// Rules implements api.HARules.
func (h *haRules) Rules(context.Context) (api.Sections, error) {
	all, digest, err := decodeKept(h.mirror.Snapshot(), haRulesKey, pveconf.ParseHARules)
	if err != nil {
		return api.Sections{}, err
	}
	sections := make([]pveconf.Section, len(all))
	for i, r := range all {
		sections[i] = r.Section
		if text := r.Comment; text != "" {
			sections[i] = sections[i].With("comment", text) // as it was written, not as it is stored
		}
	}
	out := apiSections(sections, digest)
	for _, d := range h.view().Rules.Dropped() {
		if out.Dropped == nil {
			out.Dropped = map[string]string{}
		}
		out.Dropped[d.Rule] = d.Reason
	}
	return out, nil
}

// Groups implements api.HARules.
func (h *haRules) Groups(context.Context) (api.Sections, error) {
	all, digest, err := decodeKept(h.mirror.Snapshot(), haGroupsKey, pveconf.ParseHAGroups)
	if err != nil {
		return api.Sections{}, err
	}
	sections := make([]pveconf.Section, len(all))
	for i, g := range all {
		sections[i] = g.Section
	}
	return apiSections(sections, digest), nil
}

func noRule(id string) error { return model.Errorf(model.ErrNotFound, "no such ha rule '%s'", id) }

// AddRule implements api.HARules.
func (h *haRules) AddRule(ctx context.Context, rule api.Section) error {
	return h.editRules(ctx, "add rule "+rule.ID, "", func(f *pveconf.SectionFile) error {
		if findSection(*f, "", rule.ID) >= 0 {
			return model.Errorf(model.ErrExists, "HA rule '%s' already defined: change it with `sauh ha rules set`", rule.ID)
		}
		s, err := h.ruleSection(pveconf.Section{Type: rule.Type, ID: rule.ID}, api.Edit{Set: rule.Values})
		f.Sections = append(f.Sections, s)
		return err
	})
}

// SetRule implements api.HARules.
func (h *haRules) SetRule(ctx context.Context, id string, e api.Edit) error {
	return h.editRules(ctx, "change rule "+id, e.Digest, func(f *pveconf.SectionFile) (err error) {
		i := findSection(*f, "", id)
		if i < 0 {
			return noRule(id)
		}
		f.Sections[i], err = h.ruleSection(f.Sections[i], e)
		return err
	})
}

// RemoveRule implements api.HARules.
func (h *haRules) RemoveRule(ctx context.Context, id string) error {
	return h.editRules(ctx, "remove rule "+id, "", func(f *pveconf.SectionFile) error {
		i := findSection(*f, "", id)
		if i < 0 {
			return noRule(id)
		}
		f.Sections = slices.Delete(f.Sections, i, i+1)
		return nil
	})
}

// ruleSection is s with the edit made. What the edit names must be there: a word that is misspelt would silently be a rule about nothing.
func (h *haRules) ruleSection(s pveconf.Section, e api.Edit) (pveconf.Section, error) {
	comment, commented := e.Set["comment"]
	if commented {
		e.Set = without(e.Set, "comment")
	}
	if e.Set["disable"] == "0" {
		e.Set = without(e.Set, "disable")
		s = s.Without("disable")
	}
	if err := apply(&s, e, pveconf.HARuleFromSection); err != nil {
		return s, err
	}
	r, err := pveconf.HARuleFromSection(s)
	if err != nil {
		return s, err
	}
	if commented {
		if s, err = s.WithComment(comment); err != nil {
			return s, err
		}
	}
	if _, named := e.Set["resources"]; named {
		if err := h.knownResources(r.Resources); err != nil {
			return s, err
		}
	}
	if _, named := e.Set["nodes"]; named {
		return s, h.knownNodes(r.Nodes)
	}
	return s, nil
}

func without(m map[string]string, key string) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		if k != key {
			out[k] = v
		}
	}
	return out
}

func (h *haRules) knownResources(named []string) error {
	all, err := h.known()
	if err != nil {
		return err
	}
	var missing []string
	for _, sid := range named {
		if !slices.ContainsFunc(all, func(r pveconf.HAResource) bool { return r.SID() == sid }) {
			missing = append(missing, sid)
		}
	}
	if len(missing) > 0 {
		return model.Invalidf("resources", "cannot use unmanaged resource(s) %s: add them with `sauh ha add` first", strings.Join(missing, ", "))
	}
	return nil
}

func (h *haRules) knownNodes(named []pveconf.RuleNode) error {
	for _, n := range named {
		if _, err := h.roster.node(n.Name); err != nil {
			return model.Invalidf("nodes", "%s", err)
		}
	}
	return nil
}

func (h *haRules) editRules(ctx context.Context, what, digest string, change func(*pveconf.SectionFile) error) error {
	return editSections(ctx, h.st, sectionEdit{what: what, key: haRulesKey, digest: digest, change: change, check: h.checkRules})
}

// checkRules refuses a contradiction that was not there before: one that came with a file from elsewhere must not keep anybody
// from mending it rule by rule.
func (h *haRules) checkRules(old, next []byte) error {
	after, err := h.conflicts(next)
	if err != nil || old == nil {
		return err
	}
	before, err := h.conflicts(old)
	if err != nil {
		return err
	}
	for _, c := range after {
		known := slices.ContainsFunc(before, func(o rules.Conflict) bool { return slices.Equal(o.Rules, c.Rules) && o.Reason == c.Reason })
		if known {
			continue
		}
		if len(c.Rules) == 1 {
			return model.Invalidf("rule", "rule %s cannot be: %s", c.Rules[0], strings.Replace(c.Reason, "rule "+c.Rules[0]+" ", "it ", 1))
		}
		return model.Invalidf("rule", "the rules %s contradict one another: %s; change or remove one of them", strings.Join(c.Rules, " and "), c.Reason)
	}
	return nil
}

// conflicts are the contradictions in the rules of a file, with those that the groups stand for.
func (h *haRules) conflicts(text []byte) ([]rules.Conflict, error) {
	all, err := pveconf.ParseHARules(text)
	if err != nil {
		return nil, err
	}
	s := h.mirror.Snapshot()
	groups, err := mirror.Decode(s, haGroupsKey, pveconf.ParseHAGroups)
	if err != nil {
		return nil, err
	}
	if len(groups.Value) > 0 {
		resources, err := h.known()
		if err != nil {
			return nil, err
		}
		all, _ = pveconf.GroupsToRules(groups.Value, all, resources)
	}
	return rules.Check(all, h.places()), nil
}

// places are the members and where they stand.
func (h *haRules) places() []rules.Node {
	var out []rules.Node
	for _, n := range h.roster.nodes() {
		out = append(out, rules.Node{Name: n.Name, Rack: n.Rack, Site: n.Site})
	}
	return out
}

// purgeRules takes a resource that is none any more out of the rules. A rule that is left without any goes, and so does one between
// resources that is left with one.
func (h *haRules) purgeRules(ctx context.Context, sid string) error {
	if _, there := h.mirror.Snapshot().Get(haRulesKey); !there {
		return nil
	}
	return h.editRules(ctx, "take "+sid+" out of the rules", "", func(f *pveconf.SectionFile) error {
		var left []pveconf.Section
		for _, s := range f.Sections {
			r, err := pveconf.HARuleFromSection(s)
			if err != nil {
				return err
			}
			rest := slices.DeleteFunc(slices.Clone(r.Resources), func(o string) bool { return o == sid })
			switch {
			case len(rest) == len(r.Resources):
				left = append(left, s)
			case len(rest) > 1 || len(rest) == 1 && r.Type == pveconf.NodeAffinity:
				left = append(left, s.With("resources", strings.Join(rest, ",")))
			}
		}
		f.Sections = left
		return nil
	})
}
