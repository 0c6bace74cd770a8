package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/units"
)

func (m *Main) haStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show nodes, protected guests, and how many node failures the cluster can take now",
		Long:    "Alarms of the double-run detector come first. What each state means stands in docs/ha.md.",
		Example: "  sauh ha status\n  sauh ha status --output json", Args: takes(),
	}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		st, err := c.HAStatus(ctx)
		if err != nil {
			return err
		}
		return out.print(st, func(w io.Writer) { m.printHA(w, st) })
	})
	return cmd
}

func (m *Main) printHA(w io.Writer, st api.HAStatus) {
	m.printAlarms(w, st.Alarms)
	manager, quorate, armed := st.Manager, yesNo(st.Quorate), armedWords(st.Nodes)
	if manager == "" {
		manager = "none"
	}
	if !st.Quorate {
		quorate = "no: nothing is decided until more nodes are online"
	}
	if st.Disarm != "" {
		armed = "NO: the cluster is disarmed (" + m.disarmed(st.Disarm, st.Until) + "), and no guest is brought back"
	}
	facts(w, "Manager", manager, "Quorate", quorate, "Armed", armed, "Failures", tolerance(st.Tolerance))
	for _, p := range st.Problems {
		fmt.Fprintln(w, "Problem:   "+p)
	}
	if t := st.Tolerance; t != nil && len(t.Lost) > 0 {
		fmt.Fprintf(w, "Without %s these would not come back:\n", enumerate(t.Failed))
		for _, l := range t.Lost {
			fmt.Fprintf(w, "  %s: %s\n", l.SID, l.Reason)
		}
	}
	fmt.Fprintln(w)
	m.printHANodes(w, st.Nodes)
	fmt.Fprintln(w)
	rows := [][]string{{"SID", "NODE", "REQUESTED", "STATUS", "REASON"}}
	for _, r := range st.Services {
		status := r.Status
		if r.Target != "" {
			status += " to " + r.Target
		}
		rows = append(rows, []string{r.SID, r.Node, r.State, status, r.Reason})
	}
	table(w, rows...)
}

// armedWords says of an armed cluster which nodes are not.
func armedWords(nodes []api.HANodeStatus) string {
	var not []string
	for _, n := range nodes {
		if n.Disarm != "" {
			not = append(not, n.Node)
		}
	}
	if len(not) == 0 {
		return "yes"
	}
	return "yes, but NOT " + enumerate(not) + ": no guest of it is brought back"
}

// enumerate joins words as a sentence does: "n1, n2 and n3".
func enumerate(list []string) string {
	if len(list) < 2 {
		return strings.Join(list, "")
	}
	last := len(list) - 1
	return strings.Join(list[:last], ", ") + " and " + list[last]
}

// printAlarms cannot be overlooked: first, framed, and in capitals.
func (m *Main) printAlarms(w io.Writer, alarms []api.HAAlarm) {
	if len(alarms) == 0 {
		return
	}
	bar := strings.Repeat("!", 78)
	fmt.Fprintln(w, bar)
	for _, a := range alarms {
		fmt.Fprintf(w, "!! ALARM %s (%s, SEEN BY %s): %s\n", strings.ToUpper(a.SID), m.clock(a.Unix),
			strings.ToUpper(strings.Join(a.SeenBy, ", ")), strings.ToUpper(a.Text))
		fmt.Fprintf(w, "!! when it runs once and its disks are checked: sauh ha acknowledge %s\n", a.SID)
	}
	fmt.Fprintln(w, bar)
	fmt.Fprintln(w)
}

func (m *Main) disarmed(mode string, until int64) string {
	if until == 0 {
		return mode
	}
	return mode + " until " + m.clock(until)
}

// tolerance is how many node failures the cluster can take, as a sentence.
func tolerance(t *api.HATolerance) string {
	if t == nil {
		return ""
	}
	least := ""
	if !t.Exact {
		least = "at least "
	}
	s := "the cluster can take " + least + plural(t.Nodes, "node failure") + " now"
	if t.Quorum {
		s += "; one more would take the majority"
	}
	switch {
	case t.Wanted == 0:
	case t.Nodes >= t.Wanted || !t.Exact:
		s += fmt.Sprintf(" (%d asked for)", t.Wanted)
	default:
		s += fmt.Sprintf(": FEWER THAN THE %d ASKED FOR", t.Wanted)
	}
	return s
}

