package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/relay/internal/rest/resttest"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
	"github.com/adit-tunnel/adit/shared/wire"
)

// apiRoute is one line of the table of what the interface admits.
type apiRoute struct {
	method, path string // as the OpenAPI description has them
	admits       string // kinds of caller; nobody else
	query, body  string // of a call that changes nothing
	status       int    // what an admitted caller gets
	code         string
	missing      string // the code of 404 for what is not there or another team's; empty: the route names no thing
}

const (
	kindsTeam   = "user device integration"
	kindsPeople = "user device"
	kindsAdmin  = kindsTeam + " admin"
	kindsAgent  = kindsTeam + " agent"
	kindsUser   = "user"
	kindsDevice = "device"
	everybody   = "everybody" // whatever they show
)

// apiRoutes is the whole interface: a route that is not here fails the test.
var apiRoutes = []apiRoute{
	{"GET", "/me", kindsTeam, "", "", 200, "", ""},
	{"GET", "/agents", kindsTeam, "", "", 200, "", ""},
	{"GET", "/agents/watch", kindsTeam, "", "", 200, "", ""},
	{"GET", "/agents/{agent_id}", kindsTeam, "", "", 200, "", "agent_not_found"},
	{"POST", "/agents/{agent_id}/tunnel", kindsTeam, "", `{"target_port":70000}`, 422, "out_of_range", "agent_not_found"},
	{"GET", "/agents/{agent_id}/tunnel", kindsTeam, "", "", 200, "", "agent_not_found"},
	{"DELETE", "/agents/{agent_id}/tunnel", kindsTeam, "?no_such=1", "", 400, "unknown_parameter", "agent_not_found"},
	{"POST", "/tunnels/{session_id}/extend", kindsAdmin, "", `{"expires_in":"1ms"}`, 422, "out_of_range", "tunnel_not_found"},
	{"POST", "/tunnels/{session_id}/terminal", kindsAdmin, "", `{"expires_in":"1ms"}`, 422, "out_of_range", "tunnel_not_found"},
	{"GET", "/tunnels/{session_id}/viewers", kindsAdmin, "", "", 200, "", "tunnel_not_found"},
	{"DELETE", "/tunnels/{session_id}/viewers/{viewer_id}", kindsAdmin, "", "", 404, "viewer_not_found", "tunnel_not_found"},
	{"GET", "/tunnels/{session_id}/knocks", kindsAdmin, "", "", 200, "", "tunnel_not_found"},
	{"POST", "/tunnels/{session_id}/knocks/{knock_id}", kindsAdmin, "", `{"admit":true}`, 404, "knock_not_found", "tunnel_not_found"},
	{"POST", "/tunnels/{session_id}/links", kindsAdmin, "", `{"name":""}`, 422, "out_of_range", "tunnel_not_found"},
	{"GET", "/tunnels/{session_id}/links", kindsAdmin, "", "", 200, "", "tunnel_not_found"},
	{"GET", "/tunnels/{session_id}/access", kindsAdmin, "", "", 200, "", "tunnel_not_found"},
	{"PUT", "/tunnels/{session_id}/access", kindsAdmin, "", `{"access":"everybody"}`, 422, "out_of_range", "tunnel_not_found"},
	{"PUT", "/tunnels/{session_id}/links/{link_id}/access", kindsAdmin, "", "{}", 404, "link_not_found", "tunnel_not_found"},
	{"DELETE", "/tunnels/{session_id}/links/{link_id}", kindsAdmin, "", "", 404, "link_not_found", "tunnel_not_found"},
	{"POST", "/agents/{agent_id}/tasks", kindsAgent, "", `{"ttl":"1s"}`, 422, "out_of_range", "agent_not_found"},
	{"PUT", "/agents/{agent_id}/tasks/{task_id}", kindsAgent, "", `{"lease_token":""}`, 422, "out_of_range", "agent_not_found"},
	{"DELETE", "/agents/{agent_id}/tasks/{task_id}", kindsAgent, "", "", 422, "out_of_range", "agent_not_found"},
	{"POST", "/credentials", kindsPeople, "", `{"kind":"king","name":"x"}`, 422, "out_of_range", ""},
	{"GET", "/credentials", kindsPeople, "", "", 200, "", ""},
	{"DELETE", "/credentials/{credential_id}", kindsPeople, "", "", 204, "", "credential_not_found"},
	{"DELETE", "/credentials/{credential_id}", kindsPeople, "?keep_tunnels=true", "", 200, "", "credential_not_found"},
	{"GET", "/members", kindsPeople, "", "", 200, "", ""},
	{"PATCH", "/members/{user_id}", kindsPeople, "", `{"role":"viewer"}`, 200, "", "member_not_found"},
	{"DELETE", "/members/{user_id}", kindsPeople, "?keep_tunnels=perhaps", "", 422, "out_of_range", ""},
	{"POST", "/invites", kindsPeople, "", `{"name":""}`, 422, "out_of_range", ""},
	{"GET", "/invites", kindsPeople, "", "", 200, "", ""},
	{"DELETE", "/invites/{invite_id}", kindsPeople, "", "", 404, "invite_not_found", "invite_not_found"},
	{"GET", "/devices", kindsPeople, "", "", 200, "", ""},
	{"DELETE", "/devices/{device_id}", "user", "", "", 404, "device_not_found", "device_not_found"},
	{"POST", "/desktop/pair/start", everybody, "", `{"keys":["root"]}`, 422, "out_of_range", ""},
	{"POST", "/desktop/pair/poll", everybody, "", `{"device_code":7}`, 400, "invalid_field", ""},
	{"POST", "/desktop/pair/show", kindsUser, "", `{"user_code":"no code"}`, 422, "out_of_range", ""},
	{"POST", "/desktop/pair/confirm", kindsUser, "", `{"user_code":"no code"}`, 422, "out_of_range", ""},
	{"POST", "/auth/device/revoke", kindsDevice, "?no_such=1", "", 400, "unknown_parameter", ""},
}

