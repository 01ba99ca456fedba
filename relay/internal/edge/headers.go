package edge

import (
	"net/http"
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/tunnels"
)

// stays says whether a field of an app's answer stays at the relay, whatever form the
// tunnel's address has: it is about one connection only, or it reaches further than
// the app's own host.
func stays(name string) bool {
	switch name {
	// About one connection only (RFC 9110, section 7.6.1). Trailer is dealt with apart.
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	// They speak for the connection, which is the relay's, or have the browser tell
	// others the tunnel's address, which is the key to it.
	case "Alt-Svc", "Nel", "Report-To", "Reporting-Endpoints":
		return true
	// A session of the device may take in the whole site, other tunnels and the relay.
	case "Sec-Session-Registration", "Secure-Session-Registration":
		return true
	// They are orders to a proxy before the relay: nginx, Apache, lighttpd and Perlbal
	// would answer with what only they may read, and Envoy give up the relay itself.
	case "X-Accel-Redirect", "X-Sendfile", "X-Lighttpd-Send-File", "X-Lighttpd-Send-Tempfile", "X-Reproxy-Url", "X-Reproxy-File",
		"X-Envoy-Immediate-Health-Check-Fail", "X-Envoy-Degraded":
		return true
	}
	return false
}

// ofOneAnswer says whether a field is about one answer, or the document in it, and
// nothing else. In path form, where all apps share an origin with each other, and with
// the relay's own pages, no other field passes. What has power over the origin is
// therefore kept back without being named, and so is what browsers will learn yet:
//
//	Accept-CH, Critical-CH          hints that the browser sends with each request to the origin
//	Activate-Storage-Access         third-party cookies of the origin
//	Attribution-Reporting-*         the origin's reports
//	Clear-Site-Data                 storage of all apps, cookies of the whole site
//	Cross-Origin-Opener-Policy      what cuts a page off from the one that opened it is
//	                                that only the console asks for it
//	Expect-CT, Public-Key-Pins      certificates of the host
//	No-Vary-Search                  the browser's cache beyond one address
//	Observe-Browsing-Topics         the origin's topics
//	Origin-Agent-Cluster            the process of all pages of the origin
//	Origin-Trial                    features that anybody may have switched on for an origin
//	Service-Worker-Allowed          workers over the whole origin
//	Set-Login                       whether the origin's user is signed in
//	Speculation-Rules               pages of the origin loaded ahead
//	Strict-Transport-Security       the scheme of the host, also of other ports
//	Supports-Loading-Mode           how pages of the origin may be loaded
//	Use-As-Dictionary               what other answers of the origin are decoded with
//
// Of fields that begin with X- none has such power: they are the apps' own.
func ofOneAnswer(name string) bool {
	switch name {
	case // The representation and its parts (RFC 9110, 9530).
		"Accept-Ranges", "Content-Digest", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Length",
		"Content-Location", "Content-Md5", "Content-Range", "Content-Type", "Digest", "Etag", "Last-Modified", "Repr-Digest",
		// How long it may be kept (RFC 9111).
		"Age", "Cache-Control", "Cdn-Cache-Control", "Expires", "Pragma", "Vary", "Warning",
		// The answer to this request, and where to go on.
		"Accept", "Accept-Encoding", "Accept-Patch", "Accept-Post", "Allow", "Authentication-Info", "Date", "Deprecation", "Link",
		"Location", "Preference-Applied", "Refresh", "Retry-After", "Server", "Server-Timing", "Sunset", "Via", "Www-Authenticate",
		// Cookies, which are rewritten to the tunnel's path.
		"Set-Cookie",
		// The policies of this document.
		"Content-Security-Policy", "Content-Security-Policy-Report-Only", "Cross-Origin-Embedder-Policy",
		"Cross-Origin-Embedder-Policy-Report-Only", "Cross-Origin-Resource-Policy", "Document-Isolation-Policy", "Document-Policy",
		"Feature-Policy", "Integrity-Policy", "Permissions-Policy", "Referrer-Policy", "Sourcemap", "Timing-Allow-Origin",
		// WebSockets (RFC 6455), WebDAV (RFC 4918), signatures (RFC 9421).
		"Sec-Websocket-Accept", "Sec-Websocket-Extensions", "Sec-Websocket-Protocol", "Sec-Websocket-Version",
		"Dav", "Lock-Token", "Ms-Author-Via", "Signature", "Signature-Input":
		return true
	}
	return slices.ContainsFunc(families[:], func(f string) bool { return strings.HasPrefix(name, f) })
}

// families are the beginnings of fields that are about one answer: CORS, and those of
// protocols above HTTP, htmx and Connect among them, which only the app's own script and
// other programs understand.
var families = [...]string{"X-", "Access-Control-", "Connect-", "Grpc-", "Hx-", "Mcp-", "Ratelimit", "Trailer-", "Tus-", "Upload-"}

// passes says whether a field of the app's answer, or of its trailer, goes to the user.
func (x *exchange) passes(name string) bool {
	return !stays(name) && (x.route.Form != tunnels.PathForm || ofOneAnswer(name))
}

