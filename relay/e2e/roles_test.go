package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

// TestRolesComeFromTheIssuer has a relay that reads them from a claim, with a mapping.
func TestRolesComeFromTheIssuer(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	is := issuer.Start(t)
	r := w.Relay(append(oidcEnv(is), "ADIT_AUTH_OIDC_ROLES_CLAIM=groups", "ADIT_AUTH_OIDC_ROLES=gpu-admins=admin,guests=viewer")...)
	w.Agent(r, "gpu-1")
	for sub, c := range map[string]struct {
		groups any
		role   api.Role
		opens  int
		lists  int // credentials
	}{
		"boss":   {[]string{"guests", "gpu-admins"}, api.RoleAdmin, 201, 200},
		"guest":  {"guests", api.RoleViewer, 403, 403},
		"nobody": {[]string{"everybody"}, api.RoleMember, 201, 403},
		"owner":  {map[string]string{world.Team: "owner"}, api.RoleOwner, 201, 200},
	} {
		token := is.Token(issuer.Claims{"sub": sub, "teams": []any{map[string]string{"id": world.Team, "name": "Render"}}, "groups": c.groups})
		var me api.Me
		a := asPerson(r, token, world.Team, http.MethodGet, "/me", "")
		if err := json.Unmarshal([]byte(a.Body), &me); err != nil || me.Role != c.role || string(me.UserID) != sub || len(me.Teams) != 1 || me.Teams[0].TeamName != "Render" {
			t.Errorf("%s is told %s %s; want the role %s", sub, a, a.Body, c.role)
		}
		if a := asPerson(r, token, world.Team, http.MethodPost, "/agents/gpu-1/tunnel", `{"target_port":9}`); a.Status != c.opens {
			t.Errorf("%s opens a tunnel: %s, want %d", sub, a, c.opens)
		}
		if a := asPerson(r, token, world.Team, http.MethodGet, "/credentials", ""); a.Status != c.lists {
			t.Errorf("%s lists credentials: %s, want %d", sub, a, c.lists)
		}
	}
}

// TestAKeyForOneThing makes one as the operator does, and tries everything else with it.
func TestAKeyForOneThing(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay(world.PathForm)
	w.Agent(r, "render-1")
	w.Agent(r, "gpu-1")
	port := app(t, hello)
	key := r.Credential("integration", world.Team, "--name", "farm", "--role", "member", "--scope", "tunnels", "--scope", "links", "--agents", "render-*", "--ports", fmt.Sprintf("%d,9", port))
	tun := r.Open(key, "render-1", map[string]any{"target_port": port})
	if status, body := world.Get(w.HTTP(), r.PathURL(tun)); status != 200 {
		t.Errorf("what it opened answers %d %s", status, body)
	}
	full := r.Credential("integration", world.Team, "--name", "full")
	theirs := r.Open(full, "render-1", map[string]any{"target_port": port})
	for _, c := range []struct {
		method, path string
		body         any
		status       int
		code         api.Code
	}{
		{"POST", "/agents/render-1/tunnel", map[string]any{"target_port": 22}, 403, "scope_required"},
		{"POST", "/agents/gpu-1/tunnel", map[string]any{"target_port": port}, 404, "agent_not_found"},
		{"POST", "/agents/render-1/tasks", map[string]any{}, 403, "scope_required"},
		{"GET", "/credentials", nil, 403, "forbidden"},
		{"POST", "/tunnels/" + string(tun.SessionID) + "/terminal", map[string]any{}, 403, "scope_required"},
		{"POST", "/tunnels/" + string(theirs.SessionID) + "/extend", map[string]any{}, 403, "role_required"},
		{"DELETE", "/agents/render-1/tunnel", nil, 403, "role_required"},
		{"POST", "/tunnels/" + string(tun.SessionID) + "/links", map[string]any{"name": "x"}, 201, ""},
		{"DELETE", "/agents/render-1/tunnel?session_id=" + string(tun.SessionID), nil, 200, ""},
	} {
		status, p := r.API(key, c.method, c.path, c.body, nil)
		if status != c.status || c.code != "" && (p == nil || p.Code != c.code) {
			t.Errorf("%s %s: %d %v, want %d %s", c.method, c.path, status, p, c.status, c.code)
		}
	}
	if status, _ := world.Get(w.HTTP(), r.PathURL(theirs)); status != 200 {
		t.Errorf("somebody else's tunnel answers %d after all that", status)
	}
	if out, err := operate(t, r, "credential", "list", "--team", world.Team); err != nil || !strings.Contains(out, "tunnels links render-* ports ") {
		t.Errorf("the list does not say what it is for: %s %v", out, err)
	}
	if _, err := operate(t, r, "credential", "create", "--kind", "integration", "--team", world.Team, "--scope", "everything"); err == nil || !strings.Contains(err.Error(), "scopes: each of read") {
		t.Errorf("a scope that is none: %v", err)
	}
}

