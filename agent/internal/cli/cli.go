// Package cli owns adit-agent's commands: flags, texts, exit codes, and what goes
// to which stream. Results go to stdout, all else to stderr. It holds no state and
// leaves the work to the packages below.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/agent"
	"github.com/adit-tunnel/adit/agent/internal/config"
	"github.com/adit-tunnel/adit/agent/internal/local"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/lifecycle"
	"github.com/adit-tunnel/adit/shared/manual"
	"github.com/adit-tunnel/adit/shared/printable"
)

// Exit codes.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitTryAgain = 75 // EX_TEMPFAIL of sysexits.h: refused now, may work later
)

// Main runs one command and returns its exit code.
func Main(ctx context.Context, args []string) int {
	root := newRoot(os.Stdin, os.Stdout, os.Stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return report(os.Stderr, err)
}

// exitError carries an exit code; its error may be nil when all was said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// hinted is an error with advice.
type hinted struct {
	err  error
	hint string
}

func (e *hinted) Error() string { return e.err.Error() }
func (e *hinted) Unwrap() error { return e.err }

// report is the one place that prints an error.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	code := exitFailed
	if e, ok := errors.AsType[*exitError](err); ok {
		if code = e.code; e.err == nil {
			return code
		}
	}
	for _, fault := range conf.Faults(err) {
		show(w, "adit-agent: %s", lowerFirst(fault.Error()))
	}
	if hint := hintFor(err); hint != "" {
		show(w, "hint: %s", hint)
	}
	return code
}

// show prints for people. What a relay, a hook or an app says of itself does
// not steer their terminal.
func show(w io.Writer, format string, args ...any) {
	fmt.Fprintln(w, printable.Lines(fmt.Sprintf(format, args...)))
}

func hintFor(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.hint
	}
	if errors.Is(err, local.ErrNoAgent) {
		return "is the agent running? `adit-agent run`, or `systemctl status adit-agent`; --socket names its socket, which only its user and group may use"
	}
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Hop == api.HopLink {
		return "`adit-agent doctor` shows where the way to the relay is broken"
	}
	return ""
}

func lowerFirst(s string) string {
	if len(s) > 1 && s[0] >= 'A' && s[0] <= 'Z' && s[1] >= 'a' && s[1] <= 'z' {
		return strings.ToLower(s[:1]) + s[1:]
	}
	return s
}

func newRoot(stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "adit-agent",
		Short: "keeps this machine reachable through an Adit relay, without an open port",
		Long: `adit-agent links this machine to an Adit relay. Tunnels that a team opens there reach
ports of this machine on loopback, as far as allow_ports says, and programs on it
take task leases, so that tasks and people do not meet on one GPU.`,
		Example: `  # the least that runs
  ADIT_RELAY_URL=https://gateway.example.com ADIT_CREDENTIAL_FILE=/etc/adit/credential adit-agent run

  # what is wrong?
  adit-agent doctor --config /etc/adit/agent.yaml`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       lifecycle.Version(),
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return &exitError{code: exitUsage}
		},
	}
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetVersionTemplate("adit-agent {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, err) })
	root.AddCommand(newRun(), newCheck(), newEnroll(), newStatus(), newDiag(), newDoctor(), newTask(), newState(), newPause(), newResume(), newVersion(), manual.Command("8"))
	for _, cmd := range root.Commands() {
		wrapArgs(cmd)
	}
	wrapArgs(root)
	return root
}

// wrapArgs makes wrong arguments exit as wrong usage.
func wrapArgs(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil {
		check = cobra.NoArgs
	}
	cmd.Args = func(c *cobra.Command, args []string) error {
		err := check(c, args)
		if err == nil {
			return nil
		}
		if want := strings.TrimSpace(strings.TrimPrefix(c.Use, c.Name())); want != "" { // cobra counts; people want names
			err = fmt.Errorf("%s takes %s, and got %d arguments", c.CommandPath(), want, len(args))
		}
		return usage(c, err)
	}
}

func usage(cmd *cobra.Command, err error) error {
	return &exitError{exitUsage, &hinted{err, fmt.Sprintf("`%s --help` shows how", cmd.CommandPath())}}
}

// configFlags adds --config and a flag for each key, and returns what loads them.
func configFlags(cmd *cobra.Command) func() (agent.Config, error) {
	var path string
	cmd.Flags().StringVar(&path, "config", os.Getenv("ADIT_CONFIG"), "configuration file, YAML [ADIT_CONFIG]")
	conf.Flags(cmd.Flags(), agent.DefaultConfig())
	return func() (agent.Config, error) {
		c := agent.DefaultConfig()
		if err := conf.Load(cmd.Flags(), path, &c); err != nil {
			return c, err
		}
		return c, nil
	}
}

// socketFlag adds --socket and returns the client of the agent that it names.
func socketFlag(cmd *cobra.Command) func() *local.Client {
	var socket string
	cmd.Flags().StringVar(&socket, "socket", "", "the agent's socket, or host:port of its local.listen [ADIT_LOCAL_SOCKET] (default: /run/adit-agent/agent.sock, then the state directory's)")
	return func() *local.Client {
		if socket == "" {
			socket = os.Getenv("ADIT_LOCAL_SOCKET")
		}
		if socket != "" {
			return local.NewClient(socket)
		}
		return local.NewClient(config.ClientSockets()...)
	}
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "print the version",
		Example: "  adit-agent version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "adit-agent %s\n", lifecycle.Version())
			return err
		},
	}
}
