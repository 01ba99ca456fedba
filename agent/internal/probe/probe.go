// Package probe owns the look at what listens on a port of this machine: which
// app it is, which Host header it accepts, and what its user should know. It
// sends greetings only, nothing that changes an app, follows no redirect out of
// the port it was asked about, and never takes longer than its limit.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/wire"
)

// Limit bounds a probe of an HTTP port, if the Config does not say otherwise.
const Limit = 1500 * time.Millisecond

const (
	maxBody   = 64 << 10 // read of an answer
	maxHeader = 32 << 10
	maxFollow = 3 // redirects within the app
)

// Config is what a Prober needs. Its functions must be safe for concurrent use.
type Config struct {
	Dial    func(ctx context.Context, port uint16) (net.Conn, error) // to loopback
	Allowed func(port uint16) bool                                   // the agent's policy
	Limit   time.Duration                                            // of a probe, and in shares of its parts; 0: the package's
}

// Prober answers the relay's probes.
type Prober struct{ conf Config }

// New returns a Prober.
func New(conf Config) *Prober {
	if conf.Limit == 0 {
		conf.Limit = Limit
	}
	return &Prober{conf: conf}
}

// firstLimit is that of the two requests that decide on the Host.
func (p *Prober) firstLimit() time.Duration { return p.conf.Limit * 2 / 3 }

// bannerWait is for programs that speak first.
func (p *Prober) bannerWait() time.Duration { return p.conf.Limit * 7 / 30 }

// replyWait is for an answer to a greeting.
func (p *Prober) replyWait() time.Duration { return p.conf.Limit / 5 }

// Probe looks at a port.
func (p *Prober) Probe(ctx context.Context, q wire.Probe) wire.Probed {
	a := wire.Probed{ID: q.ID}
	if !p.conf.Allowed(q.Port) {
		a.Detail = fmt.Sprintf("port %d is not among the ports that this machine allows", q.Port)
		return a
	}
	a.Allowed = true
	ctx, cancel := context.WithTimeout(ctx, p.conf.Limit)
	defer cancel()
	c, err := p.conf.Dial(ctx, q.Port)
	if err != nil {
		a.Detail = err.Error()
		var refusal interface{ Verdict() wire.Verdict }
		if errors.As(err, &refusal) {
			a.Detail = refusal.Verdict().Text
		}
		return a
	}
	a.Listening = true
	if q.Protocol == "tcp" {
		p.tcp(ctx, c, q, &a)
		return a
	}
	_ = c.Close()
	p.http(ctx, q, &a)
	return a
}

// http decides on the Host by asking twice at the same time, then names the app.
func (p *Prober) http(ctx context.Context, q wire.Probe, a *wire.Probed) {
	rt := p.transport(q.Port)
	defer rt.CloseIdleConnections()
	local := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(q.Port)))
	var asPublic, asLocal visit
	first, cancel := context.WithTimeout(ctx, p.firstLimit())
	defer cancel()
	var wg sync.WaitGroup
	if q.PublicHost != "" {
		wg.Go(func() { asPublic = goTo(first, rt, q.PublicHost) })
	}
	wg.Go(func() { asLocal = goTo(first, rt, local) })
	wg.Wait()
	if asPublic.silent() && asLocal.silent() {
		p.notHTTP(ctx, q, a, errors.Join(asPublic.end().err, asLocal.end().err))
		return
	}
	best, host := asPublic, q.PublicHost
	a.HostHeader = "public"
	if q.PublicHost == "" || refused(asPublic.end()) && accepted(asLocal.end()) {
		a.HostHeader = "local"
		best, host = asLocal, local
	}
	if best.silent() {
		best = asLocal // this time it was only the slower one
	}
	f := finding{port: q.Port, pathForm: q.PublicHost != "" && !subdomainForm(q.PublicHost), visit: best, public: asPublic.end()}
	f.more = func(path string) answer { return get(ctx, rt, host, path) }
	f.name()
	a.App = f.app
	a.Warnings = f.warnings()
	a.Detail = fmt.Sprintf("answers GET / with %s for the public host and %s for the local one", asPublic.text(), asLocal.text())
}

// visit is what a browser would see of the app at first: the answer to GET /, and
// those to the redirects that follow within the app. The last one decides: Jupyter
// redirects every Host from / and refuses the wrong ones where that leads.
type visit []answer

