package cli

import "github.com/spf13/cobra"

// extraCommands are the nouns that stand in files of their own beside the API's.
func extraCommands(m *Main) []*cobra.Command {
	lab := LabCommand()
	lab.AddCommand(ImageCommand(), ProbeCommand(), DemoCommand(m.Version))
	return []*cobra.Command{lab}
}
