package rest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/gate/gatetest"
	"github.com/adit-tunnel/adit/relay/internal/rest"
	"github.com/adit-tunnel/adit/relay/internal/rest/resttest"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

const (
	ours   = ident.TeamID("0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0001")
	theirs = ident.TeamID("0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0002")
)

// auth knows the secrets of the tests' callers.
type auth struct {
	mu      sync.Mutex
	by      map[string]creds.Principal
	created []store.CredentialRecord
	cancels map[string]context.CancelCauseFunc
}

func (a *auth) Authenticate(r *http.Request) (creds.Principal, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	secret, err := creds.Bearer(r)
	if err != nil {
		return creds.Principal{}, err
	}
	p, ok := a.by[secret.Reveal()]
	if !ok {
		return p, api.NewProblem(api.CodeUnauthenticated, "unknown secret")
	}
	return p, nil
}

// be gives everybody with a role another one.
func (a *auth) be(role api.Role) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for secret, p := range a.by {
		if p.Role != "" {
			p.Role = role
			a.by[secret] = p
		}
	}
}

func (a *auth) AuthenticatePerson(r *http.Request) (creds.Principal, error) {
	return a.Authenticate(r)
}

func (a *auth) Teams(p creds.Principal) []api.MyTeam {
	return []api.MyTeam{{TeamID: p.Team, TeamName: "render", Role: p.Role}}
}

func (a *auth) Owns(p creds.Principal, o store.Opened) bool {
	return p.User != "" && p.User == o.User || p.Credential != "" && p.Credential == o.Credential
}

func (a *auth) Watch(ctx context.Context, p creds.Principal) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cancels[p.Name] = cancel
	return ctx, func() { cancel(nil) }
}

func (a *auth) Create(_ context.Context, by creds.Principal, team ident.TeamID, user ident.UserID, req api.CreateCredentialRequest) (store.CredentialRecord, ident.Secret, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := ident.NewSecret(ident.PrefixIntegration)
	rec := store.CredentialRecord{ID: ident.NewCredentialID(), Kind: req.Kind, Team: team, Name: req.Name, Prefix: s.DisplayPrefix(), CreatedBy: by.Name, CreatedAt: time.Now().UTC()}
	a.created = append(a.created, rec)
	return rec, s, nil
}

func (a *auth) Revoke(_ context.Context, by creds.Principal, team ident.TeamID, id ident.CredentialID, keepTunnels bool) (api.Revoked, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range append(a.created, store.CredentialRecord{ID: by.Credential, Team: by.Team}) {
		if c.ID == id && c.Team == team {
			out := api.Revoked{Credentials: 2, Tunnels: 3, Links: 1}
			if keepTunnels {
				out.Tunnels, out.Links = 0, 0
			}
			return out, nil
		}
	}
	return api.Revoked{}, api.NotFound(api.CodeCredentialNotFound)
}

func (a *auth) List(_ creds.Principal, team ident.TeamID) ([]api.Credential, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []api.Credential
	for _, c := range a.created {
		if c.Team == team {
			out = append(out, creds.Public(c))
		}
	}
	return out, nil
}

type addresses struct{}

func (addresses) URL(t store.TunnelRecord) string {
	return "https://" + string(t.Session) + ".t.example.com/"
}
func (addresses) Alternates(t store.TunnelRecord) []string { return nil }
func (addresses) LinkURL(_ store.TunnelRecord, id ident.LinkID) string {
	return "https://" + string(id) + ".t.example.com/"
}
func (addresses) LinkAlternates(store.TunnelRecord, ident.LinkID) []string { return nil }
func (addresses) LinkSegment(id ident.LinkID) ident.Segment {
	return ident.ClusterKey{1}.LinkSegment(id)
}

// viewers has one viewer for every tunnel.
type viewers struct{}

const viewer = ident.ViewerID("0123456789abcdef")

func (viewers) Totals(_ context.Context, ids []ident.SessionID) map[ident.SessionID]usage.Totals {
	out := make(map[ident.SessionID]usage.Totals)
	for _, id := range ids {
		out[id] = usage.Totals{Viewers: 1, BytesIn: 5, BytesOut: 7, Names: []string{"Ada", "Bob", "Cleo", "Dan"}}
	}
	return out
}
func (viewers) Viewers(context.Context, ident.SessionID) []api.Viewer {
	now := time.Now().UTC()
	return []api.Viewer{{ViewerID: viewer, RemoteAddr: "203.0.113.9", Since: now, LastSeen: now, Connections: 1}}
}
func (viewers) Kick(_ context.Context, _ ident.SessionID, v ident.ViewerID) (usage.Party, bool) {
	return usage.Party{User: "u-7", Name: "Ada"}, v == viewer
}

