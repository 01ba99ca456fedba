package rest_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate/gatetest"
	"github.com/adit-tunnel/adit/relay/internal/people"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// ends ends nothing, and says so in numbers.
type ends struct{ kept bool }

func (e *ends) Revoke(context.Context, creds.Principal, ident.TeamID, ident.CredentialID, bool) (api.Revoked, error) {
	return api.Revoked{Credentials: 1}, nil
}

func (e *ends) RemoveMember(_ context.Context, _ creds.Principal, _ ident.TeamID, _ ident.UserID, keep bool) (api.Revoked, error) {
	e.kept = keep
	return api.Revoked{Credentials: 3, Tunnels: 2}, nil
}

// newPeople is an API on real records of people.
func newPeople(t *testing.T) (*world, *people.People, *store.Store, *ends) {
	t.Helper()
	s, err := store.New(store.Config{DataDir: t.TempDir(), QuotaBytes: 2 << 30, Relay: store.RelayRecord{ID: "r1"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("store: %v", err)
		}
	})
	ready, done := context.WithTimeout(t.Context(), testkit.Patience)
	defer done()
	if err := s.Ready(ready); err != nil {
		t.Fatal(err)
	}
	e := &ends{}
	p, err := people.New(people.Config{Store: s, Rights: e, Audit: &gatetest.Audit{}, Origin: "https://console.example.com", DefaultRole: api.RoleMember})
	if err != nil {
		t.Fatal(err)
	}
	return newWorldOf(t, p), p, s, e
}

// member makes a member, who is a caller from then on with the secret of that name.
func (w *world) member(p *people.People, team ident.TeamID, secret string, user ident.UserID, role api.Role) {
	w.t.Helper()
	if _, err := p.SetRole(w.t.Context(), creds.Operator("test").InTeam(team), team, user, role); err != nil {
		w.t.Fatal(err)
	}
	w.auth.mu.Lock()
	defer w.auth.mu.Unlock()
	w.auth.by[secret] = creds.Principal{Kind: creds.KindUser, Team: team, User: user, Role: role, Name: "user:" + string(user)}
}

func TestMembersOverTheAPI(t *testing.T) {
	w, p, _, e := newPeople(t)
	const odd = ident.UserID("auth0|x/..%2F:é ?#&") // an issuer may name people so
	w.member(p, ours, "owner", "o", api.RoleOwner)
	w.member(p, ours, "admin", "a", api.RoleAdmin)
	w.member(p, ours, "member", odd, api.RoleMember)
	w.member(p, ours, "viewer", "v", api.RoleViewer)
	w.member(p, theirs, "mallory", "m", api.RoleOwner)
	path := func(user ident.UserID) string { return "/members/" + url.PathEscape(string(user)) }

	l := into[api.MemberList](t, w.do("GET", "/members?per_page=3&current_page=2", "member", ""), 200)
	if l.PageMeta != (api.PageMeta{CurrentPage: 2, PerPage: 3, TotalCount: 4}) || len(l.Members) != 1 || l.Members[0].UserID != "v" || l.Members[0].Source != "operator" {
		t.Errorf("the second page is %+v", l)
	}
	if l := into[api.MemberList](t, w.do("GET", "/members?current_page=9", "member", ""), 200); len(l.Members) != 0 || l.PageMeta.TotalCount != 4 {
		t.Errorf("beyond the end: %+v", l)
	}
	w.want(w.do("GET", "/members", "viewer", ""), "Forbidden role_required")
	w.want(w.do("GET", "/members", "integration", ""), "Forbidden forbidden")

	for _, c := range []struct{ who, user, body, want string }{
		{"admin", string(odd), `{"role":"viewer"}`, "Forbidden role_required"},
		{"member", string(odd), `{"role":"owner"}`, "Forbidden role_required"},
		{"owner", "o", `{"role":"viewer"}`, "Conflict last_owner"},
		{"owner", string(odd), `{"role":"king"}`, "Unprocessable Entity out_of_range"},
		{"owner", string(odd), `{}`, "Unprocessable Entity out_of_range"},
		{"owner", string(odd), `{"role":"viewer","name":"x"}`, "Bad Request unknown_field"},
		{"owner", "nobody", `{"role":"viewer"}`, "Not Found member_not_found"},
		{"owner", "m", `{"role":"viewer"}`, "Not Found member_not_found"},
		{"mallory", string(odd), `{"role":"viewer"}`, "Not Found member_not_found"},
	} {
		w.want(w.do("PATCH", path(ident.UserID(c.user)), c.who, c.body), c.want)
	}
	if m := into[api.Member](t, w.do("PATCH", path(odd), "owner", `{"role":"admin"}`), 200); m.UserID != odd || m.Role != api.RoleAdmin || m.Source != "operator" { // needing no issuer, now as before
		t.Errorf("became %+v", m)
	}

	w.want(w.do("DELETE", path(odd), "viewer", ""), "Forbidden role_required")
	w.want(w.do("DELETE", path("o"), "admin", ""), "Forbidden role_required")
	w.want(w.do("DELETE", path("m"), "owner", ""), "Not Found member_not_found")
	w.want(w.do("DELETE", path(odd), "mallory", ""), "Not Found member_not_found")
	w.want(w.do("DELETE", path(odd)+"?keep_tunnels=perhaps", "admin", ""), "Unprocessable Entity out_of_range")
	if got := into[api.Revoked](t, w.do("DELETE", path(odd)+"?keep_tunnels=true", "admin", ""), 200); got != (api.Revoked{Credentials: 3, Tunnels: 2}) || !e.kept {
		t.Errorf("removed: %+v, kept %v", got, e.kept)
	}
	if into[api.Revoked](t, w.do("DELETE", path("v"), "viewer", ""), 200); e.kept {
		t.Error("a viewer who leaves keeps tunnels that nobody asked to keep")
	}
	w.want(w.do("DELETE", path("o"), "owner", ""), "Conflict last_owner")
	if l := into[api.MemberList](t, w.do("GET", "/members", "owner", ""), 200); len(l.Members) != 2 {
		t.Errorf("left are %+v", l.Members)
	}
}