// caller is one column: what is sent, and who that is.
type caller struct {
	name   string
	kind   string // empty: nobody
	header []string
	role   api.Role    // in the team; empty: admin
	scopes []api.Scope // of a credential that is narrowed
	other  bool        // of another team
	refuse string      // "401 code": what everybody of this column gets
}

const unknown = "401 unauthenticated"

// inTeam says whether it is one of whom a role is asked.
func (c caller) inTeam() bool { return slices.Contains(strings.Fields(kindsTeam), c.kind) }

func (c caller) may(role api.Role) bool { return cmp.Or(c.role, api.RoleAdmin).AtLeast(role) }

// expected is the one rule of the table. Roles and scopes are those of resttest.Needs.
func (rt apiRoute) expected(c caller) string {
	need := resttest.Needs[rt.method+" "+rt.path]
	switch {
	case rt.admits == everybody:
	case c.refuse == "400 team_required" && rt.path == "/me": // which tells a person their teams
		return "200"
	case c.refuse != "":
		return c.refuse
	case c.kind == "admin" && !strings.Contains(rt.admits, "admin"):
		return unknown // an admin token is a secret of its tunnel and nothing elsewhere
	case !slices.Contains(strings.Fields(rt.admits), c.kind):
		return "403 forbidden"
	case c.inTeam() && need.Role != "" && !c.may(need.Role):
		return "403 role_required"
	case !need.Allows(c.scopes...):
		return "403 scope_required"
	case c.other && rt.missing != "":
		return "404 " + rt.missing
	case c.inTeam() && need.Others != "" && strings.HasPrefix(rt.path, "/tunnels/") && !c.may(need.Others): // the tunnel is nobody's here
		return "403 role_required"
	}
	return strings.TrimSpace(fmt.Sprint(rt.status, " ", rt.code))
}

// things fills a path's parameters.
type things map[string]string

func (th things) fill(path string) string {
	for name, v := range th {
		path = strings.ReplaceAll(path, "{"+name+"}", v)
	}
	return path
}

// matrix is a relay with a thing of each sort, and callers of each sort.
type matrix struct {
	r       *world.Relay
	tun     api.Tunnel
	there   things // exist, in the world's team
	nowhere things // exist in no team
	callers []caller
}

