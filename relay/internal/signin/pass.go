package signin

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// maxAsk bounds what a tunnel's address sends a browser with: the cookie of an attempt to
// sign in has to hold it.
const maxAsk = 2400

// askText is what that is made of.
var askText = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// pass sends a browser back to the tunnel that sent it here, with a code, once somebody is
// signed in with it who may use the tunnel.
func (d *Door) pass(w http.ResponseWriter, r *http.Request) {
	secure(w.Header())
	if p := d.limits.passes.take(d.cfg.Remote(r)); p != nil {
		d.turned(w, r, p)
		return
	}
	ask := r.URL.Query().Get("t")
	if len(ask) > maxAsk || !askText.MatchString(ask) {
		d.turned(w, r, api.NewProblem(api.CodeAccessRequired, "this is no way to a tunnel: open the tunnel's address again"))
		return
	}
	if p := d.cfg.Passes.Begun(ask); p != nil {
		d.turned(w, r, p)
		return
	}
	rec, in := d.signedIn(r)
	if !in || !d.atHome(r) {
		http.Redirect(w, r, d.cfg.Origin+home+"?return_to="+url.QueryEscape(passPath+"?t="+ask), http.StatusSeeOther)
		return
	}
	rec, err := d.cfg.People.Renew(r.Context(), rec)
	if err == nil {
		if secret, ok := d.cookies.signIn(r); ok {
			d.cookies.setSignIn(w, secret, rec.ExpiresAt.Sub(d.cfg.Now()))
		}
		var to string
		if to, err = d.cfg.Passes.Grant(r.Context(), ask, rec.Hash, d.cfg.Remote(r)); err == nil {
			http.Redirect(w, r, to, http.StatusSeeOther)
			return
		}
	}
	d.turned(w, r, problemOf(err))
}

// turned says to a person why they do not come to the tunnel.
func (d *Door) turned(w http.ResponseWriter, r *http.Request, p *api.Problem) {
	id := ident.NewRequestID()
	d.refused(r, "", p, id)
	problems.AnswerOwn(w, r, p, id)
}

// expected says whether a person is on their way to a tunnel that they are named for.
func (d *Door) expected(back string, p person) bool {
	ask, ok := strings.CutPrefix(back, passPath+"?t=")
	return ok && d.cfg.Passes.Expects(ask, p.id, p.email, p.groups)
}
