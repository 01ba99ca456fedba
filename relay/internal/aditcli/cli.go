// Package aditcli is the user's command line: it parses commands, calls the
// relay's public interface and its tunnels as any other program could, and
// prints. It owns the user's configuration file. It never reaches into the relay:
// it imports shared packages only.
//
// Rules of output: results on stdout (tables for people, the interface's own
// documents with --json), everything else on stderr, a hint line below an error;
// exit 0 done, 1 failed, 2 wrong usage, 75 try again.
package aditcli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/lifecycle"
	"github.com/adit-tunnel/adit/shared/manual"
	"github.com/adit-tunnel/adit/shared/printable"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitLater  = 75 // sysexits.h, EX_TEMPFAIL: the same command may succeed later
)

// Main runs one command and returns its exit code. An interrupt, SIGTERM or SIGHUP
// ends the command in order; a second interrupt or SIGTERM ends the process at once.
func Main(ctx context.Context, args []string) int {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signals = append(signals, syscall.SIGHUP)
		// ssh sends one to its ProxyCommand when it ends, a terminal another one: the
		// second must not keep us from closing our tunnel.
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
	}
	ctx, stop := signal.NotifyContext(ctx, signals...)
	defer stop()
	// From the first signal on, the next one has its usual effect.
	defer context.AfterFunc(ctx, stop)()

	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv}
	a.outTTY, a.errTTY = isTerminal(os.Stdout), isTerminal(os.Stderr)
	a.colours = a.outTTY && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		a.notef("adit: interrupted")
		return exitFailed
	}
	return a.finish(err)
}

// app is one invocation: its streams and what its common flags said.
type app struct {
	in             io.Reader
	out, err       io.Writer
	outTTY, errTTY bool
	colours        bool
	getenv         func(string) string
	json           bool
	configPath     string
	profile        string
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "adit",
		Short: "open tunnels to GPU machines and use what listens there",
		Long: `adit opens tunnels to GPU machines through an Adit relay, and uses them.

Log in once, then open what listens on a machine:

  adit login https://gateway.example.com
  adit agents
  adit open gpu-7 --port 8188
  adit ssh gpu-7

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed,
2 wrong usage, 75 try again later (agent busy or away, limits, relay unreachable).`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			err := usagef("unknown command %q", args[0])
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				return withHint(err, "did you mean `adit %s`?", s[0])
			}
			return err
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return withHint(&usageError{err}, "see `%s --help`", cmd.CommandPath())
	})
	p := root.PersistentFlags()
	p.BoolVar(&a.json, "json", false, "print the relay's own JSON documents on stdout")
	p.StringVar(&a.configPath, "config", "", "configuration file (default $XDG_CONFIG_HOME/adit/config.yaml)")
	p.StringVar(&a.profile, "profile", "", "which of several relays or people you are: config-NAME.yaml beside the configuration file [ADIT_PROFILE]")
	_ = root.RegisterFlagCompletionFunc("profile", a.completeProfiles) // the flag is there
	registerSettings(p)

	root.AddCommand(
		a.loginCommand(), a.whoamiCommand(), a.logoutCommand(), a.agentsCommand(), a.watchCommand(), a.openCommand(), a.statusCommand(),
		a.closeCommand(), a.extendCommand(), a.viewersCommand(), a.accessCommand(), a.linksCommand(), a.knocksCommand(), a.admitCommand(), a.connectCommand(), a.sshCommand(),
		a.terminalCommand(),
		a.inviteCommand(), a.membersCommand(),
		a.doctorCommand(), a.versionCommand(), manual.Command("1"),
	)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return root
}

// finish reports an error and chooses the exit code.
func (a *app) finish(err error) int {
	if err == nil {
		return exitDone
	}
	if quiet, ok := errors.AsType[*exitError](err); ok {
		return quiet.code
	}
	a.complain(err)
	return exitCode(err)
}

// complain prints an error and its hint on stderr.
func (a *app) complain(err error) {
	a.notef("adit: %s", client.Describe(err))
	if h := hintFor(err); h != "" {
		a.notef("hint: %s", h)
	}
}

// notef prints one line on stderr.
func (a *app) notef(format string, args ...any) {
	_, _ = fmt.Fprintln(a.err, clean(fmt.Sprintf(format, args...))) // nothing is left to tell it to
}

// printf prints on stdout, colours too: text from elsewhere is to be clean before. A
// reader that went away is an error to end with.
func (a *app) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(a.out, format, args...)
	return err
}

