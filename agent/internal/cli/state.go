package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/agent/internal/local"
)

func newState() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "state PHASE",
		Short: "declare what this machine is doing, such as syncing",
		Long: `Declare what this machine is doing. While a phase like "syncing" is declared, the
machine is shown so and takes no new task; "idle" ends it. The declaration holds until
the machine reboots.`,
		Example: `  adit-agent state syncing --detail 'models 3/12' --percent 25
  adit-agent state idle`,
		Args: cobra.ExactArgs(1),
	}
	client := socketFlag(cmd)
	var detail string
	var percent float64
	cmd.Flags().StringVar(&detail, "detail", "", "what exactly, for people")
	cmd.Flags().Float64Var(&percent, "percent", 0, "how far, 0 to 100")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q := local.StateRequest{Phase: args[0], Detail: detail}
		if cmd.Flags().Changed("percent") {
			if !(percent >= 0 && percent <= 100) {
				return usage(cmd, errors.New("--percent is 0 to 100"))
			}
			q.Percent = &percent
		}
		s, err := client().Declare(cmd.Context(), q)
		if err != nil {
			return fmt.Errorf("declare state: %w", err)
		}
		if s.SyncPhase == "" {
			s.SyncPhase = "idle"
		}
		show(cmd.ErrOrStderr(), "state: %s", s.SyncPhase)
		return nil
	}
	return cmd
}

func newPause() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pause",
		Short: "kill switch: end all connections into this machine and refuse new ones",
		Long: `End every connection that comes through a tunnel, and refuse new ones until
` + "`adit-agent resume`" + `, across restarts. The agent stays linked, and tunnels stay open at the
relay: they just reach nothing. Task leases are not touched.`,
		Example: "  adit-agent pause",
	}
	client := socketFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := client().Pause(cmd.Context()); err != nil {
			return fmt.Errorf("pause: %w", err)
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "paused: nothing reaches this machine through a tunnel")
		return nil
	}
	return cmd
}

func newResume() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "resume",
		Short:   "take the kill switch back",
		Example: "  adit-agent resume",
	}
	client := socketFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := client().Resume(cmd.Context()); err != nil {
			return fmt.Errorf("resume: %w", err)
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "resumed: tunnels reach this machine again")
		return nil
	}
	return cmd
}
