package rest_test

import (
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/rest/resttest"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// as makes a caller and returns their secret.
func (w *world) as(name string, p creds.Principal) (secret string) {
	p.Team, p.Name = ours, name
	secret = hex.EncodeToString([]byte(name))
	w.auth.mu.Lock()
	defer w.auth.mu.Unlock()
	w.auth.by[secret] = p
	return secret
}

// Every route x every role x every scope. A route that is not in the table fails the test.
func TestWhichRoleAndScopeEachRouteNeeds(t *testing.T) {
	w := newWorld(t)
	o := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	fill := strings.NewReplacer("{agent_id}", "gpu-1", "{session_id}", string(o.SessionID), "{viewer_id}", "nobody", "{link_id}", "nothing", "{task_id}", "nothing", "{credential_id}", "none")
	doc := into[struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}](t, w.do("GET", "/openapi.json", "", ""), 200)
	for _, r := range w.api.Routes() {
		route := r[0] + " " + strings.TrimPrefix(r[1], api.Base)
		n, known := resttest.Needs[route]
		if !known {
			t.Errorf("%s: the test does not say which role and scope it needs", route)
			continue
		}
		var described struct {
			Role   api.Role `json:"x-role"`
			Others api.Role `json:"x-role-for-others"`
			Scopes []string `json:"x-scopes"`
		}
		if err := json.Unmarshal(doc.Paths[r[1]][strings.ToLower(r[0])], &described); err != nil {
			t.Fatal(err)
		}
		if described.Role != n.Role || described.Others != n.Others || strings.Join(described.Scopes, " ") != n.Scopes {
			t.Errorf("%s: the description asks for %+v; want %+v", route, described, n)
		}
		if described.Scopes == nil || route == "GET /agents/watch" {
			continue // for everybody; without an end
		}
		call := func(who string) string {
			return w.do(r[0], fill.Replace(strings.TrimPrefix(r[1], api.Base))+"?bogus=1", who, `{"bogus":1}`).code()
		}
		const low, narrow = "Forbidden role_required", "Forbidden scope_required"
		kind := creds.KindUser
		if call(w.as("alice herself", creds.Principal{Kind: kind, User: "alice", Role: api.RoleOwner})) == "Forbidden forbidden" {
			kind = creds.KindDevice
		}
		for _, role := range append([]api.Role{"", "king"}, api.Roles...) {
			got := call(w.as("alice as "+string(role), creds.Principal{Kind: kind, User: "alice", Role: role})) // who opened the tunnel
			if may := n.Role == "" || role.AtLeast(n.Role); may == (got == low) || strings.HasPrefix(got, "Forbidden") && got != low {
				t.Errorf("%s as %q, of their own: %s; the role is enough: %t", route, role, got, may)
			}
			if n.Others == "" || !strings.Contains(route, "/tunnels/") {
				continue // those that are no tunnel's have tests of their own
			}
			got = call(w.as("carol as "+string(role), creds.Principal{Kind: creds.KindUser, User: "carol", Role: role}))
			if may := role.AtLeast(n.Others); may == (got == low) {
				t.Errorf("%s as %q, of somebody else's: %s; the role is enough: %t", route, role, got, may)
			}
		}
		if call(w.as("a program", creds.Principal{Kind: creds.KindIntegration, Role: api.RoleOwner, Credential: "cred_9"})) == "Forbidden forbidden" {
			continue // not for programs at all
		}
		for _, scope := range append(slices.Clone(api.Scopes), "king") {
			got := call(w.as("sk:"+string(scope), creds.Principal{Kind: creds.KindIntegration, Role: api.RoleOwner, Credential: "cred_9", Scopes: []api.Scope{scope}}))
			if may := n.Allows(scope); may == (got == narrow) {
				t.Errorf("%s with the scope %s: %s; it is enough: %t", route, scope, got, may)
			}
			viewer := call(w.as("sk of a viewer:"+string(scope), creds.Principal{Kind: creds.KindIntegration, Role: api.RoleViewer, Credential: "cred_9", Scopes: []api.Scope{scope}}))
			if n.Role == api.RoleMember && viewer != low {
				t.Errorf("%s with the scope %s and a role below it: %s", route, scope, viewer)
			}
		}
	}
}

