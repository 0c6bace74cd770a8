package api

import (
	"context"
	"net"
	"sort"
	"strconv"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Level is the level of the Proxmox VE API that this server speaks. Clients switch
// features by it, so it is not Sauh's own version, which stands beside it.
const (
	LevelRelease = "9.1"
	LevelVersion = "9.1.4"
)

// obj is a JSON object in the making.
type obj = map[string]any

func (s *server) clusterRoutes() []route {
	return []route{
		here("GET /version", s.version),
		here("GET /cluster/status", s.clusterStatus),
		here("POST /cluster/config", s.clusterCreate, required(text("clustername")), text("nodename"), text("link0"), text("link1"), text("ha-profile")),
		here("GET /cluster/config/nodes", s.clusterConfigNodes),
		here("DELETE /cluster/config/nodes/{node}", s.clusterRemove),
		s.ofMember(here("GET /cluster/resources", s.resources, oneOf("type", "vm", "storage", "node", "sdn"))),
		s.ofMember(here("GET /cluster/nextid", s.nextID, vmidParam())),
		here("GET /sauh/cluster/status", func(ctx context.Context, _ *call) (any, error) { return s.b.Cluster.Status(ctx) }),
		here("POST /sauh/cluster/key", s.clusterKey, integer("valid", 1, int64(maxKeyValid/time.Second))),
		here("POST /sauh/cluster/join", s.clusterJoin, required(text("key")), text("nodename")),
		always(here("POST /sauh/cluster/leave", func(ctx context.Context, _ *call) (any, error) { return nil, s.b.Cluster.Leave(ctx, "") })),
		always(here("POST /sauh/cluster/destroy", func(ctx context.Context, c *call) (any, error) {
			return nil, s.b.Cluster.Leave(ctx, c.args["clustername"])
		}, required(text("clustername")))),
	}
}

// A join key lives an hour if nobody says otherwise, and a week at most: it is a secret that gets forgotten in terminals.
const (
	defaultKeyValid = time.Hour
	maxKeyValid     = 7 * 24 * time.Hour
)

func (s *server) version(context.Context, *call) (any, error) {
	v := s.b.Cluster.Version()
	return obj{"release": LevelRelease, "version": LevelVersion, "repoid": repoID(v.Commit), "sauh": v.Version, "go": v.Go}, nil
}

// repoID is the commit in the form of Proxmox VE's repoid: hexadecimal, short.
func repoID(commit string) string {
	id := strings.TrimLeft(commit, " ")
	if len(id) > 16 {
		id = id[:16]
	}
	if id == "" || strings.Trim(id, "0123456789abcdef") != "" {
		return "00000000"
	}
	return id
}

func b01(b bool) int {
	if b {
		return 1
	}
	return 0
}

// clusterStatus has the cluster first, because clients take entry 0 for it.
func (s *server) clusterStatus(ctx context.Context, _ *call) (any, error) {
	st, err := s.b.Cluster.Status(ctx)
	if err != nil {
		return nil, err
	}
	out := []obj{{
		"type": "cluster", "id": "cluster", "name": st.Name, "nodes": len(st.Nodes),
		"quorate": b01(st.Quorate), "version": st.ConfigVersion,
	}}
	for _, n := range st.Nodes {
		out = append(out, obj{
			"type": "node", "id": "node/" + n.Name, "name": n.Name, "nodeid": n.ID, "ip": n.Mgmt,
			"online": b01(n.Online), "local": b01(n.Name == st.Local), "level": "",
		})
	}
	return out, nil
}

func (s *server) clusterCreate(ctx context.Context, c *call) (any, error) {
	mgmt, err := linkAddress(c.args, "link0")
	if err != nil {
		return nil, err
	}
	cluster, err := linkAddress(c.args, "link1")
	if err != nil {
		return nil, err
	}
	return nil, s.b.Cluster.Create(ctx, CreateClusterRequest{
		Name: c.args["clustername"], NodeName: c.args["nodename"], Mgmt: mgmt, Cluster: cluster, HAProfile: c.args["ha-profile"],
	})
}

// linkAddress reads "10.0.0.1" or "address=10.0.0.1"; the rest of the property string
// concerns corosync, which there is none of.
func linkAddress(a args, name string) (string, error) {
	if !a.has(name) {
		return "", nil
	}
	addr := ""
	for _, part := range strings.Split(a[name], ",") {
		key, value, found := strings.Cut(part, "=")
		switch {
		case !found:
			addr = key
		case key == "address":
			addr = value
		default:
			return "", invalidParam(name, "'%s' is not known here: give the address alone", key)
		}
	}
	if net.ParseIP(addr) == nil {
		return "", invalidParam(name, "'%s' is not an IP address", addr)
	}
	return addr, nil
}

func (s *server) clusterConfigNodes(ctx context.Context, _ *call) (any, error) {
	nodes, err := s.b.Cluster.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	out := []obj{}
	for _, n := range nodes {
		out = append(out, obj{
			"node": n.Name, "name": n.Name, "nodeid": strconv.Itoa(n.ID), "quorum_votes": strconv.Itoa(n.Votes),
			"ring0_addr": n.Mgmt, "ring1_addr": n.Cluster,
		})
	}
	return out, nil
}

func (s *server) clusterRemove(ctx context.Context, c *call) (any, error) {
	return nil, s.b.Cluster.Remove(ctx, c.args["node"])
}

func (s *server) clusterKey(ctx context.Context, c *call) (any, error) {
	valid := time.Duration(c.args.int("valid", int64(defaultKeyValid/time.Second))) * time.Second
	return s.b.Cluster.Key(ctx, valid)
}

func (s *server) clusterJoin(ctx context.Context, c *call) (any, error) {
	return nil, s.b.Cluster.Join(ctx, c.args["key"], c.args["nodename"])
}

// nextID prints a string although the schema says integer: so does Proxmox VE, and clients decode it as such.
func (s *server) nextID(ctx context.Context, c *call) (any, error) {
	if !c.args.has("vmid") {
		id, err := s.b.Guests.NextID(ctx)
		return id.String(), err
	}
	id := c.args.vmid()
	if _, err := s.b.Guests.Owner(ctx, id); err == nil {
		return nil, invalidParam("vmid", "VM %d already exists", id)
	}
	return id.String(), nil
}

func (s *server) resources(ctx context.Context, c *call) (any, error) {
	want := c.args["type"]
	out := []obj{}
	if want == "" || want == "vm" {
		guests, err := s.b.Guests.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, g := range guests {
			out = append(out, guestResource(g))
		}
	}
	if want != "" && want != "node" && want != "storage" {
		return out, nil
	}
	st, err := s.b.Cluster.Status(ctx)
	if err != nil {
		return nil, err
	}
	if want != "storage" {
		out = append(out, s.nodeList(ctx, st)...)
	}
	if want != "node" {
		out = append(out, s.storageResources(ctx, st)...)
	}
	return out, nil
}

func guestResource(g model.Guest) obj {
	o := guestRow(g)
	o["id"] = "qemu/" + g.VMID.String()
	o["type"] = "qemu"
	o["node"] = g.Node
	o["maxcpu"] = g.CPUs
	o["template"] = 0
	delete(o, "cpus")
	delete(o, "pid")
	delete(o, "qmpstatus")
	return o
}

// answering are the nodes that are worth asking: those online, and this one, which needs no network.
func answering(st ClusterStatus) []string {
	var names []string
	for _, n := range st.Nodes {
		if n.Online || n.Name == st.Local {
			names = append(names, n.Name)
		}
	}
	return names
}

func (s *server) storageResources(ctx context.Context, st ClusterStatus) []obj {
	lists := askAll(ctx, s, answering(st), func(node string) string { return "/sauh/nodes/" + node + "/storage" },
		s.b.Storages.ListStorages)
	out := []obj{}
	for node, list := range lists {
		for _, si := range list {
			o := obj{
				"id": "storage/" + node + "/" + si.Storage, "type": "storage", "storage": si.Storage, "node": node,
				"plugintype": si.Type, "content": si.Content, "shared": b01(si.Shared),
				"disk": si.Used, "maxdisk": si.Total, "status": "available",
			}
			if !si.Active {
				o["status"] = "unknown"
			}
			out = append(out, o)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i]["id"].(string) < out[j]["id"].(string) })
	return out
}

