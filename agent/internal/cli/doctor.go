package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/adit-tunnel/adit/agent"
	"github.com/adit-tunnel/adit/agent/internal/gate"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/printable"
)

const (
	stepTime  = 10 * time.Second
	maxSkew   = 30 * time.Second // leases and expiries are told by clocks
	certSoon  = 14 * 24 * time.Hour
	stepOK    = "ok"
	stepWarn  = "warn"
	stepFail  = "fail"
	stepSkip  = "skip"
	userAgent = "adit-agent (doctor)"
)

// step is one thing that doctor looked at.
type step struct {
	Relay  string  `json:"relay,omitempty"`
	Name   string  `json:"name"`
	Result string  `json:"result"` // ok, warn, fail or skip
	Millis float64 `json:"ms"`
	Detail string  `json:"detail"`
	Remedy string  `json:"remedy,omitempty"`
}

func newDoctor() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "look at each hop to the relay and say what is broken and how to mend it",
		Long: `Look at the configuration, the credential, and each hop to each relay: name, proxy, TCP,
TLS, HTTP, clock, WebSocket, link; and at the agent that runs here. Each with its time and,
where something is wrong, the remedy. Nothing is changed, and a running agent is not
disturbed. The exit code is 1 when something is broken.`,
		Example: `  adit-agent doctor --config /etc/adit/agent.yaml
  adit-agent doctor --relay_url https://gateway.example.com --credential_file ./credential
  adit-agent doctor --json | jq '.[] | select(.result != "ok")'`,
	}
	load := configFlags(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		d := &doctor{conf: c, out: cmd.OutOrStdout(), quiet: *asJSON, colour: isTerminalWriter(cmd.OutOrStdout()), proxy: http.ProxyFromEnvironment}
		d.all(cmd.Context())
		if *asJSON {
			enc := printable.Encoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			if err := enc.Encode(d.steps); err != nil {
				return err
			}
		}
		for _, s := range d.steps {
			if s.Result == stepFail {
				return &exitError{code: exitFailed}
			}
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
	steps  []step
}

// verdict is what a look found; an error makes it a failure.
type verdict struct {
	result, detail, remedy string
}

// look runs one step, times it and prints it.
func (d *doctor) look(ctx context.Context, name string, f func(context.Context) (verdict, error)) bool {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	start := time.Now()
	v, err := f(ctx)
	s := step{Relay: d.relay, Name: name, Result: v.result, Detail: v.detail, Remedy: v.remedy, Millis: float64(time.Since(start).Microseconds()) / 1000}
	if err != nil {
		s.Result, s.Detail = stepFail, err.Error()
		if s.Remedy == "" {
			s.Remedy = remedyFor(err)
		}
	} else if s.Result == "" {
		s.Result = stepOK
	}
	d.steps = append(d.steps, s)
	d.print(s)
	return s.Result != stepFail
}

func (d *doctor) print(s step) {
	if d.quiet {
		return
	}
	mark := s.Result
	if d.colour {
		mark = map[string]string{stepOK: "\x1b[32m", stepWarn: "\x1b[33m", stepFail: "\x1b[31m", stepSkip: "\x1b[2m"}[s.Result] + s.Result + "\x1b[0m" + strings.Repeat(" ", 4-len(s.Result))
	}
	fmt.Fprintf(d.out, "%-4s  %-10s  %8.1f ms  %s\n", mark, s.Name, s.Millis, printable.Text(s.Detail))
	if s.Remedy != "" {
		fmt.Fprintf(d.out, "%18s%s\n", "-> ", printable.Text(s.Remedy))
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
		return verdict{result: stepWarn, detail: strings.Join(w, "; ")}, nil
	}
	return verdict{detail: "agent_id " + d.conf.AgentID}, nil
}

func (d *doctor) lookCredential(context.Context) (verdict, error) {
	token, err := d.conf.Token()
	switch {
	case err != nil:
		return verdict{remedy: "put the secret that `adit-relay credential create --kind agent` printed into credential_file"}, err
	case token == "":
		return verdict{remedy: "set credential_file, or ADIT_CREDENTIAL"}, errors.New("none configured")
	}
	return verdict{detail: "begins with " + token.DisplayPrefix()}, nil
}

// oneRelay goes from hop to hop; behind a broken one nothing can be seen.
func (d *doctor) oneRelay(ctx context.Context, u *url.URL) {
	tlsConf, err := d.conf.TLSConfig()
	if err != nil {
		return // said above
	}
	secure := u.Scheme == "https" || u.Scheme == "wss"
	web := &url.URL{Scheme: "http", Host: u.Host, Path: "/healthz"}
	if secure {
		web.Scheme = "https"
	}
	var via *url.URL
	if !d.look(ctx, "proxy", func(context.Context) (verdict, error) {
		via, err = d.proxy(&http.Request{URL: web})
		switch {
		case err != nil:
			return verdict{remedy: "mend HTTPS_PROXY or HTTP_PROXY in the agent's environment"}, err
		case via == nil:
			return verdict{detail: "none for this relay"}, nil
		}
		return verdict{detail: via.Redacted()}, nil
	}) {
		return
	}
	first := web // what this machine itself connects to
	if via != nil {
		first = via
	}
	if !d.look(ctx, "dns", func(ctx context.Context) (verdict, error) { return lookDNS(ctx, first.Hostname()) }) {
		return
	}
	addr := net.JoinHostPort(first.Hostname(), portOf(first))
	if !d.look(ctx, "tcp", func(ctx context.Context) (verdict, error) { return lookTCP(ctx, addr) }) {
		return
	}
	if secure && via == nil && !d.look(ctx, "tls", func(ctx context.Context) (verdict, error) { return lookTLS(ctx, addr, u.Hostname(), tlsConf) }) {
		return
	}
	var date time.Time
	client := &http.Client{
		Transport:     &http.Transport{Proxy: d.proxy, TLSClientConfig: tlsConf, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if !d.look(ctx, "http", func(ctx context.Context) (v verdict, err error) {
		v, date, err = lookHTTP(ctx, client, web.String())
		return v, err
	}) {
		return
	}
	d.look(ctx, "clock", func(context.Context) (verdict, error) { return lookClock(date, time.Now()) })
	for _, only := range []bool{true, false} {
		name := "link"
		if only {
			name = "websocket"
		}
		d.look(ctx, name, func(ctx context.Context) (verdict, error) { return d.lookLink(ctx, u.String(), tlsConf, only) })
	}
}

func lookDNS(ctx context.Context, host string) (verdict, error) {
	if net.ParseIP(host) != nil {
		return verdict{result: stepSkip, detail: host + " is an address"}, nil
	}
	addrs, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return verdict{remedy: "check the name in relay_url and this machine's DNS (`getent hosts " + host + "`)"}, err
	}
	return verdict{detail: host + " is " + strings.Join(addrs, ", ")}, nil
}

func lookTCP(ctx context.Context, addr string) (verdict, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return verdict{}, err
	}
	defer func() { _ = c.Close() }() // nothing was sent
	return verdict{detail: "connected to " + c.RemoteAddr().String()}, nil
}

func lookTLS(ctx context.Context, addr, host string, conf *tls.Config) (verdict, error) {
	conf = conf.Clone()
	conf.ServerName, conf.NextProtos = host, []string{"http/1.1"}
	dialer := tls.Dialer{Config: conf}
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return verdict{}, err
	}
	defer func() { _ = c.Close() }() // nothing was sent
	state := c.(*tls.Conn).ConnectionState()
	cert := state.PeerCertificates[0]
	v := verdict{detail: fmt.Sprintf("%s, certificate of %s by %s, valid until %s", tls.VersionName(state.Version),
		host, cert.Issuer.CommonName, cert.NotAfter.UTC().Format(time.DateOnly))}
	if left := time.Until(cert.NotAfter); left < certSoon {
		v.result, v.remedy = stepWarn, fmt.Sprintf("the relay's certificate ends in %s: its operator must renew it", left.Round(time.Hour))
	}
	return v, nil
}

