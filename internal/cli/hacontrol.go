package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
)

func (m *Main) haMove(kind, short string) *cobra.Command {
	to := ""
	cmd := &cobra.Command{
		Use: kind + " vm:VMID --to NODE", Short: short, Example: "  sauh ha " + kind + " vm:100 --to n2", Args: takes("vm:VMID"),
	}
	cmd.Flags().StringVar(&to, "to", "", "the node to go to")
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		if to == "" {
			return usageError(cmd, "%s needs --to NODE", cmd.CommandPath())
		}
		return moveService(ctx, c, out, args[0], kind, to)
	})
	return cmd
}

func moveService(ctx context.Context, c *client.Client, out *output, sid, kind, node string) error {
	mv, err := c.HAMove(ctx, sid, kind, node)
	if err != nil {
		return err
	}
	if len(mv.Blocking) > 0 {
		return fmt.Errorf("%s cannot %s to %s: %s; see 'sauh ha rules list'", mv.SID, kind, mv.Node, blocking(mv))
	}
	return out.print(mv, func(w io.Writer) {
		fmt.Fprintf(w, "%s is asked to %s to %s; 'sauh ha status' shows how it goes\n", mv.SID, kind, mv.Node)
		if len(mv.With) > 0 {
			fmt.Fprintf(w, "with it, by rule, goes %s\n", strings.Join(mv.With, ", "))
		}
	})
}

// blocking says what is in the way.
func blocking(mv api.HAMove) string {
	var parts []string
	for _, b := range mv.Blocking {
		if b.Cause == "node-affinity" {
			parts = append(parts, "a node-affinity rule of "+b.SID+" forbids it")
		} else {
			parts = append(parts, b.SID+" is there, and a rule keeps the two apart")
		}
	}
	return strings.Join(parts, ", ")
}

func (m *Main) haStop() *cobra.Command {
	timeout := time.Minute
	cmd := &cobra.Command{
		Use: "stop vm:VMID", Short: "Have a protected guest shut down and stay so, hard after the timeout", Example: "  sauh ha stop vm:100 --timeout 30s",
		Args: takes("vm:VMID"),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long it may take; 0 stops it hard at once")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		if timeout < 0 || timeout%time.Second != 0 {
			return usageError(cmd, "--timeout is a whole number of seconds, such as 30s, not %s", timeout)
		}
		if err := c.HAStop(ctx, args[0], timeout); err != nil {
			return err
		}
		m.say("%s is asked to stop; 'sauh ha set %s --state started' starts it again", args[0], args[0])
		return nil
	})
	return cmd
}

func (m *Main) haMaintenance() *cobra.Command {
	return &cobra.Command{
		Use: "maintenance on|off NODE", Short: "Have a node's guests leave, live where they can, and come back when it ends",
		Example: "  sauh ha maintenance on n2\n  sauh ha maintenance off n2", Args: takes("on|off", "NODE"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if args[0] != "on" && args[0] != "off" {
				return fmt.Errorf("maintenance is on or off, not %q; see 'sauh ha maintenance --help'", args[0])
			}
			return m.maintain(ctx, c, args[1], args[0] == "on")
		}),
	}
}

// maintain turns a node's maintenance on or off and says what comes of it, by what was before and by whether HA acts at all.
func (m *Main) maintain(ctx context.Context, c *client.Client, node string, on bool) error {
	st, err := c.HAStatus(ctx)
	if err != nil {
		return err
	}
	if err := c.HAMaintenance(ctx, node, on); err != nil {
		return err
	}
	was := slices.ContainsFunc(st.Nodes, func(n api.HANodeStatus) bool { return n.Node == node && n.Mode == "maintenance" })
	arm := armsAgain(st, node)
	switch {
	case !on && !was:
		m.say("%s was not in maintenance: nothing is changed", node)
	case on && arm != "":
		m.say("the maintenance of %s is noted: while HA is disarmed no guest leaves; they do once it is armed again, by %s", node, arm)
	case on:
		m.say("%s is in maintenance: its protected guests leave; 'sauh ha status' shows when it is empty of them", node)
	case arm != "":
		m.say("the maintenance of %s is over: while HA is disarmed no guest returns; those that left it do once it is armed again, by %s", node, arm)
	default:
		m.say("the maintenance of %s is over: the guests that left it return", node)
	}
	return nil
}

// armsAgain are the commands that end what keeps HA from acting for a node, "" if nothing does.
func armsAgain(st api.HAStatus, node string) string {
	var out []string
	if st.Disarm != "" {
		out = append(out, "'sauh ha arm'")
	}
	for _, n := range st.Nodes {
		if n.Node == node && n.Disarm != "" {
			out = append(out, "'sauh ha arm --node "+node+"'")
		}
	}
	return strings.Join(out, " and ")
}

