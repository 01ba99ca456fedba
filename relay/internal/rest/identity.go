package rest

import (
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

const maxHeaderName = 64

// notIdentity are names, and beginnings of names that end in a dash, which say something
// else to apps or to what is on the way, or are the relay's own.
var notIdentity = []string{
	"Host", "Cookie", "Cookie2", "Set-Cookie", "Authorization", "Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Origin", "Referer", "Range", "Expect", "Date", "User-Agent", "Cache-Control", "Pragma", "Via", "Forwarded", "X-Real-Ip", "X-Request-Id",
	"Traceparent", "Tracestate", "Priority", "Dnt", "Accept",
	"Accept-", "Content-", "If-", "Proxy-", "Sec-", "Access-Control-", "X-Forwarded-", "X-Adit-", "Adit-",
}

// checkIdentityHeader checks the name of a further header that names the viewer to the app.
func checkIdentityHeader(name string) error {
	if name == "" {
		return nil
	}
	canonical := http.CanonicalHeaderKey(name)
	if len(name) > maxHeaderName || !httpguts.ValidHeaderFieldName(name) || strings.Contains(name, "_") {
		return invalid("identity_header", "the name of a header, of letters, digits and dashes, as X-WEBAUTH-USER")
	}
	if slices.ContainsFunc(notIdentity, func(n string) bool {
		return n == canonical || strings.HasSuffix(n, "-") && strings.HasPrefix(canonical, n)
	}) {
		return invalid("identity_header", "%s has a meaning of its own; use another, as X-WEBAUTH-USER", canonical)
	}
	return nil
}
