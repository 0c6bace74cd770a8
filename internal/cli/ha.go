package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
)

const haStates = "started (or enabled), stopped, disabled or ignored"

func (m *Main) haCommand() *cobra.Command {
	return group("ha", "Protect guests against the loss of their node", "  sauh ha add vm:100\n  sauh ha status\n  sauh ha explain vm:100",
		m.haAdd(), m.haSet(), m.haRemove(), m.haList(), m.haConfig(), m.haStatus(), m.haAcknowledge(), m.haExplain(), m.haWhatIf(),
		m.haMove("migrate", "Have a protected guest go to another node while it runs; who must be with it goes along"),
		m.haMove("relocate", "Have a protected guest stop and start again on another node"), m.haStop(),
		m.haMaintenance(), m.haDisarm(), m.haArm(), m.rulesCommand(), m.fenceCommand(), m.fenceTest("fence-test"), m.haOptions())
}

// setting is a flag that stands for a key of a configuration file.
type setting struct {
	flag, key, help string
	yesNo           bool // a flag that is 1 or 0 in the file
}

// entry is the flags of a command that changes an entry.
type entry struct {
	list   []setting
	texts  map[string]*string
	flags  map[string]*bool
	delete []string
	digest string
}

func entryFlags(f *pflag.FlagSet, list ...setting) *entry {
	s := &entry{list: list, texts: map[string]*string{}, flags: map[string]*bool{}}
	for _, o := range list {
		if o.yesNo {
			s.flags[o.key] = f.Bool(o.flag, false, o.help)
		} else {
			s.texts[o.key] = f.String(o.flag, "", o.help)
		}
	}
	return s
}

// changeable adds what only a change of something that is there has.
func (s *entry) changeable(f *pflag.FlagSet) *entry {
	f.StringSliceVar(&s.delete, "delete", nil, "settings to take back to their defaults, separated by commas")
	f.StringVar(&s.digest, "digest", "", "refuse the change if the file is not the one with this digest")
	return s
}

// given are the settings on the command line.
func (s *entry) given(f *pflag.FlagSet) map[string]string {
	out := map[string]string{}
	for _, o := range s.list {
		switch {
		case !f.Changed(o.flag):
		case o.yesNo && *s.flags[o.key]:
			out[o.key] = "1"
		case o.yesNo:
			out[o.key] = "0"
		default:
			out[o.key] = *s.texts[o.key]
		}
	}
	return out
}

// edit is the change that the command line asks for.
func (s *entry) edit(cmd *cobra.Command) (api.Edit, error) {
	e := api.Edit{Set: s.given(cmd.Flags()), Digest: s.digest}
	for _, word := range s.delete {
		key := word
		for _, o := range s.list {
			if o.flag == word {
				key = o.key
			}
		}
		e.Delete = append(e.Delete, key)
	}
	if len(e.Set)+len(e.Delete) == 0 {
		return e, usageError(cmd, "nothing to change: give a setting, such as --%s, or --delete", s.list[0].flag)
	}
	return e, nil
}

func resourceSettings() []setting {
	return []setting{
		{flag: "state", key: "state", help: "requested state: " + haStates},
		{flag: "comment", key: "comment", help: "a note"},
		{flag: "max-restart", key: "max_restart", help: "how often a start that failed is repeated on the same node (1)"},
		{flag: "max-relocate", key: "max_relocate", help: "how often it is then tried on other nodes (1)"},
		{flag: "failback", key: "failback", help: "return when a node that its rule prefers is back (yes)", yesNo: true},
		{flag: "auto-rebalance", key: "auto-rebalance", help: "let the automatic balancing move it (yes)", yesNo: true},
		{flag: "order", key: "order", help: "of several that start at the same time the lower number goes first, 1 to 9999"},
		{flag: "after", key: "after", help: "what must run first: vm:101, vm:101:agent (its agent answered) or vm:101:30 (for 30 s), separated by commas"},
		{flag: "reset-on", key: "reset-on", help: "reset the guest when it is panicked, silent, or either, separated by commas"},
	}
}

func (m *Main) haAdd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add vm:VMID", Short: "Protect a guest: if its node is lost it is started elsewhere",
		Example: "  sauh ha add vm:100 --comment 'the shop'\n  sauh ha add vm:101 --max-restart 3 --after vm:100:agent", Args: takes("vm:VMID"),
	}
	set := entryFlags(cmd.Flags(), resourceSettings()...)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		return m.addResource(ctx, cmd, c, args[0], set.given(cmd.Flags()))
	})
	return cmd
}

func (m *Main) addResource(ctx context.Context, cmd *cobra.Command, c *client.Client, sid string, values map[string]string) error {
	if state, given := values["state"]; given && state == "" {
		return usageError(cmd, "--state is %s, not empty", haStates)
	}
	r := api.HAResource{SID: sid, State: values["state"], Comment: values["comment"], Values: values}
	delete(values, "state")
	delete(values, "comment")
	if r.State == "" {
		r.State = "started"
	}
	if err := c.HAAdd(ctx, r); err != nil {
		return err
	}
	m.say("%s is protected, requested state %s", r.SID, r.State)
	return nil
}

func (m *Main) haSet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set vm:VMID", Short: "Change a protected guest's requested state or other settings",
		Example: "  sauh ha set vm:100 --state stopped\n  sauh ha set vm:100 --delete comment,max-restart", Args: takes("vm:VMID"),
	}
	set := entryFlags(cmd.Flags(), resourceSettings()...).changeable(cmd.Flags())
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		e, err := set.edit(cmd)
		if err != nil {
			return err
		}
		if err := c.HASet(ctx, args[0], e); err != nil {
			return err
		}
		m.say("%s changed", args[0])
		return nil
	})
	return cmd
}

func (m *Main) haRemove() *cobra.Command {
	keep := false
	cmd := &cobra.Command{
		Use: "remove vm:VMID", Short: "Protect a guest no longer; it goes on running, and rules forget it",
		Example: "  sauh ha remove vm:100", Args: takes("vm:VMID"),
	}
	cmd.Flags().BoolVar(&keep, "keep-rules", false, "leave it in the rules that name it")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		if err := c.HARemove(ctx, args[0], keep); err != nil {
			return err
		}
		m.say("%s is protected no longer", args[0])
		return nil
	})
	return cmd
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

func (m *Main) haConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Show what is protected with all its settings, as ha/resources.cfg has them", Example: "  sauh ha config", Args: takes(),
	}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		list, err := c.HAResources(ctx)
		if err != nil {
			return err
		}
		return out.print(list, func(w io.Writer) { printResources(w, list) })
	})
	return cmd
}

// printResources has the form of `ha-manager config`.
func printResources(w io.Writer, list []api.HAResource) {
	for i, r := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		values := map[string]string{"state": r.State}
		for k, v := range r.Values {
			values[k] = v
		}
		if r.Comment != "" {
			values["comment"] = r.Comment
		}
		printSection(w, r.SID, values)
	}
}

func printSection(w io.Writer, head string, values map[string]string) {
	fmt.Fprintln(w, head)
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintln(w, strings.TrimRight("\t"+k+" "+oneLine(values[k]), " "))
	}
}

// plural prints "1 guest", "2 guests".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
