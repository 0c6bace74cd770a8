package api

import (
	"context"
	"errors"
	"slices"

	"sauh.dev/sauh/internal/core/model"
)

func (s *server) haRuleRoutes() []route {
	kinds := oneOf("type", "node-affinity", "resource-affinity")
	keys := []param{
		oneOf("affinity", "positive", "negative"), text("comment"), flag("disable"), text("nodes"), flag("strict"),
		oneOf("domain", "node", "rack", "site"), integer("weight", 1, 1000),
	}
	return []route{
		here("GET /cluster/ha/rules", s.ruleList, kinds, text("resource")),
		here("POST /cluster/ha/rules", s.ruleAdd, append([]param{required(text("rule")), required(kinds), required(text("resources"))}, keys...)...),
		here("GET /cluster/ha/rules/{rule}", s.ruleGet),
		here("PUT /cluster/ha/rules/{rule}", s.ruleSet, append([]param{kinds, text("resources"), text("delete"), text("digest")}, keys...)...),
		here("DELETE /cluster/ha/rules/{rule}", s.ruleRemove),
		here("GET /cluster/ha/groups", s.groupList),
		here("POST /cluster/ha/groups", s.groupRefused, groupParams("group", "comment", "nodes", "nofailback", "restricted", "type")...),
		here("GET /cluster/ha/groups/{group}", s.groupGet),
		here("PUT /cluster/ha/groups/{group}", s.groupRefused, groupParams("comment", "nodes", "nofailback", "restricted", "delete", "digest")...),
		here("DELETE /cluster/ha/groups/{group}", s.groupRefused),
	}
}

func groupParams(names ...string) []param {
	var out []param
	for _, n := range names {
		out = append(out, text(n))
	}
	return out
}

func ruleKeys() []string {
	return []string{"affinity", "comment", "disable", "nodes", "strict", "domain", "weight", "resources"}
}

func noRule(id string) error { return notFoundf("no such ha rule '%s'", id) }

func ruleError(id string, err error) error {
	if errors.Is(err, model.ErrNotFound) {
		return noRule(id)
	}
	return err
}

// ruleRow is a rule; whether it is strict is always said, because the two types differ in what nothing means.
func ruleRow(all Sections, i int) obj {
	r := all.List[i]
	o := typed(r.Values, "strict", "disable", "weight")
	o["rule"], o["type"], o["order"], o["digest"] = r.ID, r.Type, i+1, all.Digest
	if why := all.Dropped[r.ID]; why != "" {
		o["errors"] = obj{"resources": why}
	}
	if _, ok := o["strict"]; !ok {
		o["strict"] = b01(r.Type == "resource-affinity")
	}
	for _, list := range []string{"resources", "nodes"} {
		if v, ok := r.Values[list]; ok {
			o[list] = joinWords(v)
		}
	}
	return o
}

func joinWords(list string) string {
	out := ""
	for _, w := range words(list) {
		if out != "" {
			out += ","
		}
		out += w
	}
	return out
}

func (s *server) ruleList(ctx context.Context, c *call) (any, error) {
	all, err := s.b.Rules.Rules(ctx)
	if err != nil {
		return nil, err
	}
	out := []obj{}
	for i, r := range all.List {
		about := !c.args.has("resource") || slices.Contains(words(r.Values["resources"]), c.args["resource"])
		if about && (c.args["type"] == "" || c.args["type"] == r.Type) {
			out = append(out, ruleRow(all, i))
		}
	}
	return out, nil
}

func (s *server) ruleGet(ctx context.Context, c *call) (any, error) {
	all, err := s.b.Rules.Rules(ctx)
	if err != nil {
		return nil, err
	}
	for i, r := range all.List {
		if r.ID == c.args["rule"] {
			return ruleRow(all, i), nil
		}
	}
	return nil, noRule(c.args["rule"])
}

func (s *server) ruleAdd(ctx context.Context, c *call) (any, error) {
	id := c.args["rule"]
	err := s.b.Rules.AddRule(ctx, Section{Type: c.args["type"], ID: id, Values: settings(c.args, "rule", "type")})
	if errors.Is(err, model.ErrExists) {
		return nil, existsf("HA rule '%s' already defined", id)
	}
	return nil, err
}

func (s *server) ruleSet(ctx context.Context, c *call) (any, error) {
	id := c.args["rule"]
	if c.args.has("type") {
		all, err := s.b.Rules.Rules(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range all.List {
			if r.ID == id && r.Type != c.args["type"] {
				return nil, invalidParam("type", "types does not match: '%s' is a %s rule", id, r.Type)
			}
		}
	}
	e, err := edit(c.args, ruleKeys(), "rule", "type")
	if err != nil {
		return nil, err
	}
	return nil, ruleError(id, s.b.Rules.SetRule(ctx, id, e))
}

func (s *server) ruleRemove(ctx context.Context, c *call) (any, error) {
	return nil, ruleError(c.args["rule"], s.b.Rules.RemoveRule(ctx, c.args["rule"]))
}

func groupRow(g Section, digest string) obj {
	o := typed(g.Values, "restricted", "nofailback")
	o["group"], o["type"], o["digest"] = g.ID, "group", digest
	return o
}

func (s *server) groupList(ctx context.Context, _ *call) (any, error) {
	all, err := s.b.Rules.Groups(ctx)
	if err != nil {
		return nil, err
	}
	out := []obj{}
	for _, g := range all.List {
		out = append(out, groupRow(g, all.Digest))
	}
	return out, nil
}

func (s *server) groupGet(ctx context.Context, c *call) (any, error) {
	all, err := s.b.Rules.Groups(ctx)
	if err != nil {
		return nil, err
	}
	for _, g := range all.List {
		if g.ID == c.args["group"] {
			return groupRow(g, all.Digest), nil
		}
	}
	return nil, notFoundf("no such ha group '%s'", c.args["group"])
}

func (s *server) groupRefused(context.Context, *call) (any, error) {
	return nil, groupsAreRules("group")
}
