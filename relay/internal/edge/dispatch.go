package edge

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/tunnels"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// fallbackCookie holds the segment of the tunnel opened last, with FallbackCookie.
const fallbackCookie = "adit_tunnel"

// ServeHTTP serves requests to tunnels, and all others by what Config.Own names. It
// stands before any mux: those redirect "//" and "..", which are the app's.
func (e *Edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.RequestURI, "/") {
		// "*", an authority or an absolute URI, which overrides Host: none of
		// them chooses a tunnel.
		if !e.serveOwn(w, r) {
			e.config.Else.ServeHTTP(w, r)
		}
		return
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	route, err := e.config.Resolver.Resolve(r.Context(), r.Host, path)
	switch {
	case err == nil:
		e.serve(w, r, route, path, false)
	case errors.Is(err, tunnels.ErrNotTunnel):
		e.serveElse(w, r, path)
	default:
		x := newExchange(e, w, r, nil)
		defer x.finish()
		x.problem(e.noTunnel(r, err))
	}
}

// noTunnel answers whoever asks for what is not there. All get the same, but for a
// program with the right address of a tunnel of protocol tcp: it has no page to show,
// and its user may be told why the connection does not come back.
func (e *Edge) noTunnel(r *http.Request, err error) *api.Problem {
	if gone, ok := errors.AsType[*tunnels.Gone](err); ok && e.config.Why != nil && isWebSocket(r) {
		if text, ok := e.config.Why(gone.ID); ok {
			return errOver(text)
		}
	}
	return errNoTunnel()
}

// serveElse serves what is no tunnel's address: the relay's own routes, else the
// absolute paths of pages in path form.
func (e *Edge) serveElse(w http.ResponseWriter, r *http.Request, path string) {
	if e.serveOwn(w, r) {
		return
	}
	if prefix, ok := e.refererPrefix(r, path); ok {
		h := w.Header()
		h.Set("Location", prefix+r.RequestURI)
		h.Set("Cache-Control", "no-store")
		h.Set("Vary", "Referer")
		h.Set("Referrer-Policy", sameOrigin)
		w.WriteHeader(http.StatusTemporaryRedirect)
		e.metrics.redirects.Inc()
		return
	}
	if e.config.PathFallback == FallbackCookie {
		if c, err := r.Cookie(fallbackCookie); err == nil {
			if route, err := e.config.Resolver.BySegment(r.Context(), r.Host, ident.Segment(c.Value), path); err == nil {
				e.serve(w, r, route, path, true)
				return
			}
		}
	}
	e.config.Else.ServeHTTP(w, r)
}

// serveOwn serves a request for a path of the relay's own, if it is one.
func (e *Edge) serveOwn(w http.ResponseWriter, r *http.Request) bool {
	own := e.config.Own(r)
	if own != nil {
		own.ServeHTTP(w, r)
	}
	return own != nil
}

// refererPrefix returns the prefix of the tunnel whose page asks for an absolute
// path. A page can only forge a Referer whose segment it knows, which is access
// already.
func (e *Edge) refererPrefix(r *http.Request, path string) (string, bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return "", false
	}
	origin, refPath, ok := splitURL(r.Header.Get("Referer"))
	if !ok {
		return "", false
	}
	from, ok := tunnels.CanonicalOrigin(origin)
	if !ok {
		return "", false
	}
	if from != e.config.Resolver.PublicOrigin() {
		// The relay may be reached by another name than its public one.
		scheme, _, _ := strings.Cut(from, "://")
		if here, ok := tunnels.CanonicalOrigin(scheme + "://" + r.Host); !ok || here != from {
			return "", false
		}
	}
	segment, rest, ok := tunnels.SplitPath(refPath)
	if !ok || rest == "" {
		return "", false
	}
	route, err := e.config.Resolver.BySegment(r.Context(), r.Host, segment, path)
	if err != nil {
		return "", false
	}
	return route.Prefix, true
}

// splitURL splits an absolute URL into its origin and its raw path.
func splitURL(s string) (origin, path string, ok bool) {
	i := strings.Index(s, "://")
	if i < 0 {
		return "", "", false
	}
	end := strings.IndexAny(s[i+3:], "/?#")
	if end < 0 {
		return s, "", true
	}
	origin, path = s[:i+3+end], s[i+3+end:]
	if j := strings.IndexAny(path, "?#"); j >= 0 {
		path = path[:j]
	}
	return origin, path, true
}

// serve serves one request to a tunnel. absolute says that no prefix was stripped:
// the path came as it is, and a cookie chose the tunnel.
func (e *Edge) serve(w http.ResponseWriter, r *http.Request, route *tunnels.Route, path string, absolute bool) {
	x := newExchange(e, w, r, route)
	x.absolute = absolute
	defer x.finish()
	if !x.mayEnter() {
		return
	}
	if route.Moved == "" && route.Record.Protocol != api.ProtocolTCP && route.Rest == "" {
		// Without the slash a page's relative links would leave the tunnel.
		x.redirect(path + "/" + r.RequestURI[len(path):])
		return
	}
	if p := x.check(); p != nil {
		x.problem(p)
		return
	}
	if route.Moved != "" {
		x.redirect(route.Moved + x.target)
		return
	}
	if !x.enter() {
		return
	}
	if !x.idle.enter(e.config.MaxStreams) {
		x.problem(errTooMany(e.config.MaxStreams))
		return
	}
	defer x.idle.leave()
	if route.Record.Protocol == api.ProtocolTCP {
		e.serveTCP(x)
		return
	}
	kind := usage.HTTP
	if x.upgrade {
		kind = usage.WebSocket
	}
	if !x.begin(kind) {
		return
	}
	defer x.use.End()
	x.forward()
}

