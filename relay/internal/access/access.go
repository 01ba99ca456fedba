// Package access decides who may use a tunnel that has a rule of access, and knows
// when that ends: it owns the rule as it is applied, the passes that browsers show
// (sealed with the cluster key, so that any relay of the pool knows them), the way of
// a browser to one by the relay's own pages, and the watch over what is open. It
// carries nothing, sets no cookie and changes no rule; of a tunnel without a rule it
// is never asked.
package access

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Store is what is read of the relay's copy of the store, and the marks of codes.
type Store interface {
	Tunnel(id ident.SessionID) (store.TunnelRecord, bool)
	Link(id ident.LinkID) (store.LinkRecord, bool)
	User(id ident.UserID) (store.UserRecord, bool)
	SignIn(hash string) (store.SignInRecord, bool)
	SignIns(user ident.UserID) []store.SignInRecord
	// UseTicket uses a code up, for the whole pool; store.ErrExists when it was used.
	UseTicket(ctx context.Context, hash string, ends time.Time) error
}

// Creds tells who somebody is, and whether they still may what they began.
type Creds interface {
	Shown(ctx context.Context, values []string, team ident.TeamID, remote netip.Addr) (creds.Principal, error)
	SignedIn(ctx context.Context, hash string, team ident.TeamID, remote netip.Addr) (creds.Principal, error)
	Owns(p creds.Principal, o store.Opened) bool
	Valid(p creds.Principal) bool
}

// Config is what an Access needs; all of it but Registerer.
type Config struct {
	Store Store
	Creds Creds
	Key   ident.ClusterKey // seals passes
	// Changes calls changed for each change of a record, and with a change of no kind
	// when it may have missed some, until ctx ends.
	Changes func(ctx context.Context, changed func(store.Change)) error
	// CutUnwatched ends what is open through a tunnel, or a named link of it, without a
	// watch: it was begun when there was no rule.
	CutUnwatched func(session ident.SessionID, link ident.LinkID, cause error) int
	Now          func() time.Time
	Registerer   prometheus.Registerer
}

// Access decides. It is safe for concurrent use.
type Access struct {
	cfg     Config
	seals   sealer
	passes  passes
	watched watched
	metrics *metrics
}

// New returns an Access. Run must run beside it.
func New(cfg Config) *Access {
	a := &Access{cfg: cfg, seals: newSealer(cfg.Key), metrics: newMetrics(cfg.Registerer)}
	a.watched.of, a.watched.late = map[ident.SessionID]map[*watch]struct{}{}, map[place]int{}
	return a
}

// How says by what somebody may use a tunnel.
type How string

// The ways.
const (
	ByURL        How = "url"        // the address is all that is asked for
	BySignIn     How = "sign_in"    // of a person, with a browser
	ByCredential How = "credential" // or another secret in Adit-Authorization
	ByPIN        How = "pin"
	ByKnock      How = "knock"
)

// Request is who asks for a tunnel.
type Request struct {
	Tunnel  *store.TunnelRecord
	Link    *store.LinkRecord // by which they come; nil: by the tunnel's own address
	Remote  netip.Addr        // the user's
	Browser string            // its user agent
	Pass    ident.Secret      // of the browser; empty: none
	Auth    []string          // the values of Adit-Authorization
	Write   bool              // more than looking is asked for
}

// Viewer is somebody who may use a tunnel, as far as it is known who they are.
type Viewer struct {
	User   ident.UserID // empty: it is not known which person
	Name   string       // for people
	Email  string       // verified by the issuer
	Groups []string     // as the issuer says
	How    How

	by   creds.Principal // behind a sign-in or a credential
	ends time.Time       // of the pass; zero: none
}

// RuleOf returns the rule that holds for who comes by a link, or without one; nil: there
// is none.
func RuleOf(t *store.TunnelRecord, l *store.LinkRecord) *store.AccessRule {
	if l != nil && l.Access != nil {
		return l.Access
	}
	return t.Access
}

