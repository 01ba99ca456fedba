package people_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate/gatetest"
	"github.com/adit-tunnel/adit/relay/internal/people"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

var operator = creds.Operator("admin-socket")

// endings notes what people ask of rights.
type endings struct {
	mu      sync.Mutex
	removed []ident.UserID
	kept    []bool
	revoked []ident.CredentialID
}

func (e *endings) Revoke(_ context.Context, _ creds.Principal, _ ident.TeamID, id ident.CredentialID, _ bool) (api.Revoked, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.revoked = append(e.revoked, id)
	return api.Revoked{Credentials: 1}, nil
}

func (e *endings) RemoveMember(_ context.Context, _ creds.Principal, _ ident.TeamID, user ident.UserID, keep bool) (api.Revoked, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.removed, e.kept = append(e.removed, user), append(e.kept, keep)
	return api.Revoked{Credentials: 2, Tunnels: 1}, nil
}

// world is People on a store that runs, with a clock that goes where it is told.
type world struct {
	*people.People
	t       *testing.T
	store   *store.Store
	endings *endings
	audit   *gatetest.Audit

	mu  sync.Mutex
	off time.Duration
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.off)
}

// pass lets time pass for people and for the store's own look at ends.
func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.off += d
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, endings: &endings{}, audit: &gatetest.Audit{}}
	var err error
	w.store, err = store.New(store.Config{
		DataDir: t.TempDir(), QuotaBytes: 2 << 30, Relay: store.RelayRecord{ID: "r1"}, Logger: slog.New(slog.DiscardHandler), Now: w.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- w.store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("store: %v", err)
		}
	})
	ready, done := context.WithTimeout(t.Context(), testkit.Patience)
	defer done()
	if err := w.store.Ready(ready); err != nil {
		t.Fatal(err)
	}
	w.People = w.with(people.Config{Origin: "https://console.example.com"})
	return w
}

// with is People on the same store, as of another relay or another configuration.
func (w *world) with(cfg people.Config) *people.People {
	w.t.Helper()
	cfg.Store, cfg.Rights, cfg.Audit, cfg.Now = w.store, w.endings, w.audit, w.now
	if cfg.DefaultRole == "" {
		cfg.DefaultRole = api.RoleMember
	}
	p, err := people.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// in is the operator in a team.
func in(team ident.TeamID) creds.Principal { return operator.InTeam(team) }

// secretOf takes the secret out of an invitation's URL.
func secretOf(t *testing.T, i api.CreatedInvite) ident.Secret {
	t.Helper()
	before, secret, ok := strings.Cut(i.InviteURL, "#invite=")
	if !ok || before != "https://console.example.com/console" || !strings.HasPrefix(secret, ident.PrefixInvite) {
		t.Fatalf("the invitation's URL is %q", i.InviteURL)
	}
	return ident.Secret(secret)
}

// join makes a member by an invitation of the operator and returns them as a caller.
func (w *world) join(team ident.TeamID, name string, role api.Role) creds.Principal {
	w.t.Helper()
	i, err := w.Invite(w.t.Context(), in(team), team, api.CreateInviteRequest{Name: name, Role: role})
	if err != nil {
		w.t.Fatal(err)
	}
	m, _, err := w.Accept(w.t.Context(), secretOf(w.t, i), "", "192.0.2.1")
	if err != nil {
		w.t.Fatal(err)
	}
	return w.as(team, m.User)
}

// as is a person as a caller, with the role that they have now.
func (w *world) as(team ident.TeamID, user ident.UserID) creds.Principal {
	w.t.Helper()
	p := creds.Principal{Kind: creds.KindUser, Team: team, User: user, Name: "user:" + string(user)}
	for _, m := range w.Members(team) {
		if m.UserID == user {
			p.Role = m.Role
		}
	}
	return p
}

func (w *world) catchUp() {
	w.t.Helper()
	if err := w.store.CatchUp(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// wantCode checks the code of a refusal; empty: there is none.
func wantCode(t *testing.T, what string, err error, want api.Code) {
	t.Helper()
	var got api.Code
	if p, ok := errors.AsType[*api.Problem](err); ok {
		got = p.Code
	} else if err != nil {
		t.Errorf("%s: %v is no problem", what, err)
		return
	}
	if got != want {
		t.Errorf("%s: %q (%v), want %q", what, got, err, want)
	}
}

// roles is a team's members by name.
func (w *world) roles(team ident.TeamID) string {
	var out []string
	for _, m := range w.Members(team) {
		out = append(out, m.UserName+" "+string(m.Role))
	}
	return strings.Join(out, ", ")
}

// audited counts the records of an event that name a text.
func (w *world) audited(e audit.Event, text string) int {
	n := 0
	for _, r := range w.audit.Records() {
		if r.Event == e && strings.Contains(r.Actor+" "+r.Detail, text) {
			n++
		}
	}
	return n
}

// hours is a number of hours as the API has them.
func hours(n int) *api.Duration {
	d := api.Duration(time.Duration(n) * time.Hour)
	return &d
}

func names(list []api.Invite) string {
	var out []string
	for _, i := range list {
		out = append(out, i.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
