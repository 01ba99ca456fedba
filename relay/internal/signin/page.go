package signin

import (
	"crypto/sha256"
	"encoding/base64"
	"html"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// pageStyle is all the decoration of a page; it loads nothing.
const pageStyle = `:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;margin:0;min-height:100vh;display:grid;place-items:center;background:#f6f7f9;color:#1c2024}
main{max-width:34rem;padding:2rem}
h1{font-size:1.4rem;margin:0 0 .5rem}
a{color:#9a3412}
small{color:#5a6472}
@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e8eb}a{color:#fb923c}small{color:#9aa4b0}}`

func pagePolicy() string {
	sum := sha256.Sum256([]byte(pageStyle))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

// titles are for people.
var titles = map[api.Code]string{
	api.CodeNotSignedIn:       "You are not signed in",
	api.CodeUnauthenticated:   "You are not signed in",
	api.CodeNotAMember:        "You are in no team here",
	api.CodeIssuerUnavailable: "Signing in does not work just now",
	api.CodeTooManyTries:      "Too many tries",
	api.CodeSignInOff:         "There is no such way to sign in",
}

// page tells a person what went wrong at the issuer's, and how to go on.
func (d *Door) page(w http.ResponseWriter, r *http.Request, p *api.Problem, back string) {
	id := ident.NewRequestID()
	d.refused(r, methodIssuer, p, id)
	title := titles[p.Code]
	if title == "" {
		title = p.Title
	}
	again := `<a href="` + html.EscapeString(loginPath+"?return_to="+url.QueryEscape(back)) + `">Begin again</a> · `
	if d.issuer == nil {
		again = ""
	}
	body := "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n" +
		"<title>" + html.EscapeString(title) + "</title>\n<style>" + pageStyle + "</style></head>\n<body><main><h1>" + html.EscapeString(title) + "</h1>\n<p>" +
		html.EscapeString(sentence(p.Detail)) + "</p>\n<p>" + again + `<a href="` + home + "\">To the console</a></p>\n<small>" +
		strconv.Itoa(p.Status) + " " + html.EscapeString(string(p.Code)) + " · request " + html.EscapeString(string(id)) + "</small></main></body></html>\n"
	h := w.Header()
	secure(h)
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy())
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(max(1, int(p.RetryAfter.D().Seconds()))))
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write([]byte(body)) // the reader may be gone
}

// secure keeps an answer out of caches, and its address, which may hold a code, out of
// what the browser tells the next page.
func secure(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
}

// sentence makes a detail, which begins in lower case, one.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}
