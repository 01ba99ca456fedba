package creds_test

import (
	"fmt"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

func TestStoredCredentials(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	end := time.Now().Add(time.Hour)
	for _, c := range []struct {
		kind api.CredentialKind
		set  func(*store.CredentialRecord)
		want creds.Principal
	}{
		{api.KindIntegration, nil, creds.Principal{Kind: creds.KindIntegration, Team: teamA, Role: api.RoleAdmin, Name: "sk:one"}},
		{api.KindIntegration, func(r *store.CredentialRecord) { r.ExpiresAt = end }, creds.Principal{Kind: creds.KindIntegration, Team: teamA, Role: api.RoleAdmin, Name: "sk:one", ExpiresAt: end}},
		{api.KindDevice, nil, creds.Principal{Kind: creds.KindDevice, Team: teamA, User: "alice", Role: api.RoleAdmin, Name: "dk:alice/one"}},
		{api.KindAgent, nil, creds.Principal{Kind: creds.KindAgent, Team: teamA, Name: "ak:one"}},
		{api.KindAgent, func(r *store.CredentialRecord) { r.Agent = "gpu-1" }, creds.Principal{Kind: creds.KindAgent, Team: teamA, Agent: "gpu-1", Name: "ak:one"}},
	} {
		var id ident.CredentialID
		secret := m.add(c.kind, func(r *store.CredentialRecord) {
			id = r.ID
			if c.set != nil {
				c.set(r)
			}
		})
		c.want.Credential = id
		// X-Team-ID is ignored, whatever it holds.
		for _, team := range [][]header{nil, {inTeam("")}, {inTeam(teamA)}, {inTeam(teamB)}, {inTeam("not a UUID")}, {inTeam(teamA), inTeam(teamB)}} {
			if got := wantAccepted(t, a, request(t, append(team, bearer(secret.Reveal()))...)); !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s with %v: %+v, want %+v", c.kind, team, got, c.want)
			}
		}
	}
}

func TestCredentialsThatAreNoGood(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m})
	for name, secret := range map[string]ident.Secret{
		"unknown":                ident.NewSecret(ident.PrefixIntegration),
		"revoked":                m.add(api.KindIntegration, func(r *store.CredentialRecord) { r.RevokedAt = time.Now() }),
		"revoked in the future":  m.add(api.KindIntegration, func(r *store.CredentialRecord) { r.RevokedAt = time.Now().Add(time.Hour) }),
		"expired":                m.add(api.KindAgent, func(r *store.CredentialRecord) { r.ExpiresAt = time.Now().Add(-time.Second) }),
		"prefix of another kind": m.add(api.KindIntegration, func(r *store.CredentialRecord) { r.Kind = api.KindAgent }),
		"kind nobody knows":      m.add(api.KindIntegration, func(r *store.CredentialRecord) { r.Kind = "root" }),
	} {
		t.Run(name, func(t *testing.T) {
			p := wantRefused(t, a, request(t, bearer(secret.Reveal())), 401, "unauthenticated")
			if p.Challenge != `Bearer realm="adit", error="invalid_token"` {
				t.Errorf("challenge is %q", p.Challenge)
			}
		})
	}
}

func TestACredentialMadeOnAnotherRelayWorksAtOnce(t *testing.T) {
	m := newMemory()
	secret, rec := credential(api.KindAgent, nil)
	m.unseen[rec.ID] = rec
	a := newAuth(t, creds.Config{Store: m})
	wantAccepted(t, a, request(t, bearer(secret.Reveal())))
	wantAccepted(t, a, request(t, bearer(secret.Reveal())))
	if m.catchUps != 1 {
		t.Errorf("the store was asked %d times, want once", m.catchUps)
	}
}

func TestMadeUpSecretsDoNotHammerTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := newAuth(t, creds.Config{Store: m})
		guess := func(addr string) {
			r := request(t, bearer(ident.NewSecret(ident.PrefixAgent).Reveal()))
			r.RemoteAddr = addr + ":4711"
			wantRefused(t, a, r, 401, "unauthenticated")
		}
		for range 5000 {
			guess("203.0.113.9")
		}
		if m.catchUps > 25 {
			t.Errorf("5000 guesses from one address asked the store %d times", m.catchUps)
		}
		// Another address is not made to pay for that.
		secret, rec := credential(api.KindAgent, nil)
		m.unseen[rec.ID] = rec
		r := request(t, bearer(secret.Reveal()))
		r.RemoteAddr = "198.51.100.1:1"
		wantAccepted(t, a, r)

		before := m.catchUps
		for n := range 20_000 {
			guess(fmt.Sprintf("2001:db8::%x", n))
		}
		if asked := m.catchUps - before; asked > 60 {
			t.Errorf("20000 guesses from as many addresses asked the store %d times", asked)
		}
		// The flood ends, and all is as it was.
		time.Sleep(10 * time.Second)
		secret, rec = credential(api.KindAgent, nil)
		m.unseen[rec.ID] = rec
		wantAccepted(t, a, request(t, bearer(secret.Reveal())))
	})
}

