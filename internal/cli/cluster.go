package cli

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
)

func (m *Main) clusterCommand() *cobra.Command {
	return group("cluster", "Make, join, show and leave a cluster", "  sauh cluster create demo\n  sauh cluster key\n  sauh cluster status",
		m.clusterCreate(), m.clusterKey(), m.clusterJoin(), m.clusterStatus(), m.clusterLeave(), m.clusterRemove(),
		m.clusterDestroy())
}

func (m *Main) clusterCreate() *cobra.Command {
	var r api.CreateClusterRequest
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a cluster of this one node",
		Example: "  sauh cluster create demo\n  sauh cluster create demo --node-name n1 --mgmt 10.10.1.1 --cluster 10.10.2.1", Args: takes("NAME"),
	}
	cmd.Flags().StringVar(&r.NodeName, "node-name", "", "this node's name (default: that of agent.json, or the host's)")
	cmd.Flags().StringVar(&r.Mgmt, "mgmt", "", "this node's address in the management network (default: that of agent.json)")
	cmd.Flags().StringVar(&r.Cluster, "cluster", "", "this node's address in the cluster network (default: that of agent.json)")
	cmd.Flags().StringVar(&r.HAProfile, "ha-profile", "",
		"times of the lease, for good: default (a lost node's guests move after 10.5 s) or fast (5.5 s; needs a network that is never away for 4)")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		r.Name = args[0]
		for flag, addr := range map[string]string{"mgmt": r.Mgmt, "cluster": r.Cluster} {
			if _, err := netip.ParseAddr(addr); addr != "" && err != nil {
				return usageError(cmd, "--%s takes an IP address, not %q", flag, addr)
			}
		}
		if err := c.CreateCluster(ctx, r); err != nil {
			return err
		}
		m.say("cluster %s created; 'sauh cluster key' prints a key with which another node joins", r.Name)
		return nil
	})
	return cmd
}

// maxValid is as long as the agent makes keys for.
const maxValid = 7 * 24 * time.Hour

func (m *Main) clusterKey() *cobra.Command {
	valid := time.Hour
	cmd := &cobra.Command{
		Use: "key", Short: "Print a key with which one node can join",
		Long:    "The key holds the fingerprint of the cluster's CA, the addresses of its nodes and a secret that works once.",
		Example: "  sauh cluster key --valid 10m", Args: takes(),
	}
	cmd.Flags().DurationVar(&valid, "valid", valid, "how long the key works")
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		if valid < time.Second {
			return usageError(cmd, "--valid is at least 1s, not %s", valid)
		}
		if valid > maxValid {
			return usageError(cmd, "--valid is at most 168h, which is seven days, not %s", valid)
		}
		k, err := c.ClusterKey(ctx, valid)
		if err != nil {
			return err
		}
		// The key alone goes to standard output, so that scripts need not cut it out.
		return out.print(k, func(w io.Writer) {
			fmt.Fprintln(w, k.Key)
			fmt.Fprintf(m.Stderr, "works once, until %s; on the new node: sauh cluster join KEY\n", m.clock(k.Expires))
		})
	})
	return cmd
}

func (m *Main) clusterJoin() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "join KEY", Short: "Make this node a member of the cluster that printed KEY",
		Example: "  sauh cluster join sauh1-eyJjbHVzdGVy…", Args: takes("KEY"),
	}
	cmd.Flags().StringVar(&name, "node-name", "", "this node's name (default: that of agent.json, or the host's)")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		if err := c.Join(ctx, args[0], name); err != nil {
			return err
		}
		st, err := c.ClusterStatus(ctx)
		if err != nil {
			return err
		}
		m.say("node %s joined cluster %s, which has %d nodes now", st.Local, st.Name, len(st.Nodes))
		return nil
	})
	return cmd
}

func (m *Main) clusterStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show the cluster, its nodes, votes and quorum", Example: "  sauh cluster status --output json", Args: takes(),
	}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		st, err := c.ClusterStatus(ctx)
		if err != nil {
			return err
		}
		return out.print(st, func(w io.Writer) { m.printCluster(w, st) })
	})
	return cmd
}

func (m *Main) printCluster(w io.Writer, st api.ClusterStatus) {
	quorate := yesNo(st.Quorate)
	if !st.Quorate {
		quorate = "no: nothing can be changed until more nodes are online"
	}
	facts(w, "Cluster", st.Name, "Id", st.UUID, "Quorate", quorate,
		"Expected votes", strconv.Itoa(st.ExpectedVotes), "Total votes", strconv.Itoa(st.TotalVotes), "Quorum", strconv.Itoa(st.Quorum),
		"Store leader", st.Leader, "HA manager", st.Manager, "Config revision", strconv.FormatInt(st.ConfigVersion, 10))
	fmt.Fprintln(w)
	rows := [][]string{{"NODE", "ID", "MANAGEMENT", "CLUSTER", "VOTES", "STATE", "ONLINE SINCE", "EPOCH"}}
	for _, n := range st.Nodes {
		name := n.Name
		if name == st.Local {
			name += " (local)"
		}
		rows = append(rows, []string{
			name, strconv.Itoa(n.ID), n.Mgmt, n.Cluster, strconv.Itoa(n.Votes), nodeState(n), m.clock(n.OnlineSince), strconv.FormatUint(n.Epoch, 10),
		})
	}
	table(w, rows...)
}

func nodeState(n api.NodeStatus) string {
	switch {
	case n.Fenced:
		return "fenced"
	case n.Leaving:
		return "leaving"
	case n.Online:
		return "online"
	}
	return "offline"
}

func (m *Main) clusterLeave() *cobra.Command {
	return &cobra.Command{
		Use: "leave", Short: "Take this node out of the cluster; it must have no guests", Example: "  sauh cluster leave", Args: takes(),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			if err := c.Leave(ctx); err != nil {
				return goesOn(ctx, err, "this node goes on leaving; see 'sauh cluster status' on another one")
			}
			m.say("this node left the cluster")
			return nil
		}),
	}
}

// goesOn says what becomes of a request whose answer was not waited for.
func goesOn(ctx context.Context, err error, what string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted: %s", what)
	}
	return err
}

func (m *Main) clusterDestroy() *cobra.Command {
	return &cobra.Command{
		Use: "destroy NAME", Short: "End the cluster NAME for good; this node must be its last one, and without guests",
		Long:    "The cluster's configuration is deleted from this node. Volumes stay where they are.",
		Example: "  sauh cluster destroy demo", Args: takes("NAME"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DestroyCluster(ctx, args[0]); err != nil {
				return goesOn(ctx, err, "the cluster's end goes on; see 'sauh node status'")
			}
			m.say("cluster %s is no more", args[0])
			return nil
		}),
	}
}

func (m *Main) clusterRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove NODE", Short: "Take another node out of the cluster; it must be off and stay off", Example: "  sauh cluster remove n3",
		Args: takes("NODE"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.RemoveNode(ctx, args[0]); err != nil {
				return err
			}
			m.say("node %s removed from the cluster", args[0])
			return nil
		}),
	}
}
