package edge

import (
	"encoding/base64"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/tunnels"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// remote is who asks and how, as far as it can be believed.
type remote struct {
	trusted bool            // the peer is a trusted proxy
	peer    netip.Addr      // the other end of the connection
	user    netip.Addr      // the person's: the peer, or who a trusted proxy says
	proto   string          // http or https, as the user's client speaks it
	host    string          // that the user's client asked for
	request ident.RequestID // empty: make one
}

func (e *Edge) remoteOf(r *http.Request, route *tunnels.Route) remote {
	m := remote{host: r.Host, proto: "http", peer: caller.Peer(r)}
	m.user = m.peer
	switch {
	case r.TLS != nil:
		m.proto = "https"
	case route != nil:
		// Behind a proxy that ends TLS: the public URL says what users speak.
		m.proto, _, _ = strings.Cut(route.Origin, "://")
	}
	if !e.trusted(m.peer) {
		return m
	}
	m.trusted = true
	m.user = caller.User(r, e.trusted)
	if p := strings.ToLower(last(r.Header["X-Forwarded-Proto"])); p == "http" || p == "https" {
		m.proto = p
	}
	if h := last(r.Header["X-Forwarded-Host"]); h != "" {
		if _, _, ok := tunnels.SplitHost(h); ok {
			m.host = h
		}
	}
	if id, err := ident.ParseRequestID(r.Header.Get(api.HeaderRequestID)); err == nil {
		m.request = id
	}
	return m
}

func (e *Edge) trusted(a netip.Addr) bool {
	for _, p := range e.config.TrustedProxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// last is the last element of a list header: what the nearest proxy added.
func last(values []string) string {
	if len(values) == 0 {
		return ""
	}
	v := values[len(values)-1]
	return strings.TrimSpace(v[strings.LastIndexByte(v, ',')+1:])
}

// appTarget is the request target for the app, byte for byte as it came but for
// the prefix. It reports false for what would break the request line; net/http
// lets some of that through over HTTP/2.
func appTarget(route *tunnels.Route, uri string) (string, bool) {
	for i := range len(uri) {
		if uri[i] <= ' ' || uri[i] == 0x7f {
			return "", false
		}
	}
	query := ""
	if i := strings.IndexByte(uri, '?'); i >= 0 {
		query = uri[i:]
	}
	if route.Rest == "" {
		return "/" + query, true
	}
	return route.Rest + query, true
}

// originAllowed is the check against cross-site requests: for WebSockets and
// unsafe methods Origin must be absent (no browser) or the tunnel's own.
func originAllowed(r *http.Request, route *tunnels.Route, upgrade bool) bool {
	values := r.Header["Origin"]
	if len(values) == 0 || !upgrade && safeMethod(r.Method) {
		return true
	}
	if len(values) != 1 {
		return false
	}
	return ownOrigin(values[0], route)
}

// ownOrigin says whether an origin is the tunnel's or one it was opened for.
func ownOrigin(value string, route *tunnels.Route) bool {
	if value == route.Origin {
		return true
	}
	origin, ok := tunnels.CanonicalOrigin(value)
	if !ok {
		return false // "null" too
	}
	if origin == route.Origin {
		return true
	}
	for _, a := range route.Record.AllowOrigins {
		if allowed, ok := tunnels.CanonicalOrigin(a); ok && allowed == origin {
			return true
		}
	}
	return false
}

func safeMethod(m string) bool {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// isWebSocket says whether a request is an upgrade that may be forwarded as one
// (RFC 6455, section 4.2.1). Nothing else may: a proxy that lets other upgrades
// through (h2c) lets requests through that it never sees.
func isWebSocket(r *http.Request) bool {
	if r.Method != http.MethodGet || r.ProtoMajor != 1 || r.ProtoMinor < 1 || r.ContentLength != 0 {
		return false
	}
	up := r.Header["Upgrade"]
	if len(up) != 1 || !strings.EqualFold(up[0], "websocket") || !listed(r.Header["Connection"], "Upgrade") {
		return false
	}
	key := r.Header["Sec-Websocket-Key"]
	version := r.Header["Sec-Websocket-Version"]
	if len(key) != 1 || len(version) != 1 || version[0] != "13" {
		return false
	}
	raw, err := base64.StdEncoding.DecodeString(key[0])
	return err == nil && len(raw) == 16
}

// listed says whether a list header names a token, in any letter case.
func listed(values []string, token string) bool {
	for _, v := range values {
		for v != "" {
			var item string
			item, v, _ = strings.Cut(v, ",")
			if strings.EqualFold(strings.Trim(item, " \t"), token) {
				return true
			}
		}
	}
	return false
}

// localOrigin is the app's own origin in host mode local.
func localOrigin(port uint16) string { return "http://" + localHost(port) }

// localHost is an address, not a name: ComfyUI resolves names on its event loop.
func localHost(port uint16) string { return "127.0.0.1:" + strconv.Itoa(int(port)) }

// appendHead appends the request's header as the app gets it. It is written by
// hand, and our own fields last, so that nothing in the user's request, a
// Connection header least of all, can take one of them away.
func (x *exchange) appendHead(b []byte) []byte {
	r := x.r
	b = append(append(append(append(b, r.Method...), ' '), x.target...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, x.host...), "\r\n"...)
	connection := r.Header["Connection"]
	onlyUsual := len(connection) == 0 || len(connection) == 1 && usualConnection(connection[0])
	navigation := isNavigation(r)
	for name, values := range r.Header {
		if x.drops(name, navigation) || !onlyUsual && listed(connection, name) {
			continue
		}
		for _, v := range values {
			switch name {
			case "Origin":
				if v = x.appOrigin(v); x.betrays(v) {
					v = "null"
				}
			case "Referer":
				if v = x.appReferer(v); x.betrays(v) {
					continue
				}
			case "Authorization":
				if ownSecret(v) {
					continue
				}
			case "Cookie":
				v = withoutOwnCookies(v)
				if x.e.config.PathFallback == FallbackCookie {
					v = withoutCookie(v, fallbackCookie)
				}
				if v == "" {
					continue
				}
			}
			b = appendField(b, name, v)
		}
	}
	if listed(r.Header["Te"], "trailers") {
		b = append(b, "Te: trailers\r\n"...)
	}
	b = x.appendIdentity(x.appendForwarded(b))
	if x.upgrade {
		return append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"...)
	}
	switch {
	case r.ContentLength > 0:
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, r.ContentLength, 10), "\r\n"...)
	case r.ContentLength < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		if len(r.Trailer) > 0 {
			names := make([]string, 0, len(r.Trailer))
			for name := range r.Trailer {
				if !x.drops(name, false) {
					names = append(names, name)
				}
			}
			if len(names) > 0 {
				b = appendField(b, "Trailer", strings.Join(names, ", "))
			}
		}
	case !safeMethod(r.Method):
		b = append(b, "Content-Length: 0\r\n"...) // RFC 9110, section 8.6
	}
	if x.expects() {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	return append(b, "\r\n"...)
}

func usualConnection(v string) bool {
	return strings.EqualFold(v, "keep-alive") || strings.EqualFold(v, "upgrade") || strings.EqualFold(v, "close")
}

func appendField(b []byte, name, value string) []byte {
	return append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
}

func (x *exchange) appendForwarded(b []byte) []byte {
	m := &x.remote
	b = append(b, "X-Forwarded-For: "...)
	if m.trusted {
		for _, v := range x.r.Header["X-Forwarded-For"] {
			b = append(append(b, v...), ", "...)
		}
	}
	if m.peer.IsValid() {
		b = m.peer.AppendTo(b)
	} else {
		b = append(b, "unknown"...)
	}
	b = append(append(b, "\r\nX-Forwarded-Host: "...), m.host...)
	b = append(append(b, "\r\nX-Forwarded-Proto: "...), m.proto...)
	if x.route.Prefix != "" && !x.absolute {
		b = append(append(b, "\r\nX-Forwarded-Prefix: "...), x.route.Prefix...)
	}
	b = append(append(b, "\r\nX-Request-Id: "...), x.id...)
	return append(b, "\r\n"...)
}

// drops says whether a field of the user's request, or a trailer, stays at the relay.
func (x *exchange) drops(name string, navigation bool) bool {
	switch name {
	case "", // of an announcement that ends in a comma, over HTTP/2
		"Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings",
		"Host", "Content-Length", "Expect", "X-Request-Id":
		return true
	}
	switch {
	case own(name), x.readOnly && overridesMethod(name):
		return true
	case navigation && strings.HasPrefix(name, "Sec-Fetch-"):
		return true
	case x.namesViewer(name):
		return true
	case odd(name):
		return forged(name)
	}
	return !x.remote.trusted && hearsay(name)
}

// own says whether a field is for the relay alone to set, or for its proxies to tell
// the relay: what of it is believed reaches the app in the relay's own fields, and the
// rest, which a proxy may have passed on unread, does not.
func own(name string) bool {
	switch name[0] {
	case 'A':
		return strings.HasPrefix(name, "Adit-")
	case 'X':
		return strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "X-Adit-") || name == "X-Real-Ip"
	case 'P':
		return strings.HasPrefix(name, "Proxy-")
	case 'F':
		return name == "Forwarded"
	}
	return false
}

// overridesMethod says whether an app may take a field's value for the method, so that
// what looks like looking changes something.
func overridesMethod(name string) bool {
	switch folded(name) {
	case "X-Http-Method-Override", "X-Http-Method", "X-Method-Override":
		return true
	}
	return false
}

// vouched are the beginnings of fields by which proxies tell an app who the user is or
// what was asked for, by their first letter. An app that believes them believes
// everybody who reaches it, so they pass only from a trusted proxy, which must clear
// those that it does not set (the examples in configs/ do).
var vouched = [...][]string{
	'C': {"Cf-Access-", "Cf-Connecting-Ip", "Client-Cert", "Client-Ip"},
	'F': {"Front-End-Https"},
	'R': {"Remote-"},
	'S': {"Ssl-Client-"},
	'T': {"True-Client-Ip"},
	'X': {
		"X-Auth-Request-", "X-Authenticated-", "X-Authentik-", "X-Webauth-", "X-Remote-", "X-Goog-Authenticated-", "X-Goog-Iap-", "X-Ms-Client-Principal", "X-Amzn-Oidc-", "X-Pomerium-",
		"X-Ssl-", "X-Client-Cert", "X-Client-Ip", "X-Cluster-Client-Ip", "X-Originating-Ip", "X-Original-Host", "X-Original-Method", "X-Original-Ur", "X-Rewrite-Ur", "X-Scheme", "X-Url-Scheme",
	},
}

func hearsay(name string) bool {
	if int(name[0]) >= len(vouched) {
		return false
	}
	for _, prefix := range vouched[name[0]] {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// forged says whether a name becomes one of those above in servers that take other signs
// for '-' (CGI, WSGI). No proxy writes them so, trusted or not.
func forged(name string) bool {
	n := folded(name)
	return own(n) || hearsay(n) || n == "X-Request-Id" || n == "Content-Length" || n == "Transfer-Encoding"
}

// isNavigation recognises the opening of a page in a tab. Its Sec-Fetch fields are
// dropped, so that a link clicked in a chat works with apps that refuse
// "cross-site".
func isNavigation(r *http.Request) bool {
	return r.Method == http.MethodGet && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

// appOrigin is the Origin as the app sees it. Only the tunnel's own becomes the
// local one: a foreign site's must not look like the app's.
func (x *exchange) appOrigin(v string) string {
	if x.local && ownOrigin(v, x.route) {
		return localOrigin(x.route.Record.Port)
	}
	return v
}

// appReferer is the Referer as the app sees it, for host mode local as appOrigin.
func (x *exchange) appReferer(v string) string {
	if !x.local {
		return v
	}
	origin, _, ok := splitURL(v)
	if !ok || !ownOrigin(origin, x.route) {
		return v
	}
	rest := v[len(origin):]
	if p := x.route.Prefix; p != "" && strings.HasPrefix(rest, p) && (len(rest) == len(p) || rest[len(p)] == '/') {
		rest = rest[len(p):]
	}
	return localOrigin(x.route.Record.Port) + rest
}

// withoutCookie removes one cookie from a Cookie header and leaves the bytes of
// all others as they are.
func withoutCookie(header, name string) string {
	if !strings.Contains(header, name) {
		return header
	}
	return withoutCookies(header, func(n string) bool { return n == name })
}

func withoutCookies(header string, drops func(name string) bool) string {
	kept := ""
	for i, piece := range strings.Split(header, ";") {
		if n, _, _ := strings.Cut(strings.TrimSpace(piece), "="); drops(n) {
			continue
		}
		if kept != "" {
			kept += ";"
		} else if i > 0 {
			piece = strings.TrimLeft(piece, " ")
		}
		kept += piece
	}
	return kept
}

// expects says whether the user's client waits for 100 Continue.
func (x *exchange) expects() bool {
	return x.r.ContentLength != 0 && strings.EqualFold(x.r.Header.Get("Expect"), "100-continue")
}
