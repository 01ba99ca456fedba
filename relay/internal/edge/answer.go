package edge

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/tunnels"
)

// answer sends the app's answer to the user and keeps the stream if it can be used
// again.
func (x *exchange) answer(u *upstream, resp *http.Response) {
	done, whole := false, false
	defer func() { // also when the user's side panics
		switch {
		case done:
		case whole:
			_ = u.Close()
		default:
			_ = u.Reset() // the app should not go on sending
		}
	}()
	h := x.w.Header()
	x.copyHeader(h, resp)
	announced := len(resp.Trailer)
	if announced > 0 {
		names := make([]string, 0, announced)
		for name := range resp.Trailer {
			names = append(names, name)
		}
		h["Trailer"] = []string{strings.Join(names, ", ")}
	}
	if x.bodyOpen() {
		h["Connection"] = []string{"close"}
	}
	x.begun(resp.StatusCode)
	x.w.WriteHeader(resp.StatusCode)
	if err := x.copyBody(u, resp); err != nil {
		x.abort()
	}
	whole = true
	x.copyTrailer(h, resp, announced)
	if x.reusable(u, resp) {
		x.unwatch() // from here on a cut must not close the stream: it may be another request's
		if !x.guard.wasCut() {
			done = true
			x.pool.put(u)
		}
	}
}

// begun notes the begin of an answer.
func (x *exchange) begun(status int) {
	x.status = status
	x.e.metrics.firstByte.Observe(time.Since(x.start).Seconds())
}

// reusable says whether both sides left the stream at a request's begin.
func (x *exchange) reusable(u *upstream, resp *http.Response) bool {
	if resp.Close || u.br.Buffered() > 0 {
		return false
	}
	return x.body == nil || x.body.sent()
}

// copyBody copies the body as it comes: what was read is on its way to the user
// before more is waited for.
func (x *exchange) copyBody(u *upstream, resp *http.Response) error {
	if resp.Body == http.NoBody {
		return nil
	}
	left := resp.ContentLength // negative: not known
	if left != 0 && u.br.Buffered() == 0 {
		if err := x.rc.Flush(); err != nil {
			return err
		}
	}
	box := getBuffer(left)
	defer func() { putBuffer(box) }()
	for {
		n, err := resp.Body.Read(*box)
		if n > 0 {
			if _, err := x.w.Write((*box)[:n]); err != nil {
				return err
			}
			left -= int64(n)
		}
		if errors.Is(err, io.EOF) {
			if left < 0 && len(resp.Trailer) > 0 {
				return x.rc.Flush() // else net/http gives a short body a length, and no trailers
			}
			return nil
		}
		if err != nil {
			return err
		}
		if left != 0 { // the server flushes by itself at the end
			if err := x.rc.Flush(); err != nil {
				return err
			}
		}
		box = grown(box, n)
	}
}

func (x *exchange) copyTrailer(h http.Header, resp *http.Response, announced int) {
	prefix := http.TrailerPrefix
	if len(resp.Trailer) == announced {
		prefix = ""
	}
	for name, values := range resp.Trailer {
		h[prefix+name] = values
	}
}

// hopByHop says whether a field is about one connection only (RFC 9110, 7.6.1).
// Te and Trailer are dealt with apart.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// copyHeader copies an answer's header by the rules.
func (x *exchange) copyHeader(h http.Header, resp *http.Response) {
	connection := resp.Header["Connection"]
	onlyUsual := len(connection) == 0 || len(connection) == 1 && usualConnection(connection[0])
	pathForm := x.route.Form == tunnels.PathForm
	for name, values := range resp.Header {
		if hopByHop(name) || !onlyUsual && listed(connection, name) {
			continue
		}
		switch name {
		case "Location", "Content-Location":
			values = x.each(values, x.publicURL)
		case "Refresh":
			values = x.each(values, x.publicRefresh)
		case "Set-Cookie":
			values = x.each(values, x.publicCookie)
		case "Access-Control-Allow-Origin":
			if x.local {
				values = x.each(values, x.publicAllowOrigin)
			}
		case "Service-Worker-Allowed", "Clear-Site-Data", "Alt-Svc", "Strict-Transport-Security":
			// They speak for the whole origin, which other tunnels share.
			if pathForm {
				continue
			}
		case "Cross-Origin-Opener-Policy":
			// In path form the console has the same origin: what cuts a page off from
			// the one that opened it is that only the console asks for it.
			if pathForm {
				continue
			}
		}
		h[name] = values
	}
	if _, ok := h["Referrer-Policy"]; !ok {
		h["Referrer-Policy"] = []string{"same-origin"} // the address is a secret
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // keeps net/http from guessing one
	}
	if x.setsFallbackCookie() {
		h["Set-Cookie"] = append(h["Set-Cookie"], x.fallbackCookie())
	}
}

func (x *exchange) each(values []string, f func(string) string) []string {
	for i, v := range values {
		values[i] = f(v) // the header was parsed for this exchange alone
	}
	return values
}

// setsFallbackCookie: only the opening of a page in a tab by its path form address
// chooses the tunnel of later absolute paths.
func (x *exchange) setsFallbackCookie() bool {
	if x.e.config.PathFallback != FallbackCookie || x.route.Form != tunnels.PathForm || x.absolute || x.r.Method != http.MethodGet {
		return false
	}
	if _, ok := x.r.Header["Sec-Fetch-Dest"]; ok {
		return isNavigation(x.r)
	}
	return strings.Contains(x.r.Header.Get("Accept"), "text/html")
}

func (x *exchange) fallbackCookie() string {
	c := fallbackCookie + "=" + strings.TrimPrefix(x.route.Prefix, tunnels.PathBase) + "; Path=/; HttpOnly; SameSite=Lax"
	if strings.HasPrefix(x.route.Origin, "https://") {
		c += "; Secure"
	}
	return c
}
