package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
)

// pveFlags are the yes-or-no flags of ha-manager.
func pveFlags() []string {
	return []string{"verbose", "strict", "disable", "failback", "auto-rebalance", "purge", "noborder", "noheader", "quiet"}
}

// pveArgs has a command line of ha-manager read as Proxmox VE reads it: the word after a yes-or-no flag is its value, "--strict 1", unless it is
// another flag; the flag alone is yes. Other command lines stay as they are.
func pveArgs(args []string) []string {
	if len(args) == 0 || args[0] != "ha-manager" {
		return args
	}
	var out []string
	for i := 0; i < len(args); i++ {
		name, value, given := strings.Cut(strings.TrimPrefix(args[i], "--"), "=")
		if !strings.HasPrefix(args[i], "--") || !slices.Contains(pveFlags(), name) {
			out = append(out, args[i])
			continue
		}
		if !given {
			value = "1"
			if i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
				i++
				value = args[i]
			}
		}
		out = append(out, "--"+name+"="+pveBool(value))
	}
	return out
}

// pveBool is a spelling of yes or no as the API has it; anything else stays, for whoever refuses it.
func pveBool(word string) string {
	switch strings.ToLower(word) {
	case "1", "yes", "on", "true":
		return "1"
	case "0", "no", "off", "false":
		return "0"
	}
	return word
}

// pveFlag adds a yes-or-no flag whose value stands in *value.
func pveFlag(f *pflag.FlagSet, value *string, name, help string) {
	f.StringVar(value, name, *value, help+": 1 or 0")
}

// isYes reads one.
func isYes(cmd *cobra.Command, name, value string) (bool, error) {
	if value != "0" && value != "1" {
		return false, usageError(cmd, "--%s is 1 or 0, not %q", name, value)
	}
	return value == "1", nil
}

func (m *Main) pveRules() *cobra.Command {
	return group("rules", "List and change the HA rules",
		"  sauh ha-manager rules add node-affinity near --resources vm:100 --nodes n1:2,n2\n  sauh ha-manager rules set node-affinity near --strict 1",
		m.pveRuleTable("list", "List the names of the rules", "rule"),
		m.pveRuleTable("config", "List the rules with what they are about", "enabled", "state", "rule", "type", "resources", "comment"),
		m.pveRuleAdd(), m.pveRuleSet(), m.pveRuleRemove())
}

// pveRuleSettings are the settings as ha-manager spells them, with those that Proxmox VE does not have.
func pveRuleSettings(f *pflag.FlagSet) *entry {
	var list []setting
	for _, s := range ruleSettings() {
		if s.yesNo {
			s.yesNo, s.help = false, s.help+": 1 or 0"
		}
		list = append(list, s)
	}
	return entryFlags(f, list...)
}

// pveRuleTable prints rules in the columns named.
func (m *Main) pveRuleTable(name, short string, columns ...string) *cobra.Command {
	typ, resource := "", ""
	cmd := &cobra.Command{
		Use: name, Short: short, Example: "  sauh ha-manager rules " + name + "\n  sauh ha-manager rules " + name + " --resource vm:100 --output-format json",
		Args: takes(),
	}
	cmd.Flags().StringVar(&typ, "type", "", "only node-affinity or resource-affinity")
	cmd.Flags().StringVar(&resource, "resource", "", "only those that name this resource")
	format := pveFormatFlags(cmd.Flags())
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		if !slices.Contains([]string{"", "node-affinity", "resource-affinity"}, typ) {
			return usageError(cmd, "--type is node-affinity or resource-affinity, not %q", typ)
		}
		if err := format.check(cmd); err != nil {
			return err
		}
		rows, err := c.HARuleRows(ctx, typ, resource)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if name == "config" {
				r["enabled"], r["state"] = 1, "in use"
				if v, ok := r["disable"]; ok && fmt.Sprint(v) != "0" {
					r["enabled"] = 0
				}
				if r["errors"] != nil {
					r["state"] = "ignored (conflicts)"
				}
			}
		}
		return format.print(m, rows, columns)
	})
	return cmd
}

