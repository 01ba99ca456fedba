package aditcli

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/apps"
	"github.com/adit-tunnel/adit/shared/ident"
)

// duration is a flag of the interface's durations: "30m", "90d", seconds.
type duration struct{ set *api.Duration }

// String is the flag's default for --help: none.
func (d *duration) String() string {
	if d.set == nil {
		return ""
	}
	return d.set.String()
}

// Set reads the flag.
func (d *duration) Set(s string) error {
	v, err := api.ParseDuration(s)
	if err != nil {
		return err
	}
	if v <= 0 {
		return fmt.Errorf("%s is not above zero", s)
	}
	d.set = &v
	return nil
}

// Type is what --help calls the value.
func (*duration) Type() string { return "duration" }

func (a *app) openCommand() *cobra.Command {
	var (
		port                            int
		protocol, label, whenBusy, host string
		origins                         []string
		idle, expires, wait             duration
		access                          accessFlags
	)
	cmd := &cobra.Command{
		Use:   "open AGENT",
		Short: "open a tunnel to a port of a machine and print its URL",
		Long: `open opens a tunnel to a port of a machine and prints its URL, first and alone on
stdout. Whoever has the URL can use the tunnel until it closes: nobody used it for
the idle time, it expired, or somebody closed it. What else there is to know goes
to stderr, or with --json all of it to stdout, the admin token included.

` + accessHelp + `
Your own tunnel is open to you in any case, where you are signed in.`,
		Example: `  adit open gpu-7
  adit open gpu-7 --port 8888 --label "notebook of the week" --expires 8h
  adit open gpu-7 --port 5432 --protocol tcp
  adit open gpu-7 --access team
  adit open gpu-7 --people 'alice@example.com,*@partner.example' --read-only
  xdg-open "$(adit open gpu-7)"`,
		Args:              exactArgs("AGENT"),
		ValidArgsFunction: a.completeAgents,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseAgent(args[0])
			if err != nil {
				return err
			}
			req := api.OpenTunnelRequest{
				TunnelProtocol: api.Protocol(protocol), IdleTimeout: idle.set, ExpiresIn: expires.set, WaitTimeout: wait.set,
				WhenBusy: api.WhenBusy(whenBusy), Label: label, HostHeader: api.HostHeader(host), AllowOrigins: origins,
			}
			if cmd.Flags().Changed("port") {
				req.TargetPort = &port
			}
			if err := checkOpen(req); err != nil {
				return err
			}
			if access.given(cmd) {
				if req.AccessRequest, err = access.request(a, cmd, api.Access{}); err != nil {
					return err
				}
			}
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			defer s.client.Close()
			stop := a.spin("opening a tunnel to " + string(id))
			t, err := s.client.OpenTunnel(cmd.Context(), id, req, "")
			stop()
			if err != nil {
				return err
			}
			if a.json {
				return a.document(t)
			}
			return a.opened(t)
		},
	}
	f := cmd.Flags()
	f.IntVar(&port, "port", apps.DefaultPort, "port on the machine")
	f.StringVar(&protocol, "protocol", "", "http or tcp (default http)")
	f.Var(&idle, "idle", "close when nobody used it for so long (default: the relay's)")
	f.Var(&expires, "expires", "close after this time in any case (default: the relay's)")
	f.StringVar(&label, "label", "", "a name for lists, at most 64 characters")
	f.StringVar(&whenBusy, "when-busy", "", "while tasks run: allow, reject or wait (default allow)")
	f.Var(&wait, "wait-timeout", "with --when-busy wait: how long at most")
	f.StringVar(&host, "host-header", "", "Host that the app sees: auto, public or local (default auto)")
	f.StringSliceVar(&origins, "allow-origin", nil, "another web origin that may use the tunnel, as https://app.example.com; repeatable")
	access.register(cmd, "the relay's")
	return cmd
}

// checkOpen refuses what is certainly wrong without asking the relay.
func checkOpen(r api.OpenTunnelRequest) error {
	one := func(flag, v string, of ...string) error {
		for _, o := range of {
			if v == "" || v == o {
				return nil
			}
		}
		return usagef("--%s %q: it is one of %s", flag, v, strings.Join(of, ", "))
	}
	if r.TargetPort != nil && (*r.TargetPort < 1 || *r.TargetPort > 65535) {
		return usagef("--port %d: a port is 1 to 65535", *r.TargetPort)
	}
	if err := one("protocol", string(r.TunnelProtocol), "http", "tcp"); err != nil {
		return err
	}
	if err := one("when-busy", string(r.WhenBusy), "allow", "reject", "wait"); err != nil {
		return err
	}
	if r.WaitTimeout != nil && r.WhenBusy != api.BusyWait {
		return usagef("--wait-timeout goes with --when-busy wait")
	}
	for _, o := range r.AllowOrigins {
		u, err := url.Parse(o)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.Path != "" || u.RawQuery != "" {
			return usagef("--allow-origin %q: an origin is a scheme and a host, as https://app.example.com", o)
		}
	}
	return one("host-header", string(r.HostHeader), "auto", "public", "local")
}

