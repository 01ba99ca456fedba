package access

import (
	"context"
	"errors"
	"net/netip"
	"net/url"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// The way to a pass: the tunnel's address sends a browser to the relay's own pages with
// an ask (Ask); there it turns out who is signed in with it (Grant), and the browser
// comes back with a code that is good once, for half a minute, in that browser (Redeem).
const (
	askTime  = 10 * time.Minute // to sign in
	codeTime = 30 * time.Second
	maxPath  = 1 << 10 // that is come back to; a longer one is not remembered
)

// PassPath is where a browser comes back to, on the tunnel's address. It is the relay's
// only where the tunnel has a rule.
const PassPath = "/_adit/pass"

// Nonce makes what binds a way to a pass to the browser that began it.
func Nonce() ident.Secret { return ident.Secret(random()) }

// ask is what a browser brings to the relay's own pages.
type ask struct {
	Session ident.SessionID `json:"t"`
	Link    ident.LinkID    `json:"l,omitempty"`
	At      string          `json:"a"` // the tunnel's address, without the slash at its end
	Path    string          `json:"p"` // that was asked for, with its query, as the browser knows it
	Nonce   string          `json:"n"` // hash of what the browser has at the tunnel's address
	Ends    time.Time       `json:"e"`
}

// code is what it comes back with.
type code struct {
	ask

	SignIn string `json:"s"`
}

// Ask seals what a browser came for. at is the tunnel's address without the slash at its
// end, path what was asked for within its origin.
func (a *Access) Ask(req Request, at, path string, nonce ident.Secret) string {
	k := ask{Session: req.Tunnel.Session, At: at, Path: path, Nonce: nonce.Hash(), Ends: a.cfg.Now().Add(askTime).UTC().Truncate(time.Second)}
	if req.Link != nil {
		k.Link = req.Link.ID
	}
	if len(k.Path) > maxPath {
		u, err := url.Parse(at)
		if err != nil {
			u = &url.URL{}
		}
		k.Path = u.Path + "/"
	}
	return a.seals.seal(purposeAsk, k)
}

// find opens an ask, and finds what it is for.
func (a *Access) find(sealed string) (k ask, t store.TunnelRecord, l *store.LinkRecord, _ *api.Problem) {
	if len(sealed) > maxSealed || !a.seals.open(purposeAsk, sealed, &k) || !a.cfg.Now().Before(k.Ends) {
		return k, t, nil, api.NewProblem(api.CodeAccessRequired, "this way to the tunnel was begun more than 10 minutes ago: open the tunnel's address again")
	}
	t, l, ok := a.address(k.Session, k.Link)
	if !ok {
		return k, t, nil, api.NewProblem(api.CodeTunnelNotFound, "the tunnel is closed, or its link was taken back; ask whoever sent it for a new one")
	}
	return k, t, l, nil
}

func (a *Access) address(session ident.SessionID, link ident.LinkID) (t store.TunnelRecord, l *store.LinkRecord, ok bool) {
	if link != "" {
		found, ok := a.cfg.Store.Link(link)
		if !ok || found.Session != session {
			return t, nil, false
		}
		l = &found
	}
	t, ok = a.cfg.Store.Tunnel(session)
	return t, l, ok
}

// Begun says why nobody can go on with an ask; nil: they can.
func (a *Access) Begun(sealed string) *api.Problem {
	_, _, _, p := a.find(sealed)
	return p
}

// Expects says whether an ask is for a tunnel that somebody is named for, whatever team
// they are in, if any.
func (a *Access) Expects(sealed string, user ident.UserID, email string, groups []string) bool {
	_, t, l, p := a.find(sealed)
	if p != nil {
		return false
	}
	rule := RuleOf(&t, l)
	return rule != nil && rule.Mode == api.AccessPeople && named(rule.People, Viewer{User: user, Email: email, Groups: groups})
}

// Grant says where to send a browser that is signed in: back, with a code, if its person
// may use the tunnel. The error is a *api.Problem that says as whom they may not.
func (a *Access) Grant(ctx context.Context, sealed, signIn, remote string) (string, error) {
	k, t, l, p := a.find(sealed)
	if p != nil {
		return "", p
	}
	addr, _ := netip.ParseAddr(remote)
	by, err := a.cfg.Creds.SignedIn(ctx, signIn, t.Team, addr)
	if err != nil {
		return "", err //nolint:wrapcheck // a problem
	}
	if rule := RuleOf(&t, l); rule != nil {
		v := a.viewer(by, BySignIn)
		if err := a.permits(rule, &t, v); err != nil {
			a.metrics.refuse(err)
			return "", err
		}
	}
	c := code{k, signIn}
	c.Ends = a.cfg.Now().Add(codeTime).UTC()
	return k.At + PassPath + "?code=" + ident.PrefixPassCode + a.seals.seal(purposeCode, c), nil
}

// Redeem uses a code up and returns a pass, until when it is good, and the path that was
// first asked for. The nonce is the one that the browser has at the tunnel's address. The
// error is a *api.Problem.
func (a *Access) Redeem(ctx context.Context, req Request, secret, nonce ident.Secret) (_ ident.Secret, ends time.Time, path string, _ error) {
	var c code
	text, ok := cutSecret(secret, ident.PrefixPassCode)
	var link ident.LinkID
	if req.Link != nil {
		link = req.Link.ID
	}
	switch {
	case !ok || len(text) > maxSealed || !a.seals.open(purposeCode, text, &c) || c.Session != req.Tunnel.Session || c.Link != link:
		return "", ends, "", again("this code is not for this tunnel")
	case nonce == "" || !nonce.Matches(c.Nonce):
		return "", ends, "", again("this code was made for another browser, or this one keeps no cookies here")
	case !a.cfg.Now().Before(c.Ends):
		return "", ends, "", again("this code came later than 30 seconds after it was made")
	}
	rule := RuleOf(req.Tunnel, req.Link)
	if rule == nil {
		return "", ends, c.Path, nil // opened to anyone meanwhile
	}
	if !FromAllows(rule, req.Remote) {
		return "", ends, "", notFrom()
	}
	// The mark stays a while longer than the code, since clocks differ.
	if err := a.cfg.Store.UseTicket(ctx, secret.Hash(), c.Ends.Add(time.Minute)); errors.Is(err, store.ErrExists) {
		return "", ends, "", again("this code was used already")
	} else if err != nil {
		if p := store.Refusal(err); p != nil {
			return "", ends, "", p
		}
		return "", ends, "", api.Internal(err)
	}
	by, err := a.cfg.Creds.SignedIn(ctx, c.SignIn, req.Tunnel.Team, req.Remote)
	if err != nil {
		return "", ends, "", again("the browser is not signed in any more")
	}
	v := a.viewer(by, BySignIn)
	if err := a.permits(rule, req.Tunnel, v); err != nil {
		return "", ends, "", err
	}
	pass, ends := a.Seal(v, req.Browser, req.Tunnel, req.Link, by.ExpiresAt)
	return pass, ends, c.Path, nil
}

// again says that the way has to be begun anew. The page is shown where it ended, so that
// a browser that cannot get a pass is not sent round for ever.
func again(why string) *api.Problem {
	return api.NewProblem(api.CodeAccessRequired, why+": open the tunnel's address again")
}

func notFrom() *api.Problem {
	return api.NewProblem(api.CodeAccessDenied, "the tunnel is for certain networks, and your address is in none of them; ask whoever sent you the address")
}
