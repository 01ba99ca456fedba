// Package problems owns how a refusal of the relay is shown: as a page to a person whose
// browser opened the address, as the document of the interface to programs. Every door
// answers through it. It never decides what is refused, and a page of it loads nothing,
// runs nothing and repeats nothing of the request.
package problems

import (
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Answer answers a request to a tunnel's address with a problem.
func Answer(w http.ResponseWriter, r *http.Request, p *api.Problem, id ident.RequestID) {
	answer(w, r, page{problem: p, request: id})
}

// Link is a way on from a page, for what went wrong in several steps.
type Link struct{ Address, Text string }

// AnswerOwn is Answer at an address of the relay's own, from where the console can be
// reached: its page leads there, behind whatever else leads on.
func AnswerOwn(w http.ResponseWriter, r *http.Request, p *api.Problem, id ident.RequestID, on ...Link) {
	answer(w, r, page{problem: p, request: id, on: append(on, Link{api.ConsolePath, "To the console"})})
}

// AnswerOn is Answer with ways on from its page.
func AnswerOn(w http.ResponseWriter, r *http.Request, p *api.Problem, id ident.RequestID, on ...Link) {
	answer(w, r, page{problem: p, request: id, on: on})
}

// Form is what a person is asked for where a refusal is shown: one field, which goes back
// to where the page is from with what is gone on to.
type Form struct {
	Action, To           string // paths
	Field, Label, Button string
	Secret               bool // is not shown as it is typed
}

// AnswerForm is AnswerOn with a form, or without one where nothing that is sent helps.
func AnswerForm(w http.ResponseWriter, r *http.Request, p *api.Problem, id ident.RequestID, form *Form, on ...Link) {
	answer(w, r, page{problem: p, request: id, on: on, form: form, apart: true})
}

// Shown says whether a browser shows the answer to a request to a person.
func Shown(r *http.Request) bool { return shown(r) }

func answer(w http.ResponseWriter, r *http.Request, show page) {
	p := show.problem
	h := w.Header()
	h.Set("Referrer-Policy", "no-referrer") // addresses are secrets here
	h.Add("Vary", "Accept, Sec-Fetch-Mode")
	if !shown(r) {
		p.Write(w, show.request)
		return
	}
	p.SetHeader(h)
	h.Set("Content-Type", "text/html; charset=utf-8")
	if show.form != nil {
		// Without a referrer browsers would send what is typed as from nowhere ("null").
		h.Set("Referrer-Policy", "same-origin")
	}
	h.Set("Content-Security-Policy", policy(show.form != nil))
	// What a form sent is not asked for again as something else, and where a person is led
	// another way the same again does not help.
	show.reloads = r.Method != http.MethodPost && len(show.on) <= 1
	text := show.render()
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(text)) // the user may have left; there is nobody to tell
	}
}

// shown says whether a browser shows the answer to a person. What a page's script
// fetches is not shown: browsers say which it is with Sec-Fetch-Mode, on https and on
// this machine. Elsewhere it goes by what is asked for; fetch() asks for anything.
func shown(r *http.Request) bool {
	for _, line := range r.Header["Connection"] {
		for token := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "Upgrade") {
				return false
			}
		}
	}
	mode := r.Header.Get("Sec-Fetch-Mode")
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if mode != "" && mode != "navigate" {
			return false
		}
	case http.MethodPost: // of a form
		if mode != "navigate" && (mode != "" || !ofForm(r.Header.Get("Content-Type"))) {
			return false
		}
	default: // nothing that a person does in a browser
		return false
	}
	return prefersHTML(r.Header["Accept"])
}

// ofForm says whether a page's form sends a body of this type.
func ofForm(contentType string) bool {
	kind, _, _ := mime.ParseMediaType(contentType)
	return kind == "application/x-www-form-urlencoded" || kind == "multipart/form-data" || kind == "text/plain"
}

// prefersHTML reads Accept (RFC 9110, section 12.5.1): HTML is named, and JSON is not
// preferred to it. Of two that are equal the first counts. Whoever takes anything is a
// program.
func prefersHTML(values []string) bool {
	best, most := "", 0.0
	for item := range strings.SplitSeq(strings.Join(values, ","), ",") {
		kind, parameters, err := mime.ParseMediaType(item)
		if err != nil || kind != "text/html" && kind != "application/json" && kind != api.ProblemContentType {
			continue
		}
		weight := 1.0
		if q, ok := parameters["q"]; ok {
			if weight, err = strconv.ParseFloat(q, 64); err != nil {
				continue
			}
		}
		if weight > most {
			best, most = kind, weight
		}
	}
	return best == "text/html"
}
