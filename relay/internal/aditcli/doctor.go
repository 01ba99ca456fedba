package aditcli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/checkup"
	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	// heartbeatLate is when a machine's last sign of life is suspicious: it sends one
	// every 15 s, of which other relays hear once a minute, or later from a busy one.
	heartbeatLate = 3 * time.Minute
	// bannerWait is how long a tcp app has to say something by itself.
	bannerWait = time.Second
	// doctorSessions bounds how many tunnels of one machine are tried.
	doctorSessions = 16
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor [URL|AGENT|-]",
		Short: "show the way to a tunnel, machine or relay hop by hop",
		Long: `doctor walks the way to a tunnel (its URL), a machine (its name) or the relay
(nothing) and shows each hop with its time: name, TCP, TLS, proxy, relay, token and
clock, the machine and its link, the app. For the hop that is broken it says what
mends it. A tunnel's URL can be read from stdin: "-".`,
		Example: `  adit doctor
  adit doctor gpu-7
  adit status gpu-7 --json | jq -r .tunnel_url | adit doctor -`,
		ValidArgsFunction: a.completeAgents,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactArgs("URL|AGENT")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := a.loadSettings(cmd.Flags())
			if err != nil {
				return err
			}
			text := ""
			if len(args) == 1 {
				text = args[0]
			}
			if text == "-" {
				if text, err = a.readTunnelURL("-"); err != nil {
					return err
				}
			}
			d := &doctor{app: a, set: set}
			if err := d.walk(cmd.Context(), text); err != nil {
				return err
			}
			return d.close()
		},
	}
}

// doctor is one examination.
type doctor struct {
	app    *app
	set    settings
	checks []checkup.Check
	port   string // whose tunnel is looked at, for the details
}

// report takes a step and, for people, shows it at once.
func (d *doctor) report(c checkup.Check) {
	c.Detail = d.port + c.Detail
	d.checks = append(d.checks, c)
	if !d.app.json {
		_ = d.app.printf("%s", c.Text(d.app.colours))
	}
}

// way is how the doctor asks.
func way(tr *http.Transport) checkup.Way {
	return checkup.Way{Transport: tr, UserAgent: userAgent(), Timeout: dialTimeout, Words: words}
}

// failed is a check that went wrong.
func failed(name string, took time.Duration, err error) checkup.Check {
	return checkup.Failure(name, took, err, hintFor(err))
}

// close says how it went, by the exit code and with --json by the document.
func (d *doctor) close() error {
	if d.app.json {
		if err := d.app.document(checkup.NewDocument(d.checks)); err != nil {
			return err
		}
	}
	for _, c := range d.checks {
		if c.State == checkup.Failed {
			return &exitError{max(exitFailed, exitCode(c.Err))}
		}
	}
	return nil
}

// walk chooses the way by what the target is.
func (d *doctor) walk(ctx context.Context, target string) error {
	u, isURL := parseTunnelURL(target)
	switch {
	case isURL:
		if _, ok := sessionOf(u); ok {
			return d.walkTunnel(ctx, u)
		}
		if d.set.URL != strings.TrimRight(u.String(), "/") {
			d.set.Token = "" // it belongs to another relay
		}
		d.set.URL = u.String()
		target = ""
	case d.set.URL == "":
		return withHint(errors.New("no relay is known"), "run `adit login URL`, set ADIT_URL, or name a URL here")
	}
	var id ident.AgentID
	if target != "" {
		var err error
		if id, err = parseAgent(target); err != nil {
			return err
		}
	}
	s, err := newSession(ctx, d.set, client.DefaultTimeout)
	if err != nil {
		return err
	}
	defer s.client.Close()
	base, err := url.Parse(s.client.BaseURL())
	if err != nil {
		return err
	}
	if !way(s.transport).Relay(ctx, base, d.report) || !d.token(ctx, s) || id == "" {
		return nil
	}
	d.machine(ctx, s, id)
	return nil
}

func (d *doctor) token(ctx context.Context, s *session) bool {
	if s.Token == "" {
		d.report(checkup.Check{Check: "token", State: checkup.Warn, Detail: "none for this relay", Remedy: "run `adit login " + s.URL + "`"})
		return false
	}
	start := time.Now()
	l, err := s.client.Agents(ctx, 1, 1)
	if err != nil {
		d.report(failed("token", time.Since(start), err))
		return false
	}
	d.report(checkup.Check{Check: "token", State: checkup.OK, Millis: checkup.Millis(time.Since(start)), Detail: fmt.Sprintf("accepted; %d machines", l.PageMeta.TotalCount)})
	return true
}

// machine looks at one machine, its link and the apps behind its tunnels.
func (d *doctor) machine(ctx context.Context, s *session, id ident.AgentID) {
	start := time.Now()
	g, err := s.client.Agent(ctx, id)
	var p *api.Problem
	switch {
	case errors.As(err, &p) && p.Status == http.StatusNotFound:
		c := failed("machine", time.Since(start), err)
		c.Remedy = "it is not connected, or has another name (`adit agents`); on the machine, `adit-agent doctor` says why"
		d.report(c)
	case err != nil:
		d.report(failed("machine", time.Since(start), err))
		return
	default:
		d.report(machineCheck(g, time.Since(start)))
		if g.LinkRTTMillis > 0 {
			detail := "round trip between machine and relay"
			if g.LinkCongestion != "" {
				detail += ", congestion control " + g.LinkCongestion
			}
			d.report(checkup.Check{Check: "link", State: checkup.OK, Millis: g.LinkRTTMillis, Detail: detail})
		}
	}
	st, err := s.client.TunnelStatus(ctx, id)
	if err != nil {
		if p == nil { // a machine that is not there was reported already
			d.report(failed("tunnels", 0, err))
		}
		return
	}
	if len(st.Sessions) == 0 && p == nil {
		d.report(checkup.Check{Check: "tunnels", State: checkup.OK, Detail: "none is open", Remedy: fmt.Sprintf("adit open %s opens one", id)})
	}
	for i, o := range st.Sessions {
		if i == doctorSessions {
			break
		}
		if u, ok := parseTunnelURL(o.TunnelURL); ok {
			d.port = fmt.Sprintf("port %d, session %s: ", o.TargetPort, o.SessionID)
			w := way(s.transport)
			// The relay itself says that this is its tunnel, and that it asks who comes. One of
			// the last release says no such thing, and would pass the header on to the app.
			if o.Access.Access != "" && o.Access.Access != api.AccessAnyone {
				w.Header = s.login().header()
			}
			d.through(ctx, w, u, o.TunnelProtocol == api.ProtocolTCP, func(checkup.Check) {})
		}
		for _, w := range o.Warnings {
			d.report(checkup.Check{Check: "app", State: checkup.Warn, Detail: w})
		}
		d.port = ""
	}
}

