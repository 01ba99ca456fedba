package creds_test

import (
	"errors"
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

// made makes a credential with another one.
func made(t *testing.T, a *creds.Authenticator, by creds.Principal, kind api.CredentialKind, life *api.Duration) (store.CredentialRecord, ident.Secret) {
	t.Helper()
	rec, secret, err := a.Create(t.Context(), by, teamA, "", api.CreateCredentialRequest{Kind: kind, Name: "x", ExpiresIn: life})
	if err != nil {
		t.Fatal(err)
	}
	return rec, secret
}

func TestACredentialNeverOutlivesItsMaker(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	end := time.Now().Add(10 * 24 * time.Hour).UTC()
	maker := login(t, a, m, api.KindDevice, func(r *store.CredentialRecord) { r.ExpiresAt = end })
	endless := login(t, a, m, api.KindDevice, nil)
	for name, c := range map[string]struct {
		by   creds.Principal
		life *api.Duration
		want func(time.Time) bool
	}{
		"without an end":           {maker, nil, end.Equal},
		"longer than its maker":    {maker, life(30 * 24 * time.Hour), end.Equal},
		"shorter than its maker":   {maker, life(24 * time.Hour), end.After},
		"the maker has no end":     {endless, nil, time.Time.IsZero},
		"made by a person's login": {alice, nil, time.Time.IsZero},
	} {
		rec, _ := made(t, a, c.by, api.KindIntegration, c.life)
		if !c.want(rec.ExpiresAt) || rec.MadeBy != c.by.Credential {
			t.Errorf("%s: it ends %v and was made with %q; its maker %q ends %v", name, rec.ExpiresAt, rec.MadeBy, c.by.Credential, end)
		}
	}
}

// TestRevokingReachesWhatWasMade revokes a device that made a device that made a key.
func TestRevokingReachesWhatWasMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := newAuth(t, creds.Config{Store: m, Changes: m.changes})
		defer start(t, a)()
		synctest.Wait() // it hears of changes from here on
		root := login(t, a, m, api.KindDevice, nil)
		_, childSecret := made(t, a, root, api.KindDevice, nil)
		child := wantAccepted(t, a, request(t, bearer(childSecret.Reveal())))
		key, keySecret := made(t, a, child, api.KindAgent, nil)
		link, stop := a.Watch(t.Context(), wantAccepted(t, a, request(t, bearer(keySecret.Reveal()))))
		defer stop()
		_, otherSecret := made(t, a, alice, api.KindIntegration, nil)

		// Only the first step, as by a relay that died then: nothing below works any more.
		if _, err := m.RevokeCredential(t.Context(), teamA, root.Credential, time.Now(), false); err != nil {
			t.Fatal(err)
		}
		for _, s := range []ident.Secret{childSecret, keySecret} {
			wantRefused(t, a, request(t, bearer(s.Reveal())), 401, "unauthenticated")
		}
		time.Sleep(time.Millisecond)
		if !errors.Is(ended(link), creds.ErrRevoked) {
			t.Errorf("the link of a key whose maker's maker was revoked goes on: %v", ended(link))
		}
		wantAccepted(t, a, request(t, bearer(otherSecret.Reveal())))
		list, err := a.List(alice, teamA)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if c.ID == key.ID && !c.Revoked {
				t.Error("the list says that it still works")
			}
		}

		// Again, and it is finished: their own records say so, too.
		out, err := a.Revoke(t.Context(), alice, teamA, root.Credential, false)
		if err != nil || len(out) != 3 || out[0].ID != root.Credential {
			t.Fatalf("revoked %+v, %v; want it and the two below", out, err)
		}
		for _, id := range []ident.CredentialID{child.Credential, key.ID} {
			if rec, _ := m.Credential(id); rec.RevokedAt.IsZero() {
				t.Errorf("%s has no revocation of its own", id)
			}
		}
		if out, err := a.Revoke(t.Context(), alice, teamA, root.Credential, false); err != nil || len(out) != 1 {
			t.Errorf("once more: %+v, %v", out, err)
		}
	})
}

// TestAStaleIndexGrantsNothing has a relay that heard nothing of its store for a while:
// a credential that it knows may have been revoked meanwhile.
func TestAStaleIndexGrantsNothing(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	for _, kind := range []api.CredentialKind{api.KindIntegration, api.KindDevice, api.KindAgent} {
		secret := m.add(kind, nil)
		wantAccepted(t, a, request(t, bearer(secret.Reveal())))
		m.set(func(m *memory) { m.stale = true })
		p := wantRefused(t, a, request(t, bearer(secret.Reveal())), 503, "store_unavailable")
		if p.RetryAfter == 0 {
			t.Error("nothing says when to try again")
		}
		m.set(func(m *memory) { m.stale = false })
		wantAccepted(t, a, request(t, bearer(secret.Reveal())))
	}
}

// Nor does it to a person with the issuer's token: they may have been removed meanwhile.
func TestAStaleIndexGrantsAPersonNothing(t *testing.T) {
	i, m := issuer.Start(t), newMemory()
	a := newAuth(t, creds.Config{Store: m, OIDC: creds.OIDC{Issuer: i.URL(), Audience: issuer.Audience}})
	r := request(t, bearer(i.Token(member(nil))), inTeam(teamA))
	wantAccepted(t, a, r)
	m.set(func(m *memory) { m.stale = true })
	wantRefused(t, a, r, 503, "store_unavailable")
}

// TestABoundAgentIsNotTakenByATeamWideKey is who may link as gpu-7.
func TestABoundAgentIsNotTakenByATeamWideKey(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	wide := login(t, a, m, api.KindAgent, nil)
	gpu7 := ident.AgentKey{Team: teamA, Agent: "gpu-7"}
	if err := a.MayLink(wide, gpu7); err != nil {
		t.Errorf("nobody else is gpu-7: %v", err)
	}
	own := login(t, a, m, api.KindAgent, func(r *store.CredentialRecord) { r.Agent = "gpu-7" })
	m.add(api.KindAgent, func(r *store.CredentialRecord) { r.Agent, r.Team = "gpu-8", teamB })
	for name, c := range map[string]struct {
		p    creds.Principal
		key  ident.AgentKey
		says string
	}{
		"its own key":                       {own, gpu7, ""},
		"a key for any agent":               {wide, gpu7, string(own.Credential)},
		"a key for any, another agent":      {wide, ident.AgentKey{Team: teamA, Agent: "gpu-9"}, ""},
		"one that is bound in another team": {wide, ident.AgentKey{Team: teamA, Agent: "gpu-8"}, ""},
		"another agent's key":               {own, ident.AgentKey{Team: teamA, Agent: "gpu-9"}, `for agent "gpu-7" only`},
		"no agent's key":                    {alice, gpu7, "this credential"},
	} {
		err := a.MayLink(c.p, c.key)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s links as %s: %v; want %q", name, c.key.Agent, err, c.says)
		}
	}
	if _, err := a.Revoke(t.Context(), alice, teamA, own.Credential, false); err != nil {
		t.Fatal(err)
	}
	if err := a.MayLink(wide, gpu7); err != nil {
		t.Errorf("gpu-7's own key was revoked: %v", err)
	}
	m.add(api.KindAgent, func(r *store.CredentialRecord) { r.Agent, r.ExpiresAt = "gpu-7", time.Now().Add(-time.Hour) })
	if err := a.MayLink(wide, gpu7); err != nil {
		t.Errorf("gpu-7's own key has expired: %v", err)
	}
}