func TestInvitesOverTheAPI(t *testing.T) {
	w, p, _, _ := newPeople(t)
	w.member(p, ours, "admin", "a", api.RoleAdmin)
	w.member(p, ours, "member", "m", api.RoleMember)
	w.member(p, theirs, "mallory", "x", api.RoleOwner)
	c := into[api.CreatedInvite](t, w.do("POST", "/invites", "admin", `{"name":"bob","role":"viewer","expires_in":"2h"}`), 201)
	_, secret, ok := strings.Cut(c.InviteURL, "https://console.example.com/console#invite=")
	if !ok || c.Role != api.RoleViewer || c.ExpiresAt.Sub(c.CreatedAt) != 2*time.Hour || !strings.HasPrefix(secret, ident.PrefixInvite) {
		t.Fatalf("invited: %+v", c)
	}
	r := w.do("GET", "/invites", "admin", "")
	if l := into[api.InviteList](t, r, 200); len(l.Invites) != 1 || l.Invites[0] != c.Invite || strings.Contains(string(r.body), secret) || strings.Contains(string(r.body), ident.Secret(secret).Hash()) {
		t.Errorf("listed: %s", r.body)
	}
	if l := into[api.InviteList](t, w.do("GET", "/invites", "mallory", ""), 200); len(l.Invites) != 0 {
		t.Errorf("another team sees %+v", l.Invites)
	}
	for _, bad := range []struct{ who, body, want string }{
		{"member", `{"name":"x"}`, "Forbidden role_required"},
		{"admin", `{"name":"x","role":"owner"}`, "Forbidden role_required"},
		{"admin", `{"name":""}`, "Unprocessable Entity out_of_range"},
		{"admin", `{"name":"x","expires_in":"25h"}`, "Unprocessable Entity out_of_range"},
		{"admin", `{"name":"x","team_id":"` + string(theirs) + `"}`, "Bad Request unknown_field"},
		{"admin", ``, "Bad Request invalid_body"},
		{"integration", `{"name":"x"}`, "Forbidden forbidden"},
	} {
		w.want(w.do("POST", "/invites", bad.who, bad.body), bad.want)
	}
	w.want(w.do("DELETE", "/invites/"+c.InviteID, "mallory", ""), "Not Found invite_not_found")
	w.want(w.do("DELETE", "/invites/"+c.InviteID, "member", ""), "Forbidden role_required")
	w.want(w.do("DELETE", "/invites/nothing", "admin", ""), "Not Found invite_not_found")
	if r := w.do("DELETE", "/invites/"+c.InviteID, "admin", ""); r.status != 204 {
		t.Errorf("taken back: %d %s", r.status, r.body)
	}
	w.want(w.do("DELETE", "/invites/"+c.InviteID, "admin", ""), "Not Found invite_not_found")
	// A flood is bounded, and the other team has its own bound.
	for i := range 100 {
		into[api.CreatedInvite](t, w.do("POST", "/invites", "admin", fmt.Sprintf(`{"name":"p%d"}`, i)), 201)
	}
	w.want(w.do("POST", "/invites", "admin", `{"name":"one more"}`), "Too Many Requests too_many_members")
	into[api.CreatedInvite](t, w.do("POST", "/invites", "mallory", `{"name":"theirs"}`), 201)
}

func TestDevicesOverTheAPI(t *testing.T) {
	w, p, s, _ := newPeople(t)
	w.member(p, ours, "alice", "alice", api.RoleViewer)
	w.member(p, ours, "bob", "bob", api.RoleOwner)
	_, here, err := p.SignIn(t.Context(), "alice", "issuer", nil, nil, "Firefox", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	laptop := store.CredentialRecord{ID: ident.NewCredentialID(), Kind: api.KindDevice, Team: ours, User: "alice", Name: "laptop", Hash: "h", Prefix: "dk-aaaaaaaaa", CreatedAt: time.Now().UTC()}
	if err := s.CreateCredential(t.Context(), laptop); err != nil {
		t.Fatal(err)
	}
	if err := s.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := into[api.Devices](t, w.do("GET", "/devices", "alice", ""), 200)
	if len(d.Devices) != 1 || d.Devices[0].ID != laptop.ID || len(d.SignIns) != 1 || d.SignIns[0].Method != "issuer" || d.SignIns[0].RemoteAddr != "192.0.2.1" || d.Passkeys == nil {
		t.Errorf("alice gets in by %+v", d)
	}
	if r := w.do("GET", "/devices", "alice", ""); strings.Contains(string(r.body), here.Hash) {
		t.Errorf("the hash is told: %s", r.body)
	}
	if d := into[api.Devices](t, w.do("GET", "/devices", "bob", ""), 200); len(d.Devices)+len(d.SignIns) != 0 {
		t.Errorf("bob sees %+v", d)
	}
	for _, id := range []string{string(laptop.ID), d.SignIns[0].SignInID} {
		w.want(w.do("DELETE", "/devices/"+id, "bob", ""), "Not Found device_not_found")
		w.want(w.do("DELETE", "/devices/"+id, "device", ""), "Forbidden forbidden")
		if r := w.do("DELETE", "/devices/"+id, "alice", ""); r.status != 204 {
			t.Errorf("ended: %d %s", r.status, r.body)
		}
	}
	w.want(w.do("DELETE", "/devices/"+d.SignIns[0].SignInID, "alice", ""), "Not Found device_not_found")
}
