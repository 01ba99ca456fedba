package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/agent"
	"github.com/adit-tunnel/adit/agent/internal/local"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/checkup"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/printable"
)

// stepTime bounds each thing that is looked at.
const stepTime = 10 * time.Second

// words are what the agent's owner can change.
var words = checkup.Words{Address: "relay_url", Authority: "tls.ca_file", Resolver: "this machine's resolver"}

func newDoctor() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "look at each hop to the relay and say what is broken and how to mend it",
		Long: `Look at the configuration, the credential, and each hop to each relay: name, TCP, TLS,
the relay, clock, WebSocket, link; and at the agent that runs here. Each with its time and,
where something is wrong, the remedy. Nothing is changed, and a running agent is not
disturbed. The exit code is 1 when something is broken.`,
		Example: `  adit-agent doctor --config /etc/adit/agent.yaml
  adit-agent doctor --relay_url https://gateway.example.com --credential_file ./credential
  adit-agent doctor --json | jq '.checks[] | select(.state != "ok")'`,
	}
	load := configFlags(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		d := &doctor{conf: c, out: cmd.OutOrStdout(), quiet: *asJSON, colour: isTerminal(cmd.OutOrStdout()), proxy: http.ProxyFromEnvironment}
		d.all(cmd.Context())
		found := checkup.NewDocument(d.checks)
		if *asJSON {
			enc := printable.Encoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			if err := enc.Encode(found); err != nil {
				return err
			}
		}
		if !found.Healthy {
			return &exitError{code: exitFailed}
		}
		return nil
	}
	return cmd
}

type doctor struct {
	conf   agent.Config
	out    io.Writer
	quiet  bool
	colour bool
	proxy  func(*http.Request) (*url.URL, error)
	relay  string
	checks []checkup.Check
}

// verdict is what a look found, OK without a state; an error makes it a failure.
type verdict struct {
	state          checkup.State
	detail, remedy string
}

// look does one thing, times it and reports it.
func (d *doctor) look(ctx context.Context, name string, f func(context.Context) (verdict, error)) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	start := time.Now()
	v, err := f(ctx)
	if err != nil {
		d.report(checkup.Failure(name, time.Since(start), err, cmp.Or(v.remedy, words.Remedy(err))))
		return
	}
	d.report(checkup.Check{Check: name, State: cmp.Or(v.state, checkup.OK), Millis: checkup.Millis(time.Since(start)), Detail: v.detail, Remedy: v.remedy})
}

// report takes a check and, for people, shows it at once.
func (d *doctor) report(c checkup.Check) {
	c.Relay = d.relay
	d.checks = append(d.checks, c)
	if !d.quiet {
		_, _ = io.WriteString(d.out, c.Text(d.colour))
	}
}

func (d *doctor) all(ctx context.Context) {
	d.look(ctx, "config", d.lookConfig)
	d.look(ctx, "credential", d.lookCredential)
	for _, raw := range d.conf.RelayURL {
		u, err := url.Parse(raw)
		if err != nil || u.Hostname() == "" {
			continue // the configuration's fault, said above
		}
		d.relay = raw
		if !d.quiet {
			fmt.Fprintf(d.out, "relay %s\n", u.Redacted())
		}
		d.oneRelay(ctx, u)
	}
	d.relay = ""
	d.look(ctx, "agent", d.lookAgent)
}

