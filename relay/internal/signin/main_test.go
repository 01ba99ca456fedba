package signin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/signin"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

const (
	origin = "https://relay.example.com"
	teamA  = ident.TeamID("6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11")
)

// town is where records are, in memory: people, credentials, the store and the audit log.
type town struct {
	now func() time.Time

	mu      sync.Mutex
	users   map[ident.UserID]store.UserRecord
	members map[ident.UserID]api.Role
	signIns map[string]store.SignInRecord
	invites map[string]string // hash to name
	used    map[string]bool
	audits  []audit.Record
	down    error
}

func newTown(now func() time.Time) *town {
	return &town{
		now: now, users: map[ident.UserID]store.UserRecord{}, members: map[ident.UserID]api.Role{}, signIns: map[string]store.SignInRecord{},
		invites: map[string]string{}, used: map[string]bool{},
	}
}

func (t *town) Find(_ context.Context, cookie ident.Secret) (store.SignInRecord, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.signIns[cookie.Hash()]
	return r, ok && t.now().Before(r.ExpiresAt)
}

func (t *town) Renew(_ context.Context, r store.SignInRecord) (store.SignInRecord, error) {
	r.ExpiresAt = t.now().Add(12 * time.Hour)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down != nil {
		return r, t.down
	}
	t.signIns[r.Hash] = r
	return r, nil
}

func (t *town) Known(_ context.Context, user ident.UserID, name, email string, _ []store.SignInTeam) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.users[user] = store.UserRecord{ID: user, Name: name, Email: email}
	return nil
}

func (t *town) SignIn(_ context.Context, user ident.UserID, method string, teams []store.SignInTeam, groups []string, browser, remote string) (ident.Secret, store.SignInRecord, error) {
	secret := ident.NewSecret(ident.PrefixSignIn)
	r := store.SignInRecord{Hash: secret.Hash(), User: user, Method: method, Teams: teams, Groups: groups, Browser: browser, RemoteAddr: remote, IssuedAt: t.now(), ExpiresAt: t.now().Add(12 * time.Hour)}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.signIns[r.Hash] = r
	return secret, r, nil
}

func (t *town) Groups(_ context.Context, user ident.UserID, groups []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for hash, r := range t.signIns {
		if r.User == user {
			r.Groups = groups
			t.signIns[hash] = r
		}
	}
	return nil
}

func (t *town) SignOut(_ context.Context, rec store.SignInRecord, everywhere bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.signIns, func(hash string, r store.SignInRecord) bool {
		return hash == rec.Hash || everywhere && r.User == rec.User
	})
	return nil
}

func (t *town) Accept(_ context.Context, invite ident.Secret, as ident.UserID, _ string) (store.MemberRecord, store.UserRecord, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name, ok := t.invites[invite.Hash()]
	if !ok {
		return store.MemberRecord{}, store.UserRecord{}, api.NewProblem(api.CodeInviteRefused, "the invitation is unknown or used")
	}
	delete(t.invites, invite.Hash())
	if as == "" {
		as = ident.UserID("adit:" + name)
		t.users[as] = store.UserRecord{ID: as, Name: name}
	}
	t.members[as] = api.RoleAdmin
	return store.MemberRecord{Team: teamA, User: as, Role: api.RoleAdmin}, t.users[as], nil
}

func (t *town) MayAddPasskey(user ident.UserID) bool { return strings.HasPrefix(string(user), "adit:") }

func (t *town) Handle(_ context.Context, user ident.UserID) (store.UserRecord, error) {
	if !t.MayAddPasskey(user) {
		return store.UserRecord{}, api.NewProblem(api.CodeForbidden, "passkeys are for people who came by an invitation")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.users[user]
	u.Handle = []byte("handle of " + string(user))
	t.users[user] = u
	return u, nil
}

func (t *town) ByHandle(_ context.Context, handle []byte) (store.UserRecord, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, u := range t.users {
		if len(handle) > 0 && bytes.Equal(u.Handle, handle) {
			return u, true
		}
	}
	return store.UserRecord{}, false
}

func (t *town) AddPasskey(_ context.Context, user ident.UserID, key store.PasskeyRecord) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.users[user]
	u.Passkeys = append(u.Passkeys, key)
	t.users[user] = u
	return nil
}

