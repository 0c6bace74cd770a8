package api

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

func (s *server) haStatusRoutes() []route {
	return []route{
		here("GET /cluster/ha/status", index("current", "manager_status", "arm-ha", "disarm-ha")),
		here("GET /cluster/ha/status/current", s.haCurrent),
		here("GET /cluster/ha/status/manager_status", s.haManagerStatus),
		here("GET /sauh/ha/status", func(ctx context.Context, _ *call) (any, error) { return s.haStatus(ctx) }),
		onNode("GET /sauh/nodes/{node}/ha/alarms", func(ctx context.Context, _ *call) (any, error) { return orEmpty(s.b.Alarms.Alarms(ctx)) }),
		onNode("DELETE /sauh/nodes/{node}/ha/alarms/{sid}", s.acknowledge),
		here("GET /sauh/ha/explain/{sid}", s.haExplain),
		here("GET /sauh/ha/what-if", s.haWhatIf, required(text("nodes"))),
	}
}

// haStatus is the backend's with the alarms of all nodes that answer.
func (s *server) haStatus(ctx context.Context) (HAStatus, error) {
	st, err := s.b.HA.HAStatus(ctx)
	if err != nil {
		return st, err
	}
	cluster, err := s.b.Cluster.Status(ctx)
	if err != nil {
		return st, err
	}
	byNode := askAll(ctx, s, answering(cluster), func(node string) string { return "/sauh/nodes/" + node + "/ha/alarms" }, s.b.Alarms.Alarms)
	st.Alarms = mergeAlarms(byNode)
	return st, nil
}

// mergeAlarms has one alarm a guest, that of the first node by name, with all that saw it.
func mergeAlarms(byNode map[string][]HAAlarm) []HAAlarm {
	out := []HAAlarm{}
	for _, node := range slices.Sorted(maps.Keys(byNode)) {
		for _, a := range byNode[node] {
			i := slices.IndexFunc(out, func(o HAAlarm) bool { return o.SID == a.SID })
			if i < 0 {
				a.SeenBy, i = nil, len(out)
				out = append(out, a)
			}
			if !slices.Contains(out[i].SeenBy, node) {
				out[i].SeenBy = append(out[i].SeenBy, node)
			}
		}
	}
	slices.SortFunc(out, func(a, b HAAlarm) int { return strings.Compare(a.SID, b.SID) })
	return out
}

func (s *server) acknowledge(ctx context.Context, c *call) (any, error) {
	sid, err := parseSID(c.args["sid"])
	if err != nil {
		return nil, err
	}
	return nil, s.b.Alarms.AcknowledgeAlarms(ctx, sid)
}

