package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/units"
)

func (m *Main) vmCommand() *cobra.Command {
	return group("vm", "Make, run, move and delete guests", "  sauh vm create 100 --memory 512 --virtio0 nas:1 --start\n  sauh vm migrate 100 --to n2 --online",
		m.vmCreate(), m.vmStart(), m.vmStop(), m.vmShutdown(), m.vmStatus(), m.vmList(), m.vmConfig(), m.vmSet(), m.vmDestroy(),
		m.vmConsole(), m.vmMigrate())
}

// guestRun does something with a guest on the node that owns it.
type guestRun func(ctx context.Context, c *client.Client, node string, id model.VMID) error

// onGuest finds the guest's node first, and once more if the guest moved meanwhile.
func (m *Main) onGuest(run guestRun) func(*cobra.Command, []string) error {
	return m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		id, err := model.ParseVMID(args[0])
		if err != nil {
			return err
		}
		g, err := c.Guest(ctx, id)
		if err != nil {
			return err
		}
		err = run(ctx, c, g.Node, id)
		if !errors.Is(err, model.ErrNotFound) {
			return err
		}
		if now, again := c.Guest(ctx, id); again == nil && now.Node != g.Node {
			return run(ctx, c, now.Node, id)
		}
		return err
	})
}

// taskRun starts a task for a guest and returns its id.
type taskRun func(ctx context.Context, c *client.Client, node string, id model.VMID) (upid string, err error)

// guestTask is a command that starts a task on a guest's node and waits for it. did completes "guest 100 …".
func (m *Main) guestTask(cmd *cobra.Command, verb, did string, start taskRun) *cobra.Command {
	noWait := cmd.Flags().Bool("no-wait", false, "print the task's id and do not wait for its end")
	cmd.Args = takes("VMID")
	cmd.RunE = m.onGuest(func(ctx context.Context, c *client.Client, node string, id model.VMID) error {
		upid, err := start(ctx, c, node, id)
		if err != nil {
			return err
		}
		if *noWait {
			m.say("%s", upid)
			return nil
		}
		if err := m.wait(ctx, c, upid, fmt.Sprintf("%s of guest %d", verb, id), nil); err != nil {
			return err
		}
		m.say("guest %d %s on node %s", id, did, node)
		return nil
	})
	return cmd
}

func (m *Main) vmStart() *cobra.Command {
	cmd := &cobra.Command{Use: "start VMID", Short: "Start a guest", Example: "  sauh vm start 100"}
	return m.guestTask(cmd, "start", "runs", func(ctx context.Context, c *client.Client, node string, id model.VMID) (string, error) {
		return c.StartGuest(ctx, node, id)
	})
}

func (m *Main) vmStop() *cobra.Command {
	cmd := &cobra.Command{Use: "stop VMID", Short: "Stop a guest at once, as if its power was cut", Example: "  sauh vm stop 100"}
	return m.guestTask(cmd, "stop", "stopped", func(ctx context.Context, c *client.Client, node string, id model.VMID) (string, error) {
		return c.StopGuest(ctx, node, id)
	})
}

func (m *Main) vmShutdown() *cobra.Command {
	timeout, force := time.Minute, false
	cmd := &cobra.Command{
		Use: "shutdown VMID", Short: "Ask a guest to shut itself down", Example: "  sauh vm shutdown 100 --timeout 2m --force",
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long the guest has")
	cmd.Flags().BoolVar(&force, "force", false, "stop it when the time is over")
	return m.guestTask(cmd, "shutdown", "shut down", func(ctx context.Context, c *client.Client, node string, id model.VMID) (string, error) {
		return c.ShutdownGuest(ctx, node, id, timeout, force)
	})
}

func (m *Main) vmDestroy() *cobra.Command {
	purge := false
	cmd := &cobra.Command{Use: "destroy VMID", Short: "Delete a stopped guest and its volumes", Example: "  sauh vm destroy 100 --purge"}
	cmd.Flags().BoolVar(&purge, "purge", false, "also take it out of high availability")
	return m.guestTask(cmd, "deletion", "deleted", func(ctx context.Context, c *client.Client, node string, id model.VMID) (string, error) {
		return c.DestroyGuest(ctx, node, id, purge)
	})
}

// settings are the flags that set keys of a guest's configuration.
type settings struct {
	cmd  *cobra.Command
	keys []string
	set  *[]string
}

func settingFlags(cmd *cobra.Command) *settings {
	s := &settings{cmd: cmd}
	for _, f := range [][2]string{
		{"name", "the guest's name"},
		{"memory", "memory in MiB"},
		{"cores", "cores per socket"},
		{"sockets", "sockets"},
		{"cpu", "CPU model"},
		{"machine", "QEMU machine type"},
		{"boot", "boot order, such as order=virtio0"},
		{"description", "a note"},
		{"tags", "tags, separated by ;"},
		{"virtio0", "first disk: STORAGE:GIB[,format=qcow2] allocates, STORAGE:0,import-from=FILE copies, STORAGE:VOLUME uses"},
		{"virtio1", "second disk"},
		{"net0", "first network card, such as virtio,bridge=vmbr0"},
		{"net1", "second network card"},
		{"serial0", "serial port, socket for 'sauh vm console'"},
	} {
		cmd.Flags().String(f[0], "", f[1])
		s.keys = append(s.keys, f[0])
	}
	s.set = cmd.Flags().StringArray("set", nil, "any other key of the configuration, as KEY=VALUE; may be given more than once")
	return s
}

func (s *settings) read() (map[string]string, error) {
	out := map[string]string{}
	for _, k := range s.keys {
		if f := s.cmd.Flags().Lookup(k); f.Changed {
			out[k] = f.Value.String()
		}
	}
	for _, kv := range *s.set {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, usageError(s.cmd, "--set takes KEY=VALUE, not %q", kv)
		}
		if _, twice := out[k]; twice {
			return nil, usageError(s.cmd, "%s is set twice", k)
		}
		out[k] = v
	}
	return out, nil
}

