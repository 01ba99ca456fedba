package pairing_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/pairing"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	ours   = ident.TeamID("6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11")
	theirs = ident.TeamID("6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b12")
)

// memory is the store, the credentials and the audit log; the real ones are tested at
// home, and all together in relay/e2e.
type memory struct {
	mu       sync.Mutex
	now      time.Time
	pairings map[string]store.PairingRecord
	made     []store.CredentialRecord
	agents   map[ident.AgentID]bool
	roles    map[ident.UserID]api.Role // empty: no member
	member   store.MemberRecord        // of whoever it names
	audit    []audit.Record
	down     bool
	lookups  int
}

func (m *memory) CreatePairing(_ context.Context, r store.PairingRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return store.ErrUnavailable
	}
	m.pairings[r.Hash] = r
	return nil
}

func (m *memory) Pairing(hash string) (store.PairingRecord, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.pairings[hash]
	return r, ok
}

func (m *memory) PairingsByCode(code string) (out []store.PairingRecord) {
	for _, r := range m.Pairings() {
		if r.UserCode == code {
			out = append(out, r)
		}
	}
	return out
}

func (m *memory) Pairings() (out []store.PairingRecord) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.pairings {
		out = append(out, r)
	}
	return out
}

func (m *memory) ChangePairing(_ context.Context, hash string, change func(*store.PairingRecord) error) (store.PairingRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.pairings[hash]
	if !ok {
		return r, store.ErrNotFound
	}
	if err := change(&r); err != nil && !errors.Is(err, store.ErrUnchanged) {
		return r, err
	}
	m.pairings[hash] = r
	return r, nil
}

func (m *memory) TakePairing(_ context.Context, hash string, made ...store.CredentialRecord) (store.PairingRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.pairings[hash]
	switch {
	case m.down:
		return r, store.ErrUnavailable
	case !ok || !r.Approved() || !m.now.Before(r.ExpiresAt):
		return r, store.ErrNotFound
	}
	delete(m.pairings, hash)
	m.made = append(m.made, made...)
	return r, nil
}

func (m *memory) DeletePairing(_ context.Context, hash string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pairings, hash)
	return nil
}

func (m *memory) CatchUp(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lookups++
	if m.down {
		return store.ErrUnavailable
	}
	return nil
}

func (m *memory) Agent(key ident.AgentKey) (store.AgentRecord, bool) {
	return store.AgentRecord{}, m.agents[key.Agent]
}

func (m *memory) AgentCredentials(key ident.AgentKey) (out []store.CredentialRecord) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.made {
		if c.Team == key.Team && c.Agent == key.Agent {
			out = append(out, c)
		}
	}
	return out
}

func (m *memory) Team(id ident.TeamID) (store.TeamRecord, bool) {
	return store.TeamRecord{ID: id, Name: "vision"}, id == ours
}

func (m *memory) User(id ident.UserID) (store.UserRecord, bool) {
	return store.UserRecord{ID: id, Name: "Alice"}, id == "alice"
}

func (m *memory) Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool) {
	return m.member, m.member.Team == team && m.member.User == user
}

func (m *memory) RoleIn(_ ident.TeamID, user ident.UserID, _ api.Role, _ bool) (api.Role, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.roles[user]
	return r, r != ""
}

func (m *memory) Append(_ context.Context, r audit.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.audit = append(m.audit, r)
	return nil
}

// keys makes credentials as package creds does.
type keys struct {
	*creds.Authenticator
	*memory
}

func (k keys) RoleIn(team ident.TeamID, user ident.UserID, said api.Role, named bool) (api.Role, bool) {
	return k.memory.RoleIn(team, user, said, named)
}

// index is what creds reads of the store to count a team's credentials.
type index struct{ creds.Store }

func (index) Credentials(ident.TeamID) []store.CredentialRecord { return nil }

type world struct {
	*memory
	*pairing.Pairing
	t   *testing.T
	reg *prometheus.Registry
}