// copyHeader copies a final answer's header, or that of a 101, by the rules.
func (x *exchange) copyHeader(h, from http.Header) {
	x.copyFields(h, from)
	if _, ok := h["Referrer-Policy"]; !ok {
		h["Referrer-Policy"] = []string{sameOrigin} // the address is a secret
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // keeps net/http from guessing one
	}
	if x.route.Form == tunnels.PathForm {
		// What a page got of its app must not stand in for the relay's refusal when
		// the browser asks for the same address as a worker's script.
		h["Vary"] = append(h["Vary"], "Service-Worker")
	}
	if x.viewer != nil {
		forOneViewer(h)
	}
	if x.setsFallbackCookie() {
		h["Set-Cookie"] = append(h["Set-Cookie"], x.fallbackCookie())
	}
}

// forOneViewer keeps an answer that not everybody may have out of caches that are shared,
// whatever the app, which does not know of the rule, says.
func forOneViewer(h http.Header) {
	kept := []string{"private"}
	for _, line := range h["Cache-Control"] {
		for item := range strings.SplitSeq(line, ",") {
			item = strings.Trim(item, " \t")
			name, _, _ := strings.Cut(strings.ToLower(item), "=")
			switch name {
			case "", "public", "private", "s-maxage":
			default:
				kept = append(kept, item)
			}
		}
	}
	h["Cache-Control"] = []string{strings.Join(kept, ", ")}
	h["Vary"] = append(h["Vary"], "Cookie")
	delete(h, "Cdn-Cache-Control")
	delete(h, "Surrogate-Control")
}

// copyFields copies what goes to the user of an app's fields: of a header or a trailer.
func (x *exchange) copyFields(to, from http.Header) {
	connection := from["Connection"]
	onlyUsual := len(connection) == 0 || len(connection) == 1 && usualConnection(connection[0])
	for name, values := range from {
		if !x.passes(name) || !onlyUsual && listed(connection, name) {
			continue
		}
		if values = x.rewritten(name, values); len(values) > 0 {
			to[name] = values
		}
	}
}

// rewritten returns a field's values as the user gets them. They were parsed for this
// exchange alone.
func (x *exchange) rewritten(name string, values []string) []string {
	switch name {
	case "Location", "Content-Location":
		return each(values, x.publicURL)
	case "Refresh":
		return each(values, x.publicRefresh)
	case "Set-Cookie":
		return each(slices.DeleteFunc(values, setsOwnCookie), x.publicCookie)
	case "Link":
		return slices.DeleteFunc(values, namesPolicy)
	case "Referrer-Policy":
		return []string{referrerPolicy(values)}
	case "Clear-Site-Data":
		return slices.DeleteFunc(each(values, ownSiteData), isEmpty)
	case "Content-Security-Policy", "Content-Security-Policy-Report-Only":
		return slices.DeleteFunc(each(values, ownReports), isEmpty)
	case "Access-Control-Allow-Origin":
		if x.local {
			return each(values, x.publicAllowOrigin)
		}
	}
	return values
}

func each(values []string, f func(string) string) []string {
	for i, v := range values {
		values[i] = f(v)
	}
	return values
}

func isEmpty(v string) bool { return v == "" }

// sameOrigin is the policy under which browsers say where they come from to the tunnel
// alone.
const sameOrigin = "same-origin"

// referrerPolicy is the policy that goes to the user: the one that the app's fields
// amount to (the last token that browsers know; Referrer Policy, section 8.1), if it
// shows the address to nobody else. Each of the others shows the origin, and in
// subdomain form the host name is the key.
func referrerPolicy(values []string) string {
	effective := ""
	for _, v := range values {
		for token := range strings.SplitSeq(v, ",") {
			switch token = strings.ToLower(strings.Trim(token, " \t")); token {
			case "no-referrer", sameOrigin, "origin", "strict-origin", "origin-when-cross-origin",
				"strict-origin-when-cross-origin", "unsafe-url", "no-referrer-when-downgrade":
				effective = token
			}
		}
	}
	if effective == "no-referrer" {
		return effective
	}
	return sameOrigin
}

// namesPolicy says whether a Link has a referrer policy of its own, which would take
// the place of the answer's. The browser does without such a hint.
func namesPolicy(link string) bool {
	return strings.Contains(strings.ToLower(link), "referrerpolicy")
}

// ownSiteData takes out of a Clear-Site-Data what reaches beyond the tunnel's host:
// browsers clear cookies of the whole site, other tunnels' and the relay's with them.
func ownSiteData(v string) string {
	var kept []string
	for kind := range strings.SplitSeq(v, ",") {
		switch kind = strings.Trim(kind, " \t"); kind {
		case `"cookies"`:
		case `"*"`:
			kept = append(kept, `"cache"`, `"storage"`)
		default:
			kept = append(kept, kind)
		}
	}
	return strings.Join(kept, ", ")
}

// ownReports takes the places for reports out of a Content-Security-Policy that are not
// the app's own: a report names the page's address.
func ownReports(v string) string {
	if !strings.Contains(strings.ToLower(v), "report-uri") {
		return v
	}
	policies := strings.Split(v, ",")
	for i, policy := range policies {
		policies[i] = strings.Join(slices.DeleteFunc(strings.Split(policy, ";"), reportsElsewhere), ";")
	}
	return strings.Join(policies, ",")
}

func reportsElsewhere(directive string) bool {
	words := strings.Fields(directive)
	return len(words) > 0 && strings.EqualFold(words[0], "report-uri") && slices.ContainsFunc(words[1:], func(to string) bool {
		return !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.HasPrefix(to, `/\`)
	})
}