func (t *town) UsePasskey(_ context.Context, user ident.UserID, id string, credential json.RawMessage) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, key := range t.users[user].Passkeys {
		if key.ID == id {
			t.users[user].Passkeys[i].Credential = credential
			return nil
		}
	}
	return errors.New("no such passkey")
}

func (t *town) BrowserToken(rec store.SignInRecord, now time.Time) (ident.Secret, time.Time) {
	return ident.Secret("bt-for-" + string(rec.User)), now.Add(10 * time.Minute)
}

func (t *town) TeamsOfSignIn(rec store.SignInRecord) []api.MyTeam {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []api.MyTeam
	for _, team := range rec.Teams {
		out = append(out, api.MyTeam{TeamID: team.ID, Role: api.RoleMember})
	}
	if role, ok := t.members[rec.User]; ok {
		out = append(out, api.MyTeam{TeamID: teamA, Role: role})
	}
	return out
}

func (t *town) IssuerTeams(claims []byte) ([]store.SignInTeam, error) {
	var c struct{ Teams []ident.TeamID }
	if err := json.Unmarshal(claims, &c); err != nil {
		return nil, err
	}
	var out []store.SignInTeam
	for _, id := range c.Teams {
		out = append(out, store.SignInTeam{ID: id})
	}
	return out, nil
}

func (t *town) User(id ident.UserID) (store.UserRecord, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u, ok := t.users[id]
	return u, ok
}

func (t *town) Team(id ident.TeamID) (store.TeamRecord, bool) {
	return store.TeamRecord{ID: id, Name: "vision"}, true
}

func (t *town) UseTicket(_ context.Context, hash string, _ time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.used[hash] {
		return store.ErrExists
	}
	t.used[hash] = true
	return nil
}

func (t *town) Append(_ context.Context, r audit.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.audits = append(t.audits, r)
	return nil
}

// open counts sign-ins.
func (t *town) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.signIns)
}

// house is a relay's door with its town, and an issuer.
type house struct {
	t        *testing.T
	town     *town
	issuer   *issuer.Issuer
	handler  http.Handler
	log      *testkit.Buffer
	metrics  *prometheus.Registry
	mu       sync.Mutex
	later    time.Duration
	redirect string
}

func (h *house) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Add(h.later)
}

// wait moves the relay's clock on.
func (h *house) wait(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.later += d
}

func newHouse(t *testing.T, change ...func(*signin.Config)) *house {
	t.Helper()
	return newHouseAt(t, issuer.Start(t), change...)
}

// newHouseAt is newHouse with an issuer that others have too.
func newHouseAt(t *testing.T, is *issuer.Issuer, change ...func(*signin.Config)) *house {
	t.Helper()
	h := &house{t: t, issuer: is, log: &testkit.Buffer{}, metrics: prometheus.NewRegistry(), redirect: origin + "/auth/callback"}
	h.town = newTown(h.now)
	cfg := signin.Config{
		Origin: origin, Key: ident.ClusterKey{1}, People: h.town, Creds: h.town, Store: h.town, Audit: h.town, Now: h.now,
		Issuer: signin.Issuer{URL: h.issuer.URL(), ClientID: issuer.Audience, Groups: "groups", Scopes: []string{"openid", "email"}, HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}},
		Remote: func(r *http.Request) string { host, _, _ := strings.Cut(r.RemoteAddr, ":"); return host },
		Logger: slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Registerer: h.metrics,
	}
	for _, f := range change {
		f(&cfg)
	}
	door, err := signin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for pattern, handler := range door.Routes() {
		mux.Handle(pattern, handler)
	}
	h.handler = mux
	return h
}

// browser keeps cookies as browsers do.
type browser struct {
	h       *house
	cookies map[string]string
	remote  string
	seen    []*http.Cookie // as they were set last
}

func (h *house) browser() *browser {
	return &browser{h: h, cookies: map[string]string{}, remote: "192.0.2.7"}
}

// reply is an answer, read.
type reply struct {
	StatusCode int
	Header     http.Header
	body       string
}

