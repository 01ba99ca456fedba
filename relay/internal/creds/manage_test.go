package creds_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

var alice = creds.Principal{Kind: creds.KindUser, Team: teamA, User: "alice", Role: api.RoleAdmin, Name: "user:alice"}

func wantProblem(t *testing.T, err error, status int, code api.Code, detail string) {
	t.Helper()
	var p *api.Problem
	if !errors.As(err, &p) || p.Status != status || p.Code != code || !strings.Contains(p.Detail, detail) {
		t.Errorf("error is %v, want %d %s about %q", err, status, code, detail)
	}
}

func life(d time.Duration) *api.Duration { v := api.Duration(d); return &v }

func TestCreateUseListRevoke(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	for _, c := range []struct {
		req    api.CreateCredentialRequest
		prefix string
		name   string
	}{
		{api.CreateCredentialRequest{Kind: api.KindIntegration, Name: "ci", ExpiresIn: life(24 * time.Hour)}, "sk-", "sk:ci"},
		{api.CreateCredentialRequest{Kind: api.KindAgent, Name: "gpu", AgentID: "gpu-1"}, "ak-", "ak:gpu"},
		{api.CreateCredentialRequest{Kind: api.KindDevice, Name: "laptop", ExpiresIn: life(365 * 24 * time.Hour)}, "dk-", "dk:alice/laptop"},
	} {
		rec, secret, err := a.Create(t.Context(), alice, teamA, "mallory", c.req)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(secret.Reveal(), c.prefix) || rec.Prefix != secret.Reveal()[:12] || rec.Hash == "" || strings.Contains(rec.Hash, secret.Reveal()) {
			t.Errorf("%s: prefix %q of a secret that begins %q", rec.Kind, rec.Prefix, secret.Reveal()[:3])
		}
		p := wantAccepted(t, a, request(t, bearer(secret.Reveal())))
		if p.Name != c.name || p.Team != teamA || p.Agent != c.req.AgentID || c.req.Kind == api.KindDevice && p.User != "alice" {
			t.Errorf("%s authenticates as %+v", rec.Kind, p)
		}
		if rec.CreatedBy != "user:alice" {
			t.Errorf("created by %q", rec.CreatedBy)
		}
		list, err := a.List(alice, teamA)
		if err != nil || list[0].ID != rec.ID || list[0].Revoked {
			t.Errorf("list %+v, %v: want the newest first", list, err)
		}
		for range 2 { // revoking twice is no error
			if _, err := a.Revoke(t.Context(), alice, teamA, rec.ID, false); err != nil {
				t.Errorf("revoke: %v", err)
			}
		}
		wantRefused(t, a, request(t, bearer(secret.Reveal())), 401, "unauthenticated")
		if list, _ := a.List(alice, teamA); !list[0].Revoked {
			t.Error("the list does not say that it is revoked")
		}
	}
	if list, err := a.List(creds.Principal{Kind: creds.KindUser, Team: teamB, User: "bob"}, teamB); err != nil || list == nil || len(list) != 0 {
		t.Errorf("another team's list is %+v (%v), want an empty one", list, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	a := newAuth(t, creds.Config{})
	for _, c := range []struct {
		req    api.CreateCredentialRequest
		detail string
	}{
		{api.CreateCredentialRequest{Name: "x"}, "kind"},
		{api.CreateCredentialRequest{Kind: "root", Name: "x"}, "kind"},
		{api.CreateCredentialRequest{Kind: api.KindAgent}, "name"},
		{api.CreateCredentialRequest{Kind: api.KindAgent, Name: strings.Repeat("n", 65)}, "name"},
		{api.CreateCredentialRequest{Kind: api.KindAgent, Name: "a\x1b[31m"}, "name"},
		{api.CreateCredentialRequest{Kind: api.KindAgent, Name: "x", ExpiresIn: life(23 * time.Hour)}, "expires_in"},
		{api.CreateCredentialRequest{Kind: api.KindAgent, Name: "x", ExpiresIn: life(366 * 24 * time.Hour)}, "expires_in"},
		{api.CreateCredentialRequest{Kind: api.KindAgent, Name: "x", ExpiresIn: life(0)}, "expires_in"},
		{api.CreateCredentialRequest{Kind: api.KindAgent, Name: "x", ExpiresIn: life(-time.Hour)}, "expires_in"},
		{api.CreateCredentialRequest{Kind: api.KindAgent, Name: "x", AgentID: "../x"}, "agent_id"},
		{api.CreateCredentialRequest{Kind: api.KindIntegration, Name: "x", AgentID: "gpu-1"}, "agent_id"},
	} {
		_, secret, err := a.Create(t.Context(), alice, teamA, "", c.req)
		wantProblem(t, err, 422, "out_of_range", c.detail)
		if secret != "" {
			t.Error("a secret beside an error")
		}
	}
	_, _, err := a.Create(t.Context(), creds.Operator("root"), teamA, "", api.CreateCredentialRequest{Kind: api.KindDevice, Name: "x"})
	wantProblem(t, err, 422, "out_of_range", "user")
}

func TestTheOperatorBootstraps(t *testing.T) {
	a := newAuth(t, creds.Config{})
	root := creds.Operator("root")
	rec, secret, err := a.Create(t.Context(), root, teamA, "bob", api.CreateCredentialRequest{Kind: api.KindDevice})
	if err != nil || rec.Name != "device" || rec.CreatedBy != "operator:root" {
		t.Fatalf("%+v, %v", rec, err)
	}
	bob := wantAccepted(t, a, request(t, bearer(secret.Reveal())))
	if bob.User != "bob" || !bob.MayManageCredentials() {
		t.Errorf("%+v", bob)
	}
	if _, _, err := a.Create(t.Context(), bob, teamA, "", api.CreateCredentialRequest{Kind: api.KindAgent, Name: "gpu"}); err != nil {
		t.Errorf("a person's device cannot make credentials: %v", err)
	}
	if list, err := a.List(root, teamA); err != nil || len(list) != 2 {
		t.Errorf("%d in the list, %v", len(list), err)
	}
	if _, err := a.Revoke(t.Context(), root, teamA, rec.ID, false); err != nil {
		t.Error(err)
	}
}

func TestWhoMayNotManage(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	rec, _, err := a.Create(t.Context(), alice, teamA, "", api.CreateCredentialRequest{Kind: api.KindAgent, Name: "gpu"})
	if err != nil {
		t.Fatal(err)
	}
	bob := creds.Principal{Kind: creds.KindUser, Team: teamB, User: "bob", Name: "user:bob"}
	for _, c := range []struct {
		by     creds.Principal
		team   ident.TeamID
		status int
		code   api.Code
	}{
		{login(t, a, m, api.KindIntegration, nil), teamA, 403, "forbidden"},
		{login(t, a, m, api.KindAgent, nil), teamA, 403, "forbidden"},
		{creds.Principal{}, teamA, 403, "forbidden"},
		{bob, teamA, 404, "not_found"},
	} {
		_, _, err := a.Create(t.Context(), c.by, c.team, "", api.CreateCredentialRequest{Kind: api.KindAgent, Name: "x"})
		wantProblem(t, err, c.status, c.code, "")
		_, err = a.Revoke(t.Context(), c.by, c.team, rec.ID, false)
		wantProblem(t, err, c.status, c.code, "")
		_, err = a.List(c.by, c.team)
		wantProblem(t, err, c.status, c.code, "")
	}
	// Another team's credential answers as one that does not exist.
	_, foreign := a.Revoke(t.Context(), bob, teamB, rec.ID, false)
	_, absent := a.Revoke(t.Context(), bob, teamB, ident.NewCredentialID(), false)
	wantProblem(t, foreign, 404, "credential_not_found", "")
	if foreign.Error() != absent.Error() {
		t.Errorf("another team's credential: %v, none at all: %v", foreign, absent)
	}
	if got, _ := m.Credential(rec.ID); !got.RevokedAt.IsZero() {
		t.Error("it was revoked nevertheless")
	}
}

func TestManagingWithoutTheStore(t *testing.T) {
	m := newMemory()
	m.down = true
	a := newAuth(t, creds.Config{Store: m})
	_, secret, err := a.Create(t.Context(), alice, teamA, "", api.CreateCredentialRequest{Kind: api.KindAgent, Name: "gpu"})
	wantProblem(t, err, 503, "store_unavailable", "")
	if secret != "" {
		t.Error("a secret that is stored nowhere")
	}
	_, err = a.Revoke(t.Context(), alice, teamA, ident.NewCredentialID(), false)
	wantProblem(t, err, 503, "store_unavailable", "")
}

func TestATeamHasALimitOfLiveCredentials(t *testing.T) {
	a := newAuth(t, creds.Config{MaxPerTeam: 2})
	create := func() (ident.CredentialID, error) {
		rec, _, err := a.Create(t.Context(), alice, teamA, "", api.CreateCredentialRequest{Kind: api.KindAgent, Name: "gpu"})
		return rec.ID, err
	}
	id, err := create()
	if _, err2 := create(); err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	_, err = create()
	wantProblem(t, err, 429, "too_many_credentials", "limit")
	if _, err := a.Revoke(t.Context(), alice, teamA, id, false); err != nil {
		t.Fatal(err)
	}
	if _, err := create(); err != nil {
		t.Errorf("revoked credentials count: %v", err)
	}
}

// The relay that says a credential is revoked does not accept it, though its index
// learns of its own writes by watching.
func TestRevokedAtOnceThoughTheIndexLags(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	rec, secret, err := a.Create(t.Context(), alice, teamA, "", api.CreateCredentialRequest{Kind: api.KindAgent, Name: "gpu"})
	if err != nil {
		t.Fatal(err)
	}
	m.lags = true
	if _, err := a.Revoke(t.Context(), alice, teamA, rec.ID, false); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, a, request(t, bearer(secret.Reveal())), 401, "unauthenticated")
}

// Whoever makes and revokes in a loop does not fill the store: what is revoked stays
// for a while.
func TestATeamHasALimitOfAllCredentials(t *testing.T) {
	a := newAuth(t, creds.Config{MaxPerTeam: 2})
	for range 20 {
		rec, _, err := a.Create(t.Context(), alice, teamA, "", api.CreateCredentialRequest{Kind: api.KindAgent, Name: "gpu"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Revoke(t.Context(), alice, teamA, rec.ID, false); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := a.Create(t.Context(), alice, teamA, "", api.CreateCredentialRequest{Kind: api.KindAgent, Name: "gpu"})
	wantProblem(t, err, 429, "too_many_credentials", "revoked")
}
