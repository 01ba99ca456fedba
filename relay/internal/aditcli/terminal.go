package aditcli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/apps"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/prompt"
	"github.com/adit-tunnel/adit/shared/wire"
)

// envAdminToken names the variable that holds a tunnel's admin token.
const envAdminToken = "ADIT_ADMIN_TOKEN"

// terminalLabel marks a tunnel that `adit terminal` closes at its end.
const terminalLabel = "adit terminal"

func (a *app) terminalCommand() *cobra.Command {
	var (
		port            int
		keep, readOnly  bool
		browser         bool
		name, tokenFile string
		expires         duration
	)
	cmd := &cobra.Command{
		Use:   "terminal AGENT|SESSION",
		Short: "a shell on a machine, in this terminal",
		Long: `terminal opens a shell on a machine whose agent allows terminals (terminal.enabled),
as the user that the machine's owner chose.

AGENT opens a tunnel for the time that the command runs (--keep leaves it open, with
the shell in it). SESSION, a session id, attaches to the terminal of a tunnel that
is open already: all who attach see and type the same. That needs the tunnel's admin
token, from ADIT_ADMIN_TOKEN, --token-file or a prompt; never as an argument, which
other users of this machine could see.

--browser opens nothing here: it prints a URL that opens the terminal in a browser,
once, within five minutes or what --expires says. For an AGENT the tunnel stays open
until it is closed or idle; for a SESSION your login is enough.

At the beginning of a line, ~. leaves, ~? lists these, and ~~ types a ~. The shell
survives a lost link: this command attaches again by itself. The exit code is the
shell's.`,
		Example: `  adit terminal gpu-7
  adit terminal gpu-7 --keep
  adit terminal gpu-7 --browser --expires 1h
  ADIT_ADMIN_TOKEN=adm-… adit terminal 3f0c8a5e9b7d4c21a6e8f0b1d2c3e4f5 --read-only`,
		Args:              exactArgs("AGENT|SESSION"),
		ValidArgsFunction: a.completeAgents,
		RunE: func(cmd *cobra.Command, args []string) error {
			if port < 1 || port > 65535 {
				return usagef("--port %d: a port is 1 to 65535", port)
			}
			if !wire.ValidTerminal(name) {
				return usagef("--name %q: a terminal's name is 1 to %d of a-z, 0-9 and hyphen", name, wire.MaxTerminalName)
			}
			if browser {
				return a.browserTerminal(cmd, args[0], tokenFile, port, name, api.TerminalRequest{ExpiresIn: expires.set, ReadOnly: readOnly})
			}
			if expires.set != nil {
				return usagef("--expires is the life of a URL: it needs --browser")
			}
			tty, err := a.tty()
			if err != nil {
				return err
			}
			s, err := a.connectTerminal(cmd, args[0])
			if err != nil {
				return err
			}
			defer s.client.Close()
			t := &remoteTerminal{app: a, transport: s.transport, login: s.login(), tty: tty, attach: wire.TerminalAttach{ReadOnly: readOnly, Attach: name}}
			done := func() {}
			if id, err := ident.ParseSessionID(args[0]); err == nil {
				t.at, err = terminalSocket(s.URL, id)
				if err == nil {
					t.attach.Token, err = a.adminToken(tty, tokenFile)
				}
				if err != nil {
					return err
				}
			} else if done, err = a.openForTerminal(cmd.Context(), s, t, args[0], port, keep); err != nil {
				return err
			}
			defer done()
			return t.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&keep, "keep", false, "leave the tunnel, and the shell in it, at the end")
	f.BoolVar(&readOnly, "read-only", false, "look on without typing")
	f.StringVar(&name, "name", wire.DefaultTerminal, "which of the tunnel's terminals")
	f.StringVar(&tokenFile, "token-file", "", "file that holds the tunnel's admin token")
	f.IntVar(&port, "port", apps.DefaultPort, "port that the tunnel is for; any that the machine allows")
	f.BoolVar(&browser, "browser", false, "print a URL that opens the terminal in a browser, once")
	f.Var(&expires, "expires", "how long that URL is good for, at most 24h (default 5m)")
	return cmd
}

// browserTerminal prints a URL that enters a terminal once. For an agent it opens a
// tunnel, and leaves it.
func (a *app) browserTerminal(cmd *cobra.Command, target, tokenFile string, port int, name string, req api.TerminalRequest) error {
	ctx := cmd.Context()
	id, err := ident.ParseSessionID(target)
	isSession := err == nil
	connect := a.connectRelay
	if token := a.getenv(envAdminToken); isSession && (token != "" || tokenFile != "") {
		connect = func(cmd *cobra.Command) (*session, error) {
			s, err := a.connectTerminal(cmd, target)
			if err != nil {
				return nil, err
			}
			text, err := a.adminToken(nil, tokenFile)
			if err != nil {
				return nil, err
			}
			s.Token = ident.Secret(text)
			return newSession(ctx, s.settings, client.DefaultTimeout)
		}
	}
	s, err := connect(cmd)
	if err != nil {
		return err
	}
	defer s.client.Close()
	done := func() {}
	var agent ident.AgentID
	if !isSession {
		t := &remoteTerminal{app: a}
		if agent, err = parseAgent(target); err != nil {
			return err
		}
		if done, err = a.openForTerminal(ctx, s, t, target, port, false); err != nil {
			return err
		}
		id = t.session
	}
	made, err := s.client.OpenTerminal(ctx, id, req)
	if err != nil {
		done()
		return err
	}
	if name != wire.DefaultTerminal {
		made.TerminalURL += "&terminal=" + name
	}
	if !isSession {
		a.notef("session %s stays open; close it with: adit close %s --session %s", id, agent, id)
	}
	if a.json {
		return a.document(made)
	}
	a.notef("it works once, until %s", made.CodeExpiresAt.Local().Format(time.RFC3339))
	return a.printf("%s\n", made.TerminalURL)
}

// tty is the terminal that this command runs in.
func (a *app) tty() (*os.File, error) {
	f, ok := a.in.(*os.File)
	if !ok || !isTerminal(f) || !a.outTTY {
		return nil, withHint(errors.New("adit terminal needs a terminal on stdin and stdout"), "to run one command, use: adit ssh AGENT -- COMMAND")
	}
	return f, nil
}

// connectTerminal reads the settings. A session needs no login: its admin token is
// all that is asked for.
func (a *app) connectTerminal(cmd *cobra.Command, target string) (*session, error) {
	if _, err := ident.ParseSessionID(target); err != nil {
		return a.connectRelay(cmd)
	}
	s, err := a.loadSettings(cmd.Flags())
	if err != nil {
		return nil, err
	}
	if s.URL == "" {
		return nil, withHint(errors.New("no relay is known"), "run `adit login URL`, or set ADIT_URL")
	}
	return newSession(cmd.Context(), s, client.DefaultTimeout)
}

func (a *app) adminToken(tty *os.File, file string) (string, error) {
	token := a.getenv(envAdminToken)
	switch {
	case file != "":
		b, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("read admin token: %w", err)
		}
		token = string(b)
	case token == "":
		var err error
		if token, err = prompt.Secret(tty, a.err, "admin token of the tunnel: "); err != nil {
			return "", fmt.Errorf("read admin token: %w", err)
		}
	}
	if token = strings.TrimSpace(token); !strings.HasPrefix(token, ident.PrefixAdmin) {
		return "", withHint(usagef("that is no admin token: those begin with %s", ident.PrefixAdmin), "`adit open --json` says it when a tunnel is opened")
	}
	return token, nil
}

