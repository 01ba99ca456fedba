package issuer_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
	"github.com/coreos/go-oidc/v3/oidc"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

// verifier is the library that the relay uses, with connections that end with the test.
func verifier(t *testing.T, i *issuer.Issuer) *oidc.IDTokenVerifier {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	ctx := oidc.ClientContext(t.Context(), &http.Client{Transport: transport})
	provider, err := oidc.NewProvider(ctx, i.URL())
	if err != nil {
		t.Fatalf("a real client should understand the discovery: %v", err)
	}
	return provider.VerifierContext(ctx, &oidc.Config{ClientID: issuer.Audience, SupportedSigningAlgs: []string{"RS256", "ES256"}})
}

func TestGoodTokens(t *testing.T) {
	i := issuer.Start(t)
	v := verifier(t, i)
	for name, token := range map[string]string{
		"RS256": i.Token(issuer.Claims{"sub": "bob", "teams": []string{"a"}}),
		"ES256": i.TokenES256(issuer.Claims{"sub": "bob", "teams": []string{"a"}}),
	} {
		got, err := v.Verify(t.Context(), token)
		if err != nil {
			t.Errorf("%s: a good token should be accepted: %v", name, err)
			continue
		}
		var claims struct{ Teams []string }
		if err := got.Claims(&claims); err != nil || got.Subject != "bob" || len(claims.Teams) != 1 {
			t.Errorf("%s: claims were lost: %+v, %v", name, got, err)
		}
	}
	if i.KeySetRequests() == 0 {
		t.Error("requests for the key set should be counted")
	}
}

func TestWrongTokensAreWrong(t *testing.T) {
	i := issuer.Start(t)
	v := verifier(t, i)
	for _, how := range issuer.Wrongs() {
		if _, err := v.Verify(t.Context(), i.TokenWrong(how, nil)); err == nil {
			t.Errorf("%s: a sound verifier should refuse it", how)
		}
	}
	past := time.Now().Add(-time.Hour).Unix()
	for name, claims := range map[string]issuer.Claims{
		"expired": {"exp": past}, "audience": {"aud": "other"}, "issuer": {"iss": "https://evil.example.com"}, "no expiry": {"exp": nil},
	} {
		if _, err := v.Verify(t.Context(), i.Token(claims)); err == nil {
			t.Errorf("%s: a sound verifier should refuse it", name)
		}
	}
}

func TestRotate(t *testing.T) {
	i := issuer.Start(t)
	v := verifier(t, i)
	old := i.Token(nil)
	i.Rotate(true)
	for _, token := range []string{old, i.Token(nil)} {
		if _, err := v.Verify(t.Context(), token); err != nil {
			t.Errorf("a careful rotation should void no token: %v", err)
		}
	}
	i.Rotate(false)
	fresh := verifier(t, i)
	if _, err := fresh.Verify(t.Context(), old); err == nil {
		t.Error("a hard rotation should void old tokens")
	}
	if _, err := fresh.Verify(t.Context(), i.TokenES256(nil)); err != nil {
		t.Errorf("new keys should sign: %v", err)
	}
}

func TestDown(t *testing.T) {
	i := issuer.Start(t)
	i.SetDown(true)
	ctx := oidc.ClientContext(context.Background(), &http.Client{Transport: &http.Transport{DisableKeepAlives: true}})
	if _, err := oidc.NewProvider(ctx, i.URL()); err == nil {
		t.Error("an issuer that is down should not answer")
	}
	i.SetDown(false)
	if _, err := oidc.NewProvider(ctx, i.URL()); err != nil {
		t.Errorf("an issuer that is back should answer: %v", err)
	}
}
