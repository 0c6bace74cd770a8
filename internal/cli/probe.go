package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/lab/probe"
)

// ProbeCommand is `sauh lab probe`: one program for each thing that is
// measured at a probe guest. Each writes JSON lines until it gets SIGTERM or SIGINT, then a summary.
func ProbeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "probe", Short: "Measure a probe guest from outside"}
	cmd.AddCommand(probeEcho(), probeStream(), probeDownload(), probeLedger(), probeVerify())
	return cmd
}

// prober is what all probes have in common.
type prober[S any] interface {
	Run(ctx context.Context) (S, error)
}

// runProbe opens out ("" is the standard output), makes the probe and runs it until a signal comes.
func runProbe[S any, P prober[S]](cmd *cobra.Command, out string, prepare func(io.Writer) P) (err error) {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	w := cmd.OutOrStdout()
	if out != "" {
		f, err := os.Create(out)
		if err != nil {
			return fmt.Errorf("write probe's file: %w", err)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		w = f
	}
	_, err = prepare(w).Run(ctx)
	return err
}

// probeFlags adds the flags that all probes have.
func probeFlags(cmd *cobra.Command, target, out *string) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.Flags().StringVar(target, "target", "", "the guest's address, with a port if it is not the usual one")
	cmd.Flags().StringVar(out, "out", "", "file for the JSON lines (default: standard output)")
	_ = cmd.MarkFlagRequired("target") // the flag exists
	return cmd
}

func probeEcho() *cobra.Command {
	var c probe.EchoConfig
	var out string
	cmd := &cobra.Command{Use: "echo", Short: "Send a UDP echo at a fixed interval"}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return runProbe(cmd, out, func(w io.Writer) *probe.Echo { return probe.NewEcho(c, w) })
	}
	cmd.Flags().DurationVar(&c.Interval, "interval", 10*time.Millisecond, "time from one echo to the next")
	cmd.Flags().DurationVar(&c.Timeout, "timeout", 3*time.Second, "after which an echo is written down as lost")
	return probeFlags(cmd, &c.Target, &out)
}

func probeStream() *cobra.Command {
	var c probe.StreamConfig
	var out string
	cmd := &cobra.Command{Use: "stream", Short: "Read the constant-bit-rate stream over one connection"}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return runProbe(cmd, out, func(w io.Writer) *probe.Stream { return probe.NewStream(c, w) })
	}
	cmd.Flags().IntVar(&c.Rate, "rate", 256<<10, "bytes a second")
	return probeFlags(cmd, &c.Target, &out)
}

func probeDownload() *cobra.Command {
	var c probe.DownloadConfig
	var out string
	cmd := &cobra.Command{Use: "download", Short: "Fetch a large file over one connection and check its hash"}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return runProbe(cmd, out, func(w io.Writer) *probe.Download { return probe.NewDownload(c, w) })
	}
	cmd.Flags().IntVar(&c.File.MiB, "mib", 64, "size of the file in MiB")
	cmd.Flags().Uint64Var(&c.File.Seed, "seed", 1, "number that the content is made from")
	cmd.Flags().IntVar(&c.Rate, "rate", 0, "bytes a second, 65536 or more (default: as fast as it goes)")
	return probeFlags(cmd, &c.Target, &out)
}

func probeLedger() *cobra.Command {
	var c probe.LedgerConfig
	var out string
	cmd := &cobra.Command{Use: "ledger", Short: "Append records and keep the history of what was acknowledged"}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return runProbe(cmd, out, func(w io.Writer) *probe.Ledger { return probe.NewLedger(c, w) })
	}
	cmd.Flags().DurationVar(&c.Interval, "interval", 10*time.Millisecond, "time from one record to the next")
	cmd.Flags().DurationVar(&c.Timeout, "timeout", 3*time.Second, "for connecting and for each answer")
	return probeFlags(cmd, &c.Target, &out)
}

func probeVerify() *cobra.Command {
	var target, out string
	cmd := &cobra.Command{
		Use:   "verify --target ADDRESS HISTORY...",
		Short: "Read a ledger back and compare it with the histories of ledger probes",
	}
	probeFlags(cmd, &target, &out)
	cmd.Args = cobra.MinimumNArgs(1)
	cmd.RunE = func(cmd *cobra.Command, files []string) error {
		var h probe.History
		for _, name := range files {
			if err := readHistory(&h, name); err != nil {
				return err
			}
		}
		v, err := probe.Verify(cmd.Context(), target, h)
		if err != nil {
			return fmt.Errorf("verify the ledger of %s: %w", target, err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("encode verdict: %w", err)
		}
		if out == "" {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", text)
		} else {
			err = os.WriteFile(out, append(text, '\n'), 0o644)
		}
		if err == nil && !v.OK() {
			err = fmt.Errorf("ledger of %s: %d of %d acknowledged records lost, %d wrong, %d written twice, %d breaks in the chain",
				target, v.Lost, v.Acknowledged, v.Wrong, v.Twice, len(v.Chain.Problems))
		}
		return err
	}
	return cmd
}

func readHistory(h *probe.History, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("read history: %w", err)
	}
	defer f.Close()
	if err := h.ReadHistory(f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
