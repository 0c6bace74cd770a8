package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/lab"
)

// LabCommand is `sauh lab`: the machine room on one Linux box.
func LabCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "A machine room on one Linux box: nodes, switches, power, watchdogs",
	}
	name := cmd.PersistentFlags().String("name", lab.DefaultName, "name of the room")
	cmd.AddCommand(
		labUp(name), labDown(name), labStatus(name), labExec(name),
		labPower(name), labLink(name), labBMC(name), labPartition(name), labInternal(),
	)
	return cmd
}

func labUp(name *string) *cobra.Command {
	config := lab.Config{}
	var units []string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build the room and boot its nodes",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config.Nodes < 1 {
				return usageError(cmd, "--nodes is at least 1, not %d", config.Nodes)
			}
			config.Name = *name
			if config.Nodes < 1 {
				return usageError(cmd, "--nodes is at least 1, not %d", config.Nodes)
			}
			for _, s := range units {
				u, err := lab.ParseUnit(s)
				if err != nil {
					return err
				}
				config.Units = append(config.Units, u)
			}
			r, err := lab.Up(cmd.Context(), config)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "room %s is up in %s\n", r.Name(), r.Dir())
			return nil
		},
	}
	cmd.Flags().IntVar(&config.Nodes, "nodes", lab.DefaultNodes, "number of nodes")
	cmd.Flags().StringVar(&config.Dir, "dir", "", "directory for the room's data (default "+lab.StateRoot+"/NAME)")
	cmd.Flags().StringArrayVar(&units, "unit", nil, "run name=command instead of guard and agent; name! is not restarted")
	_ = cmd.Flags().MarkHidden("unit")
	return cmd
}

func labDown(name *string) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove the room and everything in it, also after a crash",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, err := lab.Down(cmd.Context(), *name, keep)
			for _, what := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), "removed", what)
			}
			if err == nil && len(removed) == 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "there is no room %s: nothing to remove\n", *name)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-data", false, "keep the nodes' state, logs and the NAS")
	return cmd
}

func labStatus(name *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show nodes, power, links and partitions",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError(cmd, "--output is table or json, not %q", output)
			}
			r, err := lab.Open(cmd.Context(), *name)
			if err != nil {
				return err
			}
			st, err := r.Status(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(st)
			}
			return printRoom(cmd.OutOrStdout(), st)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "how to print: table or json")
	return cmd
}

