package rest_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestDescriptionAndTableAreTheSame(t *testing.T) {
	w := newWorld(t)
	doc := into[struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}](t, w.do("GET", "/openapi.json", "", ""), 200)
	described := map[string]bool{}
	for path, item := range doc.Paths {
		for method := range item {
			if method != "parameters" {
				described[strings.ToUpper(method)+" "+path] = true
			}
		}
	}
	served := map[string]bool{}
	for _, r := range w.api.Routes() {
		served[r[0]+" "+r[1]] = true
	}
	if !maps.Equal(described, served) {
		t.Errorf("described: %v\nserved: %v", slices.Sorted(maps.Keys(described)), slices.Sorted(maps.Keys(served)))
	}
}

// Each schema has exactly the fields of the Go type that is sent.
func TestSchemasHaveTheFieldsOfTheTypes(t *testing.T) {
	w := newWorld(t)
	doc := into[struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any `json:"properties"`
			} `json:"schemas"`
		} `json:"components"`
	}](t, w.do("GET", "/openapi.json", "", ""), 200)
	for _, v := range []any{
		api.OpenTunnelRequest{}, api.Tunnel{}, api.TunnelStatus{}, api.Session{}, api.Closed{}, api.ExtendRequest{}, api.Extended{}, api.TerminalRequest{}, api.TerminalCode{},
		api.Viewer{}, api.ViewerList{}, api.Agent{}, api.SystemStats{}, api.GPUDevice{}, api.PageMeta{}, api.AgentList{}, api.Event{},
		api.AdmitTaskRequest{}, api.TaskLease{}, api.RenewTaskRequest{}, api.CreateCredentialRequest{}, api.CreatedCredential{}, api.Credential{}, api.CredentialList{}, api.Revoked{},
		api.Me{}, api.MyTeam{}, api.CreateLinkRequest{}, api.NamedLink{}, api.NamedLinkList{},
		api.PairStartRequest{}, api.PairStarted{}, api.PairPollRequest{}, api.PairPolled{}, api.PairShowRequest{}, api.PairAsked{}, api.PairConfirmRequest{}, api.PairConfirmed{},
		api.Member{}, api.MemberList{}, api.ChangeMemberRequest{}, api.CreateInviteRequest{}, api.Invite{}, api.CreatedInvite{}, api.InviteList{},
		api.SignIn{}, api.Passkey{}, api.Devices{},
	} {
		typ := reflect.TypeOf(v)
		want := map[string]bool{}
		fields(typ, want)
		got := map[string]bool{}
		for name := range doc.Components.Schemas[typ.Name()].Properties {
			got[name] = true
		}
		if !maps.Equal(got, want) {
			t.Errorf("schema %s has %v, the type has %v", typ.Name(), slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
	}
}

func fields(t reflect.Type, into map[string]bool) {
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			fields(f.Type, into)
		case name != "-":
			into[name] = true
		}
	}
}

