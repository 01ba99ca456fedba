package signin

import (
	"net/http"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// Names of cookies, without the prefix that a secure origin's have.
const (
	cookieSignIn  = "adit"
	cookieLogin   = "adit-login-" // and the attempt's id
	cookieBrowser = "adit-browser"
)

// cookies are those of this package. On https their names begin with __Host-, so that no
// sibling's page can set them; on plain http, which is for loopback alone, browsers
// refuse that prefix.
type cookies struct{ secure bool }

func (c cookies) name(s string) string {
	switch {
	case c.secure:
		return "__Host-" + s
	case s == cookieSignIn:
		return "adit-sign-in"
	}
	return s
}

func (c cookies) set(w http.ResponseWriter, name, value string, lives time.Duration) {
	http.SetCookie(w, &http.Cookie{
		Name: c.name(name), Value: value, Path: "/", MaxAge: max(1, int(lives/time.Second)), HttpOnly: true, Secure: c.secure,
		SameSite: http.SameSiteLaxMode, // the issuer's redirect, a navigation from elsewhere, brings them along
	})
}

func (c cookies) clear(w http.ResponseWriter, name string) {
	http.SetCookie(w, &http.Cookie{Name: c.name(name), Path: "/", MaxAge: -1, HttpOnly: true, Secure: c.secure, SameSite: http.SameSiteLaxMode})
}

// get returns the one cookie of a name. Of two, one was tossed by somebody else, and
// nobody can tell which.
func (c cookies) get(r *http.Request, name string) (string, bool) {
	found := r.CookiesNamed(c.name(name))
	if len(found) != 1 {
		return "", false
	}
	return found[0].Value, true
}

// signIn returns the secret of a browser that may be signed in.
func (c cookies) signIn(r *http.Request) (ident.Secret, bool) {
	value, ok := c.get(r, cookieSignIn)
	if !ok || len(value) != len(ident.PrefixSignIn)+40 || !strings.HasPrefix(value, ident.PrefixSignIn) {
		return "", false
	}
	return ident.Secret(value), true
}

func (c cookies) setSignIn(w http.ResponseWriter, secret ident.Secret, lives time.Duration) {
	c.set(w, cookieSignIn, secret.Reveal(), lives)
}

// logins are the ids of the attempts to sign in that the browser has begun.
func (c cookies) logins(r *http.Request) []string {
	var ids []string
	for _, cookie := range r.Cookies() {
		if id, ok := strings.CutPrefix(cookie.Name, c.name(cookieLogin)); ok {
			ids = append(ids, id)
		}
	}
	return ids
}
