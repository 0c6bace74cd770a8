package client

import (
	"context"

	"sauh.dev/sauh/internal/api"
)

// Rules are those of ha/rules.cfg.
func (c *Client) Rules(ctx context.Context) (api.Sections, error) {
	var rows []map[string]any
	out := api.Sections{List: []api.Section{}}
	if err := c.get(ctx, "/cluster/ha/rules", nil, &rows); err != nil {
		return out, err
	}
	for _, row := range rows {
		v := plain(row)
		r := api.Section{Type: v["type"], ID: v["rule"]}
		out.Digest = v["digest"]
		r.Values = rest(v, "type", "rule", "digest", "order")
		out.List = append(out.List, r)
	}
	return out, nil
}

// HARuleRows are the rules as the API has them; typ and resource "" are all.
func (c *Client) HARuleRows(ctx context.Context, typ, resource string) (rows []map[string]any, err error) {
	return rows, c.get(ctx, "/cluster/ha/rules", values("type", typ, "resource", resource), &rows)
}

// HAGroups are those of ha/groups.cfg.
func (c *Client) HAGroups(ctx context.Context) ([]api.Section, error) {
	var rows []map[string]any
	if err := c.get(ctx, "/cluster/ha/groups", nil, &rows); err != nil {
		return nil, err
	}
	out := make([]api.Section, 0, len(rows))
	for _, row := range rows {
		v := plain(row)
		g := api.Section{Type: "group", ID: v["group"]}
		g.Values = rest(v, "type", "group", "digest")
		out = append(out, g)
	}
	return out, nil
}

// AddRule makes a rule.
func (c *Client) AddRule(ctx context.Context, r api.Section) error {
	v := values("rule", r.ID, "type", r.Type)
	for key, value := range r.Values {
		v.Set(key, value)
	}
	return c.post(ctx, "/cluster/ha/rules", v, nil)
}

// SetRule changes a rule.
func (c *Client) SetRule(ctx context.Context, id string, e api.Edit) error {
	return c.put(ctx, "/cluster/ha/rules/"+esc(id), edited(e), nil)
}

// RemoveRule deletes a rule.
func (c *Client) RemoveRule(ctx context.Context, id string) error {
	return c.del(ctx, "/cluster/ha/rules/"+esc(id), nil, nil)
}

// Options are the lines of datacenter.cfg; of those that the API takes apart the pairs come in the order of their keys.
func (c *Client) Options(ctx context.Context) (values map[string]string, err error) {
	var row map[string]any
	if err := c.get(ctx, "/cluster/options", nil, &row); err != nil {
		return nil, err
	}
	delete(row, "digest")
	out := plain(row)
	for key, v := range row {
		if parts, ok := v.(map[string]any); ok {
			out[key] = propString(plain(parts))
		}
	}
	return out, nil
}

// SetOptions changes them.
func (c *Client) SetOptions(ctx context.Context, e api.Edit) error {
	return c.put(ctx, "/cluster/options", edited(e), nil)
}
