package creds_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
)

func TestAuthorizationHeader(t *testing.T) {
	m := newMemory()
	secret := m.add(api.KindIntegration, nil).Reveal()
	a := newAuth(t, creds.Config{Store: m})
	const bare, invalid = `Bearer realm="adit"`, `Bearer realm="adit", error="invalid_token"`
	for _, c := range []struct {
		name      string
		headers   []header
		challenge string // empty: accepted
	}{
		{"plain", []header{bearer(secret)}, ""},
		{"lower-case scheme", []header{{"Authorization", "bearer " + secret}}, ""},
		{"upper-case scheme", []header{{"Authorization", "BEARER " + secret}}, ""},
		{"several spaces", []header{{"Authorization", "Bearer    " + secret}}, ""},
		{"white space around", []header{{"Authorization", " \tBearer " + secret + " \t"}}, ""},
		{"no header", nil, bare},
		{"empty header", []header{{"Authorization", ""}}, bare},
		{"scheme alone", []header{{"Authorization", "Bearer"}}, bare},
		{"scheme and spaces", []header{{"Authorization", "Bearer   "}}, bare},
		{"another scheme", []header{{"Authorization", "Basic " + secret}}, bare},
		{"no scheme", []header{{"Authorization", secret}}, bare},
		{"tab for space", []header{{"Authorization", "Bearer\t" + secret}}, bare},
		{"twice the same", []header{bearer(secret), bearer(secret)}, invalid},
		{"two different ones", []header{bearer(secret), bearer("nonsense")}, invalid},
		{"list in one header", []header{bearer(secret + ", Bearer " + secret)}, invalid},
		{"space inside", []header{bearer(secret[:10] + " " + secret[10:])}, invalid},
		{"tab behind the space", []header{bearer("\t" + secret)}, invalid},
		{"quotes", []header{bearer(`"` + secret + `"`)}, invalid},
		{"control character", []header{bearer(secret + "\x00")}, invalid},
		{"not ASCII", []header{bearer(secret + "é")}, invalid},
		{"padding only", []header{bearer("===")}, invalid},
		{"upper-case secret", []header{bearer(strings.ToUpper(secret))}, invalid},
		{"very long", []header{bearer(strings.Repeat("a", 1<<20))}, invalid},
		{"very long credential", []header{bearer("sk-" + strings.Repeat("a", 10_000))}, invalid},
		{"cut short", []header{bearer(secret[:len(secret)-1])}, invalid},
		{"one character more", []header{bearer(secret + "a")}, invalid},
		{"many dots", []header{bearer(strings.Repeat(".", 1000))}, invalid},
		{"two dots", []header{bearer("..")}, invalid},
		{"an admin token", []header{bearer("adm-" + strings.Repeat("a", 40))}, invalid},
		{"a lease token", []header{bearer("lt-" + strings.Repeat("a", 40))}, invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.challenge == "" {
				wantAccepted(t, a, request(t, c.headers...))
				return
			}
			p := wantRefused(t, a, request(t, c.headers...), 401, "unauthenticated")
			w := httptest.NewRecorder()
			p.Write(w, "r1")
			if got := w.Result().Header.Get("WWW-Authenticate"); got != c.challenge {
				t.Errorf("WWW-Authenticate is %q, want %q", got, c.challenge)
			}
		})
	}
	if m.catchUps != 0 {
		t.Errorf("the store was asked %d times about texts that cannot be credentials", m.catchUps)
	}
}

func TestBearerServesOtherSecrets(t *testing.T) {
	s, err := creds.Bearer(request(t, bearer("adm-whatever")))
	if err != nil || s.Reveal() != "adm-whatever" {
		t.Errorf("got %q, %v", s.Reveal(), err)
	}
	if _, err := creds.Bearer(request(t)); err == nil {
		t.Error("no header was taken for a secret")
	}
}

func TestASecretInTheURLIsNotRead(t *testing.T) {
	m := newMemory()
	secret := m.add(api.KindIntegration, nil).Reveal()
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/api/v1/agents?access_token="+secret, nil)
	wantRefused(t, newAuth(t, creds.Config{Store: m}), r, 401, "unauthenticated")
}