func (d *doctor) lookConfig(context.Context) (verdict, error) {
	if err := d.conf.Validate(); err != nil {
		return verdict{remedy: "`adit-agent check` lists each fault"}, errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if w := d.conf.Warnings(); len(w) > 0 {
		return verdict{state: checkup.Warn, detail: strings.Join(w, "; ")}, nil
	}
	return verdict{detail: "agent_id " + d.conf.AgentID}, nil
}

func (d *doctor) lookCredential(context.Context) (verdict, error) {
	token, err := d.conf.Token()
	switch {
	case err != nil:
		return verdict{remedy: "get one: `adit-agent enroll --pair`, or put the secret that `adit-relay credential create --kind agent` printed into credential_file"}, err
	case token == "":
		return verdict{remedy: "set credential_file, or ADIT_CREDENTIAL"}, errors.New("none configured")
	}
	return verdict{detail: "begins with " + token.DisplayPrefix()}, nil
}

// oneRelay goes from hop to hop; behind a broken one nothing can be seen. A relay that
// does not answer as one, or not yet, may have a proxy before it that passes links on.
func (d *doctor) oneRelay(ctx context.Context, u *url.URL) {
	tlsConf, err := d.conf.TLSConfig()
	if err != nil {
		return // said above
	}
	web := &url.URL{Scheme: "http", Host: u.Host}
	if u.Scheme == "https" || u.Scheme == "wss" {
		web.Scheme = "https"
	}
	transport := &http.Transport{Proxy: d.proxy, TLSClientConfig: tlsConf, DisableKeepAlives: true}
	way := checkup.Way{Transport: transport, UserAgent: "adit-agent (doctor)", Timeout: stepTime, Words: words}
	answered := false
	way.Relay(ctx, web, func(c checkup.Check) {
		if answered = answered || c.Check == "relay"; c.Check == "relay" && c.State == checkup.Failed {
			c.State = checkup.Warn
		}
		d.report(c)
	})
	if !answered {
		return
	}
	for _, only := range []bool{true, false} {
		name := "link"
		if only {
			name = "websocket"
		}
		d.look(ctx, name, func(ctx context.Context) (verdict, error) { return d.lookLink(ctx, u.String(), tlsConf, only) })
	}
}

// lookLink makes a link with the credential and closes it before any hello, so
// that an agent which runs under this name is not disturbed.
func (d *doctor) lookLink(ctx context.Context, target string, tlsConf *tls.Config, webSocketOnly bool) (verdict, error) {
	token, err := d.conf.Token()
	if err != nil || token == "" {
		return verdict{state: checkup.Skipped, detail: "no credential"}, nil
	}
	l, err := link.Dial(ctx, carrier.DialOptions{URL: target, Token: token, TLS: tlsConf, Proxy: d.proxy, WebSocketOnly: webSocketOnly}, link.Config{})
	if refused, ok := errors.AsType[*carrier.RefusedError](err); ok {
		return verdict{remedy: refusedRemedy(refused.Status)}, err
	}
	if err != nil {
		return verdict{}, err
	}
	v := verdict{detail: fmt.Sprintf("the relay takes the credential, over %s", l.Carrier())}
	if c := l.Congestion(); c != "" {
		v.detail += ", congestion control " + c
	}
	_ = l.Close(errors.New("doctor has seen enough"))
	return v, nil
}

func refusedRemedy(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "the credential is wrong, expired or revoked: make a new one with `adit-relay credential create --kind agent`"
	case http.StatusForbidden:
		return "the credential is not an agent's, or a proxy in between refuses: use an ak-… credential"
	case http.StatusNotFound, http.StatusOK:
		return "no relay answers there: check relay_url, and that what stands before the relay passes /agent/v1/link on"
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return "the relay is away or stopping: try again, or ask its operator"
	case http.StatusTooManyRequests:
		return "too many attempts: wait a minute"
	}
	return "what stands before the relay may not pass WebSocket upgrades on: see the nginx and Caddy examples in configs/"
}

func (d *doctor) lookAgent(ctx context.Context) (verdict, error) {
	sockets := d.conf.Sockets()
	r, err := local.NewClient(sockets...).Report(ctx)
	switch {
	case errors.Is(err, local.ErrNoAgent):
		return verdict{state: checkup.Warn, detail: "no agent runs here, or its socket is another: " + strings.Join(sockets, ", "), remedy: "`adit-agent run`, or `systemctl start adit-agent`"}, nil
	case err != nil:
		return verdict{}, err
	case string(r.AgentID) != d.conf.AgentID:
		return verdict{state: checkup.Warn, detail: fmt.Sprintf("the agent that runs here is %s, not %s", r.AgentID, d.conf.AgentID), remedy: "name the configuration that it runs with (--config), or restart it with this one"}, nil
	case r.Links.Superseded != "":
		return verdict{remedy: "give one of the two machines another agent_id"}, errors.New(r.Links.Superseded)
	case len(r.Links.Up) == 0:
		return verdict{remedy: "the steps above say why; the agent keeps trying"}, errors.New("running, without a link: " + r.Links.LastError)
	case r.State.Paused:
		return verdict{state: checkup.Warn, detail: "running and linked, but paused", remedy: "`adit-agent resume`"}, nil
	}
	return verdict{detail: fmt.Sprintf("running, linked to %s, round trip %.1f ms", r.Links.Up[0].Relay, r.Links.Up[0].RTTMillis)}, nil
}
