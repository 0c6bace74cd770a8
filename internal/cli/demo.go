package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/lab/demo"
)

// DemoCommand is `sauh lab demo`: the whole story in one command. version goes into the report.
func DemoCommand(version model.Version) *cobra.Command {
	o := demo.Options{Version: version}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Build a cluster of three nodes, move a guest, cut two nodes' power, and measure",
		Long: "Build a machine room of three nodes, make a cluster of it, move a running guest back and forth, cut the power of\n" +
			"two nodes, and write a report with what the probes measured. It takes some minutes and needs root. The exit\n" +
			"status is 1 if a target was missed.",
		Example: "  sudo sauh lab demo\n  sudo sauh lab demo --keep --out /tmp/demo",
		Args:    takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.GuestBinary == "" {
				var err error
				if o.GuestBinary, err = besideProgram("sauh-guest"); err != nil {
					return err
				}
			}
			o.Stdout = cmd.OutOrStdout()
			err := demo.Run(cmd.Context(), o)
			if errors.Is(err, demo.ErrVerdict) {
				return fmt.Errorf("%w: the table above and the report say which", err)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Out, "out", "out/demo", "directory for summary.json, report.html and the probes' records")
	f.StringVar(&o.GuestBinary, "guest-binary", "", "the probe guest's program (default: sauh-guest beside this program)")
	f.StringVar(&o.Name, "name", demo.DefaultName, "name of the room")
	f.BoolVar(&o.Keep, "keep", false, "leave the room up and say how to look at it")
	cmd.AddCommand(demoLaunch())
	return cmd
}

// demoLaunch is what the demonstration runs in a node to start a guest by hand.
func demoLaunch() *cobra.Command {
	return &cobra.Command{
		Use: "launch", Hidden: true, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error { return demo.Launch(cmd.Context(), cmd.InOrStdin()) },
	}
}
