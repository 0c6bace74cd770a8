package client

import (
	"context"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/api"
)

// HAResources lists what is protected, as it is configured.
func (c *Client) HAResources(ctx context.Context) ([]api.HAResource, error) {
	var rows []map[string]any
	if err := c.get(ctx, "/cluster/ha/resources", nil, &rows); err != nil {
		return nil, err
	}
	out := make([]api.HAResource, 0, len(rows))
	for _, row := range rows {
		v := plain(row)
		r := api.HAResource{SID: v["sid"], State: v["state"], Comment: v["comment"], Digest: v["digest"]}
		r.MaxRestart, r.MaxRelocate = orDefault(v["max_restart"]), orDefault(v["max_relocate"])
		r.Failback, r.Rebalance = v["failback"] != "0", v["auto-rebalance"] != "0"
		r.Values = rest(v, "sid", "state", "comment", "digest", "type")
		out = append(out, r)
	}
	return out, nil
}

// orDefault is a limit as it is in effect: 1 unless the file says otherwise.
func orDefault(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 1
	}
	return n
}

// plain prints a row's values as they stand in the file.
func plain(row map[string]any) map[string]string {
	out := map[string]string{}
	for k, v := range row {
		switch v := v.(type) {
		case string:
			out[k] = v
		case float64:
			out[k] = strconv.FormatFloat(v, 'f', -1, 64)
		}
	}
	return out
}

// rest is v without the keys named; nil if nothing is left.
func rest(v map[string]string, not ...string) map[string]string {
	for _, k := range not {
		delete(v, k)
	}
	if len(v) == 0 {
		return nil
	}
	return v
}

// HAAdd protects a guest: SID, State, Comment and Values count.
func (c *Client) HAAdd(ctx context.Context, r api.HAResource) error {
	v := values("sid", r.SID, "state", r.State, "comment", r.Comment)
	for key, value := range r.Values {
		v.Set(key, value)
	}
	return c.post(ctx, "/cluster/ha/resources", v, nil)
}

// edited are the parameters of a change.
func edited(e api.Edit) map[string][]string {
	v := values("delete", strings.Join(e.Delete, ","), "digest", e.Digest)
	for key, value := range e.Set {
		v.Set(key, value)
	}
	return v
}

// HASet changes a protected guest's settings.
func (c *Client) HASet(ctx context.Context, sid string, e api.Edit) error {
	return c.put(ctx, "/cluster/ha/resources/"+esc(sid), edited(e), nil)
}

// HARemove takes a guest out of high availability; it goes on running. Rules forget it, unless keepRules.
func (c *Client) HARemove(ctx context.Context, sid string, keepRules bool) error {
	v := values()
	if keepRules {
		v.Set("purge", "0")
	}
	return c.del(ctx, "/cluster/ha/resources/"+esc(sid), v, nil)
}

// HAStatus is the view of the manager.
func (c *Client) HAStatus(ctx context.Context) (st api.HAStatus, err error) {
	return st, c.get(ctx, "/sauh/ha/status", nil, &st)
}

// AcknowledgeAlarms ends a node's alarms about a guest.
func (c *Client) AcknowledgeAlarms(ctx context.Context, node, sid string) error {
	return c.del(ctx, "/sauh/nodes/"+esc(node)+"/ha/alarms/"+esc(sid), nil, nil)
}

// HARow is one row of the status in Proxmox VE's form.
type HARow struct {
	ID     string `json:"id"`
	Type   string `json:"type"`
	Status string `json:"status"`
}

// HACurrent is the status in Proxmox VE's form.
func (c *Client) HACurrent(ctx context.Context) (rows []HARow, err error) {
	return rows, c.get(ctx, "/cluster/ha/status/current", nil, &rows)
}

// HAManagerStatus is what the manager and each node say, in Proxmox VE's form.
func (c *Client) HAManagerStatus(ctx context.Context) (st map[string]any, err error) {
	return st, c.get(ctx, "/cluster/ha/status/manager_status", nil, &st)
}

// HAExplain says why a guest is where and as it is.
func (c *Client) HAExplain(ctx context.Context, sid string) (e api.HAExplanation, err error) {
	return e, c.get(ctx, "/sauh/ha/explain/"+esc(sid), nil, &e)
}

// HAWhatIf plans the loss of nodes.
func (c *Client) HAWhatIf(ctx context.Context, nodes []string) (p api.HAPlan, err error) {
	return p, c.get(ctx, "/sauh/ha/what-if", values("nodes", strings.Join(nodes, ",")), &p)
}

// HAMove asks that a guest go to node; kind is migrate or relocate. An answer with Blocking was not carried out.
func (c *Client) HAMove(ctx context.Context, sid, kind, node string) (m api.HAMove, err error) {
	var answer struct {
		SID      string           `json:"sid"`
		Node     string           `json:"requested-node"`
		With     []string         `json:"comigrated-resources"`
		Blocking []api.HABlocking `json:"blocking-resources"`
	}
	err = c.post(ctx, "/cluster/ha/resources/"+esc(sid)+"/"+kind, values("node", node), &answer)
	return api.HAMove{SID: answer.SID, Node: answer.Node, With: answer.With, Blocking: answer.Blocking}, err
}

// wholeSeconds prints a time; 0 is "0".
func wholeSeconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }

// HAStop asks that a guest be stopped, hard after timeout.
func (c *Client) HAStop(ctx context.Context, sid string, timeout time.Duration) error {
	return c.post(ctx, "/sauh/ha/resources/"+esc(sid)+"/stop", values("timeout", wholeSeconds(timeout)), nil)
}

// HAMaintenance has a node's guests leave, or come back.
func (c *Client) HAMaintenance(ctx context.Context, node string, on bool) error {
	path := "/sauh/ha/nodes/" + esc(node) + "/maintenance"
	if on {
		return c.put(ctx, path, nil, nil)
	}
	return c.del(ctx, path, nil, nil)
}

// HADisarm takes the cluster or a node out of HA.
func (c *Client) HADisarm(ctx context.Context, d api.HADisarm) error {
	v := values("resource-mode", d.Mode)
	if d.For > 0 {
		v.Set("for", wholeSeconds(d.For))
	}
	if d.Node != "" {
		return c.put(ctx, "/sauh/ha/nodes/"+esc(d.Node)+"/disarm", v, nil)
	}
	return c.post(ctx, "/cluster/ha/status/disarm-ha", v, nil)
}

// HAArm ends that; node "" is the cluster.
func (c *Client) HAArm(ctx context.Context, node string) error {
	if node != "" {
		return c.del(ctx, "/sauh/ha/nodes/"+esc(node)+"/disarm", nil, nil)
	}
	return c.post(ctx, "/cluster/ha/status/arm-ha", nil, nil)
}

// NodeLabel says in which rack and site a node stands; nil leaves it.
func (c *Client) NodeLabel(ctx context.Context, node string, rack, site *string) error {
	v := values()
	if rack != nil {
		v.Set("rack", *rack)
	}
	if site != nil {
		v.Set("site", *site)
	}
	return c.put(ctx, "/sauh/ha/nodes/"+esc(node)+"/labels", v, nil)
}

// NodeCommand ends a node in order; command is reboot or shutdown.
func (c *Client) NodeCommand(ctx context.Context, node, command string) error {
	return c.post(ctx, "/nodes/"+esc(node)+"/status", values("command", command), nil)
}

// Drain ends the agent's node in order and returns when its machine may go down, which the caller sees to.
func (c *Client) Drain(ctx context.Context, reboot bool) error {
	return c.post(ctx, "/sauh/drain", values("reboot", b01(reboot)), nil)
}
