package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
)

func (m *Main) fenceCommand() *cobra.Command {
	return group("fence", "Say how a node is proved dead sooner than its lease does",
		"  sauh ha fence set redfish n2-bmc node=n2 address=10.0.9.2 user=sauh fingerprint=AB:CD… --password-stdin <secret\n  sauh ha fence test n2",
		m.fenceList(), m.fenceSet(), m.fenceRemove(), m.fenceFile(), m.fenceTest("test"))
}

func (m *Main) fenceList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List each node's methods, what they are worth, and their last rehearsal", Example: "  sauh ha fence list", Args: takes(),
	}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		list, err := c.FenceMethods(ctx)
		if err != nil {
			return err
		}
		return out.print(list, func(w io.Writer) { m.printMethods(w, list) })
	})
	return cmd
}

func (m *Main) printMethods(w io.Writer, list []api.HAFenceMethod) {
	rows := [][]string{{"NODE", "METHOD", "GRADE", "LAST REHEARSAL", "RESULT"}}
	for _, f := range list {
		result := f.Failed
		switch {
		case f.Tried == 0:
			result = ""
		case f.Failed == "" && f.Switched:
			result = fmt.Sprintf("switched the node off in %.1f s", float64(f.TookMS)/1000)
		case f.Failed == "":
			result = fmt.Sprintf("answered in %.1f s", float64(f.TookMS)/1000)
		}
		rows = append(rows, []string{f.Node, f.Method, f.Grade, orWord(m.clock(f.Tried), "never"), result})
	}
	table(w, rows...)
	for _, f := range list {
		if f.Reason != "" {
			fmt.Fprintf(w, "%s of %s proves nothing: %s\n", f.Method, f.Node, f.Reason)
		}
	}
}

func (m *Main) fenceSet() *cobra.Command {
	var del []string
	var digest string
	stdin := false
	cmd := &cobra.Command{
		Use: "set TYPE METHOD [KEY=VALUE]…", Short: "Make or change a method of the type ipmi, redfish or ceph",
		Long: "The keys stand in docs/fencing.md. A password is read from standard input and written to priv/fence/METHOD, where nobody reads it back.",
		Example: "  sauh ha fence set redfish n2-bmc node=n2 address=10.0.9.2 user=sauh fingerprint=AB:CD… --password-stdin <secret\n" +
			"  sauh ha fence set ipmi n3-bmc timeout=20 --delete verify-gap",
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) < 2 {
			return usageError(cmd, "%s needs %s", cmd.CommandPath(), strings.Join([]string{"TYPE", "METHOD"}[len(args):], " and "))
		}
		return nil
	}
	cmd.Flags().StringSliceVar(&del, "delete", nil, "keys to take back to their defaults, separated by commas")
	cmd.Flags().StringVar(&digest, "digest", "", "refuse the change if the file is not the one with this digest")
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		if strings.ContainsAny(args[1], "/\\ ") {
			return usageError(cmd, "%q is no name of a method: use letters, digits, '-' and '_', such as n2-bmc", args[1])
		}
		e := api.Edit{Set: map[string]string{}, Delete: del, Digest: digest}
		for _, a := range args[2:] {
			key, value, ok := strings.Cut(a, "=")
			if !ok || key == "" {
				return usageError(cmd, "%q is no KEY=VALUE", a)
			}
			if _, twice := e.Set[key]; twice {
				return usageError(cmd, "%s is set twice", key)
			}
			e.Set[key] = value
		}
		if _, there := e.Set["password"]; there {
			return usageError(cmd, "a password stands in no command line: give it on standard input with --password-stdin")
		}
		secret := ""
		if _, there := e.Set["password-file"]; there && stdin {
			return usageError(cmd, "--password-stdin writes a password file of its own: leave out password-file")
		}
		if stdin {
			var err error
			if secret, err = m.fencePassword(); err != nil {
				return err
			}
		}
		if len(e.Set)+len(e.Delete) == 0 && !stdin {
			return usageError(cmd, "nothing to change: give KEY=VALUE, --delete or --password-stdin")
		}
		if err := c.SetFenceMethod(ctx, args[0], args[1], e, secret); err != nil {
			return err
		}
		m.say("%s: %s is configured; try it with 'sauh ha fence test %s'", args[0], args[1], orWord(e.Set["node"], "NODE"))
		return nil
	})
	return cmd
}