func newMatrix(t *testing.T) *matrix {
	t.Helper()
	w := world.New(t)
	is := issuer.Start(t)
	r := w.Relay(append(oidcEnv(is), "ADIT_LOG_LEVEL=info", world.PathForm)...)
	w.Agent(r, "gpu-1")
	w.Agent(r, "gpu-2")
	m := &matrix{r: r}
	user, sk := is.Token(members(world.Team)), r.Credential("integration", world.Team)
	m.tun = r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello), "host_header": "public"})
	second := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello)})
	var lease api.TaskLease
	if status, p := r.API(sk, http.MethodPost, "/agents/gpu-2/tasks", map[string]any{"task_id": "train-7", "ttl": "5m"}, &lease); status != 201 {
		t.Fatalf("take a lease: %d %v", status, p)
	}
	revoked := func(body string) api.CreatedCredential {
		c := created(r, user, world.Team, body)
		if a := asPerson(r, user, world.Team, http.MethodDelete, "/credentials/"+string(c.ID), ""); a.Status != 204 {
			t.Fatalf("revoke: %s", a)
		}
		return c
	}
	gone := revoked(`{"kind":"integration","name":"gone"}`)
	if _, err := operate(t, r, "member", "role", "--team", world.Team, "--add", "guest", "viewer"); err != nil {
		t.Fatal(err)
	}
	m.there = things{"agent_id": "gpu-2", "session_id": string(m.tun.SessionID), "viewer_id": "00000000deadbeef", "link_id": "00000000deadbeef00000000deadbeef", "task_id": "train-7", "credential_id": string(gone.ID),
		"user_id": "guest", "invite_id": "00000000deadbeef", "device_id": "00000000deadbeef"}
	m.nowhere = things{"agent_id": "gpu-9", "session_id": string(ident.NewSessionID()), "viewer_id": "00000000deadbeef", "link_id": "00000000deadbeef00000000deadbeef", "task_id": "train-9", "credential_id": string(ident.NewCredentialID()),
		"user_id": "nobody", "invite_id": "00000000deadbeef", "device_id": "00000000deadbeef"}

	bearer := func(secret string, more ...string) []string {
		return append([]string{"Authorization", "Bearer " + secret}, more...)
	}
	inTeam := func(token, team string) []string { return bearer(token, "X-Team-ID", team) }
	nobody := func(name string, header ...string) caller {
		return caller{name: name, header: header, refuse: unknown}
	}
	m.callers = []caller{
		nobody("nobody"),
		nobody("an empty secret", "Authorization", "Bearer "),
		nobody("nonsense", bearer("nonsense")...),
		nobody("an unknown credential", bearer("sk-"+strings.Repeat("a", 40))...),
		nobody("a credential cut short", bearer(sk[:20])...),
		nobody("a credential as Basic password", "Authorization", "Basic dXNlcjpzay0="),
		nobody("two Authorization headers", "Authorization", "Bearer "+sk, "Authorization", "Bearer "+sk),
		nobody("a credential in a cookie", "Cookie", "authorization="+sk+"; token="+sk),
		nobody("a revoked integration credential", bearer(gone.Secret)...),
		nobody("a revoked device", bearer(revoked(`{"kind":"device","name":"gone"}`).Secret)...),
		nobody("a revoked agent", bearer(revoked(`{"kind":"agent","name":"gone","agent_id":"gpu-2"}`).Secret)...),
		nobody("an expired integration credential", bearer(expired(r, created(r, user, world.Team, `{"kind":"integration","name":"old","expires_in":"1d"}`)))...),
		nobody("an expired agent", bearer(expired(r, created(r, user, world.Team, `{"kind":"agent","name":"old","agent_id":"gpu-2","expires_in":"1d"}`)))...),
		nobody("an expired session", inTeam(is.Token(issuer.Claims{"teams": []string{world.Team}, "exp": time.Now().Add(-time.Hour).Unix()}), world.Team)...),
		nobody("a forged session", inTeam(is.TokenWrong(issuer.ForeignKey, members(world.Team)), world.Team)...),
		nobody("a tunnel's access token", bearer(world.Segment(m.tun))...),
		nobody("a lease token", bearer(lease.LeaseToken)...),
		{name: "a session without a team", kind: "user", header: bearer(user), refuse: "400 team_required"},
		{name: "a session for a team that is not its", kind: "user", header: inTeam(user, otherTeam), refuse: "403 not_a_member"},
		{name: "a person", kind: "user", header: inTeam(user, world.Team)},
		nobody("a page's bearer that somebody made up", inTeam("bt-"+strings.Repeat("0", 64)+fmt.Sprintf("-%d-", time.Now().Add(time.Minute).Unix())+strings.Repeat("0", 64), world.Team)...),
		{name: "a device", kind: "device", header: bearer(r.Credential("device", world.Team, "--user", "bob"))},
		{name: "an integration credential", kind: "integration", header: bearer(sk)},
		{name: "a person of another team", kind: "user", role: api.RoleOwner, header: inTeam(is.Token(issuer.Claims{"teams": []map[string]string{{"id": otherTeam, "role": "owner"}}}), otherTeam), other: true},
		{name: "a device of another team", kind: "device", role: api.RoleOwner, header: bearer(r.Credential("device", otherTeam, "--user", "eve", "--role", "owner")), other: true},
		{name: "an integration credential of another team", kind: "integration", header: bearer(r.Credential("integration", otherTeam)), other: true},
		{name: "an integration credential of another team that asks for this one", kind: "integration", header: inTeam(r.Credential("integration", otherTeam, "--name", "liar"), world.Team), other: true},
		{name: "the agent", kind: "agent", header: bearer(r.Credential("agent", world.Team, "--agent", "gpu-2"))},
		{name: "another agent of the team", kind: "other agent", header: bearer(r.Credential("agent", world.Team, "--agent", "gpu-1"))},
		{name: "an agent credential for no agent in particular", kind: "other agent", header: bearer(r.Credential("agent", world.Team, "--name", "any"))},
		{name: "an agent of another team with the same name", kind: "agent", header: bearer(r.Credential("agent", otherTeam, "--agent", "gpu-2")), other: true},
		{name: "the tunnel's admin token", kind: "admin", header: bearer(m.tun.AdminToken)},
		nobody("another tunnel's admin token", bearer(second.AdminToken)...),
		// Narrowed to machines that are none, it sees as much as another team.
		{name: "an integration credential for other machines", kind: "integration", other: true, header: bearer(created(r, user, world.Team, `{"kind":"integration","name":"machines","agents":["none-*"]}`).Secret)},
	}
	stranger := is.Token(issuer.Claims{"sub": "their-owner", "teams": []map[string]string{{"id": otherTeam, "role": "owner"}}})
	m.callers = append(m.callers, caller{name: "an owner of another team", kind: "user", role: api.RoleOwner, header: inTeam(stranger, otherTeam), other: true})
	for _, role := range api.Roles {
		token := is.Token(issuer.Claims{"sub": "the-" + string(role), "teams": []map[string]string{{"id": world.Team, "role": string(role)}}})
		m.callers = append(m.callers, caller{name: "a person who is " + string(role), kind: "user", role: role, header: inTeam(token, world.Team)})
		if api.RoleAdmin.AtLeast(role) { // by an admin nothing more is made
			for _, kind := range []string{"device", "integration"} {
				secret := created(r, user, world.Team, fmt.Sprintf(`{"kind":%q,"name":%q,"role":%q}`, kind, role, role)).Secret
				m.callers = append(m.callers, caller{name: "a credential of kind " + kind + " as " + string(role), kind: kind, role: role, header: bearer(secret)})
			}
		}
	}
	for _, scope := range api.Scopes {
		secret := created(r, user, world.Team, fmt.Sprintf(`{"kind":"integration","name":%q,"scopes":[%q]}`, scope, scope)).Secret
		m.callers = append(m.callers, caller{name: "an integration credential with the scope " + string(scope), kind: "integration", scopes: []api.Scope{scope}, header: bearer(secret)})
	}
	both := created(r, user, world.Team, `{"kind":"integration","name":"both","role":"viewer","scopes":["tunnels","tasks"]}`).Secret
	m.callers = append(m.callers, caller{name: "an integration credential with two scopes and a low role", kind: "integration", role: api.RoleViewer, scopes: []api.Scope{api.ScopeTunnels, api.ScopeTasks}, header: bearer(both)})
	return m
}