// openForTerminal opens a tunnel for the command. done closes it.
func (a *app) openForTerminal(ctx context.Context, s *session, t *remoteTerminal, agent string, port int, keep bool) (done func(), err error) {
	id, err := parseAgent(agent)
	if err != nil {
		return nil, err
	}
	stop := a.spin("opening a tunnel to " + string(id))
	tun, err := s.client.OpenTunnel(ctx, id, api.OpenTunnelRequest{TargetPort: &port, Label: terminalLabel}, "")
	stop()
	if err != nil {
		var p *api.Problem
		if errors.As(err, &p) && p.Code == api.CodePortNotAllowed {
			return nil, withHint(err, "a terminal does not use the port, but a tunnel has one: --port names one that the machine allows")
		}
		return nil, err
	}
	t.attach.Token, t.session = tun.AdminToken, tun.SessionID
	if t.at, err = terminalSocket(s.URL, tun.SessionID); err != nil {
		return nil, err
	}
	return func() {
		if keep && !t.ended {
			a.notef("the shell goes on; attach again with: %s=%s adit terminal %s", envAdminToken, tun.AdminToken, tun.SessionID)
			a.notef("close it with: adit close %s --session %s", id, tun.SessionID)
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		var p *api.Problem
		if _, err := s.client.CloseTunnel(ctx, id, tun.SessionID); err != nil && (!errors.As(err, &p) || p.Status != http.StatusNotFound) {
			a.complain(err)
		}
	}, nil
}

// terminalSocket is where a tunnel's terminal is.
func terminalSocket(relay string, id ident.SessionID) (*url.URL, error) {
	u, err := client.ParseBaseURL(relay)
	if err != nil {
		return nil, &usageError{err}
	}
	at := *u
	at.Scheme = "ws" + strings.TrimPrefix(u.Scheme, "http")
	at.Path = u.Path + wire.TerminalPath + string(id) + wire.TerminalSocket
	return &at, nil
}

// dialTerminal connects. A refusal is an *api.Problem.
func dialTerminal(ctx context.Context, transport http.RoundTripper, at *url.URL, more http.Header) (*websocket.Conn, error) {
	header := http.Header{"User-Agent": {userAgent()}, "Accept": {api.ProblemContentType}}
	maps.Copy(header, more)
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, client.ErrTimeout)
	defer cancel()
	c, res, err := websocket.Dial(ctx, at.String(), &websocket.DialOptions{
		HTTPClient: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		HTTPHeader:      header,
		CompressionMode: websocket.CompressionDisabled,
	})
	switch {
	case err == nil:
		c.SetReadLimit(64 << 10)
		return c, nil
	case res != nil && res.StatusCode != http.StatusSwitchingProtocols:
		return nil, client.ReadProblem(res)
	}
	return nil, client.NewConnError(ctx, at.Host, err)
}

// writeLimit bounds one message to the relay.
const writeLimit = 30 * time.Second
