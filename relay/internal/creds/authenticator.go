package creds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Index is the part of the store that answers from memory.
type Index interface {
	CredentialByHash(hash string) (store.CredentialRecord, bool)
	Credential(id ident.CredentialID) (store.CredentialRecord, bool)
	Credentials(team ident.TeamID) []store.CredentialRecord
	// AgentCredentials are those that are for one agent only.
	AgentCredentials(key ident.AgentKey) []store.CredentialRecord
	Team(id ident.TeamID) (store.TeamRecord, bool)
	User(id ident.UserID) (store.UserRecord, bool)
	// Member and Memberships have people who were removed, too.
	Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool)
	Memberships(user ident.UserID) []store.MemberRecord
	SignIn(hash string) (store.SignInRecord, bool)
	// Status says how far the answers can be trusted.
	Status() store.Status
}

// Store is what this package needs of the store.
type Store interface {
	Index
	// CatchUp returns when the index is at least as new as the call.
	CatchUp(ctx context.Context) error
	CreateCredential(ctx context.Context, r store.CredentialRecord) error
	RevokeCredential(ctx context.Context, team ident.TeamID, id ident.CredentialID, at time.Time, keepTunnels bool) (store.CredentialRecord, error)
	TouchCredential(ctx context.Context, id ident.CredentialID, at time.Time) error
}

// OIDC says which issuer signs user sessions. Without Issuer there is none.
type OIDC struct {
	Issuer     string              // exactly as in the tokens
	Audience   string              // required: without it, a token meant for any other app of the issuer would do
	TeamsClaim string              // that lists a person's teams; required
	RolesClaim string              // that says their roles; empty: nothing does
	Roles      map[string]api.Role // what its values mean here, beside the roles' names
	HTTPClient *http.Client
}

// JWT says which keys sign user sessions, where there is no issuer to ask. Without
// PublicKeyFile there are none.
type JWT struct {
	PublicKeyFile string // PEM public keys, or a JWK Set
	Issuer        string // checked when set
	Audience      string // checked when set
	TeamsClaim    string // that lists a person's teams; required
	RolesClaim    string // as with OIDC
	Roles         map[string]api.Role
}

// Config is what New needs.
type Config struct {
	OIDC       OIDC
	JWT        JWT
	Store      Store
	Logger     *slog.Logger
	Registerer prometheus.Registerer // may be nil

	// Key is the cluster's, which signs the bearers of pages. Without it none is taken.
	Key ident.ClusterKey
	// Changes calls changed for each change of a credential, a person, a member or a
	// sign-in, and with a change of no kind when it may have missed some, until ctx ends.
	// Nil: changes are found by looking every two seconds, which always happens too.
	Changes func(ctx context.Context, changed func(store.Change)) error
	// ClientAddr names the address a request came from, for limits per address. Required.
	ClientAddr func(*http.Request) string
	// MaxPerTeam bounds a team's credentials that are neither revoked nor expired;
	// 0: 1000.
	MaxPerTeam int
}

// Authenticator tells who is calling.
type Authenticator struct {
	cfg       Config
	log       *slog.Logger
	m         *metrics
	verifiers []*verifier
	oidc      membership // of the issuer that people sign in with
	file      *keyFile   // nil without one
	misses    *misses
	lastUse   *lastUse
	watched   watched
}