// detail is what a refusal says to people.
func (r reply) detail() string {
	var p api.Problem
	_ = json.Unmarshal(r.body, &p)
	return p.Detail
}

func TestARefusalNamesWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	o := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	viewer := w.as("a viewer", creds.Principal{Kind: creds.KindUser, User: "v", Role: api.RoleViewer})
	carol := w.as("carol", creds.Principal{Kind: creds.KindUser, User: "carol", Role: api.RoleMember})
	sk := w.as("a key", creds.Principal{Kind: creds.KindIntegration, Role: api.RoleViewer, Credential: "cred_9"})
	narrow := w.as("a narrow key", creds.Principal{Kind: creds.KindIntegration, Role: api.RoleMember, Credential: "cred_9", Scopes: []api.Scope{api.ScopeRead, api.ScopeTasks}})
	ports := w.as("a key for ports", creds.Principal{Kind: creds.KindIntegration, Role: api.RoleMember, Credential: "cred_9", Ports: "8000-8100,9000"})
	for _, c := range []struct {
		method, path, who, body string
		says                    []string
	}{
		{"POST", "/agents/gpu-1/tunnel", viewer, "", []string{"role member", "yours is viewer", "ask an admin of the team"}},
		{"POST", "/agents/gpu-1/tunnel", sk, "", []string{"role member", "yours is viewer", "a credential that was made with a higher role"}},
		{"POST", "/tunnels/" + string(o.SessionID) + "/extend", carol, "", []string{"opened by user:alice", "role admin", "yours is member"}},
		{"POST", "/agents/gpu-1/tunnel", narrow, "", []string{"scope tunnels", "has read, tasks"}},
		{"POST", "/agents/gpu-1/tunnel", ports, `{"target_port":22}`, []string{"ports 8000-8100,9000", "not for 22"}},
		{"POST", "/tunnels/" + string(o.SessionID) + "/extend", ports, "", []string{"ports 8000-8100,9000", "not for 8188"}},
		{"GET", "/credentials", w.as("a member", creds.Principal{Kind: creds.KindUser, User: "m", Role: api.RoleMember}), "", []string{"role admin", "yours is member"}},
	} {
		r := w.do(c.method, c.path, c.who, c.body)
		for _, part := range c.says {
			if r.status != 403 || !strings.Contains(r.detail(), part) {
				t.Errorf("%s %s: %d %q, want 403 with %q", c.method, c.path, r.status, r.detail(), part)
			}
		}
	}
}