func (a *app) opened(t api.Tunnel) error {
	if err := a.printf("%s\n", clean(t.TunnelURL)); err != nil {
		return err
	}
	now := time.Now()
	app := ""
	if t.App != "" {
		app = " (" + t.App + ")"
	}
	a.notef("session %s to port %d%s, closes after %s unused or %s", t.SessionID, t.TargetPort, app, t.IdleTimeout, until(t.ExpiresAt, now))
	if t.TunnelProtocol == api.ProtocolTCP {
		a.notef("use it with: adit connect - -L 127.0.0.1:0, which reads the URL from stdin, or put the URL into %s", envTunnelURL)
	}
	if c := t.Access; c.Access != "" && (c.Access != api.AccessAnyone || len(c.From) > 0 || c.ReadOnly) {
		a.notef("for %s; change it with: adit access %s", accessText(c), t.SessionID)
	}
	if t.RunningTasks > 0 {
		a.notef("%d tasks are running there; new ones are refused until the tunnel closes", t.RunningTasks)
	}
	for _, w := range t.Warnings {
		a.notef("warning: %s", w)
	}
	return nil
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status AGENT",
		Short: "show a machine's open tunnels, their URLs and their use",
		Example: `  adit status gpu-7
  adit status gpu-7 --json | jq -r .tunnel_url`,
		Args:              exactArgs("AGENT"),
		ValidArgsFunction: a.completeAgents,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseAgent(args[0])
			if err != nil {
				return err
			}
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			defer s.client.Close()
			stop := a.spin("asking for " + string(id))
			defer stop()
			st, err := s.client.TunnelStatus(cmd.Context(), id)
			if err != nil {
				return err
			}
			if a.json {
				stop()
				return a.document(st)
			}
			// A machine that is away has tunnels still, and no list of facts.
			state := "away"
			if g, err := s.client.Agent(cmd.Context(), id); err == nil {
				state = a.agentLine(g)
			} else {
				state = string(id) + "  " + state
			}
			stop()
			return a.showStatus(state, st, time.Now())
		},
	}
}

func (a *app) showStatus(state string, st api.TunnelStatus, now time.Time) error {
	if err := a.printf("%s\n", state); err != nil {
		return err
	}
	if len(st.Sessions) == 0 {
		a.notef("no tunnel is open")
		return nil
	}
	var t table
	t.row("SESSION", "PORT", "KIND", "LABEL", "OPENED BY", "OPENED", "USED", "VIEWERS", "IN", "OUT", "ACCESS", "CLOSES")
	for _, s := range st.Sessions {
		kind := string(s.TunnelProtocol)
		if s.App != "" {
			kind += " " + s.App
		}
		closes := until(s.ExpiresAt, now)
		if idle := s.LastUsedAt.Add(s.IdleTimeout.D()); s.IdleTimeout > 0 && idle.Before(s.ExpiresAt) {
			closes = until(idle, now) + " unless used, else " + closes
		}
		t.row(string(s.SessionID), fmt.Sprint(s.TargetPort), kind, s.Label, cmp.Or(s.OpenedByName, s.OpenedBy), ago(s.OpenedAt, now), ago(s.LastUsedAt, now),
			fmt.Sprint(s.Viewers), bytesText(s.BytesIn), bytesText(s.BytesOut), accessColumn(s.Access), closes)
	}
	if err := a.printf("\n%s\n", t.render(a, true)); err != nil {
		return err
	}
	for _, s := range st.Sessions {
		if err := a.printf("%s\n", clean(s.TunnelURL)); err != nil {
			return err
		}
		for _, w := range s.Warnings {
			a.notef("warning: %s: %s", s.SessionID, w)
		}
	}
	return nil
}

