package edge

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Access decides who may use a tunnel that has a rule; access.Access is one.
type Access interface {
	Check(ctx context.Context, req access.Request) (access.Viewer, error)
	// Watch returns a context that ends when the viewer may not use the tunnel any more.
	Watch(ctx context.Context, v access.Viewer, t *store.TunnelRecord, l *store.LinkRecord) (context.Context, context.CancelFunc)
	// Ask seals what a browser came for, which it brings to where it signs in.
	Ask(req access.Request, at, path string, nonce ident.Secret) string
	// Redeem turns the code that it comes back with into a pass.
	Redeem(ctx context.Context, req access.Request, code, nonce ident.Secret) (pass ident.Secret, ends time.Time, path string, err error)
}

// SignInPath is where browsers sign in for a tunnel, on the console's origin.
const SignInPath = "/auth/pass"

// Cookies of the relay's own on a tunnel's address, without the prefix that those of a
// secure origin have.
const (
	cookiePass = "adit-pass"
	cookieAsk  = "adit-ask" // what binds a way to a pass to the browser
	askLives   = 10 * time.Minute
)

// cookieName is the name of a cookie of the relay's own here. In subdomain form on https
// no other host can set it; browsers refuse those prefixes on plain http, which is for
// loopback alone.
func (x *exchange) cookieName(name string) string {
	switch {
	case !x.secure():
		return name
	case x.route.Prefix == "":
		return "__Host-" + name
	}
	return "__Secure-" + name
}

func (x *exchange) secure() bool { return strings.HasPrefix(x.route.Origin, "https://") }

func (x *exchange) setCookie(name, value string, lives time.Duration) {
	path := x.route.Prefix
	if path == "" {
		path = "/"
	}
	age := int(lives / time.Second)
	if value == "" {
		age = -1
	}
	http.SetCookie(x.w, &http.Cookie{
		Name: x.cookieName(name), Value: value, Path: path, MaxAge: age, HttpOnly: true, Secure: x.secure(),
		SameSite: http.SameSiteLaxMode, // the way back from where one signs in brings it along
	})
}

// cookie returns the one cookie of the relay's own of a name. Of two, one was set by
// somebody else, and nobody can tell which.
func (x *exchange) cookie(name string) (value string, n int) {
	name = x.cookieName(name)
	for _, line := range x.r.Header["Cookie"] {
		for piece := range strings.SplitSeq(line, ";") {
			if v, ok := strings.CutPrefix(strings.TrimLeft(piece, " \t"), name); ok && strings.HasPrefix(v, "=") {
				value = strings.TrimRight(v[1:], " \t")
				n++
			}
		}
	}
	if n != 1 {
		return "", n
	}
	return value, 1
}

// ownCookie says whether a name is for a cookie of the relay's own, on whatever host.
// Apps neither get nor set one.
func ownCookie(name string) bool {
	return strings.HasPrefix(name, "adit-") || strings.HasPrefix(name, "__Host-adit") || strings.HasPrefix(name, "__Secure-adit")
}

// withoutOwnCookies takes the relay's own cookies out of a Cookie header.
func withoutOwnCookies(header string) string {
	if !strings.Contains(header, "adit") {
		return header
	}
	return withoutCookies(header, ownCookie)
}

// setsOwnCookie says whether a Set-Cookie of an app is for a cookie of the relay's own.
// Of one without a name browsers send the value alone, which could look like ours.
func setsOwnCookie(v string) bool {
	pair, _, _ := strings.Cut(v, ";")
	return ownCookie(strings.TrimLeft(pair, " \t="))
}

// enter applies the tunnel's rule of access. It reports false when it has answered.
func (x *exchange) enter() bool {
	rule := access.RuleOf(&x.route.Record, x.route.Link)
	if rule == nil {
		return true
	}
	x.w.Header().Add("Vary", "Cookie")
	if x.e.config.Access == nil {
		x.problem(access.Required())
		return false
	}
	value, n := x.cookie(cookiePass)
	req := x.request(value)
	if x.route.Rest == access.PassPath {
		x.redeem(req)
		return false
	}
	if x.atDoor() {
		x.door(req)
		return false
	}
	v, err := x.e.config.Access.Check(x.r.Context(), req)
	if err == nil && rule.ReadOnly && x.route.Record.Protocol == api.ProtocolTCP {
		err = access.ReadOnly() // it cannot be known what of it would only look
	}
	if err != nil {
		x.refuse(err, req, n > 1)
		return false
	}
	x.viewer, x.readOnly = &v, rule.ReadOnly
	return x.identify()
}