func lookHTTP(ctx context.Context, client *http.Client, target string) (verdict, time.Time, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return verdict{}, time.Time{}, err
	}
	req.Header.Set("User-Agent", userAgent)
	resp, err := client.Do(req)
	if err != nil {
		return verdict{}, time.Time{}, err
	}
	defer resp.Body.Close()
	date, _ := http.ParseTime(resp.Header.Get("Date")) // zero: not known
	v := verdict{detail: fmt.Sprintf("GET %s: %s", req.URL.Path, resp.Status)}
	if resp.StatusCode != http.StatusOK {
		v.result, v.remedy = stepWarn, "this may not be a relay, or something before it answers: check relay_url"
	}
	return v, date, nil
}

func lookClock(theirs, ours time.Time) (verdict, error) {
	if theirs.IsZero() {
		return verdict{result: stepSkip, detail: "the relay did not say its time"}, nil
	}
	skew := ours.Sub(theirs).Round(time.Second)
	v := verdict{detail: fmt.Sprintf("this machine is %s off the relay", skew.Abs())}
	if skew.Abs() > maxSkew {
		v.result, v.remedy = stepFail, "set this machine's clock: `timedatectl set-ntp true`"
		return v, nil
	}
	return v, nil
}

// lookLink makes a link with the credential and closes it before any hello, so
// that an agent which runs under this name is not disturbed.
func (d *doctor) lookLink(ctx context.Context, target string, tlsConf *tls.Config, webSocketOnly bool) (verdict, error) {
	token, err := d.conf.Token()
	if err != nil || token == "" {
		return verdict{result: stepSkip, detail: "no credential"}, nil
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
	r, err := gate.NewClient(sockets...).Report(ctx)
	switch {
	case errors.Is(err, gate.ErrNoAgent):
		return verdict{result: stepWarn, detail: "no agent runs here, or its socket is another: " + strings.Join(sockets, ", "), remedy: "`adit-agent run`, or `systemctl start adit-agent`"}, nil
	case err != nil:
		return verdict{}, err
	case string(r.AgentID) != d.conf.AgentID:
		return verdict{result: stepWarn, detail: fmt.Sprintf("the agent that runs here is %s, not %s", r.AgentID, d.conf.AgentID), remedy: "name the configuration that it runs with (--config), or restart it with this one"}, nil
	case r.Links.Superseded != "":
		return verdict{remedy: "give one of the two machines another agent_id"}, errors.New(r.Links.Superseded)
	case len(r.Links.Up) == 0:
		return verdict{remedy: "the steps above say why; the agent keeps trying"}, errors.New("running, without a link: " + r.Links.LastError)
	case r.State.Paused:
		return verdict{result: stepWarn, detail: "running and linked, but paused", remedy: "`adit-agent resume`"}, nil
	}
	return verdict{detail: fmt.Sprintf("running, linked to %s, round trip %.1f ms", r.Links.Up[0].Relay, r.Links.Up[0].RTTMillis)}, nil
}

// remedyFor knows what people do about an error of the network.
func remedyFor(err error) string {
	var (
		unknownCA x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		wrongName x509.HostnameError
		record    tls.RecordHeaderError
		dns       *net.DNSError
	)
	switch {
	case errors.As(err, &unknownCA):
		return "name the authority that signed the relay's certificate in tls.ca_file"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the relay's certificate is not valid now: check this machine's clock first, then have it renewed"
	case errors.As(err, &wrongName):
		return "relay_url must use a name that the relay's certificate is for"
	case errors.As(err, &record):
		return "this port does not speak TLS: use http:// or another port in relay_url"
	case errors.As(err, &dns):
		return "check the name in relay_url and this machine's DNS"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: check host and port in relay_url, and whether the relay runs"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return "no answer: a firewall may drop it; where only a proxy may go out, set HTTPS_PROXY for the agent"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "this machine has no route there: check its network"
	}
	return ""
}

func portOf(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	switch u.Scheme {
	case "https", "wss":
		return "443"
	case "socks5", "socks5h":
		return "1080"
	}
	return "80"
}

func isTerminalWriter(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
