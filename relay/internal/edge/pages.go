package edge

import (
	"crypto/sha256"
	"encoding/base64"
	"html"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
)

// pageStyle is all the decoration of an error page; no page loads anything.
const pageStyle = `:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;margin:0;min-height:100vh;display:grid;place-items:center;background:#f6f7f9;color:#1c2024}
main{max-width:34rem;padding:2rem}
h1{font-size:1.4rem;margin:0 0 .5rem}
p{margin:.5rem 0}
ol{list-style:none;display:flex;flex-wrap:wrap;gap:.5rem;padding:0;margin:1.25rem 0}
li{padding:.15rem .7rem;border:1px solid #c9ced6;border-radius:1rem;font-size:.85rem;color:#5a6472}
li[aria-current]{border-color:#c2410c;color:#c2410c;font-weight:600}
small{color:#5a6472}
@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e8eb}li{border-color:#3a424c;color:#9aa4b0}li[aria-current]{border-color:#fb923c;color:#fb923c}small{color:#9aa4b0}}`

// pages writes problems for people.
type pages struct{ policy string }

func newPages() *pages {
	sum := sha256.Sum256([]byte(pageStyle))
	return &pages{policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
}

// titles are for people; problems without one show their status.
var titles = map[api.Code]string{
	api.CodeTunnelNotFound:     "There is no tunnel here",
	api.CodeAgentOffline:       "The machine is not connected just now",
	api.CodeAgentPaused:        "The machine is paused",
	api.CodeAgentOverloaded:    "The machine is busy",
	api.CodeAgentUnaware:       "The tunnel is not ready yet",
	api.CodeAppRefused:         "The app is not running",
	api.CodeAppTimeout:         "The app does not answer",
	api.CodeAppClosed:          "The app hung up",
	api.CodeAppNotHTTP:         "This is not a web app",
	api.CodeLinkLost:           "The connection was lost",
	api.CodePortNotAllowed:     "This port is not allowed",
	api.CodeUpgradeRequired:    "This tunnel is for programs",
	api.CodeViewerDisconnected: "You were disconnected",
	api.CodeCrossOrigin:        "Refused for your safety",
	api.CodeTooManyRequests:    "Too much at once",
	api.CodeMemoryShort:        "The relay is busy",
	api.CodeRelayDraining:      "The relay is restarting",
}

// hops are the way from the reader of the page to the app.
var hops = []struct {
	hop  api.Hop
	name string
}{{api.HopRelay, "relay"}, {api.HopLink, "link"}, {api.HopAgent, "machine"}, {api.HopApp, "app"}}

// problem answers with a problem: a page for browsers, JSON for others.
func (x *exchange) problem(p *api.Problem) {
	h := x.w.Header()
	if x.r.ProtoMajor == 1 && (x.bodyOpen() || x.guard.wasCut()) {
		h.Set("Connection", "close")
	}
	h.Set("Referrer-Policy", "no-referrer")
	h.Add("Vary", "Accept")
	x.status = p.Status
	x.e.metrics.problem(p)
	if !wantsPage(x.r) {
		p.Write(x.w, x.id)
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", x.e.pages.policy)
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(retrySeconds(p)))
	}
	page := renderPage(p, string(x.id))
	h.Set("Content-Length", strconv.Itoa(len(page)))
	x.w.WriteHeader(p.Status)
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write([]byte(page)) // the user may have left; there is nobody to tell
	}
}

// wantsPage says whether a browser shows the answer to a person.
func wantsPage(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && !listed(r.Header["Connection"], "Upgrade") &&
		strings.Contains(r.Header.Get("Accept"), "text/html")
}

func retrySeconds(p *api.Problem) int {
	return max(1, int(p.RetryAfter.D().Round(time.Second)/time.Second))
}

// renderPage needs no template: four texts, each escaped.
func renderPage(p *api.Problem, request string) string {
	title := titles[p.Code]
	if title == "" {
		title = p.Title
	}
	var b strings.Builder
	b.Grow(len(pageStyle) + 1500)
	b.WriteString("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n")
	if p.RetryAfter > 0 {
		b.WriteString(`<meta http-equiv="refresh" content="` + strconv.Itoa(retrySeconds(p)) + "\">\n")
	}
	b.WriteString("<title>" + html.EscapeString(title) + "</title>\n<style>" + pageStyle + "</style></head>\n<body><main><h1>" +
		html.EscapeString(title) + "</h1>\n<p>" + html.EscapeString(sentence(p.Detail)) + "</p>\n")
	if p.Hop != "" {
		b.WriteString(`<ol aria-label="where it stopped"><li>you</li>`)
		for _, h := range hops {
			mark := ""
			if h.hop == p.Hop {
				mark = ` aria-current="step"`
			}
			b.WriteString("<li" + mark + ">" + h.name + "</li>")
		}
		b.WriteString("</ol>\n")
	}
	if p.RetryAfter > 0 {
		b.WriteString("<p>This page reloads by itself.</p>\n")
	}
	b.WriteString("<small>" + strconv.Itoa(p.Status) + " " + html.EscapeString(string(p.Code)) + " · request " + html.EscapeString(request) + "</small></main></body></html>\n")
	return b.String()
}

// sentence makes a detail, which begins in lower case, one.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}