// haCurrent has the order of Proxmox VE: quorum, master, one lrm a node, the services. What Proxmox VE has no row for, the alarms,
// comes last: clients take the first rows for what they know.
func (s *server) haCurrent(ctx context.Context, _ *call) (any, error) {
	st, err := s.haStatus(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	out := append([]obj{s.quorumRow(st)}, masterRow(st, now)...)
	out = append(out, fencingRow(st))
	for _, n := range st.Nodes {
		heard := now.Add(-time.Duration(n.SilenceMS) * time.Millisecond)
		out = append(out, obj{
			"id": "lrm:" + n.Node, "type": "lrm", "node": n.Node, "timestamp": heard.Unix(),
			"status": fmt.Sprintf("%s (%s, %s)", n.Node, lrmState(n, st.Disarm), heard.Format(time.ANSIC)),
		})
	}
	for _, r := range st.Services {
		out = append(out, serviceRow(r))
	}
	for _, a := range st.Alarms {
		out = append(out, obj{"id": "alarm:" + a.SID, "type": "alarm", "sid": a.SID, "node": "", "timestamp": a.Unix, "status": a.Text})
	}
	return out, nil
}

func (s *server) quorumRow(st HAStatus) obj {
	o := obj{"id": "quorum", "type": "quorum", "node": s.localName(""), "quorate": b01(st.Quorate), "status": "OK"}
	if !st.Quorate {
		o["status"] = "No quorum on node '" + s.localName("") + "'!"
	}
	return o
}

func masterRow(st HAStatus, now time.Time) []obj {
	if st.Manager == "" {
		return nil
	}
	return []obj{{
		"id": "master", "type": "master", "node": st.Manager, "timestamp": now.Unix(),
		"status": fmt.Sprintf("%s (active, %s)", st.Manager, now.Format(time.ANSIC)),
	}}
}

// fencingRow says whether the cluster is armed.
func fencingRow(st HAStatus) obj {
	o := obj{"id": "fencing", "type": "fencing", "node": st.Manager, "armed-state": "armed", "status": "armed"}
	if st.Disarm != "" {
		o["armed-state"], o["resource_mode"], o["status"] = "disarmed", st.Disarm, "disarmed (resource mode: "+st.Disarm+")"
	}
	return o
}

func serviceRow(r HAResource) obj {
	return obj{
		"id": "service:" + r.SID, "type": "service", "sid": r.SID, "node": r.Node, "state": r.Status, "request_state": r.State,
		"crm_state": r.Status, "status": fmt.Sprintf("%s (%s, %s)", r.SID, r.Node, r.Status),
		"max_restart": r.MaxRestart, "max_relocate": r.MaxRelocate, "failback": b01(r.Failback), "auto-rebalance": b01(r.Rebalance),
	}
}

// lrmState says a node's state in the words of Proxmox VE.
func lrmState(n HANodeStatus, disarm string) string {
	switch {
	case n.State == "suspect":
		return "old timestamp - dead?"
	case n.State == "fenced":
		return "fenced"
	case n.State != "online":
		return "idle"
	case n.Mode == "maintenance":
		return "maintenance mode"
	case n.Mode == "shutdown" || n.Mode == "reboot":
		return "active, " + n.Mode
	case disarm != "" || n.Disarm != "":
		return "disarmed"
	}
	return "active"
}

func nodeWord(n HANodeStatus) string {
	switch {
	case n.State == "online" && n.Mode == "maintenance":
		return "maintenance"
	case n.State == "online":
		return "online"
	case n.State == "fenced":
		return "fence"
	case n.State == "left":
		return "gone"
	}
	return "unknown"
}

func (s *server) haManagerStatus(ctx context.Context, _ *call) (any, error) {
	st, err := s.b.HA.HAStatus(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	nodes, services, lrms := obj{}, obj{}, obj{}
	for _, n := range st.Nodes {
		nodes[n.Node] = nodeWord(n)
		mode := "active"
		if n.Mode != "" {
			mode = n.Mode
		}
		lrms[n.Node] = obj{
			"mode": mode, "state": lrmState(n, st.Disarm), "timestamp": now.Add(-time.Duration(n.SilenceMS) * time.Millisecond).Unix(),
		}
	}
	for _, r := range st.Services {
		o := obj{"node": r.Node, "state": r.Status}
		if r.Target != "" {
			o["target"] = r.Target
		}
		services[r.SID] = o
	}
	return obj{
		"quorum":     obj{"node": s.localName(""), "quorate": b01(st.Quorate)},
		"lrm_status": lrms,
		"manager_status": obj{
			"master_node": st.Manager, "node_status": nodes, "service_status": services, "timestamp": now.Unix(),
		},
	}, nil
}

func (s *server) haExplain(ctx context.Context, c *call) (any, error) {
	sid, err := parseSID(c.args["sid"])
	if err != nil {
		return nil, err
	}
	e, err := s.b.HA.HAExplain(ctx, sid)
	if err != nil {
		return nil, resourceError(sid, err)
	}
	return e, nil
}

func (s *server) haWhatIf(ctx context.Context, c *call) (any, error) {
	return s.b.HA.HAWhatIf(ctx, words(c.args["nodes"]))
}
