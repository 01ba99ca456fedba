package people_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/people"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

func TestAnInvitationWorksOnce(t *testing.T) {
	w, ctx, team := newWorld(t), t.Context(), ident.NewTeamID()
	i, err := w.Invite(ctx, in(team), team, api.CreateInviteRequest{Name: " alice ", Role: api.RoleAdmin})
	if err != nil || i.Name != "alice" || i.Role != api.RoleAdmin || i.ExpiresAt.Sub(i.CreatedAt) != 24*time.Hour {
		t.Fatalf("invited: %+v %v", i, err)
	}
	secret := secretOf(t, i)
	if list := w.Invites(team); len(list) != 1 || list[0] != i.Invite {
		t.Errorf("listed: %+v", list)
	}
	// Many at once: one gets in.
	var wg sync.WaitGroup
	var mu sync.Mutex
	var in []store.MemberRecord
	for range 8 {
		wg.Go(func() {
			m, u, err := w.Accept(ctx, secret, "", "192.0.2.1")
			if err != nil {
				wantCode(t, "a second use", err, api.CodeInviteRefused)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if in = append(in, m); u.ID != m.User || u.Name != "alice" {
				t.Errorf("the person is %+v", u)
			}
		})
	}
	wg.Wait()
	if len(in) != 1 || in[0].Role != api.RoleAdmin || in[0].Team != team || !strings.HasPrefix(string(in[0].User), creds.OwnUsers) {
		t.Fatalf("in came %+v", in)
	}
	if got := w.roles(team); got != "alice admin" {
		t.Errorf("the members are %s", got)
	}
	if len(w.Invites(team)) != 0 {
		t.Error("a used invitation is listed")
	}
	_, _, err = w.Accept(ctx, secret, "", "")
	wantCode(t, "again", err, api.CodeInviteRefused)
	_, _, err = w.Accept(ctx, ident.NewSecret(ident.PrefixInvite), "", "")
	wantCode(t, "one that never was", err, api.CodeInviteRefused)
	if w.audited(audit.InviteCreated, "alice") != 1 || w.audited(audit.InviteTaken, "alice") != 1 {
		t.Errorf("the audit has %v", w.audit.Events())
	}
	for _, r := range w.audit.Records() {
		if strings.Contains(r.Detail, secret.Reveal()) || strings.Contains(r.Detail, secret.Hash()) {
			t.Errorf("the audit has the secret: %s", r.Detail)
		}
	}
}

func TestWhatEndsAnInvitation(t *testing.T) {
	w, ctx, team, other := newWorld(t), t.Context(), ident.NewTeamID(), ident.NewTeamID()
	boss := w.join(team, "boss", api.RoleOwner)
	admin := w.join(team, "admin", api.RoleAdmin)
	laptop := store.CredentialRecord{ID: ident.NewCredentialID(), Kind: api.KindDevice, Team: team, User: admin.User, Hash: "x", CreatedAt: time.Now()}
	if err := w.store.CreateCredential(ctx, laptop); err != nil {
		t.Fatal(err)
	}
	w.catchUp()
	device := admin
	device.Kind, device.Credential = creds.KindDevice, laptop.ID
	invite := func(by creds.Principal, role api.Role, expires *api.Duration) ident.Secret {
		t.Helper()
		i, err := w.Invite(ctx, by, team, api.CreateInviteRequest{Name: "somebody", Role: role, ExpiresIn: expires})
		if err != nil {
			t.Fatal(err)
		}
		return secretOf(t, i)
	}
	refused := func(what string, s ident.Secret) {
		t.Helper()
		_, _, err := w.Accept(ctx, s, "", "")
		wantCode(t, what, err, api.CodeInviteRefused)
	}

	_, err := w.Invite(ctx, boss, team, api.CreateInviteRequest{Name: "x"})
	wantCode(t, "an invitation with the default role", err, "")
	taken, err := w.Invite(ctx, admin, team, api.CreateInviteRequest{Name: "taken back"})
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, "another team takes it back", w.TakeBack(ctx, in(other), other, taken.InviteID), api.CodeInviteNotFound)
	wantCode(t, "it is taken back", w.TakeBack(ctx, boss, team, taken.InviteID), "")
	wantCode(t, "it is taken back again", w.TakeBack(ctx, boss, team, taken.InviteID), api.CodeInviteNotFound)
	refused("taken back", secretOf(t, taken))
	if w.audited(audit.InviteRevoked, "taken back") != 1 {
		t.Error("the audit does not say that one was taken back")
	}

	byDevice := invite(device, api.RoleMember, nil)
	asAdmin, asMember := invite(admin, api.RoleAdmin, nil), invite(admin, api.RoleMember, nil)
	soon := invite(boss, api.RoleMember, hours(1))
	if n := len(w.Invites(team)); n != 5 {
		t.Errorf("%d invitations are open, want 5", n)
	}
	if _, err := w.store.RevokeCredential(ctx, team, laptop.ID, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	w.catchUp()
	refused("the credential that made it was revoked", byDevice)
	if _, err := w.SetRole(ctx, boss, team, admin.User, api.RoleMember); err != nil {
		t.Fatal(err)
	}
	refused("its maker may not give that role any more", asAdmin)
	refused("its maker may not invite any more", asMember)
	if _, err := w.SetRole(ctx, boss, team, admin.User, api.RoleAdmin); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Remove(ctx, boss, team, admin.User, false); err != nil {
		t.Fatal(err)
	}
	refused("its maker was removed", asMember)
	if got := names(w.Invites(team)); got != "somebody x" {
		t.Errorf("open are %q", got)
	}
	w.pass(time.Hour)
	refused("expired", soon)

	for what, req := range map[string]api.CreateInviteRequest{
		"no name": {}, "spaces": {Name: "  "}, "a long name": {Name: strings.Repeat("ä", 65)}, "a name that steers terminals": {Name: "a\x1b[31m"},
		"an unknown role": {Name: "x", Role: "king"}, "more than a day": {Name: "x", ExpiresIn: hours(25)}, "no time": {Name: "x", ExpiresIn: hours(0)},
	} {
		_, err := w.Invite(ctx, boss, team, req)
		wantCode(t, what, err, api.CodeOutOfRange)
	}
	if _, err := w.Invite(ctx, boss, team, api.CreateInviteRequest{Name: strings.Repeat("ä", 64)}); err != nil {
		t.Errorf("64 characters: %v", err)
	}
	for _, role := range api.Roles {
		want := api.Code("")
		if role == api.RoleOwner {
			want = api.CodeRoleRequired
		}
		_, err := w.Invite(ctx, creds.Principal{Kind: creds.KindUser, Team: team, User: boss.User, Role: api.RoleAdmin}, team, api.CreateInviteRequest{Name: "x", Role: role})
		wantCode(t, "an admin invites as "+string(role), err, want)
	}
	_, err = w.with(people.Config{}).Invite(ctx, boss, team, api.CreateInviteRequest{Name: "x"})
	wantCode(t, "where nobody can sign in", err, api.CodeSignInOff)
}

func TestInvitationsAreBounded(t *testing.T) {
	w, ctx, team, other := newWorld(t), t.Context(), ident.NewTeamID(), ident.NewTeamID()
	var last api.CreatedInvite
	for i := range 100 {
		var err error
		if last, err = w.Invite(ctx, in(team), team, api.CreateInviteRequest{Name: fmt.Sprint("p", i)}); err != nil {
			t.Fatalf("invitation %d: %v", i, err)
		}
	}
	_, err := w.Invite(ctx, in(team), team, api.CreateInviteRequest{Name: "one more"})
	wantCode(t, "the 101st", err, api.CodeTooManyMembers)
	_, err = w.Invite(ctx, in(other), other, api.CreateInviteRequest{Name: "theirs"})
	wantCode(t, "another team's first", err, "")
	if err := w.TakeBack(ctx, in(team), team, last.InviteID); err != nil {
		t.Fatal(err)
	}
	_, err = w.Invite(ctx, in(team), team, api.CreateInviteRequest{Name: "in its place"})
	wantCode(t, "in the place of one that was taken back", err, "")

	// Those of an admin who is none any more are in nobody's list, and keep nobody's place.
	boss, admin := w.join(other, "boss", api.RoleOwner), w.join(other, "admin", api.RoleAdmin)
	for range 99 {
		if _, err := w.Invite(ctx, admin, other, api.CreateInviteRequest{Name: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = w.Invite(ctx, boss, other, api.CreateInviteRequest{Name: "before"})
	wantCode(t, "while they are good", err, api.CodeTooManyMembers)
	if _, err := w.SetRole(ctx, boss, other, admin.User, api.RoleMember); err != nil {
		t.Fatal(err)
	}
	_, err = w.Invite(ctx, boss, other, api.CreateInviteRequest{Name: "after"})
	wantCode(t, "when they are good for nothing", err, "")
	if n := len(w.store.Invites(other)); n != 2 {
		t.Errorf("%d invitations are kept, want 2", n)
	}
}

func TestMembersAreBounded(t *testing.T) {
	w, ctx, team := newWorld(t), t.Context(), ident.NewTeamID()
	i, err := w.Invite(ctx, in(team), team, api.CreateInviteRequest{Name: "late"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for n := range 125 {
				user := ident.UserID(fmt.Sprintf("u-%d-%d", worker, n))
				if _, err := w.store.ChangeMember(ctx, team, user, func(m *store.MemberRecord) error {
					*m = store.MemberRecord{Team: team, User: user, Role: api.RoleViewer, Source: store.SourceOperator}
					return nil
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.catchUp()
	_, _, err = w.Accept(ctx, secretOf(t, i), "", "")
	wantCode(t, "the 1001st member", err, api.CodeTooManyMembers)
	_, err = w.Invite(ctx, in(team), team, api.CreateInviteRequest{Name: "x"})
	wantCode(t, "an invitation for a 1001st", err, api.CodeTooManyMembers)
	// The issuer's word lets people in all the same: they are in no list.
	wantCode(t, "the issuer names another one", w.Known(ctx, "late", "", "", []store.SignInTeam{{ID: team}}), "")
	if n := len(w.Members(team)); n != 1000 {
		t.Errorf("%d members are listed", n)
	}
	if _, err := w.Remove(ctx, in(team), team, "u-0-0", false); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Accept(ctx, secretOf(t, i), "", ""); err != nil {
		t.Errorf("the invitation was not kept for when there is room: %v", err)
	}
}

func TestWhoIsSignedInAcceptsAsThemself(t *testing.T) {
	w, ctx, one, two := newWorld(t), t.Context(), ident.NewTeamID(), ident.NewTeamID()
	alice := w.join(one, "alice", api.RoleOwner)
	accept := func(team ident.TeamID, role api.Role) store.MemberRecord {
		t.Helper()
		i, err := w.Invite(ctx, in(team), team, api.CreateInviteRequest{Name: "another name", Role: role})
		if err != nil {
			t.Fatal(err)
		}
		m, u, err := w.Accept(ctx, secretOf(t, i), alice.User, "")
		if err != nil || u.Name != "alice" || m.User != alice.User {
			t.Fatalf("accepted as %+v %+v: %v", m, u, err)
		}
		return m
	}
	accept(two, api.RoleViewer)
	if got := w.roles(one) + "; " + w.roles(two); got != "alice owner; alice viewer" {
		t.Errorf("alice is %s", got)
	}
	if m := accept(two, api.RoleAdmin); m.Role != api.RoleAdmin {
		t.Errorf("the greater role is %s", m.Role)
	}
	if m := accept(one, api.RoleViewer); m.Role != api.RoleOwner || w.roles(one) != "alice owner" {
		t.Errorf("an invitation took a role away: %s", w.roles(one))
	}
	if _, err := w.Remove(ctx, in(two), two, alice.User, true); err != nil {
		t.Fatal(err)
	}
	if m := accept(two, api.RoleViewer); m.Role != api.RoleViewer || m.Removed() || w.roles(two) != "alice viewer" {
		t.Errorf("after a removal the invitation made them %+v", m)
	}
}

func TestRolesAndRemovals(t *testing.T) {
	w, ctx, team, other := newWorld(t), t.Context(), ident.NewTeamID(), ident.NewTeamID()
	owner, admin, member := w.join(team, "owner", api.RoleOwner), w.join(team, "admin", api.RoleAdmin), w.join(team, "member", api.RoleMember)
	stranger := w.join(other, "stranger", api.RoleOwner)

	set := func(what string, by creds.Principal, team ident.TeamID, user ident.UserID, role api.Role, want api.Code) {
		t.Helper()
		m, err := w.SetRole(ctx, by, team, user, role)
		wantCode(t, what, err, want)
		if err == nil && (m.Role != role || m.UserID != user) {
			t.Errorf("%s: became %+v", what, m)
		}
	}
	set("the last owner steps down", owner, team, owner.User, api.RoleAdmin, api.CodeLastOwner)
	set("a role that is none", owner, team, admin.User, "king", api.CodeOutOfRange)
	set("another team's person", owner, team, stranger.User, api.RoleViewer, api.CodeMemberNotFound)
	set("an owner of another team", stranger, other, member.User, api.RoleViewer, api.CodeMemberNotFound)
	set("an admin makes an owner", admin, team, member.User, api.RoleOwner, api.CodeRoleRequired)
	set("an admin takes from an owner", admin, team, owner.User, api.RoleViewer, api.CodeRoleRequired)
	set("an owner makes another", owner, team, admin.User, api.RoleOwner, "")
	set("and steps down", owner, team, owner.User, api.RoleViewer, "")
	set("and is made one again", w.as(team, admin.User), team, owner.User, api.RoleOwner, "")
	set("who made them steps down", w.as(team, admin.User), team, admin.User, api.RoleAdmin, "")
	if got := w.roles(team); got != "admin admin, member member, owner owner" {
		t.Fatalf("the members are %s", got)
	}

	remove := func(what string, by creds.Principal, team ident.TeamID, user ident.UserID, keep bool, want api.Code) {
		t.Helper()
		out, err := w.Remove(ctx, by, team, user, keep)
		wantCode(t, what, err, want)
		if err == nil && (out.Credentials != 2 || out.Tunnels != 1) {
			t.Errorf("%s: ended %+v", what, out)
		}
	}
	remove("the last owner leaves", owner, team, owner.User, false, api.CodeLastOwner)
	remove("an admin removes an owner", admin, team, owner.User, false, api.CodeRoleRequired)
	remove("a member removes an admin", member, team, admin.User, false, api.CodeRoleRequired)
	remove("a member removes a stranger", member, team, stranger.User, false, api.CodeMemberNotFound)
	if len(w.endings.removed) != 0 {
		t.Errorf("a refused removal ended %v", w.endings.removed)
	}
	remove("a member leaves", member, team, member.User, true, "")
	remove("they are removed again, with their tunnels", owner, team, member.User, false, "")
	remove("an owner removes an admin", owner, team, admin.User, false, "")
	remove("the operator removes the last owner", in(team), team, owner.User, false, "")
	if got := w.roles(team); got != "" || w.roles(other) != "stranger owner" {
		t.Errorf("left are %s", got)
	}
	if want := []ident.UserID{member.User, member.User, admin.User, owner.User}; !slices.Equal(w.endings.removed, want) || !slices.Equal(w.endings.kept, []bool{true, false, false, false}) {
		t.Errorf("ended %v %v", w.endings.removed, w.endings.kept)
	}
	if m, _ := w.store.Member(team, member.User); !m.Removed() || m.KeepTunnels || m.RemovedBy != member.Name {
		t.Errorf("the tombstone says %+v", m)
	}
	set("a removed person gets a role", owner, team, member.User, api.RoleAdmin, api.CodeMemberNotFound)
	set("the operator takes them back", in(team), team, member.User, api.RoleAdmin, "")
	set("the operator adds one of the issuer's", in(team), team, "00u1/x:é", api.RoleViewer, "")
	set("the operator adds one that nobody can be", in(team), team, "adit:nobody", api.RoleViewer, api.CodeMemberNotFound)
	set("the operator adds nonsense", in(team), team, "a\x00b", api.RoleViewer, api.CodeOutOfRange)
	// A team without an owner keeps its last admin.
	remove("the last admin leaves", w.as(team, member.User), team, member.User, false, api.CodeLastOwner)
	if w.audited(audit.MemberRole, string(admin.User)) != 3 || w.audited(audit.MemberRemoved, "") != 4 {
		t.Errorf("the audit has %v", w.audit.Events())
	}
}

// Two relays remove a team's two owners at once: one of them stays.
func TestTwoOwnersRemoveEachOtherAtOnce(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	elsewhere := w.with(people.Config{})
	for round := range 10 {
		team := ident.NewTeamID()
		a, b := w.join(team, "a", api.RoleOwner), w.join(team, "b", api.RoleOwner)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = w.Remove(ctx, a, team, b.User, false) })
		wg.Go(func() { _, _ = elsewhere.SetRole(ctx, b, team, a.User, api.RoleMember) })
		wg.Wait()
		w.catchUp()
		owners := 0
		for _, m := range w.Members(team) {
			if m.Role == api.RoleOwner {
				owners++
			}
		}
		if owners == 0 {
			t.Fatalf("round %d: the team has no owner any more: %s", round, w.roles(team))
		}
	}
}

func TestWhatTheIssuerSays(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	one, two, three := ident.NewTeamID(), ident.NewTeamID(), ident.NewTeamID()
	known := func(name string, teams ...store.SignInTeam) {
		t.Helper()
		if err := w.Known(ctx, "sub-1", name, "alice@example.com", teams); err != nil {
			t.Fatal(err)
		}
		w.catchUp()
	}
	known("Alice\x1b[31m", store.SignInTeam{ID: one, Role: api.RoleAdmin}, store.SignInTeam{ID: two})
	if got := w.roles(one) + "; " + w.roles(two); got != "Alice[31m admin; Alice[31m member" {
		t.Errorf("known as %s", got)
	}
	secret, rec, err := w.SignIn(ctx, "sub-1", "issuer", []store.SignInTeam{{ID: one, Role: api.RoleAdmin}, {ID: two}}, []string{"vision"}, "Browser", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	if kept, _ := w.store.SignIn(rec.Hash); !slices.Equal(kept.Groups, []string{"vision"}) {
		t.Errorf("of the groups is kept %q", kept.Groups)
	}
	// What the issuer says is changed there; what it does not, here.
	owner := creds.Principal{Kind: creds.KindUser, Team: one, User: "sub-2", Role: api.RoleOwner, Name: "user:sub-2"}
	_, err = w.SetRole(ctx, owner, one, "sub-1", api.RoleViewer)
	wantCode(t, "a role that the issuer says", err, api.CodeForbidden)
	_, err = w.SetRole(ctx, owner, two, "sub-1", api.RoleAdmin)
	wantCode(t, "a role that it does not say", err, "")
	known("Alice", store.SignInTeam{ID: one}, store.SignInTeam{ID: two}, store.SignInTeam{ID: three})
	if got := w.roles(one) + "; " + w.roles(two) + "; " + w.roles(three); got != "Alice member; Alice admin; Alice member" {
		t.Errorf("a role that is said no more, and one that was given here: %s", got)
	}
	if r, _ := w.store.SignIn(rec.Hash); len(r.Teams) != 3 || r.Teams[0].Role != "" {
		t.Errorf("an older browser still has %+v", r.Teams)
	}
	for _, c := range []struct{ said, kept []string }{
		{[]string{"vision", "audio", "", " odd", "e\x1b[31m", strings.Repeat("x", 256)}, []string{"vision", "audio"}}, {nil, nil},
	} {
		if err := w.Groups(ctx, "sub-1", c.said); err != nil {
			t.Fatal(err)
		}
		w.catchUp()
		if r, _ := w.store.SignIn(rec.Hash); !slices.Equal(r.Groups, c.kept) {
			t.Errorf("of the groups %q it keeps %q", c.said, r.Groups)
		}
	}
	if _, err := w.Remove(ctx, in(three), three, "sub-1", false); err != nil {
		t.Fatal(err)
	}
	known("Alice", store.SignInTeam{ID: three}) // and no more of one and two
	if got := w.roles(one) + "; " + w.roles(two) + "; " + w.roles(three); got != "; ; " {
		t.Errorf("who is named no more, with whatever role, and who was removed: %s", got)
	}
	if m, _ := w.store.Member(one, "sub-1"); !m.Unsaid() || !m.KeepTunnels {
		t.Errorf("who is named no more is %+v: what they made must end with them, their tunnels need not", m)
	}
	if w.audited(audit.MemberRemoved, "issuer sub-1, whom it names no more") != 2 {
		t.Errorf("the audit has %v", w.audit.Events())
	}
	known("Alice", store.SignInTeam{ID: one}, store.SignInTeam{ID: three})
	if got := w.roles(one) + "; " + w.roles(three); got != "Alice member; " {
		t.Errorf("who is named again, and who was removed here: %s", got)
	}
	if _, err = w.SetRole(ctx, owner, one, "sub-1", api.RoleViewer); err != nil {
		t.Fatal(err)
	}
	known("Alice", store.SignInTeam{ID: three})
	known("Alice", store.SignInTeam{ID: one}, store.SignInTeam{ID: three})
	if got := w.roles(one); got != "Alice viewer" {
		t.Errorf("whom an owner made a viewer, and whom the issuer forgot for a while: %s", got)
	}
	known("Alice", store.SignInTeam{ID: three})
	if _, err := w.Remove(ctx, in(one), one, "sub-1", false); err != nil { // to make it last
		t.Fatal(err)
	}
	if known("Alice", store.SignInTeam{ID: one}, store.SignInTeam{ID: three}); w.roles(one) != "" {
		t.Errorf("the issuer brought back who was removed here: %s", w.roles(one))
	}
	if _, err := w.SetRole(ctx, in(two), two, "sub-1", api.RoleAdmin); err != nil {
		t.Fatal(err)
	}
	if known("Alice", store.SignInTeam{ID: three}); w.roles(two) != "Alice admin" {
		t.Errorf("the operator's word was lost: %s", w.roles(two))
	}
	if r, ok := w.Find(ctx, secret); !ok || len(r.Teams) != 1 {
		t.Errorf("the browser has %+v, %v", r, ok)
	}
	for _, bad := range []ident.UserID{"", "adit:0123", "a\nb", ident.UserID(strings.Repeat("x", 256))} {
		wantCode(t, fmt.Sprintf("a person %q", bad), w.Known(ctx, bad, "", "", nil), api.CodeForbidden)
	}
	_, err = w.Handle(ctx, "sub-1")
	wantCode(t, "a passkey for one of the issuer's", err, api.CodeForbidden)
}

func TestSignIns(t *testing.T) {
	w, ctx, team := newWorld(t), t.Context(), ident.NewTeamID()
	alice, bob := w.join(team, "alice", api.RoleMember), w.join(team, "bob", api.RoleMember)
	sign := func(who creds.Principal) (ident.Secret, store.SignInRecord) {
		t.Helper()
		s, r, err := w.SignIn(ctx, who.User, "invite", nil, nil, "Mozilla/5.0\x00 "+strings.Repeat("x", 1000), "192.0.2.7")
		if err != nil {
			t.Fatal(err)
		}
		return s, r
	}
	cookie, rec := sign(alice)
	if got, ok := w.Find(ctx, cookie); !ok || got.User != alice.User || len(got.Browser) > 256 || strings.Contains(got.Browser, "\x00") || got.Hash != cookie.Hash() {
		t.Fatalf("found %+v, %v", got, ok)
	}
	if _, ok := w.Find(ctx, ident.NewSecret(ident.PrefixSignIn)); ok {
		t.Error("a cookie that was made up is signed in")
	}
	if again, err := w.Renew(ctx, rec); err != nil || !again.ExpiresAt.Equal(rec.ExpiresAt) {
		t.Errorf("renewed at once: %+v %v", again, err)
	}
	// Used every ten hours it lives for 30 days, and no longer.
	began, r := w.now(), rec
	for {
		w.pass(10 * time.Hour)
		next, err := w.Renew(ctx, r)
		if err != nil {
			wantCode(t, "the end", err, api.CodeNotSignedIn)
			break
		}
		if next.ExpiresAt.After(rec.EndsAt) || next.ExpiresAt.Equal(r.ExpiresAt) && !next.ExpiresAt.Equal(rec.EndsAt) {
			t.Fatalf("renewed from %s to %s, the end being %s", r.ExpiresAt, next.ExpiresAt, rec.EndsAt)
		}
		r = next
		w.catchUp()
	}
	if lived := w.now().Sub(began); lived < 30*24*time.Hour || lived > 31*24*time.Hour {
		t.Errorf("it lived for %s", lived)
	}
	if _, ok := w.Find(ctx, cookie); ok {
		t.Error("it is signed in after its end")
	}
	idle, _ := sign(alice)
	w.pass(12 * time.Hour)
	if _, ok := w.Find(ctx, idle); ok {
		t.Error("it is signed in after 12 hours without use")
	}

	// Signing out, here and everywhere.
	a, ra := sign(alice)
	b, rb := sign(alice)
	other, _ := sign(bob)
	if err := w.SignOut(ctx, ra, false); err != nil {
		t.Fatal(err)
	}
	if _, ok := w.Find(ctx, a); ok {
		t.Error("it is signed in after signing out")
	}
	if _, ok := w.Find(ctx, b); !ok {
		t.Error("another browser was signed out too")
	}
	_, err := w.Renew(ctx, store.SignInRecord{Hash: ra.Hash})
	wantCode(t, "renewed after signing out", err, api.CodeNotSignedIn)
	if err := w.SignOut(ctx, rb, true); err != nil {
		t.Fatal(err)
	}
	if _, ok := w.Find(ctx, b); ok || len(w.store.SignIns(alice.User)) != 0 {
		t.Error("a browser is signed in after signing out everywhere")
	}
	if _, ok := w.Find(ctx, other); !ok {
		t.Error("another person was signed out")
	}
	// One that no deletion reached is worth nothing all the same.
	late := ident.NewSecret(ident.PrefixSignIn)
	if err := w.store.CreateSignIn(ctx, store.SignInRecord{Hash: late.Hash(), User: alice.User, IssuedAt: w.now().Add(-time.Second), ExpiresAt: w.now().Add(time.Hour), EndsAt: w.now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	w.catchUp()
	if _, ok := w.Find(ctx, late); ok {
		t.Error("a browser from before is signed in")
	}
	w.pass(-time.Minute) // this relay's clock is behind that which signed out
	if fresh, _ := sign(alice); fresh == "" {
		t.Error("no cookie")
	} else if _, ok := w.Find(ctx, fresh); !ok {
		t.Error("nobody signs in again after signing out everywhere")
	}
	if w.audited(audit.SignedIn, string(alice.User)) != 5 || w.audited(audit.SignedOut, string(alice.User)) != 2 {
		t.Errorf("the audit has %v", w.audit.Events())
	}
}

func TestSignInsAreBounded(t *testing.T) {
	w, ctx, team := newWorld(t), t.Context(), ident.NewTeamID()
	alice := w.join(team, "alice", api.RoleMember)
	var cookies []ident.Secret
	for range 52 {
		s, _, err := w.SignIn(ctx, alice.User, "passkey", nil, nil, "", "")
		if err != nil {
			t.Fatal(err)
		}
		cookies = append(cookies, s)
		w.pass(time.Second)
	}
	for i, s := range cookies {
		if _, ok := w.Find(ctx, s); ok != (i >= 2) {
			t.Errorf("browser %d of 52 is signed in: %v", i+1, ok)
		}
	}
	if n := len(w.store.SignIns(alice.User)); n != 50 {
		t.Errorf("%d are kept", n)
	}
}

func TestPasskeysAndDevices(t *testing.T) {
	w, ctx, team, other := newWorld(t), t.Context(), ident.NewTeamID(), ident.NewTeamID()
	alice, bob := w.join(team, "alice", api.RoleViewer), w.join(team, "bob", api.RoleOwner)
	u, err := w.Handle(ctx, alice.User)
	if err != nil || len(u.Handle) != 32 {
		t.Fatalf("the handle of %+v: %v", u, err)
	}
	if again, err := w.Handle(ctx, alice.User); err != nil || string(again.Handle) != string(u.Handle) {
		t.Errorf("another handle the second time: %v", err)
	}
	if got, ok := w.ByHandle(ctx, u.Handle); !ok || got.ID != alice.User {
		t.Errorf("by the handle: %+v %v", got, ok)
	}
	for _, none := range [][]byte{nil, {}, make([]byte, 32)} {
		if got, ok := w.ByHandle(ctx, none); ok {
			t.Errorf("a handle of nobody is %s's", got.ID)
		}
	}
	add := func(n int) error {
		return w.AddPasskey(ctx, alice.User, store.PasskeyRecord{ID: fmt.Sprint("key-", n), Name: fmt.Sprint("phone ", n), Credential: json.RawMessage(`{"n":1}`)})
	}
	for n := range 10 {
		if err := add(n); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, "an eleventh passkey", add(10), api.CodeOutOfRange)
	wantCode(t, "the same passkey", add(9), api.CodeOutOfRange)
	if err := w.UsePasskey(ctx, alice.User, "key-3", json.RawMessage(`{"n":2}`)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "bob uses alice's", w.UsePasskey(ctx, bob.User, "key-3", json.RawMessage(`{}`)), api.CodePasskeyRefused)
	w.catchUp()
	if u, _ := w.User(alice.User); string(u.Passkeys[3].Credential) != `{"n":2}` || u.Passkeys[3].LastUsed.IsZero() || !u.Passkeys[2].LastUsed.IsZero() {
		t.Errorf("after a use: %+v", u.Passkeys[3])
	}

	_, here, err := w.SignIn(ctx, alice.User, "passkey", nil, nil, "Firefox", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	credential := func(team ident.TeamID, user ident.UserID, kind api.CredentialKind) ident.CredentialID {
		t.Helper()
		rec := store.CredentialRecord{ID: ident.NewCredentialID(), Kind: kind, Team: team, User: user, Name: "laptop", Hash: ident.NewNonce(), CreatedAt: time.Now()}
		if err := w.store.CreateCredential(ctx, rec); err != nil {
			t.Fatal(err)
		}
		return rec.ID
	}
	laptop, gone := credential(team, alice.User, api.KindDevice), credential(team, alice.User, api.KindDevice)
	bobs, elsewhere, sk := credential(team, bob.User, api.KindDevice), credential(other, alice.User, api.KindDevice), credential(team, "", api.KindIntegration)
	if _, err := w.store.RevokeCredential(ctx, team, gone, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	w.catchUp()
	alice.SignIn = here.Hash
	d := w.Devices(alice)
	if len(d.Devices) != 1 || d.Devices[0].ID != laptop || len(d.SignIns) != 1 || !d.SignIns[0].Current || d.SignIns[0].Browser != "Firefox" || len(d.Passkeys) != 10 {
		t.Errorf("alice gets in by %+v", d)
	}
	if d := w.Devices(bob); len(d.Devices) != 1 || d.Devices[0].ID != bobs || len(d.SignIns)+len(d.Passkeys) != 0 {
		t.Errorf("bob gets in by %+v", d)
	}
	nobody := creds.Principal{Kind: creds.KindIntegration, Team: team, Role: api.RoleOwner}
	if d := w.Devices(nobody); len(d.Devices)+len(d.SignIns)+len(d.Passkeys) != 0 || d.Devices == nil {
		t.Errorf("a program gets in by %+v", d)
	}
	id := d.SignIns[0].SignInID
	for _, c := range []struct {
		what string
		by   creds.Principal
		id   string
	}{
		{"bob ends alice's browser", bob, id}, {"bob removes alice's passkey", bob, "key-1"}, {"bob ends alice's device", bob, string(laptop)},
		{"her device of another team", alice, string(elsewhere)}, {"bob's device", alice, string(bobs)}, {"a program's key", alice, string(sk)},
		{"a revoked device", alice, string(gone)}, {"nothing", alice, ""}, {"the whole hash", alice, here.Hash}, {"a program", nobody, id},
	} {
		wantCode(t, c.what, w.Forget(ctx, c.by, c.id), api.CodeDeviceNotFound)
	}
	for _, own := range []string{"key-1", string(laptop), id} {
		wantCode(t, "her own "+own, w.Forget(ctx, alice, own), "")
	}
	if d := w.Devices(alice); len(d.SignIns) != 0 || len(d.Passkeys) != 9 || !slices.Equal(w.endings.revoked, []ident.CredentialID{laptop}) {
		t.Errorf("left are %+v, revoked %v", d, w.endings.revoked)
	}
	wantCode(t, "a passkey that was removed", w.UsePasskey(ctx, alice.User, "key-1", json.RawMessage(`{}`)), api.CodePasskeyRefused)
	if w.audited(audit.PasskeyAdded, "phone") != 10 || w.audited(audit.PasskeyRemoved, "key-1") != 1 {
		t.Errorf("the audit has %v", w.audit.Events())
	}
}

func TestTeamsHaveNames(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	vision, err := w.CreateTeam(ctx, operator, " Vision ")
	if err != nil || vision.Name != "Vision" {
		t.Fatalf("created %+v: %v", vision, err)
	}
	for what, name := range map[string]string{
		"none": "", "spaces": "   ", "too long": strings.Repeat("x", 65), "control characters": "a\tb", "an id": string(ident.NewTeamID()),
	} {
		_, err := w.CreateTeam(ctx, operator, name)
		wantCode(t, what, err, api.CodeOutOfRange)
	}
	_, err = w.CreateTeam(ctx, operator, "vISION")
	wantCode(t, "taken, in other letters", err, api.CodeTeamExists)
	unnamed := ident.NewTeamID()
	if _, err := w.RenameTeam(ctx, operator, unnamed, "audio"); err != nil {
		t.Errorf("a first name: %v", err)
	}
	if _, err := w.RenameTeam(ctx, operator, vision.ID, "VISION"); err != nil {
		t.Errorf("its own name in other letters: %v", err)
	}
	_, err = w.RenameTeam(ctx, operator, vision.ID, "Audio")
	wantCode(t, "another team's name", err, api.CodeTeamExists)
	var got []string
	for _, team := range w.Teams() {
		got = append(got, team.Name)
	}
	if strings.Join(got, " ") != "VISION audio" || w.audited(audit.TeamCreated, "Vision") != 1 || w.audited(audit.TeamRenamed, "") != 2 {
		t.Errorf("teams %v, audit %v", got, w.audit.Events())
	}
}

func TestATeamIsRemovedWithItsPeople(t *testing.T) {
	w, ctx, team, other := newWorld(t), t.Context(), ident.NewTeamID(), ident.NewTeamID()
	if _, err := w.RenameTeam(ctx, operator, team, "vision"); err != nil {
		t.Fatal(err)
	}
	only, both := w.join(team, "only", api.RoleOwner), w.join(other, "both", api.RoleOwner)
	gone := w.join(team, "gone", api.RoleViewer)
	if _, err := w.SetRole(ctx, in(team), team, both.User, api.RoleMember); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Remove(ctx, in(team), team, gone.User, false); err != nil {
		t.Fatal(err)
	}
	i, err := w.Invite(ctx, in(team), team, api.CreateInviteRequest{Name: "late"})
	if err != nil {
		t.Fatal(err)
	}
	cookie, _, err := w.SignIn(ctx, only.User, "invite", nil, nil, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if !w.HasPeople(team) || w.Counts()[team] != 2 || w.Counts()[other] != 1 {
		t.Errorf("the counts are %v", w.Counts())
	}
	members, invites, err := w.RemoveTeam(ctx, team)
	if err != nil || members != 2 || invites != 1 {
		t.Errorf("removed %d members and %d invitations: %v", members, invites, err)
	}
	_, _, err = w.Accept(ctx, secretOf(t, i), "", "")
	wantCode(t, "an invitation into a team that was removed", err, api.CodeInviteRefused)
	if _, ok := w.Find(ctx, cookie); ok {
		t.Error("somebody is signed in who was in that team alone")
	}
	for user, want := range map[ident.UserID]bool{only.User: false, gone.User: false, both.User: true} {
		if _, ok := w.User(user); ok != want {
			t.Errorf("%s is known: %v", user, ok)
		}
	}
	if w.HasPeople(team) || w.roles(other) != "both owner" || len(w.Teams()) != 0 {
		t.Errorf("left of it: %s; %v", w.roles(other), w.Teams())
	}
	if members, invites, err := w.RemoveTeam(ctx, team); err != nil || members+invites != 0 {
		t.Errorf("again: %d %d %v", members, invites, err)
	}
}
