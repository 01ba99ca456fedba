package aditcli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/wsconn"
)

// ownLabel marks a tunnel that its command closes at the end.
const ownLabel = "adit connect"

// closeTimeout bounds the closing of our own tunnel when the command ends.
const closeTimeout = 5 * time.Second

// listening is the --json document of connect.
type listening struct {
	Listen  string          `json:"listen"`
	Session ident.SessionID `json:"session_id"`
}

func (a *app) connectCommand() *cobra.Command {
	var (
		listen, urlFile string
		stdio, keep     bool
	)
	cmd := &cobra.Command{
		Use:   "connect URL|AGENT:PORT|-",
		Short: "use a tcp tunnel from a local port, or on stdin and stdout",
		Long: `connect carries TCP connections through a tunnel. It listens on a local port (-L),
or with --stdio joins one connection to its stdin and stdout, as a ProxyCommand of
ssh does.

AGENT:PORT opens a tunnel for the time that the command runs (--keep leaves it
open). A URL uses a tunnel that somebody opened with --protocol tcp. The URL grants
access, and other users of this machine can see the arguments of a process: rather
give it in ADIT_TUNNEL_URL, in a file (--url-file), or on stdin ("-"). To a tunnel that
is for certain people (--access), your login says who you are, if it is a tunnel of the
relay that you are logged in to.

New connections outlast a restart of the relay and a lost link: they are tried
again for some seconds before their client is told.`,
		Example: `  adit connect gpu-7:5432 -L 127.0.0.1:5432
  adit connect gpu-7:22 -L 2222
  ADIT_TUNNEL_URL=wss://… adit connect -L 127.0.0.1:6379
  ssh -o ProxyCommand='adit connect gpu-7:22 --stdio' me@gpu-7`,
		ValidArgsFunction: a.completeAgents,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactArgs("URL|AGENT:PORT")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := listenAddr(listen)
			switch {
			case err != nil:
				return err
			case stdio && listen != "":
				return usagef("-L and --stdio exclude each other")
			}
			t, done, err := a.findTunnel(cmd, args, urlFile, stdio, keep)
			if err != nil {
				return err
			}
			defer done()
			if stdio {
				return a.connectStdio(cmd.Context(), t)
			}
			return a.connectListen(cmd.Context(), t, addr)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&listen, "listen", "L", "", "local address or port to listen on (default a free port of 127.0.0.1, printed on stderr)")
	f.BoolVar(&stdio, "stdio", false, "join one connection to stdin and stdout")
	f.StringVar(&urlFile, "url-file", "", "file that holds the tunnel's URL")
	f.BoolVar(&keep, "keep", false, "with AGENT:PORT: leave the tunnel open at the end")
	return cmd
}

// listenAddr completes what -L says: a port, an address, or nothing.
func listenAddr(s string) (string, error) {
	if s == "" {
		return "127.0.0.1:0", nil
	}
	if _, err := strconv.Atoi(s); err == nil {
		s = "127.0.0.1:" + s
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", usagef("-L %q: an address is HOST:PORT or PORT", s)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return "", usagef("-L %q: a port is 0 to 65535", s)
	}
	return net.JoinHostPort(host, port), nil
}

