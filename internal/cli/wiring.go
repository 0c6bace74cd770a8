package cli

import "github.com/spf13/cobra"

// extraCommands are the nouns that stand in files of their own beside the API's.
func extraCommands() []*cobra.Command {
	lab := group("lab", "Build a machine room on this machine and experiment in it", "  sauh lab image build --out probe.img")
	lab.AddCommand(ImageCommand(), ProbeCommand())
	return []*cobra.Command{lab}
}
