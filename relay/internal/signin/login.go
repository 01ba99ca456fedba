package signin

import (
	"cmp"
	"crypto/subtle"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	loginTime   = 10 * time.Minute // from the first step to the last
	maxAttempts = 5                // that a browser has begun at once, in as many tabs
	maxReturn   = 256
	home        = api.ConsolePath
)

// attempt is one sign-in with the issuer that has begun. It is sealed into a cookie: the
// browser that began it, and no other, can end it, once.
type attempt struct {
	State    string    `json:"state"`
	Nonce    string    `json:"nonce"`
	Verifier string    `json:"verifier"` // PKCE
	ReturnTo string    `json:"return_to"`
	Ends     time.Time `json:"ends"`
}

// login sends the browser to the issuer.
func (d *Door) login(w http.ResponseWriter, r *http.Request) {
	back := returnTo(r.URL.Query().Get("return_to"))
	if !d.atHome(r) { // the cookie would be another host's than the callback's
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, d.cfg.Origin+loginPath+"?return_to="+url.QueryEscape(back), http.StatusTemporaryRedirect)
		return
	}
	if p := d.visit(r); p != nil {
		d.page(w, r, p, back)
		return
	}
	if d.issuer == nil {
		d.page(w, r, api.NewProblem(api.CodeSignInOff, "nobody signs in here by an issuer: open an invitation's address, or sign in with a passkey in the console"), back)
		return
	}
	known, err := d.issuer.discover(r.Context())
	if err != nil {
		d.page(w, r, problemOf(err), back)
		return
	}
	client, err := d.issuer.oauth(known)
	if err != nil {
		d.page(w, r, problemOf(err), back)
		return
	}
	id := ident.NewSecret("")[:12].Reveal()
	a := attempt{
		State: id + "." + ident.NewSecret("").Reveal(), Nonce: ident.NewSecret("").Reveal(), Verifier: oauth2.GenerateVerifier(),
		ReturnTo: back, Ends: d.cfg.Now().Add(loginTime),
	}
	sealed, err := d.seals.seal(sealLogin, a)
	if err != nil {
		d.page(w, r, api.Internal(err), back)
		return
	}
	d.forgetAttempts(w, r)
	d.cookies.set(w, cookieLogin+id, sealed, loginTime)
	secure(w.Header())
	http.Redirect(w, r, client.AuthCodeURL(a.State, oidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier)), http.StatusFound)
}

// forgetAttempts makes room for one more: those that nobody ended go, the oldest first.
func (d *Door) forgetAttempts(w http.ResponseWriter, r *http.Request) {
	ids := d.cookies.logins(r)
	if len(ids) < maxAttempts {
		return
	}
	ends := map[string]time.Time{}
	for _, id := range ids {
		a, _ := d.attempt(r, id) // what is no attempt goes first
		ends[id] = a.Ends
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Or(ends[a].Compare(ends[b]), cmp.Compare(a, b)) })
	for _, id := range ids[:len(ids)-maxAttempts+1] {
		d.cookies.clear(w, cookieLogin+id)
	}
}

// attempt reads one that this browser has begun and that has not ended.
func (d *Door) attempt(r *http.Request, id string) (attempt, bool) {
	var a attempt
	value, ok := d.cookies.get(r, cookieLogin+id)
	if !ok || !d.seals.open(sealLogin, value, &a) || !d.cfg.Now().Before(a.Ends) {
		return attempt{}, false
	}
	return a, true
}

// errorCode is what an issuer's error may look like to be shown (RFC 6749, 4.1.2.1).
var errorCode = regexp.MustCompile(`^[a-z_]{1,40}$`)

// callback is where the issuer sends the browser back to.
func (d *Door) callback(w http.ResponseWriter, r *http.Request) {
	back, err := d.finish(w, r)
	if err != nil {
		d.page(w, r, problemOf(err), back)
		return
	}
	secure(w.Header())
	http.Redirect(w, r, back, http.StatusSeeOther)
}