func newWorld(t *testing.T) *world {
	t.Helper()
	m := &memory{
		now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), pairings: map[string]store.PairingRecord{}, agents: map[ident.AgentID]bool{},
		roles: map[ident.UserID]api.Role{"alice": api.RoleAdmin, "bob": api.RoleMember, "carol": api.RoleMember, "victor": api.RoleViewer},
	}
	auth, err := creds.New(creds.Config{Store: index{}})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{memory: m, t: t, reg: prometheus.NewRegistry()}
	w.Pairing = pairing.New(pairing.Config{
		Store: m, Credentials: keys{auth, m}, Audit: m, Key: ident.ClusterKey{1}, Origin: "https://console.example.com", Now: func() time.Time { return m.now }, Registerer: w.reg,
		MayAppear: func(key ident.AgentKey) error {
			if key.Agent == "one-too-many" {
				return api.NewProblem(api.CodeTeamAgentLimit, "the team has as many agents as it may have")
			}
			return nil
		},
	})
	return w
}

// from is a call from an address.
func (w *world) from(addr string) context.Context {
	return gate.WithTrace(w.t.Context(), gate.Trace{Remote: addr, Request: "req-1"})
}

func (w *world) start(req api.PairStartRequest) api.PairStarted {
	w.t.Helper()
	got, err := w.Start(w.from("203.0.113.5"), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func (w *world) person(id ident.UserID) creds.Principal {
	return creds.Principal{Kind: creds.KindUser, Team: ours, User: id, Role: w.roles[id], Name: "user:" + string(id)}
}

func (w *world) confirm(id ident.UserID, code, name string) error {
	_, err := w.Confirm(w.from("198.51.100.7"), w.person(id), api.PairConfirmRequest{UserCode: code, DeviceName: name})
	return err
}

func (w *world) poll(code string) (api.PairPolled, error) {
	return w.Poll(w.from("203.0.113.5"), ident.Secret(code))
}

// want demands a problem of a code; none: no error.
func (w *world) want(what string, err error, code api.Code) {
	w.t.Helper()
	var p *api.Problem
	if errors.As(err, &p); (p == nil) != (code == "") || p != nil && p.Code != code || p == nil && err != nil {
		w.t.Errorf("%s: %v, want %q", what, err, code)
	}
}

func TestAProgramIsLetIn(t *testing.T) {
	w := newWorld(t)
	s := w.start(api.PairStartRequest{Client: "adit/1", MachineName: "laptop", Keys: []api.PairKey{api.PairDevice, api.PairAgent}, AgentID: "gpu-1"})
	if !regexp.MustCompile(`^[A-Z0-9]{4}-[A-Z0-9]{4}$`).MatchString(s.UserCode) || !strings.HasPrefix(s.DeviceCode, "pc-") || s.ExpiresIn != 300 || s.Interval != 2 ||
		s.VerificationURI != "https://console.example.com/desktop/pair?user_code="+s.UserCode {
		t.Fatalf("it is told %+v", s)
	}
	for hash, rec := range w.pairings {
		b, _ := json.Marshal(rec)
		if text := string(b) + hash; strings.Contains(text, s.DeviceCode) || strings.Contains(text, s.UserCode) || strings.Contains(text, strings.ReplaceAll(s.UserCode, "-", "")) {
			t.Errorf("a code is at rest: %s", text)
		}
	}
	got, err := w.poll(s.DeviceCode)
	if w.want("a poll", err, ""); got != (api.PairPolled{Status: "pending"}) {
		t.Errorf("before anybody said yes: %+v", got)
	}
	asked, err := w.Show(w.from("198.51.100.7"), w.person("alice"), s.UserCode)
	if w.want("who asks", err, ""); asked.Client != "adit/1" || asked.MachineName != "laptop" || asked.RemoteAddr != "203.0.113.5" || asked.AgentID != "gpu-1" || len(asked.Keys) != 2 {
		t.Errorf("who asks is %+v", asked)
	}
	w.want("saying yes", w.confirm("alice", strings.ToLower(s.UserCode), "my laptop"), "")
	got, err = w.poll(s.DeviceCode)
	if w.want("the poll that takes it", err, ""); got.Status != "approved" || !strings.HasPrefix(got.RawKey, "dk-") || !strings.HasPrefix(got.AgentKey, "ak-") ||
		got.TeamID != ours || got.TeamName != "vision" || got.UserName != "Alice" || got.AgentID != "gpu-1" {
		t.Fatalf("it gets %+v", got)
	}
	if len(w.made) != 2 {
		t.Fatalf("%d credentials were made", len(w.made))
	}
	dk, ak := w.made[0], w.made[1]
	if dk.Kind != api.KindDevice || dk.User != "alice" || dk.Name != "my laptop" || dk.Role != api.RoleAdmin || dk.Maker != "alice" || !ident.Secret(got.RawKey).Matches(dk.Hash) {
		t.Errorf("the device is %+v", dk)
	}
	if ak.Kind != api.KindAgent || ak.Agent != "gpu-1" || ak.MadeBy != dk.ID || ak.User != "" || !ident.Secret(got.AgentKey).Matches(ak.Hash) {
		t.Errorf("the machine's own credential is %+v; it ends with the device", ak)
	}
	_, err = w.poll(s.DeviceCode)
	w.want("the same code again", err, api.CodePairingNotFound)
	_, err = w.Show(w.from("198.51.100.7"), w.person("alice"), s.UserCode)
	w.want("the same user code again", err, api.CodePairingNotFound)
	if len(w.audit) != 2 || w.audit[0].Event != audit.PairingConfirmed || w.audit[1].Event != audit.PairingTaken || w.audit[0].Actor != "user:alice" ||
		w.audit[0].RemoteAddr != "198.51.100.7" || w.audit[1].RemoteAddr != "203.0.113.5" || !strings.Contains(w.audit[0].Detail, "203.0.113.5") || !strings.Contains(w.audit[1].Detail, string(ak.ID)) {
		t.Errorf("the audit log says %+v", w.audit)
	}
	for _, r := range w.audit {
		if b, _ := json.Marshal(r); strings.Contains(string(b), s.UserCode) || strings.Contains(string(b), s.DeviceCode) || strings.Contains(string(b), got.RawKey) {
			t.Errorf("the audit log holds a code or a key: %s", b)
		}
	}
	if problems, err := testutil.GatherAndLint(w.reg); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

func TestADeviceIsTheDefault(t *testing.T) {
	w := newWorld(t)
	s := w.start(api.PairStartRequest{})
	w.want("saying yes without a name", w.confirm("bob", s.UserCode, ""), "")
	got, err := w.poll(s.DeviceCode)
	if w.want("the poll", err, ""); got.AgentKey != "" || len(w.made) != 1 || w.made[0].Name != "device" || w.made[0].Role != api.RoleMember {
		t.Errorf("it gets %+v, made %+v", got, w.made)
	}
}

func TestWhatMayBeAskedFor(t *testing.T) {
	w := newWorld(t)
	for name, req := range map[string]api.PairStartRequest{
		"an unknown key":                {Keys: []api.PairKey{"root"}},
		"a key twice":                   {Keys: []api.PairKey{"device", "device"}},
		"a machine without a name":      {Keys: []api.PairKey{"agent"}},
		"a name without a machine":      {AgentID: "gpu-1"},
		"a bad name":                    {Keys: []api.PairKey{"agent"}, AgentID: "a b"},
		"a program that steers screens": {Client: "x\x1b[2J"},
		"a long name":                   {MachineName: strings.Repeat("é", 101)},
	} {
		w.now = w.now.Add(time.Minute)
		_, err := w.Start(w.from("203.0.113.5"), req)
		w.want(name, err, api.CodeOutOfRange)
	}
	s := w.start(api.PairStartRequest{MachineName: strings.Repeat("é", 100)})
	w.want("a device's long name", w.confirm("bob", s.UserCode, strings.Repeat("x", 101)), api.CodeOutOfRange)
	w.want("a device's name that steers", w.confirm("bob", s.UserCode, "x\u202e"), api.CodeOutOfRange)
	w.want("the longest", w.confirm("bob", s.UserCode, strings.Repeat("é", 100)), "")
}

func TestCodesAsPeopleTypeThem(t *testing.T) {
	w := newWorld(t)
	seen := map[rune]bool{}
	for range 200 {
		w.now = w.now.Add(time.Minute)
		s := w.start(api.PairStartRequest{})
		for _, c := range s.UserCode {
			seen[c] = true
		}
	}
	for _, c := range "01ILOUGSZ258" {
		if seen[c] {
			t.Errorf("codes hold %c, which looks like another", c)
		}
	}
	w.now = w.now.Add(time.Hour)
	clear(w.pairings)
	s := w.start(api.PairStartRequest{})
	plain := strings.ReplaceAll(s.UserCode, "-", "")
	for _, typed := range []string{
		s.UserCode, strings.ToLower(s.UserCode), plain, " " + plain[:2] + " " + plain[2:] + "\n", plain[:4] + "–" + plain[4:],
		strings.NewReplacer("B", "8", "V", "u", "Q", "0", "6", "g").Replace(plain), strings.ReplaceAll(plain, "Q", "o"),
	} {
		_, err := w.Show(w.from("198.51.100.7"), w.person("alice"), typed)
		w.want(fmt.Sprintf("%q", typed), err, "")
	}
	for _, typed := range []string{"", "AB7K", plain + "A", plain[:7] + "!", strings.Repeat("A", 1000), plain[:7] + "é"} {
		_, err := w.Show(w.from("198.51.100.7"), w.person("alice"), typed)
		w.want(fmt.Sprintf("%q is no code", typed), err, api.CodeOutOfRange)
	}
}

// wrong returns a code that nobody waits with.
func wrong(i int) string {
	const letters = "ABCDEFHJ"
	return fmt.Sprintf("3333-3%c%c%c", letters[i/64%8], letters[i/8%8], letters[i%8])
}

func TestGuessing(t *testing.T) {
	w := newWorld(t)
	s := w.start(api.PairStartRequest{})
	for i := range 5 {
		_, err := w.Show(w.from("198.51.100.7"), w.person("bob"), wrong(i))
		w.want("a wrong code", err, api.CodePairingNotFound)
	}
	_, err := w.Show(w.from("198.51.100.7"), w.person("bob"), s.UserCode)
	w.want("the right one, as the sixth", err, api.CodeTooManyTries)
	w.want("the same person from elsewhere", func() error {
		_, err := w.Show(w.from("192.0.2.1"), w.person("bob"), s.UserCode)
		return err
	}(), api.CodeTooManyTries)
	w.want("another person at the same address", w.confirm("alice", s.UserCode, "x"), api.CodeTooManyTries)
	w.now = w.now.Add(12 * time.Second)
	_, err = w.Show(w.from("198.51.100.7"), w.person("bob"), wrong(6))
	w.want("one more, 12 s later", err, api.CodePairingNotFound)
	_, err = w.Show(w.from("198.51.100.7"), w.person("bob"), s.UserCode)
	w.want("and no second one", err, api.CodeTooManyTries)
	_, err = w.Show(w.from("192.0.2.1"), w.person("alice"), s.UserCode)
	w.want("who guessed nothing", err, "")
}

// Codes that are tried all at once are no more than those tried one after the other.
func TestGuessingAllAtOnce(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	codes := make(chan api.Code, 200)
	for i := range 200 {
		wg.Go(func() {
			_, err := w.Show(w.from("198.51.100.7"), w.person("bob"), wrong(i))
			p, _ := errors.AsType[*api.Problem](err)
			codes <- p.Code
		})
	}
	wg.Wait()
	close(codes)
	count := map[api.Code]int{}
	for c := range codes {
		count[c]++
	}
	if count[api.CodePairingNotFound] != 5 || count[api.CodeTooManyTries] != 195 {
		t.Errorf("of 200 guesses at once: %v, want 5 that were looked at", count)
	}
}

func TestWhoLetsIn(t *testing.T) {
	w := newWorld(t)
	s := w.start(api.PairStartRequest{})
	for name, by := range map[string]creds.Principal{
		"a viewer":       w.person("victor"),
		"a device":       {Kind: creds.KindDevice, Team: ours, User: "alice", Role: api.RoleAdmin},
		"a program":      {Kind: creds.KindIntegration, Team: ours, Role: api.RoleAdmin},
		"an agent":       {Kind: creds.KindAgent, Team: ours},
		"nobody":         {},
		"without team":   {Kind: creds.KindUser, User: "alice", Role: api.RoleAdmin},
		"without a role": {Kind: creds.KindUser, Team: ours, User: "eve"},
	} {
		_, err := w.Confirm(w.from("198.51.100.7"), by, api.PairConfirmRequest{UserCode: s.UserCode})
		w.want(name, err, api.CodeForbidden)
	}
	w.want("a member", w.confirm("bob", s.UserCode, "x"), "")
	w.want("the same again, since the answer was lost", w.confirm("bob", s.UserCode, "x"), "")
	w.want("another name", w.confirm("bob", s.UserCode, "y"), api.CodePairingNotFound)
	w.want("another person", w.confirm("carol", s.UserCode, "x"), api.CodePairingNotFound)
	other := w.person("bob")
	other.Team = theirs
	_, err := w.Confirm(w.from("198.51.100.7"), other, api.PairConfirmRequest{UserCode: s.UserCode, DeviceName: "x"})
	w.want("the same person for another team", err, api.CodePairingNotFound)
	if got, err := w.poll(s.DeviceCode); err != nil || got.TeamID != ours || w.made[0].User != "bob" {
		t.Errorf("it is bob's, in the first team: %+v %v", got, err)
	}
}

// Between the yes and the poll the person may have been removed or demoted.
func TestAYesIsWorthWhatThePersonIs(t *testing.T) {
	for name, c := range map[string]struct {
		now  api.Role
		want api.Code
		role api.Role
	}{
		"removed":        {"", api.CodePairingNotFound, ""},
		"viewer now":     {api.RoleViewer, api.CodePairingNotFound, ""},
		"member now":     {api.RoleMember, "", api.RoleMember},
		"as before":      {api.RoleAdmin, "", api.RoleAdmin},
		"promoted since": {api.RoleOwner, "", api.RoleAdmin},
	} {
		w := newWorld(t)
		s := w.start(api.PairStartRequest{})
		w.want(name, w.confirm("alice", s.UserCode, "x"), "")
		w.roles["alice"] = c.now
		got, err := w.poll(s.DeviceCode)
		w.want(name, err, c.want)
		if c.want == "" && (len(w.made) != 1 || w.made[0].Role != c.role) || c.want != "" && (len(w.made) != 0 || got.RawKey != "") {
			t.Errorf("%s: made %+v", name, w.made)
		}
	}
}

// Nor does an issuer let in whom it names no more since the program asked, though it would
// have the person back if it named them again.
func TestTheIssuersWordEndsAYes(t *testing.T) {
	for name, c := range map[string]struct {
		after time.Duration
		want  api.Code
	}{"since": {time.Second, api.CodePairingNotFound}, "long before": {-time.Hour, ""}} {
		w := newWorld(t)
		s := w.start(api.PairStartRequest{})
		w.want(name, w.confirm("alice", s.UserCode, "x"), "")
		w.member = store.MemberRecord{Team: ours, User: "alice", Source: store.SourceIssuer, RemovedBy: store.SourceIssuer, RemovedAt: w.now.Add(c.after)}
		_, err := w.poll(s.DeviceCode)
		w.want(name, err, c.want)
	}
}

func TestTwoPollsGetTheKeysOnce(t *testing.T) {
	w := newWorld(t)
	s := w.start(api.PairStartRequest{})
	w.want("yes", w.confirm("bob", s.UserCode, "x"), "")
	var mu sync.Mutex
	var got []string
	var wg sync.WaitGroup
	for range 15 {
		wg.Go(func() {
			out, err := w.poll(s.DeviceCode)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				got = append(got, out.RawKey)
			} else {
				w.want("all but one", err, api.CodePairingNotFound)
			}
		})
	}
	wg.Wait()
	if len(got) != 1 || len(w.made) != 1 || !ident.Secret(got[0]).Matches(w.made[0].Hash) {
		t.Errorf("15 polls at once got %d keys, made %d", len(got), len(w.made))
	}
}

func TestCodesThatAreOver(t *testing.T) {
	w := newWorld(t)
	s, late := w.start(api.PairStartRequest{}), w.start(api.PairStartRequest{})
	w.want("yes", w.confirm("bob", late.UserCode, "x"), "")
	w.now = w.now.Add(5 * time.Minute)
	_, err := w.poll(s.DeviceCode)
	w.want("a poll after five minutes", err, api.CodePairingNotFound)
	_, err = w.poll(late.DeviceCode)
	w.want("one that was let in and came too late", err, api.CodePairingNotFound)
	w.want("a yes after five minutes", w.confirm("bob", s.UserCode, "x"), api.CodePairingNotFound)
	if len(w.made) != 0 {
		t.Errorf("keys were made: %+v", w.made)
	}
}

func TestForeignDeviceCodes(t *testing.T) {
	w := newWorld(t)
	s := w.start(api.PairStartRequest{})
	w.want("yes", w.confirm("bob", s.UserCode, "x"), "")
	for _, code := range []string{"", "x", s.UserCode, strings.ToUpper(s.DeviceCode), s.DeviceCode[:20]} {
		_, err := w.poll(code)
		w.want("the code "+code, err, api.CodePairingNotFound)
	}
	asked := w.lookups
	for range 100 {
		_, err := w.Poll(w.from("192.0.2.9"), ident.NewSecret(ident.PrefixPairing))
		if p, _ := errors.AsType[*api.Problem](err); p == nil || p.Code != api.CodePairingNotFound && p.Code != api.CodeTooManyTries {
			t.Fatalf("a made-up code: %v", err)
		}
	}
	if n := w.lookups - asked; n != 20 {
		t.Errorf("100 made-up codes of an address asked the store %d times, want 20", n)
	}
	if got, err := w.poll(s.DeviceCode); err != nil || got.RawKey == "" {
		t.Errorf("whoever holds the right one: %+v %v", got, err)
	}
}

func TestWithoutAStoreNothingIsLost(t *testing.T) {
	w := newWorld(t)
	s := w.start(api.PairStartRequest{})
	w.want("yes", w.confirm("bob", s.UserCode, "x"), "")
	w.down = true
	_, err := w.poll(s.DeviceCode)
	w.want("a poll", err, api.CodeStoreUnavailable)
	_, err = w.poll("pc-unknown")
	w.want("an unknown one", err, api.CodeStoreUnavailable)
	_, err = w.Start(w.from("203.0.113.5"), api.PairStartRequest{})
	w.want("a start", err, api.CodeStoreUnavailable)
	w.down = false
	if got, err := w.poll(s.DeviceCode); err != nil || got.RawKey == "" {
		t.Errorf("when it is back: %+v %v", got, err)
	}
}

func TestAMachinesNameIsNotTakenOver(t *testing.T) {
	w := newWorld(t)
	pair := func(user ident.UserID, agent ident.AgentID) error {
		w.now = w.now.Add(time.Minute)
		s := w.start(api.PairStartRequest{Keys: []api.PairKey{api.PairAgent}, AgentID: agent})
		if err := w.confirm(user, s.UserCode, "x"); err != nil {
			return err
		}
		_, err := w.poll(s.DeviceCode)
		return err
	}
	w.want("a new machine", pair("bob", "gpu-1"), "")
	w.want("bob's, installed anew", pair("bob", "gpu-1"), "")
	w.want("bob's, as carol", pair("carol", "gpu-1"), api.CodeRoleRequired)
	w.want("bob's, as an admin", pair("alice", "gpu-1"), "")
	w.want("bob's, which an admin replaced", pair("bob", "gpu-1"), api.CodeRoleRequired)
	w.agents["gpu-2"] = true
	w.want("one that links with the team's key", pair("bob", "gpu-2"), api.CodeRoleRequired)
	w.want("that one, as an admin", pair("alice", "gpu-2"), "")
	w.want("one too many", pair("alice", "one-too-many"), api.CodeTeamAgentLimit)

	// Two members ask for one name at the same time: the second one comes too late.
	w.now = w.now.Add(time.Minute)
	ask := api.PairStartRequest{Keys: []api.PairKey{api.PairAgent}, AgentID: "gpu-3"}
	first, second := w.start(ask), w.start(ask)
	w.want("bob", w.confirm("bob", first.UserCode, "x"), "")
	w.want("carol", w.confirm("carol", second.UserCode, "x"), "")
	_, err := w.poll(second.DeviceCode)
	w.want("carol's", err, "")
	_, err = w.poll(first.DeviceCode)
	w.want("bob's", err, api.CodeRoleRequired)
}

func TestStartsAreLimited(t *testing.T) {
	w := newWorld(t)
	n := 0
	for range 30 {
		if _, err := w.Start(w.from("203.0.113.5"), api.PairStartRequest{}); err == nil {
			n++
		} else {
			w.want("beyond", err, api.CodeTooManyTries)
		}
	}
	if n != 10 {
		t.Errorf("an address begins %d at once, want 10", n)
	}
	if _, err := w.Start(w.from("203.0.113.6"), api.PairStartRequest{}); err != nil {
		t.Errorf("another address: %v", err)
	}
	// Each is a write to the store, so all together are few a second, from however many
	// addresses, and those of one customer fewer.
	n = 0
	for i := range 300 {
		if _, err := w.Start(w.from(fmt.Sprintf("2001:db8:1:%x::1", i)), api.PairStartRequest{}); err == nil {
			n++
		}
	}
	if n != 60 {
		t.Errorf("a customer with 300 networks begins %d at once, want 60", n)
	}
	for i := range 300 {
		if _, err := w.Start(w.from(fmt.Sprintf("10.0.%d.%d", i/250, i%250)), api.PairStartRequest{}); err == nil {
			n++
		}
	}
	if n += 11; n != 200 {
		t.Errorf("all together begin %d at once, want 200", n)
	}
}

// Whoever asks from many addresses keeps nobody out who asks once.
func TestAFullRoom(t *testing.T) {
	w := newWorld(t)
	for i := range 1000 {
		if _, err := w.Start(w.from(fmt.Sprintf("192.0.2.%d", i/10)), api.PairStartRequest{}); err != nil {
			t.Fatalf("number %d: %v", i, err)
		}
		w.now = w.now.Add(20 * time.Millisecond)
	}
	s := w.start(api.PairStartRequest{})
	if n := len(w.Pairings()); n != 1000 {
		t.Errorf("%d wait, want 1000", n)
	}
	w.want("the newcomer", w.confirm("bob", s.UserCode, "x"), "")
	// Nor do those who have networks of IPv6 with a great many addresses.
	clear(w.pairings)
	for i := range 1000 {
		if _, err := w.Start(w.from(fmt.Sprintf("2001:db8:%x:%x::1", i%4, i)), api.PairStartRequest{}); err != nil {
			t.Fatalf("number %d: %v", i, err)
		}
		w.now = w.now.Add(250 * time.Millisecond)
	}
	for _, from := range []string{"203.0.113.78", "2001:db8:9::1"} {
		if _, err := w.Start(w.from(from), api.PairStartRequest{}); err != nil {
			t.Errorf("%s among a thousand networks of four customers: %v", from, err)
		}
	}
	// A crowd of which everybody asked once is full, and says so.
	clear(w.pairings)
	for i := range 1000 {
		w.now = w.now.Add(20 * time.Millisecond)
		if _, err := w.Start(w.from(fmt.Sprintf("10.0.%d.%d", i/250, i%250)), api.PairStartRequest{}); err != nil {
			t.Fatalf("number %d: %v", i, err)
		}
	}
	_, err := w.Start(w.from("203.0.113.77"), api.PairStartRequest{})
	w.want("one too many", err, api.CodeTooManyTries)
	// Those whom somebody let in are not sent away.
	clear(w.pairings)
	w.now = w.now.Add(time.Hour)
	kept := w.start(api.PairStartRequest{})
	w.want("let in", w.confirm("bob", kept.UserCode, "x"), "")
	for i := range 1100 {
		from := "203.0.113.5"
		if i%2 == 0 {
			from = fmt.Sprintf("10.1.%d.%d", i/250, i%250)
		}
		w.now = w.now.Add(7 * time.Second / 100)
		_, _ = w.Start(w.from(from), api.PairStartRequest{})
	}
	if got, err := w.poll(kept.DeviceCode); err != nil || got.RawKey == "" {
		t.Errorf("who was let in: %+v %v", got, err)
	}
	if slices.ContainsFunc(w.Pairings(), store.PairingRecord.Approved) {
		t.Error("the pairing that was taken is still there")
	}
}
