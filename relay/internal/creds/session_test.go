package creds_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

func member(more issuer.Claims) issuer.Claims {
	c := issuer.Claims{"teams": []string{string(teamA)}}
	maps.Copy(c, more)
	return c
}

func withIssuer(t testing.TB, i *issuer.Issuer) *creds.Authenticator {
	return newAuth(t, creds.Config{OIDC: creds.OIDC{Issuer: i.URL(), Audience: issuer.Audience}})
}

func TestUserSession(t *testing.T) {
	i := issuer.Start(t)
	a := withIssuer(t, i)
	for name, token := range map[string]string{"RS256": i.Token(member(nil)), "ES256": i.TokenES256(member(nil))} {
		p := wantAccepted(t, a, request(t, bearer(token), inTeam(teamA)))
		if p.Kind != creds.KindUser || p.Team != teamA || p.User != "alice" || p.Role != api.RoleAdmin || p.Name != "user:alice" || p.Credential != "" || p.SignIn != "" {
			t.Errorf("%s: %+v, want alice as an admin, since nothing says a role", name, p)
		}
		if d := time.Until(p.ExpiresAt); d < 50*time.Minute || d > time.Hour {
			t.Errorf("%s: what it opens ends in %v, want the token's exp, in an hour", name, d)
		}
	}
	if n := i.KeySetRequests(); n != 1 {
		t.Errorf("the key set was read %d times for two sessions, want once", n)
	}
}

func TestForgedSessionsAreRefused(t *testing.T) {
	i := issuer.Start(t)
	pem := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(pem, i.PublicKeyPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*creds.Authenticator{
		"issuer":   withIssuer(t, i),
		"key file": newAuth(t, creds.Config{JWT: creds.JWT{PublicKeyFile: pem}}),
	} {
		for _, how := range issuer.Wrongs() {
			t.Run(name+"/"+string(how), func(t *testing.T) {
				wantRefused(t, a, request(t, bearer(i.TokenWrong(how, member(nil))), inTeam(teamA)), 401, "unauthenticated")
			})
		}
		t.Run(name+"/the right one", func(t *testing.T) {
			wantAccepted(t, a, request(t, bearer(i.Token(member(nil))), inTeam(teamA)))
		})
	}
}

func TestClaims(t *testing.T) {
	i := issuer.Start(t)
	a := withIssuer(t, i)
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	for _, c := range []struct {
		name   string
		claims issuer.Claims
		ok     bool
	}{
		{"azp of somebody else does not matter", issuer.Claims{"azp": "console"}, true},
		{"one of several audiences", issuer.Claims{"aud": []string{"other", issuer.Audience}}, true},
		{"no nbf, no iat", issuer.Claims{"nbf": nil, "iat": nil}, true},
		{"expired within the leeway", issuer.Claims{"exp": in(-20 * time.Second)}, true},
		{"nbf ahead within the leeway", issuer.Claims{"nbf": in(50 * time.Second), "iat": in(50 * time.Second)}, true},
		{"fractional exp", issuer.Claims{"exp": float64(in(time.Hour)) + .5}, true},
		{"expired beyond the leeway", issuer.Claims{"exp": in(-62 * time.Second)}, false},
		{"expired long ago", issuer.Claims{"exp": 1}, false},
		{"nbf ahead beyond the leeway", issuer.Claims{"nbf": in(120 * time.Second)}, false},
		{"no exp", issuer.Claims{"exp": nil}, false},
		{"exp is text", issuer.Claims{"exp": "4102444800"}, false},
		{"exp is beyond any time", issuer.Claims{"exp": 1e300}, false},
		{"EXP is not exp", issuer.Claims{"exp": nil, "EXP": in(time.Hour)}, false},
		{"wrong audience", issuer.Claims{"aud": "other"}, false},
		{"audience that begins like ours", issuer.Claims{"aud": issuer.Audience + "-2"}, false},
		{"no audience", issuer.Claims{"aud": nil}, false},
		{"empty audience", issuer.Claims{"aud": []string{}}, false},
		{"wrong issuer", issuer.Claims{"iss": "https://accounts.example.com"}, false},
		{"issuer with a slash more", issuer.Claims{"iss": i.URL() + "/"}, false},
		{"no issuer", issuer.Claims{"iss": nil}, false},
		{"no sub", issuer.Claims{"sub": nil}, false},
		{"empty sub", issuer.Claims{"sub": ""}, false},
		{"sub is a number", issuer.Claims{"sub": 7}, false},
		{"sub with a line break", issuer.Claims{"sub": "alice\nadmin"}, false},
		{"endless sub", issuer.Claims{"sub": strings.Repeat("a", 256)}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(t, bearer(i.Token(member(c.claims))), inTeam(teamA))
			if c.ok {
				wantAccepted(t, a, r)
			} else {
				wantRefused(t, a, r, 401, "unauthenticated")
			}
		})
	}
}

