package signin

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/tunnels"
	"github.com/adit-tunnel/adit/shared/api"
)

const (
	maxBody  = 64 << 10
	bodyTime = 10 * time.Second // to send it, so that a slow one holds no connection
)

// ownPage refuses what no page of the relay's own sent. A browser always says where a
// POST comes from; a program that sends none has no cookie to protect, and no business
// here. The media type is one that no form can send.
func (d *Door) ownPage(r *http.Request) *api.Problem {
	values := r.Header["Origin"]
	origin, ok := "", false
	if len(values) == 1 {
		origin, ok = tunnels.CanonicalOrigin(values[0])
	}
	if site := r.Header.Get("Sec-Fetch-Site"); !ok || origin != d.cfg.Origin || site != "" && site != "same-origin" {
		return api.NewProblem(api.CodeCrossOrigin, "signing in is for the relay's own pages: open "+d.cfg.Origin+"/console")
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return api.NewProblem(api.CodeUnsupportedMediaType, "send Content-Type: application/json")
	}
	return nil
}

// atHome says whether a request came by the name of the relay's own pages. Ports are not
// compared: a proxy may have left it out.
func (d *Door) atHome(r *http.Request) bool {
	host, _, ok := tunnels.SplitHost(r.Host)
	return ok && strings.Trim(host, "[]") == d.host
}

// visit admits a person whose browser opens an address, as often as their own may. What
// another page loads as a picture or in a frame is none, and uses nothing up.
func (d *Door) visit(r *http.Request) *api.Problem {
	if dest := r.Header.Get("Sec-Fetch-Dest"); dest != "" && dest != "document" {
		return api.NewProblem(api.CodeCrossOrigin, "this address is opened by itself, not as a part of another page")
	}
	return d.limits.logins.take(d.cfg.Remote(r))
}

// read decodes a small body.
func read(w http.ResponseWriter, r *http.Request, into any) error {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime)) // tests' recorders have none
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	if _, over := errors.AsType[*http.MaxBytesError](err); over {
		return api.NewProblem(api.CodeBodyTooLarge, "the body is over 64 KiB")
	}
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		return api.NewProblem(api.CodeInvalidBody, "the body is not the JSON object that this address takes").WithCause(err)
	}
	return nil
}

// limit bounds how often each address may try one thing.
type limit struct {
	of    *caller.Limits
	every time.Duration
	now   func() time.Time
}

func (l limit) take(remote string) *api.Problem {
	if l.of.Take(remote, l.now()) {
		return nil
	}
	return api.NewProblem(api.CodeTooManyTries, "too many tries came from this address: wait a little, then try again").WithRetry(l.every)
}

// limits of tries. An office behind one address has a few hundred browsers, each of
// which asks for a bearer every few minutes and at every load of a page. Guessing is
// hopeless at any rate; what costs is bounded over all as well.
type limits struct {
	logins, tokens, invites, passkeys, passes limit
	exchanges                                 *rate.Limiter // of codes at the issuer
	now                                       func() time.Time
}

const maxAddresses = 8192

func newLimits(now func() time.Time) limits {
	of := func(every time.Duration, burst int) limit {
		return limit{caller.NewLimits(every, burst, maxAddresses), every, now}
	}
	return limits{
		logins: of(250*time.Millisecond, 120), passes: of(200*time.Millisecond, 200), tokens: of(200*time.Millisecond, 200), invites: of(6*time.Second, 10), passkeys: of(2*time.Second, 20),
		exchanges: rate.NewLimiter(20, 100), now: now,
	}
}

func (l limits) exchange() bool { return l.exchanges.AllowN(l.now(), 1) }
