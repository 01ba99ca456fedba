package api_test

import (
	"encoding/json"
	"errors"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
)

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"30m": 30 * time.Minute, "90d": 90 * 24 * time.Hour, "0.5d": 12 * time.Hour, "90": 90 * time.Second, "1.5": 1500 * time.Millisecond,
		"0": 0, "0s": 0, "1h2m3s": time.Hour + 2*time.Minute + 3*time.Second, "-5s": -5 * time.Second, "1e3": 1000 * time.Second,
	} {
		if got, err := api.ParseDuration(s); err != nil || got.D() != want {
			t.Errorf("%q should be %s; got %s, %v", s, want, got, err)
		}
		var d api.Duration
		if err := d.UnmarshalText([]byte(s)); err != nil || d.D() != want {
			t.Errorf("text %q should be %s; got %s, %v", s, want, d, err)
		}
	}
	for _, s := range []string{"", "d", "soon", "30 m", "1d2h", "NaN", "Inf", "-inf", "1e300", "2000000000", "99999999d", "9999999999h"} {
		if got, err := api.ParseDuration(s); !errors.Is(err, api.ErrDuration) {
			t.Errorf("%q is no duration; got %s, %v", s, got, err)
		}
	}
}

func TestDurationJSON(t *testing.T) {
	for s, want := range map[string]time.Duration{`"30m"`: 30 * time.Minute, `"90d"`: 2160 * time.Hour, `90`: 90 * time.Second, `1.5`: 1500 * time.Millisecond, `"60"`: time.Minute, `null`: 7} {
		d := api.Duration(7)
		if err := json.Unmarshal([]byte(s), &d); err != nil || d.D() != want {
			t.Errorf("%s should be %s; got %s, %v", s, want, d, err)
		}
	}
	for _, s := range []string{`"soon"`, `true`, `[]`, `{}`, `1e400`, `""`, `1e30`} {
		var d api.Duration
		if err := json.Unmarshal([]byte(s), &d); !errors.Is(err, api.ErrDuration) {
			t.Errorf("%s is no duration; got %s, %v", s, d, err)
		}
	}
	if b, err := json.Marshal(api.Duration(30 * time.Minute)); err != nil || string(b) != `"30m0s"` {
		t.Errorf("a duration should be written as text; got %s, %v", b, err)
	}
}

func TestProblem(t *testing.T) {
	cause := errors.New("etcd says no")
	p := api.Problemf(api.CodeStoreUnavailable, "the store of %d has no quorum", 3).WithRetry(1200 * time.Millisecond).WithCause(cause)
	if p.Error() != "store_unavailable: the store of 3 has no quorum" || !errors.Is(p, cause) {
		t.Errorf("a problem is an error with its cause; got %v", p)
	}
	if got := api.NewProblem(api.CodeNotFound, "").Error(); got != "not_found" {
		t.Errorf("without detail the code is enough; got %q", got)
	}
	w := httptest.NewRecorder()
	p.Write(w, "req-1")
	for name, want := range map[string]string{"Content-Type": "application/problem+json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Retry-After": "2"} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s should be %q; got %q", name, want, got)
		}
	}
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"type": "about:blank", "title": "Service Unavailable", "status": 503.0, "code": "store_unavailable",
		"detail": "the store of 3 has no quorum", "error_message": "the store of 3 has no quorum", "hop": "relay", "request_id": "req-1", "retry_after": 2.0,
	}
	if w.Code != 503 || !reflect.DeepEqual(got, want) {
		t.Errorf("status %d\n got %v\nwant %v", w.Code, got, want)
	}
	if strings.Contains(w.Body.String(), "etcd") {
		t.Error("the cause is for the log, never for the user")
	}
	if p.RequestID != "" || api.NewProblem(api.CodeInternal, "").WithRetry(time.Second) == nil {
		t.Error("writing should not change the problem")
	}
	bare := &api.Problem{Status: 400, Code: "x"}
	w = httptest.NewRecorder()
	bare.WithRetry(time.Millisecond).Write(w, "")
	for p, want := range map[*api.Problem]string{
		api.NewProblem(api.CodeNotFound, ""): `"error_message":"Not Found"`, {Status: 400, Code: "x"}: `"error_message":"x"`,
		api.NewProblem(api.CodeNotFound, "no such door"): `"error_message":"no such door"`,
	} {
		b, err := json.Marshal(p)
		if err != nil || !strings.Contains(string(b), want) || strings.Contains(string(b), "retry_after") {
			t.Errorf("an error always has a text for people, %s; got %s, %v", want, b, err)
		}
	}
	if w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), `"type":"about:blank"`) {
		t.Errorf("a short wait is a second, and a type is never empty; got %q, %s", w.Header().Get("Retry-After"), w.Body.String())
	}
}

