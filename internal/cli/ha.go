package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
)

const haStates = "started (or enabled), stopped, disabled or ignored"

func (m *Main) haCommand() *cobra.Command {
	return group("ha", "Protect guests against the loss of their node", "  sauh ha add vm:100\n  sauh ha status",
		m.haAdd(), m.haSet(), m.haRemove(), m.haList(), m.haStatus())
}

func (m *Main) haAdd() *cobra.Command {
	r := api.HAResource{State: "started"}
	cmd := &cobra.Command{
		Use: "add vm:VMID", Short: "Protect a guest: if its node is lost it is started elsewhere", Example: "  sauh ha add vm:100 --comment 'the shop'",
		Args: takes("vm:VMID"),
	}
	cmd.Flags().StringVar(&r.State, "state", r.State, "requested state: "+haStates)
	cmd.Flags().StringVar(&r.Comment, "comment", "", "a note")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		r.SID = args[0]
		if err := c.HAAdd(ctx, r); err != nil {
			return err
		}
		m.say("%s is protected, requested state %s", r.SID, r.State)
		return nil
	})
	return cmd
}

func (m *Main) haSet() *cobra.Command {
	var state, comment string
	cmd := &cobra.Command{
		Use: "set vm:VMID", Short: "Change a protected guest's requested state or comment", Example: "  sauh ha set vm:100 --state stopped",
		Args: takes("vm:VMID"),
	}
	cmd.Flags().StringVar(&state, "state", "", "requested state: "+haStates)
	cmd.Flags().StringVar(&comment, "comment", "", "a note; empty deletes it")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		var note *string
		if cmd.Flags().Changed("comment") {
			note = &comment
		}
		if state == "" && note == nil {
			return usageError(cmd, "nothing to change: give --state or --comment")
		}
		if err := c.HASet(ctx, args[0], state, note); err != nil {
			return err
		}
		m.say("%s changed", args[0])
		return nil
	})
	return cmd
}

func (m *Main) haRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove vm:VMID", Short: "Protect a guest no longer; it goes on running", Example: "  sauh ha remove vm:100", Args: takes("vm:VMID"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.HARemove(ctx, args[0]); err != nil {
				return err
			}
			m.say("%s is protected no longer", args[0])
			return nil
		}),
	}
}

func (m *Main) haList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List what is protected", Example: "  sauh ha list", Args: takes()}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		list, err := c.HAResources(ctx)
		if err != nil {
			return err
		}
		return out.print(list, func(w io.Writer) {
			rows := [][]string{{"SID", "REQUESTED", "COMMENT"}}
			for _, r := range list {
				rows = append(rows, []string{r.SID, r.State, r.Comment})
			}
			table(w, rows...)
		})
	})
	return cmd
}

func (m *Main) haStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show the HA manager's view of nodes and protected guests", Example: "  sauh ha status", Args: takes(),
	}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		st, err := c.HAStatus(ctx)
		if err != nil {
			return err
		}
		return out.print(st, func(w io.Writer) { printHA(w, st) })
	})
	return cmd
}

func printHA(w io.Writer, st api.HAStatus) {
	manager := st.Manager
	if manager == "" {
		manager = "none"
	}
	facts(w, "Manager", manager, "Quorate", yesNo(st.Quorate))
	fmt.Fprintln(w)
	rows := [][]string{{"NODE", "STATE", "EPOCH", "LAST HEARD"}}
	for _, n := range st.Nodes {
		heard := (time.Duration(n.SilenceMS) * time.Millisecond).String() + " ago"
		rows = append(rows, []string{n.Node, n.State, strconv.FormatUint(n.Epoch, 10), heard})
	}
	table(w, rows...)
	fmt.Fprintln(w)
	rows = [][]string{{"SID", "NODE", "REQUESTED", "STATUS", "REASON"}}
	for _, r := range st.Services {
		rows = append(rows, []string{r.SID, r.Node, r.State, r.Status, r.Reason})
	}
	table(w, rows...)
}