// TestClosingAllIsNeverHalfDone has a member ask for all tunnels of a machine to be closed.
func TestClosingAllIsNeverHalfDone(t *testing.T) {
	w := newWorld(t)
	carol := w.as("user:carol", creds.Principal{Kind: creds.KindUser, User: "carol", Role: api.RoleMember})
	ports := w.as("sk:ports", creds.Principal{Kind: creds.KindIntegration, Role: api.RoleAdmin, Credential: "cred_9", Ports: "1-1000"})
	open := func(who string) ident.SessionID {
		return into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", who, `{"target_port":80}`), 201).SessionID
	}
	const path = "/agents/gpu-1/tunnel"
	if got := into[api.Closed](t, w.do("DELETE", path, carol, ""), 200); len(got.Closed) != 0 {
		t.Errorf("of nothing %v was closed", got.Closed)
	}
	mine, also, foreign := open(carol), open(carol), open("user")
	r := w.do("DELETE", path, carol, "")
	w.want(r, "Forbidden role_required")
	if d := r.detail(); !strings.Contains(d, string(foreign)+" (user:alice)") || strings.Contains(d, string(mine)) || !strings.Contains(d, "nothing was closed") || !strings.Contains(d, "session_id") {
		t.Errorf("it says %q", d)
	}
	w.want(w.do("DELETE", path+"?session_id="+string(foreign), carol, ""), "Forbidden role_required")
	got := into[api.TunnelStatus](t, w.do("GET", path, carol, ""), 200)
	if len(got.Sessions) != 3 {
		t.Errorf("%d tunnels are left of three", len(got.Sessions))
	}
	for _, s := range got.Sessions {
		if s.Own != (s.SessionID != foreign) {
			t.Errorf("the list says of %s's tunnel that it is her own: %t", s.OpenedBy, s.Own)
		}
	}
	if got := into[api.Closed](t, w.do("DELETE", path+"?session_id="+string(mine), carol, ""), 200); !slices.Equal(got.Closed, []ident.SessionID{mine}) {
		t.Errorf("closed %v, want her own", got.Closed)
	}
	into[api.Closed](t, w.do("DELETE", path+"?session_id="+string(mine), carol, ""), 200) // again is no error
	w.want(w.do("DELETE", path+"?session_id="+string(ident.NewSessionID()), carol, ""), "Not Found tunnel_not_found")
	into[api.Closed](t, w.do("DELETE", path+"?session_id="+string(foreign), "user", ""), 200)
	other := into[api.Tunnel](t, w.do("POST", path, "user", `{"target_port":8188}`), 201).SessionID
	w.want(w.do("DELETE", path, ports, ""), "Forbidden scope_required") // an admin, but not of this port
	w.want(w.do("DELETE", path+"?session_id="+string(other), ports, ""), "Forbidden scope_required")
	into[api.Closed](t, w.do("DELETE", path+"?session_id="+string(other), "user", ""), 200)
	if got := into[api.Closed](t, w.do("DELETE", path, carol, ""), 200); !slices.Equal(got.Closed, []ident.SessionID{also}) {
		t.Errorf("closed %v, want the one that is left, her own", got.Closed)
	}
}

// TestANarrowedKeySeesItsMachinesOnly holds what is outside of a key's patterns against
// what does not exist, and what is outside of its ports.
func TestANarrowedKeySeesItsMachinesOnly(t *testing.T) {
	w := newWorld(t)
	w.connect(ours, "render-1")
	key := w.as("sk:narrow", creds.Principal{Kind: creds.KindIntegration, Role: api.RoleAdmin, Credential: "cred_9", Agents: []string{"render-*"}, Ports: "8188"})
	hidden := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	into[api.Tunnel](t, w.do("POST", "/agents/render-1/tunnel", "user", `{"target_port":22}`), 201)
	seen := into[api.Tunnel](t, w.do("POST", "/agents/render-1/tunnel", key, ""), 201)
	if r := w.do("POST", "/tunnels/"+string(seen.SessionID)+"/terminal", key, ""); r.code() != "Forbidden scope_required" {
		t.Errorf("it makes a code for a terminal: %d %s", r.status, r.body)
	}
	if r := w.do("POST", "/tunnels/"+string(seen.SessionID)+"/terminal", seen.AdminToken, ""); r.code() != "Forbidden scope_required" {
		t.Errorf("so does the token of what it opened: %d %s", r.status, r.body)
	}
	if l := into[api.AgentList](t, w.do("GET", "/agents", key, ""), 200); len(l.AgentList) != 1 || l.AgentList[0].AgentID != "render-1" || l.PageMeta.TotalCount != 1 {
		t.Errorf("it sees %+v", l)
	}
	if s := into[api.TunnelStatus](t, w.do("GET", "/agents/render-1/tunnel", key, ""), 200); len(s.Sessions) != 1 || s.SessionID != seen.SessionID {
		t.Errorf("of two tunnels, one to another port, it sees %+v", s)
	}
	for _, c := range [][3]string{
		{"GET", "/agents/gpu-1", "/agents/nothing"}, {"POST", "/agents/gpu-1/tunnel", "/agents/nothing/tunnel"}, {"GET", "/agents/gpu-1/tunnel", "/agents/nothing/tunnel"},
		{"POST", "/agents/gpu-1/tasks", "/agents/nothing/tasks"}, {"DELETE", "/agents/gpu-1/tunnel", "/agents/nothing/tunnel"},
		{"POST", "/tunnels/" + string(hidden.SessionID) + "/extend", "/tunnels/" + string(ident.NewSessionID()) + "/extend"},
		{"GET", "/tunnels/" + string(hidden.SessionID) + "/links", "/tunnels/" + string(ident.NewSessionID()) + "/links"},
	} {
		there, nowhere := w.do(c[0], c[1], key, ""), w.do(c[0], c[2], key, "")
		if there.status != 404 || there.detail() != nowhere.detail() || there.code() != nowhere.code() {
			t.Errorf("%s %s: %d %s; what does not exist: %s", c[0], c[1], there.status, there.body, nowhere.body)
		}
	}
	into[api.Closed](t, w.do("DELETE", "/agents/gpu-1/tunnel", "user", ""), 200)
	if r := w.do("POST", "/tunnels/"+string(hidden.SessionID)+"/extend", key, ""); r.status != 404 || strings.Contains(r.detail(), "closed") {
		t.Errorf("it is told why a tunnel is over that it may not see: %s", r.body)
	}
}

