package signin

import (
	"net/http"
	"net/url"

	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// page tells a person what went wrong at the issuer's, and how to go on.
func (d *Door) page(w http.ResponseWriter, r *http.Request, p *api.Problem, back string) {
	id := ident.NewRequestID()
	d.refused(r, methodIssuer, p, id)
	if p.Code == api.CodeUnauthenticated { // of the issuer's answer; this person showed none
		p = api.NewProblem(api.CodeNotSignedIn, p.Detail)
	}
	if d.issuer == nil {
		problems.AnswerOwn(w, r, p, id)
		return
	}
	problems.AnswerOwn(w, r, p, id, problems.Link{Address: loginPath + "?return_to=" + url.QueryEscape(back), Text: "Begin again"})
}

// secure keeps an answer out of caches, and its address, which may hold a code, out of
// what the browser tells the next page.
func secure(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
}