// expired moves a credential's end into the past, where time would take a day:
// in the relay's own store, of which the relay hears as of any change.
func expired(r *world.Relay, c api.CreatedCredential) string {
	r.W.T.Helper()
	rewrite(r.W.T, []string{"unix://" + filepath.Join(r.DataDir, "run", "etcd.sock")}, string(c.ID), func(record string) string {
		return regexp.MustCompile(`"expires_at":"[^"]*"`).ReplaceAllString(record, `"expires_at":"2024-01-01T00:00:00Z"`)
	})
	r.W.Eventually(5*time.Second, "an expired credential is refused", func() bool {
		return call(r, http.MethodGet, "/api/v1/agents", "", "Authorization", "Bearer "+c.Secret).Status == 401
	})
	return c.Secret
}

// rewrite changes a credential's record in the store, past all relays.
func rewrite(t *testing.T, endpoints []string, id string, change func(record string) string) {
	t.Helper()
	db, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	key := "/adit/v1/credential/" + id
	got, err := db.Get(ctx, key)
	if err != nil || len(got.Kvs) != 1 {
		t.Fatalf("read the credential's record: %v", err)
	}
	before := string(got.Kvs[0].Value)
	after := change(before)
	if after == before {
		t.Fatalf("the record has nothing to change: %s", before)
	}
	if _, err := db.Put(ctx, key, after); err != nil {
		t.Fatal(err)
	}
}

// upgrade makes any request one for a WebSocket.
var upgrade = []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}

// linkUpgrade makes a request one for an agent's link.
var linkUpgrade = append(slices.Clone(upgrade), "Sec-WebSocket-Protocol", wire.Subprotocol)

// ask is call that reads only the beginning of an event stream.
func (m *matrix) ask(method, path, body string, header ...string) answer {
	m.r.W.T.Helper()
	if !strings.HasSuffix(path, "/watch") {
		return call(m.r, method, path, body, header...)
	}
	ctx, cancel := context.WithCancel(m.r.W.T.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://127.0.0.1:%d%s", m.r.Port, path), nil)
	if err != nil {
		m.r.W.T.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return answer{Body: err.Error()}
	}
	defer resp.Body.Close()
	a := answer{Status: resp.StatusCode, Header: resp.Header}
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		b, _ := io.ReadAll(resp.Body)
		a.Body = string(b)
	}
	return a
}

// described lists the operations of the description that the relay serves.
func described(t *testing.T, r *world.Relay) []string {
	t.Helper()
	a := call(r, http.MethodGet, api.Base+"/openapi.json", "")
	var doc struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal([]byte(a.Body), &doc); err != nil || len(doc.Paths) == 0 {
		t.Fatalf("the description is public and is JSON: %s %v", a, err)
	}
	var out []string
	for path, item := range doc.Paths {
		for method := range item {
			if m := strings.ToUpper(method); slices.Contains([]string{"GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"}, m) {
				out = append(out, m+" "+strings.TrimPrefix(path, api.Base))
			}
		}
	}
	return out
}