func (m *Main) vmCreate() *cobra.Command {
	var start bool
	cmd := &cobra.Command{
		Use: "create VMID", Short: "Make a guest",
		Long: "A disk is STORAGE:GIB for a new volume, STORAGE:0,import-from=FILE for a copy of an image, or a volume that exists.\n" +
			"With --set onboot=1 the guest is started whenever its node boots.",
		Example: "  sauh vm create 100 --name web --memory 512 --cores 2 --virtio0 nas:4,format=qcow2 --net0 virtio,bridge=vmbr0 --serial0 socket --start",
		Args:    takes("VMID"),
	}
	cmd.Flags().BoolVar(&start, "start", false, "start it when it is made")
	node := cmd.Flags().String("node", client.LocalNode, "the node to make it on")
	keys := settingFlags(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		id, err := model.ParseVMID(args[0])
		if err != nil {
			return err
		}
		params, err := keys.read()
		if err != nil {
			return err
		}
		upid, err := c.CreateGuest(ctx, *node, api.CreateGuestRequest{VMID: id, Params: params, Start: start})
		if err != nil {
			return err
		}
		if err := m.wait(ctx, c, upid, fmt.Sprintf("creation of guest %d", id), nil); err != nil {
			return err
		}
		where, err := client.TaskNode(upid)
		if err != nil {
			return err
		}
		m.say("guest %d created on node %s", id, where)
		return nil
	})
	return cmd
}

func (m *Main) vmSet() *cobra.Command {
	var del []string
	var digest string
	cmd := &cobra.Command{
		Use: "set VMID", Short: "Change a guest's configuration", Example: "  sauh vm set 100 --memory 1024 --set onboot=1 --delete net1",
		Args: takes("VMID"),
	}
	cmd.Flags().StringSliceVar(&del, "delete", nil, "keys to delete")
	cmd.Flags().StringVar(&digest, "digest", "", "change nothing if the configuration has another digest")
	keys := settingFlags(cmd)
	cmd.RunE = m.onGuest(func(ctx context.Context, c *client.Client, node string, id model.VMID) error {
		set, err := keys.read()
		if err != nil {
			return err
		}
		if len(set) == 0 && len(del) == 0 {
			return usageError(cmd, "nothing to change: give a key or --delete")
		}
		for _, k := range del {
			if _, both := set[k]; both {
				return usageError(cmd, "%s cannot be set and deleted at once", k)
			}
		}
		unused := unusedVolumes(ctx, c, node, id, del)
		err = c.SetGuestConfig(ctx, node, id, set, del, digest)
		if digest != "" && errors.Is(err, model.ErrConflict) {
			return fmt.Errorf("nothing was changed: the configuration of guest %d has another digest than %s by now; see 'sauh vm config %d --output json'",
				id, digest, id)
		}
		if err != nil {
			return err
		}
		for _, volume := range unused {
			fmt.Fprintf(m.Stderr, "the volume %s itself stays: 'sauh storage free %s' deletes it\n", volume, volume)
		}
		m.say("guest %d changed%s", id, laterNote(ctx, c, node, id, set, del))
		return nil
	})
	return cmd
}

// unusedVolumes are the volumes of the keys unused[n] among del, as far as that can be found out.
func unusedVolumes(ctx context.Context, c *client.Client, node string, id model.VMID, del []string) []string {
	var out []string
	for _, k := range del {
		if !strings.HasPrefix(k, "unused") {
			continue
		}
		if cfg, err := c.GuestConfig(ctx, node, id); err == nil && cfg.Values[k] != "" {
			out = append(out, cfg.Values[k])
		}
	}
	return out
}