func (m *Main) printHANodes(w io.Writer, nodes []api.HANodeStatus) {
	measured := slices.ContainsFunc(nodes, func(n api.HANodeStatus) bool { return n.Load != nil })
	rows := [][]string{{"NODE", "STATE", "EPOCH", "LAST HEARD", "PLACE", "FENCING"}}
	if measured {
		rows[0] = append(rows[0], "LOAD")
	}
	var methods []api.HAFenceMethod
	for _, n := range nodes {
		heard := (time.Duration(n.SilenceMS) * time.Millisecond).String() + " ago"
		ways := "lease"
		if len(n.Fencing) > 0 {
			ways += " and " + plural(len(n.Fencing), "method")
		}
		methods = append(methods, n.Fencing...)
		row := []string{n.Node, m.haNodeState(n), strconv.FormatUint(n.Epoch, 10), heard, strings.Trim(n.Site+"/"+n.Rack, "/"), ways}
		if measured {
			row = append(row, haLoad(n.Load))
		}
		rows = append(rows, row)
	}
	table(w, rows...)
	if len(methods) > 0 {
		fmt.Fprintln(w)
		m.printMethods(w, methods)
	}
}

// haLoad is what is used of a node.
func haLoad(l *api.HALoad) string {
	switch {
	case l == nil:
		return ""
	case !l.Measured:
		return "not measured"
	}
	return fmt.Sprintf("%.2f of %s, %s of %s", l.CPU, plural(l.CPUs, "CPU"), units.FormatBytes(l.MemoryMiB<<20), units.FormatBytes(l.MaxMemoryMiB<<20))
}

func (m *Main) haNodeState(n api.HANodeStatus) string {
	parts := []string{n.State}
	switch n.Mode {
	case "":
	case "maintenance":
		parts = append(parts, "maintenance")
	default:
		parts = append(parts, "ends in order ("+n.Mode+")")
	}
	if n.Disarm != "" {
		parts = append(parts, "DISARMED ("+m.disarmed(n.Disarm, n.Until)+")")
	}
	if n.Quarantine != "" {
		parts = append(parts, "quarantine")
	}
	if n.Lost != "" {
		parts = append(parts, "lost "+n.Lost)
	}
	return strings.Join(parts, ", ")
}

func (m *Main) haAcknowledge() *cobra.Command {
	return &cobra.Command{
		Use: "acknowledge vm:VMID", Short: "End the alarms about a guest that ran twice, on every node that raised one",
		Long:    "Do it when the guest runs once and its disks are checked. A guest that goes on running twice raises another alarm within seconds.",
		Example: "  sauh ha acknowledge vm:100", Args: takes("vm:VMID"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			sid := args[0]
			if !strings.Contains(sid, ":") {
				sid = "vm:" + sid
			}
			if _, err := pveconf.ParseSID(sid); err != nil {
				return fmt.Errorf("%q is no guest: write vm:100 or 100", args[0])
			}
			st, err := c.HAStatus(ctx)
			if err != nil {
				return err
			}
			for _, a := range st.Alarms {
				if a.SID != sid {
					continue
				}
				for _, node := range a.SeenBy {
					if err := c.AcknowledgeAlarms(ctx, node, sid); err != nil {
						return err
					}
				}
				m.say("the alarm about %s is acknowledged on %s", sid, strings.Join(a.SeenBy, ", "))
				return nil
			}
			return fmt.Errorf("there is no alarm about %s on the nodes that answer", sid)
		}),
	}
}

func (m *Main) haExplain() *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain vm:VMID", Short: "Say why a protected guest is where and as it is, and where it would go",
		Example: "  sauh ha explain vm:100", Args: takes("vm:VMID"),
	}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		e, err := c.HAExplain(ctx, args[0])
		if err != nil {
			return err
		}
		return out.print(e, func(w io.Writer) { m.printExplanation(w, e) })
	})
	return cmd
}

