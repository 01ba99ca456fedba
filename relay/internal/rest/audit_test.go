package rest_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Who is refused something is in the audit, once, with who it was and what for; what
// is no refusal is not there, and no path is.
func TestRefusalsAreInTheAudit(t *testing.T) {
	w := newWorld(t)
	o := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	secret := ident.NewSecret(ident.PrefixIntegration).Reveal()
	viewer := w.as("user:viewer", creds.Principal{Kind: creds.KindUser, User: "v", Role: api.RoleViewer})
	narrow := w.as("sk:narrow", creds.Principal{Kind: creds.KindIntegration, Role: api.RoleMember, Credential: "cred_9", Scopes: []api.Scope{api.ScopeTunnels}, Ports: "9"})
	for _, c := range []struct {
		name, method, path, as, body string
		status                       int
		want                         audit.Record
	}{
		{"nobody", "GET", "/agents/gpu-1", "nobody", "", 401,
			audit.Record{Event: audit.AuthRefused, Detail: "api: unauthenticated, GET /agents/{agent_id}"}},
		{"nobody, nowhere", "GET", "/" + secret, "nobody", "", 401, audit.Record{Event: audit.AuthRefused, Detail: "api: unauthenticated"}},
		{"the wrong kind", "GET", "/credentials", "integration", "", 403,
			audit.Record{Event: audit.APIRefused, Actor: "sk:ci", Team: ours, Detail: "403 forbidden, GET /credentials"}},
		{"too low a role, before the gate", "POST", "/agents/gpu-1/tunnel", viewer, "", 403,
			audit.Record{Event: audit.APIRefused, Actor: "user:viewer", Team: ours, Agent: "gpu-1", Detail: "403 role_required, POST /agents/{agent_id}/tunnel"}},
		{"another scope, before the gate", "POST", "/agents/gpu-1/tasks", narrow, "", 403,
			audit.Record{Event: audit.APIRefused, Actor: "sk:narrow", Team: ours, Agent: "gpu-1", Detail: "403 scope_required, POST /agents/{agent_id}/tasks"}},
		{"another port, before the gate", "POST", "/agents/gpu-1/tunnel", narrow, "", 403,
			audit.Record{Event: audit.APIRefused, Actor: "sk:narrow", Team: ours, Agent: "gpu-1", Detail: "403 scope_required, POST /agents/{agent_id}/tunnel"}},
		{"another agent's tasks", "POST", "/agents/gpu-2/tasks", "agent", "", 403,
			audit.Record{Event: audit.APIRefused, Actor: "ak:gpu-1", Team: ours, Agent: "gpu-2", Detail: "403 forbidden, POST /agents/{agent_id}/tasks"}},
		{"another team's tunnel", "GET", "/tunnels/" + string(o.SessionID) + "/viewers", "stranger", "", 404,
			audit.Record{Event: audit.APIRefused, Actor: "user:mallory", Team: theirs, Session: o.SessionID, Detail: "404 tunnel_not_found, GET /tunnels/{session_id}/viewers"}},
		{"another team's agent", "POST", "/agents/gpu-1/tunnel", "stranger", "", 404,
			audit.Record{Event: audit.APIRefused, Actor: "user:mallory", Team: theirs, Agent: "gpu-1", Detail: "404 agent_not_found, POST /agents/{agent_id}/tunnel"}},
		{"a secret in the wrong place", "DELETE", "/credentials/" + secret, "user", "", 404,
			audit.Record{Event: audit.APIRefused, Actor: "user:alice", Team: ours, Detail: "404 credential_not_found, DELETE /credentials/{credential_id}"}},
		{"a lease that is over", "PUT", "/agents/gpu-1/tasks/t-1", "integration", `{"lease_token":"lt-x"}`, 410,
			audit.Record{Event: audit.APIRefused, Actor: "sk:ci", Team: ours, Agent: "gpu-1", Detail: "410 lease_expired, PUT /agents/{agent_id}/tasks/{task_id}"}},
		{"by the gate", "POST", "/agents/gpu-1/tasks", "integration", "", 409,
			audit.Record{Event: audit.TaskRefused, Actor: "sk:ci", Team: ours, Agent: "gpu-1", Detail: "agent_in_tunnel"}},
		{"a mistake", "POST", "/agents/gpu-1/tunnel", "user", `{"target_port":0}`, 422, audit.Record{}},
		{"nowhere", "GET", "/nothing", "user", "", 404, audit.Record{}},
		{"no refusal", "GET", "/agents", "user", "", 200, audit.Record{}},
	} {
		before := len(w.audit.Records())
		r := w.do(c.method, c.path, c.as, c.body)
		if r.status != c.status {
			t.Errorf("%s: status %d, want %d: %s", c.name, r.status, c.status, r.body)
		}
		got := w.audit.Records()[before:]
		if c.want.Event == "" {
			if len(got) > 0 {
				t.Errorf("%s is in the audit as %+v", c.name, got)
			}
			continue
		}
		if len(got) != 1 {
			t.Errorf("%s is in the audit %d times, want once", c.name, len(got))
			continue
		}
		rec := got[0]
		if string(rec.RequestID) != r.header.Get(api.HeaderRequestID) || rec.RemoteAddr == "" {
			t.Errorf("%s: the record is of request %q from %q, the caller was told %q", c.name, rec.RequestID, rec.RemoteAddr, r.header.Get(api.HeaderRequestID))
		}
		rec.Time, rec.RequestID, rec.RemoteAddr = c.want.Time, "", ""
		if rec != c.want {
			t.Errorf("%s is in the audit as\n%+v, want\n%+v", c.name, rec, c.want)
		}
		if strings.Contains(rec.Detail, secret) {
			t.Errorf("%s: the audit has a secret", c.name)
		}
	}
	if w.do("GET", "/agents", "nobody", "").status != http.StatusUnauthorized {
		t.Error("nobody is still nobody")
	}
}