// laterNote says which changes a guest that runs does not see yet, "" if there are none.
func laterNote(ctx context.Context, c *client.Client, node string, id model.VMID, set map[string]string, del []string) string {
	keys := slices.DeleteFunc(append(slices.Sorted(maps.Keys(set)), del...), func(k string) bool { return !pveconf.AtNextStart(k) })
	if len(keys) == 0 {
		return ""
	}
	if st, err := c.GuestStatus(ctx, node, id); err != nil || st.Status != "running" {
		return "" // the change was made; whether the guest runs is only a hint
	}
	return "; it runs, so this takes effect at its next start: " + strings.Join(keys, ", ")
}

func (m *Main) vmConfig() *cobra.Command {
	cmd := &cobra.Command{Use: "config VMID", Short: "Print a guest's configuration", Example: "  sauh vm config 100", Args: takes("VMID")}
	out := m.outputFlag(cmd)
	cmd.RunE = m.onGuest(func(ctx context.Context, c *client.Client, node string, id model.VMID) error {
		cfg, err := c.GuestConfig(ctx, node, id)
		if errors.Is(err, model.ErrUnavailable) {
			fmt.Fprintf(m.Stderr, "node %s does not answer: this is the configuration in the store\n", node)
			cfg, err = c.StoredConfig(ctx, node, id)
		}
		if err != nil {
			return err
		}
		keys := make([]string, 0, len(cfg.Values))
		for k := range cfg.Values {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		js := map[string]any{"vmid": id, "node": cfg.Node, "digest": cfg.Digest, "config": cfg.Values}
		return out.print(js, func(w io.Writer) {
			for _, k := range keys {
				fmt.Fprintf(w, "%s: %s\n", k, cfg.Values[k])
			}
		})
	})
	return cmd
}

func (m *Main) vmStatus() *cobra.Command {
	cmd := &cobra.Command{Use: "status VMID", Short: "Show a guest's state", Example: "  sauh vm status 100", Args: takes("VMID")}
	out := m.outputFlag(cmd)
	cmd.RunE = m.onGuest(func(ctx context.Context, c *client.Client, node string, id model.VMID) error {
		st, err := c.GuestStatus(ctx, node, id)
		if err != nil {
			return err
		}
		return out.print(st, func(w io.Writer) {
			ha := "not protected"
			if st.HA.Managed == 1 {
				ha = "requested " + st.HA.State
			}
			facts(w, "Guest", id.String(), "Name", st.Name, "Node", st.Node, "Status", shown(st.Status, st.Frozen == 1), "QEMU", st.QMPStatus, "Lock", st.Lock,
				"Process", number(st.PID), "CPUs", number(st.CPUs), "Memory", units.FormatBytes(st.MaxMemory), "Uptime", seconds(st.Uptime), "HA", ha)
		})
	})
	return cmd
}

func (m *Main) vmList() *cobra.Command {
	var node string
	cmd := &cobra.Command{Use: "list", Short: "List the guests of the cluster", Example: "  sauh vm list --node n2", Args: takes()}
	cmd.Flags().StringVar(&node, "node", "", "only this node's guests")
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		if node != "" {
			if err := isNode(ctx, c, node); err != nil {
				return err
			}
		}
		all, err := c.Guests(ctx)
		if err != nil {
			return err
		}
		guests := []model.Guest{}
		for _, g := range all {
			if node == "" || g.Node == node {
				guests = append(guests, g)
			}
		}
		return out.print(guests, func(w io.Writer) { printGuests(w, guests) })
	})
	return cmd
}

// isNode refuses what is no node's name.
func isNode(ctx context.Context, c *client.Client, name string) error {
	st, err := c.ClusterStatus(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, n := range st.Nodes {
		names = append(names, n.Name)
	}
	if !slices.Contains(names, name) {
		return fmt.Errorf("no such cluster node '%s': the nodes are %s", name, strings.Join(names, ", "))
	}
	return nil
}

// shown is a guest's status with what the guard does to it.
func shown(status string, frozen bool) string {
	if frozen {
		return status + " (frozen)"
	}
	return status
}

func printGuests(w io.Writer, guests []model.Guest) {
	rows := [][]string{{"VMID", "NAME", "NODE", "STATUS", "MEMORY", "CPUS", "UPTIME", "HA"}}
	for _, g := range guests {
		mem := ""
		if g.MemoryMiB > 0 {
			mem = strconv.FormatInt(g.MemoryMiB, 10) + " MiB"
		}
		rows = append(rows, []string{g.VMID.String(), g.Name, g.Node, shown(g.Status, g.Frozen), mem, number(g.CPUs), seconds(g.Uptime), g.HA})
	}
	table(w, rows...)
}
