// Package cli owns the commands of adit-relay: flags, texts and exit codes. What
// the commands do is the facade's, or the running relay's over its admin socket.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/relay/internal/config"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/lifecycle"
	"github.com/adit-tunnel/adit/shared/manual"
	"github.com/adit-tunnel/adit/shared/printable"
)

// Exit codes.
const (
	exitDone  = 0
	exitFault = 1
	exitUsage = 2
)

// usageError is a command line that makes no sense.
type usageError struct{ error }

// Main runs a command line and returns the exit code. Results go to stdout, all
// else to stderr.
func Main(ctx context.Context, args []string) int {
	return run(ctx, args, os.Stdout, os.Stderr)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	show(stderr, "adit-relay: %v\n", err)
	var p *api.Problem
	if errors.As(err, &p) && p.RequestID != "" && p.Status >= http.StatusInternalServerError { // the others say it all
		show(stderr, "hint: look for request %s in the relay's log\n", p.RequestID)
	}
	if _, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintln(stderr, "hint: adit-relay --help lists the commands and their flags")
		return exitUsage
	}
	return exitFault
}

// show prints lines for people. What came from elsewhere, as a credential's name or
// another relay's version, does not steer their terminal.
func show(w io.Writer, format string, args ...any) {
	_, _ = io.WriteString(w, printable.Lines(fmt.Sprintf(format, args...))) // nobody is left to tell
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "adit-relay",
		Short: "the public half of Adit: a door into your GPU machines",
		Long: `adit-relay accepts links from agents on GPU machines and proxies HTTP, WebSocket
and TCP from users onto them. It keeps its state in data_dir (an embedded etcd)
or in an external etcd that several relays share.

Every configuration key is a flag (--tunnel.idle_timeout), an environment variable
(ADIT_TUNNEL_IDLE_TIMEOUT) and a key of the YAML file; flags win over environment
over file over defaults.`,
		Example: `  adit-relay serve
  adit-relay serve --config /etc/adit/relay.yaml
  adit-relay credential create --kind agent --team 6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11 --agent gpu-1`,
		SilenceErrors: true, SilenceUsage: true,
		Version: lifecycle.Version(),
		Args:    noSuchCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newServe(), newCheck(), newCredential(), newEnroll(), newTunnels(), newTeam(), newMember(), newInvite(), newStatus(), newDrain(), newAudit(), newDiag(), newStore(), newVersion(), manual.Command("8"))
	for _, c := range root.Commands() {
		if c.HasSubCommands() {
			c.Args = noSuchCommand
			c.RunE = func(cmd *cobra.Command, _ []string) error {
				var names []string
				for _, sub := range cmd.Commands() {
					names = append(names, sub.Name())
				}
				return usageError{fmt.Errorf("%s needs one of its commands: %s", cmd.CommandPath(), strings.Join(names, ", "))}
			}
		}
	}
	return root
}

// noSuchCommand refuses what is no command of a group.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	meant := ""
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		meant = fmt.Sprintf("; did you mean %s %s?", cmd.CommandPath(), s[0])
	}
	return usageError{fmt.Errorf("%s has no command %q%s", cmd.CommandPath(), args[0], meant)}
}

// exactArgs wants as many arguments as the usage names.
func exactArgs(n int) cobra.PositionalArgs { return argsBetween(n, n) }

// atMostArgs takes fewer too.
func atMostArgs(n int) cobra.PositionalArgs { return argsBetween(0, n) }

func argsBetween(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		want := strings.TrimSpace(strings.TrimPrefix(cmd.Use, cmd.Name()))
		switch {
		case len(args) > most && want == "":
			return usageError{fmt.Errorf("%s takes no arguments, but got %q", cmd.CommandPath(), args[0])}
		case len(args) > most:
			return usageError{fmt.Errorf("%s takes %s and no more, but got %q too", cmd.CommandPath(), want, args[most])}
		case len(args) < least:
			return usageError{fmt.Errorf("%s needs %s", cmd.CommandPath(), want)}
		}
		return nil
	}
}

// configFlags adds --config and a flag for every key.
func configFlags(cmd *cobra.Command) {
	cmd.Flags().String("config", "", "YAML file of configuration (environment: ADIT_CONFIG)")
	conf.Flags(cmd.Flags(), config.Default())
}

// loadConfig reads the configuration of a command with configFlags.
func loadConfig(cmd *cobra.Command) (config.Relay, error) {
	path, err := cmd.Flags().GetString("config")
	if err != nil {
		return config.Relay{}, err
	}
	if path == "" {
		path = os.Getenv("ADIT_CONFIG")
	}
	cfg := config.Default()
	if err := conf.Load(cmd.Flags(), path, &cfg); err != nil {
		return cfg, err
	}
	cfg.Complete()
	return cfg, cfg.Validate()
}

// socketFlag adds --socket to a command that speaks to the running relay.
func socketFlag(cmd *cobra.Command) {
	cmd.PersistentFlags().String("socket", "", "admin socket of the relay (default: admin.sock in its data_dir)")
}

// dial returns the client of the running relay.
func dial(cmd *cobra.Command) (*admin.Client, error) {
	path, err := cmd.Flags().GetString("socket")
	if err != nil {
		return nil, err
	}
	if path == "" {
		dir := os.Getenv("ADIT_DATA_DIR")
		if dir == "" {
			dir = config.Default().DataDir
		}
		path = filepath.Join(dir, "admin.sock")
	}
	return admin.Dial(path), nil
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), lifecycle.Version())
			return err
		},
	}
}
