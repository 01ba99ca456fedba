package creds_test

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

var _ creds.Store = (*store.Store)(nil)

const (
	teamA = ident.TeamID("0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0001")
	teamB = ident.TeamID("0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0002")
)

// memory is a store that forgets, can lag behind and can be cut off.
type memory struct {
	mu       sync.Mutex
	records  map[ident.CredentialID]store.CredentialRecord
	unseen   map[ident.CredentialID]store.CredentialRecord // written by another relay, not in the index yet
	lags     bool                                          // what is revoked is not in the index until CatchUp
	down     bool
	stale    bool
	catchUps int
	touches  []time.Time
	listener func(store.Change)

	teams   map[ident.TeamID]store.TeamRecord
	users   map[ident.UserID]store.UserRecord
	members []store.MemberRecord
	signIns map[string]store.SignInRecord
}

func newMemory() *memory {
	return &memory{records: map[ident.CredentialID]store.CredentialRecord{}, unseen: map[ident.CredentialID]store.CredentialRecord{},
		teams: map[ident.TeamID]store.TeamRecord{}, users: map[ident.UserID]store.UserRecord{}, signIns: map[string]store.SignInRecord{}}
}

func (m *memory) Team(id ident.TeamID) (store.TeamRecord, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.teams[id]
	return r, ok
}

func (m *memory) User(id ident.UserID) (store.UserRecord, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.users[id]
	return r, ok
}

func (m *memory) Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool) {
	for _, r := range m.Memberships(user) {
		if r.Team == team {
			return r, true
		}
	}
	return store.MemberRecord{}, false
}

func (m *memory) Memberships(user ident.UserID) []store.MemberRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.members), func(r store.MemberRecord) bool { return r.User != user })
}

func (m *memory) SignIn(hash string) (store.SignInRecord, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.signIns[hash]
	return r, ok
}

// member writes a person's place in a team, and tells of it.
func (m *memory) member(r store.MemberRecord) {
	m.mu.Lock()
	m.members = append(slices.DeleteFunc(m.members, func(o store.MemberRecord) bool { return o.Team == r.Team && o.User == r.User }), r)
	m.mu.Unlock()
	m.tell(store.Change{Kind: store.KindMember, Key: ident.AgentKey{Team: r.Team}, User: r.User})
}

// signIn has a browser signed in and returns its record.
func (m *memory) signIn(user ident.UserID, teams ...store.SignInTeam) store.SignInRecord {
	now := time.Now()
	r := store.SignInRecord{Hash: ident.NewSecret(ident.PrefixSignIn).Hash(), User: user, Teams: teams, IssuedAt: now, SeenAt: now, ExpiresAt: now.Add(12 * time.Hour), EndsAt: now.Add(30 * 24 * time.Hour)}
	m.set(func(m *memory) { m.signIns[r.Hash] = r })
	return r
}

func (m *memory) tell(c store.Change) {
	m.mu.Lock()
	listener := m.listener
	m.mu.Unlock()
	if listener != nil {
		listener(c)
	}
}

func (m *memory) CredentialByHash(hash string) (store.CredentialRecord, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.records {
		if r.Hash == hash {
			return r, true
		}
	}
	return store.CredentialRecord{}, false
}

func (m *memory) Credential(id ident.CredentialID) (store.CredentialRecord, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.records[id]
	return r, ok
}

func (m *memory) Credentials(team ident.TeamID) []store.CredentialRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []store.CredentialRecord
	for _, r := range m.records {
		if r.Team == team {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b store.CredentialRecord) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return out
}

func (m *memory) Status() store.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return store.Status{Quorum: !m.down, Stale: m.stale}
}

func (m *memory) CatchUp(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.catchUps++
	if m.down {
		return store.ErrUnavailable
	}
	for id, r := range m.unseen {
		m.records[id] = r
		delete(m.unseen, id)
	}
	return nil
}

func (m *memory) CreateCredential(_ context.Context, r store.CredentialRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return store.ErrUnavailable
	}
	m.records[r.ID] = r
	return nil
}

func (m *memory) AgentCredentials(key ident.AgentKey) []store.CredentialRecord {
	return slices.DeleteFunc(m.Credentials(key.Team), func(r store.CredentialRecord) bool { return r.Agent != key.Agent })
}

func (m *memory) RevokeCredential(_ context.Context, team ident.TeamID, id ident.CredentialID, at time.Time, keepTunnels bool) (store.CredentialRecord, error) {
	return m.change(id, func(r *store.CredentialRecord) error {
		if r.Team != team {
			return store.ErrNotFound
		}
		r.RevokedAt, r.KeepTunnels = at, keepTunnels
		return nil
	})
}