// ServeTCP serves a request to a tunnel of protocol tcp whose route is known
// already; ServeHTTP does so by itself for what it resolves.
func (e *Edge) ServeTCP(w http.ResponseWriter, r *http.Request, route *tunnels.Route) {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	e.serve(w, r, route, path, false)
}

// redirect sends the user to where the tunnel is, with the method and the body.
func (x *exchange) redirect(location string) {
	h := x.w.Header()
	h.Set("Location", location)
	h.Set("Cache-Control", "no-store") // it may be closed tomorrow
	h.Set("Referrer-Policy", sameOrigin)
	h.Set("Content-Length", "0")
	x.status = http.StatusPermanentRedirect
	x.w.WriteHeader(x.status)
}

// exchange is one request to a tunnel and its answer.
type exchange struct {
	e     *Edge
	w     http.ResponseWriter
	r     *http.Request
	rc    *http.ResponseController
	route *tunnels.Route // nil when there is no tunnel
	idle  *idleStreams
	use   *usage.Use
	id    ident.RequestID
	start time.Time

	absolute bool   // a cookie chose the tunnel; no prefix was stripped
	upgrade  bool   // a WebSocket upgrade that is forwarded as one
	remote   remote // who asks, and how
	target   string // of the request line to the app
	host     string // what the app sees
	local    bool   // host mode local

	status  int  // of the answer; 0: none was begun
	aborted bool // the answer was cut off, or nobody is there for it
	body    *sender
	guard   guard
	unwatch func() // undoes watchCut

	viewer   *access.Viewer     // nil: the tunnel has no rule of access
	readOnly bool               // by that rule
	identity string             // fields that tell the app who the viewer is; empty: it is not known
	unguard  context.CancelFunc // undoes the watch over the viewer; nil: there is none

	hold fleet.Hold
}

func newExchange(e *Edge, w http.ResponseWriter, r *http.Request, route *tunnels.Route) *exchange {
	x := &exchange{e: e, w: w, r: r, rc: http.NewResponseController(w), route: route, start: time.Now()}
	x.remote = e.remoteOf(r, route)
	x.id = x.remote.request
	if x.id == "" {
		x.id = ident.NewRequestID()
	}
	if route != nil {
		x.hold = fleet.Hold{For: e.config.Hold, Waiting: e.waiting}
		x.idle = e.idleOf(route.Record.Session)
		x.upgrade = isWebSocket(r)
	}
	return x
}

// check applies the rules that need no app.
func (x *exchange) check() *api.Problem {
	target, ok := appTarget(x.route, x.r.RequestURI)
	if !ok {
		return errBadTarget()
	}
	x.target = target
	if _, _, ok := tunnels.SplitHost(x.r.Host); !ok {
		return errBadHost()
	}
	if !originAllowed(x.r, x.route, x.upgrade) {
		x.e.metrics.origins.Inc()
		return errOrigin()
	}
	if x.route.Form == tunnels.PathForm && x.r.Header["Service-Worker"] != nil {
		return errServiceWorker()
	}
	if x.upgrade && x.e.draining.Load() {
		return errDraining()
	}
	return nil
}

// begin notes the use and has its end cut the exchange.
func (x *exchange) begin(kind usage.Kind) bool {
	if !x.admit() {
		return false
	}
	ctx := x.r.Context()
	if x.viewer != nil {
		ctx, x.unguard = x.e.config.Access.Watch(ctx, *x.viewer, &x.route.Record, x.route.Link)
	}
	use, err := x.e.config.Meter.Begin(ctx, x.route.Record.Session, x.party(), kind)
	if err != nil {
		x.problem(x.cutProblem(err))
		return false
	}
	x.use = use
	return true
}

// cause says why the exchange was ended from outside: nil if it was not, and
// context.Canceled when the user left.
func (x *exchange) cause() error {
	if x.use == nil {
		return context.Cause(x.r.Context())
	}
	return context.Cause(x.use.Context())
}

// finish accounts for the exchange, however it ended.
func (x *exchange) finish() {
	if x.unguard != nil {
		x.unguard()
	}
	form := "none"
	if x.route != nil {
		form = x.route.Form.String()
	}
	x.e.metrics.request(x.status, form, x.aborted)
	if x.e.log.Enabled(x.r.Context(), -4) {
		session := ident.SessionID("")
		if x.route != nil {
			session = x.route.Record.Session
		}
		x.e.log.Debug("request", "request_id", x.id, "session_id", session, "method", x.r.Method,
			"status", x.status, "aborted", x.aborted, "duration", time.Since(x.start))
	}
}

// abort ends an answer that cannot be completed, so that the user sees that it
// was not.
func (x *exchange) abort() {
	x.aborted = true
	panic(http.ErrAbortHandler)
}
