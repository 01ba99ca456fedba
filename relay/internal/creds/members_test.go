package creds_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

// removed is somebody's place in teamA after they were removed.
func removed(user ident.UserID) store.MemberRecord {
	return store.MemberRecord{Team: teamA, User: user, Role: api.RoleOwner, Source: store.SourceInvite, RemovedAt: time.Now()}
}

func TestRolesOfAnIssuersPeople(t *testing.T) {
	i := issuer.Start(t)
	m := newMemory()
	with := func(claim string, mapped map[string]api.Role) *creds.Authenticator {
		return newAuth(t, creds.Config{Store: m, OIDC: creds.OIDC{Issuer: i.URL(), Audience: issuer.Audience, RolesClaim: claim, Roles: mapped}})
	}
	silent, speaks := with("", nil), with("roles", map[string]api.Role{"gpu-admins": api.RoleAdmin, "member": api.RoleViewer, "robots": api.RoleMember})
	m.member(store.MemberRecord{Team: teamA, User: "promoted", Role: api.RoleOwner, Source: store.SourceIssuer})
	m.member(store.MemberRecord{Team: teamA, User: "invited", Role: api.RoleViewer, Source: store.SourceInvite})
	m.member(store.MemberRecord{Team: teamA, User: "by-hand", Role: api.RoleMember, Source: store.SourceOperator})
	m.member(removed("gone"))
	m.member(store.MemberRecord{Team: teamA, User: "unsaid", Role: api.RoleOwner, Source: store.SourceIssuer, RemovedAt: time.Now(), RemovedBy: store.SourceIssuer})
	m.member(store.MemberRecord{Team: teamA, User: "lessened", Role: api.RoleViewer, Source: store.SourceOwner, RemovedAt: time.Now(), RemovedBy: store.SourceIssuer})
	object := func(more string) json.RawMessage {
		return json.RawMessage(fmt.Sprintf(`[{"id":%q,"name":"Render"%s},{"id":%q}]`, teamA, more, teamB))
	}
	for name, c := range map[string]struct {
		a      *creds.Authenticator
		claims issuer.Claims
		want   string // a role, or the code of the refusal
	}{
		"nobody says anything":            {silent, issuer.Claims{}, "admin"},
		"a claim, and none of his":        {speaks, issuer.Claims{}, "member"},
		"a claim that is null":            {speaks, issuer.Claims{"roles": json.RawMessage("null")}, "member"},
		"a role's own name":               {speaks, issuer.Claims{"roles": "owner"}, "owner"},
		"a mapped value":                  {speaks, issuer.Claims{"roles": "gpu-admins"}, "admin"},
		"the mapping wins over the name":  {speaks, issuer.Claims{"roles": "member"}, "viewer"},
		"the highest of a list":           {speaks, issuer.Claims{"roles": []any{"viewer", "gpu-admins", "robots", 7, "king"}}, "admin"},
		"a list of nothing known":         {speaks, issuer.Claims{"roles": []string{"king", "Owner", "owner "}}, "member"},
		"an empty list":                   {speaks, issuer.Claims{"roles": []string{}}, "member"},
		"by team":                         {speaks, issuer.Claims{"roles": map[string]any{string(teamA): "owner", string(teamB): "viewer"}}, "owner"},
		"by team, a list":                 {speaks, issuer.Claims{"roles": map[string]any{strings.ToUpper(string(teamA)): []string{"viewer", "robots"}}}, "member"},
		"by team, of another":             {speaks, issuer.Claims{"roles": map[string]any{string(teamB): "owner", "x": "owner"}}, "member"},
		"in the teams claim":              {silent, issuer.Claims{"teams": object(`,"role":"viewer"`)}, "viewer"},
		"the teams claim is nearer":       {speaks, issuer.Claims{"teams": object(`,"role":"viewer"`), "roles": "owner"}, "viewer"},
		"a role there that nobody knows":  {silent, issuer.Claims{"teams": object(`,"role":"king"`)}, "admin"},
		"a role there that is no text":    {silent, issuer.Claims{"teams": object(`,"role":7`)}, "admin"},
		"roles that are a number":         {speaks, issuer.Claims{"roles": 7}, "unauthenticated"},
		"the store knows him, too":        {silent, issuer.Claims{"sub": "promoted"}, "owner"},
		"the issuer's word is above":      {speaks, issuer.Claims{"sub": "promoted", "roles": "viewer"}, "viewer"},
		"the issuer names him no more":    {silent, issuer.Claims{"sub": "promoted", "teams": []string{string(teamB)}}, "not_a_member"},
		"invited, no word of the issuer":  {silent, issuer.Claims{"sub": "invited", "teams": nil}, "viewer"},
		"by the operator, no word of it":  {speaks, issuer.Claims{"sub": "by-hand", "teams": nil}, "member"},
		"a role of no team is none":       {speaks, issuer.Claims{"teams": nil, "roles": "owner"}, "not_a_member"},
		"removed, whatever the issuer":    {speaks, issuer.Claims{"sub": "gone", "roles": "owner"}, "not_a_member"},
		"named again, as an owner has it": {silent, issuer.Claims{"sub": "lessened"}, "viewer"},
		"taken back by the issuer":        {silent, issuer.Claims{"sub": "unsaid", "teams": nil}, "not_a_member"},
		"and named by it again":           {silent, issuer.Claims{"sub": "unsaid"}, "admin"},
		"and named again with a role":     {speaks, issuer.Claims{"sub": "unsaid", "roles": "viewer"}, "viewer"},
		"a name that only the relay uses": {silent, issuer.Claims{"sub": creds.OwnUsers + "x"}, "unauthenticated"},
	} {
		t.Run(name, func(t *testing.T) {
			token := i.Token(member(c.claims))
			r := request(t, bearer(token), inTeam(teamA))
			if role, err := api.ParseRole(c.want); err == nil {
				if p := wantAccepted(t, c.a, r); p.Role != role {
					t.Errorf("the role is %s, want %s", p.Role, role)
				}
				return
			}
			if p := refusal(t, c.a, r); p == nil || string(p.Code) != c.want {
				t.Errorf("refused with %+v, want %s", p, c.want)
			}
		})
	}
}