func TestTheLeewayIsAMinute(t *testing.T) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, []byte(jwks("k", key)), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		a := newAuth(t, creds.Config{JWT: creds.JWT{PublicKeyFile: path}})
		now := time.Now()
		at := func(d time.Duration) int64 { return now.Add(d).Unix() }
		try := func(name string, ok bool, more map[string]any) {
			t.Helper()
			c := goodClaims()
			maps.Copy(c, more)
			r := request(t, inTeam(teamA), bearer(sign(t, jose.ES256, key, "k", c)))
			if p := refusal(t, a, r); (p == nil) != ok {
				t.Errorf("%s: refused with %v, want accepted=%v", name, p, ok)
			}
		}
		try("exp 60 s ago", true, map[string]any{"exp": at(-60 * time.Second)})
		try("exp 61 s ago", false, map[string]any{"exp": at(-61 * time.Second)})
		try("nbf in 60 s", true, map[string]any{"nbf": at(60 * time.Second)})
		try("nbf in 61 s", false, map[string]any{"nbf": at(61 * time.Second)})
	})
}

func TestWhatAnExpiringSessionOpensLivesAsLongAsItIsTaken(t *testing.T) {
	i := issuer.Start(t)
	a := withIssuer(t, i)
	exp := time.Now().Add(-30 * time.Second)
	p := wantAccepted(t, a, request(t, bearer(i.Token(member(issuer.Claims{"exp": exp.Unix()}))), inTeam(teamA)))
	if want := time.Unix(exp.Unix(), 0).Add(time.Minute); !p.ExpiresAt.Equal(want) {
		t.Errorf("expires at %v, want the end of the leeway, %v", p.ExpiresAt, want)
	}
	if !a.Valid(p) {
		t.Error("a session is accepted and at once not valid")
	}
}

