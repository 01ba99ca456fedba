package checkup

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
)

const (
	// clockSlack is how wrong this machine's clock may be: tokens are checked with
	// 60 s of leeway, and a second is lost by the header's precision.
	clockSlack = 30 * time.Second
	// certificateSoon is when a certificate that is to end is worth a warning.
	certificateSoon = 14 * 24 * time.Hour
)

// Way is how a program reaches relays and tunnels.
type Way struct {
	Transport *http.Transport
	UserAgent string
	Header    http.Header   // more of a request's
	Timeout   time.Duration // of one request
	Words     Words
}

// Answer is what an HTTP request brought.
type Answer struct {
	Status  int
	Problem *api.Problem // the relay's own refusal, if it is one
	Took    time.Duration

	Location string // where it leads, as the answer says it
	date     string
}

// Ask performs a GET on a connection of its own and reports the steps up to
// the answer: name, TCP (to the relay or a proxy before it), TLS. It returns nil
// when there was no answer; the failed step is reported then.
func (w Way) Ask(ctx context.Context, at *url.URL, report func(Check)) *Answer {
	ctx, cancel := context.WithTimeoutCause(ctx, w.Timeout, client.ErrTimeout)
	defer cancel()
	t := &tracer{words: w.Words, host: at.Host}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, t.hooks()), http.MethodGet, at.String(), nil)
	if err != nil {
		report(Failure("http", 0, err, ""))
		return nil
	}
	maps.Copy(req.Header, w.Header)
	req.Header.Set("User-Agent", w.UserAgent)
	req.Header.Set("Accept", "application/json, "+api.ProblemContentType)
	proxy, err := w.Transport.Proxy(req)
	if err != nil {
		report(Failure("proxy", 0, err, "mend HTTPS_PROXY or HTTP_PROXY"))
		return nil
	}
	if proxy != nil {
		t.proxy = proxy.Host
	}
	w.Transport.CloseIdleConnections() // a kept connection would have no steps
	start := time.Now()
	res, err := w.Transport.RoundTrip(req)
	took := time.Since(start)
	failed := t.report(report)
	if err != nil {
		if !failed {
			lost := client.NewConnError(ctx, at.Host, err)
			report(Failure("http", took, lost, w.Words.Remedy(lost)))
		}
		return nil
	}
	defer func() { _ = res.Body.Close() }()
	a := &Answer{Status: res.StatusCode, Took: took, Location: res.Header.Get("Location"), date: res.Header.Get("Date")}
	if res.StatusCode >= 400 && strings.HasPrefix(res.Header.Get("Content-Type"), api.ProblemContentType) {
		a.Problem = client.ReadProblem(res)
	}
	_, _ = io.CopyN(io.Discard, res.Body, 64<<10) // an answer that breaks off is one all the same
	return a
}

// tracer collects what httptrace tells; several addresses may be dialled at once.
type tracer struct {
	words       Words
	host, proxy string

	mu                        sync.Mutex
	dnsFrom, tcpFrom, tlsFrom time.Time
	dns, tcp, tls             *Check
}

func (t *tracer) hooks() *httptrace.ClientTrace {
	locked := func(f func()) {
		t.mu.Lock()
		defer t.mu.Unlock()
		f()
	}
	return &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { locked(func() { t.dnsFrom = time.Now() }) },
		DNSDone: func(i httptrace.DNSDoneInfo) {
			locked(func() { t.dns = t.dnsCheck(i) })
		},
		ConnectStart: func(_, _ string) {
			locked(func() {
				if t.tcpFrom.IsZero() {
					t.tcpFrom = time.Now()
				}
			})
		},
		ConnectDone: func(_, addr string, err error) {
			locked(func() {
				if t.tcp == nil || t.tcp.State == Failed {
					t.tcp = t.tcpCheck(addr, err)
				}
			})
		},
		TLSHandshakeStart: func() { locked(func() { t.tlsFrom = time.Now() }) },
		TLSHandshakeDone: func(s tls.ConnectionState, err error) {
			locked(func() { t.tls = t.tlsCheck(s, err) })
		},
	}
}