// prober answers as it is told, when it is told.
type prober struct {
	mu     sync.Mutex
	answer wire.Probed
	delay  time.Duration
	asked  []wire.Probe
}

func (p *prober) Probe(ctx context.Context, _ ident.AgentKey, q wire.Probe) (wire.Probed, error) {
	p.mu.Lock()
	p.asked = append(p.asked, q)
	answer, delay := p.answer, p.delay
	p.mu.Unlock()
	select {
	case <-time.After(delay):
		return answer, nil
	case <-ctx.Done():
		return wire.Probed{}, errors.New("no answer")
	}
}

func (p *prober) set(answer wire.Probed, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer, p.delay = answer, delay
}

// world is an API on a store in memory, with its gate running.
type world struct {
	t         *testing.T
	api       *rest.API
	gate      *gate.Gate
	store     *gatetest.Store
	audit     *gatetest.Audit
	local     *gatetest.Local
	auth      *auth
	prober    *prober
	links     *links
	people    rest.People
	oldRelay  bool // one of the pool is of the last release
	signInOff string
	check     *resttest.Checker
	stop      func()
}

var (
	loadOnce    sync.Once
	description *resttest.Description
	errLoad     error
)

// terminals make codes that open nothing.
// doors have somebody who waits at each tunnel.
type doors struct{}

func (doors) Knocks(session ident.SessionID) []api.Knock {
	return []api.Knock{{KnockID: "00c0ffee", SessionID: session, Name: "Mallory", RemoteAddr: "203.0.113.9", Browser: "curl", KnockedAt: time.Unix(1000, 0).UTC(), ExpiresAt: time.Unix(1600, 0).UTC()}}
}

func (doors) Answer(_ context.Context, by creds.Principal, _ store.TunnelRecord, knock string, admit bool) (string, error) {
	if knock != "00c0ffee" {
		return "", api.NotFound(api.CodeKnockNotFound)
	}
	return fmt.Sprintf("Mallory %v by %s", admit, by.Name), nil
}

type terminals struct{}

func (terminals) Mint(_ context.Context, t store.TunnelRecord, by creds.Principal, lives time.Duration, readOnly bool) (string, time.Time, error) {
	return fmt.Sprintf("https://relay.example.com/terminal/%s#code=%s-%v", t.Session, by.Name, readOnly), time.Now().Add(lives), nil
}

// pairings answer for one program, whose code is AB7K-PNQ3.
type pairings struct{}

func (pairings) Start(_ context.Context, req api.PairStartRequest) (api.PairStarted, error) {
	if req.Client == "flood" {
		return api.PairStarted{}, api.NewProblem(api.CodeTooManyTries, "too many").WithRetry(time.Second)
	}
	return api.PairStarted{DeviceCode: "pc-x", UserCode: "AB7K-PNQ3", VerificationURI: "https://relay.example.com/desktop/pair?user_code=AB7K-PNQ3", ExpiresIn: 300, Interval: 2}, nil
}

func (pairings) Poll(_ context.Context, device ident.Secret) (api.PairPolled, error) {
	switch device {
	case "pc-x":
		return api.PairPolled{Status: "pending"}, nil
	case "pc-y":
		return api.PairPolled{Status: "approved", RawKey: "dk-x", AgentKey: "ak-x", TeamID: ours, AgentID: "gpu-9"}, nil
	}
	return api.PairPolled{}, api.NotFound(api.CodePairingNotFound)
}

func (pairings) Show(_ context.Context, _ creds.Principal, typed string) (api.PairAsked, error) {
	if typed != "AB7K-PNQ3" {
		return api.PairAsked{}, api.NotFound(api.CodePairingNotFound)
	}
	return api.PairAsked{Client: "adit", RemoteAddr: "203.0.113.9", Keys: []api.PairKey{api.PairDevice}, AskedAt: time.Now().UTC(), ExpiresAt: time.Now().UTC()}, nil
}

func (pairings) Confirm(_ context.Context, by creds.Principal, req api.PairConfirmRequest) (api.PairConfirmed, error) {
	if req.UserCode != "AB7K-PNQ3" {
		return api.PairConfirmed{}, api.NotFound(api.CodePairingNotFound)
	}
	return api.PairConfirmed{Status: "approved", DeviceName: req.DeviceName, TeamID: by.Team}, nil
}

// nobody is People of whom nothing is asked.
type nobody struct{ rest.People }

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOf(t, nobody{})
}