// Every route x every kind of caller. A route that is not here fails the test.
func TestWhoMayCallWhat(t *testing.T) {
	w := newWorld(t)
	w.connect(theirs, "secret-box")
	o := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	w.auth.be(api.RoleOwner)
	team := []string{"user", "device", "integration"}
	admitted := map[string][]string{
		"GET /api/v1/agents": team, "GET /api/v1/agents/{agent_id}": team, "GET /api/v1/agents/watch": team,
		"POST /api/v1/agents/{agent_id}/tunnel": team, "GET /api/v1/agents/{agent_id}/tunnel": team, "DELETE /api/v1/agents/{agent_id}/tunnel": team,
		"POST /api/v1/tunnels/{session_id}/extend":                append(slices.Clone(team), "admin"),
		"GET /api/v1/tunnels/{session_id}/access":                 append(slices.Clone(team), "admin"),
		"PUT /api/v1/tunnels/{session_id}/access":                 append(slices.Clone(team), "admin"),
		"PUT /api/v1/tunnels/{session_id}/links/{link_id}/access": append(slices.Clone(team), "admin"),
		"GET /api/v1/tunnels/{session_id}/knocks":                 append(slices.Clone(team), "admin"),
		"POST /api/v1/tunnels/{session_id}/knocks/{knock_id}":     append(slices.Clone(team), "admin"),
		"POST /api/v1/tunnels/{session_id}/terminal":              append(slices.Clone(team), "admin"),
		"GET /api/v1/tunnels/{session_id}/viewers":                append(slices.Clone(team), "admin"),
		"DELETE /api/v1/tunnels/{session_id}/viewers/{viewer_id}": append(slices.Clone(team), "admin"),
		"POST /api/v1/tunnels/{session_id}/links":                 append(slices.Clone(team), "admin"),
		"GET /api/v1/tunnels/{session_id}/links":                  append(slices.Clone(team), "admin"),
		"DELETE /api/v1/tunnels/{session_id}/links/{link_id}":     append(slices.Clone(team), "admin"),
		"POST /api/v1/agents/{agent_id}/tasks":                    append(slices.Clone(team), "agent"),
		"PUT /api/v1/agents/{agent_id}/tasks/{task_id}":           append(slices.Clone(team), "agent"),
		"DELETE /api/v1/agents/{agent_id}/tasks/{task_id}":        append(slices.Clone(team), "agent"),
		"POST /api/v1/credentials":                                {"user", "device"}, "GET /api/v1/credentials": {"user", "device"},
		"DELETE /api/v1/credentials/{credential_id}": {"user", "device"},
		"POST /api/v1/desktop/pair/show":             {"user"}, "POST /api/v1/desktop/pair/confirm": {"user"},
		"POST /api/v1/auth/device/revoke": {"device"},
		"GET /api/v1/openapi.json":        nil, "POST /api/v1/desktop/pair/start": nil, "POST /api/v1/desktop/pair/poll": nil,
		"GET /api/v1/me":      team,
		"GET /api/v1/members": {"user", "device"}, "PATCH /api/v1/members/{user_id}": {"user", "device"}, "DELETE /api/v1/members/{user_id}": {"user", "device"},
		"POST /api/v1/invites": {"user", "device"}, "GET /api/v1/invites": {"user", "device"}, "DELETE /api/v1/invites/{invite_id}": {"user", "device"},
		"GET /api/v1/devices": {"user", "device"}, "DELETE /api/v1/devices/{device_id}": {"user"},
	}
	// A value that is wrong in every route, so that whoever is admitted is told so
	// and nothing happens.
	fill := strings.NewReplacer("{agent_id}", "gpu-1", "{session_id}", string(o.SessionID), "{viewer_id}", "nobody", "{link_id}", "nothing", "{knock_id}", "nothing", "{task_id}", "nothing", "{credential_id}", "none")
	for _, r := range w.api.Routes() {
		method, pattern := r[0], r[1]
		who, known := admitted[method+" "+pattern]
		if !known {
			t.Errorf("%s %s: the test does not say who may call it", method, pattern)
		}
		if who == nil || pattern == "/api/v1/agents/watch" {
			continue
		}
		path := fill.Replace(strings.TrimPrefix(pattern, api.Base))
		for _, secret := range []string{"", "bad", "user", "device", "integration", "agent", "agent-any", "stranger", "admin", "admin-wrong"} {
			token := secret
			switch secret {
			case "admin":
				token = o.AdminToken
			case "admin-wrong":
				token = w.gate.AdminToken(ident.NewSessionID()).Reveal()
			}
			got := w.do(method, path+"?bogus=1", token, `{"bogus":1}`).status
			ok := slices.Contains(who, secret)
			switch {
			case secret == "" || secret == "bad" || strings.HasPrefix(secret, "admin") && !ok:
				if got != 401 {
					t.Errorf("%s %s as %q: %d, want 401", method, path, secret, got)
				}
			case secret == "stranger":
				if want := []int{404, 400, 422}; got != 404 && strings.Contains(pattern, "{") && !regexp.MustCompile("/credentials|/members|/invites|/devices").MatchString(pattern) {
					t.Errorf("%s %s of another team: %d, want one of %v", method, path, got, want)
				}
			case ok && (got == 401 || got == 403):
				t.Errorf("%s %s as %s: %d, should be admitted", method, path, secret, got)
			case !ok && got != 403:
				t.Errorf("%s %s as %s: %d, want 403", method, path, secret, got)
			}
		}
	}
	// What is another team's is answered byte for byte like what does not exist.
	for _, c := range [][3]string{
		{"GET", "/agents/secret-box", "/agents/nothing-there"},
		{"POST", "/agents/secret-box/tunnel", "/agents/nothing-there/tunnel"},
		{"DELETE", "/agents/secret-box/tunnel?session_id=x", "/agents/nothing-there/tunnel?session_id=x"},
		{"POST", "/agents/secret-box/tasks", "/agents/nothing-there/tasks"},
	} {
		a, b := w.do(c[0], c[1], "user", "{bad"), w.do(c[0], c[2], "user", "{bad")
		id := regexp.MustCompile(`"request_id":"[^"]*"`)
		if a.status != 404 || id.ReplaceAllString(string(a.body), "") != id.ReplaceAllString(string(b.body), "") {
			t.Errorf("%s tells another team's from nothing:\n%s\n%s", c[1], a.body, b.body)
		}
	}
	a := w.do("GET", "/tunnels/"+string(o.SessionID)+"/viewers", "stranger", "")
	b := w.do("GET", "/tunnels/"+string(ident.NewSessionID())+"/viewers", "stranger", "")
	if a.code() != "Not Found tunnel_not_found" || a.code() != b.code() {
		t.Errorf("another team's tunnel: %s and %s", a.code(), b.code())
	}
}