func (s *server) nodeRoutes() []route {
	return []route{
		here("GET /nodes", s.nodes),
		onNode("GET /nodes/{node}/status", s.nodeStatus),
		onNode("GET /sauh/nodes/{node}/info", func(ctx context.Context, _ *call) (any, error) { return s.b.Cluster.Info(ctx) }),
	}
}

func (s *server) nodes(ctx context.Context, _ *call) (any, error) {
	st, err := s.b.Cluster.Status(ctx)
	if err != nil {
		return nil, err
	}
	return s.nodeList(ctx, st), nil
}

// nodeList has one row a node; what only the node itself can measure is missing for one that does not answer.
func (s *server) nodeList(ctx context.Context, st ClusterStatus) []obj {
	infos := askAll(ctx, s, answering(st), func(node string) string { return "/sauh/nodes/" + node + "/info" }, s.b.Cluster.Info)
	out := []obj{}
	for _, n := range st.Nodes {
		o := obj{"node": n.Name, "id": "node/" + n.Name, "type": "node", "status": "offline", "level": ""}
		if n.Online {
			o["status"] = "online"
		}
		if in, ok := infos[n.Name]; ok {
			o["cpu"], o["maxcpu"], o["uptime"] = in.CPU, in.CPUs, in.UptimeSec
			o["mem"], o["maxmem"] = in.MemoryUsed, in.MemoryTotal
		}
		out = append(out, o)
	}
	return out
}

func (s *server) nodeStatus(ctx context.Context, _ *call) (any, error) {
	in, err := s.b.Cluster.Info(ctx)
	if err != nil {
		return nil, err
	}
	return obj{
		"cpu": in.CPU, "uptime": in.UptimeSec,
		"cpuinfo":    obj{"cpus": in.CPUs},
		"memory":     obj{"total": in.MemoryTotal, "used": in.MemoryUsed, "free": in.MemoryTotal - in.MemoryUsed},
		"pveversion": "sauh/" + in.Version,
	}, nil
}