// finish ends an attempt. It returns where the browser wanted to go.
func (d *Door) finish(w http.ResponseWriter, r *http.Request) (back string, _ error) {
	if p := d.visit(r); p != nil {
		return home, p
	}
	if d.issuer == nil {
		return home, api.NewProblem(api.CodeSignInOff, "nobody signs in here by an issuer")
	}
	q := r.URL.Query()
	state := q.Get("state")
	id, _, _ := strings.Cut(state, ".")
	a, ok := d.attempt(r, id)
	if !ok || subtle.ConstantTimeCompare([]byte(a.State), []byte(state)) != 1 {
		if _, in := d.signedIn(r); in && d.atHome(r) {
			return home, nil // back in the browser's history
		}
		return home, api.NewProblem(api.CodeNotSignedIn, "this attempt to sign in was begun in another browser, was used already, or took longer than 10 minutes: begin again")
	}
	d.cookies.clear(w, cookieLogin+id) // once, whatever comes of it
	if failed := q.Get("error"); failed != "" {
		return a.ReturnTo, d.declined(failed)
	}
	if iss := q.Get("iss"); iss != "" && iss != d.cfg.Issuer.URL { // RFC 9207
		return a.ReturnTo, d.issuer.unfit(errors.New("the answer names another issuer: its iss differs"))
	}
	if !d.limits.exchange() {
		return a.ReturnTo, api.NewProblem(api.CodeTooManyTries, "too many people sign in at once: begin again in a moment").WithRetry(retryAfter)
	}
	p, err := d.issuer.exchange(r.Context(), q.Get("code"), a)
	if err != nil {
		return a.ReturnTo, err
	}
	if err := d.welcome(w, r, p, a.ReturnTo); err != nil {
		return a.ReturnTo, err
	}
	d.metrics.count(methodIssuer, resultOK)
	return a.ReturnTo, nil
}

// declined says that the issuer did not let the person through.
func (d *Door) declined(code string) *api.Problem {
	switch {
	case code == "access_denied":
		return api.Problemf(api.CodeNotSignedIn, "%s did not let you in, or you did not agree that it tells this relay who you are: begin again to be asked anew", d.issuer.name)
	case code == "temporarily_unavailable" || code == "server_error":
		return d.issuer.away(nil)
	case !errorCode.MatchString(code):
		code = "an error"
	}
	return api.Problemf(api.CodeNotSignedIn, "%s answered %s: begin again; if that does not help, ask who runs it", d.issuer.name, code)
}

// welcome signs a person in whom the issuer vouches for, if they are in a team, or on
// their way to a tunnel that they are named for.
func (d *Door) welcome(w http.ResponseWriter, r *http.Request, p person, back string) error {
	teams, err := d.cfg.Creds.IssuerTeams(p.claims)
	if err == nil && len(teams) == 0 {
		more, failed := p.more(r.Context())
		if failed != nil {
			return failed
		}
		if more != nil {
			said := p.groups
			p.claims = more
			p.describe(d.issuer.cfg.Groups)
			if len(p.groups) == 0 {
				p.groups = said
			}
			teams, err = d.cfg.Creds.IssuerTeams(more)
		}
	}
	if err != nil {
		return d.issuer.unfit(err)
	}
	in := len(d.cfg.Creds.TeamsOfSignIn(store.SignInRecord{User: p.id, Teams: teams})) > 0
	in = in || d.expected(back, p)
	// Of somebody known, what the issuer says no more is to be forgotten. Of strangers
	// nothing is kept: an issuer may know any number of people.
	if _, known := d.cfg.Store.User(p.id); known || in {
		if err := d.cfg.People.Known(r.Context(), p.id, p.name, p.email, teams); err != nil {
			return err
		}
	}
	if !in {
		return api.Problemf(api.CodeNotAMember, "you are %s, and in no team of this relay: ask for an invitation, or to be put into a team at %s, then begin again", cmp.Or(p.name, string(p.id)), d.issuer.name)
	}
	if err := d.enter(w, r, p.id, methodIssuer, teams, p.groups); err != nil {
		return err
	}
	return d.cfg.People.Groups(r.Context(), p.id, p.groups) // of the other browsers too
}

// returnTo is where a browser goes after it has signed in: a page of the relay's own,
// whatever was asked for.
func returnTo(asked string) string {
	if asked, ok := strings.CutPrefix(asked, passPath+"?t="); ok && len(asked) <= maxAsk && askText.MatchString(asked) {
		return passPath + "?t=" + asked
	}
	if len(asked) > maxReturn || strings.ContainsFunc(asked, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '\\' }) {
		return home
	}
	u, err := url.Parse(asked)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" || u.RawPath != "" || strings.Contains(u.Path, "..") || strings.Contains(u.Path, "//") {
		return home
	}
	if u.Path == home || u.Path == "/desktop/pair" || strings.HasPrefix(u.Path, "/terminal/") {
		return u.String()
	}
	return home
}