func TestTeams(t *testing.T) {
	i := issuer.Start(t)
	a := withIssuer(t, i)
	upper := strings.ToUpper(string(teamA))
	for _, c := range []struct {
		name   string
		claim  any
		team   []header
		status int // 0: accepted in team A
		code   api.Code
	}{
		{"list of ids", []string{string(teamB), string(teamA)}, []header{inTeam(teamA)}, 0, ""},
		{"list of objects", []any{map[string]any{"id": teamB, "name": "b"}, map[string]any{"id": teamA}}, []header{inTeam(teamA)}, 0, ""},
		{"list of both", []any{string(teamB), map[string]any{"id": teamA}}, []header{inTeam(teamA)}, 0, ""},
		{"text", string(teamB) + "  " + string(teamA), []header{inTeam(teamA)}, 0, ""},
		{"letter case does not matter", []string{upper}, []header{inTeam(strings.ToUpper(string(teamA)))}, 0, ""},
		{"entries that are no ids are left out", []any{"admins", 7, nil, true, map[string]any{"id": 7}, []any{}, string(teamA)}, []header{inTeam(teamA)}, 0, ""},
		{"white space around", []string{string(teamA)}, []header{inTeam(" " + string(teamA) + " ")}, 0, ""},
		{"no header", []string{string(teamA)}, nil, 400, "team_required"},
		{"empty header", []string{string(teamA)}, []header{inTeam("")}, 400, "team_required"},
		{"blank header", []string{string(teamA)}, []header{inTeam("  ")}, 400, "team_required"},
		{"not a UUID", []string{string(teamA)}, []header{inTeam("team-a")}, 400, "team_invalid"},
		{"a UUID and more", []string{string(teamA)}, []header{inTeam(string(teamA) + "0")}, 400, "team_invalid"},
		{"list in the header", []string{string(teamA)}, []header{inTeam(string(teamA) + "," + string(teamB))}, 400, "team_invalid"},
		{"two headers", []string{string(teamA)}, []header{inTeam(teamA), inTeam(teamA)}, 400, "team_invalid"},
		{"not a member", []string{string(teamB)}, []header{inTeam(teamA)}, 403, "not_a_member"},
		{"no teams", []string{}, []header{inTeam(teamA)}, 403, "not_a_member"},
		{"no claim", nil, []header{inTeam(teamA)}, 403, "not_a_member"},
		{"claim is an object", map[string]any{"id": teamA}, []header{inTeam(teamA)}, 401, "unauthenticated"},
		{"claim is a number", 7, []header{inTeam(teamA)}, 401, "unauthenticated"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(t, append(c.team, bearer(i.Token(issuer.Claims{"teams": c.claim})))...)
			if c.status == 0 {
				if p := wantAccepted(t, a, r); p.Team != teamA {
					t.Errorf("in team %q, want %q", p.Team, teamA)
				}
				return
			}
			wantRefused(t, a, r, c.status, c.code)
		})
	}
	t.Run("a bad session is 401 whatever the header", func(t *testing.T) {
		wantRefused(t, a, request(t, bearer(i.TokenWrong(issuer.ForeignKey, member(nil)))), 401, "unauthenticated")
	})
	t.Run("another name of the claim", func(t *testing.T) {
		a := newAuth(t, creds.Config{OIDC: creds.OIDC{Issuer: i.URL(), Audience: issuer.Audience, TeamsClaim: "https://example.com/groups"}})
		wantAccepted(t, a, request(t, inTeam(teamA), bearer(i.Token(issuer.Claims{"https://example.com/groups": []string{string(teamA)}}))))
		wantRefused(t, a, request(t, inTeam(teamA), bearer(i.Token(member(nil)))), 403, "not_a_member")
	})
}

func TestSessionsWithoutAnIssuer(t *testing.T) {
	i := issuer.Start(t)
	wantRefused(t, newAuth(t, creds.Config{}), request(t, bearer(i.Token(member(nil))), inTeam(teamA)), 401, "unauthenticated")
}

// sign makes a token with any key, for the algorithms the issuer does not use.
func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, claims map[string]any) string {
	t.Helper()
	opts := (&jose.SignerOptions{}).WithType("JWT")
	if kid != "" {
		opts = opts.WithHeader("kid", kid)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func goodClaims() map[string]any {
	return map[string]any{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix(), "teams": string(teamA)}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestEveryAllowedAlgorithm(t *testing.T) {
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	_, edKey := must2(ed25519.GenerateKey(rand.Reader))
	p256, p384, p521 := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	var set jose.JSONWebKeySet
	for kid, key := range map[string]crypto.Signer{"rsa": rsaKey, "ed": edKey, "p256": p256, "p384": p384, "p521": p521} {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.Public(), KeyID: kid})
	}
	secret := []byte(strings.Repeat("shared secret", 8))
	set.Keys = append(set.Keys, jose.JSONWebKey{Key: secret, KeyID: "oct"}, // left out
		jose.JSONWebKey{Key: p256.Public(), KeyID: "enc", Use: "enc"},                          // left out
		jose.JSONWebKey{Key: rsaKey.Public(), KeyID: "ps-only", Algorithm: string(jose.PS256)}) // bound to its algorithm
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, must(json.Marshal(set)), 0o600); err != nil {
		t.Fatal(err)
	}
	a := newAuth(t, creds.Config{JWT: creds.JWT{PublicKeyFile: path}})
	for _, c := range []struct {
		alg jose.SignatureAlgorithm
		key any
		kid string
		ok  bool
	}{
		{jose.RS256, rsaKey, "rsa", true}, {jose.RS384, rsaKey, "rsa", true}, {jose.RS512, rsaKey, "rsa", true},
		{jose.PS256, rsaKey, "rsa", true}, {jose.PS384, rsaKey, "rsa", true}, {jose.PS512, rsaKey, "rsa", true},
		{jose.ES256, p256, "p256", true}, {jose.ES384, p384, "p384", true}, {jose.EdDSA, edKey, "ed", true},
		{jose.ES256, p256, "", true}, {jose.EdDSA, edKey, "", true}, {jose.PS256, rsaKey, "ps-only", true},
		{jose.ES512, p521, "p521", false},
		{jose.HS256, secret, "oct", false}, {jose.HS512, secret, "", false},
		{jose.RS256, rsaKey, "ps-only", false},
		{jose.ES256, p256, "enc", false}, {jose.ES256, p256, "rsa", false}, {jose.RS256, rsaKey, "nobody", false},
	} {
		t.Run(string(c.alg)+" "+c.kid, func(t *testing.T) {
			r := request(t, bearer(sign(t, c.alg, c.key, c.kid, goodClaims())), inTeam(teamA))
			if c.ok {
				wantAccepted(t, a, r)
			} else {
				wantRefused(t, a, r, 401, "unauthenticated")
			}
		})
	}
}

