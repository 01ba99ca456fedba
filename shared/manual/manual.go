// Package manual owns the hidden command that writes a program's manual pages, one for
// each of its commands, from the very texts of --help. It never installs them.
package manual

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"github.com/adit-tunnel/adit/shared/lifecycle"
)

// impersonal takes this machine's name out of the defaults that pages show.
func impersonal(cmd *cobra.Command) {
	host, err := os.Hostname()
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if err == nil && f.DefValue == host {
			f.DefValue = ""
		}
	})
	for _, sub := range cmd.Commands() {
		impersonal(sub)
	}
}

// Command returns the command `man DIRECTORY`. The section is the manual's: 1 for
// everybody's commands, 8 for the administrator's. The pages bear the date of
// SOURCE_DATE_EPOCH, where that is set, so that two builds make the same ones.
func Command(section string) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIRECTORY",
		Short:  "write the manual pages into a directory",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true
			impersonal(root)
			header := doc.GenManHeader{Section: section, Source: "Adit " + lifecycle.Version(), Manual: "Adit"}
			if err := doc.GenManTree(root, &header, args[0]); err != nil {
				return fmt.Errorf("write manual pages: %w", err)
			}
			return nil
		},
	}
}