func TestRoutesThatAreNotThere(t *testing.T) {
	w := newWorld(t)
	w.want(w.do("GET", "/nothing", "", ""), "Unauthorized unauthenticated")
	w.want(w.do("GET", "/nothing", "user", ""), "Not Found not_found")
	w.want(w.do("GET", "/agents/", "user", ""), "Not Found not_found")
	w.want(w.do("GET", "//agents", "user", ""), "Not Found not_found")
	r := w.do("PATCH", "/agents/gpu-1/tunnel", "user", "")
	w.want(r, "Method Not Allowed method_not_allowed")
	if got := r.header.Get("Allow"); got != "GET, POST, DELETE" {
		t.Errorf("Allow is %q", got)
	}
	if r := w.do("GET", "/agents", "user", "", "X-Request-ID", "my-id"); r.header.Get("X-Request-ID") != "my-id" {
		t.Errorf("the caller's request id became %q", r.header.Get("X-Request-ID"))
	}
	if r := w.do("GET", "/agents", "user", "", "Origin", "https://evil.example"); r.header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("another origin is let in")
	}
}

func TestBodiesAreReadStrictly(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ body, want, names string }{
		{`{"target_port":1,"colour":"red"}`, "Bad Request unknown_field", `colour`},
		{`{"Target_Port":1}`, "Bad Request unknown_field", "Target_Port"},
		{`{"target_port":"x"}`, "Bad Request invalid_field", "target_port"},
		{`{"target_port":1.5}`, "Bad Request invalid_field", "target_port"},
		{`{"idle_timeout":"soon"}`, "Bad Request invalid_field", "idle_timeout"},
		{`{"label":7}`, "Bad Request invalid_field", "label"},
		{`{"allow_origins":"x"}`, "Bad Request invalid_field", "allow_origins"},
		{`{"label":"a","label":"b"}`, "Bad Request invalid_body", "label"},
		{`{} {}`, "Bad Request invalid_body", "follows"},
		{`{"label":"a"`, "Bad Request invalid_body", "early"},
		{`[]`, "Bad Request invalid_body", "object"},
		{`null`, "Bad Request invalid_body", "object"},
		{`{"label":"` + strings.Repeat("a", 64<<10) + `"}`, "Request Entity Too Large body_too_large", "65536"},
		{`{"target_port":0}`, "Unprocessable Entity out_of_range", "target_port"},
		{`{"target_port":65536}`, "Unprocessable Entity out_of_range", "target_port"},
		{`{"tunnel_protocol":"udp"}`, "Unprocessable Entity out_of_range", "tunnel_protocol"},
		{`{"when_busy":"never"}`, "Unprocessable Entity out_of_range", "when_busy"},
		{`{"host_header":"x"}`, "Unprocessable Entity out_of_range", "host_header"},
		{`{"expires_in":"-1h"}`, "Unprocessable Entity out_of_range", "expires_in"},
		{`{"expires_in":0}`, "Unprocessable Entity out_of_range", "expires_in"},
		{`{"label":"` + strings.Repeat("ä", 65) + `"}`, "Unprocessable Entity out_of_range", "label"},
		{`{"label":"a\u001b[2J"}`, "Unprocessable Entity out_of_range", "label"},
		{`{"allow_origins":["https://a.example/path"]}`, "Unprocessable Entity out_of_range", "allow_origins"},
	} {
		r := w.do("POST", "/agents/gpu-1/tunnel", "user", c.body)
		w.want(r, c.want)
		if !strings.Contains(string(r.body), c.names) {
			t.Errorf("%.60s: the answer does not name %s: %s", c.body, c.names, r.body)
		}
	}
	w.want(w.do("POST", "/agents/gpu-1/tunnel", "user", "{}", "Content-Type", "text/plain"), "Unsupported Media Type unsupported_media_type")
	w.want(w.do("PUT", "/agents/gpu-1/tasks/t", "user", ""), "Bad Request invalid_body")
	w.want(w.do("POST", "/credentials", "user", ""), "Bad Request invalid_body")
	if n := len(w.store.AgentTunnels(ident.AgentKey{Team: ours, Agent: "gpu-1"})); n != 0 {
		t.Errorf("%d tunnels were opened by refused requests", n)
	}
	for _, body := range []string{"", "{}", " \n", `{"idle_timeout":90,"expires_in":"2h","label":"ä…日本"}`, `{"target_port":null}`} {
		if r := w.do("POST", "/agents/gpu-1/tunnel", "user", body); r.status != 201 {
			t.Errorf("%q: %d %s", body, r.status, r.body)
		}
	}
}

