package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/units"
)

func (m *Main) nodeCommand() *cobra.Command {
	return group("node", "Show nodes, label them, and end them in order", "  sauh node list\n  sauh node status n2\n  sauh node reboot n2",
		m.nodeList(), m.nodeStatus(), m.nodeLabel(),
		m.nodeEnd("shutdown", "Shut a node down in order: its guests leave or stop by the shutdown policy first"),
		m.nodeEnd("reboot", "Reboot a node in order: its guests leave or stop by the shutdown policy first"), m.nodeDrain())
}

// nodeDrain is for what brings the machine down itself: the unit sauh-drain.
func (m *Main) nodeDrain() *cobra.Command {
	var reboot bool
	cmd := &cobra.Command{
		Use: "drain", Hidden: true, Short: "End this node in order, and return when its machine may go down",
		Long:    "The guests leave or stop by the shutdown policy, and the cluster is told. A node that is no member has nothing to do.",
		Example: "  sauh node drain --reboot", Args: takes(),
	}
	cmd.Flags().BoolVar(&reboot, "reboot", false, "the machine comes back at once")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		in, err := c.NodeInfo(ctx, client.LocalNode)
		if err != nil || !in.ClusterMember {
			return err
		}
		return c.Drain(ctx, reboot)
	})
	return cmd
}

func (m *Main) nodeEnd(command, short string) *cobra.Command {
	return &cobra.Command{
		Use: command + " NODE", Short: short,
		Long:    "The policy is that of 'sauh ha options'. The command returns when the end has begun; 'sauh task list' on the node shows it.",
		Example: "  sauh node " + command + " n2", Args: takes("NODE"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.NodeCommand(ctx, args[0], command); err != nil {
				return err
			}
			m.say("%s of node %s has begun", command, args[0])
			return nil
		}),
	}
}

func (m *Main) nodeLabel() *cobra.Command {
	var rack, site string
	cmd := &cobra.Command{
		Use: "label NODE", Short: "Say in which rack and site a node stands, for rules on failure domains",
		Example: "  sauh node label n2 --rack r1 --site north", Args: takes("NODE"),
	}
	cmd.Flags().StringVar(&rack, "rack", "", "its rack; empty for none")
	cmd.Flags().StringVar(&site, "site", "", "its site; empty for none")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		var r, s *string
		if cmd.Flags().Changed("rack") {
			r = &rack
		}
		if cmd.Flags().Changed("site") {
			s = &site
		}
		if r == nil && s == nil {
			return usageError(cmd, "nothing to change: give --rack or --site")
		}
		if err := c.NodeLabel(ctx, args[0], r, s); err != nil {
			return err
		}
		m.say("node %s labelled", args[0])
		return nil
	})
	return cmd
}

func (m *Main) nodeList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the cluster's nodes with their load", Example: "  sauh node list", Args: takes()}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		nodes, err := c.Nodes(ctx)
		if err != nil {
			return err
		}
		return out.print(nodes, func(w io.Writer) {
			rows := [][]string{{"NODE", "STATUS", "CPU", "CPUS", "MEMORY", "OF", "UPTIME"}}
			for _, n := range nodes {
				cpu, mem, of := "", "", ""
				if n.CPUs > 0 { // it answered
					cpu, mem, of = units.FormatPercent(n.CPU), units.FormatBytes(n.Memory), units.FormatBytes(n.MaxMemory)
				}
				rows = append(rows, []string{n.Node, n.Status, cpu, number(n.CPUs), mem, of, seconds(n.UptimeSec)})
			}
			table(w, rows...)
		})
	})
	return cmd
}

func (m *Main) nodeStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status [NODE]", Short: "Show what a node knows of itself, its guard included", Example: "  sauh node status n2",
		Args: takesOptional(0, "NODE"),
	}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		node := client.LocalNode
		if len(args) > 0 {
			node = args[0]
		}
		in, err := c.NodeInfo(ctx, node)
		if err != nil {
			return err
		}
		return out.print(in, func(w io.Writer) { printNode(w, in) })
	})
	return cmd
}

func printNode(w io.Writer, in api.NodeInfo) {
	accel := in.Accel
	if in.AccelReason != "" {
		accel += " (" + in.AccelReason + ")"
	}
	facts(w, append([]string{
		"Node", in.Node, "Uptime", seconds(in.UptimeSec), "CPU", fmt.Sprintf("%s of %d", units.FormatPercent(in.CPU), in.CPUs),
		"Memory", units.FormatBytes(in.MemoryUsed) + " of " + units.FormatBytes(in.MemoryTotal), "Sauh", in.Version, "QEMU", in.QEMU,
		"Acceleration", accel, "Agent's process", number(in.AgentPID), "Cluster member", yesNo(in.ClusterMember),
	}, guardFacts(in)...)...)
}

func guardFacts(in api.NodeInfo) []string {
	g := in.Guard
	if !g.Connected {
		return []string{"Guard", "does not answer: this node can run no protected guests; start it with 'systemctl start sauh-guard' or 'sauh guard'"}
	}
	lease := "passed " + (-time.Duration(g.LeaseMS) * time.Millisecond).String() + " ago"
	if g.LeaseMS >= 0 {
		lease = (time.Duration(g.LeaseMS) * time.Millisecond).String()
	}
	watchdog := g.Watchdog
	if g.WatchdogSec > 0 {
		watchdog += ", " + seconds(int64(g.WatchdogSec))
	}
	if !in.ClusterMember {
		return []string{"Guard", "connected", "Watchdog", watchdog} // only a member has a lease
	}
	return []string{
		"Guard", "connected", "Epoch", strconv.FormatUint(g.Epoch, 10), "Lease", lease, "Watchdog", watchdog,
		"Frozen guests", strings.Join(g.Frozen, ", "),
	}
}