func (m *memory) TouchCredential(_ context.Context, id ident.CredentialID, at time.Time) error {
	m.mu.Lock()
	m.touches = append(m.touches, at)
	m.mu.Unlock()
	_, err := m.change(id, func(r *store.CredentialRecord) error { r.LastUsed = at; return nil })
	return err
}

func (m *memory) change(id ident.CredentialID, f func(*store.CredentialRecord) error) (store.CredentialRecord, error) {
	m.mu.Lock()
	r, ok := m.records[id]
	err := error(nil)
	switch {
	case m.down:
		err = store.ErrUnavailable
	case !ok:
		err = store.ErrNotFound
	default:
		err = f(&r)
	}
	lags := m.lags && !r.RevokedAt.IsZero()
	switch {
	case err != nil:
	case lags:
		m.unseen[id] = r
	default:
		m.records[id] = r
	}
	m.mu.Unlock()
	if err == nil && !lags {
		m.tell(store.Change{Kind: store.KindCredential, Credential: id})
	}
	return r, err
}

// changes is what StoreChanges is for a store.
func (m *memory) changes(ctx context.Context, changed func(store.Change)) error {
	m.mu.Lock()
	m.listener = changed
	m.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (m *memory) set(f func(*memory)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m)
}

// add puts a credential into the index and returns its secret.
func (m *memory) add(kind api.CredentialKind, f func(*store.CredentialRecord)) ident.Secret {
	s, r := credential(kind, f)
	m.set(func(m *memory) { m.records[r.ID] = r })
	return s
}

func credential(kind api.CredentialKind, f func(*store.CredentialRecord)) (ident.Secret, store.CredentialRecord) {
	prefix := map[api.CredentialKind]string{api.KindIntegration: ident.PrefixIntegration, api.KindDevice: ident.PrefixDevice, api.KindAgent: ident.PrefixAgent}[kind]
	s := ident.NewSecret(prefix)
	r := store.CredentialRecord{ID: ident.NewCredentialID(), Kind: kind, Team: teamA, Name: "one", Prefix: s.DisplayPrefix(), Hash: s.Hash(), CreatedAt: time.Now()}
	if kind == api.KindDevice {
		r.User = "alice"
	}
	if f != nil {
		f(&r)
	}
	return s, r
}

func newAuth(t testing.TB, cfg creds.Config) *creds.Authenticator {
	t.Helper()
	if cfg.Store == nil {
		cfg.Store = newMemory()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Registerer == nil {
		cfg.Registerer = prometheus.NewRegistry()
	}
	if cfg.ClientAddr == nil {
		cfg.ClientAddr = func(r *http.Request) string { return caller.Peer(r).String() }
	}
	cfg.OIDC.TeamsClaim, cfg.JWT.TeamsClaim = cmp.Or(cfg.OIDC.TeamsClaim, "teams"), cmp.Or(cfg.JWT.TeamsClaim, "teams")
	a, err := creds.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// start runs an authenticator until the returned function is called.
func start(t testing.TB, a *creds.Authenticator) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

type header struct{ name, value string }

func bearer(secret string) header     { return header{"Authorization", "Bearer " + secret} }
func inTeam[T ~string](team T) header { return header{"X-Team-ID", string(team)} }

func request(t testing.TB, headers ...header) *http.Request {
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/v1/agents", nil)
	for _, h := range headers {
		r.Header.Add(h.name, h.value)
	}
	return r
}

// refusal authenticates and returns the problem, or nil.
func refusal(t testing.TB, a *creds.Authenticator, r *http.Request) *api.Problem {
	t.Helper()
	p, err := a.Authenticate(r)
	if err == nil {
		return nil
	}
	if p.Kind != "" {
		t.Errorf("a refused caller is %+v, want nobody", p)
	}
	var problem *api.Problem
	if !errors.As(err, &problem) {
		t.Fatalf("the error is %T, want a problem", err)
	}
	return problem
}

func wantRefused(t testing.TB, a *creds.Authenticator, r *http.Request, status int, code api.Code) *api.Problem {
	t.Helper()
	p := refusal(t, a, r)
	if p == nil {
		t.Fatalf("accepted, want %d %s", status, code)
	}
	if p.Status != status || p.Code != code || p.Hop != api.HopRelay {
		t.Fatalf("refused with %d %s (%s) at hop %q, want %d %s", p.Status, p.Code, p.Detail, p.Hop, status, code)
	}
	return p
}

func wantAccepted(t testing.TB, a *creds.Authenticator, r *http.Request) creds.Principal {
	t.Helper()
	p, err := a.Authenticate(r)
	if err != nil {
		var problem *api.Problem
		errors.As(err, &problem)
		t.Fatalf("refused: %v (cause %v), want accepted", err, problem.Cause)
	}
	return p
}

// clientOf is how a relay behind a trusted proxy names its clients.
func clientOf(r *http.Request) string { return r.Header.Get("X-Forwarded-For") }