func TestTunnelFromOpenToClosed(t *testing.T) {
	w := newWorld(t)
	status := into[api.TunnelStatus](t, w.do("GET", "/agents/gpu-1/tunnel", "user", ""), 200)
	if status.IsActive || status.SessionID != "" || status.TunnelURL != "" || len(status.Sessions) != 0 {
		t.Errorf("without a tunnel: %+v", status)
	}
	o := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", `{"label":"mine"}`), 201)
	if o.TargetPort != 8188 || o.TunnelProtocol != "http" || o.IdleTimeout.D() != 30*time.Minute || o.App != "comfyui" || o.HostHeader != "public" {
		t.Errorf("the defaults are %+v", o)
	}
	if left := time.Until(o.ExpiresAt); left > 24*time.Hour || left < 23*time.Hour {
		t.Errorf("ends in %v, want 24h", left)
	}
	w.prober.mu.Lock()
	if len(w.prober.asked) != 1 || w.prober.asked[0].PublicHost != string(o.SessionID)+".t.example.com" || w.prober.asked[0].Port != 8188 {
		t.Errorf("the agent was asked %+v", w.prober.asked)
	}
	w.prober.mu.Unlock()
	p := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "integration", `{"target_port":22,"tunnel_protocol":"tcp"}`), 201)
	status = into[api.TunnelStatus](t, w.do("GET", "/agents/gpu-1/tunnel", "device", ""), 200)
	if !status.IsActive || len(status.Sessions) != 2 || status.SessionID != status.Sessions[0].SessionID {
		t.Fatalf("with two tunnels: %+v", status)
	}
	i := slices.IndexFunc(status.Sessions, func(s api.Session) bool { return s.SessionID == o.SessionID })
	if s := status.Sessions[i]; s.Label != "mine" || s.OpenedBy != "user:alice" || s.OpenedByName != "" || s.BytesIn != 5 || !strings.HasSuffix(s.ClosesBecause, "; in use by Ada, Bob, Cleo and others") {
		t.Errorf("the session is shown as %+v", s)
	}
	w.store.SetUser(store.UserRecord{ID: "alice", Name: "Alice Cooper"}) // since then she has signed in here
	d := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "device", `{"target_port":8189}`), 201)
	for _, s := range into[api.TunnelStatus](t, w.do("GET", "/agents/gpu-1/tunnel", "device", ""), 200).Sessions {
		if want := map[ident.SessionID]string{o.SessionID: "Alice Cooper", d.SessionID: "Alice Cooper (laptop)"}[s.SessionID]; s.OpenedByName != want {
			t.Errorf("%s reads as %q, want %q", s.OpenedBy, s.OpenedByName, want)
		}
	}
	into[api.Closed](t, w.do("DELETE", "/agents/gpu-1/tunnel?session_id="+string(d.SessionID), "device", ""), 200)
	agent := into[api.Agent](t, w.do("GET", "/agents/gpu-1", "user", ""), 200)
	if agent.AgentStatus != api.StatusTunnel || agent.Tunnels != 2 {
		t.Errorf("the agent is %s with %d tunnels", agent.AgentStatus, agent.Tunnels)
	}
	w.want(w.do("POST", "/agents/gpu-1/tasks", "agent", ""), "Conflict agent_in_tunnel")

	// The holder of the admin token may extend, look and kick; for this tunnel only.
	tunnel := "/tunnels/" + string(o.SessionID)
	e := into[api.Extended](t, w.do("POST", tunnel+"/extend", o.AdminToken, `{"expires_in":"48h"}`), 200)
	if left := time.Until(e.ExpiresAt); left < 47*time.Hour {
		t.Errorf("extended to %v", left)
	}
	for body, want := range map[string]time.Duration{"": 5 * time.Minute, `{"expires_in":"1h","read_only":true}`: time.Hour} {
		c := into[api.TerminalCode](t, w.do("POST", tunnel+"/terminal", o.AdminToken, body), 201)
		if left := time.Until(c.CodeExpiresAt); left > want || left < want-time.Minute || !strings.HasSuffix(c.TerminalURL, fmt.Sprint(body != "")) {
			t.Errorf("a terminal of %q: %+v", body, c)
		}
	}
	w.want(w.do("POST", tunnel+"/terminal", "user", `{"expires_in":"25h"}`), "Unprocessable Entity out_of_range")
	if v := into[api.ViewerList](t, w.do("GET", tunnel+"/viewers", o.AdminToken, ""), 200); len(v.Viewers) != 1 {
		t.Errorf("%d viewers", len(v.Viewers))
	}
	if r := w.do("DELETE", tunnel+"/viewers/"+string(viewer), o.AdminToken, ""); r.status != 204 || len(r.body) != 0 {
		t.Errorf("kick: %d %s", r.status, r.body)
	}
	w.want(w.do("DELETE", tunnel+"/viewers/nobody", "user", ""), "Not Found viewer_not_found")
	w.want(w.do("GET", tunnel+"/viewers", p.AdminToken, ""), "Unauthorized unauthenticated")
	w.want(w.do("DELETE", "/agents/gpu-1/tunnel", o.AdminToken, ""), "Unauthorized unauthenticated")

	// Whoever opened it and was removed since, if the tunnel was kept, has no part of it.
	rec, _ := w.store.Tunnel(o.SessionID)
	gone := store.MemberRecord{Team: rec.Team, User: rec.User, Role: api.RoleMember, RemovedAt: time.Now(), RemovedBy: store.SourceIssuer, KeepTunnels: true}
	w.store.SetMember(gone)
	w.want(w.do("POST", tunnel+"/extend", o.AdminToken, ""), "Unauthorized unauthenticated")
	gone.RemovedAt = rec.OpenedAt.Add(-time.Hour) // and named again since
	w.store.SetMember(gone)
	into[api.Extended](t, w.do("POST", tunnel+"/extend", o.AdminToken, ""), 200)

	one := "/agents/gpu-1/tunnel?session_id=" + string(o.SessionID)
	for range 2 { // closing again is no error
		if c := into[api.Closed](t, w.do("DELETE", one, "user", ""), 200); !slices.Equal(c.Closed, []ident.SessionID{o.SessionID}) {
			t.Errorf("closed %v", c.Closed)
		}
	}
	for _, who := range []string{o.AdminToken, "user", "integration"} { // what it was theirs to use, they may know the end of
		for _, call := range [][3]string{{"GET", "/viewers"}, {"POST", "/extend", `{"expires_in":"48h"}`}, {"POST", "/links", `{"name":"x"}`}} {
			r := w.do(call[0], tunnel+call[1], who, call[2])
			w.want(r, "Not Found tunnel_not_found")
			if p := into[api.Problem](t, r, 404); p.Detail != "the tunnel was closed" {
				t.Errorf("%s %s of a closed tunnel is told %q", who, call[1], p.Detail)
			}
		}
	}
	if p := into[api.Problem](t, w.do("GET", tunnel+"/viewers", "stranger", ""), 404); p.Detail != "there is no such tunnel" {
		t.Errorf("another team is told %q", p.Detail)
	}
	w.want(w.do("DELETE", "/agents/gpu-1/tunnel?session_id="+string(ident.NewSessionID()), "user", ""), "Not Found tunnel_not_found")
	w.want(w.do("DELETE", "/agents/gpu-1/tunnel?session=x", "user", ""), "Bad Request unknown_parameter")
	if c := into[api.Closed](t, w.do("DELETE", "/agents/gpu-1/tunnel", "user", ""), 200); !slices.Equal(c.Closed, []ident.SessionID{p.SessionID}) {
		t.Errorf("closed %v", c.Closed)
	}
	if c := into[api.Closed](t, w.do("DELETE", "/agents/gpu-1/tunnel", "user", ""), 200); len(c.Closed) != 0 {
		t.Errorf("closed %v of none", c.Closed)
	}
	if a := into[api.Agent](t, w.do("GET", "/agents/gpu-1", "user", ""), 200); a.AgentStatus != api.StatusIdle {
		t.Errorf("after the last close the agent is %s", a.AgentStatus)
	}
	for _, want := range []audit.Event{audit.TunnelOpened, audit.TunnelExtended, audit.ViewersListed, audit.ViewerKicked, audit.TunnelClosing, audit.TunnelClosed} {
		if !slices.Contains(w.audit.Events(), want) {
			t.Errorf("the audit has no %s", want)
		}
	}
	for _, r := range w.audit.Records() {
		if r.Event == audit.TunnelOpened && (r.RequestID == "" || r.RemoteAddr == "") {
			t.Errorf("the audit does not say by which request: %+v", r)
		}
	}
}

