package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/health"
)

func (m *Main) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print version, commit and Go of this program", Example: "  sauh version --output json", Args: takes(),
	}
	out := m.outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		v := m.Version
		return out.print(map[string]string{"version": v.Version, "commit": v.Commit, "go": v.Go}, func(w io.Writer) {
			fmt.Fprintf(w, "sauh %s\ncommit %s\n%s\n", v.Version, v.Commit, v.Go)
		})
	}
	return cmd
}

func (m *Main) agentCommand() *cobra.Command {
	config := "/etc/sauh/agent.json"
	cmd := &cobra.Command{
		Use: "agent", Short: "Run this node's agent until it is told to end",
		Long: "The agent is a member of the cluster's store, runs this node's guests and serves the API.\n" +
			"Guests run on when it ends, and are adopted when it starts again.",
		Example: "  sauh agent --config /etc/sauh/agent.json", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if m.Agent == nil {
				return errors.New("this program was built without the agent")
			}
			return m.Agent(cmd.Context(), config)
		},
	}
	cmd.Flags().StringVar(&config, "config", config, "the node's name, addresses and bridge")
	cmd.AddCommand(agentProbe())
	return cmd
}

// agentProbe is what the agent starts of itself for each storage, and nobody else: a process that may hang with it.
func agentProbe() *cobra.Command {
	return &cobra.Command{
		Use: "probe DIRECTORY NAME", Hidden: true, Short: "Try a storage for each line on the standard input", Args: takes("DIRECTORY", "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return health.Serve(cmd.InOrStdin(), cmd.OutOrStdout(), func() error { return health.ProbeDir(args[0], args[1]) })
		},
	}
}

func (m *Main) guardCommand() *cobra.Command {
	o := GuardOptions{Socket: guard.DefaultSocket, Watchdog: "/dev/watchdog", CgroupRoot: "/sys/fs/cgroup"}
	cmd := &cobra.Command{
		Use: "guard", Short: "Run this node's fencing guard until it is told to end",
		Long: "The guard freezes the protected guests when this node's lease ends, and alone feeds the hardware watchdog.\n" +
			"Killing it resets the machine, unless the watchdog is none.",
		Example: "  sauh guard --watchdog none", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if m.Guard == nil {
				return errors.New("this program was built without the guard")
			}
			return m.Guard(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Socket, "socket", o.Socket, "where the agent reaches the guard")
	f.StringVar(&o.Watchdog, "watchdog", o.Watchdog, "watchdog device, or none")
	f.StringVar(&o.CgroupRoot, "cgroup-root", o.CgroupRoot, "where cgroup v2 is mounted")
	cmd.AddCommand(m.guardHold())
	return cmd
}

// guardHold is what the guard starts of itself, and nobody else.
func (m *Main) guardHold() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use: "hold", Hidden: true, Short: "Keep the guard's watchdog open", Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			if m.Hold == nil {
				return errors.New("this program was built without the guard")
			}
			return m.Hold(socket)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", guard.DefaultSocket, "the guard's socket")
	return cmd
}