func (a *app) closeCommand() *cobra.Command {
	var sessionText string
	cmd := &cobra.Command{
		Use:   "close AGENT",
		Short: "close a machine's tunnels, all or one, and print their ids",
		Long: `close closes all tunnels of a machine, or one of them. Who uses them is cut off
within a second, and the machine takes tasks again when the last one is closed.
Closing what is closed already is no error.`,
		Example: `  adit close gpu-7
  adit close gpu-7 --session 3f0c8a5e9b7d4c21a6e8f0b1d2c3e4f5`,
		Args:              exactArgs("AGENT"),
		ValidArgsFunction: a.completeAgents,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseAgent(args[0])
			if err != nil {
				return err
			}
			var one ident.SessionID
			if sessionText != "" {
				if one, err = parseSession(sessionText); err != nil {
					return err
				}
			}
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			defer s.client.Close()
			stop := a.spin("closing")
			c, err := s.client.CloseTunnel(cmd.Context(), id, one)
			stop()
			if err != nil {
				return err
			}
			if a.json {
				return a.document(c)
			}
			if len(c.Closed) == 0 {
				a.notef("nothing was open")
			}
			for _, id := range c.Closed {
				if err := a.printf("%s\n", clean(string(id))); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&sessionText, "session", "", "close only this session (its id, or the tunnel's URL)")
	return cmd
}

func (a *app) extendCommand() *cobra.Command {
	var expires duration
	cmd := &cobra.Command{
		Use:   "extend SESSION",
		Short: "move a tunnel's end and print the new one",
		Long: `extend moves the end of a tunnel: --expires counts from now. The relay caps it, and
never brings the end nearer.
SESSION is a session id or the tunnel's URL. A tunnel's admin token in ADIT_TOKEN
is enough for this.`,
		Example: `  adit extend 3f0c8a5e9b7d4c21a6e8f0b1d2c3e4f5 --expires 12h`,
		Args:    exactArgs("SESSION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseSession(args[0])
			if err != nil {
				return err
			}
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			defer s.client.Close()
			stop := a.spin("extending")
			e, err := s.client.Extend(cmd.Context(), id, api.ExtendRequest{ExpiresIn: expires.set})
			stop()
			if err != nil {
				return err
			}
			if a.json {
				return a.document(e)
			}
			return a.printf("%s\n", e.ExpiresAt.Local().Format(time.RFC3339))
		},
	}
	cmd.Flags().Var(&expires, "expires", "new lifetime from now (default: the relay's)")
	return cmd
}

func (a *app) viewersCommand() *cobra.Command {
	var kick string
	cmd := &cobra.Command{
		Use:   "viewers SESSION",
		Short: "show who uses a tunnel now, or cut one off",
		Long: `viewers lists the parties using a tunnel now, with names where the tunnel asks who
they are. --kick ends the connections of one for 10 minutes: of a person who is known all
that they have open, from wherever; else of everybody at that address who is not known,
whatever their browser says, but for those who came by another named link. Change who may
use the tunnel, revoke the link or close the tunnel to keep somebody out for good.`,
		Example: `  adit viewers 3f0c8a5e9b7d4c21a6e8f0b1d2c3e4f5
  adit viewers 3f0c8a5e9b7d4c21a6e8f0b1d2c3e4f5 --kick 9a1b2c3d4e5f6071`,
		Args: exactArgs("SESSION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseSession(args[0])
			if err != nil {
				return err
			}
			var viewer ident.ViewerID
			if kick != "" {
				if viewer, err = ident.ParseViewerID(kick); err != nil {
					return usagef("--kick: %w", err)
				}
			}
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			defer s.client.Close()
			if viewer != "" {
				if err := s.client.KickViewer(cmd.Context(), id, viewer); err != nil {
					return err
				}
				a.notef("cut off %s", viewer)
				return nil
			}
			return a.showViewers(cmd.Context(), s, id)
		},
	}
	cmd.Flags().StringVar(&kick, "kick", "", "end this viewer's connections")
	return cmd
}

func (a *app) showViewers(ctx context.Context, s *session, id ident.SessionID) error {
	stop := a.spin("asking for viewers")
	l, err := s.client.Viewers(ctx, id)
	stop()
	if err != nil {
		return err
	}
	if a.json {
		return a.document(l)
	}
	if len(l.Viewers) == 0 {
		a.notef("nobody uses it now")
		return nil
	}
	now := time.Now()
	var t table
	t.row("VIEWER", "WHO", "FROM", "SINCE", "SEEN", "CONNECTIONS", "IN", "OUT", "PROGRAM")
	for _, v := range l.Viewers {
		t.row(string(v.ViewerID), cmp.Or(v.UserName, string(v.UserID), "-"), v.RemoteAddr, ago(v.Since, now), ago(v.LastSeen, now), fmt.Sprint(v.Connections), bytesText(v.BytesIn), bytesText(v.BytesOut), v.UserAgent)
	}
	return a.printf("%s", t.render(a, true))
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print this program's version",
		Args:  exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo()
			if a.json {
				return a.document(v)
			}
			return a.printf("adit %s (%s, %s)\n", v.Version, v.Go, v.Platform)
		},
	}
}
