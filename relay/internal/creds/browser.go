package creds

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// browserLife is how long a page's bearer is taken. Its end ends nothing: what the page
// opened with it lives as long as the sign-in.
const browserLife = 10 * time.Minute

// BrowserToken makes the bearer of a page whose browser is signed in, and says when to
// ask for another one. It is no record: any relay of the pool knows its own by the
// cluster key, and looks the sign-in up. The hash in it is of the browser's secret, and
// opens nothing.
func (a *Authenticator) BrowserToken(rec store.SignInRecord, now time.Time) (ident.Secret, time.Time) {
	expires := now.Add(browserLife)
	for _, end := range []time.Time{rec.ExpiresAt, rec.EndsAt} {
		if end.Before(expires) {
			expires = end
		}
	}
	expires = expires.UTC().Truncate(time.Second)
	claim := rec.Hash + "-" + strconv.FormatInt(expires.Unix(), 10)
	return ident.Secret(ident.PrefixBrowser + claim + "-" + a.signBrowser(claim)), expires
}

func (a *Authenticator) signBrowser(claim string) string {
	mac := hmac.New(sha256.New, a.cfg.Key[:])
	fmt.Fprintf(mac, "browser-bearer\n%s", claim)
	return hex.EncodeToString(mac.Sum(nil))
}

// readBrowser returns the hash of the sign-in that a bearer is for, if it is of this pool.
func (a *Authenticator) readBrowser(secret ident.Secret) (hash string, expires time.Time, ok bool) {
	text := strings.TrimPrefix(secret.Reveal(), ident.PrefixBrowser)
	i := strings.LastIndexByte(text, '-')
	if i < 0 || a.cfg.Key == (ident.ClusterKey{}) {
		return "", expires, false
	}
	claim, signature := text[:i], text[i+1:]
	if !hmac.Equal([]byte(signature), []byte(a.signBrowser(claim))) {
		return "", expires, false
	}
	hash, end, _ := strings.Cut(claim, "-")
	seconds, err := strconv.ParseInt(end, 10, 64)
	return hash, time.Unix(seconds, 0), err == nil
}

// browser authenticates a page by its bearer.
func (a *Authenticator) browser(r *http.Request, secret ident.Secret, anyTeam bool) (Principal, *refusal) {
	hash, expires, ok := a.readBrowser(secret)
	if !ok {
		return Principal{}, invalid(outcomeSignature, "the page's bearer is not complete, or was made with another cluster key")
	}
	now := time.Now()
	if !now.Before(expires) {
		return Principal{}, invalid(outcomeExpired, "the page's bearer has expired: POST /auth/token gives it another one while its browser is signed in")
	}
	rec, ok := a.cfg.Store.SignIn(hash)
	if !ok {
		refused := a.misses.settle(r.Context(), hash, a.cfg.ClientAddr(r), signedOut(), func() bool {
			rec, ok = a.cfg.Store.SignIn(hash)
			return ok
		})
		if refused != nil {
			return Principal{}, refused
		}
	}
	if refused := a.signedIn(rec, now); refused != nil {
		return Principal{}, refused
	}
	if a.cfg.Store.Status().Stale {
		return Principal{}, unavailable(api.StoreUnavailable("this relay has not heard from its store for a while, so the person may have signed out since: try again, or another relay", nil))
	}
	return a.person(r, Principal{User: rec.User, SignIn: hash, ExpiresAt: rec.EndsAt, unsaid: a.oidc.unsaid}, anyTeam)
}

// person makes the principal of somebody who is signed in or has an issuer's token, in
// the team that the request asks for.
func (a *Authenticator) person(r *http.Request, p Principal, anyTeam bool) (Principal, *refusal) {
	p.Kind, p.Name = KindUser, "user:"+string(p.User)
	team, refused := requestedTeam(r.Header)
	if refused != nil {
		if anyTeam && refused.outcome == outcomeTeamRequired {
			return p, nil
		}
		return Principal{}, refused
	}
	p.Team = team
	if p.Role, _ = a.roleOf(p); p.Role == "" {
		return Principal{}, teamProblem(outcomeNotMember, api.CodeNotAMember, "you are not a member of the team in X-Team-ID")
	}
	return p, nil
}