func newWorldOf(t *testing.T, people rest.People) *world {
	t.Helper()
	w := &world{
		t: t, store: gatetest.NewStore(), audit: &gatetest.Audit{}, local: gatetest.NewLocal(),
		links:  &links{},
		prober: &prober{answer: wire.Probed{Listening: true, Allowed: true, App: "comfyui", HostHeader: "public"}},
		auth: &auth{cancels: map[string]context.CancelCauseFunc{}, by: map[string]creds.Principal{
			"user":        {Kind: creds.KindUser, Team: ours, User: "alice", Role: api.RoleAdmin, Name: "user:alice"},
			"device":      {Kind: creds.KindDevice, Team: ours, User: "alice", Role: api.RoleAdmin, Credential: "cred_1", Name: "dk:alice/laptop"},
			"integration": {Kind: creds.KindIntegration, Team: ours, Role: api.RoleAdmin, Credential: "cred_2", Name: "sk:ci"},
			"agent":       {Kind: creds.KindAgent, Team: ours, Agent: "gpu-1", Credential: "cred_3", Name: "ak:gpu-1"},
			"agent-any":   {Kind: creds.KindAgent, Team: ours, Credential: "cred_4", Name: "ak:any"},
			"stranger":    {Kind: creds.KindUser, Team: theirs, User: "mallory", Role: api.RoleAdmin, Name: "user:mallory"},
		}},
	}
	log := slog.New(slog.DiscardHandler)
	var err error
	w.gate, err = gate.New(gate.Config{
		Store: w.store, Local: w.local, Audit: w.audit, Relay: "r", Key: ident.ClusterKey{1}, Logger: log,
		Limits: gatetest.Limits(gate.Limits{OpensBurst: 1000}),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.people = people
	w.restart(access.Floor{})
	w.store.SetRelay("r", true)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.gate.Run(ctx) })
	api := w.api
	wg.Go(func() { _ = api.Run(ctx) })
	w.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(w.stop)
	w.connect(ours, "gpu-1")
	loadOnce.Do(func() { description, errLoad = resttest.Load(w.do("GET", "/openapi.json", "", "").body) })
	if errLoad != nil {
		t.Fatal(errLoad)
	}
	w.check = description.For(t)
	return w
}

// restart makes the API anew, as an operator does who changed how open tunnels may be.
func (w *world) restart(floor access.Floor) {
	w.t.Helper()
	var err error
	w.api, err = rest.New(rest.Config{
		Auth: w.auth, Rights: w.auth, People: w.people, Pairing: pairings{}, Gate: w.gate, Store: w.store, Addresses: addresses{}, Usage: viewers{}, Links: w.links, Doors: doors{}, Access: floor, SignInOff: w.signInOff, AppliesAccess: func() bool { return !w.oldRelay }, Terminals: terminals{}, Prober: w.prober, Audit: w.audit,
		Logger:    slog.New(slog.DiscardHandler),
		Remote:    func(r *http.Request) string { return caller.Peer(r).String() },
		ProbeWait: 100 * time.Millisecond, Grace: 30 * time.Second, Comment: 200 * time.Millisecond,
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) connect(team ident.TeamID, agent ident.AgentID) {
	w.t.Helper()
	key := ident.AgentKey{Team: team, Agent: agent}
	epoch, _, err := w.gate.Connect(w.t.Context(), key, gate.Claim{Instance: "i"})
	if err != nil {
		w.t.Fatal(err)
	}
	now := time.Now().UTC()
	w.store.SetPresence(store.Presence{
		Team: team, Agent: agent, Relay: "r", Epoch: epoch, ConnectedAt: now, Heartbeat: now, Version: "v1", Platform: "linux/amd64",
		Facts: wire.Facts{Tool: "comfyui", GPUs: []wire.GPU{{Name: "NVIDIA L4", VRAMTotal: 24 << 30}}},
	})
}

type reply struct {
	status int
	header http.Header
	body   []byte
}

// into decodes a body of the status wanted.
func into[T any](t *testing.T, r reply, status int) T {
	t.Helper()
	var v T
	if r.status != status {
		t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	if err := json.Unmarshal(r.body, &v); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
	return v
}

// do makes a call as the holder of a secret, and checks the answer against the
// description. Headers are alternating names and values.
func (w *world) do(method, path, secret, body string, headers ...string) reply {
	w.t.Helper()
	req := httptest.NewRequestWithContext(w.t.Context(), method, api.Base+path, strings.NewReader(body))
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for h := range slices.Chunk(headers, 2) {
		req.Header.Set(h[0], h[1])
	}
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, req)
	res := rec.Result()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.check != nil {
		w.check.Check(req, res, bytes.Clone(got))
	}
	return reply{res.StatusCode, res.Header, got}
}

// code is the status and code of a refusal, or the status alone.
func (r reply) code() string {
	var p api.Problem
	_ = json.Unmarshal(r.body, &p)
	return strings.TrimSpace(http.StatusText(r.status) + " " + string(p.Code))
}

func (w *world) want(r reply, want string) {
	w.t.Helper()
	if got := r.code(); got != want {
		w.t.Errorf("got %q, want %q: %s", got, want, r.body)
	}
}