func TestTheSameWrongSecretIsLookedUpOnceInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := newAuth(t, creds.Config{Store: m})
		r := request(t, bearer(ident.NewSecret(ident.PrefixAgent).Reveal()))
		for range 25 { // an agent whose credential is gone, trying every second
			wantRefused(t, a, r, 401, "unauthenticated")
			time.Sleep(time.Second)
		}
		if m.catchUps != 1 {
			t.Errorf("the store was asked %d times in 25 s, want once", m.catchUps)
		}
	})
}

func TestWithoutTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		known := m.add(api.KindIntegration, nil)
		m.down = true
		a := newAuth(t, creds.Config{Store: m})
		wantAccepted(t, a, request(t, bearer(known.Reveal())))
		// Agents of one address that come back to a relay which knows nothing yet must
		// not be told that their credentials are no good, however many they are.
		for range 500 {
			p := wantRefused(t, a, request(t, bearer(ident.NewSecret(ident.PrefixAgent).Reveal())), 503, "store_unavailable")
			if p.RetryAfter == 0 {
				t.Fatal("no Retry-After")
			}
		}
		if m.catchUps > 25 {
			t.Errorf("the store was asked %d times while it was away", m.catchUps)
		}
	})
}

func TestLastUseIsWrittenOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		var id ident.CredentialID
		secret := m.add(api.KindIntegration, func(r *store.CredentialRecord) { id = r.ID })
		a := newAuth(t, creds.Config{Store: m})
		stop := start(t, a)
		began := time.Now()
		for range 10 * 60 { // every second for ten minutes
			wantAccepted(t, a, request(t, bearer(secret.Reveal())))
			time.Sleep(time.Second)
		}
		used := time.Now()
		wantAccepted(t, a, request(t, bearer(secret.Reveal())))
		stop()
		if n := len(m.touches); n < 8 || n > 12 {
			t.Errorf("%d writes in ten minutes, want one a minute", n)
		}
		if r, _ := m.Credential(id); r.LastUsed.Before(began) || used.Sub(r.LastUsed) > time.Minute {
			t.Errorf("last use is %v before it was", used.Sub(r.LastUsed))
		}
	})
}

func TestLastUseIsWrittenOnStopAndDoesNotFloodTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		var secrets []ident.Secret
		for range 1000 {
			secrets = append(secrets, m.add(api.KindAgent, nil))
		}
		a := newAuth(t, creds.Config{Store: m})
		stop := start(t, a)
		for _, s := range secrets { // all agents come back at once
			wantAccepted(t, a, request(t, bearer(s.Reveal())))
		}
		time.Sleep(5500 * time.Millisecond)
		m.set(func(m *memory) {
			if n := len(m.touches); n < 100 || n > 200 {
				t.Errorf("%d writes in half a second, want at most 100 and one burst", n)
			}
		})
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if n := len(m.touches); n != 1000 {
			t.Errorf("%d writes, want 1000", n)
		}
		late := m.add(api.KindAgent, nil)
		wantAccepted(t, a, request(t, bearer(late.Reveal())))
		stop()
		if n := len(m.touches); n != 1001 {
			t.Errorf("the last use before the stop was not written")
		}
	})
}

func TestClientAddressIsTheCallersToDecide(t *testing.T) {
	m := newMemory()
	a := newAuth(t, creds.Config{Store: m, ClientAddr: clientOf})
	for n := range 40 { // one reverse proxy, many clients behind it
		wantRefused(t, a, request(t, bearer(ident.NewSecret(ident.PrefixAgent).Reveal()), header{"X-Forwarded-For", fmt.Sprint(n)}), 401, "unauthenticated")
	}
	if m.catchUps != 40 {
		t.Errorf("the store was asked %d times for 40 clients", m.catchUps)
	}
}

func BenchmarkAuthenticateStored(b *testing.B) {
	m := &indexed{memory: newMemory(), byHash: map[string]store.CredentialRecord{}}
	secret, rec := credential(api.KindIntegration, nil)
	m.byHash[rec.Hash] = rec
	a := newAuth(b, creds.Config{Store: m})
	r := request(b, bearer(secret.Reveal()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Authenticate(r); err != nil {
			b.Fatal(err)
		}
	}
}

// indexed finds by hash as quickly as the store does.
type indexed struct {
	*memory
	byHash map[string]store.CredentialRecord
}

func (i *indexed) CredentialByHash(hash string) (store.CredentialRecord, bool) {
	r, ok := i.byHash[hash]
	return r, ok
}