// TestARemovedMemberHoldsNothingOpen removes somebody who is signed in, has a device, a
// key and a machine that they enrolled, and use of all of them going on. The machine stays
// their team's, and so does what others opened on it.
func TestARemovedMemberHoldsNothingOpen(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	is := issuer.Start(t)
	r := w.Relay(oidcEnv(is)...)
	must := func(args ...string) {
		t.Helper()
		if _, err := operate(t, r, args...); err != nil {
			t.Fatal(err)
		}
	}
	must("member", "role", "--team", world.Team, "--add", "bob", "admin")
	token := is.Token(issuer.Claims{"sub": "bob"}) // the issuer names no team: he is in it by the store
	device := r.Credential("device", world.Team, "--user", "bob", "--name", "laptop")
	create := func(body string) (c api.CreatedCredential) {
		t.Helper()
		a := call(r, http.MethodPost, api.Base+"/credentials", body, "Authorization", "Bearer "+device)
		if err := json.Unmarshal([]byte(a.Body), &c); err != nil || a.Status != 201 {
			t.Fatalf("his device makes a credential: %s %s", a, a.Body)
		}
		return c
	}
	key, machine := create(`{"kind":"integration","name":"ci"}`), create(`{"kind":"agent","name":"gpu-1","agent_id":"gpu-1"}`)
	others := r.Credential("integration", world.Team, "--name", "others")
	agent := w.NewAgent(r, "gpu-1")
	agent.Env = append(agent.Env, "ADIT_CREDENTIAL_FILE="+w.WriteFile("ak", machine.Secret+"\n"))
	agent.Start()
	agent.WaitOnline(r, others, 15*time.Second)
	linked := func() time.Time {
		var a api.Agent
		if status, p := r.API(others, http.MethodGet, "/agents/gpu-1", nil, &a); status != 200 {
			t.Fatalf("the machine: %d %v", status, p)
		}
		return a.ConnectedAt
	}
	since := linked()

	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			return
		}
		if c, err := websocket.Accept(w, r, nil); err == nil {
			defer func() { _ = c.CloseNow() }()
			_, _, _ = c.Read(r.Context())
		}
	})
	use := func(tun api.Tunnel, says string) <-chan struct{} {
		t.Helper()
		ws, _, err := websocket.Dial(t.Context(), strings.Replace(tun.TunnelURL, "http", "ws", 1)+"ws", &websocket.DialOptions{HTTPClient: w.HTTP()})
		if err != nil {
			t.Fatalf("a WebSocket through a tunnel: %v", err)
		}
		t.Cleanup(func() { _ = ws.CloseNow() })
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _, err := ws.Read(t.Context())
			if frame, ok := errors.AsType[websocket.CloseError](err); t.Context().Err() == nil && (!ok || !strings.Contains(frame.Reason, says)) {
				t.Errorf("a WebSocket ends with %v, want to be told %q", err, says)
			}
		}()
		return ended
	}
	ask := map[string]any{"target_port": port, "host_header": "public"}
	const says = "the person who opened it was removed from the team"
	theirs := use(r.Open(others, "gpu-1", ask), "") // with whatever, at the end
	ends := map[string]<-chan struct{}{
		"what he opened himself":     use(openAsPerson(r, token, port), says),
		"what his device opened":     use(r.Open(device, "gpu-1", ask), says),
		"what his key opened":        use(r.Open(key.Secret, "gpu-1", ask), says),
		"his page's event stream":    watch(r, "Authorization", "Bearer "+token, "X-Team-ID", world.Team).ended,
		"his device's event stream":  watch(r, "Authorization", "Bearer "+device).ended,
		"his key's own event stream": watch(r, "Authorization", "Bearer "+key.Secret).ended,
	}

	start := time.Now()
	must("member", "remove", "--team", world.Team, "bob")
	for what, ended := range ends {
		select {
		case <-ended:
		case <-time.After(testkit.Patience):
			t.Errorf("%s goes on", what)
		}
	}
	testkit.Figure(t, "everything of a removed member ended within %s of the command's start", time.Since(start).Round(time.Millisecond))
	if took := time.Since(start); took > testkit.Limit(2*time.Second) {
		t.Errorf("that took %s; the promise is a second, and the command has to start, too", took)
	}
	for what, secret := range map[string]string{"his device": device, "his key": key.Secret} {
		if status, _ := r.API(secret, http.MethodGet, "/agents", nil, nil); status != 401 {
			t.Errorf("%s is answered %d", what, status)
		}
	}
	named := is.Token(issuer.Claims{"sub": "bob", "teams": []string{world.Team}, "role": "owner"})
	if a := asPerson(r, named, world.Team, http.MethodGet, "/agents", ""); a.code() != "not_a_member" {
		t.Errorf("…and he himself, though the issuer names the team: %s", a)
	}
	select {
	case <-theirs:
		t.Error("somebody else's WebSocket ended, too")
	default:
	}
	if now := linked(); !now.Equal(since) {
		t.Errorf("the machine had to come back: linked since %s, before %s", now, since)
	}
	if err := agent.Stop(5 * time.Second); err != nil {
		t.Error(err)
	}
	agent.Start()
	w.Eventually(15*time.Second, "the machine that he enrolled links again", func() bool { return linked().After(since) })
}