// requestIDs differ from call to call, and nothing else may.
var requestIDs = regexp.MustCompile(`"request_id":"[^"]*"`)

// shape is all of an answer that a stranger could learn from.
func (a answer) shape() string {
	h := a.Header.Clone()
	h.Del("Date")
	h.Del("X-Request-Id")
	names, _ := json.Marshal(h)
	return fmt.Sprint(a.Status, " ", string(names), " ", requestIDs.ReplaceAllString(a.Body, `"request_id":""`))
}

func TestDefaultDeny(t *testing.T) {
	t.Parallel()
	m := newMatrix(t)
	t.Run("every route is in the table", func(t *testing.T) {
		// Those of agents and tunnels need no API at all and are tested below.
		inTable := map[string]bool{"GET /openapi.json": true, "GET /healthz": true, "GET /readyz": true, "GET " + wire.LinkPath: true, "POST " + api.EnrollPath: true}
		for _, rt := range apiRoutes {
			inTable[rt.method+" "+rt.path] = true
			if _, known := resttest.Needs[rt.method+" "+rt.path]; !known {
				t.Errorf("resttest.Needs does not say which role and scope %s %s needs", rt.method, rt.path)
			}
		}
		for _, op := range described(t, m.r) {
			if !inTable[op] {
				t.Errorf("%s is served and is not in this test's table: say whom it admits", op)
			}
			delete(inTable, op)
		}
		for op := range inTable {
			if !slices.Contains([]string{"GET /healthz", "GET /readyz", "GET " + wire.LinkPath, "POST " + api.EnrollPath}, op) {
				t.Errorf("%s is in this test's table and not in the description", op)
			}
		}
		if got, want := ownPatterns(t), []string{
			`"/api/"`, `"GET " + wire.LinkPath`, `"POST " + api.EnrollPath`, `"GET /healthz"`, `"GET /readyz"`, "pattern",
			// What stands behind "pattern": pages and packages, the same for everybody, and the terminal's WebSocket, which asks for a token of its own.
			`"GET " + web.Path`, `"GET " + Path`, `"GET " + pairPath`, `"GET " + Path + "/{$}"`,
			// By what people sign in: where nobody can, as here, the first two alone. They read a cookie and no credential.
			`"GET " + Base + "options"`, `"POST " + Base + "token"`,
			`"GET" Base + "options"`, `"GET" loginPath`, `"GET" callbackPath`, `"GET" passPath`, `"POST" Base + "token"`, `"POST" Base + "logout"`, `"POST" Base + "invite"`,
			`"POST" Base + "passkey/begin"`, `"POST" Base + "passkey/finish"`, `"POST" Base + "passkey/register/begin"`, `"POST" Base + "passkey/register/finish"`,
			`"GET " + Path`, `"GET " + Path + "/{file}"`, `"GET " + wire.TerminalPath + "{session}"`, `"GET " + wire.TerminalPath + "{session}" + wire.TerminalSocket`,
		}; !slices.Equal(got, want) {
			t.Errorf("the public listener has the patterns %s, this test knows %s: a new one needs its line in the table", got, want)
		}
	})
	t.Run("interface", func(t *testing.T) {
		cells := 0
		for _, rt := range apiRoutes {
			path := api.Base + m.there.fill(rt.path) + rt.query
			if strings.HasPrefix(rt.path, "/agents/{agent_id}/tunnel") {
				path = strings.Replace(path, "gpu-2", "gpu-1", 1) // where the tunnel is
			}
			for _, c := range m.callers {
				want := rt.expected(c)
				for _, how := range [][]string{nil, upgrade} {
					cells++
					a := m.ask(rt.method, path, rt.body, append(slices.Clone(c.header), how...)...)
					if got := strings.TrimSpace(a.String()); got != want {
						t.Errorf("%s %s as %s (upgrade: %t): expected %s, got %s", rt.method, rt.path, c.name, how != nil, want, got)
					}
					m.guarded(t, rt.method+" "+rt.path+" as "+c.name, a)
				}
			}
		}
		testkit.Figure(t, "%d routes, %d callers: %d cells", len(apiRoutes), len(m.callers), cells)
	})
	t.Run("other methods", func(t *testing.T) { m.otherMethods(t) })
	t.Run("another team's things are not there", func(t *testing.T) { m.invisible(t) })
	t.Run("listener", func(t *testing.T) { m.listener(t) })
	t.Run("link", func(t *testing.T) { m.links(t) })
	t.Run("enrollment", func(t *testing.T) { m.enrollment(t) })
	t.Run("tunnels", func(t *testing.T) { m.tunnels(t) })
}

