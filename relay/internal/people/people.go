// Package people owns what the relay knows of people: who is a member of which team and
// as what, invitations, the browsers that are signed in, passkeys, and the names of
// teams. It holds the rules and bounds of these records and writes them down for the
// audit. It speaks no HTTP, sees no cookie and no passkey ceremony (package signin does),
// says nobody's role towards a call (package creds does), and ends nothing that a removed
// member holds open (package rights does).
package people

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Store is where the records are.
type Store interface {
	CatchUp(ctx context.Context) error

	Team(id ident.TeamID) (store.TeamRecord, bool)
	Teams() []store.TeamRecord
	ChangeTeam(ctx context.Context, id ident.TeamID, change func(*store.TeamRecord) error) (store.TeamRecord, error)
	DeleteTeam(ctx context.Context, id ident.TeamID) error

	User(id ident.UserID) (store.UserRecord, bool)
	UserByHandle(handle []byte) (store.UserRecord, bool)
	ChangeUser(ctx context.Context, id ident.UserID, change func(*store.UserRecord) error) (store.UserRecord, error)
	DeleteUser(ctx context.Context, id ident.UserID) error

	Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool)
	Members(team ident.TeamID) []store.MemberRecord
	MemberCounts() map[ident.TeamID]int
	Memberships(user ident.UserID) []store.MemberRecord
	ChangeMember(ctx context.Context, team ident.TeamID, user ident.UserID, change func(*store.MemberRecord) error) (store.MemberRecord, error)
	DeleteMember(ctx context.Context, team ident.TeamID, user ident.UserID) error

	SignIn(hash string) (store.SignInRecord, bool)
	SignIns(user ident.UserID) []store.SignInRecord
	CreateSignIn(ctx context.Context, r store.SignInRecord) error
	ChangeSignIn(ctx context.Context, hash string, change func(*store.SignInRecord) error) (store.SignInRecord, error)
	DeleteSignIn(ctx context.Context, hash string) error

	Invite(hash string) (store.InviteRecord, bool)
	Invites(team ident.TeamID) []store.InviteRecord
	CreateInvite(ctx context.Context, r store.InviteRecord) error
	TakeInvite(ctx context.Context, hash string) (store.InviteRecord, error)
	DeleteInvite(ctx context.Context, hash string) error

	Credential(id ident.CredentialID) (store.CredentialRecord, bool)
	Credentials(team ident.TeamID) []store.CredentialRecord
}

// Rights ends what a right held open.
type Rights interface {
	// Revoke revokes a credential.
	Revoke(ctx context.Context, by creds.Principal, team ident.TeamID, id ident.CredentialID, keepTunnels bool) (api.Revoked, error)
	// RemoveMember ends what a person has and holds open in a team that they were removed
	// from.
	RemoveMember(ctx context.Context, by creds.Principal, team ident.TeamID, user ident.UserID, keepTunnels bool) (api.Revoked, error)
}

// Config is what People are made of. All but Origin and Now is required.
type Config struct {
	Store  Store
	Rights Rights
	Audit  gate.Auditor
	// Origin is the console's, where invitations lead to; empty: nobody can sign in at
	// this relay, so nobody is invited.
	Origin string
	// DefaultRole is that of members of whom neither the issuer nor the store says one.
	DefaultRole api.Role
	Now         func() time.Time // wall clock; default time.Now
}

// People keeps the records of people. It is safe for concurrent use.
type People struct {
	cfg    Config
	now    func() time.Time
	misses *rate.Limiter // looks into the store for browsers that the index does not have
}

// Bounds, so that nobody fills the store.
const (
	maxMembers  = 1000 // of a team
	maxRemoved  = 10   // times maxMembers: those who were removed are remembered
	maxInvites  = 100  // open ones of a team
	maxSignIns  = 50   // of a person; the one that was not used for longest goes
	maxPasskeys = 10   // of a person
	maxName     = 64   // characters
	maxBrowser  = 256  // bytes of a User-Agent that are kept
)

// Looks for browsers that the index does not have: cookies can be made up at any rate.
const (
	missesPerSecond = 10
	missesBurst     = 50
)

// New returns People.
func New(cfg Config) (*People, error) {
	if cfg.Store == nil || cfg.Rights == nil || cfg.Audit == nil || cfg.DefaultRole == "" {
		return nil, errors.New("people: Store, Rights, Audit and DefaultRole are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &People{cfg: cfg, now: func() time.Time { return cfg.Now().UTC() }, misses: rate.NewLimiter(missesPerSecond, missesBurst)}, nil
}

// madeHere says whether the relay itself made a person, of an invitation.
func madeHere(user ident.UserID) bool { return strings.HasPrefix(string(user), creds.OwnUsers) }

// shown says who did something: their name where there is a person whose name is known,
// else what the audit log calls them.
func (p *People) shown(by string, user ident.UserID) string {
	if user != "" {
		if u, ok := p.cfg.Store.User(user); ok && u.Name != "" {
			return u.Name
		}
	}
	return by
}

// shortID names a record by its secret's hash: enough to tell it from others, and not
// enough to look for the secret.
func shortID(hash string) string { return hash[:min(16, len(hash))] }

// audit records what was done, before it is acknowledged.
func (p *People) audit(ctx context.Context, rec audit.Record) error {
	if t, ok := gate.TraceOf(ctx); ok {
		rec.RequestID, rec.RemoteAddr = t.Request, cmp.Or(rec.RemoteAddr, t.Remote)
	}
	if err := p.cfg.Audit.Append(context.WithoutCancel(ctx), rec); err != nil {
		return fmt.Errorf("it was done, but the audit log could not be written: %w", err)
	}
	return nil
}

// catchUpTime bounds the wait for this relay's own index after a change: that may be a
// moment behind, and whoever is told of a change must find it.
const catchUpTime = 3 * time.Second

// settle waits until the index has a change that the store has. If it does not come in
// time, the change holds all the same.
func (p *People) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, catchUpTime)
	defer cancel()
	_ = p.cfg.Store.CatchUp(ctx)
}

// storeProblem is a change that the store did not take, for whoever asked for it.
func storeProblem(doing string, err error) error {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p
	}
	err = fmt.Errorf("%s: %w", doing, err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	if refusal := store.Refusal(err); refusal != nil {
		return refusal
	}
	return api.Internal(err)
}

// named checks a name that somebody gives.
func named(field, s string) (string, error) {
	s = strings.TrimSpace(s)
	if n := utf8.RuneCountInString(s); n < 1 || n > maxName || !utf8.ValidString(s) || strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return "", api.Problemf(api.CodeOutOfRange, "%s: 1 to %d printable characters", field, maxName)
	}
	return s, nil
}

// tidy makes text from elsewhere fit to be kept: printable, and no longer than most bytes.
func tidy(s string, most int) string {
	s = strings.TrimSpace(strings.Map(func(c rune) rune {
		if c == utf8.RuneError || !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, s))
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}
