package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/client"
)

func (m *Main) pvecmCommand() *cobra.Command {
	return group("pvecm", "Show the cluster in the form known from Proxmox VE", "  sauh pvecm status",
		m.pvecm("status", "Show cluster, quorum, votes and members", m.printPvecmStatus),
		m.pvecm("nodes", "Show the members", func(w io.Writer, st api.ClusterStatus) {
			membership(w, st, func(n api.NodeStatus) (string, string) { return fmt.Sprintf("%10d", n.ID), n.Name })
		}))
}

func (m *Main) pvecm(use, short string, print func(io.Writer, api.ClusterStatus)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Example: "  sauh pvecm " + use, Args: takes(),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			st, err := c.ClusterStatus(ctx)
			if err != nil {
				return err
			}
			print(m.Stdout, st)
			return nil
		}),
	}
}

// heading is a title with a line of its length below it.
func heading(w io.Writer, title string) {
	fmt.Fprintf(w, "%s\n%s\n", title, strings.Repeat("-", len(title)))
}

// pairs prints "Name:   value" with the values in Proxmox VE's column.
func pairs(w io.Writer, kv ...string) {
	for i := 0; i+1 < len(kv); i += 2 {
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("%-18s%s", kv[i]+":", kv[i+1]), " "))
	}
	fmt.Fprintln(w)
}

func (m *Main) printPvecmStatus(w io.Writer, st api.ClusterStatus) {
	quorate, flags, quorum := "Yes", "Quorate", strconv.Itoa(st.Quorum)
	if !st.Quorate {
		quorate, flags, quorum = "No", "", quorum+" Activity blocked"
	}
	online, local, leader := 0, 0, 0
	for _, n := range st.Nodes {
		if n.Online {
			online++
		}
		if n.Name == st.Local {
			local = n.ID
		}
		if n.Name == st.Leader {
			leader = n.ID
		}
	}
	heading(w, "Cluster information")
	pairs(w, "Name", st.Name, "Config Version", strconv.FormatInt(st.ConfigVersion, 10), "Transport", "etcd", "Secure auth", "on")
	heading(w, "Quorum information")
	pairs(w, "Date", m.Now().Format(time.ANSIC), "Quorum provider", "etcd (raft)", "Nodes", strconv.Itoa(online),
		"Node ID", fmt.Sprintf("0x%08x", local), "Ring ID", fmt.Sprintf("%x.%x", leader, st.ConfigVersion), "Quorate", quorate)
	heading(w, "Votequorum information")
	pairs(w, "Expected votes", strconv.Itoa(st.ExpectedVotes), "Highest expected", strconv.Itoa(st.ExpectedVotes),
		"Total votes", strconv.Itoa(st.TotalVotes), "Quorum", quorum, "Flags", flags)
	membership(w, st, func(n api.NodeStatus) (string, string) { return fmt.Sprintf("0x%08x", n.ID), n.Mgmt })
}

// membership lists who is online, as corosync does.
func membership(w io.Writer, st api.ClusterStatus, row func(api.NodeStatus) (id, name string)) {
	heading(w, "Membership information")
	fmt.Fprintf(w, "%10s %10s %s\n", "Nodeid", "Votes", "Name")
	for _, n := range st.Nodes {
		if !n.Online {
			continue
		}
		id, name := row(n)
		if n.Name == st.Local {
			name += " (local)"
		}
		fmt.Fprintf(w, "%s %10d %s\n", id, n.Votes, name)
	}
}