// Where people sign in with an issuer, its id token or userinfo say the same as its
// session tokens do.
func TestTeamsOfAnIssuersClaims(t *testing.T) {
	m := newMemory()
	m.set(func(m *memory) { m.teams[teamB] = store.TeamRecord{ID: teamB, Name: "Audio"} })
	a := newAuth(t, creds.Config{Store: m, OIDC: creds.OIDC{Issuer: "https://login.example.com", Audience: "a", RolesClaim: "roles"}})
	teams, err := a.IssuerTeams(fmt.Appendf(nil, `{"teams":[{"id":%q,"name":"Render"},%q,"not a team",%q],"roles":{%q:"owner"}}`, teamA, teamB, teamA, teamA))
	want := []store.SignInTeam{{ID: teamA, Name: "Render", Role: api.RoleOwner}, {ID: teamB}}
	if err != nil || fmt.Sprint(teams) != fmt.Sprint(want) {
		t.Fatalf("the claims name %v, %v; want %v", teams, err, want)
	}
	if teams, err := a.IssuerTeams([]byte(`{}`)); err != nil || len(teams) != 0 {
		t.Errorf("no claims name %v, %v", teams, err)
	}
	for _, bad := range []string{``, `[]`, `{"teams":7}`, `{"roles":7}`} {
		if _, err := a.IssuerTeams([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	m.member(store.MemberRecord{Team: "0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0003", User: "alice", Role: api.RoleViewer, Source: store.SourceInvite})
	got := a.TeamsOfSignIn(m.signIn("alice", teams...))
	if fmt.Sprint(got) != fmt.Sprint([]api.MyTeam{
		{TeamID: "0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0003", Role: api.RoleViewer}, {TeamID: teamB, TeamName: "Audio", Role: api.RoleMember}, {TeamID: teamA, TeamName: "Render", Role: api.RoleOwner},
	}) {
		t.Errorf("her teams are %v", got)
	}
	m.member(removed("alice"))
	if got := a.TeamsOfSignIn(m.signIn("alice", teams...)); len(got) != 2 {
		t.Errorf("after she was removed from one her teams are %v", got)
	}
}

func TestThePagesBearer(t *testing.T) {
	m := newMemory()
	key := ident.ClusterKey{7}
	a := newAuth(t, creds.Config{Store: m, Key: key})
	m.member(store.MemberRecord{Team: teamA, User: "adit:x", Role: api.RoleMember, Source: store.SourceInvite})
	rec := m.signIn("adit:x", store.SignInTeam{ID: teamB, Role: api.RoleViewer})
	now := time.Now()
	secret, until := a.BrowserToken(rec, now)
	if left := until.Sub(now); left < 9*time.Minute || left > 10*time.Minute {
		t.Errorf("the bearer is good for %v, want ten minutes", left)
	}
	p := wantAccepted(t, a, request(t, bearer(secret.Reveal()), inTeam(teamA)))
	if p.Kind != creds.KindUser || p.User != "adit:x" || p.Role != api.RoleMember || p.SignIn != rec.Hash || !p.ExpiresAt.Equal(rec.EndsAt) || p.Credential != "" {
		t.Errorf("the page is %+v", p)
	}
	if p := wantAccepted(t, a, request(t, bearer(secret.Reveal()), inTeam(teamB))); p.Role != api.RoleViewer {
		t.Errorf("in the team that the issuer named at the sign-in: %+v", p)
	}
	// Another relay of the pool knows it, and one of another pool does not.
	wantAccepted(t, newAuth(t, creds.Config{Store: m, Key: key}), request(t, bearer(secret.Reveal()), inTeam(teamA)))
	for name, other := range map[string]*creds.Authenticator{
		"another cluster key": newAuth(t, creds.Config{Store: m, Key: ident.ClusterKey{8}}), "no cluster key": newAuth(t, creds.Config{Store: m}),
	} {
		if p := refusal(t, other, request(t, bearer(secret.Reveal()), inTeam(teamA))); p == nil || p.Status != 401 {
			t.Errorf("%s: %+v", name, p)
		}
	}
	made := func(change func(*store.SignInRecord)) string {
		other := m.signIn("adit:x")
		change(&other)
		m.set(func(m *memory) { m.signIns[other.Hash] = other })
		s, _ := a.BrowserToken(other, now)
		return s.Reveal()
	}
	old, _ := a.BrowserToken(rec, now.Add(-10*time.Minute))
	unknown, _ := a.BrowserToken(store.SignInRecord{Hash: ident.NewSecret(ident.PrefixSignIn).Hash(), ExpiresAt: now.Add(time.Hour), EndsAt: now.Add(time.Hour)}, now)
	text := secret.Reveal()
	for name, bad := range map[string]string{
		"ten minutes old":        old.Reveal(),
		"of no sign-in":          unknown.Reveal(),
		"of one that is over":    made(func(r *store.SignInRecord) { r.ExpiresAt = now.Add(-time.Second) }),
		"of one after its end":   made(func(r *store.SignInRecord) { r.EndsAt = now.Add(-time.Second) }),
		"cut short":              text[:len(text)-1],
		"another end":            strings.Replace(text, fmt.Sprint(until.Unix()), fmt.Sprint(until.Unix()+1), 1),
		"nothing but its prefix": "bt-", "nothing in it": "bt---", "the cookie's hash alone": "bt-" + rec.Hash,
	} {
		if p := refusal(t, a, request(t, bearer(bad), inTeam(teamA))); p == nil || p.Status != 401 || p.Code != api.CodeUnauthenticated {
			t.Errorf("%s: %+v, want 401", name, p)
		}
	}
	wantRefused(t, a, request(t, bearer(text)), 400, "team_required")
	wantRefused(t, a, request(t, bearer(text), inTeam("0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0003")), 403, "not_a_member")
	if p, err := a.AuthenticatePerson(request(t, bearer(text))); err != nil || p.Team != "" || p.Role != "" || len(a.Teams(p)) != 2 {
		t.Errorf("without a team: %+v, %v, in %v", p, err, a.Teams(p))
	}
	if _, err := a.AuthenticatePerson(request(t, bearer(text), inTeam("x"))); err == nil {
		t.Error("a team that is none is refused also where none is needed")
	}
	m.set(func(m *memory) { m.stale = true })
	wantRefused(t, a, request(t, bearer(text), inTeam(teamA)), 503, "store_unavailable")
	m.set(func(m *memory) {
		m.stale = false
		m.users["adit:x"] = store.UserRecord{ID: "adit:x", SignedOutAt: rec.IssuedAt}
	})
	wantRefused(t, a, request(t, bearer(text), inTeam(teamA)), 401, "unauthenticated")
}

// A sign-in that another relay has just written is looked for once; made-up ones never
// reach the store.
func TestASignInThatIsNotHereYet(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m, Key: ident.ClusterKey{7}})
	rec := store.SignInRecord{Hash: ident.NewSecret(ident.PrefixSignIn).Hash(), ExpiresAt: time.Now().Add(time.Hour), EndsAt: time.Now().Add(time.Hour)}
	secret, _ := a.BrowserToken(rec, time.Now())
	for range 3 {
		wantRefused(t, a, request(t, bearer(secret.Reveal()), inTeam(teamA)), 401, "unauthenticated")
		wantRefused(t, a, request(t, bearer(secret.Reveal()+"0"), inTeam(teamA)), 401, "unauthenticated")
	}
	if m.catchUps != 1 {
		t.Errorf("the store was asked %d times, want once", m.catchUps)
	}
	m.set(func(m *memory) { m.down = true })
	other, _ := a.BrowserToken(store.SignInRecord{Hash: ident.NewSecret(ident.PrefixSignIn).Hash(), ExpiresAt: rec.ExpiresAt, EndsAt: rec.EndsAt}, time.Now())
	wantRefused(t, a, request(t, bearer(other.Reveal()), inTeam(teamA)), 503, "store_unavailable")
}

// TestACredentialNeverOutranksItsMaker has one made by alice, herself and by a device of
// hers, and changes what she is.
func TestACredentialNeverOutranksItsMaker(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	record := func(role api.Role) {
		m.member(store.MemberRecord{Team: teamA, User: "alice", Role: role, Source: store.SourceInvite})
	}
	record(api.RoleOwner)
	owner := creds.Principal{Kind: creds.KindUser, Team: teamA, User: "alice", Role: api.RoleOwner, Name: "user:alice"}
	create := func(by creds.Principal, req api.CreateCredentialRequest) creds.Principal {
		t.Helper()
		req.Name = "x"
		_, secret, err := a.Create(t.Context(), by, teamA, "", req)
		if err != nil {
			t.Fatal(err)
		}
		return wantAccepted(t, a, request(t, bearer(secret.Reveal())))
	}
	byAlice := create(owner, api.CreateCredentialRequest{Kind: api.KindIntegration})
	device := create(owner, api.CreateCredentialRequest{Kind: api.KindDevice, Role: api.RoleMember})
	byDevice := create(device, api.CreateCredentialRequest{Kind: api.KindIntegration})
	machine := create(owner, api.CreateCredentialRequest{Kind: api.KindAgent, AgentID: "gpu-1"})
	anyMachine := create(owner, api.CreateCredentialRequest{Kind: api.KindAgent})
	old := login(t, a, m, api.KindIntegration, func(r *store.CredentialRecord) { r.CreatedBy = "user:alice" }) // of the last release
	nobodys := create(creds.Operator("root"), api.CreateCredentialRequest{Kind: api.KindIntegration})
	if byAlice.Role != api.RoleOwner || device.Role != api.RoleMember || byDevice.Role != api.RoleMember || old.Role != api.RoleAdmin || nobodys.Role != api.RoleAdmin || byAlice.Person() != "alice" || byDevice.Person() != "alice" {
		t.Errorf("made as %s, %s, %s, %s, %s", byAlice.Role, device.Role, byDevice.Role, old.Role, nobodys.Role)
	}
	_, _, err := a.Create(t.Context(), device, teamA, "", api.CreateCredentialRequest{Kind: api.KindIntegration, Name: "x", Role: api.RoleAdmin})
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != api.CodeRoleRequired {
		t.Errorf("a member's device makes an admin: %v", err)
	}
	_, _, err = a.Create(t.Context(), creds.Principal{Kind: creds.KindUser, Team: teamA, User: "x"}, teamA, "", api.CreateCredentialRequest{Kind: api.KindDevice, Name: "x"})
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != api.CodeRoleRequired {
		t.Errorf("somebody without a role makes a device: %v", err)
	}

	record(api.RoleViewer)
	for name, p := range map[string]creds.Principal{"by her": byAlice, "her device": device, "by her device": byDevice, "of the last release": old} {
		if a.Valid(p) {
			t.Errorf("%s: what began with a higher role goes on after she became a viewer", name)
		}
	}
	m.member(removed("alice"))
	for name, p := range map[string]creds.Principal{"by her": byAlice, "her device": device, "by her device": byDevice, "of the last release": old, "for any machine": anyMachine} {
		if a.Valid(p) {
			t.Errorf("%s: it is good still after she was removed", name)
		}
	}
	for name, p := range map[string]creds.Principal{"a machine": machine, "the operator's": nobodys} {
		if !a.Valid(p) {
			t.Errorf("%s ended with her", name)
		}
	}
}

// Where the issuer has a claim for roles and says none of somebody any more, they are a
// member, and what they made as more is no more than that.
func TestACredentialIsNoMoreThanTheDefault(t *testing.T) {
	for claim, want := range map[string]api.Role{"roles": api.RoleMember, "": api.RoleAdmin} {
		m := newMemory()
		a := newAuth(t, creds.Config{Store: m, OIDC: creds.OIDC{RolesClaim: claim}})
		m.member(store.MemberRecord{Team: teamA, User: "alice", Source: store.SourceIssuer})
		p := login(t, a, m, api.KindIntegration, func(r *store.CredentialRecord) { r.Maker, r.Role = "alice", api.RoleOwner })
		if p.Role != want {
			t.Errorf("roles claim %q: it is %s, want %s", claim, p.Role, want)
		}
	}
}

// TestWhatAPersonHoldsOpenEnds is told of a change, and looks by itself when it is not.
func TestWhatAPersonHoldsOpenEnds(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *memory, rec store.SignInRecord)
		want   error // of what their browser opened
		device error // of what their device did
	}{
		"signed out": {func(m *memory, rec store.SignInRecord) {
			m.set(func(m *memory) { delete(m.signIns, rec.Hash) })
			m.tell(store.Change{Kind: store.KindSignIn, User: rec.User, Deleted: true})
		}, creds.ErrSignedOut, nil},
		"signed out everywhere": {func(m *memory, rec store.SignInRecord) {
			m.set(func(m *memory) { m.users[rec.User] = store.UserRecord{ID: rec.User, SignedOutAt: time.Now()} })
			m.tell(store.Change{Kind: store.KindUser, User: rec.User})
		}, creds.ErrSignedOut, nil},
		"expired": {func(m *memory, rec store.SignInRecord) {
			rec.ExpiresAt = time.Now()
			m.set(func(m *memory) { m.signIns[rec.Hash] = rec })
			m.tell(store.Change{Kind: store.KindSignIn, User: rec.User})
		}, creds.ErrExpired, nil},
		"the issuer names the team no more": {func(m *memory, rec store.SignInRecord) {
			m.set(func(m *memory) { m.members = nil })
			m.tell(store.Change{Kind: store.KindSignIn, User: rec.User})
		}, creds.ErrRemoved, nil},
		"removed": {func(m *memory, rec store.SignInRecord) { m.member(removed(rec.User)) }, creds.ErrRemoved, creds.ErrRemoved},
		"a viewer now": {func(m *memory, rec store.SignInRecord) {
			m.member(store.MemberRecord{Team: teamA, User: rec.User, Role: api.RoleViewer, Source: store.SourceInvite})
		}, creds.ErrDemoted, creds.ErrDemoted},
		"an owner now": {func(m *memory, rec store.SignInRecord) {
			m.member(store.MemberRecord{Team: teamA, User: rec.User, Role: api.RoleOwner, Source: store.SourceInvite})
		}, nil, nil},
		"another is removed": {func(m *memory, _ store.SignInRecord) { m.member(removed("carol")) }, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				a := newAuth(t, creds.Config{Store: m, Changes: m.changes, Key: ident.ClusterKey{7}})
				defer start(t, a)()
				synctest.Wait()
				m.member(store.MemberRecord{Team: teamA, User: "bob", Role: api.RoleMember, Source: store.SourceInvite})
				rec := m.signIn("bob")
				secret, _ := a.BrowserToken(rec, time.Now())
				page := wantAccepted(t, a, request(t, bearer(secret.Reveal()), inTeam(teamA)))
				device := login(t, a, m, api.KindDevice, func(r *store.CredentialRecord) { r.User = "bob" })
				browser, stop := a.Watch(t.Context(), page)
				defer stop()
				other, stopOther := a.Watch(t.Context(), device)
				defer stopOther()
				time.Sleep(time.Hour) // the bearer has expired long ago, and what it opened has not
				if ended(browser) != nil || ended(other) != nil {
					t.Fatalf("ended by themselves: %v, %v", ended(browser), ended(other))
				}
				c.change(m, rec)
				if errors.Is(c.want, creds.ErrExpired) {
					time.Sleep(2 * time.Second) // nobody tells of an expiry
				}
				synctest.Wait()
				for what, got := range map[string][2]error{"browser": {ended(browser), c.want}, "device": {ended(other), c.device}} {
					if !errors.Is(got[0], got[1]) || got[0] != nil && !creds.Ended(got[0]) {
						t.Errorf("what the %s opened ended with %v, want %v", what, got[0], got[1])
					}
				}
			})
		})
	}
}

func TestEndedKnowsItsCauses(t *testing.T) {
	for _, other := range []error{nil, context.Canceled, http.ErrAbortHandler} {
		if creds.Ended(other) {
			t.Errorf("%v is no end of a right", other)
		}
	}
}
