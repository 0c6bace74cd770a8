package client

import (
	"context"
	"strconv"
	"time"

	"sauh.dev/sauh/internal/api"
)

// LocalNode stands for the node whose agent is asked, where a node is named.
const LocalNode = "localhost"

// Version is what the agent says of itself.
type Version struct {
	Release string `json:"release"` // level of the Proxmox VE API
	Version string `json:"version"`
	Commit  string `json:"repoid"`
	Sauh    string `json:"sauh"`
	Go      string `json:"go"`
}

// Version asks the agent for its version.
func (c *Client) Version(ctx context.Context) (v Version, err error) {
	return v, c.get(ctx, "/version", nil, &v)
}

// ClusterStatus says who is a member, who is online, and whether there is a quorum.
func (c *Client) ClusterStatus(ctx context.Context) (st api.ClusterStatus, err error) {
	return st, c.get(ctx, "/sauh/cluster/status", nil, &st)
}

// CreateCluster makes a cluster of the agent's node. It returns when the cluster is there.
func (c *Client) CreateCluster(ctx context.Context, r api.CreateClusterRequest) error {
	v := values("clustername", r.Name, "nodename", r.NodeName, "link0", r.Mgmt, "link1", r.Cluster, "ha-profile", r.HAProfile)
	return c.post(ctx, "/cluster/config", v, nil)
}

// ClusterKey makes a join key that can be used once, until valid is over.
func (c *Client) ClusterKey(ctx context.Context, valid time.Duration) (k api.JoinKey, err error) {
	sec := strconv.FormatInt(int64(valid/time.Second), 10)
	return k, c.post(ctx, "/sauh/cluster/key", values("valid", sec), &k)
}

// Join makes the agent's node a member of the cluster that made key; nodeName "" takes the configured one.
func (c *Client) Join(ctx context.Context, key, nodeName string) error {
	return c.post(ctx, "/sauh/cluster/join", values("key", key, "nodename", nodeName), nil)
}

// Leave takes the agent's node out of the cluster. The node goes on leaving when ctx ends.
func (c *Client) Leave(ctx context.Context) error {
	return c.post(ctx, "/sauh/cluster/leave", nil, nil)
}

// DestroyCluster ends the cluster name, of which the agent's node is the last one.
func (c *Client) DestroyCluster(ctx context.Context, name string) error {
	return c.post(ctx, "/sauh/cluster/destroy", values("clustername", name), nil)
}

// RemoveNode takes another node, which must be off, out of the cluster.
func (c *Client) RemoveNode(ctx context.Context, node string) error {
	return c.del(ctx, "/cluster/config/nodes/"+esc(node), nil, nil)
}

// Node is one row of the list of nodes. A node that does not answer has only name and status.
type Node struct {
	Node      string  `json:"node"`
	Status    string  `json:"status"` // "online" or "offline"
	CPU       float64 `json:"cpu"`    // fraction of all cores
	CPUs      int     `json:"maxcpu"`
	Memory    int64   `json:"mem"` // bytes
	MaxMemory int64   `json:"maxmem"`
	UptimeSec int64   `json:"uptime"`
}

// Nodes lists the members with their load.
func (c *Client) Nodes(ctx context.Context) (list []Node, err error) {
	return list, c.get(ctx, "/nodes", nil, &list)
}

// NodeInfo is what a node measures of itself.
func (c *Client) NodeInfo(ctx context.Context, node string) (in api.NodeInfo, err error) {
	return in, c.get(ctx, "/sauh/nodes/"+esc(node)+"/info", nil, &in)
}
