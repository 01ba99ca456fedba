package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

// otherTeam is a team that no test's own agents are in.
const otherTeam = "0b7c9e11-52a4-4b0d-8f7e-6c1d2e3f4a5b"

// members makes claims of a person who is in teams.
func members(teams ...string) issuer.Claims { return issuer.Claims{"teams": teams} }

func oidcEnv(i *issuer.Issuer) []string {
	return []string{"ADIT_AUTH_OIDC_ISSUER=" + i.URL(), "ADIT_AUTH_OIDC_AUDIENCE=" + issuer.Audience}
}

// answer is what a call got.
type answer struct {
	Status int
	Header http.Header
	Body   string
}

// code is the code of a problem document, or empty.
func (a answer) code() string {
	var p api.Problem
	_ = json.Unmarshal([]byte(a.Body), &p)
	return string(p.Code)
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.Status, a.code()) }

// call sends a request with exactly the headers given, on a connection of its own,
// to an address of the relay. Names may come twice.
func call(r *world.Relay, method, path, body string, header ...string) answer {
	r.W.T.Helper()
	req, err := http.NewRequestWithContext(r.W.T.Context(), method, fmt.Sprintf("http://127.0.0.1:%d%s", r.Port, path), strings.NewReader(body))
	if err != nil {
		r.W.T.Fatal(err)
	}
	if body == "" {
		req.Body, req.ContentLength = nil, 0
	} else {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		switch header[i] {
		case "Host":
			req.Host = header[i+1]
			continue
		case "Content-Type":
			req.Header.Del("Content-Type")
		}
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return answer{Body: err.Error()}
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return answer{Status: resp.StatusCode, Header: resp.Header}
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{Body: err.Error()}
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

// asPerson calls the interface with a session, for a team.
func asPerson(r *world.Relay, token, team, method, path, body string) answer {
	r.W.T.Helper()
	return call(r, method, api.Base+path, body, "Authorization", "Bearer "+token, "X-Team-ID", team)
}

func TestPeopleLogInWithTheirIssuer(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	is := issuer.Start(t)
	r := w.Relay(oidcEnv(is)...)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	now := time.Now()
	rs, es := is.Token(members(world.Team, otherTeam)), is.TokenES256(members(world.Team))
	at := func(name string, d time.Duration) string {
		return is.Token(issuer.Claims{"teams": []string{world.Team}, name: now.Add(d).Unix()})
	}
	team := []string{"X-Team-ID", world.Team}
	for _, c := range []struct {
		what   string
		token  string
		header []string
		status int
		code   string
	}{
		{"an RS256 session works", rs, team, 200, ""},
		{"an ES256 session works", es, team, 200, ""},
		{"a team in capitals is the same team", rs, []string{"X-Team-ID", strings.ToUpper(world.Team)}, 200, ""},
		{"a session works for each of its teams", rs, []string{"X-Team-ID", otherTeam}, 200, ""},
		{"no X-Team-ID", rs, nil, 400, "team_required"},
		{"an empty X-Team-ID", rs, []string{"X-Team-ID", ""}, 400, "team_required"},
		{"X-Team-ID that is no UUID", rs, []string{"X-Team-ID", "our-team"}, 400, "team_invalid"},
		{"X-Team-ID with a second UUID behind it", rs, []string{"X-Team-ID", world.Team + "," + otherTeam}, 400, "team_invalid"},
		{"two X-Team-ID headers", rs, []string{"X-Team-ID", world.Team, "X-Team-ID", otherTeam}, 400, "team_invalid"},
		{"a team that the person is not in", es, []string{"X-Team-ID", otherTeam}, 403, "not_a_member"},
		{"a session without teams", is.Token(nil), team, 403, "not_a_member"},
		{"a bad session is told so before its team is looked at", rs + "x", nil, 401, "unauthenticated"},
		{"a session of another audience", is.Token(issuer.Claims{"aud": "other", "teams": []string{world.Team}}), team, 401, "unauthenticated"},
		{"a session with this audience among others", is.Token(issuer.Claims{"aud": []string{"other", issuer.Audience}, "teams": []string{world.Team}}), team, 200, ""},
		{"a session of another issuer", is.Token(issuer.Claims{"iss": "https://evil.example.com", "teams": []string{world.Team}}), team, 401, "unauthenticated"},
		{"a session of an issuer whose name differs by a slash", is.Token(issuer.Claims{"iss": is.URL() + "/", "teams": []string{world.Team}}), team, 401, "unauthenticated"},
		{"an expired session", at("exp", -2*time.Minute), team, 401, "unauthenticated"},
		{"a session that expired within the leeway of 60 s", at("exp", -20*time.Second), team, 200, ""},
		{"a session that begins in two minutes", at("nbf", 2*time.Minute), team, 401, "unauthenticated"},
		{"a session that begins within the leeway", at("nbf", 20*time.Second), team, 200, ""},
		{"a session without an end", is.Token(issuer.Claims{"exp": nil, "teams": []string{world.Team}}), team, 401, "unauthenticated"},
		{"a session without a subject", is.Token(issuer.Claims{"sub": nil, "teams": []string{world.Team}}), team, 401, "unauthenticated"},
		{"an integration credential needs no team and ignores the header", sk, []string{"X-Team-ID", "nonsense"}, 200, ""},
		{"an integration credential stays in its own team", sk, []string{"X-Team-ID", otherTeam}, 200, ""},
	} {
		a := call(r, http.MethodGet, api.Base+"/agents", "", append([]string{"Authorization", "Bearer " + c.token}, c.header...)...)
		if a.Status != c.status || a.code() != c.code {
			t.Errorf("%s: expected %d %s, got %s: %s", c.what, c.status, c.code, a, a.Body)
		}
		if a.Status == 401 && !strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("%s: a 401 says how to authenticate, got WWW-Authenticate %q", c.what, a.Header.Get("WWW-Authenticate"))
		}
		if listed := strings.Contains(a.Body, `"gpu-1"`); a.Status == 200 && listed != (c.header == nil || c.header[1] != otherTeam || c.token == sk) {
			t.Errorf("%s: the caller sees the agents of the team asked for, and no others: %s", c.what, a.Body)
		}
	}
	for _, how := range issuer.Wrongs() {
		if a := asPerson(r, is.TokenWrong(how, members(world.Team)), world.Team, http.MethodGet, "/agents", ""); a.Status != 401 {
			t.Errorf("%s: a forged session is refused with 401, got %s", how, a)
		}
	}
}

func TestIssuerChangesItsKeysAndGoesAway(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	is := issuer.Start(t)
	is.SetDown(true)
	r := w.Relay(oidcEnv(is)...) // it starts without its issuer
	sk := r.Credential("integration", world.Team)
	list := func(token string) answer { return asPerson(r, token, world.Team, http.MethodGet, "/agents", "") }
	token := is.Token(members(world.Team))

	if a := call(r, http.MethodGet, api.Base+"/agents", "", "Authorization", "Bearer "+sk); a.Status != 200 {
		t.Errorf("credentials work while the issuer is down, got %s", a)
	}
	if a := list(token); a.Status != 503 || a.code() != "issuer_unavailable" || a.Header.Get("Retry-After") == "" {
		t.Errorf("whether a session is good cannot be known without its issuer: expected 503 issuer_unavailable with Retry-After, got %s", a)
	}
	is.SetDown(false)
	w.Eventually(15*time.Second, "sessions work once the issuer is up", func() bool { return list(token).Status == 200 })

	is.Rotate(true)
	w.Eventually(10*time.Second, "a session signed with the issuer's new key works", func() bool { return list(is.TokenES256(members(world.Team))).Status == 200 })
	if a := list(token); a.Status != 200 {
		t.Errorf("sessions of the old key work while the issuer publishes it, got %s", a)
	}
	is.Rotate(false)
	w.Eventually(15*time.Second, "a session signed after a hard change of keys works", func() bool { return list(is.Token(members(world.Team))).Status == 200 })
	if a := list(token); a.Status != 401 {
		t.Errorf("sessions of a key that the issuer withdrew are void, got %s", a)
	}
	fresh := is.Token(members(world.Team))
	is.SetDown(true)
	if a := list(fresh); a.Status != 200 {
		t.Errorf("an issuer that goes away takes no session with it, got %s", a)
	}
	asked := is.KeySetRequests()
	is.SetDown(false)
	for range 40 {
		_ = list(is.TokenWrong(issuer.UnknownKey, members(world.Team)))
	}
	if n := is.KeySetRequests() - asked; n > 8 {
		t.Errorf("forty forged sessions made the relay ask the issuer %d times; strangers must not be able to flood it", n)
	}
}

func TestSessionsSignedByAKeyFile(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	is := issuer.Start(t)
	file := filepath.Join(w.Dir, "sessions.pem")
	write := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(append(is.PublicKeyPEM(), is.PublicKeyPEMES256()...))
	r := w.Relay("ADIT_AUTH_JWT_PUBLIC_KEY_FILE="+file, "ADIT_AUTH_JWT_ISSUER="+is.URL(), "ADIT_AUTH_JWT_AUDIENCE="+issuer.Audience, "ADIT_AUTH_JWT_TEAMS_CLAIM=groups")
	list := func(token string) int { return asPerson(r, token, world.Team, http.MethodGet, "/agents", "").Status }
	groups := issuer.Claims{"groups": []string{world.Team}}
	old, oldES := is.Token(groups), is.TokenES256(groups)
	if a, b := list(old), list(oldES); a != 200 || b != 200 {
		t.Fatalf("sessions signed with the file's keys work: RS256 got %d, ES256 got %d", a, b)
	}
	for _, how := range issuer.Wrongs() {
		if a := list(is.TokenWrong(how, groups)); a != 401 {
			t.Errorf("%s: a forged session is refused with 401, got %d", how, a)
		}
	}
	if a := list(is.Token(issuer.Claims{"aud": "other", "groups": []string{world.Team}})); a != 401 {
		t.Errorf("a session of another audience is refused with 401, got %d", a)
	}
	if a := list(is.Token(issuer.Claims{"iss": "other", "groups": []string{world.Team}})); a != 401 {
		t.Errorf("a session of another issuer is refused with 401, got %d", a)
	}

	is.Rotate(false)
	token := is.Token(groups)
	if a := list(token); a != 401 {
		t.Errorf("a key that is not in the file signs nothing, got %d", a)
	}
	write([]byte("no key at all"))
	r.Signal(syscall.SIGHUP)
	w.Eventually(5*time.Second, "a file without keys is named in the log", func() bool { return strings.Contains(r.Log(), "stays as it was") })
	if a := list(old); a != 200 {
		t.Errorf("a reload that cannot read the file leaves the old keys in use, got %d", a)
	}
	write(is.PublicKeyPEM())
	r.Signal(syscall.SIGHUP)
	w.Eventually(5*time.Second, "SIGHUP reads the new key", func() bool { return list(token) == 200 })
	if a := list(old); a != 401 {
		t.Errorf("a key that was taken out of the file is void, got %d", a)
	}
}

// watcher is an open event stream.
type watcher struct{ ended chan struct{} }

// watch opens an event stream, waits for its first event, and notices its end.
func watch(r *world.Relay, header ...string) *watcher {
	t := r.W.T
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s/agents/watch", r.Port, api.Base), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(resp.Body)
	if line, err := in.ReadString('\n'); err != nil || resp.StatusCode != 200 || !strings.HasPrefix(line, "id:") {
		t.Fatalf("an event stream begins with a snapshot: %d %q %v", resp.StatusCode, line, err)
	}
	x := &watcher{make(chan struct{})}
	go func() {
		defer close(x.ended)
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, in)
	}()
	return x
}

