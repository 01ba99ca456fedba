package edge

import (
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/tunnels"
)

// own says whether an authority in an answer means the app itself: an address of
// its own machine with its port, or the host it was asked by.
func (x *exchange) own(authority string) bool {
	host, port, ok := tunnels.SplitHost(authority)
	if !ok {
		return false
	}
	if strings.EqualFold(authority, x.r.Host) || strings.EqualFold(authority, x.route.Host) || strings.EqualFold(authority, x.remote.host) {
		return true
	}
	// An app behind a proxy may name the public host without its port, but only
	// where that port is a default one can it be meant.
	if h, p, ok := tunnels.SplitHost(x.route.Host); ok && p == "" && h == host && (port == "80" || port == "443") {
		return true
	}
	switch host {
	case "127.0.0.1", "localhost", "[::1]", "0.0.0.0":
		local := localHost(x.route.Record.Port)
		return port == local[strings.LastIndexByte(local, ':')+1:] || port == "" && x.route.Record.Port == 80
	}
	return false
}

// publicURL rewrites a Location that points to the app's own origin. All else, and
// relative references with it, stays as it is byte for byte.
func (x *exchange) publicURL(v string) string {
	rest, absolute := v, false
	if i := strings.Index(v, "://"); i > 0 && i <= 5 {
		if s := strings.ToLower(v[:i]); s != "http" && s != "https" {
			return v
		}
		rest, absolute = v[i+1:], true
	}
	if strings.HasPrefix(rest, "//") {
		authority := rest[2:]
		path := ""
		if i := strings.IndexAny(authority, "/?#\\"); i >= 0 {
			authority, path = authority[:i], authority[i:]
		}
		if !x.own(authority) {
			return v
		}
		if path == "" || path[0] != '/' {
			path = "/" + path
		}
		if !absolute {
			// Without a scheme it must not become one that the page is not.
			return "//" + x.route.Host + x.publicPath(path)
		}
		return x.route.Origin + x.publicPath(path)
	}
	if strings.HasPrefix(v, "/") {
		return x.publicPath(v)
	}
	return v
}

// publicPath puts the tunnel's prefix in front of an absolute path, unless the app
// did so by itself (X-Forwarded-Prefix).
func (x *exchange) publicPath(path string) string {
	prefix := x.route.Prefix
	if prefix == "" || hasPrefixPath(path, prefix) {
		return path
	}
	return prefix + path
}

func hasPrefixPath(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (rest == "" || rest[0] == '/' || rest[0] == '?' || rest[0] == '#')
}

// publicRefresh rewrites the URL of a Refresh field: "5; url=/next".
func (x *exchange) publicRefresh(v string) string {
	at := strings.IndexAny(v, ";,")
	if at < 0 {
		return v
	}
	begin := at + 1
	for begin < len(v) && (v[begin] == ' ' || v[begin] == '\t') {
		begin++
	}
	if len(v)-begin >= 3 && strings.EqualFold(v[begin:begin+3], "url") {
		i := begin + 3
		for i < len(v) && v[i] == ' ' {
			i++
		}
		if i < len(v) && v[i] == '=' {
			begin = i + 1
			for begin < len(v) && v[begin] == ' ' {
				begin++
			}
		}
	}
	url, tail := v[begin:], ""
	if url != "" && (url[0] == '\'' || url[0] == '"') {
		quote := url[0]
		begin++
		url = url[1:]
		if i := strings.IndexByte(url, quote); i >= 0 {
			url, tail = url[:i], url[i:]
		}
	}
	return v[:begin] + x.publicURL(url) + tail
}

// publicCookie rewrites the attributes of a Set-Cookie field by cutting and
// joining its text: name and value, and attributes that are not ours to change,
// keep every byte (net/http would drop what it holds for invalid).
func (x *exchange) publicCookie(v string) string {
	prefix := x.route.Prefix
	if x.e.config.PathFallback == FallbackCookie {
		prefix = "" // the app's absolute paths need its cookies
	}
	return rewriteCookie(v, prefix, strings.HasPrefix(x.route.Origin, "https://"))
}

func rewriteCookie(v, prefix string, secure bool) string {
	pair, attributes, more := strings.Cut(v, ";")
	var b strings.Builder
	b.Grow(len(v) + len(prefix) + 10)
	b.WriteString(pair)
	hasSecure := false
	for more {
		var piece string
		piece, attributes, more = strings.Cut(attributes, ";")
		name, value, _ := strings.Cut(piece, "=")
		name = strings.Trim(name, " \t")
		switch {
		case strings.EqualFold(name, "Domain"):
			continue // it would reach other tunnels' hosts
		case strings.EqualFold(name, "Path"):
			if path := strings.Trim(value, " \t"); prefix != "" && strings.HasPrefix(path, "/") && !hasPrefixPath(path, prefix) {
				b.WriteString("; Path=" + prefix + path)
				continue
			}
		case strings.EqualFold(name, "Secure"):
			hasSecure = true
		}
		b.WriteByte(';')
		b.WriteString(piece)
	}
	if secure && !hasSecure {
		b.WriteString("; Secure")
	}
	return b.String()
}

// publicAllowOrigin gives back what appOrigin changed: the app allowed its own
// origin, which the browser knows by another name.
func (x *exchange) publicAllowOrigin(v string) string {
	if asked := x.r.Header.Get("Origin"); asked != "" && v == localOrigin(x.route.Record.Port) && ownOrigin(asked, x.route) {
		return asked
	}
	return v
}