func printRoom(w io.Writer, st lab.Status) error {
	fmt.Fprintf(w, "room %s, up since %s, supervisor %d, %s\n\n", st.Name, st.Since.Format(time.TimeOnly), st.PID, st.Dir)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tPOWER\tSINCE\tRESETS\tMGMT\tCLUSTER\tWATCHDOG\tINIT\tPROCESSES")
	for _, n := range st.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%d\t%d\n", n.Node, n.Power, n.Since.Format(time.TimeOnly),
			len(n.Resets), upDown(n.Mgmt), upDown(n.Cluster), n.Watchdog, n.PID, len(n.PIDs))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, n := range st.Nodes {
		if n.Why != "" {
			fmt.Fprintf(w, "%s is %s: %s\n", n.Node, n.Power, n.Why)
		}
		for _, r := range n.Resets {
			fmt.Fprintf(w, "%s was reset at %s: %s\n", n.Node, r.At.Format(time.TimeOnly), r.Why)
		}
	}
	for _, d := range st.Drops {
		fmt.Fprintf(w, "dropped on %s: %s → %s\n", d.Network, d.From, d.To)
	}
	return nil
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func labExec(name *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "exec NODE -- COMMAND [ARGUMENT...]",
		Short:   "Run a command in a node, or in the room itself (exec room)",
		Example: "  sauh lab exec n1 -- sauh cluster status\n  sauh lab exec room -- ping 10.10.1.1",
		RunE: func(cmd *cobra.Command, args []string) error {
			argv := args[min(1, len(args)):]
			if len(argv) > 0 && argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return usageError(cmd, "%s needs NODE and COMMAND", cmd.CommandPath())
			}
			r, err := lab.Open(cmd.Context(), *name)
			if err != nil {
				return err
			}
			// Ctrl-C is the program's: it must not end this command before it.
			code, err := r.RunIn(context.WithoutCancel(cmd.Context()), args[0], argv)
			if err != nil {
				return err
			}
			if code != 0 {
				os.Exit(code) // the command's own status, for which it has already said why
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func labPower(name *string) *cobra.Command {
	actions := []string{
		string(lab.PowerOn), string(lab.PowerOff), string(lab.PowerCycle), string(lab.PowerReset), string(lab.PowerShutdown), string(lab.PowerReboot),
	}
	return &cobra.Command{
		Use:       "power NODE on|off|cycle|reset|shutdown|reboot",
		Short:     "Switch a node's power",
		Args:      takes("NODE", strings.Join(actions, "|")),
		ValidArgs: actions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(actions, args[1]) {
				return fmt.Errorf("%q cannot be done to a node's power: use %s", args[1], strings.Join(actions, ", "))
			}
			r, err := lab.Open(cmd.Context(), *name)
			if err != nil {
				return err
			}
			res, err := r.Power(cmd.Context(), args[0], lab.PowerAction(args[1]))
			if err != nil {
				return err
			}
			printPower(cmd.OutOrStdout(), res)
			return nil
		},
	}
}

func printPower(w io.Writer, res lab.PowerResult) {
	if !res.Changed {
		fmt.Fprintf(w, "%s was %s already\n", res.Node, res.Power)
	}
	if !res.CutAt.IsZero() {
		fmt.Fprintf(w, "%s is off: no process left after %.1f ms\n", res.Node, milliseconds(res.Killed))
	}
	if res.Booted > 0 {
		fmt.Fprintf(w, "%s is on: units started after %.1f ms\n", res.Node, milliseconds(res.Booted))
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func labLink(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "link NODE mgmt|cluster|all up|down",
		Short: "Plug a node's cables in or out at the switch",
		Args:  takes("NODE", "mgmt|cluster|all", "up|down"),
		RunE: func(cmd *cobra.Command, args []string) error {
			network, err := lab.ParseNetwork(args[1])
			if err != nil {
				return err
			}
			if args[2] != "up" && args[2] != "down" {
				return fmt.Errorf("%q is no state of a link: use up or down", args[2])
			}
			r, err := lab.Open(cmd.Context(), *name)
			if err != nil {
				return err
			}
			if err := r.Link(cmd.Context(), args[0], network, args[2] == "up"); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "cables of %s, network %s: %s\n", args[0], args[1], args[2])
			return nil
		},
	}
}

func labBMC(name *string) *cobra.Command {
	var types []string
	cmd := &cobra.Command{
		Use:   "bmc [NODE none|hang|lie|wrong|dead|tied|late|early | config]",
		Short: "Break or heal a node's BMC, list all, or print ha/fence.cfg for them",
		Long: "Each node has a BMC that speaks Redfish and IPMI on an address of its own in the management network; IPMI is\n" +
			"Debian's ipmi_sim (package openipmi). hang: it never answers; lie: it says off and switches nothing; wrong: it is\n" +
			"cabled to the next node; dead: it has no power; tied: it loses its power with the node; late: each answer takes\n" +
			"3 s; early: it says off 1 s before it is.",
		Example: "  sauh lab bmc\n  sauh lab bmc n2 hang\n  sauh lab bmc config --type ipmi",
		Args:    takesOptional(0, "NODE", "FAULT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(types) > 0 && (len(args) != 1 || args[0] != "config") {
				return usageError(cmd, "--type is for config alone")
			}
			if len(args) == 1 && args[0] != "config" {
				return fmt.Errorf("%s: name a fault too, such as `sauh lab bmc %s hang`", args[0], args[0])
			}
			r, err := lab.Open(cmd.Context(), *name)
			if err != nil {
				return err
			}
			if len(args) == 2 {
				return r.BMC(cmd.Context(), args[0], lab.BMCFault(args[1]))
			}
			if len(args) == 1 {
				return printFenceConfig(cmd, r, types)
			}
			st, err := r.Status(cmd.Context())
			if err != nil {
				return err
			}
			return printBMCs(cmd.OutOrStdout(), st)
		},
	}
	cmd.Flags().StringSliceVar(&types, "type", nil, "with config: only methods of the type redfish or ipmi (default both)")
	return cmd
}

