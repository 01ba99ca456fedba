package aditcli

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
)

// The states of a check.
const (
	stateOK     = "ok"
	stateWarn   = "warn"
	stateFailed = "failed"
)

// check is one step of the doctor's way, and a part of its --json document.
type check struct {
	Check  string  `json:"check"`
	State  string  `json:"state"`
	Millis float64 `json:"ms"`
	Detail string  `json:"detail"`
	Remedy string  `json:"remedy,omitempty"`
	err    error
}

// failedCheck is a step that went wrong.
func failedCheck(name string, took time.Duration, err error) check {
	return check{Check: name, State: stateFailed, Millis: millis(took), Detail: client.Describe(err), Remedy: hintFor(err), err: err}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// answer is what an HTTP request brought.
type answer struct {
	status  int
	header  http.Header
	problem *api.Problem // the relay's own refusal, if it is one
	took    time.Duration
}

// traced performs a GET on a connection of its own and reports the steps up to
// the answer: name, TCP (to the relay or a proxy before it), TLS. It returns nil
// when there was no answer; the failed step is reported then.
func traced(ctx context.Context, transport *http.Transport, at *url.URL, report func(check)) *answer {
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, client.ErrTimeout)
	defer cancel()
	t := &tracer{host: at.Host}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, t.hooks()), http.MethodGet, at.String(), nil)
	if err != nil {
		report(failedCheck("http", 0, err))
		return nil
	}
	req.Header.Set("User-Agent", userAgent())
	req.Header.Set("Accept", "application/json, "+api.ProblemContentType)
	if proxy, err := transport.Proxy(req); err == nil && proxy != nil {
		t.proxy = proxy.Host
	}
	transport.CloseIdleConnections() // a kept connection would have no steps
	start := time.Now()
	res, err := transport.RoundTrip(req)
	took := time.Since(start)
	failed := t.report(report)
	if err != nil {
		if !failed {
			report(failedCheck("http", took, client.NewConnError(ctx, at.Host, err)))
		}
		return nil
	}
	defer func() { _ = res.Body.Close() }()
	a := &answer{status: res.StatusCode, header: res.Header, took: took}
	if res.StatusCode >= 400 && strings.HasPrefix(res.Header.Get("Content-Type"), api.ProblemContentType) {
		a.problem = client.ReadProblem(res)
	}
	_, _ = io.CopyN(io.Discard, res.Body, 64<<10) // an answer that breaks off is one all the same
	return a
}

// tracer collects what httptrace tells; several addresses may be dialled at once.
type tracer struct {
	host, proxy string

	mu                        sync.Mutex
	dnsFrom, tcpFrom, tlsFrom time.Time
	dns, tcp, tls             *check
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
				if t.tcp == nil || t.tcp.State == stateFailed {
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

func (t *tracer) dnsCheck(i httptrace.DNSDoneInfo) *check {
	took := time.Since(t.dnsFrom)
	if i.Err != nil {
		c := failedCheck("dns", took, &client.ConnError{Host: t.host, Err: i.Err})
		c.Remedy = "check the address, and this machine's resolver; a wildcard record is needed for subdomain tunnels"
		return &c
	}
	var addrs []string
	for _, a := range i.Addrs {
		addrs = append(addrs, a.String())
	}
	return &check{Check: "dns", State: stateOK, Millis: millis(took), Detail: strings.Join(addrs, ", ")}
}

func (t *tracer) tcpCheck(addr string, err error) *check {
	took, to := time.Since(t.tcpFrom), "connected to "+addr
	if t.proxy != "" {
		to += ", the proxy of HTTPS_PROXY or HTTP_PROXY"
	}
	if err != nil {
		c := failedCheck("tcp", took, &client.ConnError{Host: addr, Err: err})
		if t.proxy != "" {
			c.Remedy = "the proxy " + t.proxy + " is not reachable: check HTTPS_PROXY, or name the relay in NO_PROXY"
		}
		return &c
	}
	return &check{Check: "tcp", State: stateOK, Millis: millis(took), Detail: to}
}

func (t *tracer) tlsCheck(s tls.ConnectionState, err error) *check {
	took := time.Since(t.tlsFrom)
	if err != nil {
		c := failedCheck("tls", took, &client.ConnError{Host: t.host, Err: err})
		if c.Remedy == connHint(&client.ConnError{}) {
			c.Remedy = "is this the relay's TLS port? A plain HTTP relay has an http:// address"
		}
		return &c
	}
	c := &check{Check: "tls", State: stateOK, Millis: millis(took), Detail: tls.VersionName(s.Version)}
	if len(s.PeerCertificates) > 0 {
		leaf := s.PeerCertificates[0]
		left := time.Until(leaf.NotAfter)
		c.Detail += fmt.Sprintf(", certificate by %s, good for %s", leaf.Issuer.CommonName, span(left))
		if left < 7*24*time.Hour {
			c.State, c.Remedy = stateWarn, "the certificate expires soon: tell the relay's operator"
		}
	}
	return c
}

// report hands over the steps in their order; failed says whether one went wrong.
func (t *tracer) report(to func(check)) (failed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range []*check{t.dns, t.tcp, t.tls} {
		if c != nil {
			to(*c)
			failed = failed || c.State == stateFailed
		}
	}
	return failed
}