// guarded checks what every answer of the interface has, whatever it says.
func (m *matrix) guarded(t *testing.T, what string, a answer) {
	t.Helper()
	if a.Status == 401 && !strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Bearer") {
		t.Errorf("%s: a 401 comes with a Bearer challenge, got %q", what, a.Header.Get("WWW-Authenticate"))
	}
	if a.Status >= 400 && a.Header.Get("Content-Type") != api.ProblemContentType {
		t.Errorf("%s: an error is a problem document, got %q", what, a.Header.Get("Content-Type"))
	}
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Content-Security-Policy": api.StrictPolicy, "Cache-Control": "no-store"} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s: expected %s: %s, got %q", what, name, want, got)
		}
	}
	for _, name := range []string{"Set-Cookie", "Access-Control-Allow-Origin"} {
		if a.Header.Get(name) != "" {
			t.Errorf("%s: the interface knows no cookies and no foreign pages, got %s: %s", what, name, a.Header.Get(name))
		}
	}
}

func (m *matrix) otherMethods(t *testing.T) {
	nobody, person := m.callers[0], m.callers[slices.IndexFunc(m.callers, func(c caller) bool { return c.name == "a person" })]
	has := map[string][]string{}
	for _, rt := range apiRoutes {
		has[rt.path] = append(has[rt.path], rt.method)
	}
	for path, methods := range has {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"} {
			if slices.Contains(methods, method) {
				continue
			}
			if path == "/agents/watch" && method == "DELETE" { // no agent's route ends there
				continue
			}
			at := api.Base + m.there.fill(path)
			if a := m.ask(method, at, "", nobody.header...); a.Status != 401 {
				t.Errorf("%s %s as nobody: expected 401 before anything is said of methods, got %s", method, path, a)
			}
			if a := m.ask(method, at, "", person.header...); a.Status != 405 || a.Header.Get("Allow") == "" {
				t.Errorf("%s %s as a person: expected 405 with Allow, got %s", method, path, a)
			}
		}
	}
	for _, path := range []string{"", "/", "/agent", "/agents/", "/agents/gpu-1/", "/agents//watch", "/agents/gpu-1/tunnel/x", "/../healthz", "/agents/../credentials", "/%61gents/gpu-1/x", "/credentials/"} {
		if a := m.ask("GET", api.Base+path, "", nobody.header...); a.Status != 401 {
			t.Errorf("GET %s as nobody: expected 401 for whatever is under the interface, got %s", path, a)
		}
		if a := m.ask("GET", api.Base+path, "", person.header...); a.Status != 404 {
			t.Errorf("GET %s as a person: expected 404, got %s %v", path, a, a.Header)
		}
	}
}

// invisible compares what another team gets for things that exist with what it gets
// for things that do not, byte for byte.
func (m *matrix) invisible(t *testing.T) {
	for _, rt := range apiRoutes {
		if rt.missing == "" {
			continue
		}
		for _, c := range m.callers {
			if !c.other || !slices.Contains(strings.Fields(rt.admits), c.kind) {
				continue
			}
			there, nowhere := m.there, m.nowhere
			if c.kind == "agent" { // its own name is the only one that it may ask for
				nowhere = there
			}
			a := m.ask(rt.method, api.Base+there.fill(rt.path)+rt.query, rt.body, c.header...)
			b := m.ask(rt.method, api.Base+nowhere.fill(rt.path)+rt.query, rt.body, c.header...)
			want := 404
			if c.inTeam() && !c.may(cmp.Or(resttest.Needs[rt.method+" "+rt.path].Role, api.RoleViewer)) {
				want = 403
			}
			if a.Status != want || a.shape() != b.shape() {
				t.Errorf("%s %s as %s: what exists in a strange team must look like what does not exist\n there:   %s\n nowhere: %s", rt.method, rt.path, c.name, a.shape(), b.shape())
			}
		}
	}
	for _, c := range m.callers {
		if !c.other || c.kind == "agent" {
			continue
		}
		a := m.ask("GET", api.Base+"/agents?per_page=100", "", c.header...)
		if strings.Contains(a.Body, "gpu-") || !strings.Contains(a.Body, `"total_count":0`) {
			t.Errorf("%s sees agents of a strange team: %s", c.name, a.Body)
		}
		if a := m.ask("GET", api.Base+"/credentials", "", c.header...); c.kind != "integration" && strings.Contains(a.Body, m.there["credential_id"]) {
			t.Errorf("%s sees credentials of a strange team: %s", c.name, a.Body)
		}
	}
}

