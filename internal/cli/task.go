package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/model"
)

func (m *Main) taskCommand() *cobra.Command {
	return group("task", "Show and cancel tasks", "  sauh task list\n  sauh task log UPID:n1:…", m.taskList(), m.taskLog(), m.taskStatus(), m.taskCancel())
}

// wait follows a task that what describes ("start of guest 100") and turns its end into an error or nil.
func (m *Main) wait(ctx context.Context, c *client.Client, upid, what string, onProgress func(model.MigrationProgress)) error {
	err := c.WaitTask(ctx, upid, m.warn, onProgress)
	var failed *client.TaskError
	switch {
	case errors.As(err, &failed):
		return fmt.Errorf("%s: %w", what, err)
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted: the %s goes on; see 'sauh task status %s'", what, upid)
	}
	return err
}

// warn shows the lines of a task's log that a person should not miss.
func (m *Main) warn(line string) {
	if _, text, ok := strings.Cut(line, "WARN: "); ok {
		fmt.Fprintln(m.Stderr, "warning: "+text)
	}
}

func (m *Main) taskList() *cobra.Command {
	var node string
	var limit int
	cmd := &cobra.Command{Use: "list", Short: "List the newest tasks of all nodes", Example: "  sauh task list --node n1", Args: takes()}
	cmd.Flags().StringVar(&node, "node", "", "only this node's tasks")
	cmd.Flags().IntVar(&limit, "limit", 50, "how many; 0 is all")
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		if limit < 0 {
			return usageError(cmd, "--limit is 0 for all, or a number of tasks, not %d", limit)
		}
		tasks, err := m.tasks(ctx, c, node)
		if err != nil {
			return err
		}
		sort.SliceStable(tasks, func(i, j int) bool { return tasks[i].Start > tasks[j].Start })
		if limit > 0 && len(tasks) > limit {
			tasks = tasks[:limit]
		}
		return out.print(tasks, func(w io.Writer) {
			rows := [][]string{{"START", "END", "TYPE", "ID", "TASK", "STATUS"}}
			for _, t := range tasks {
				rows = append(rows, []string{m.clock(t.Start), m.clock(t.End), t.Type, t.ID, t.UPID, taskState(t)})
			}
			table(w, rows...)
		})
	})
	return cmd
}

// tasks asks one node, or this one and all that are online; one that does not answer is named on standard error.
func (m *Main) tasks(ctx context.Context, c *client.Client, node string) ([]model.Task, error) {
	if node != "" {
		return c.Tasks(ctx, node)
	}
	st, err := c.ClusterStatus(ctx)
	if err != nil {
		return nil, err
	}
	all := []model.Task{}
	for _, n := range st.Nodes {
		if !n.Online && n.Name != st.Local {
			continue
		}
		list, err := c.Tasks(ctx, n.Name)
		if err != nil {
			fmt.Fprintf(m.Stderr, "without the tasks of %s: %s\n", n.Name, sentence(err))
			continue
		}
		all = append(all, list...)
	}
	return all, nil
}

func taskState(t model.Task) string {
	if t.End == 0 {
		return "running"
	}
	return t.ExitStatus
}

func (m *Main) taskLog() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{Use: "log TASK", Short: "Print a task's log", Example: "  sauh task log UPID:n1:… --follow", Args: takes("TASK")}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the task ends")
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		if follow {
			return c.WaitTask(ctx, args[0], func(line string) { m.say("%s", line) }, nil)
		}
		lines, err := c.TaskLog(ctx, args[0], 0, 0)
		for _, l := range lines {
			m.say("%s", l.T)
		}
		return err
	})
	return cmd
}

func (m *Main) taskStatus() *cobra.Command {
	cmd := &cobra.Command{Use: "status TASK", Short: "Show a task", Example: "  sauh task status UPID:n1:…", Args: takes("TASK")}
	out := m.outputFlag(cmd)
	cmd.RunE = m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		t, err := c.Task(ctx, args[0])
		if err != nil {
			return err
		}
		return out.print(t, func(w io.Writer) {
			facts(w, "Task", t.UPID, "Node", t.Node, "Type", t.Type, "Id", t.ID, "User", t.User,
				"Start", m.clock(t.Start), "End", m.clock(t.End), "Status", taskState(t))
			if t.Progress != nil {
				facts(w, "Progress", progressLine(*t.Progress))
			}
		})
	})
	return cmd
}

func (m *Main) taskCancel() *cobra.Command {
	return &cobra.Command{
		Use: "cancel TASK", Short: "Ask a running task to stop and undo what it can", Example: "  sauh task cancel UPID:n1:…", Args: takes("TASK"),
		RunE: m.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := c.Task(ctx, args[0])
			if err != nil {
				return err
			}
			if t.End != 0 {
				return fmt.Errorf("task %s has ended already: %s", args[0], t.ExitStatus)
			}
			if err := c.CancelTask(ctx, args[0]); err != nil {
				return err
			}
			m.say("task %s was asked to stop", args[0])
			return nil
		}),
	}
}