func TestIdempotencyKey(t *testing.T) {
	w := newWorld(t)
	first := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", `{"label":"a"}`, "Idempotency-Key", "k"), 201)
	again := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ` { "label" : "a" } `, "Idempotency-Key", "k"), 201)
	if again.SessionID != first.SessionID || again.AdminToken != first.AdminToken || again.TunnelURL != first.TunnelURL {
		t.Errorf("the repetition got %s, want %s", again.SessionID, first.SessionID)
	}
	w.want(w.do("POST", "/agents/gpu-1/tunnel", "user", `{"label":"b"}`, "Idempotency-Key", "k"), "Unprocessable Entity idempotency_mismatch")
	w.want(w.do("POST", "/agents/gpu-1/tunnel", "user", "", "Idempotency-Key", strings.Repeat("k", 256)), "Unprocessable Entity out_of_range")
	other := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "device", `{"label":"a"}`, "Idempotency-Key", "k"), 201)
	if other.SessionID == first.SessionID {
		t.Error("another caller's key opened nothing of its own")
	}
}

func TestPortPolicyOfTheAgent(t *testing.T) {
	w := newWorld(t)
	w.prober.set(wire.Probed{Allowed: false}, 0)
	r := w.do("POST", "/agents/gpu-1/tunnel", "user", "")
	w.want(r, "Forbidden port_not_allowed")
	if slices.Contains(w.audit.Events(), audit.TunnelOpened) {
		t.Error("a tunnel to a port that is not allowed was opened, if only for a moment")
	}
	// An answer that comes late closes the tunnel.
	w.prober.set(wire.Probed{Allowed: false}, 300*time.Millisecond)
	o := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	eventually(t, "the tunnel closes", func() bool {
		reason, ok := w.local.WasCut(o.SessionID)
		return ok && reason == store.ReasonPort
	})
	w.prober.set(wire.Probed{Allowed: true, Listening: false}, 300*time.Millisecond)
	o = into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	eventually(t, "the warning of the late probe is shown", func() bool {
		s := into[api.TunnelStatus](t, w.do("GET", "/agents/gpu-1/tunnel", "user", ""), 200)
		return len(s.Sessions) == 1 && len(s.Sessions[0].Warnings) == 1
	})
	w.prober.set(wire.Probed{Allowed: true}, time.Hour) // never answers: must not be waited for at the end
	into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testkit.Eventually(t, what, ok)
}

