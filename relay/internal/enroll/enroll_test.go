package enroll_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/enroll"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

const team = ident.TeamID("6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11")

// memory is the store, the credentials and the audit log; the real ones are tested
// at home, and all together in relay/e2e.
type memory struct {
	mu     sync.Mutex
	now    time.Time
	tokens map[string]store.EnrollmentRecord
	made   []store.CredentialRecord
	makers map[ident.CredentialID]store.CredentialRecord
	audit  []audit.Record
	fail   error // of making a credential
	down   bool
}

func (m *memory) CreateEnrollment(_ context.Context, r store.EnrollmentRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[r.Hash] = r
	return nil
}

func (m *memory) Enrollment(_ context.Context, hash string) (store.EnrollmentRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.look(hash)
}

func (m *memory) look(hash string) (store.EnrollmentRecord, error) {
	r, ok := m.tokens[hash]
	switch {
	case m.down:
		return r, store.ErrUnavailable
	case !ok || !m.now.Before(r.ExpiresAt):
		return r, store.ErrNotFound
	}
	return r, nil
}

func (m *memory) TakeEnrollment(_ context.Context, hash string) (store.EnrollmentRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.look(hash)
	if err == nil {
		delete(m.tokens, hash)
	}
	return r, err
}

func (m *memory) Create(_ context.Context, by creds.Principal, team ident.TeamID, _ ident.UserID, req api.CreateCredentialRequest) (store.CredentialRecord, ident.Secret, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return store.CredentialRecord{}, "", m.fail
	}
	r := store.CredentialRecord{ID: ident.NewCredentialID(), Kind: req.Kind, Team: team, Agent: req.AgentID, CreatedBy: by.Name, MadeBy: by.Credential}
	m.made = append(m.made, r)
	return r, ident.NewSecret(ident.PrefixAgent), nil
}

func (m *memory) Credential(id ident.CredentialID) (store.CredentialRecord, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.makers[id]
	return r, ok
}

func (m *memory) Append(_ context.Context, r audit.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.audit = append(m.audit, r)
	return nil
}

func (m *memory) events() (out []audit.Event) {
	for _, r := range m.audit {
		out = append(out, r.Event)
	}
	return out
}

func newWorld() (*memory, *enroll.Enrollment, *prometheus.Registry) {
	m := &memory{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), tokens: map[string]store.EnrollmentRecord{}}
	reg := prometheus.NewRegistry()
	return m, enroll.New(enroll.Config{
		Store: m, Credentials: m, Audit: m, Now: func() time.Time { return m.now }, Logger: slog.New(slog.DiscardHandler), Registerer: reg,
		Remote: func(r *http.Request) string { return r.RemoteAddr },
		MayAppear: func(key ident.AgentKey) error {
			if key.Agent == "one-too-many" {
				return api.NewProblem(api.CodeTeamAgentLimit, "the team has as many agents as it may have")
			}
			return nil
		},
	}), reg
}

func create(t *testing.T, e *enroll.Enrollment, agent ident.AgentID) ident.Secret {
	t.Helper()
	_, token, err := e.Create(t.Context(), creds.Operator("admin-socket"), team, agent, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// post hands a token in and returns the status, the problem's code and the answer.
func post(t *testing.T, e *enroll.Enrollment, token, body, remote string) (int, string, api.Enrolled) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, api.EnrollPath, strings.NewReader(body))
	r.RemoteAddr = remote
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, r)
	var p api.Problem
	var out api.Enrolled
	for _, into := range []any{&p, &out} {
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			t.Fatalf("the answer is JSON: %v %q", err, w.Body)
		}
	}
	if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("an answer that may hold a secret is kept nowhere: %v", w.Header())
	}
	return w.Code, string(p.Code), out
}

// A token is not used up by an agent that there is no room for.
func TestATeamWithAllItsAgentsEnrollsNoMore(t *testing.T) {
	_, e, _ := newWorld()
	token := create(t, e, "").Reveal()
	if status, code, _ := post(t, e, token, `{"agent_id":"one-too-many"}`, "192.0.2.1:1"); status != http.StatusTooManyRequests || code != "team_agent_limit" {
		t.Errorf("one agent too many is answered %d %s", status, code)
	}
	if status, code, _ := post(t, e, token, `{"agent_id":"gpu-1"}`, "192.0.2.1:1"); status != http.StatusCreated {
		t.Errorf("the token for another one is answered %d %s", status, code)
	}
}

