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
	x.copyHeader(h, resp.Header)
	announced := len(resp.Trailer)
	if announced > 0 {
		names := make([]string, 0, announced)
		for name := range resp.Trailer {
			if x.passes(name) {
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			h["Trailer"] = []string{strings.Join(names, ", ")}
		}
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
			x.idle.put(u)
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
	kept := make(http.Header, len(resp.Trailer))
	x.copyFields(kept, resp.Trailer)
	for name, values := range kept {
		h[prefix+name] = values
	}
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