// New checks the configuration and reads the key file. It does not ask the
// issuer: that may be down when the relay starts.
func New(cfg Config) (*Authenticator, error) {
	cfg.MaxPerTeam = cmp.Or(cfg.MaxPerTeam, 1000)
	a := &Authenticator{cfg: cfg, log: cfg.Logger, m: newMetrics(cfg.Registerer)}
	a.misses = newMisses(cfg.Store, a.m)
	a.lastUse = newLastUse(cfg.Store, cfg.Logger, a.m)
	a.watched.byCredential = make(map[ident.CredentialID]map[*watch]struct{})
	var faults []error
	a.oidc = newMembership(cfg.OIDC.TeamsClaim, cfg.OIDC.RolesClaim, cfg.OIDC.Roles)
	if o := cfg.OIDC; o.Issuer != "" {
		if o.Audience == "" {
			faults = append(faults, errors.New("auth.oidc.audience: required with an issuer, or sessions made for other apps would be accepted"))
		}
		if o.TeamsClaim == "" {
			faults = append(faults, errors.New("auth.oidc.teams_claim: required"))
		}
		keys, err := newIssuer(o.Issuer, o.HTTPClient, cfg.Logger, a.m)
		faults = append(faults, err)
		a.verifiers = append(a.verifiers, &verifier{o.Issuer, o.Audience, a.oidc, keys})
	}
	if j := cfg.JWT; j.PublicKeyFile != "" {
		if j.TeamsClaim == "" {
			faults = append(faults, errors.New("auth.jwt.teams_claim: required"))
		}
		keys, err := newKeyFile(j.PublicKeyFile, cfg.Logger, a.m)
		faults = append(faults, err)
		a.file = keys
		a.verifiers = append(a.verifiers, &verifier{j.Issuer, j.Audience, newMembership(j.TeamsClaim, j.RolesClaim, j.Roles), keys})
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return a, nil
}

// Run keeps keys fresh, ends what revoked and expired credentials hold open, and
// writes when credentials were last used. It blocks until ctx ends, and returns
// an error only when changes could not be followed.
func (a *Authenticator) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, v := range a.verifiers {
		wg.Go(func() { v.keys.run(ctx) })
	}
	wg.Go(func() { a.lastUse.run(ctx) })
	wg.Go(func() { a.sweep(ctx) })
	var err error
	if a.cfg.Changes != nil {
		wg.Go(func() {
			err = a.cfg.Changes(ctx, a.changed)
			cancel(err)
		})
	}
	wg.Wait()
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("follow changes of credentials: %w", err)
	}
	return nil
}

// Reload reads the key file now. On an error the old keys stay in use.
func (a *Authenticator) Reload() error {
	if a.file == nil {
		return nil
	}
	return a.file.load()
}

// Authenticate tells who makes a request. The error is a *api.Problem: 401
// unauthenticated (with its challenge), 400 team_required or team_invalid, 403
// not_a_member, or 503 when neither can be known now.
func (a *Authenticator) Authenticate(r *http.Request) (Principal, error) {
	return a.authenticate(r, false)
}

// AuthenticatePerson is Authenticate where a person need not say in which team: without
// X-Team-ID they are in none.
func (a *Authenticator) AuthenticatePerson(r *http.Request) (Principal, error) {
	return a.authenticate(r, true)
}

func (a *Authenticator) authenticate(r *http.Request, anyTeam bool) (Principal, error) {
	label := labelNone
	secret, refused := bearer(r)
	var p Principal
	if refused == nil {
		p, label, refused = a.identify(r, secret, anyTeam)
	}
	if refused != nil {
		a.m.auth.WithLabelValues(label, string(refused.outcome)).Inc()
		return Principal{}, refused.problem
	}
	a.m.auth.WithLabelValues(label, string(outcomeOK)).Inc()
	return p, nil
}

func (a *Authenticator) identify(r *http.Request, secret ident.Secret, anyTeam bool) (Principal, string, *refusal) {
	if form, ok := formOf(secret); ok {
		p, refused := a.stored(r, secret, form)
		return p, string(form.kind), refused
	}
	if strings.HasPrefix(secret.Reveal(), ident.PrefixBrowser) {
		p, refused := a.browser(r, secret, anyTeam)
		return p, labelBrowser, refused
	}
	if strings.Count(secret.Reveal(), ".") != 2 {
		return Principal{}, labelUnknown, invalid(outcomeMalformed, "the bearer secret is neither a credential nor a session")
	}
	p, refused := a.session(r, secret, anyTeam)
	return p, string(KindUser), refused
}

// session authenticates a person by an issuer's token.
func (a *Authenticator) session(r *http.Request, secret ident.Secret, anyTeam bool) (Principal, *refusal) {
	if len(a.verifiers) == 0 {
		return Principal{}, invalid(outcomeIssuer, "this relay accepts no user sessions: it has neither an issuer nor a key file")
	}
	t, refused := parseToken(secret)
	if refused != nil {
		return Principal{}, refused
	}
	var s session
	for _, v := range a.verifiers {
		var no *refusal
		if s, no = v.verify(t, time.Now()); no == nil {
			refused = nil
			break
		}
		// Of two verifiers, the one that got further says why.
		if refused == nil || refused.outcome == outcomeIssuer {
			refused = no
		}
	}
	if refused != nil {
		return Principal{}, refused
	}
	if a.cfg.Store.Status().Stale {
		return Principal{}, unavailable(api.StoreUnavailable("this relay has not heard from its store for a while, so the person may have been removed since: try again, or another relay", nil))
	}
	return a.person(r, Principal{User: s.user, ExpiresAt: s.expires, named: s.teams, unsaid: s.unsaid}, anyTeam)
}