// Check says whether somebody may use a tunnel that has a rule. The error is a
// *api.Problem: access_required, pin_required or knock_waiting where the way in is to
// be gone first, access_denied and read_only where it ends.
func (a *Access) Check(ctx context.Context, req Request) (Viewer, error) {
	v, err := a.check(ctx, req)
	if err != nil {
		a.metrics.refuse(err)
	}
	return v, err
}

func (a *Access) check(ctx context.Context, req Request) (Viewer, error) {
	rule := RuleOf(req.Tunnel, req.Link)
	if rule == nil {
		return Viewer{How: ByURL}, nil
	}
	if !FromAllows(rule, req.Remote) {
		return Viewer{}, notFrom()
	}
	v, err := a.identify(ctx, req, rule)
	if err != nil {
		return Viewer{}, err
	}
	if err := a.permits(rule, req.Tunnel, v); err != nil {
		return Viewer{}, err
	}
	if req.Write && rule.ReadOnly {
		return Viewer{}, ReadOnly()
	}
	return v, nil
}

// ReadOnly says that what was asked for is more than looking.
func ReadOnly() *api.Problem {
	return api.NewProblem(api.CodeReadOnly, "the tunnel is to be looked at only: GET, HEAD and OPTIONS without a body pass, and of WebSockets what the app sends; ask whoever sent you the address for another one")
}

// FromAllows says whether a rule lets an address in.
func FromAllows(rule *store.AccessRule, remote netip.Addr) bool {
	if len(rule.From) == 0 {
		return true
	}
	remote = remote.Unmap().WithZone("")
	for _, s := range rule.From {
		p, err := netip.ParsePrefix(s)
		if err == nil && p.Contains(remote) {
			return true
		}
	}
	return false
}

// identify finds out who asks, by the best that they show. Who shows nothing, or what is
// no good any more, is a stranger; a secret that is no good is said so, since programs
// have no other way.
func (a *Access) identify(ctx context.Context, req Request, rule *store.AccessRule) (Viewer, error) {
	if len(req.Auth) > 0 && rule.Mode != api.AccessAnyone {
		p, err := a.cfg.Creds.Shown(ctx, req.Auth, req.Tunnel.Team, req.Remote)
		if err != nil {
			return Viewer{}, err
		}
		return a.viewer(p, ByCredential), nil
	}
	if req.Pass == "" {
		return Viewer{How: ByURL}, nil
	}
	now := a.cfg.Now()
	p, ok := a.open(req.Pass)
	if !ok || !p.fits(req, rule) || !now.Before(p.Ends) {
		return Viewer{How: ByURL}, nil
	}
	v := Viewer{How: p.How, Name: p.Name, ends: p.Ends}
	if p.SignIn == "" {
		return v, nil
	}
	by, err := a.cfg.Creds.SignedIn(ctx, p.SignIn, req.Tunnel.Team, req.Remote)
	if err != nil {
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Status >= http.StatusInternalServerError {
			return Viewer{}, p // it cannot be known now
		}
		return Viewer{How: ByURL}, nil
	}
	v = a.viewer(by, p.How)
	v.ends = p.Ends
	return v, nil
}

// viewer is a principal with what the store knows of the person.
func (a *Access) viewer(p creds.Principal, how How) Viewer {
	v := Viewer{User: p.User, How: how, by: p}
	if v.User == "" { // a program's
		v.Name = p.Name
		return v
	}
	user, _ := a.cfg.Store.User(p.User)
	v.Name, v.Email = user.Name, user.Email
	if p.SignIn != "" {
		rec, _ := a.cfg.Store.SignIn(p.SignIn)
		v.Groups = rec.Groups
		return v
	}
	for _, rec := range a.cfg.Store.SignIns(p.User) { // a device of theirs: as of their last sign-in
		if len(rec.Groups) > 0 {
			v.Groups = rec.Groups
		}
	}
	return v
}
