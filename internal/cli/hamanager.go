package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
)

// haManagerCommand is Proxmox VE's ha-manager: the same words, the same order of arguments, the same flags. Its commands for groups, which Proxmox VE 9
// replaced by rules, say so.
func (m *Main) haManagerCommand() *cobra.Command {
	return group("ha-manager", "Control HA in the form known from Proxmox VE", "  sauh ha-manager status\n  sauh ha-manager crm-command migrate vm:100 n2",
		m.pveStatus(), m.pveConfig(), m.pveAdd(), m.pveSet(), m.pveRemove(), m.pveMove("migrate"), m.pveMove("relocate"),
		m.pveRules(), m.pveGroupConfig(), pveGroup("groupadd", "add"), pveGroup("groupset", "set"), pveGroup("groupremove", "remove"),
		group("crm-command", "Send a command to the manager", "  sauh ha-manager crm-command stop vm:100 60",
			m.pveMove("migrate"), m.pveMove("relocate"), m.pveStop(),
			group("node-maintenance", "Put a node into maintenance or take it out", "  sauh ha-manager crm-command node-maintenance enable n2",
				m.pveMaintenance("enable", true), m.pveMaintenance("disable", false)),
			m.pveArm(), m.pveDisarm()))
}

func (m *Main) pveStatus() *cobra.Command {
	verbose := "0"
	cmd := &cobra.Command{
		Use: "status", Short: "Show quorum, manager, nodes and services", Example: "  sauh ha-manager status\n  sauh ha-manager status --verbose", Args: takes(),
	}
	pveFlag(cmd.Flags(), &verbose, "verbose", "also what the manager and each node say, as JSON")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		full, err := isYes(cmd, "verbose", verbose)
		if err != nil {
			return err
		}
		rows, err := c.HACurrent(ctx)
		if err != nil {
			return err
		}
		st, err := c.HAStatus(ctx)
		if err != nil {
			return err
		}
		m.printAlarms(m.Stdout, st.Alarms)
		for _, r := range rows {
			if r.Type != "alarm" {
				m.say("%s %s", r.Type, r.Status)
			}
		}
		if !full {
			return nil
		}
		state, err := c.HAManagerStatus(ctx)
		if err != nil {
			return err
		}
		m.say("full cluster state:")
		return pretty(m.Stdout, state)
	})
	return cmd
}

func (m *Main) pveConfig() *cobra.Command {
	typ := ""
	cmd := &cobra.Command{Use: "config", Short: "List the HA resources with their settings", Example: "  sauh ha-manager config", Args: takes()}
	cmd.Flags().StringVar(&typ, "type", "", "only vm or ct")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		if !slices.Contains([]string{"", "vm", "ct"}, typ) {
			return usageError(cmd, "--type is vm or ct, not %q", typ)
		}
		list, err := c.HAResources(ctx)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(r api.HAResource) bool { return typ != "" && typ+":" != r.SID[:min(len(r.SID), len(typ)+1)] })
		printResources(m.Stdout, list)
		return nil
	})
	return cmd
}

// pveSettings are the settings as ha-manager spells them: the keys of the file.
func pveSettings(f *pflag.FlagSet) *entry {
	var list []setting
	for _, s := range resourceSettings() {
		s.flag, s.yesNo = s.key, false // "--failback 0", with a value
		list = append(list, s)
	}
	return entryFlags(f, list...)
}

func (m *Main) pveAdd() *cobra.Command {
	cmd := &cobra.Command{Use: "add SID", Short: "Add an HA resource", Example: "  sauh ha-manager add vm:100 --state started --max_restart 2", Args: takes("SID")}
	set := pveSettings(cmd.Flags())
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		return m.addResource(ctx, cmd, c, args[0], set.given(cmd.Flags()))
	})
	return cmd
}

func (m *Main) pveSet() *cobra.Command {
	cmd := &cobra.Command{Use: "set SID", Short: "Change an HA resource", Example: "  sauh ha-manager set vm:100 --state disabled", Args: takes("SID")}
	set := pveSettings(cmd.Flags()).changeable(cmd.Flags())
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		e, err := set.edit(cmd)
		if err != nil {
			return err
		}
		return c.HASet(ctx, args[0], e)
	})
	return cmd
}

func (m *Main) pveRemove() *cobra.Command {
	purge := "1"
	cmd := &cobra.Command{Use: "remove SID", Short: "Remove an HA resource", Example: "  sauh ha-manager remove vm:100", Args: takes("SID")}
	pveFlag(cmd.Flags(), &purge, "purge", "also from the rules that name it")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		on, err := isYes(cmd, "purge", purge)
		if err != nil {
			return err
		}
		return c.HARemove(ctx, args[0], !on)
	})
	return cmd
}

func (m *Main) pveMove(kind string) *cobra.Command {
	return &cobra.Command{
		Use: kind + " SID NODE", Short: "Ask that a resource " + kind + " to a node", Example: "  sauh ha-manager " + kind + " vm:100 n2",
		Args: takes("SID", "NODE"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			return moveService(ctx, c, &output{m: m, format: "table"}, args[0], kind, args[1])
		}),
	}
}

func (m *Main) pveStop() *cobra.Command {
	cmd := &cobra.Command{
		Use: "stop SID TIMEOUT", Short: "Stop a resource, hard after TIMEOUT seconds; 0 stops it hard at once",
		Example: "  sauh ha-manager crm-command stop vm:100 60", Args: takes("SID", "TIMEOUT"),
	}
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		n, err := strconv.Atoi(args[1])
		if err != nil || n < 0 {
			return usageError(cmd, "TIMEOUT is a number of seconds, not %q", args[1])
		}
		return c.HAStop(ctx, args[0], time.Duration(n)*time.Second)
	})
	return cmd
}

func (m *Main) pveMaintenance(use string, on bool) *cobra.Command {
	return &cobra.Command{
		Use: use + " NODE", Short: fmt.Sprintf("Turn the maintenance of a node %s", map[bool]string{true: "on", false: "off"}[on]),
		Example: "  sauh ha-manager crm-command node-maintenance " + use + " n2", Args: takes("NODE"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			return m.maintain(ctx, c, args[0], on)
		}),
	}
}

func (m *Main) pveArm() *cobra.Command {
	return &cobra.Command{
		Use: "arm-ha", Short: "Arm the cluster", Example: "  sauh ha-manager crm-command arm-ha", Args: takes(),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, _ []string) error { return c.HAArm(ctx, "") }),
	}
}

func (m *Main) pveDisarm() *cobra.Command {
	return &cobra.Command{
		Use: "disarm-ha freeze|ignore", Short: "Disarm the cluster", Example: "  sauh ha-manager crm-command disarm-ha freeze", Args: takes("freeze|ignore"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			return c.HADisarm(ctx, api.HADisarm{Mode: args[0]})
		}),
	}
}