func (m *Main) pveRuleAdd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add TYPE RULE", Short: "Make a rule of the type node-affinity or resource-affinity",
		Example: "  sauh ha-manager rules add resource-affinity apart --affinity negative --resources vm:100,vm:101", Args: takes("TYPE", "RULE"),
	}
	set := pveRuleSettings(cmd.Flags())
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		values := set.given(cmd.Flags())
		if err := checkRule(cmd, args[0], values); err != nil {
			return err
		}
		return c.AddRule(ctx, api.Section{Type: args[0], ID: args[1], Values: values})
	})
	return cmd
}

func (m *Main) pveRuleSet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set TYPE RULE", Short: "Change a rule", Example: "  sauh ha-manager rules set node-affinity near --strict 1", Args: takes("TYPE", "RULE"),
	}
	set := pveRuleSettings(cmd.Flags()).changeable(cmd.Flags())
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		if err := checkRuleType(cmd, args[0]); err != nil {
			return err
		}
		e, err := set.edit(cmd)
		if err != nil {
			return err
		}
		if err := checkLists(cmd, e.Set); err != nil {
			return err
		}
		e.Set["type"] = args[0] // the API refuses another one than the rule's
		return c.SetRule(ctx, args[1], e)
	})
	return cmd
}

func (m *Main) pveRuleRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove RULE", Short: "Delete a rule", Example: "  sauh ha-manager rules remove near", Args: takes("RULE"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error { return c.RemoveRule(ctx, args[0]) }),
	}
}

// groupsAreRules is said whoever wants to make or change a group.
const groupsAreRules = "Proxmox VE 9 has replaced HA groups by rules, and so has Sauh"

func (m *Main) pveGroupConfig() *cobra.Command {
	return &cobra.Command{
		Use: "groupconfig", Short: "Show the groups that ha/groups.cfg has from before there were rules", Example: "  sauh ha-manager groupconfig", Args: takes(),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			groups, err := c.HAGroups(ctx)
			if err != nil {
				return err
			}
			if len(groups) == 0 {
				return fmt.Errorf("there are no HA groups: %s; see 'sauh ha-manager rules config'", groupsAreRules)
			}
			slices.SortFunc(groups, func(a, b api.Section) int { return strings.Compare(a.ID, b.ID) })
			for _, g := range groups {
				printSection(m.Stdout, "group: "+g.ID, g.Values)
				fmt.Fprintln(m.Stdout)
			}
			return nil
		}),
	}
}

// pveGroup is a command of Proxmox VE that ended with its version 9. It takes whatever was given.
func pveGroup(name, rules string) *cobra.Command {
	return &cobra.Command{
		Use: name + " GROUP", Short: "No more: groups are rules, see 'rules " + rules + "'", Example: "  sauh ha-manager rules " + rules + " --help",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
				return cmd.Help()
			}
			example := map[string]string{
				"add": "make a node-affinity rule: 'sauh ha-manager rules add node-affinity RULE --resources vm:100 --nodes n1:2,n2', with --strict 1 for --restricted",
				"set": "change the rule with 'sauh ha-manager rules set node-affinity RULE'", "remove": "delete the rule with 'sauh ha-manager rules remove RULE'",
			}[rules]
			return fmt.Errorf("%s: %s", groupsAreRules, example)
		},
	}
}

// pveFormat is how Proxmox VE's commands print rows.
type pveFormat struct{ format, noborder, noheader, quiet string }

func pveFormatFlags(f *pflag.FlagSet) *pveFormat {
	p := &pveFormat{format: "text", noborder: "0", noheader: "0", quiet: "0"}
	f.StringVar(&p.format, "output-format", p.format, "how to print: text, json or json-pretty")
	pveFlag(f, &p.noborder, "noborder", "text without lines around it")
	pveFlag(f, &p.noheader, "noheader", "text without the names of the columns")
	pveFlag(f, &p.quiet, "quiet", "print nothing")
	return p
}

