// Package cli is the command line: one file per noun, each command a thin wrapper of one or two
// methods of internal/client that prints tables or JSON.
//
// It knows no agent and no guard: main passes those in. Invariants: what a command was asked for goes to
// standard output; an error is one sentence on standard error and exit status 1; usage is never dumped on an
// error. Start reading with [Main].
package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/model"
)

// GuardOptions are the flags of `sauh guard`.
type GuardOptions struct {
	Socket     string
	Watchdog   string // device, or "none"
	CgroupRoot string
}

// Main is the program: what it prints to, and what it cannot know itself.
type Main struct {
	Version model.Version
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Getenv  func(string) string
	Now     func() time.Time
	// Agent and Guard are the two daemons; they return when ctx is done.
	Agent func(ctx context.Context, configPath string) error
	Guard func(ctx context.Context, o GuardOptions) error
	// Hold keeps the guard's watchdog open beside it; socket is the guard's.
	Hold func(socket string) error
}

// Run carries out one command line (without the program's name) and returns the exit status: 0, 1 after an error, 130 after Ctrl-C.
// When ctx is done a running migration is cancelled and every other wait ends.
func (m *Main) Run(ctx context.Context, args []string) int {
	root := m.root()
	root.SetArgs(pveArgs(args))
	root.SetIn(m.Stdin)
	root.SetOut(m.Stdout)
	root.SetErr(m.Stderr)
	var noTopic error
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		// cobra shows a group's help for whatever follows its name.
		if topic := cmd.Flags().Args(); cmd.HasSubCommands() && len(topic) > 0 {
			noTopic = noCommand(cmd, topic[0])
			return
		}
		help(cmd, args)
	})
	err := cmp.Or(root.ExecuteContext(ctx), noTopic)
	if err == nil {
		return 0
	}
	fmt.Fprintln(m.Stderr, "sauh: "+sentence(err))
	if ctx.Err() != nil {
		return interrupted
	}
	return 1
}

// interrupted is the exit status after Ctrl-C, as a shell gives it: 128 and the number of SIGINT.
const interrupted = 130

// sentence makes sure that an error is one line.
func sentence(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	if flags, ok := strings.CutPrefix(text, "required flag(s) "); ok {
		return "missing: " + strings.ReplaceAll(strings.TrimSuffix(flags, " not set"), `"`, "--")
	}
	return text
}

func (m *Main) root() *cobra.Command {
	root := group("sauh", "Sauh: a private cloud of three or more Linux machines",
		"  sauh cluster create demo\n  sauh vm create 100 --memory 512 --virtio0 nas:1 --start",
		m.versionCommand(), m.agentCommand(), m.guardCommand(), m.clusterCommand(), m.pvecmCommand(), m.vmCommand(), m.haCommand(), m.haManagerCommand(),
		m.storageCommand(), m.taskCommand(), m.nodeCommand())
	root.AddCommand(extraCommands(m)...)
	root.AddCommand(m.simCommand())
	refuseUnknown(root)
	root.SetHelpCommand(helpCommand())
	root.Version = m.Version.Version
	root.SetVersionTemplate("sauh {{.Version}}\n")
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, "%s", flagProblem(cmd, err)) })
	return root
}

// flagProblem says what a flag takes; pflag's own words are those of Go's parsers.
func flagProblem(cmd *cobra.Command, err error) string {
	var value, flag string
	if _, other := fmt.Sscanf(err.Error(), "invalid argument %q for %q flag:", &value, &flag); other != nil {
		return err.Error()
	}
	_, name, _ := strings.Cut(flag, "--") // "--nodes", or "-o, --output"
	f := cmd.Flags().Lookup(name)
	if f == nil {
		return err.Error()
	}
	takes := map[string]string{
		"int": "a whole number", "int64": "a whole number", "uint64": "a whole number that is not negative",
		"duration": "a time such as 90s, 10m or 2h", "bool": "true or false",
	}[f.Value.Type()]
	if takes == "" {
		return err.Error()
	}
	return fmt.Sprintf("--%s takes %s, not %q", name, takes, value)
}

// group is a command that only has others below it.
func group(use, short, example string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Example: example}
	cmd.AddCommand(sub...)
	return cmd
}

