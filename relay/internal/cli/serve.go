package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/relay"
	"github.com/adit-tunnel/adit/relay/internal/config"
	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/logs"
)

// recentLog is how many bytes of log the relay keeps in memory for diag.
const recentLog = 512 << 10

func newServe() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "run the relay",
		Long: `Serve runs the relay until SIGTERM, which drains it: it stops to be ready, tells
agents to move, lets running requests finish (drain.timeout), and stops. A second
SIGTERM stops it at once. SIGHUP reads certificates and the log level again.`,
		Example: `  adit-relay serve
  adit-relay serve --listen :443 --public_url https://gateway.example.com --wildcard_domain tunnels.example.com`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			recent := logs.NewRecent(recentLog)
			log, level, err := logs.New(os.Stderr, logs.Options{Level: cfg.Log.Level, Format: cfg.Log.Format, Recent: recent})
			if err != nil {
				return err
			}
			logs.TakeOver(log)
			for _, v := range conf.UnknownEnv(config.Default(), "ADIT_CONFIG", "ADIT_URL", "ADIT_TOKEN", "ADIT_TEAM") {
				log.Warn("environment variable names no key", "name", v.Name, "nearest", v.Nearest)
			}
			r, err := relay.New(relay.Config{Settings: cfg, Logger: log, Recent: recent})
			if err != nil {
				return err
			}
			reload := func() error {
				fresh, err := loadConfig(cmd)
				if err != nil {
					return err
				}
				return logs.SetLevel(level, fresh.Log.Level)
			}
			return r.Run(cmd.Context(), reload)
		},
	}
	configFlags(cmd)
	return cmd
}

func newCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "validate the configuration and print what is in effect, secrets redacted",
		Example: "  adit-relay check --config /etc/adit/relay.yaml",
		Args:    exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return fmt.Errorf("the configuration has faults:\n%w", err)
			}
			return conf.Print(cmd.OutOrStdout(), cfg)
		},
	}
	configFlags(cmd)
	return cmd
}