func printFenceConfig(cmd *cobra.Command, r *lab.Room, types []string) error {
	text, err := r.FenceConfig(cmd.Context(), types...)
	if err == nil {
		fmt.Fprint(cmd.OutOrStdout(), text)
	}
	return err
}

func printBMCs(w io.Writer, st lab.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tPOWER\tREDFISH\tIPMI\tFAULT\tSYSTEM UUID\tUSER\tPASSWORD")
	missing := false
	for _, n := range st.Nodes {
		if n.BMC == nil {
			continue
		}
		ipmi := n.BMC.IPMI
		if ipmi == "" {
			ipmi, missing = "-", true
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Node, n.Power, n.BMC.Address, ipmi, n.BMC.Fault, n.BMC.UUID, lab.BMCUser, n.BMC.Password)
	}
	if err := t.Flush(); err != nil || !missing {
		return err
	}
	_, err := fmt.Fprintln(w, "the room was built without the program ipmi_sim: for IPMI install openipmi and build the room again")
	return err
}

func labPartition(name *string) *cobra.Command {
	var p lab.Partition
	var network string
	cmd := &cobra.Command{
		Use:   "partition GROUP GROUP... | partition heal",
		Short: "Drop packets between groups of nodes, or heal all partitions",
		Long: "Drop packets between groups of nodes in the switches. A group is a list such as n2,n3; nodes in no\n" +
			"group keep all their connections. Partitions add up until heal.",
		Example: "  sauh lab partition n1 n2,n3\n  sauh lab partition --one-way n1 n2\n  sauh lab partition heal",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if p.Network, err = lab.ParseNetwork(network); err != nil {
				return err
			}
			heal := len(args) > 0 && args[0] == "heal"
			if heal && len(args) > 1 {
				return usageError(cmd, "heal ends all partitions and takes no argument, not %q", args[1])
			}
			if !heal && len(args) < 2 {
				return usageError(cmd, "%s needs two groups of nodes, such as n1 n2,n3, or heal", cmd.CommandPath())
			}
			if !heal {
				p.Groups = parseGroups(args)
			}
			r, err := lab.Open(cmd.Context(), *name)
			if err != nil {
				return err
			}
			if heal {
				if err := r.Heal(cmd.Context()); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), "no partition is left")
				return nil
			}
			if err := r.Partition(cmd.Context(), p); err != nil {
				return err
			}
			arrow := "↔"
			if p.OneWay {
				arrow = "→"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "dropped on network %s: %s\n", network, strings.Join(args, " "+arrow+" "))
			return nil
		},
	}
	cmd.Flags().BoolVar(&p.OneWay, "one-way", false, "drop only packets from earlier groups to later ones")
	cmd.Flags().StringVar(&network, "network", string(lab.AllNetworks), "mgmt, cluster or all")
	return cmd
}

func parseGroups(args []string) [][]string {
	var groups [][]string
	for _, a := range args {
		groups = append(groups, strings.Split(a, ","))
	}
	return groups
}

// labInternal is what the room starts of itself.
func labInternal() *cobra.Command {
	return &cobra.Command{
		Use: "internal", Hidden: true, DisableFlagParsing: true,
		Run: func(_ *cobra.Command, args []string) { os.Exit(lab.Internal(args)) },
	}
}