func must2[A, B any](a A, b B, err error) (A, B) {
	if err != nil {
		panic(err)
	}
	return a, b
}

func TestOddHeadersAndPayloads(t *testing.T) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	path := filepath.Join(t.TempDir(), "keys.json")
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k"}}}
	if err := os.WriteFile(path, must(json.Marshal(set)), 0o600); err != nil {
		t.Fatal(err)
	}
	a := newAuth(t, creds.Config{JWT: creds.JWT{PublicKeyFile: path}})
	raw := func(payload string, extra map[jose.HeaderKey]any) string {
		opts := &jose.SignerOptions{ExtraHeaders: extra}
		jws := must(must(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, opts)).Sign([]byte(payload)))
		return must(jws.CompactSerialize())
	}
	good := string(must(json.Marshal(goodClaims())))
	wantAccepted(t, a, request(t, inTeam(teamA), bearer(raw(good, nil))))
	for name, token := range map[string]string{
		"b64":                raw(good, map[jose.HeaderKey]any{"b64": true}),
		"critical b64":       raw(good, map[jose.HeaderKey]any{"b64": true, "crit": []string{"b64"}}),
		"kid is a number":    raw(good, map[jose.HeaderKey]any{"kid": 7}),
		"claims not JSON":    raw("hello", nil),
		"claims are a list":  raw("["+good+"]", nil),
		"claims are null":    raw("null", nil),
		"no claims":          raw("", nil),
		"data behind":        raw(good+good, nil),
		"exp twice":          raw(`{"exp":1,`+good[1:], nil),
		"teams twice":        raw(good[:len(good)-1]+`,"teams":"`+string(teamB)+`"}`, nil),
		"deep nesting":       raw(strings.Repeat("[", 10_000), nil),
		"JSON serialization": `{"payload":"","signatures":[]}`,
		"four parts":         raw(good, nil) + ".x",
		"five parts (JWE)":   "a.b.c.d.e",
		"empty signature":    raw(good, nil)[:strings.LastIndexByte(raw(good, nil), '.')+1],
		"padded":             raw(good, nil) + "==",
	} {
		t.Run(name, func(t *testing.T) {
			wantRefused(t, a, request(t, inTeam(teamA), bearer(token)), 401, "unauthenticated")
		})
	}
}

func FuzzAuthenticate(f *testing.F) {
	f.Add("Bearer eyJhbGciOiJSUzI1NiJ9.e30.AAAA", string(teamA))
	f.Add("Bearer eyJhbGciOiJub25lIn0.eyJ0ZWFtcyI6W119.", "x")
	f.Add("bearer sk-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "")
	f.Add("Bearer dk-", " ")
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	path := filepath.Join(f.TempDir(), "keys.json")
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public()}}}
	if err := os.WriteFile(path, must(json.Marshal(set)), 0o600); err != nil {
		f.Fatal(err)
	}
	a := newAuth(f, creds.Config{JWT: creds.JWT{PublicKeyFile: path}})
	f.Fuzz(func(t *testing.T, authorization, team string) {
		r := request(t, header{"Authorization", authorization}, inTeam(ident.TeamID(team)))
		if p, err := a.Authenticate(r); err == nil {
			t.Errorf("%q is %+v", authorization, p)
		}
	})
}