// request is who asks.
func (x *exchange) request(pass string) access.Request {
	r := x.r
	looks := r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions
	return access.Request{
		Tunnel: &x.route.Record, Link: x.route.Link, Remote: x.remote.user, Browser: r.UserAgent(),
		Pass: ident.Secret(pass), Auth: r.Header[api.HeaderAuthorization], Write: !looks || r.ContentLength != 0,
	}
}

// refuse shows the way in to a browser that opened a page, and says to all others that
// there is one.
func (x *exchange) refuse(err error, req access.Request, twice bool) {
	p, ok := errors.AsType[*api.Problem](err)
	if !ok {
		p = api.Internal(err)
	}
	opens := x.r.Method == http.MethodGet || x.r.Method == http.MethodHead
	form := x.hasForm(p, req)
	switch {
	case form && !twice:
		x.ask(p, req)
	case !form && (p.Code != api.CodeAccessRequired || len(req.Auth) > 0 || !problems.Shown(x.r)):
		x.problem(p)
	case !form && x.e.config.SignIn == "":
		x.problem(api.NewProblem(p.Code, "the tunnel is for certain people, and nobody signs in at this relay with a browser; programs send Adit-Authorization"))
	case twice: // a new one would be one more
		x.problem(api.NewProblem(p.Code, "the browser has two passes to this tunnel, and one was set by somebody else: remove the cookies of this address, then open it again"))
	case opens:
		h := x.w.Header()
		h.Set("Location", x.signInAt(req, x.askedFor()))
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Length", "0")
		x.status = http.StatusSeeOther
		x.w.WriteHeader(x.status)
	default: // a form
		at := x.signInAt(req, x.cameFrom())
		p = api.NewProblem(p.Code, "you are not signed in, or not any more, and what you sent was not taken: sign in, then send it again")
		x.status = p.Status
		x.e.metrics.problem(p)
		problems.AnswerOn(x.w, x.r, p, x.id, problems.Link{Address: at, Text: "Sign in"})
	}
}

// askedFor is the path that the browser asked for, within the tunnel's address: where a
// cookie chose the tunnel, passes are not sent to what is outside of it.
func (x *exchange) askedFor() string {
	if x.atDoor() {
		return x.route.Prefix + "/"
	}
	if x.absolute {
		return x.route.Prefix + x.r.RequestURI
	}
	return x.r.RequestURI
}

// cameFrom is the tunnel's page that sent a form, else its first one.
func (x *exchange) cameFrom() string {
	origin, path, ok := splitURL(x.r.Header.Get("Referer"))
	if ok && ownOrigin(origin, x.route) && hasPrefixPath(path, x.route.Prefix) && strings.HasPrefix(path, "/") {
		return path
	}
	return x.route.Prefix + "/"
}

// signInAt is where the browser signs in to come back to a path.
func (x *exchange) signInAt(req access.Request, path string) string {
	nonce := ident.Secret("")
	if value, n := x.cookie(cookieAsk); n == 1 && len(value) >= 20 && len(value) <= 64 {
		nonce = ident.Secret(value) // of another tab's way, which goes on
	} else {
		nonce = access.Nonce()
	}
	x.setCookie(cookieAsk, nonce.Reveal(), askLives)
	return x.e.config.SignIn + SignInPath + "?t=" + x.e.config.Access.Ask(req, x.route.Origin+x.route.Prefix, path, nonce)
}

// redeem is where a browser comes back to with a code.
func (x *exchange) redeem(req access.Request) {
	h := x.w.Header()
	h.Set("Cache-Control", "no-store")
	if x.r.Method != http.MethodGet {
		h.Set("Allow", http.MethodGet)
		x.problem(api.NewProblem(api.CodeMethodNotAllowed, "a browser comes here to be let in: GET"))
		return
	}
	query, _ := url.ParseQuery(x.r.URL.RawQuery)
	nonce, _ := x.cookie(cookieAsk)
	pass, ends, path, err := x.e.config.Access.Redeem(x.r.Context(), req, ident.Secret(query.Get("code")), ident.Secret(nonce))
	if err != nil {
		p, ok := errors.AsType[*api.Problem](err)
		if !ok {
			p = api.Internal(err)
		}
		x.status = p.Status
		x.e.metrics.problem(p)
		problems.AnswerOn(x.w, x.r, p, x.id, problems.Link{Address: x.route.Prefix + "/", Text: "Open it again"})
		return
	}
	if pass != "" {
		x.setCookie(cookiePass, pass.Reveal(), max(time.Second, time.Until(ends)))
	}
	h.Set("Location", x.route.Origin+path) // whole: a path may begin with two slashes
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Length", "0")
	x.status = http.StatusSeeOther
	x.w.WriteHeader(x.status)
}
