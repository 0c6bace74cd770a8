package cli

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
)

func (m *Main) rulesCommand() *cobra.Command {
	return group("rules", "Say where guests belong, and who belongs together or apart",
		"  sauh ha rules add node-affinity shop-near --resources vm:100 --nodes n1:2,n2\n"+
			"  sauh ha rules add resource-affinity two-shops --resources vm:100,vm:101 --affinity negative",
		m.rulesList(), m.rulesConfig(), m.rulesAdd(), m.rulesSet(), m.rulesRemove())
}

func ruleSettings() []setting {
	return []setting{
		{flag: "resources", key: "resources", help: "the guests it is about: vm:100,vm:101"},
		{flag: "nodes", key: "nodes", help: "node-affinity: the nodes, with priorities: n1:2,n2"},
		{flag: "affinity", key: "affinity", help: "resource-affinity: positive (together) or negative (apart)"},
		{flag: "strict", key: "strict", help: "never break it, rather than prefer it (default: no for node-affinity, yes for resource-affinity)", yesNo: true},
		{flag: "domain", key: "domain", help: "resource-affinity: what they share or must not share: node, rack or site (node)"},
		{flag: "weight", key: "weight", help: "resource-affinity with --strict=false: what breaking it costs, 1 to 1000 (100)"},
		{flag: "disable", key: "disable", help: "keep it without effect", yesNo: true},
		{flag: "comment", key: "comment", help: "a note"},
	}
}

func (m *Main) rulesList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the rules", Example: "  sauh ha rules list", Args: takes()}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		all, err := c.Rules(ctx)
		if err != nil {
			return err
		}
		return out.print(all.List, func(w io.Writer) {
			rows := [][]string{{"RULE", "TYPE", "RESOURCES", "SAYS", "COMMENT"}}
			for _, r := range all.List {
				rows = append(rows, []string{r.ID, r.Type, r.Values["resources"], ruleWords(r), r.Values["comment"]})
			}
			table(w, rows...)
		})
	})
	return cmd
}

// ruleWords is what a rule says, in short.
func ruleWords(r api.Section) string {
	v := r.Values
	says := "nodes " + v["nodes"]
	if r.Type == "resource-affinity" {
		domain := orWord(v["domain"], "node")
		says = "the same " + domain
		if v["affinity"] == "negative" {
			says = "different " + domain + "s"
		}
	}
	switch {
	case v["strict"] == "1":
		says += ", strict"
	case r.Type == "resource-affinity":
		says += ", weight " + orWord(v["weight"], "100")
	}
	if v["disable"] == "1" {
		says += ", DISABLED"
	}
	return says
}

func (m *Main) rulesConfig() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Show the rules with all their settings", Example: "  sauh ha rules config", Args: takes()}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		all, err := c.Rules(ctx)
		if err != nil {
			return err
		}
		return out.print(all, func(w io.Writer) {
			for i, r := range all.List {
				if i > 0 {
					_, _ = io.WriteString(w, "\n")
				}
				printSection(w, r.Type+": "+r.ID, r.Values)
			}
		})
	})
	return cmd
}

func (m *Main) rulesAdd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add TYPE RULE", Short: "Make a rule of the type node-affinity or resource-affinity",
		Long:    "A rule that contradicts others is refused, with the smallest set of rules that conflict.",
		Example: "  sauh ha rules add node-affinity shop-near --resources vm:100 --nodes n1:2,n2 --strict", Args: takes("TYPE", "RULE"),
	}
	set := entryFlags(cmd.Flags(), ruleSettings()...)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		values := set.given(cmd.Flags())
		if err := checkRule(cmd, args[0], values); err != nil {
			return err
		}
		if err := c.AddRule(ctx, api.Section{Type: args[0], ID: args[1], Values: values}); err != nil {
			return err
		}
		m.say("rule %s is in force", args[1])
		return nil
	})
	return cmd
}

// checkLists refuses an empty word in a list of rules, as "n1," has one.
func checkLists(cmd *cobra.Command, values map[string]string) error {
	for _, key := range []string{"resources", "nodes"} {
		if v := values[key]; v != "" && slices.Contains(strings.Split(v, ","), "") {
			return usageError(cmd, "--%s has an empty word in %q: separate by one comma", key, v)
		}
	}
	return nil
}

// checkRule refuses what is no rule, before anybody is asked.
func checkRule(cmd *cobra.Command, typ string, values map[string]string) error {
	if err := checkRuleType(cmd, typ); err != nil {
		return err
	}
	if values["resources"] == "" {
		return usageError(cmd, "%s needs --resources", cmd.CommandPath())
	}
	return checkLists(cmd, values)
}

func checkRuleType(cmd *cobra.Command, typ string) error {
	if typ != "node-affinity" && typ != "resource-affinity" {
		return usageError(cmd, "there is no rule type %q: use node-affinity or resource-affinity", typ)
	}
	return nil
}

func (m *Main) rulesSet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set RULE", Short: "Change a rule", Example: "  sauh ha rules set shop-near --nodes n1:2,n2:2\n  sauh ha rules set shop-near --disable=false",
		Args: takes("RULE"),
	}
	set := entryFlags(cmd.Flags(), ruleSettings()...).changeable(cmd.Flags())
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		e, err := set.edit(cmd)
		if err != nil {
			return err
		}
		if err := checkLists(cmd, e.Set); err != nil {
			return err
		}
		if err := c.SetRule(ctx, args[0], e); err != nil {
			return err
		}
		m.say("rule %s changed", args[0])
		return nil
	})
	return cmd
}

func (m *Main) rulesRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove RULE", Short: "Delete a rule", Example: "  sauh ha rules remove shop-near", Args: takes("RULE"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.RemoveRule(ctx, args[0]); err != nil {
				return err
			}
			m.say("rule %s removed", args[0])
			return nil
		}),
	}
}
