package problems

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"html"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// style is all the decoration of a page.
const style = `:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;margin:0;min-height:100vh;display:grid;place-items:center;background:#f6f7f9;color:#1c2024}
main{max-width:34rem;padding:2rem}
h1{font-size:1.4rem;margin:0 0 .5rem}
p{margin:.5rem 0;overflow-wrap:anywhere}
a{color:#1d4ed8}
ol{list-style:none;display:flex;flex-wrap:wrap;gap:.5rem;padding:0;margin:1.25rem 0}
li{padding:.15rem .7rem;border:1px solid #c9ced6;border-radius:1rem;font-size:.85rem;color:#5a6472}
li[aria-current]{border-color:#c2410c;color:#c2410c;font-weight:600}
small{color:#5a6472}
form{margin:1.25rem 0}
input,button{font:inherit;padding:.3rem .6rem}
@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e8eb}a{color:#93b4ff}li{border-color:#3a424c;color:#9aa4b0}li[aria-current]{border-color:#fb923c;color:#fb923c}small{color:#9aa4b0}}`

// policy is the Content-Security-Policy of a page.
func policy(form bool) string {
	action := "'none'"
	if form {
		action = "'self'"
	}
	sum := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action " + action + "; frame-ancestors 'none'"
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
	api.CodeViewerDisconnected: "You were disconnected",
	api.CodeCrossOrigin:        "Refused for your safety",
	api.CodeTooManyRequests:    "Too much at once",
	api.CodeMemoryShort:        "The relay is busy",
	api.CodeRelayDraining:      "The relay is restarting",

	api.CodeAccessDenied: "You may not use this tunnel",
	api.CodePINRequired:  "This tunnel asks for a PIN",
	api.CodePINLocked:    "Too many wrong PINs",
	api.CodeKnockWaiting: "Somebody has to let you in",

	api.CodeNotFound:          "Nothing is here",
	api.CodeMethodNotAllowed:  "This address is for programs",
	api.CodeUpgradeRequired:   "This is for programs",
	api.CodeUnauthenticated:   "This address is for programs",
	api.CodeEnrollmentRefused: "This address is for machines",
	api.CodeForbidden:         "You may not do this",
	api.CodeNotAMember:        "You are in no such team",
	api.CodeRoleRequired:      "Your role does not reach for this",
	api.CodeNotSignedIn:       "You are not signed in",
	api.CodeSignInOff:         "There is no such way to sign in",
	api.CodeTooManyTries:      "Too many tries",
	api.CodeStoreUnavailable:  "The relay cannot reach its store just now",
	api.CodeIssuerUnavailable: "The sign-in service does not answer",
	api.CodeInternal:          "The relay could not do this",
}

// forPeople is said instead of a detail that only programs can follow.
var forPeople = map[api.Code]string{
	api.CodeUnauthenticated: "programs show a secret here; people use the console, where they sign in",
}

// hops are the way from the reader of a page to the app.
var hops = []struct {
	hop  api.Hop
	name string
}{{api.HopRelay, "relay"}, {api.HopLink, "link"}, {api.HopAgent, "machine"}, {api.HopApp, "app"}}

// page is a problem as people see it.
type page struct {
	problem *api.Problem
	request ident.RequestID
	on      []Link // at an address of the relay's own
	form    *Form
	apart   bool // it is no failure on the way to the app
	reloads bool
}

// render needs no template: a few texts, each escaped.
func (p page) render() string {
	title := html.EscapeString(titles[p.problem.Code])
	if title == "" {
		title = html.EscapeString(p.problem.Title)
	}
	retry := p.problem.RetrySeconds()
	var b strings.Builder
	b.Grow(len(style) + 1500)
	b.WriteString("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n")
	if retry > 0 && p.reloads {
		b.WriteString(`<meta http-equiv="refresh" content="` + strconv.Itoa(retry) + "\">\n")
	}
	b.WriteString("<title>" + title + "</title>\n<style>" + style + "</style></head>\n<body><main><h1>" + title + "</h1>\n")
	if detail := cmp.Or(forPeople[p.problem.Code], p.problem.Detail); detail != "" {
		b.WriteString("<p>" + html.EscapeString(sentence(detail)) + "</p>\n")
	}
	p.form.render(&b)
	switch {
	case len(p.on) > 0:
		b.WriteString("<p>")
		for i, link := range p.on {
			if i > 0 {
				b.WriteString(" · ")
			}
			b.WriteString(`<a href="` + html.EscapeString(link.Address) + `">` + html.EscapeString(link.Text) + "</a>")
		}
		b.WriteString("</p>\n")
	case p.problem.Hop != "" && !p.apart:
		b.WriteString(`<ol aria-label="where it stopped"><li>you</li>`)
		for _, h := range hops {
			mark := ""
			if h.hop == p.problem.Hop {
				mark = ` aria-current="step"`
			}
			b.WriteString("<li" + mark + ">" + h.name + "</li>")
		}
		b.WriteString("</ol>\n")
	}
	switch {
	case retry > 0 && p.reloads:
		b.WriteString("<p>This page reloads by itself.</p>\n")
	case retry > 0:
		b.WriteString("<p>Try again in " + strconv.Itoa(retry) + " s.</p>\n")
	}
	b.WriteString("<small>" + strconv.Itoa(p.problem.Status) + " " + html.EscapeString(string(p.problem.Code)))
	if len(p.on) > 0 {
		b.WriteString(" · from the relay")
	}
	b.WriteString(" · request " + html.EscapeString(string(p.request)) + "</small></main></body></html>\n")
	return b.String()
}

// render shows the form, if there is one.
func (f *Form) render(b *strings.Builder) {
	if f == nil {
		return
	}
	kind := `type="text" autocomplete="name"`
	if f.Secret {
		kind = `type="password" autocomplete="off"`
	}
	e := html.EscapeString
	b.WriteString(`<form method="post" action="` + e(f.Action) + `"><input type="hidden" name="to" value="` + e(f.To) + `"><label>` + e(f.Label) +
		` <input name="` + e(f.Field) + `" ` + kind + ` maxlength="64" required autofocus></label> <button>` + e(f.Button) + "</button></form>\n")
}

// sentence makes a detail, which begins in lower case, one.
func sentence(s string) string {
	first, size := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(first)) + s[size:] + "."
}