func goTo(ctx context.Context, rt http.RoundTripper, host string) visit {
	v := visit{get(ctx, rt, host, "/")}
	for range maxFollow {
		path := v.end().redirect()
		if path == "" {
			break
		}
		next := get(ctx, rt, host, path)
		if next.err != nil {
			break // no time was left; a redirect is an answer, too
		}
		v = append(v, next)
	}
	return v
}

// end is the answer at which the visit ended.
func (v visit) end() answer {
	if len(v) == 0 {
		return answer{}
	}
	return v[len(v)-1]
}

// silent says whether nothing was answered.
func (v visit) silent() bool { return v.end().status == 0 }

func (v visit) text() string {
	var parts []string
	for _, a := range v {
		parts = append(parts, a.text())
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// notHTTP names what answered neither request as HTTP.
func (p *Prober) notHTTP(ctx context.Context, q wire.Probe, a *wire.Probed, err error) {
	if errors.Is(err, context.DeadlineExceeded) {
		a.Detail = fmt.Sprintf("port %d takes connections but did not answer an HTTP request within %s", q.Port, p.firstLimit())
		return
	}
	if c, err := p.conf.Dial(ctx, q.Port); err == nil {
		a.App = p.banner(c)
	}
	if a.App == "" {
		a.App = p.greet(ctx, q.Port, greetPostgres, greetRedis)
	}
	a.Detail = fmt.Sprintf("port %d does not speak HTTP", q.Port)
	if a.App != "" {
		a.Warnings = append(a.Warnings, fmt.Sprintf("port %d speaks %s, not HTTP: open the tunnel with tunnel_protocol tcp", q.Port, a.App))
	}
}

// transport carries requests to the port, whatever the URL's host says. It is used
// without a client: that would look at redirects, whose targets may be anything.
func (p *Prober) transport(port uint16) *http.Transport {
	return &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return p.conf.Dial(ctx, port) },
		Proxy:                  nil,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
		DisableKeepAlives:      true,
	}
}

// answer is one answer of the app, its body cut.
type answer struct {
	host   string
	status int
	header http.Header
	body   string
	err    error
}

func get(ctx context.Context, c http.RoundTripper, host, path string) answer {
	a := answer{host: host}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return answer{host: host, err: fmt.Errorf("make request for host %q: %w", host, err)}
	}
	// As a browser asks for a page: vite answers 404 to who does not take HTML.
	req.Header.Set("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
	req.Header.Set("User-Agent", "adit-agent (probe)")
	resp, err := c.RoundTrip(req)
	if err != nil {
		return answer{host: host, err: err}
	}
	defer resp.Body.Close()
	a.status, a.header = resp.StatusCode, resp.Header
	// A page that comes slowly, or never ends, has said enough by then.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	a.body = string(body)
	return a
}

func (a answer) text() string {
	switch {
	case a.err != nil:
		return "an error"
	case a.status == 0:
		return "nothing"
	}
	return strconv.Itoa(a.status)
}

// refused says whether the app turned the request down in a way that its Host may
// have caused.
func refused(a answer) bool {
	switch a.status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusMisdirectedRequest:
		return true
	}
	return a.err == nil && a.status >= http.StatusInternalServerError
}

// accepted says whether the app answered and did not refuse; a redirect counts.
func accepted(a answer) bool { return a.err == nil && a.status != 0 && !refused(a) }

// redirect returns where a redirect of the app leads within the app, or "".
func (a answer) redirect() string {
	if a.err != nil || a.status < 300 || a.status > 399 {
		return ""
	}
	u, err := url.Parse(a.header.Get("Location"))
	if err != nil || u.Opaque != "" || u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https" || u.Host != "" && !strings.EqualFold(u.Host, a.host) {
		return ""
	}
	u = (&url.URL{Path: "/"}).ResolveReference(&url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery})
	if !strings.HasPrefix(u.Path, "/") {
		return ""
	}
	return u.RequestURI()
}

// subdomainForm says whether a public host is a tunnel's own: its first label is
// a segment.
func subdomainForm(host string) bool {
	label, _, _ := strings.Cut(host, ".")
	return len(label) == segmentLength && label[32] == '-'
}