// maxPassword is more than any BMC takes.
const maxPassword = 1024

// fencePassword reads a password from standard input.
func (m *Main) fencePassword() (string, error) {
	b, err := io.ReadAll(io.LimitReader(m.Stdin, maxPassword))
	if err != nil {
		return "", fmt.Errorf("read the password from standard input: %w", err)
	}
	secret := strings.TrimRight(string(b), "\r\n")
	switch {
	case secret == "":
		return "", fmt.Errorf("no password came on standard input: write sauh ha fence set … --password-stdin <FILE")
	case strings.ContainsAny(secret, "\r\n"):
		return "", fmt.Errorf("what came on standard input has more than one line: a password is one")
	}
	return secret, nil
}

func (m *Main) fenceRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove METHOD", Short: "Delete a method, and its password unless another method uses it", Example: "  sauh ha fence remove n2-bmc",
		Args: takes("METHOD"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.RemoveFenceMethod(ctx, args[0]); err != nil {
				return err
			}
			m.say("%s removed", args[0])
			return nil
		}),
	}
}

func (m *Main) fenceFile() *cobra.Command {
	from, digest := "", ""
	cmd := &cobra.Command{
		Use: "file", Short: "Print ha/fence.cfg, or replace it", Example: "  sauh ha fence file >fence.cfg\n  sauh ha fence file --from fence.cfg", Args: takes(),
	}
	cmd.Flags().StringVar(&from, "from", "", "replace it by this file; - is standard input")
	cmd.Flags().StringVar(&digest, "digest", "", "refuse the change if the file is not the one with this digest")
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		if from == "" {
			f, err := c.FenceFile(ctx)
			if err != nil {
				return err
			}
			return out.print(f, func(w io.Writer) { _, _ = io.WriteString(w, f.Text) })
		}
		b, err := os.ReadFile(from)
		if from == "-" {
			b, err = io.ReadAll(m.Stdin)
		}
		if err != nil {
			return err
		}
		if !hasSection(string(b)) {
			return fmt.Errorf("%s has no method, and would delete all that there are: 'sauh ha fence remove METHOD' deletes one", from)
		}
		if err := c.SetFenceFile(ctx, string(b), digest); err != nil {
			return err
		}
		m.say("ha/fence.cfg is in force")
		return nil
	})
	return cmd
}

// hasSection says whether a file has more than comments and empty lines.
func hasSection(text string) bool {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return true
		}
	}
	return false
}

// fenceTest is `ha fence test`, and `ha fence-test` for who looks for it beside the commands of HA.
func (m *Main) fenceTest(name string) *cobra.Command {
	switching := false
	cmd := &cobra.Command{
		Use: name + " NODE", Short: "Try a node's methods and note how it went; without --switch nobody is harmed",
		Long: "Without --switch each method is asked about a node that runs: does it answer, is it this node's BMC, may the user switch it. With --switch\n" +
			"the node, which must be in maintenance and have no guests, is really switched off, by one method: those that nobody saw switching come\n" +
			"first. Nobody switches it on again but you.",
		Example: "  sauh ha fence test n2\n  sauh ha fence test n2 --switch", Args: takes("NODE"),
	}
	cmd.Flags().BoolVar(&switching, "switch", false, "switch the node off")
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		list, err := c.FenceTest(ctx, args[0], switching)
		if err != nil {
			return err
		}
		if err := out.print(list, func(w io.Writer) { m.printMethods(w, list) }); err != nil {
			return err
		}
		if switching && !out.json() && slices.ContainsFunc(list, func(f api.HAFenceMethod) bool { return f.Switched && f.Failed == "" }) {
			m.say("%s is off: switch it on again", args[0])
		}
		failed := 0
		for _, f := range list {
			if f.Failed != "" {
				failed++
			}
		}
		if failed > 0 {
			used := "it is not used until it passes"
			if failed > 1 {
				used = "they are not used until they pass"
			}
			return fmt.Errorf("%s of %s failed; %s", plural(failed, "method"), args[0], used)
		}
		return nil
	})
	return cmd
}