func (m *Main) printExplanation(w io.Writer, e api.HAExplanation) {
	status := e.Status
	if status == "" {
		status = "not looked at yet"
	}
	if e.Target != "" {
		status += " to " + e.Target
	}
	facts(w, "Guest", e.SID, "Requested", e.State, "Status", status, "Node", e.Node, "Since", m.clock(e.Since), "Reason", e.Reason,
		"May not start", e.Hold, "Guarded", yesNo(e.Protected), "Waiting command", e.Command, "Failed starts", number(e.Failures),
		"Given up on", strings.Join(e.Tried, ", "), "Failed moves", number(e.MoveFailures), "Returns to", e.Away)
	for _, r := range e.Rules {
		fmt.Fprintln(w, "Rule "+r)
	}
	fmt.Fprintf(w, "\nIf %s were lost now:\n", orWord(e.Node, "its node"))
	rows := [][]string{{"NODE", "VERDICT", "REASON"}}
	for _, v := range e.Nodes {
		word := "no"
		switch {
		case v.Chosen:
			word = "it would go there"
		case v.OK:
			word = "possible"
		}
		rows = append(rows, []string{v.Node, word, v.Reason})
	}
	table(w, rows...)
	if len(e.Log) == 0 {
		return
	}
	fmt.Fprintln(w, "\nLast decisions:")
	rows = [][]string{{"TIME", "BY", "STATUS", "NODE", "TO", "REASON"}}
	for _, d := range e.Log {
		rows = append(rows, []string{m.clock(d.Unix), d.By, d.State, d.Node, d.Target, d.Reason})
	}
	table(w, rows...)
}

func orWord(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (m *Main) haWhatIf() *cobra.Command {
	cmd := &cobra.Command{
		Use: "what-if NODE[,NODE]", Short: "Plan the loss of nodes: who would go where, and who would not come back",
		Long: "The planner is the one that would be used. Nothing is changed.", Example: "  sauh ha what-if n2\n  sauh ha what-if n2,n3", Args: takes("NODE"),
	}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		nodes := strings.Split(args[0], ",")
		if slices.Contains(nodes, "") {
			return usageError(cmd, "%q has an empty name: write n2,n3", args[0])
		}
		p, err := c.HAWhatIf(ctx, nodes)
		if err != nil {
			return err
		}
		return out.print(p, func(w io.Writer) { printPlan(w, p) })
	})
	return cmd
}

func printPlan(w io.Writer, p api.HAPlan) {
	lost := 0
	for _, mv := range p.Moves {
		if mv.To == "" {
			lost++
		}
	}
	if len(p.Moves) == 0 {
		fmt.Fprintf(w, "If %s were lost, no protected guest would have to be brought back.\n", enumerate(p.Lost))
	} else {
		fmt.Fprintf(w, "If %s were lost, %s would come back and %s would not.\n", enumerate(p.Lost),
			plural(len(p.Moves)-lost, "protected guest"), strconv.Itoa(lost))
	}
	if !p.Quorate {
		fmt.Fprintln(w, "THE NODES LEFT WOULD BE NO MAJORITY: nothing would be decided, and none would come back, until one returned.")
	}
	if len(p.Moves) > 0 {
		rows := [][]string{{"SID", "FROM", "TO", "REASON"}}
		for _, mv := range p.Moves {
			rows = append(rows, []string{mv.SID, mv.From, orWord(mv.To, "NOWHERE"), mv.Reason})
		}
		fmt.Fprintln(w)
		table(w, rows...)
	}
	if len(p.Down) > 0 {
		rows := [][]string{{"SID", "NODE", "WHY NOBODY WOULD START IT ELSEWHERE"}}
		for _, d := range p.Down {
			rows = append(rows, []string{d.SID, d.From, d.Reason})
		}
		fmt.Fprintln(w)
		table(w, rows...)
	}
}
