package signin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Base begins every path of this package.
const Base = "/auth/"

// People keeps the records of people and of the browsers that they are signed in with.
type People interface {
	// Find returns the sign-in of a cookie.
	Find(ctx context.Context, cookie ident.Secret) (store.SignInRecord, bool)
	// Renew moves a sign-in's end on, since it was used.
	Renew(ctx context.Context, rec store.SignInRecord) (store.SignInRecord, error)
	// Known keeps what the issuer says of a person.
	Known(ctx context.Context, user ident.UserID, name, email string, teams []store.SignInTeam) error
	// SignIn makes a sign-in, with a secret that never was in any browser.
	SignIn(ctx context.Context, user ident.UserID, method string, teams []store.SignInTeam, groups []string, browser, remote string) (ident.Secret, store.SignInRecord, error)
	// Groups keeps the groups that the issuer names for a person who has signed in.
	Groups(ctx context.Context, user ident.UserID, groups []string) error
	SignOut(ctx context.Context, rec store.SignInRecord, everywhere bool) error
	// Accept uses an invitation up, for whoever is signed in, or for a new person.
	Accept(ctx context.Context, invite ident.Secret, as ident.UserID, remote string) (store.MemberRecord, store.UserRecord, error)
	Passkeys
}

// Passkeys keeps the records of passkeys.
type Passkeys interface {
	MayAddPasskey(user ident.UserID) bool
	// Handle returns a person who may have passkeys, with the handle that those know.
	Handle(ctx context.Context, user ident.UserID) (store.UserRecord, error)
	// ByHandle returns the person whom passkeys know by a handle.
	ByHandle(ctx context.Context, handle []byte) (store.UserRecord, bool)
	AddPasskey(ctx context.Context, user ident.UserID, key store.PasskeyRecord) error
	// UsePasskey keeps the state of one after its use.
	UsePasskey(ctx context.Context, user ident.UserID, id string, credential json.RawMessage) error
}

// Creds knows teams and makes bearers.
type Creds interface {
	BrowserToken(rec store.SignInRecord, now time.Time) (ident.Secret, time.Time)
	// TeamsOfSignIn are the teams that a sign-in is good for now.
	TeamsOfSignIn(rec store.SignInRecord) []api.MyTeam
	// IssuerTeams reads the teams that an issuer's claims about a person name.
	IssuerTeams(claims []byte) ([]store.SignInTeam, error)
}

// Store is what is read of the relay's copy of the store, and the marks of tickets.
type Store interface {
	User(id ident.UserID) (store.UserRecord, bool)
	Team(id ident.TeamID) (store.TeamRecord, bool)
	// UseTicket uses a ticket up, for the whole pool; store.ErrExists when it was used.
	UseTicket(ctx context.Context, hash string, ends time.Time) error
}

// Passes knows the tunnels that are for certain people; access.Access is one.
type Passes interface {
	// Begun says why nobody can go on with what a tunnel's address sent a browser with.
	Begun(ask string) *api.Problem
	// Expects says whether that is a tunnel that somebody is named for.
	Expects(ask string, user ident.UserID, email string, groups []string) bool
	// Grant returns where to send a browser that is signed in.
	Grant(ctx context.Context, ask, signIn, remote string) (to string, err error)
}

// Auditor keeps records.
type Auditor interface {
	Append(ctx context.Context, r audit.Record) error
}

// Config is what a Door needs; all of it but Off, Issuer and Registerer.
type Config struct {
	// Off says why nobody can sign in here; empty: they can.
	Off string
	// Origin is the canonical origin of the relay's own pages.
	Origin string
	// Alone says that no other pages are on the origin's host, so that a path there is
	// this package's, and on other hosts it is not.
	Alone  bool
	Issuer Issuer // without ClientID: none
	People People
	Creds  Creds
	Store  Store
	Passes Passes
	Audit  Auditor
	Key    ident.ClusterKey           // seals tickets
	Remote func(*http.Request) string // the caller's address
	Now    func() time.Time

	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Door serves everything under Base. It is safe for concurrent use.
type Door struct {
	cfg     Config
	host    string // of Origin, without port
	cookies cookies
	seals   sealer
	limits  limits
	issuer  *relyingParty // nil: none
	keys    *passkeys     // nil: not on this host
	metrics *metrics
}

// New checks the configuration. It asks nobody: the issuer may be down when the relay
// starts.
func New(cfg Config) (*Door, error) {
	u, err := url.Parse(cfg.Origin)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("sign-in: the origin %q is no URL", cfg.Origin)
	}
	d := &Door{
		cfg: cfg, host: u.Hostname(), cookies: cookies{secure: u.Scheme == "https"}, seals: newSealer(cfg.Key),
		limits: newLimits(cfg.Now), metrics: newMetrics(cfg.Registerer),
	}
	if cfg.Off != "" {
		return d, nil
	}
	if cfg.Issuer.ClientID != "" {
		if d.issuer, err = newRelyingParty(cfg.Issuer, cfg.Origin+callbackPath, cfg.Now); err != nil {
			return nil, err
		}
	}
	d.keys = newPasskeys(u)
	return d, nil
}

// The paths.
const (
	loginPath    = Base + "login"
	callbackPath = Base + "callback"
	passPath     = Base + "pass"
)

