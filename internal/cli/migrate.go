package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/client"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/units"
)

// cancelTimeout is how long a cancelled migration may take to put everything back.
const cancelTimeout = time.Minute

func (m *Main) vmMigrate() *cobra.Command {
	var target string
	var online bool
	cmd := &cobra.Command{
		Use: "migrate VMID", Short: "Move a guest to another node", Args: takes("VMID"),
		Long: "With --online a running guest moves while it runs. Ctrl-C cancels the migration; the guest then stays where it was.",

		Example: "  sauh vm migrate 100 --to n2 --online",
	}
	cmd.Flags().StringVar(&target, "to", "", "the node to move to (needed)")
	cmd.Flags().BoolVar(&online, "online", false, "move it while it runs")
	out := m.outputFlag(cmd)
	cmd.RunE = m.onGuest(func(ctx context.Context, c *client.Client, node string, id model.VMID) error {
		if target == "" {
			return usageError(cmd, "%s needs --to NODE", cmd.CommandPath())
		}
		if target == node {
			return fmt.Errorf("guest %d is already on node %s", id, node)
		}
		upid, err := begin(ctx, c, node, id, target, online)
		if err != nil {
			return err
		}
		mv := &move{m: m, c: c, id: id, from: node, to: target, upid: upid}
		mv.progress = m.newProgress(out)
		if err := mv.follow(ctx); err != nil {
			return err
		}
		return mv.report(out)
	})
	return cmd
}

// beginTimeout is how long the source may take to accept a migration.
const beginTimeout = 30 * time.Second

// begin starts the task. Ctrl-C waits until its id is known: without the id it could not be cancelled.
func begin(ctx context.Context, c *client.Client, node string, id model.VMID, target string, online bool) (string, error) {
	late, stop := context.WithTimeout(context.WithoutCancel(ctx), beginTimeout)
	defer stop()
	return c.MigrateGuest(late, node, id, target, online)
}

// move is a migration that somebody watches.
type move struct {
	m        *Main
	c        *client.Client
	id       model.VMID
	from, to string
	upid     string
	progress *progress
}

// follow waits for the end, and cancels the migration when ctx is done before.
func (mv *move) follow(ctx context.Context) error {
	defer mv.progress.end()
	what := fmt.Sprintf("migration of guest %d to node %s", mv.id, mv.to)
	err := mv.m.wait(ctx, mv.c, mv.upid, what, mv.progress.show)
	if ctx.Err() == nil {
		return err
	}
	late, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer stop()
	mv.progress.end()
	if err := mv.c.CancelTask(late, mv.upid); err != nil {
		return fmt.Errorf("cancel the %s: %w", what, err)
	}
	err = mv.c.WaitTask(late, mv.upid, nil, mv.progress.show)
	mv.progress.end()
	var ended *client.TaskError
	switch {
	case err == nil:
		fmt.Fprintln(mv.m.Stderr, "too late to cancel: the guest had moved already")
		return nil
	case errors.As(err, &ended):
		return fmt.Errorf("%s cancelled: it stays on node %s", what, mv.from)
	}
	return fmt.Errorf("cancelled the %s, but did not see its end: %w; see 'sauh task status %s'", what, err, mv.upid)
}

func (mv *move) report(out *output) error {
	p := mv.progress.last
	result := map[string]any{
		"vmid": mv.id, "from": mv.from, "to": mv.to, "task": mv.upid, "total_ms": p.TotalMS, "downtime_ms": p.DowntimeMS,
		"transferred_bytes": p.TransferredBytes, "rounds": p.Round,
	}
	return out.print(result, func(w io.Writer) {
		if p.TotalMS == 0 {
			fmt.Fprintf(w, "guest %d moved from node %s to node %s\n", mv.id, mv.from, mv.to)
			return
		}
		fmt.Fprintf(w, "guest %d moved from node %s to node %s in %s, stopped for %s\n", mv.id, mv.from, mv.to, ms(p.TotalMS), ms(p.DowntimeMS))
	})
}

func ms(n int64) string { return (time.Duration(n) * time.Millisecond).String() }

// progress shows a migration: on a terminal as one line that is rewritten, else as
// one line for each change, and not at all when JSON was asked for.
type progress struct {
	w     io.Writer
	tty   bool
	dirty bool // an unfinished line stands on the terminal
	last  model.MigrationProgress
}

func (m *Main) newProgress(out *output) *progress {
	if out.json() {
		return &progress{w: io.Discard}
	}
	_, tty := terminal(m.Stdout)
	return &progress{w: m.Stdout, tty: tty}
}

// eraseRest is the terminal's sequence that clears the line to the right of the cursor.
const eraseRest = "\x1b[K"

func (p *progress) show(now model.MigrationProgress) {
	p.last = now
	if !p.tty {
		fmt.Fprintln(p.w, progressLine(now))
		return
	}
	fmt.Fprint(p.w, "\r"+progressLine(now)+eraseRest)
	p.dirty = true
}

// end leaves the cursor at the beginning of a line.
func (p *progress) end() {
	if p.dirty {
		fmt.Fprintln(p.w)
	}
	p.dirty = false
}

func progressLine(p model.MigrationProgress) string {
	s := p.Phase
	if p.Round > 0 {
		s += fmt.Sprintf(", round %d", p.Round)
	}
	if p.TotalBytes > 0 || p.TransferredBytes > 0 {
		s += fmt.Sprintf(": transferred %s, remaining %s, dirty rate %s/s, expected downtime %s", units.FormatBytes(p.TransferredBytes),
			units.FormatBytes(p.RemainingBytes), units.FormatBytes(p.DirtyBytesPerSec), ms(p.ExpectedDowntimeMS))
	}
	return s
}
