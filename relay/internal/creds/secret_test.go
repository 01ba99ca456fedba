package creds_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

// TestNoSecretGetsOut puts a canary into every part of what callers send, and looks
// for it in everything that comes out: errors with their causes, answers, logs,
// metrics and principals.
func TestNoSecretGetsOut(t *testing.T) {
	const canary = "canaryjz5w7k2q"
	i := issuer.Start(t)
	m, reg := newMemory(), prometheus.NewRegistry()
	var log testkit.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a := newAuth(t, creds.Config{Store: m, Logger: logger, Registerer: reg, OIDC: creds.OIDC{Issuer: i.URL(), Audience: issuer.Audience}})
	stop := start(t, a)

	b64 := base64.RawURLEncoding.EncodeToString
	part := func(v any) string { return b64(must(json.Marshal(v))) }
	known, rec := credential(api.KindIntegration, func(r *store.CredentialRecord) {
		r.Hash = ident.Secret("sk-" + canary + strings.Repeat("a", 40-len(canary))).Hash()
	})
	_ = known
	m.set(func(m *memory) { m.records[rec.ID] = rec })
	withCanary := func(prefix string) string { return prefix + canary + strings.Repeat("b", 40-len(canary)) }
	revoked := ident.Secret(withCanary("dk-"))
	m.add(api.KindDevice, func(r *store.CredentialRecord) { r.Hash, r.RevokedAt = revoked.Hash(), time.Now() })

	good := i.Token(member(issuer.Claims{"jti": canary}))
	secrets := []string{
		canary, "sk-" + canary, withCanary("sk-"), withCanary("ak-"), withCanary("adm-"), revoked.Reveal(),
		"sk-" + canary + strings.Repeat("a", 40-len(canary)), // accepted
		good,       // accepted
		good + "x", // signature of another length
		canary + "." + canary + "." + canary,
		part(map[string]any{"alg": canary}) + ".e30.AA",
		part(map[string]any{"alg": "RS256", "kid": []string{canary}}) + ".e30.AA",
		part(map[string]any{"alg": "RS256", "kid": canary}) + "." + part(map[string]any{"iss": i.URL(), "aud": "adit", "exp": 4102444800, "sub": canary}) + ".AA",
		part(map[string]any{"alg": "RS256", "jwk": canary}) + ".e30.AA",
		part(map[string]any{"alg": "RS256", "x5c": []string{canary}}) + ".e30.AA",
		part(map[string]any{"alg": "RS256", "crit": []string{canary}}) + ".e30.AA",
		b64([]byte(canary)) + ".e30.AA",
		part(map[string]any{"alg": "RS256"}) + "." + b64([]byte(canary)) + ".AA",
		part(map[string]any{"alg": "RS256"}) + "." + part(map[string]any{"exp": canary}) + ".AA",
		i.Token(issuer.Claims{"iss": canary}), i.Token(issuer.Claims{"aud": canary}), i.Token(issuer.Claims{"sub": canary + "\n"}),
		i.Token(issuer.Claims{"teams": map[string]string{"a": canary}}),
	}
	for _, how := range issuer.Wrongs() {
		secrets = append(secrets, i.TokenWrong(how, member(issuer.Claims{"jti": canary})))
	}
	var out strings.Builder
	logger = slog.New(slog.NewTextHandler(&out, nil))
	accepted := 0
	try := func(secret string) {
		for _, h := range [][]header{{bearer(secret), inTeam(teamA)}, {bearer(secret), inTeam(canary)}, {bearer(secret), bearer(secret)}, {{"Authorization", canary + " " + secret}}} {
			p, err := a.Authenticate(request(t, h...))
			fmt.Fprintf(&out, "%v %+v %#v\n", p, p, p)
			logger.Info("authenticated", "principal", p, "error", err)
			if err == nil {
				accepted++
				continue
			}
			var problem *api.Problem
			errors.As(err, &problem)
			fmt.Fprintf(&out, "%v %+v %v\n", err, *problem, problem.Cause)
			w := httptest.NewRecorder()
			problem.Write(w, "r")
			fmt.Fprintln(&out, w.Body, w.Header())
		}
	}
	for _, s := range secrets {
		try(s)
	}
	i.SetDown(true)
	i.Rotate(false)
	m.set(func(m *memory) { m.down = true })
	try(i.Token(member(issuer.Claims{"jti": canary})))
	try(withCanary("ak-"))
	stop()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&out, families, log.String())
	if accepted < 2 {
		t.Errorf("%d of the secrets were accepted, want the good ones", accepted)
	}
	for _, s := range append(secrets, canary, b64([]byte(canary)), strings.ToUpper(canary)) {
		if len(s) > 10 && strings.Contains(out.String(), s) {
			at := strings.Index(out.String(), s)
			t.Errorf("found %.20q… in: %.300q", s, out.String()[max(0, at-150):])
		}
	}
}