// Routes are the patterns of http.ServeMux to serve.
func (d *Door) Routes() map[string]http.Handler {
	routes := map[string]http.Handler{}
	if d.cfg.Off != "" {
		// The console asks these two. All else there may be an app's.
		off := d.answers("", func(http.ResponseWriter, *http.Request) (any, error) {
			return nil, api.NewProblem(api.CodeSignInOff, d.cfg.Off)
		})
		routes["GET "+Base+"options"], routes["POST "+Base+"token"] = off, off
		return routes
	}
	add := func(method, path string, h http.Handler) {
		if d.cfg.Alone {
			path = d.host + path
		}
		routes[method+" "+path] = h
	}
	add("GET", Base+"options", d.answers("", d.options))
	add("GET", loginPath, http.HandlerFunc(d.login))
	add("GET", callbackPath, http.HandlerFunc(d.callback))
	add("GET", passPath, http.HandlerFunc(d.pass))
	add("POST", Base+"token", d.posts("", d.limits.tokens, d.token))
	add("POST", Base+"logout", d.posts("", d.limits.tokens, d.logout))
	add("POST", Base+"invite", d.posts(methodInvite, d.limits.invites, d.invite))
	add("POST", Base+"passkey/begin", d.posts("", d.limits.passkeys, d.passkeyBegin))
	add("POST", Base+"passkey/finish", d.posts(methodPasskey, d.limits.passkeys, d.passkeyFinish))
	add("POST", Base+"passkey/register/begin", d.posts("", d.limits.passkeys, d.registerBegin))
	add("POST", Base+"passkey/register/finish", d.posts("", d.limits.passkeys, d.registerFinish))
	return routes
}

// Options is the answer of GET /auth/options: by what one can sign in.
type Options struct {
	Issuer     bool   `json:"issuer"`
	IssuerName string `json:"issuer_name,omitempty"` // for people
	Passkeys   bool   `json:"passkeys"`
	Invites    bool   `json:"invites"`
}

func (d *Door) options(http.ResponseWriter, *http.Request) (any, error) {
	o := Options{Issuer: d.issuer != nil, Passkeys: d.keys != nil, Invites: true}
	if d.issuer != nil {
		o.IssuerName = d.issuer.name
	}
	return o, nil
}

// answer makes what is sent back as JSON; nil: nothing, 204.
type answer func(w http.ResponseWriter, r *http.Request) (any, error)

// answers serves an answer. With a method it is a way to sign in, and counted as one.
func (d *Door) answers(by method, serve answer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", api.StrictPolicy)
		out, err := serve(w, r)
		if err != nil {
			p, id := problemOf(err), ident.NewRequestID()
			d.refused(r, by, p, id)
			problems.AnswerOwn(w, r, p, id)
			return
		}
		d.metrics.count(by, resultOK)
		if out == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		h.Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the browser may be gone
	})
}

// posts is answers for a page of the relay's own, within a limit for each address.
func (d *Door) posts(by method, limit limit, serve answer) http.Handler {
	return d.answers(by, func(w http.ResponseWriter, r *http.Request) (any, error) {
		// Before the limit: a page elsewhere makes browsers ask as often as it likes, and must
		// not use up what everybody behind their address has.
		if p := d.ownPage(r); p != nil {
			return nil, p
		}
		if p := limit.take(d.cfg.Remote(r)); p != nil {
			return nil, p
		}
		return serve(w, r)
	})
}

// refused counts and notes what was refused.
func (d *Door) refused(r *http.Request, by method, p *api.Problem, id ident.RequestID) {
	d.metrics.count(by, resultOf(p))
	log := d.cfg.Logger.With("code", p.Code, "remote", d.cfg.Remote(r), "request_id", id)
	switch {
	case p.Status >= http.StatusInternalServerError:
		log.Warn("sign-in", "path", r.URL.Path, "error", p.Cause)
	case by == methodIssuer && p.Code == api.CodeUnauthenticated: // the page says that the log says why
		log.Info("the issuer's answer is not taken", "error", p.Cause)
	default:
		log.Debug("sign-in refused", "path", r.URL.Path, "error", p.Cause)
	}
	if p.Code == api.CodeNotSignedIn || p.Status != http.StatusUnauthorized && p.Status != http.StatusForbidden {
		return
	}
	rec := audit.Record{Event: audit.AuthRefused, Detail: "sign-in: " + string(p.Code), RequestID: id, RemoteAddr: d.cfg.Remote(r)}
	if err := d.cfg.Audit.Append(r.Context(), rec); err != nil {
		d.cfg.Logger.Warn("write audit record", "event", rec.Event, "error", err)
	}
}

func problemOf(err error) *api.Problem {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p
	}
	if p := store.Refusal(err); p != nil {
		return p
	}
	return api.Internal(err)
}

// signedIn returns the sign-in of the request's browser.
func (d *Door) signedIn(r *http.Request) (store.SignInRecord, bool) {
	secret, ok := d.cookies.signIn(r)
	if !ok {
		return store.SignInRecord{}, false
	}
	return d.cfg.People.Find(r.Context(), secret)
}

// enter signs a person in. What the browser was signed in with before ends.
func (d *Door) enter(w http.ResponseWriter, r *http.Request, user ident.UserID, by method, teams []store.SignInTeam, groups []string) error {
	before, had := d.signedIn(r)
	secret, rec, err := d.cfg.People.SignIn(r.Context(), user, string(by), teams, groups, r.UserAgent(), d.cfg.Remote(r))
	if err != nil {
		return err
	}
	d.cookies.setSignIn(w, secret, rec.ExpiresAt.Sub(d.cfg.Now()))
	if had {
		if err := d.cfg.People.SignOut(context.WithoutCancel(r.Context()), before, false); err != nil {
			d.cfg.Logger.Warn("end the sign-in that another one replaced", "error", err)
		}
	}
	return nil
}