// refuseUnknown makes every group below cmd refuse a command that it does not have; cobra alone would print its help and be content.
func refuseUnknown(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		refuseUnknown(sub)
	}
	if !cmd.HasSubCommands() || cmd.Runnable() {
		return
	}
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return noCommand(cmd, args[0])
		}
		return cmd.Help()
	}
}

func noCommand(group *cobra.Command, name string) error {
	return usageError(group, "there is no command '%s %s'", group.CommandPath(), name)
}

// helpCommand is `sauh help`; cobra's own is content with what is no command.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Explain a command", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return noCommand(about, append(rest, args...)[0])
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

func usageError(cmd *cobra.Command, format string, args ...any) error {
	return fmt.Errorf("%s; see '%s --help'", fmt.Sprintf(format, args...), cmd.CommandPath())
}

// takes demands exactly the arguments named.
func takes(names ...string) cobra.PositionalArgs {
	return takesOptional(len(names), names...)
}

// takesOptional demands the first n of the arguments named; the rest may be left out.
func takesOptional(n int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < n:
			return usageError(cmd, "%s needs %s", cmd.CommandPath(), strings.Join(names[len(args):n], " and "))
		case slices.Contains(args, ""):
			return usageError(cmd, "%s needs %s, not an empty word", cmd.CommandPath(), strings.Join(names, " and "))
		case len(args) > len(names):
			return usageError(cmd, "%s does not take the argument %q", cmd.CommandPath(), args[len(names)])
		}
		return nil
	}
}

// client speaks to the agent of this machine.
func (m *Main) client() *client.Client {
	return client.New(client.Options{Socket: m.Getenv("SAUH_SOCKET")})
}

// withClient is a RunE that has a client and closes it.
func (m *Main) withClient(run func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c := m.client()
		defer c.Close()
		return run(cmd.Context(), c, args)
	}
}

// output is the flag --output of a command that prints.
type output struct {
	m      *Main
	format string
}

func (m *Main) outputFlag(cmd *cobra.Command) *output {
	o := &output{m: m, format: "table"}
	cmd.Flags().StringVarP(&o.format, "output", "o", o.format, "how to print: table or json")
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if o.format != "table" && o.format != "json" {
			return usageError(cmd, "--output is table or json, not %q", o.format)
		}
		if check != nil {
			return check(cmd, args)
		}
		return nil
	}
	return o
}

func (o *output) json() bool { return o.format == "json" }

// print writes v as JSON, or lets table write it for a person.
func (o *output) print(v any, table func(w io.Writer)) error {
	if !o.json() {
		table(o.m.Stdout)
		return nil
	}
	enc := json.NewEncoder(o.m.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table writes rows in columns; the first row is the header. An empty cell prints as "-".
func table(w io.Writer, rows ...[]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		cells := make([]string, len(r))
		for i, c := range r {
			cells[i] = oneLine(c)
			if c == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	_ = tw.Flush() // standard output that is gone has nobody to tell
}

// oneLine shows the ends of lines in s, so that none can be taken for a row or a key of its own.
func oneLine(s string) string {
	return strings.NewReplacer("\r", `\r`, "\n", `\n`, "\t", " ").Replace(s)
}

// facts writes "name: value" lines in two columns; pairs with an empty value are left out.
func facts(w io.Writer, pairs ...string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(tw, "%s:\t%s\n", pairs[i], pairs[i+1])
		}
	}
	_ = tw.Flush()
}

func (m *Main) say(format string, args ...any) {
	fmt.Fprintf(m.Stdout, format+"\n", args...)
}

// clock prints Unix seconds in the zone of the person who reads.
func (m *Main) clock(unix int64) string {
	if unix == 0 {
		return ""
	}
	return time.Unix(unix, 0).In(m.Now().Location()).Format("2006-01-02 15:04:05")
}

// seconds prints a length of time: "1h2m3s".
func seconds(n int64) string {
	if n == 0 {
		return ""
	}
	return (time.Duration(n) * time.Second).String()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// number prints n, and nothing for 0.
func number[T int | int64 | uint64](n T) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(int64(n), 10)
}