func TestATokenIsOneCredential(t *testing.T) {
	m, e, reg := newWorld()
	token := create(t, e, "gpu-1")
	status, _, got := post(t, e, token.Reveal(), `{"agent_id":"gpu-1"}`, "192.0.2.1")
	if status != 201 || got.AgentID != "gpu-1" || got.TeamID != team || !strings.HasPrefix(got.Credential, "ak-") {
		t.Fatalf("a good token: %d %+v", status, got)
	}
	if len(m.made) != 1 || m.made[0].Agent != "gpu-1" || m.made[0].Kind != api.KindAgent || m.made[0].CreatedBy != "operator:enrolment" {
		t.Errorf("the credential is one of the agent alone: %+v", m.made)
	}
	if status, code, _ := post(t, e, token.Reveal(), `{"agent_id":"gpu-1"}`, "192.0.2.1"); status != 401 || code != "enrolment_refused" {
		t.Errorf("a used token: %d %s", status, code)
	}
	if got := m.events(); len(got) != 3 || got[0] != audit.EnrollmentCreated || got[1] != audit.EnrollmentTaken || got[2] != audit.AuthRefused {
		t.Errorf("the audit log says %v", got)
	}
	if taken := m.audit[1]; taken.RemoteAddr != "192.0.2.1" || taken.Agent != "gpu-1" || taken.Team != team || taken.RequestID == "" {
		t.Errorf("the audit log says who took it and from where: %+v", taken)
	}
	for _, r := range m.audit {
		if b, _ := json.Marshal(r); strings.Contains(string(b), token.Reveal()) || strings.Contains(string(b), token.Hash()) {
			t.Errorf("the audit log holds the token: %s", b)
		}
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

func TestRefusals(t *testing.T) {
	m, e, _ := newWorld()
	bound, free := create(t, e, "gpu-1").Reveal(), create(t, e, "").Reveal()
	for _, c := range []struct{ name, token, body, code string }{
		{"no token", "", `{"agent_id":"gpu-1"}`, "unauthenticated"},
		{"an unknown token", ident.NewSecret(ident.PrefixEnroll).Reveal(), `{"agent_id":"gpu-1"}`, "enrolment_refused"},
		{"a credential", ident.NewSecret(ident.PrefixAgent).Reveal(), `{"agent_id":"gpu-1"}`, "enrolment_refused"},
		{"an unknown token, and nonsense", ident.NewSecret(ident.PrefixEnroll).Reveal(), `nonsense`, "enrolment_refused"},
		{"another agent's name", bound, `{"agent_id":"gpu-2"}`, "wrong_agent"},
		{"no name", free, `{}`, "out_of_range"},
		{"a bad name", free, `{"agent_id":"a b"}`, "out_of_range"},
		{"no JSON", free, `agent_id=gpu-1`, "invalid_body"},
		{"a long body", free, `{"agent_id":"` + strings.Repeat("x", 5000) + `"}`, "invalid_body"},
	} {
		if status, code, _ := post(t, e, c.token, c.body, "192.0.2.1"); status < 400 || code != c.code {
			t.Errorf("%s: %d %s, want %s", c.name, status, code, c.code)
		}
	}
	if len(m.made) != 0 {
		t.Errorf("credentials were made: %+v", m.made)
	}
	// None of that used a token up.
	if status, code, _ := post(t, e, bound, `{"agent_id":"gpu-1"}`, "192.0.2.1"); status != 201 {
		t.Errorf("the bound token afterwards: %d %s", status, code)
	}
	m.now = m.now.Add(time.Hour)
	if status, code, _ := post(t, e, free, `{"agent_id":"gpu-3"}`, "192.0.2.1"); status != 401 || code != "enrolment_refused" {
		t.Errorf("an expired token: %d %s", status, code)
	}
}

func TestATokenIsNotLostWithTheStore(t *testing.T) {
	m, e, _ := newWorld()
	token := create(t, e, "gpu-1").Reveal()
	m.down = true
	if status, code, _ := post(t, e, token, `{"agent_id":"gpu-1"}`, "192.0.2.1"); status != 503 || code != "store_unavailable" {
		t.Errorf("without the store: %d %s", status, code)
	}
	m.down, m.fail = false, api.NewProblem(api.CodeStoreUnavailable, "gone")
	if status, _, _ := post(t, e, token, `{"agent_id":"gpu-1"}`, "192.0.2.1"); status != 503 {
		t.Errorf("when no credential can be made: %d", status)
	}
	m.fail = nil
	if status, code, _ := post(t, e, token, `{"agent_id":"gpu-1"}`, "192.0.2.1"); status != 201 {
		t.Errorf("the same token when all is well again: %d %s", status, code)
	}
}

func TestTriesAreLimited(t *testing.T) {
	m, e, _ := newWorld()
	tries := func(remote string) (n int) {
		for range 200 {
			if _, code, _ := post(t, e, ident.NewSecret(ident.PrefixEnroll).Reveal(), `{}`, remote); code == "too_many_tries" {
				break
			}
			n++
		}
		return n
	}
	if n := tries("192.0.2.1"); n != 20 {
		t.Errorf("one address may try %d times at once, want 20", n)
	}
	if a, b := tries("2001:db8::1"), tries("2001:db8::2"); a != 20 || b != 0 {
		t.Errorf("one IPv6 network counts as one address: %d and %d tries", a, b)
	}
	total := 0
	for _, remote := range []string{"192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"} {
		total += tries(remote)
	}
	if total != 60 { // 100 in all, 40 of them above
		t.Errorf("many addresses had %d further tries, want 60", total)
	}
	m.now = m.now.Add(10 * time.Second)
	if n := tries("192.0.2.1"); n != 5 {
		t.Errorf("after ten seconds an address may try %d times, want 5", n)
	}
}

// However many addresses guess, a machine that was given a token enrolls.
func TestGuessesKeepNoMachineOut(t *testing.T) {
	_, e, _ := newWorld()
	token := create(t, e, "gpu-1").Reveal()
	if len(token) != len(ident.NewSecret(ident.PrefixEnroll)) {
		t.Errorf("a token has %d characters: redaction and the doors know secrets by their form", len(token))
	}
	for i := range 300 {
		guess := ident.NewSecret(ident.PrefixEnroll).Reveal()
		if i%2 == 0 {
			guess = token[:len(token)-1] + "a"
			if guess == token {
				guess = token[:len(token)-1] + "b"
			}
		}
		status, code, _ := post(t, e, guess, `{}`, fmt.Sprintf("192.0.2.%d", i))
		if want := map[bool]string{true: "enrolment_refused", false: "too_many_tries"}[i < 100]; code != want {
			t.Fatalf("guess %d of as many addresses: %d %s, want %s", i, status, code, want)
		}
	}
	if status, code, _ := post(t, e, token, `{"agent_id":"gpu-1"}`, "203.0.113.1"); status != 201 {
		t.Errorf("a good token, while 300 addresses guess: %d %s", status, code)
	}
}

// A token that was made with a credential is good for no longer than that, and what
// comes of it ends with that.
func TestATokenEndsWithWhatMadeIt(t *testing.T) {
	bob := creds.Principal{Kind: creds.KindDevice, Team: team, User: "bob", Credential: "cred_1", Name: "dk:bob/laptop"}
	for name, c := range map[string]struct {
		maker  store.CredentialRecord
		status int
	}{
		"it lives":       {store.CredentialRecord{ID: "cred_1"}, 201},
		"it was revoked": {store.CredentialRecord{ID: "cred_1", RevokedAt: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)}, 401},
		"it is gone":     {store.CredentialRecord{ID: "cred_2"}, 401},
		"it has expired": {store.CredentialRecord{ID: "cred_1", ExpiresAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}, 401},
	} {
		m, e, _ := newWorld()
		_, token, err := e.Create(t.Context(), bob, team, "gpu-1", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		m.makers = map[ident.CredentialID]store.CredentialRecord{c.maker.ID: c.maker}
		if status, code, _ := post(t, e, token.Reveal(), `{"agent_id":"gpu-1"}`, "192.0.2.1"); status != c.status {
			t.Errorf("%s: %d %s, want %d", name, status, code, c.status)
		}
		if c.status == 201 && (len(m.made) != 1 || m.made[0].MadeBy != "cred_1") {
			t.Errorf("%s: what comes of the token is %+v", name, m.made)
		}
	}
}

func TestTokensAreMadeByWhoMay(t *testing.T) {
	_, e, _ := newWorld()
	for name, c := range map[string]struct {
		by    creds.Principal
		agent ident.AgentID
		life  time.Duration
		code  api.Code
	}{
		"an agent":       {creds.Principal{Kind: creds.KindAgent, Team: team}, "", time.Hour, "forbidden"},
		"another team":   {creds.Principal{Kind: creds.KindUser, Team: "other", User: "eve"}, "", time.Hour, "forbidden"},
		"too short":      {creds.Operator("x"), "", time.Second, "out_of_range"},
		"too long":       {creds.Operator("x"), "", 8 * 24 * time.Hour, "out_of_range"},
		"a bad agent id": {creds.Operator("x"), "a b", time.Hour, "out_of_range"},
		"a person, fine": {creds.Principal{Kind: creds.KindUser, Team: team, User: "ann"}, "gpu-1", time.Hour, ""},
		"operator, fine": {creds.Operator("x"), "", 7 * 24 * time.Hour, ""},
	} {
		_, _, err := e.Create(t.Context(), c.by, team, c.agent, c.life)
		var p *api.Problem
		if errors.As(err, &p); (p == nil) != (c.code == "") || p != nil && p.Code != c.code {
			t.Errorf("%s: %v, want %q", name, err, c.code)
		}
	}
}