// A narrowed key's stream tells of its machines alone, now and later.
func TestANarrowedKeyWatchesItsMachinesOnly(t *testing.T) {
	w := newWorld(t)
	w.connect(ours, "render-1")
	key := w.as("sk:narrow", creds.Principal{Kind: creds.KindIntegration, Role: api.RoleViewer, Credential: "cred_9", Agents: []string{"render-*"}})
	events := w.watch(w.serve(), key, "")
	if e, _ := events.next(); e.kind != api.EventSnapshot || len(e.data.Agents) != 1 || e.data.Agents[0].AgentID != "render-1" {
		t.Fatalf("the snapshot has %+v", e)
	}
	into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	into[api.Closed](t, w.do("DELETE", "/agents/gpu-1/tunnel", "user", ""), 200)
	into[api.Tunnel](t, w.do("POST", "/agents/render-1/tunnel", "user", ""), 201)
	for {
		e, ok := events.next()
		if !ok || e.data.AgentID != "render-1" {
			t.Fatalf("it hears of %+v", e)
		}
		if e.data.Agent != nil && e.data.Agent.Tunnels == 1 {
			return
		}
	}
}

func TestMe(t *testing.T) {
	w := newWorld(t)
	key := w.as("sk:narrow", creds.Principal{Kind: creds.KindIntegration, Role: api.RoleMember, Credential: "cred_9", Agents: []string{"render-*"}, Ports: "8188", Scopes: []api.Scope{api.ScopeMCP}})
	me := into[api.Me](t, w.do("GET", "/me", key, ""), 200)
	if me.Kind != "integration" || me.Name != "sk:narrow" || me.Role != api.RoleMember || me.Ports != "8188" || len(me.Agents) != 1 || len(me.Scopes) != 1 || me.TeamID != ours || me.UserID != "" || len(me.Teams) != 1 {
		t.Errorf("a key is told %+v", me)
	}
	if me := into[api.Me](t, w.do("GET", "/me", "user", ""), 200); me.Kind != "user" || me.UserID != "alice" || me.Role != api.RoleAdmin || me.Teams[0].TeamName != "render" {
		t.Errorf("a person is told %+v", me)
	}
	w.want(w.do("GET", "/me", "agent", ""), "Forbidden forbidden")
	w.want(w.do("GET", "/me?x=1", "user", ""), "Bad Request unknown_parameter")
}

// What a tunnel's record says of who opened it, and what it is good for.
func TestWhoOpenedATunnelIsRecorded(t *testing.T) {
	w := newWorld(t)
	for who, p := range map[string]creds.Principal{
		"user:bob": {Kind: creds.KindUser, User: "bob", Role: api.RoleMember}, "sk:bobs": {Kind: creds.KindIntegration, Maker: "bob", Role: api.RoleMember, Credential: "cred_9", Ports: "8188"},
	} {
		o := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", w.as(who, p), ""), 201)
		if r, _ := w.store.Tunnel(o.SessionID); r.User != "bob" || r.OpenedBy != who || r.Credential != p.Credential || r.NoTerminal != (p.Ports != "") {
			t.Errorf("opened by %s, the record says %+v", who, r)
		}
	}
}