// do sends a request as it is, with the browser's cookies.
func (b *browser) do(r *http.Request) *reply {
	b.h.t.Helper()
	r.RemoteAddr = b.remote + ":1000"
	for name, value := range b.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	w := httptest.NewRecorder()
	b.h.handler.ServeHTTP(w, r)
	b.seen = (&http.Response{Header: w.Header()}).Cookies()
	for _, c := range b.seen {
		if c.MaxAge < 0 {
			delete(b.cookies, c.Name)
		} else {
			b.cookies[c.Name] = c.Value
		}
	}
	return &reply{w.Code, w.Header(), w.Body.String()}
}

func (b *browser) get(path string) *reply {
	b.h.t.Helper()
	r := httptest.NewRequestWithContext(b.h.t.Context(), http.MethodGet, origin+path, nil)
	if r.Header.Set("Accept", asPerson); path == "/auth/options" { // the console's script asks
		r.Header.Set("Accept", "*/*")
	}
	return b.do(r)
}

// asPerson is the Accept of a browser that goes somewhere.
const asPerson = "text/html,application/xhtml+xml,*/*;q=0.8"

// post is what the console's script sends; each header replaces one of it.
func (b *browser) post(path string, body any, header ...string) *reply {
	b.h.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		b.h.t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(b.h.t.Context(), http.MethodPost, origin+path, bytes.NewReader(text))
	r.Header.Set("Origin", origin)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		if r.Header.Del(header[i]); header[i+1] != "" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	return b.do(r)
}

// signedIn says whether the relay takes the browser for somebody.
func (b *browser) signedIn() bool {
	b.h.t.Helper()
	return b.post("/auth/token", struct{}{}).StatusCode == http.StatusOK
}

// begun is an attempt to sign in, as the issuer sees it.
type begun struct {
	query url.Values
}

// login goes to the issuer.
func (b *browser) login(returnTo string) begun {
	b.h.t.Helper()
	resp := b.get("/auth/login?return_to=" + url.QueryEscape(returnTo))
	at, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || resp.StatusCode != http.StatusFound || !strings.HasPrefix(at.String(), b.h.issuer.URL()+"/authorize?") {
		b.h.t.Fatalf("signing in leads to the issuer, got %d %v %s", resp.StatusCode, at, text(resp))
	}
	return begun{at.Query()}
}

// grant is the issuer's word: somebody has signed in there.
func (h *house) grant(b begun, claims issuer.Claims, change ...func(*issuer.Grant)) string {
	all := issuer.Claims{"nonce": b.query.Get("nonce"), "teams": []string{string(teamA)}, "name": "Alice"}
	maps.Copy(all, claims)
	g := issuer.Grant{Redirect: h.redirect, Challenge: b.query.Get("code_challenge"), IDToken: h.issuer.Token(all)}
	for _, f := range change {
		f(&g)
	}
	return h.issuer.Grant(g)
}

// back is the way back from the issuer.
func (b *browser) back(at begun, code string) *reply {
	b.h.t.Helper()
	return b.get("/auth/callback?" + url.Values{"code": {code}, "state": {at.query.Get("state")}}.Encode())
}

// enter signs in with the issuer.
func (b *browser) enter() {
	b.h.t.Helper()
	at := b.login("/console")
	if resp := b.back(at, b.h.grant(at, nil)); resp.StatusCode != http.StatusSeeOther {
		b.h.t.Fatalf("signing in works, got %d: %s", resp.StatusCode, text(resp))
	}
}

func text(resp *reply) string { return resp.body }

// wantPage checks that a person is told what went wrong, and nothing else happened.
func wantPage(t *testing.T, what string, resp *reply, status int, says string) {
	t.Helper()
	body := text(resp)
	if resp.StatusCode != status || !strings.Contains(body, says) || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("%s: got %d with %q, want a page with %d that says %q", what, resp.StatusCode, body, status, says)
	}
	for name, want := range map[string]string{"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: %s is %q, want %q", what, name, got, want)
		}
	}
	if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(body, "<script") {
		t.Errorf("%s: a page runs nothing: %s", what, csp)
	}
}

// wantProblem checks a refusal as programs read it.
func wantProblem(t *testing.T, what string, resp *reply, code api.Code) {
	t.Helper()
	var p api.Problem
	body := text(resp)
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.Code != code || p.Status != resp.StatusCode {
		t.Errorf("%s: got %d %s, want the problem %s", what, resp.StatusCode, body, code)
	}
}