func (m *Main) haDisarm() *cobra.Command {
	d := api.HADisarm{Mode: "freeze"}
	cmd := &cobra.Command{
		Use: "disarm", Short: "Have HA do nothing for the cluster or one node, for good or for a time",
		Long: "While disarmed no node is fenced, no guest is brought back, and no lease stops a guest. With freeze the guests stay as they are;\n" +
			"with ignore they can be started, stopped and moved as if they were no HA resources.",
		Example: "  sauh ha disarm --for 10m\n  sauh ha disarm --mode ignore --node n2", Args: takes(),
	}
	cmd.Flags().StringVar(&d.Mode, "mode", d.Mode, "freeze or ignore")
	cmd.Flags().StringVar(&d.Node, "node", "", "this node alone")
	cmd.Flags().DurationVar(&d.For, "for", 0, "how long, such as 10m; without it until 'sauh ha arm'")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		switch {
		case !slices.Contains([]string{"freeze", "ignore"}, d.Mode):
			return usageError(cmd, "--mode is freeze or ignore, not %q", d.Mode)
		case d.For < 0 || d.For%time.Second != 0 || cmd.Flags().Changed("for") && d.For == 0:
			return usageError(cmd, "--for is a whole number of seconds, such as 10m, not %s", d.For)
		}
		if err := c.HADisarm(ctx, d); err != nil {
			return err
		}
		until := "until 'sauh ha arm'"
		if d.Node != "" {
			until = "until 'sauh ha arm --node " + d.Node + "'"
		}
		if d.For > 0 {
			until = "for " + d.For.String()
		}
		m.say("%s is disarmed (%s) %s: no guest is brought back meanwhile", orWord(d.Node, "the cluster"), d.Mode, until)
		return nil
	})
	return cmd
}

func (m *Main) haArm() *cobra.Command {
	node := ""
	cmd := &cobra.Command{
		Use: "arm", Short: "End what 'sauh ha disarm' began, for the cluster or for one node", Example: "  sauh ha arm\n  sauh ha arm --node n2", Args: takes(),
	}
	cmd.Flags().StringVar(&node, "node", "", "this node alone")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		if err := c.HAArm(ctx, node); err != nil {
			return err
		}
		m.say("%s is armed", orWord(node, "the cluster"))
		st, err := c.HAStatus(ctx)
		if err != nil {
			return err
		}
		if node != "" && st.Disarm != "" {
			m.say("the cluster is still disarmed, and %s with it: 'sauh ha arm' ends that", node)
		}
		for _, n := range st.Nodes {
			if node == "" && n.Disarm != "" {
				m.say("%s is still disarmed by itself: 'sauh ha arm --node %s' ends that", n.Node, n.Node)
			}
		}
		return nil
	})
	return cmd
}

// orDefault is a value of a file, or what holds where it has none.
func orDefault(value, otherwise string) string {
	if value == "" {
		return otherwise + " (default)"
	}
	return value
}

func (m *Main) haOptions() *cobra.Command {
	cmd := &cobra.Command{
		Use: "options", Short: "Show and change what datacenter.cfg says about HA",
		Long: "ha says what becomes of guests when their node is shut down, crs how nodes are compared and whether guests are moved for a better\n" +
			"balance, failures-to-tolerate for how many nodes room is kept.",
		Example: "  sauh ha options\n  sauh ha options --shutdown-policy migrate --failures-to-tolerate 1\n" +
			"  sauh ha options --crs ha=static,ha-rebalance-on-start=1\n  sauh ha options --delete crs",
		Args: takes(),
	}
	set := entryFlags(cmd.Flags(),
		setting{flag: "shutdown-policy", key: "ha", help: "conditional, freeze, failover or migrate"},
		setting{flag: "crs", key: "crs", help: "scheduler: ha=basic|static|dynamic,ha-rebalance-on-start=1,ha-auto-rebalance=1,…"},
		setting{flag: "failures-to-tolerate", key: "failures-to-tolerate", help: "how many nodes may fail; N, or N,policy=warn to warn only"},
	).changeable(cmd.Flags())
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		e := api.Edit{Set: set.given(cmd.Flags()), Delete: set.delete, Digest: set.digest}
		if v, ok := e.Set["ha"]; ok {
			e.Set["ha"] = "shutdown_policy=" + v
		}
		for i, k := range e.Delete {
			if k == "shutdown-policy" {
				e.Delete[i] = "ha"
			}
		}
		switch {
		case len(e.Set)+len(e.Delete) == 0 && cmd.Flags().Changed("digest"):
			return usageError(cmd, "nothing to change: --digest is about a change")
		case len(e.Set)+len(e.Delete) > 0:
			if err := c.SetOptions(ctx, e); err != nil {
				return err
			}
		}
		values, err := c.Options(ctx)
		if err != nil {
			return err
		}
		return out.print(values, func(w io.Writer) {
			facts(w, "ha", orDefault(values["ha"], "shutdown_policy=conditional"), "crs", orDefault(values["crs"], "ha=basic"),
				"failures-to-tolerate", orDefault(values["failures-to-tolerate"], "0"))
		})
	})
	return cmd
}