func (p *pveFormat) check(cmd *cobra.Command) error {
	for name, v := range map[string]string{"noborder": p.noborder, "noheader": p.noheader, "quiet": p.quiet} {
		if _, err := isYes(cmd, name, v); err != nil {
			return err
		}
	}
	if !slices.Contains([]string{"text", "json", "json-pretty"}, p.format) {
		return usageError(cmd, "--output-format is text, json or json-pretty, not %q", p.format)
	}
	return nil
}

// print writes rows, as text sorted by the first of the columns.
func (p *pveFormat) print(m *Main, rows []map[string]any, columns []string) error {
	switch {
	case p.quiet == "1":
		return nil
	case p.format == "json":
		return json.NewEncoder(m.Stdout).Encode(rows)
	case p.format == "json-pretty":
		return pretty(m.Stdout, rows)
	case len(rows) == 0:
		return nil
	}
	var cells [][]string
	for _, r := range rows {
		var line []string
		for _, c := range columns {
			text := ""
			if v, ok := r[c]; ok {
				text = oneLine(fmt.Sprint(v))
			}
			line = append(line, text)
		}
		cells = append(cells, line)
	}
	slices.SortStableFunc(cells, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	if p.noheader != "1" {
		cells = slices.Insert(cells, 0, columns)
	}
	if p.noborder == "1" {
		printPlain(m.Stdout, cells)
		return nil
	}
	printBoxed(m.Stdout, cells, p.noheader != "1", m.utf8())
	return nil
}

// pretty writes JSON as Perl does.
func pretty(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "   ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// utf8 says whether the terminal shows the characters of lines.
func (m *Main) utf8() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(m.Getenv(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// widths are those of the columns.
func widths(cells [][]string) []int {
	out := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, c := range line {
			out[i] = max(out[i], utf8.RuneCountInString(c))
		}
	}
	return out
}

func padded(s string, width int) string {
	return s + strings.Repeat(" ", width-utf8.RuneCountInString(s))
}

// printPlain writes columns with a space between.
func printPlain(w io.Writer, cells [][]string) {
	width := widths(cells)
	for _, line := range cells {
		var row strings.Builder
		for i, c := range line {
			row.WriteString(padded(c, width[i]) + " ")
		}
		fmt.Fprintln(w, strings.TrimRight(row.String(), " "))
	}
}

// ruler draws the lines between rows: left, fill, between, right.
type ruler [4]string

func (r ruler) line(width []int) string {
	var parts []string
	for _, n := range width {
		parts = append(parts, strings.Repeat(r[1], n+2))
	}
	return r[0] + strings.Join(parts, r[2]) + r[3]
}

// printBoxed writes a table with lines around each row, and a double one below the header.
func printBoxed(w io.Writer, cells [][]string, header, utf8 bool) {
	bar, top, below := "|", ruler{"+", "-", "+", "+"}, ruler{"+", "=", "+", "+"}
	between, bottom := top, top
	if utf8 {
		bar, top, below = "│", ruler{"┌", "─", "┬", "┐"}, ruler{"╞", "═", "╪", "╡"}
		between, bottom = ruler{"├", "─", "┼", "┤"}, ruler{"└", "─", "┴", "┘"}
	}
	width := widths(cells)
	fmt.Fprintln(w, top.line(width))
	for i, line := range cells {
		for j, c := range line {
			fmt.Fprintf(w, "%s %s ", bar, padded(c, width[j]))
		}
		fmt.Fprintln(w, bar)
		switch {
		case i == len(cells)-1:
		case i == 0 && header:
			fmt.Fprintln(w, below.line(width))
		default:
			fmt.Fprintln(w, between.line(width))
		}
	}
	fmt.Fprintln(w, bottom.line(width))
}