func (t *tracer) dnsCheck(i httptrace.DNSDoneInfo) *Check {
	took := time.Since(t.dnsFrom)
	if i.Err != nil {
		c := Failure("dns", took, &client.ConnError{Host: t.host, Err: i.Err}, t.words.Remedy(i.Err))
		return &c
	}
	var addrs []string
	for _, a := range i.Addrs {
		addrs = append(addrs, a.String())
	}
	return &Check{Check: "dns", State: OK, Millis: Millis(took), Detail: strings.Join(addrs, ", ")}
}

func (t *tracer) tcpCheck(addr string, err error) *Check {
	took, to := time.Since(t.tcpFrom), "connected to "+addr
	if t.proxy != "" {
		to += ", the proxy of HTTPS_PROXY or HTTP_PROXY"
	}
	if err != nil {
		c := Failure("tcp", took, &client.ConnError{Host: addr, Err: err}, t.words.Remedy(err))
		if t.proxy != "" {
			c.Remedy = "the proxy " + t.proxy + " is not reachable: check HTTPS_PROXY, or name the relay in NO_PROXY"
		}
		return &c
	}
	return &Check{Check: "tcp", State: OK, Millis: Millis(took), Detail: to}
}

func (t *tracer) tlsCheck(s tls.ConnectionState, err error) *Check {
	took := time.Since(t.tlsFrom)
	if err != nil {
		c := Failure("tls", took, &client.ConnError{Host: t.host, Err: err}, t.words.Remedy(err))
		if c.Remedy == "" {
			c.Remedy = "is this the relay's TLS port? A plain HTTP relay has an http:// address"
		}
		return &c
	}
	c := &Check{Check: "tls", State: OK, Millis: Millis(took), Detail: tls.VersionName(s.Version)}
	if len(s.PeerCertificates) > 0 {
		leaf := s.PeerCertificates[0]
		c.Detail += fmt.Sprintf(", certificate by %s, valid until %s", leaf.Issuer.CommonName, leaf.NotAfter.UTC().Format(time.DateOnly))
		if time.Until(leaf.NotAfter) < certificateSoon {
			c.State, c.Remedy = Warn, "the certificate expires soon: tell the relay's operator"
		}
	}
	return c
}

// report hands over the steps in their order; failed says whether one went wrong.
func (t *tracer) report(to func(Check)) (failed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range []*Check{t.dns, t.tcp, t.tls} {
		if c != nil {
			to(*c)
			failed = failed || c.State == Failed
		}
	}
	return failed
}

// Relay reports whether a relay is ready, and whether the clocks agree. It says whether
// the relay answered and is ready.
func (w Way) Relay(ctx context.Context, base *url.URL, report func(Check)) bool {
	a := w.Ask(ctx, base.JoinPath("readyz"), report)
	if a == nil {
		return false
	}
	c := Check{Check: "relay", State: OK, Millis: Millis(a.Took), Detail: "ready"}
	switch {
	case a.Status == http.StatusServiceUnavailable:
		if a.Problem != nil {
			c = Failure("relay", a.Took, a.Problem, "")
		} else { // a load balancer saw it not ready
			c.State, c.Detail, c.Err = Failed, "the relay says that it is not ready", &api.Problem{Status: a.Status}
		}
		c.Remedy = "the relay runs and takes nothing new (draining, or its store has no quorum): wait, or tell its operator"
	case a.Problem != nil:
		c = Failure("relay", a.Took, a.Problem, "")
	case a.Status != http.StatusOK:
		c.State, c.Detail = Failed, fmt.Sprintf("%s answered %d, which is no answer of an Adit relay", base.Host, a.Status)
		c.Remedy = "check " + w.Words.Address + "; a proxy before the relay answers 502 or 504 when the relay is not running"
	}
	report(c)
	if date, err := http.ParseTime(a.date); err == nil && c.State == OK {
		report(clock(date, time.Now()))
	}
	return c.State == OK
}

// clock compares the relay's clock and this machine's.
func clock(theirs, ours time.Time) Check {
	skew := ours.Sub(theirs).Round(time.Second).Abs()
	if skew > clockSlack {
		return Check{Check: "clock", State: Warn, Detail: fmt.Sprintf("%s away from the relay's", skew),
			Remedy: "set this machine's clock (`timedatectl set-ntp true`): what tokens, leases and tunnels end by is told by clocks"}
	}
	return Check{Check: "clock", State: OK, Detail: "agrees with the relay's"}
}