// listener asks for all that must not be on the public listener, and the little
// that is for everybody.
func (m *matrix) listener(t *testing.T) {
	for _, c := range m.callers {
		for _, how := range [][]string{nil, upgrade} {
			header := append(slices.Clone(c.header), how...)
			for path, want := range map[string]int{
				"/healthz": 200, "/readyz": 200, "/metrics": 404, "/debug/pprof/": 404, "/debug/pprof/cmdline": 404, "/debug/vars": 404,
				"/console": 200, "/desktop/pair": 200, "/desktop/pair/start": 404, "/admin": 404, "/v1/credentials": 404, "/status": 404, "/": 303, "/terminal/" + string(m.tun.SessionID): 200, "/terminal/x": 404, "/terminal/x/ws": 404, "/_adit/ui/x": 404,
				"/agent/v1/": 404, "/agent/v1/link/x": 404, "/.well-known/openid-configuration": 404, "/tunnel": 404, "/auth/options": 404, "/auth/login": 404, "/auth/callback": 404, "/auth/pass": 404, "/auth/": 404,
			} {
				if a := m.ask("GET", path, "", header...); a.Status != want {
					t.Errorf("GET %s as %s (upgrade: %t): expected %d, got %s", path, c.name, how != nil, want, a)
				}
			}
			// No credential is asked for, and none helps: the token comes in the first message.
			if a := m.ask("GET", "/terminal/"+string(m.tun.SessionID)+"/ws", "", c.header...); a.Status != 426 {
				t.Errorf("a terminal's WebSocket without an upgrade as %s: expected 426, got %s", c.name, a)
			}
			for _, method := range []string{"POST", "PUT", "DELETE"} {
				for _, path := range []string{"/healthz", "/readyz", wire.LinkPath, "/", "/terminal/" + string(m.tun.SessionID)} {
					if a := m.ask(method, path, "", header...); a.Status != 405 || a.Header.Get("Allow") != "GET, HEAD" {
						t.Errorf("%s %s as %s: expected 405, got %s", method, path, c.name, a)
					}
				}
			}
		}
	}
	if a := m.ask("GET", api.Base+"/openapi.json", ""); a.Status != 200 {
		t.Errorf("the description is public, got %s", a)
	}
	for _, path := range []string{"/metrics"} {
		status, _ := world.Get(m.r.W.HTTP(), fmt.Sprintf("http://127.0.0.1:%d%s", m.r.Metrics, path))
		if status != 200 {
			t.Errorf("the metrics listener serves %s, got %d", path, status)
		}
	}
	if status, _ := world.Get(m.r.W.HTTP(), fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/", m.r.Metrics)); status != 404 {
		t.Errorf("profiles are off unless asked for, also on the metrics listener: got %d", status)
	}
}

// links asks for an agent's link: only agent credentials get one.
func (m *matrix) links(t *testing.T) {
	for _, c := range m.callers {
		want := "403 forbidden"
		switch {
		case c.refuse != "":
			want = c.refuse
		case c.kind == "admin":
			want = unknown
		case c.kind == "agent" || c.kind == "other agent":
			want = "101"
		}
		if a := m.ask("GET", wire.LinkPath, "", append(slices.Clone(c.header), linkUpgrade...)...); strings.TrimSpace(a.String()) != want {
			t.Errorf("a link as %s: expected %s, got %s", c.name, want, a)
		}
		if want == "101" {
			want = "400 upgrade_required"
			if a := m.ask("GET", wire.LinkPath, "", append(slices.Clone(c.header), append(slices.Clone(linkUpgrade), "Origin", "http://localhost")...)...); a.Status != 403 {
				t.Errorf("a link from a page in a browser as %s: expected 403, got %s", c.name, a)
			}
		}
		for _, how := range [][]string{nil, upgrade} {
			if a := m.ask("GET", wire.LinkPath, "", append(slices.Clone(c.header), how...)...); strings.TrimSpace(a.String()) != want {
				t.Errorf("%s without the link's protocol as %s: expected %s, got %s", wire.LinkPath, c.name, want, a)
			}
		}
	}
}