// findTunnel finds out which tunnel is meant. done ends what it opened.
func (a *app) findTunnel(cmd *cobra.Command, args []string, urlFile string, stdio, keep bool) (t *tunnel, done func(), err error) {
	text := ""
	if len(args) == 1 {
		text = args[0]
	}
	switch {
	case text != "" && text != "-" && urlFile != "":
		return nil, nil, usagef("--url-file stands instead of the argument")
	case text == "-" && stdio, urlFile == "-" && stdio:
		return nil, nil, withHint(usagef("--stdio needs stdin for itself"), "give the URL in ADIT_TUNNEL_URL or with --url-file")
	case text == "-":
		urlFile = "-"
	case text == "" && urlFile == "":
		if text = a.getenv(envTunnelURL); text == "" {
			return nil, nil, withHint(usagef("URL or AGENT:PORT is missing"), "usage: %s; or set ADIT_TUNNEL_URL", cmd.UseLine())
		}
	}
	if urlFile != "" {
		if text, err = a.readTunnelURL(urlFile); err != nil {
			return nil, nil, err
		}
	}
	if u, ok := parseTunnelURL(text); ok {
		t, err := a.tunnelAt(cmd, u)
		return t, func() {}, err
	}
	// What is not an agent is not repeated: it may be a URL with a slip.
	name, portText, _ := strings.Cut(text, ":")
	id, err := ident.ParseAgentID(name)
	if err != nil || portText == "" {
		return nil, nil, withHint(usagef("that is neither a tunnel's URL nor AGENT:PORT"), "usage: %s", cmd.UseLine())
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port < 1 || port > 65535 {
		return nil, nil, usagef("port %q: a port is 1 to 65535", portText)
	}
	s, err := a.connectRelay(cmd)
	if err != nil {
		return nil, nil, err
	}
	return a.ownTunnel(cmd.Context(), s, id, port, keep)
}

// tunnelAt uses a tunnel that somebody opened; a token is needed only if it asks who comes.
func (a *app) tunnelAt(cmd *cobra.Command, u *url.URL) (*tunnel, error) {
	if _, ok := sessionOf(u); !ok {
		return nil, withHint(usagef("that is no tunnel's URL"), "it has the form wss://RELAY/tunnel/SEGMENT/ or wss://SEGMENT.DOMAIN/")
	}
	s, err := a.loadSettings(cmd.Flags())
	if err != nil {
		return nil, err
	}
	tr, err := client.NewTransport(client.TransportConfig{CAFile: s.CAFile})
	if err != nil {
		return nil, err
	}
	return &tunnel{transport: tr, note: a.notef, login: s.login(), url: u}, nil
}

// ownTunnel opens a tunnel for this command. done closes it, also when the
// command was interrupted.
func (a *app) ownTunnel(ctx context.Context, s *session, id ident.AgentID, port int, keep bool) (*tunnel, func(), error) {
	open := func(ctx context.Context) (*url.URL, error) {
		t, err := s.client.OpenTunnel(ctx, id, api.OpenTunnelRequest{TargetPort: &port, TunnelProtocol: api.ProtocolTCP, Label: ownLabel}, "")
		if err != nil {
			return nil, err
		}
		for _, w := range t.Warnings {
			a.notef("warning: %s", w)
		}
		u, ok := parseTunnelURL(t.TunnelURL)
		if !ok {
			return nil, errors.New("the relay answered with a tunnel URL that is none")
		}
		return u, nil
	}
	stop := a.spin("opening a tunnel to " + string(id))
	u, err := open(ctx)
	stop()
	if err != nil {
		s.client.Close()
		return nil, nil, err
	}
	t := &tunnel{transport: s.transport, note: a.notef, login: s.login(), url: u, reopen: open}
	return t, func() {
		defer s.client.Close()
		if keep {
			a.notef("session %s stays open; close it with: adit close %s --session %s", t.session(), id, t.session())
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		var p *api.Problem
		if _, err := s.client.CloseTunnel(ctx, id, t.session()); err != nil && (!errors.As(err, &p) || p.Status != 404) {
			a.complain(err)
		}
	}, nil
}

// connectStdio joins one connection to stdin and stdout.
func (a *app) connectStdio(ctx context.Context, t *tunnel) error {
	c, err := t.dial(ctx)
	if err != nil {
		return err
	}
	// A reader that went away is an error of the write, after which our tunnel is
	// closed; by default the signal would end the process before that.
	signal.Ignore(syscall.SIGPIPE)
	_, err = splice.Both(ctx, newStdio(a.in, a.out), c, splice.Options{})
	err = whyEnded(c, err)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("connection through %s: %w", t.session(), err)
	}
	return nil
}

// connectListen listens and carries connections until the context ends.
func (a *app) connectListen(ctx context.Context, t *tunnel, addr string) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return withHint(err, "choose another address: -L 127.0.0.1:0 takes a free port")
	}
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		a.notef("warning: others on your network can use %s", ln.Addr())
	}
	a.notef("listening on %s, for session %s; ctrl-c ends", ln.Addr(), t.session())
	if a.json {
		if err := a.line(listening{Listen: ln.Addr().String(), Session: t.session()}); err != nil {
			_ = ln.Close()
			return err
		}
	}
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			_ = ln.Close()
			return fmt.Errorf("accept connection: %w", err)
		}
		conns.Go(func() { a.carry(ctx, t, c.(*net.TCPConn)) })
	}
}

// carry joins one local connection to one WebSocket of its own.
func (a *app) carry(ctx context.Context, t *tunnel, local *net.TCPConn) {
	c, err := t.dial(ctx)
	if err != nil {
		if ctx.Err() == nil {
			a.complain(fmt.Errorf("connection from %s: %w", local.RemoteAddr(), err))
		}
		_ = localConn{local}.Reset()
		return
	}
	_, err = splice.Both(ctx, localConn{local}, c, splice.Options{})
	if err = whyEnded(c, err); err != nil && ctx.Err() == nil {
		a.notef("adit: connection from %s ended: %s", local.RemoteAddr(), err.Error())
	}
}

// whyEnded is the relay's own word for the end of a connection, where it said one: to
// the stream itself it is an end like any other.
func whyEnded(c *wsconn.Conn, err error) error {
	if f, ok := c.Farewell(); ok && f.Reason != "" {
		return said(f)
	}
	return err
}

// localConn is a local client's connection. Its Reset says 'failed' to the client,
// where a plain close would look like a complete answer.
type localConn struct{ *net.TCPConn }

// Reset closes the connection with a TCP reset (RFC 9293, section 3.10.5).
func (c localConn) Reset() error {
	_ = c.SetLinger(0)
	return c.Close()
}
