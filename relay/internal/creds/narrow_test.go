package creds_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

func TestANarrowedCredential(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	rec, secret, err := a.Create(t.Context(), alice, teamA, "", api.CreateCredentialRequest{
		Kind: api.KindIntegration, Name: "ci", Role: api.RoleMember, Scopes: []api.Scope{api.ScopeTunnels, api.ScopeRead}, Agents: []string{"render-*", "gpu-1"}, Ports: " 8188, 8000 - 8100 ",
	})
	if err != nil {
		t.Fatal(err)
	}
	p := wantAccepted(t, a, request(t, bearer(secret.Reveal())))
	if p.Role != api.RoleMember || len(p.Scopes) != 2 || p.Ports != "8188,8000-8100" || p.Maker != "alice" {
		t.Errorf("it is %+v", p)
	}
	for agent, want := range map[ident.AgentID]bool{"gpu-1": true, "gpu-11": false, "render-": true, "render-7": true, "xrender-7": false, "": false} {
		if p.MayReach(agent) != want {
			t.Errorf("it reaches %q: %t, want %t", agent, !want, want)
		}
	}
	for port, want := range map[uint16]bool{8188: true, 8189: false, 8000: true, 8100: true, 8101: false, 22: false} {
		if p.MayReachPort(port) != want {
			t.Errorf("it reaches port %d: %t, want %t", port, !want, want)
		}
	}
	if !alice.MayReach("gpu-9") || !alice.MayReachPort(22) {
		t.Error("who is not narrowed reaches everything")
	}
	// What nobody could have written here reaches nothing.
	if bad := (creds.Principal{Agents: []string{"["}, Ports: "x"}); bad.MayReach("[") || bad.MayReachPort(8188) {
		t.Error("a pattern and a port that cannot be read reach something")
	}
	if list, _ := a.List(alice, teamA); len(list) != 1 || list[0].Role != api.RoleMember || list[0].Ports != rec.Ports || len(list[0].Agents) != 2 || len(list[0].Scopes) != 2 {
		t.Errorf("the list shows %+v", list)
	}
}

func TestWhatCannotNarrowACredential(t *testing.T) {
	a := newAuth(t, creds.Config{})
	many := strings.Split(strings.Repeat("x ", 17), " ")[:17]
	for name, req := range map[string]api.CreateCredentialRequest{
		"role: a role is one of":      {Kind: api.KindIntegration, Role: "king"},
		"role: an agent's":            {Kind: api.KindAgent, Role: api.RoleViewer},
		"your role is admin":          {Kind: api.KindIntegration, Role: api.RoleOwner},
		"your role is admin, so":      {Kind: api.KindDevice, Role: api.RoleOwner},
		"scopes: each of read":        {Kind: api.KindIntegration, Scopes: []api.Scope{"everything"}},
		"scopes: each of read, tu":    {Kind: api.KindIntegration, Scopes: []api.Scope{api.ScopeRead, api.ScopeRead}},
		"only for kind integration":   {Kind: api.KindDevice, Scopes: []api.Scope{api.ScopeRead}},
		"only for kind integration ":  {Kind: api.KindAgent, Ports: "8188"},
		" only for kind integration":  {Kind: api.KindDevice, Agents: []string{"x"}},
		"agents: at most 16":          {Kind: api.KindIntegration, Agents: many},
		"agents: patterns of":         {Kind: api.KindIntegration, Agents: []string{"gpu-["}},
		"agents: patterns of agent":   {Kind: api.KindIntegration, Agents: []string{""}},
		"agents: patterns of agent i": {Kind: api.KindIntegration, Agents: []string{strings.Repeat("x", 65)}},
		"ports: ":                     {Kind: api.KindIntegration, Ports: "http"},
		"ports: at most 32 parts":     {Kind: api.KindIntegration, Ports: strings.Repeat("1,", 32) + "1"},
	} {
		req.Name = "x"
		_, _, err := a.Create(t.Context(), alice, teamA, "", req)
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Code != api.CodeOutOfRange && p.Code != api.CodeRoleRequired || !strings.Contains(p.Detail, strings.TrimSpace(name)) {
			t.Errorf("%+v: %v, want a refusal with %q", req, err, name)
		}
	}
}

func TestWhoseTunnelItIs(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	for _, r := range []store.CredentialRecord{
		{ID: "laptop", Team: teamA, Kind: api.KindDevice, User: "alice"},
		{ID: "ci", Team: teamA, Kind: api.KindIntegration, Maker: "alice"},
		{ID: "by-laptop", Team: teamA, Kind: api.KindIntegration, MadeBy: "laptop"},
		{ID: "old", Team: teamA, Kind: api.KindIntegration, CreatedBy: "user:alice"},
		{ID: "bobs", Team: teamA, Kind: api.KindDevice, User: "bob"},
	} {
		m.set(func(m *memory) { m.records[r.ID] = r })
	}
	callers := map[string]creds.Principal{
		"alice": alice, "laptop": {Kind: creds.KindDevice, Team: teamA, User: "alice", Credential: "laptop"}, "ci": {Kind: creds.KindIntegration, Team: teamA, Maker: "alice", Credential: "ci"},
		"by-laptop": {Kind: creds.KindIntegration, Team: teamA, Credential: "by-laptop"}, "bob": {Kind: creds.KindUser, Team: teamA, User: "bob"}, "nobody": {},
	}
	for name, c := range map[string]struct {
		opened store.Opened
		owners string
	}{
		"by alice":                     {store.Opened{User: "alice", By: "user:alice"}, "alice laptop"},
		"by her laptop":                {store.Opened{User: "alice", Credential: "laptop"}, "alice laptop"},
		"by her key":                   {store.Opened{User: "alice", Credential: "ci"}, "alice laptop ci"},
		"by her laptop's key":          {store.Opened{User: "alice", Credential: "by-laptop"}, "alice laptop by-laptop"},
		"by bob's device":              {store.Opened{User: "bob", Credential: "bobs"}, "bob"},
		"by the last release, alice":   {store.Opened{By: "user:alice"}, "alice laptop"},
		"by the last release, laptop":  {store.Opened{Credential: "laptop", By: "dk:alice/x"}, "alice laptop"},
		"by the last release, her key": {store.Opened{Credential: "old", By: "sk:x"}, "alice laptop"},
		"by the operator":              {store.Opened{By: "operator:root"}, ""},
		"by a key that is gone":        {store.Opened{Credential: "gone", By: "sk:alice"}, ""},
	} {
		for who, p := range callers {
			want := strings.Contains(" "+c.owners+" ", " "+who+" ")
			if a.Owns(p, c.opened) != want {
				t.Errorf("opened %s: %s owns it: %t, want %t", name, who, !want, want)
			}
		}
	}
}