// tunnels asks for tunnels: the address is the only secret that counts there.
func (m *matrix) tunnels(t *testing.T) {
	segment := world.Segment(m.tun)
	closed := m.r.Open(m.callers[slices.IndexFunc(m.callers, func(c caller) bool { return c.name == "an integration credential" })].header[1][7:], "gpu-1", map[string]any{"target_port": 9})
	closeAll(m.r, m.callers[slices.IndexFunc(m.callers, func(c caller) bool { return c.name == "an integration credential" })].header[1][7:], "gpu-1", closed)
	wrong := map[string]string{
		"a wrong token":       segment[:58] + string('a'+(segment[58]-'a'+1)%26),
		"no token":            segment[:32],
		"an empty token":      segment[:33],
		"another's token":     string(ident.NewSessionID()) + segment[32:],
		"capitals":            strings.ToUpper(segment),
		"something behind":    segment + "a",
		"an admin token":      m.tun.AdminToken,
		"a closed tunnel":     world.Segment(closed),
		"an encoded dash":     segment[:32] + "%2d" + segment[33:],
		"nothing":             "",
		"a dot segment":       ".",
		"the way up, encoded": "%2e%2e",
	}
	page := ""
	for _, c := range m.callers {
		for _, how := range [][]string{nil, upgrade} {
			header := append(slices.Clone(c.header), how...)
			if a := m.ask("GET", "/tunnel/"+segment+"/x", "", header...); a.Status != 200 || a.Body != "hello from /x" {
				t.Errorf("a tunnel's address as %s: expected the app, got %s %s", c.name, a, a.Body)
			}
			host := fmt.Sprintf("%s.localhost:%d", segment, m.r.Port)
			if a := m.ask("GET", "/api/v1/agents", "", append(header, "Host", host)...); a.Status != 200 || a.Body != "hello from /api/v1/agents" {
				t.Errorf("on a tunnel's host every path is the app's, as %s: got %s %s", c.name, a, a.Body)
			}
			for what, s := range wrong {
				a := m.ask("GET", "/tunnel/"+s+"/", "", header...)
				if a.Status != 404 || a.code() != "tunnel_not_found" {
					t.Errorf("%s as %s: expected 404 tunnel_not_found, got %s", what, c.name, a)
				}
				if page == "" {
					page = a.shape()
				}
				if a.shape() != page {
					t.Errorf("%s as %s: nothing tells a closed tunnel from one that never was\n %s\n %s", what, c.name, a.shape(), page)
				}
			}
			for what, h := range map[string]string{
				"a wrong token": fmt.Sprintf("%s.localhost:%d", wrong["a wrong token"], m.r.Port), "a name below": fmt.Sprintf("x.%s.localhost:%d", segment, m.r.Port),
				"some name": fmt.Sprintf("www.localhost:%d", m.r.Port),
			} {
				if a := m.ask("GET", "/", "", append(header, "Host", h)...); a.Status != 404 || a.shape() != page {
					t.Errorf("the host of %s as %s: expected the same 404, got %s", what, c.name, a.shape())
				}
			}
		}
	}
}

// ownPatterns reads which patterns the public listener's mux is given, and those of
// the pages, which alone come by the way that paths leaves open.
func ownPatterns(t *testing.T) []string {
	t.Helper()
	fset := token.NewFileSet()
	var out []string
	for _, glob := range []string{"../*.go", "../internal/paths/*.go"} {
		files, err := filepath.Glob(glob)
		if err != nil || len(files) == 0 {
			t.Fatalf("find the relay's sources: %v", err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(fset, path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if kv, ok := n.(*ast.KeyValueExpr); ok {
					if id, ok := kv.Key.(*ast.Ident); ok && id.Name == "More" && source(kv.Value) != "pages" {
						t.Errorf("%s adds routes to the public listener: this test's table needs them", fset.Position(kv.Pos()))
					}
				}
				callExpr, ok := n.(*ast.CallExpr)
				if !ok || !strings.Contains(path, "paths") || len(callExpr.Args) != 2 {
					return true
				}
				if sel, ok := callExpr.Fun.(*ast.SelectorExpr); ok && (sel.Sel.Name == "Handle" || sel.Sel.Name == "HandleFunc") {
					out = append(out, source(callExpr.Args[0]))
				}
				return true
			})
		}
	}
	return append(out, pagePatterns(t)...)
}

// pagePatterns reads the patterns of the pages: what relay/pages.go adds itself, and
// the maps of handlers in the packages that it takes them from.
func pagePatterns(t *testing.T) (out []string) {
	t.Helper()
	fset := token.NewFileSet()
	for _, glob := range []string{"../pages.go", "../internal/console/*.go", "../internal/signin/*.go", "../internal/install/*.go", "../internal/terminal/*.go"} {
		files, err := filepath.Glob(glob)
		if err != nil || len(files) == 0 {
			t.Fatalf("find the sources of pages: %v", err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(fset, path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch x := n.(type) {
				case *ast.AssignStmt:
					for _, left := range x.Lhs {
						if at, ok := left.(*ast.IndexExpr); ok && source(at.X) == "routes" && source(at.Index) != `method + " " + path` {
							out = append(out, source(at.Index))
						}
					}
				case *ast.CallExpr: // of the function that writes method + " " + path
					if source(x.Fun) == "add" && len(x.Args) == 3 {
						out = append(out, source(x.Args[0])+" "+source(x.Args[1]))
					}
				case *ast.CompositeLit:
					if m, ok := x.Type.(*ast.MapType); ok && source(m.Value) == "http.Handler" {
						for _, e := range x.Elts {
							out = append(out, source(e.(*ast.KeyValueExpr).Key))
						}
					}
				}
				return true
			})
		}
	}
	return out
}

// source writes the few expressions that patterns are made of.
func source(e ast.Expr) string {
	switch x := e.(type) {
	case *ast.BasicLit:
		return x.Value
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return source(x.X) + "." + x.Sel.Name
	case *ast.BinaryExpr:
		return source(x.X) + " " + x.Op.String() + " " + source(x.Y)
	}
	return fmt.Sprintf("%T", e)
}