// over waits until c is closed, at most for 5 s, and says how long that took.
func over(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	start := time.Now()
	select {
	case <-c:
		t.Logf("%s: ended after %s", what, time.Since(start).Round(time.Millisecond))
	case <-time.After(5 * time.Second):
		t.Errorf("expected within 5 s of the revocation: %s ends", what)
	}
}

// created makes a credential as a person does.
func created(r *world.Relay, token, team, body string) api.CreatedCredential {
	r.W.T.Helper()
	a := asPerson(r, token, team, http.MethodPost, "/credentials", body)
	var c api.CreatedCredential
	if err := json.Unmarshal([]byte(a.Body), &c); err != nil || a.Status != 201 || c.Secret == "" {
		r.W.T.Fatalf("a person makes a credential: %s %s", a, a.Body)
	}
	return c
}

func TestRevokedCredentialHoldsNothingOpen(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	is := issuer.Start(t)
	r := w.Relay(append(oidcEnv(is), "ADIT_TUNNEL_HOLD=500ms")...)
	alice := is.Token(members(world.Team))
	revoke := func(token string, id any) answer {
		t.Helper()
		return asPerson(r, token, world.Team, http.MethodDelete, fmt.Sprintf("/credentials/%s", id), "")
	}
	sk := created(r, alice, world.Team, `{"kind":"integration","name":"ci","expires_in":"30d"}`)
	dk := created(r, alice, world.Team, `{"kind":"device","name":"laptop"}`)
	ak := created(r, alice, world.Team, `{"kind":"agent","name":"gpu","agent_id":"gpu-1"}`)
	for _, c := range []api.CreatedCredential{sk, dk, ak} {
		a := asPerson(r, alice, world.Team, http.MethodGet, "/credentials", "")
		if strings.Contains(a.Body, c.Secret) || !strings.Contains(a.Body, c.Prefix) || !strings.Contains(a.Body, string(c.ID)) {
			t.Errorf("a list of credentials shows prefix and name, never the secret: %s", a.Body)
		}
	}
	if a := call(r, http.MethodPost, api.Base+"/credentials", `{"kind":"integration","name":"more"}`, "Authorization", "Bearer "+sk.Secret); a.Status != 403 {
		t.Errorf("a script's credential makes no credentials, got %s", a)
	}

	agent := w.NewAgent(r, "gpu-1")
	file := w.WriteFile("ak", ak.Secret+"\n")
	agent.Env = append(agent.Env, "ADIT_CREDENTIAL_FILE="+file)
	agent.Start()
	agent.WaitOnline(r, sk.Secret, 15*time.Second)

	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			return
		}
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		_, _, _ = c.Read(r.Context())
	})
	tun := r.Open(sk.Secret, "gpu-1", map[string]any{"target_port": port, "host_header": "public"})
	ws, _, err := websocket.Dial(t.Context(), strings.Replace(tun.TunnelURL, "http", "ws", 1)+"ws", &websocket.DialOptions{HTTPClient: w.HTTP()})
	if err != nil {
		t.Fatalf("a WebSocket through the tunnel: %v", err)
	}
	defer func() { _ = ws.CloseNow() }()
	wsEnded := make(chan struct{})
	go func() {
		defer close(wsEnded)
		_, _, _ = ws.Read(t.Context())
	}()

	t.Run("sk", func(t *testing.T) {
		events := watch(r, "Authorization", "Bearer "+sk.Secret)
		// An open that waits for tasks is a call that the credential holds open too.
		var lease api.TaskLease
		closeAll(r, sk.Secret, "gpu-1", tun)
		if status, p := r.API(sk.Secret, http.MethodPost, "/agents/gpu-1/tasks", map[string]any{"ttl": "60s"}, &lease); status != 201 {
			t.Fatalf("take a lease: %d %v", status, p)
		}
		waited := make(chan struct{})
		var got answer
		go func() {
			defer close(waited)
			got = call(r, http.MethodPost, api.Base+"/agents/gpu-1/tunnel", fmt.Sprintf(`{"target_port":%d,"when_busy":"wait"}`, port), "Authorization", "Bearer "+sk.Secret)
		}()
		w.Eventually(5*time.Second, "the open waits, and holds new tasks off", func() bool {
			status, p := r.API(sk.Secret, http.MethodPost, "/agents/gpu-1/tasks", map[string]any{}, nil)
			return status == 409 && p.Code == "agent_in_tunnel"
		})
		if a := revoke(dk.Secret, sk.ID); a.Status != 204 {
			t.Fatalf("a person's device revokes a credential: %s %s", a, a.Body)
		}
		if a := call(r, http.MethodGet, api.Base+"/agents", "", "Authorization", "Bearer "+sk.Secret); a.Status != 401 {
			t.Errorf("a revoked credential is refused at once, got %s", a)
		}
		over(t, "the event stream of a revoked integration credential", events.ended)
		over(t, "the open that a revoked credential waits for", waited)
		select {
		case <-waited:
			if got.Status != 401 {
				t.Errorf("the open of a revoked credential ends with 401, got %s", got)
			}
		default:
		}
	})
	t.Run("dk", func(t *testing.T) {
		events := watch(r, "Authorization", "Bearer "+dk.Secret)
		if a := revoke(alice, dk.ID); a.Status != 204 {
			t.Fatalf("revoke: %s %s", a, a.Body)
		}
		over(t, "the event stream of a revoked device", events.ended)
	})
	t.Run("ak", func(t *testing.T) {
		tun := openAsPerson(r, alice, port)
		ws, _, err := websocket.Dial(t.Context(), strings.Replace(tun.TunnelURL, "http", "ws", 1)+"ws", &websocket.DialOptions{HTTPClient: w.HTTP()})
		if err != nil {
			t.Fatalf("a WebSocket through the tunnel: %v", err)
		}
		defer func() { _ = ws.CloseNow() }()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _, _ = ws.Read(t.Context())
		}()
		if a := revoke(alice, ak.ID); a.Status != 204 {
			t.Fatalf("revoke: %s %s", a, a.Body)
		}
		over(t, "the WebSocket over the link of a revoked agent", ended)
		w.Eventually(5*time.Second, "a tunnel on a revoked agent answers 503", func() bool {
			status, _ := world.Get(w.HTTP(), tun.TunnelURL)
			return status == 503
		})
		w.Eventually(10*time.Second, "the agent says that its credential is no good", func() bool {
			return strings.Contains(agent.Log(), "revoked") || strings.Contains(agent.Log(), "unauthenticated")
		})
	})
	over(t, "the WebSocket of a closed tunnel", wsEnded)
	if a := revoke(alice, sk.ID); a.Status != 204 {
		t.Errorf("revoking twice is no error, got %s", a)
	}
	t.Run("session", func(t *testing.T) {
		short := is.Token(issuer.Claims{"teams": []string{world.Team}, "exp": time.Now().Add(2 * time.Second).Unix()})
		events := watch(r, "Authorization", "Bearer "+short, "X-Team-ID", world.Team)
		over(t, "the event stream of a session that lasts two seconds", events.ended)
	})
}

// closeAll closes the tunnels of an agent.
func closeAll(r *world.Relay, secret, agent string, tun api.Tunnel) {
	r.W.T.Helper()
	if status, p := r.API(secret, http.MethodDelete, "/agents/"+agent+"/tunnel?session_id="+string(tun.SessionID), nil, nil); status != 200 {
		r.W.T.Fatalf("close: %d %v", status, p)
	}
}

// openAsPerson opens a tunnel on gpu-1 with a session.
func openAsPerson(r *world.Relay, token string, port int) api.Tunnel {
	r.W.T.Helper()
	a := asPerson(r, token, world.Team, http.MethodPost, "/agents/gpu-1/tunnel", fmt.Sprintf(`{"target_port":%d,"host_header":"public"}`, port))
	var tun api.Tunnel
	if err := json.Unmarshal([]byte(a.Body), &tun); err != nil || a.Status != 201 {
		r.W.T.Fatalf("a person opens a tunnel: %s %s", a, a.Body)
	}
	return tun
}