func machineCheck(g api.Agent, took time.Duration) checkup.Check {
	c := checkup.Check{Check: "machine", State: checkup.OK, Millis: checkup.Millis(took), Detail: string(g.AgentStatus)}
	if s := stateDetail(g); s != "" {
		c.Detail += ", " + s
	}
	late := time.Since(g.LastHeartbeat)
	switch {
	case g.Paused:
		c.State, c.Remedy = checkup.Failed, "its owner paused it: `adit-agent resume` on the machine"
	case !g.LastHeartbeat.IsZero() && late > heartbeatLate:
		c.State, c.Detail = checkup.Warn, c.Detail+", last seen "+span(late)+" ago"
		c.Remedy = "its link may be dying: `adit-agent doctor` on the machine"
	case g.AgentStatus == api.StatusUnhealthy:
		c.State, c.Remedy = checkup.Warn, "a health check of the machine fails: tunnels work, tasks are refused"
	}
	return c
}

// walkTunnel follows a tunnel's URL; a token is needed only if it asks who comes.
func (d *doctor) walkTunnel(ctx context.Context, u *url.URL) error {
	tr, err := client.NewTransport(client.TransportConfig{CAFile: d.set.CAFile})
	if err != nil {
		return err
	}
	defer tr.CloseIdleConnections()
	d.through(ctx, way(tr), u, u.Scheme == "ws" || u.Scheme == "wss", d.report)
	return nil
}

// through goes through a tunnel to its app; steps takes the connection's checks.
func (d *doctor) through(ctx context.Context, w checkup.Way, u *url.URL, tcp bool, steps func(checkup.Check)) {
	if tcp {
		d.throughTCP(ctx, w.Transport, u)
		return
	}
	step := func(c checkup.Check) {
		if c.State == checkup.Failed {
			d.report(c)
			return
		}
		steps(c)
	}
	a := w.Ask(ctx, pageURL(u), step)
	if to := movedTo(u, a); to != nil {
		steps(checkup.Check{Check: "relay", State: checkup.OK, Millis: checkup.Millis(a.Took), Detail: "leads to the tunnel's own host"})
		w.Header = nil // where it leads is the answer's word, which may be the app's
		a = w.Ask(ctx, pageURL(to), step)
	}
	switch {
	case a == nil:
	case a.Problem != nil && asksWho(a.Problem):
		d.report(checkup.Check{
			Check: "relay", State: checkup.OK, Millis: checkup.Millis(a.Took), Detail: "the tunnel is open, and asks who comes",
			Remedy: "`adit doctor AGENT` goes on to the app, with your login",
		})
	case a.Problem != nil:
		c := failed(hopName(a.Problem), a.Took, a.Problem)
		if a.Status == http.StatusNotFound {
			c.Remedy = "the tunnel is closed or expired, or the URL is not complete: open another with `adit open`"
		}
		d.report(c)
	case a.Status >= 500:
		d.report(checkup.Check{Check: "app", State: checkup.Warn, Millis: checkup.Millis(a.Took), Detail: fmt.Sprintf("answers %d by itself", a.Status), Remedy: "the way is fine; look at the app's own log"})
	default:
		d.report(checkup.Check{Check: "app", State: checkup.OK, Millis: checkup.Millis(a.Took), Detail: fmt.Sprintf("answers %d", a.Status)})
	}
}

// throughTCP opens a WebSocket to a tcp tunnel and waits a moment for the app to
// say something: ssh and databases do.
func (d *doctor) throughTCP(ctx context.Context, tr *http.Transport, u *url.URL) {
	start := time.Now()
	c, err := d.set.login().dial(ctx, tr, u)
	if err != nil {
		name := "relay"
		if p, ok := errors.AsType[*api.Problem](err); ok {
			name = hopName(p)
		}
		d.report(failed(name, time.Since(start), err))
		return
	}
	k := checkup.Check{Check: "app", State: checkup.OK, Millis: checkup.Millis(time.Since(start)), Detail: "accepts connections"}
	ctx, cancel := context.WithTimeout(ctx, bannerWait)
	defer cancel()
	// Closing frees the read: an app that waits for its client says nothing.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	buf := make([]byte, 256)
	if n, _ := c.Read(buf); n > 0 {
		banner, _, _ := strings.Cut(string(buf[:n]), "\n")
		if text := strings.TrimRight(banner, "\r"); !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
			k.Detail += fmt.Sprintf(", says %q", text)
		}
	}
	stop()
	_ = c.Close()
	d.report(k)
}

// hopName is the hop that a refusal blames.
func hopName(p *api.Problem) string {
	if p.Hop == "" {
		return "relay"
	}
	return string(p.Hop)
}