func TestStoreAwayIs503(t *testing.T) {
	w := newWorld(t)
	w.store.SetDown(true)
	w.want(w.do("POST", "/agents/gpu-1/tunnel", "user", ""), "Service Unavailable store_unavailable")
	w.want(w.do("POST", "/agents/gpu-1/tasks", "user", ""), "Service Unavailable store_unavailable")
	w.want(w.do("GET", "/agents/nobody", "user", ""), "Service Unavailable store_unavailable")
	if r := w.do("GET", "/agents/gpu-1", "user", ""); r.status != http.StatusOK {
		t.Errorf("what is known is not shown: %d", r.status)
	}
	// A tunnel that this relay takes for open may have been closed, and its token with it.
	w.store.SetDown(false)
	tun := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	viewers := "/tunnels/" + string(tun.SessionID) + "/viewers"
	for _, stale := range []bool{true, false} {
		w.store.SetStale(stale)
		if r := w.do("GET", viewers, tun.AdminToken, ""); (r.status == http.StatusServiceUnavailable) != stale {
			t.Errorf("an admin token, index stale: %t: %d", stale, r.status)
		}
	}
}

func TestCredentials(t *testing.T) {
	w := newWorld(t)
	c := into[api.CreatedCredential](t, w.do("POST", "/credentials", "user", `{"kind":"integration","name":"ci","expires_in":"90d"}`), 201)
	if c.Secret == "" || !strings.HasPrefix(c.Secret, c.Prefix) {
		t.Errorf("created %+v", c)
	}
	r := w.do("GET", "/credentials", "device", "")
	if l := into[api.CredentialList](t, r, 200); len(l.Credentials) != 1 || strings.Contains(string(r.body), c.Secret) {
		t.Errorf("listed as %s", r.body)
	}
	w.want(w.do("DELETE", "/credentials/"+string(c.ID), "stranger", ""), "Not Found credential_not_found")
	if r := w.do("DELETE", "/credentials/"+string(c.ID), "user", ""); r.status != 204 {
		t.Errorf("revoke: %d %s", r.status, r.body)
	}
	for query, want := range map[string]api.Revoked{"?keep_tunnels=false": {Credentials: 2, Tunnels: 3, Links: 1}, "?keep_tunnels=true": {Credentials: 2}} {
		if got := into[api.Revoked](t, w.do("DELETE", "/credentials/"+string(c.ID)+query, "user", ""), 200); got != want {
			t.Errorf("%s: %+v, want %+v", query, got, want)
		}
	}
	w.want(w.do("DELETE", "/credentials/"+string(c.ID)+"?keep_tunnels=maybe", "user", ""), "Unprocessable Entity out_of_range")
	if !slices.Contains(w.audit.Events(), audit.CredentialCreated) {
		t.Error("the audit has no credential_created")
	}
}