// TestContract fixes the names of the fields that every client relies on.
func TestContract(t *testing.T) {
	for name, c := range map[string]struct {
		value any
		want  []string
		not   []string
	}{
		"open":   {api.Tunnel{}, []string{"session_id", "tunnel_url", "admin_token", "tunnel_protocol", "target_port", "expires_at", "idle_timeout", "running_tasks", "alternate_urls", "warnings"}, nil},
		"status": {api.TunnelStatus{}, []string{"is_active", "session_id", "tunnel_url", "sessions"}, nil},
		"list":   {api.AgentList{}, []string{"agent_list", "page_meta"}, nil},
		"page":   {api.PageMeta{}, []string{"current_page", "per_page", "total_count"}, nil},
		"agent": {api.Agent{}, []string{"agent_id", "agent_status", "running_count", "running_tasks", "tasks_completed", "tunnels"},
			[]string{"agent_labels", "last_heartbeat", "tool", "comfyui_version", "gpu_capacity", "sync_phase", "sync_percent", "system_stats", "current_task_id"}},
		"lease":  {api.TaskLease{}, []string{"task_id", "lease_token", "fencing_token", "expires_at"}, nil},
		"closed": {api.Closed{}, []string{"closed"}, nil},
		"secret": {api.CreatedCredential{}, []string{"id", "kind", "name", "prefix", "created_at", "secret"}, []string{"expires_at", "last_used_at", "revoked"}},
		"listed": {api.Credential{}, []string{"id", "kind", "name", "prefix", "created_at"}, []string{"secret"}},
	} {
		b, err := json.Marshal(c.value)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		for _, field := range c.want {
			if _, ok := got[field]; !ok {
				t.Errorf("%s: the field %s is part of the contract; got %s", name, field, b)
			}
		}
		for _, field := range c.not {
			if _, ok := got[field]; ok {
				t.Errorf("%s: %s is not known and should be absent; got %s", name, field, b)
			}
		}
	}
}

func TestOpenTunnelRequest(t *testing.T) {
	var r api.OpenTunnelRequest
	const body = `{"target_port":22,"tunnel_protocol":"tcp","idle_timeout":"5m","expires_in":3600,"when_busy":"wait","wait_timeout":1,"label":"x","host_header":"local","allow_origins":["https://a"]}`
	dec := json.NewDecoder(strings.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if *r.TargetPort != 22 || r.TunnelProtocol != api.ProtocolTCP || r.IdleTimeout.D() != 5*time.Minute || r.ExpiresIn.D() != time.Hour ||
		r.WhenBusy != api.BusyWait || r.WaitTimeout.D() != time.Second || r.HostHeader != api.HostLocal || len(r.AllowOrigins) != 1 {
		t.Errorf("the request was read wrongly: %+v", r)
	}
	if b, err := json.Marshal(api.OpenTunnelRequest{}); err != nil || string(b) != "{}" {
		t.Errorf("all defaults are an empty body; got %s, %v", b, err)
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"", "30m", "90d", "1.5", "-1", "1e9", "0x1p-2", "Inf", "1d2h", "null", `"30m"`, "9223372036s", "\"\\u0033\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := api.ParseDuration(s); err == nil {
			if back, err := api.ParseDuration(d.String()); err != nil || back != d {
				t.Errorf("%q is %s, which reads as %s, %v", s, d, back, err)
			}
		} else if !errors.Is(err, api.ErrDuration) {
			t.Errorf("an error about %q should say so; got %v", s, err)
		}
		var d api.Duration
		if json.Unmarshal([]byte(s), &d) != nil {
			return
		}
		b, err := json.Marshal(d)
		var back api.Duration
		if err != nil || json.Unmarshal(b, &back) != nil || back != d {
			t.Errorf("JSON %q is %s, which is written as %s, %v", s, d, b, err)
		}
	})
}