// document prints a JSON document on stdout.
func (a *app) document(v any) error {
	e := printable.Encoder(a.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// line prints a JSON document on one line, for streams of them.
func (a *app) line(v any) error {
	e := printable.Encoder(a.out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// session is what most commands need: the settings and a client made of them.
type session struct {
	settings
	client    *client.Client
	transport *http.Transport
}

// connectRelay reads the settings and makes a client; it calls nothing yet.
func (a *app) connectRelay(cmd *cobra.Command) (*session, error) {
	s, err := a.loadSettings(cmd.Flags())
	if err != nil {
		return nil, err
	}
	if s.URL == "" {
		return nil, withHint(errors.New("no relay is known"), "run `%s`, or set ADIT_URL and ADIT_TOKEN", a.loginAgain("URL"))
	}
	if s.Token == "" {
		return nil, withHint(fmt.Errorf("no token for %s", s.URL), "run `%s`, or set ADIT_TOKEN", a.loginAgain(s.URL))
	}
	return newSession(cmd.Context(), s, client.DefaultTimeout)
}

// newSession makes a client. A team that is given by its name costs a call.
func newSession(ctx context.Context, s settings, timeout time.Duration) (*session, error) {
	tr, err := client.NewTransport(client.TransportConfig{CAFile: s.CAFile})
	if err != nil {
		return nil, err
	}
	as := func(team ident.TeamID) (*client.Client, error) {
		return client.New(client.Config{
			BaseURL: s.URL, Token: s.Token, Team: team, UserAgent: userAgent(), Timeout: timeout, Transport: tr,
		})
	}
	team, err := ident.ParseTeamID(s.Team)
	if err != nil {
		if team = ""; s.Team != "" && s.Token != "" {
			c, err := as("")
			if err != nil {
				return nil, err
			}
			if team, err = teamNamed(ctx, c, s.Team); err != nil {
				return nil, err
			}
		}
		s.Team = string(team)
	}
	c, err := as(team)
	if err != nil {
		return nil, err
	}
	return &session{settings: s, client: c, transport: tr}, nil
}

// teamNamed finds one of the caller's teams by its name.
func teamNamed(ctx context.Context, c *client.Client, name string) (ident.TeamID, error) {
	me, err := c.Me(ctx)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Code == api.CodeNotFound {
		return "", withHint(fmt.Errorf("team %q: the relay is of an earlier release and knows no names of teams", name), "give the team's UUID")
	}
	if err != nil {
		return "", fmt.Errorf("find the team %q: %w", name, err)
	}
	found, all := ident.TeamID(""), []string{}
	for _, t := range me.Teams {
		all = append(all, strings.TrimSpace(t.TeamName+" "+string(t.TeamID)))
		if strings.EqualFold(t.TeamName, name) {
			if found != "" {
				return "", withHint(usagef("team %q: two of your teams have that name", name), "give the UUID: %s", strings.Join(all, ", "))
			}
			found = t.TeamID
		}
	}
	if found == "" {
		err := usagef("team %q: this token's owner is in no team of that name", name)
		if len(all) > 0 {
			err = withHint(err, "there is: %s", strings.Join(all, ", "))
		}
		return "", err
	}
	return found, nil
}

func userAgent() string { return "adit/" + lifecycle.Version() }

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// parseAgent checks the AGENT argument.
func parseAgent(s string) (ident.AgentID, error) {
	id, err := ident.ParseAgentID(s)
	if err != nil {
		return "", usagef("agent %q: %w", s, err)
	}
	return id, nil
}

// parseSession checks a SESSION argument: a session id, or a tunnel's whole URL.
func parseSession(s string) (ident.SessionID, error) {
	if u, ok := parseTunnelURL(s); ok {
		if id, ok := sessionOf(u); ok {
			return id, nil
		}
	}
	id, err := ident.ParseSessionID(s)
	if err != nil {
		return "", withHint(usagef("session: %w", err), "`adit status AGENT` lists them; a tunnel's URL will do as well")
	}
	return id, nil
}

// exactArgs demands the named arguments.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return withHint(usagef("%s is missing", names[len(args)]), "usage: %s", cmd.UseLine())
		case len(args) > len(names):
			return withHint(usagef("unexpected argument %q", args[len(names)]), "usage: %s", cmd.UseLine())
		}
		return nil
	}
}

// completeAgents completes the first argument with the team's agents.
func (a *app) completeAgents(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	s, err := a.loadSettings(cmd.Flags())
	if err != nil || s.URL == "" || s.Token == "" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	sess, err := newSession(cmd.Context(), s, 2*time.Second)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer sess.client.Close()
	l, err := sess.client.Agents(cmd.Context(), 1, client.MaxPerPage)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, ag := range l.AgentList {
		if strings.HasPrefix(string(ag.AgentID), prefix) {
			out = append(out, clean(string(ag.AgentID))+"\t"+clean(string(ag.AgentStatus)))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
