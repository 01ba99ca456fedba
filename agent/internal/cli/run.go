package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/agent"
	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/lifecycle"
	"github.com/adit-tunnel/adit/shared/logs"
)

func newRun() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "run the agent until SIGTERM",
		Long: `Run the agent. SIGTERM or SIGINT stops it: connections that move data get stop_grace
to finish; a second signal stops it at once. SIGHUP reads the configuration again and
takes over log.level; all else needs a restart. A replaced credential file is taken up
without either. Tunnels stay open at the relay while the agent is restarted.`,
		Example: `  adit-agent run --config /etc/adit/agent.yaml

  # without a file
  ADIT_RELAY_URL=https://gateway.example.com ADIT_CREDENTIAL_FILE=./credential adit-agent run --allow_ports 8188,8888-8899`,
	}
	load := configFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		return run(cmd.Context(), c, load, cmd.ErrOrStderr())
	}
	return cmd
}

// recentLog is how many bytes of log the agent keeps in memory for diag.
const recentLog = 256 << 10

func run(ctx context.Context, c agent.Config, reload func() (agent.Config, error), stderr io.Writer) error {
	recent := logs.NewRecent(recentLog)
	log, level, err := logs.New(stderr, logs.Options{Level: c.Log.Level, Format: c.Log.Format, Recent: recent})
	if err != nil {
		return err
	}
	logs.TakeOver(log)
	drain, kill, hup, stop := lifecycle.Signals(ctx)
	defer stop()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	notify := func(err error) {
		if err != nil {
			log.Warn("tell systemd", "error", err)
		}
	}
	a, err := agent.New(c, agent.Options{
		Version: lifecycle.Version(), Logger: log, Registry: registry, Recent: recent, Kill: kill.Done(),
		Ready:  func() { notify(lifecycle.Ready()) },
		Notify: func(text string) { notify(lifecycle.Status(text)) },
	})
	if err != nil {
		return err
	}
	for _, w := range append(c.Warnings(), envWarnings(c)...) {
		log.Warn("configuration", "warning", w)
	}
	beside, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		// A hung agent cannot describe itself: its locks are not to be had.
		notify(lifecycle.Watchdog(beside, func() bool { _ = a.Report(); return true }))
	})
	wg.Go(func() {
		select {
		case <-drain.Done():
			log.Info("stopping", "cause", context.Cause(drain), "grace", c.StopGrace.String())
			notify(lifecycle.Stopping())
		case <-beside.Done():
		}
	})
	wg.Go(func() { lifecycle.Settle(beside) })
	wg.Go(func() { takeReloads(beside, hup, reload, level, log, notify) })
	return a.Run(drain)
}

// takeReloads takes over what can change in a running agent.
func takeReloads(ctx context.Context, hup <-chan struct{}, load func() (agent.Config, error), level *slog.LevelVar, log *slog.Logger, notify func(error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		notify(lifecycle.Reloading())
		c, err := load()
		if err == nil {
			err = logs.SetLevel(level, c.Log.Level)
		}
		if err != nil {
			log.Error("configuration not reloaded", "error", err)
		} else {
			log.Info("configuration reloaded", "log_level", c.Log.Level)
		}
		notify(lifecycle.Ready())
	}
}

func envWarnings(c agent.Config) []string {
	var out []string
	for _, v := range conf.UnknownEnv(c, "ADIT_TASK_ID", "ADIT_FENCING_TOKEN") {
		text := fmt.Sprintf("environment variable %s is no key of the agent", v.Name)
		if v.Nearest != "" {
			text += ": " + v.Nearest + "?"
		}
		out = append(out, text)
	}
	return out
}

func newCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "check the configuration and print it as it takes effect",
		Long: `Check the configuration: every fault is named, with the exit code 1. Otherwise the
effective configuration is printed as YAML, secrets redacted; warnings go to stderr.`,
		Example: `  adit-agent check --config /etc/adit/agent.yaml`,
	}
	load := configFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		if err := c.Validate(); err != nil {
			return err
		}
		for _, w := range append(c.Warnings(), envWarnings(c)...) {
			show(cmd.ErrOrStderr(), "warning: %s", w)
		}
		return conf.Print(cmd.OutOrStdout(), c)
	}
	return cmd
}
