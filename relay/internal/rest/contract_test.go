package rest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// The documents of the published contract as a client of it has them: written from its
// documentation, and not from shared/api, which may only change as far as these allow.
// Each field must be in the answer, unless it is marked with `may:"be absent"`.
type (
	theOpened struct {
		SessionID      string    `json:"session_id"`
		TunnelURL      string    `json:"tunnel_url"`
		AdminToken     string    `json:"admin_token"`
		TunnelProtocol string    `json:"tunnel_protocol"`
		TargetPort     int       `json:"target_port"`
		ExpiresAt      time.Time `json:"expires_at"`
		IdleTimeout    string    `json:"idle_timeout"`
		RunningTasks   int       `json:"running_tasks"`
		AlternateURLs  []string  `json:"alternate_urls"`
		Warnings       []string  `json:"warnings"`
	}
	theTunnel struct {
		IsActive  bool         `json:"is_active"`
		SessionID string       `json:"session_id"`
		TunnelURL string       `json:"tunnel_url"`
		Sessions  []theSession `json:"sessions"`
	}
	theSession struct {
		SessionID      string    `json:"session_id"`
		TunnelURL      string    `json:"tunnel_url"`
		TargetPort     int       `json:"target_port"`
		TunnelProtocol string    `json:"tunnel_protocol"`
		Label          string    `json:"label" may:"be absent"`
		OpenedBy       string    `json:"opened_by"`
		OpenedAt       time.Time `json:"opened_at"`
		ExpiresAt      time.Time `json:"expires_at"`
		LastUsedAt     time.Time `json:"last_used_at"`
		Viewers        int       `json:"viewers"`
		BytesIn        int64     `json:"bytes_in"`
		BytesOut       int64     `json:"bytes_out"`
		ClosesBecause  string    `json:"closes_because"`
	}
	thePairing struct {
		DeviceCode      string `json:"device_code"`
		UserCode        string `json:"user_code"`
		VerificationURI string `json:"verification_uri"`
		ExpiresIn       int    `json:"expires_in"`
		Interval        int    `json:"interval"`
	}
	thePoll struct {
		Status   string `json:"status"`
		RawKey   string `json:"raw_key" may:"be absent"`
		AgentKey string `json:"agent_key" may:"be absent"`
	}
	theClosed struct {
		Closed []string `json:"closed"`
	}
	theExtended struct {
		SessionID string    `json:"session_id"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	theViewers struct {
		Viewers []struct {
			ViewerID string `json:"viewer_id"`
		} `json:"viewers"`
	}
	theAgents struct {
		AgentList []theAgent `json:"agent_list"`
		PageMeta  struct {
			CurrentPage int `json:"current_page"`
			PerPage     int `json:"per_page"`
			TotalCount  int `json:"total_count"`
		} `json:"page_meta"`
	}
	theAgent struct { // of which everything is known
		AgentID        string    `json:"agent_id"`
		AgentStatus    string    `json:"agent_status"`
		AgentLabels    []string  `json:"agent_labels"`
		LastHeartbeat  time.Time `json:"last_heartbeat"`
		AgentVersion   string    `json:"agent_version"`
		PlatformArch   string    `json:"platform_arch"`
		ConnectedAt    time.Time `json:"connected_at"`
		RunningCount   int       `json:"running_count"`
		RunningTasks   []string  `json:"running_tasks"`
		CurrentTaskID  string    `json:"current_task_id" may:"be absent"`
		TasksCompleted int       `json:"tasks_completed"`
		Tool           string    `json:"tool"`
		ToolVersion    string    `json:"tool_version"`
		ComfyUIVersion string    `json:"comfyui_version"`
		GPUCapacity    int       `json:"gpu_capacity"`
		SyncPhase      string    `json:"sync_phase" may:"be absent"`
		SyncDetail     string    `json:"sync_detail" may:"be absent"`
		SyncPercent    float64   `json:"sync_percent" may:"be absent"`
		SystemStats    struct {
			ComfyUIVersion string `json:"comfyui_version"`
			PyTorchVersion string `json:"pytorch_version"`
			OSType         string `json:"os_type"`
			GPUDevices     []struct {
				DeviceName string `json:"device_name"`
				DeviceType string `json:"device_type"`
				VRAMTotal  int64  `json:"vram_total"`
				VRAMFree   int64  `json:"vram_free"`
			} `json:"gpu_devices"`
		} `json:"system_stats"`
		Tunnels int `json:"tunnels"`
	}
	theLease struct {
		TaskID       string    `json:"task_id"`
		LeaseToken   string    `json:"lease_token"`
		FencingToken int64     `json:"fencing_token"`
		ExpiresAt    time.Time `json:"expires_at"`
	}
	theCredential struct {
		ID         string    `json:"id"`
		Kind       string    `json:"kind"`
		Name       string    `json:"name"`
		Prefix     string    `json:"prefix"`
		CreatedAt  time.Time `json:"created_at"`
		ExpiresAt  time.Time `json:"expires_at" may:"be absent"`
		LastUsedAt time.Time `json:"last_used_at" may:"be absent"`
	}
	theSecret struct {
		theCredential
		Secret string `json:"secret"`
	}
	theCredentials struct {
		Credentials []theCredential `json:"credentials"`
	}
	theError struct {
		Type         string `json:"type"`
		Title        string `json:"title"`
		Status       int    `json:"status"`
		Detail       string `json:"detail"`
		ErrorMessage string `json:"error_message"`
		Code         string `json:"code"`
		Hop          string `json:"hop" may:"be absent"`
		RequestID    string `json:"request_id"`
		RetryAfter   int    `json:"retry_after" may:"be absent"`
	}
)

// read decodes an answer of the status wanted, and fails the test when a field that is
// documented as present is not there.
func read[T any](t *testing.T, r reply, status int) T {
	t.Helper()
	out := into[T](t, r, status)
	var doc any
	if err := json.Unmarshal(r.body, &doc); err != nil {
		t.Fatal(err)
	}
	for _, field := range missing(reflect.TypeFor[T](), doc, "") {
		t.Errorf("the contract has the field %s, the answer has not: %s", field, r.body)
	}
	return out
}

// missing lists what a type has and a document has not.
func missing(want reflect.Type, doc any, at string) []string {
	switch {
	case want == reflect.TypeFor[time.Time]() || want.Kind() != reflect.Struct && want.Kind() != reflect.Slice:
		if doc == nil {
			return []string{at}
		}
		return nil
	case want.Kind() == reflect.Slice:
		items, ok := doc.([]any)
		if !ok {
			return []string{at}
		}
		var out []string
		for i, item := range items {
			out = append(out, missing(want.Elem(), item, fmt.Sprintf("%s[%d]", at, i))...)
		}
		return out
	}
	object, ok := doc.(map[string]any)
	if !ok {
		return []string{at}
	}
	var out []string
	for f := range want.Fields() {
		name := f.Tag.Get("json")
		value, there := object[name]
		switch {
		case f.Anonymous:
			out = append(out, missing(f.Type, doc, at)...)
		case there:
			out = append(out, missing(f.Type, value, at+"."+name)...)
		case f.Tag.Get("may") == "":
			out = append(out, at+"."+name)
		}
	}
	return out
}

// known makes an agent of which everything is known.
func (w *world) known(id ident.AgentID) {
	w.t.Helper()
	w.connect(ours, id)
	p, _ := w.store.Presence(ident.AgentKey{Team: ours, Agent: id})
	p.Labels = map[string]string{"pool": "render"}
	p.Facts = wire.Facts{
		Tool: "comfyui", ToolVersion: "0.3.40", ComfyUIVersion: "0.3.40", PyTorchVersion: "2.7.0", OSType: "posix",
		GPUs: []wire.GPU{{Name: "NVIDIA A100-SXM4-80GB", Type: "cuda", VRAMTotal: 80 << 30, VRAMFree: 79 << 30}},
	}
	w.store.SetPresence(p)
}

// The requests of the published documentation, in the order in which a client makes them.
func TestContractAsPublished(t *testing.T) {
	w := newWorld(t)
	for i := range 3 {
		w.known(ident.AgentID(fmt.Sprintf("gpu-%d", i+1)))
	}

	// Agents: one page, paged in both spellings, one agent.
	first := read[theAgents](t, w.do("GET", "/agents", "integration", ""), 200)
	if len(first.AgentList) != 3 || first.PageMeta.CurrentPage != 1 || first.PageMeta.PerPage != 20 || first.PageMeta.TotalCount != 3 {
		t.Errorf("GET /agents without parameters: %+v", first)
	}
	for _, q := range []string{"current_page=2&per_page=2", "page=2&per_page=2"} {
		l := read[theAgents](t, w.do("GET", "/agents?"+q, "integration", ""), 200)
		if len(l.AgentList) != 1 || l.AgentList[0].AgentID != "gpu-3" || l.PageMeta.CurrentPage != 2 || l.PageMeta.PerPage != 2 || l.PageMeta.TotalCount != 3 {
			t.Errorf("GET /agents?%s: %+v", q, l)
		}
	}
	a := read[theAgent](t, w.do("GET", "/agents/gpu-1", "integration", ""), 200)
	if want := []string{"a100", "amd64", "comfyui", "gpu", "pool=render"}; a.AgentStatus != "idle" || !slices.Equal(a.AgentLabels, want) {
		t.Errorf("gpu-1 is %s with the labels %q, want idle and %q", a.AgentStatus, a.AgentLabels, want)
	}

	// Tunnels: without a body, and with all of it.
	plain := read[theOpened](t, w.do("POST", "/agents/gpu-1/tunnel", "integration", ""), 201)
	if plain.TargetPort != 8188 || plain.TunnelProtocol != "http" || plain.IdleTimeout != "30m0s" {
		t.Errorf("the defaults are %+v", plain)
	}
	// Which of two is newer, nobody can say of the same millisecond.
	if _, err := w.store.UpdateTunnel(t.Context(), ident.SessionID(plain.SessionID), func(r *store.TunnelRecord) error {
		r.OpenedAt = r.OpenedAt.Add(-time.Second)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	full := `{"target_port":8888,"tunnel_protocol":"tcp","idle_timeout":"45m","expires_in":7200,"when_busy":"allow","label":"notebook"}`
	opened := read[theOpened](t, w.do("POST", "/agents/gpu-1/tunnel", "integration", full, "Idempotency-Key", "once"), 201)
	if again := read[theOpened](t, w.do("POST", "/agents/gpu-1/tunnel", "integration", full, "Idempotency-Key", "once"), 201); again.SessionID != opened.SessionID {
		t.Errorf("the same Idempotency-Key opened %s and %s", opened.SessionID, again.SessionID)
	}
	if opened.TargetPort != 8888 || opened.TunnelProtocol != "tcp" || opened.IdleTimeout != "45m0s" || len(opened.SessionID) != 32 || opened.AdminToken == "" {
		t.Errorf("opened with all fields: %+v", opened)
	}
	now := read[theTunnel](t, w.do("GET", "/agents/gpu-1/tunnel", "integration", ""), 200)
	if !now.IsActive || now.SessionID != opened.SessionID || now.TunnelURL != opened.TunnelURL || len(now.Sessions) != 2 {
		t.Errorf("the newest session should be %s: %+v", opened.SessionID, now)
	}
	if a := read[theAgent](t, w.do("GET", "/agents/gpu-1", "integration", ""), 200); a.AgentStatus != "tunnel" || a.Tunnels != 2 {
		t.Errorf("with two tunnels the agent is %+v", a)
	}
	for _, secret := range []string{"integration", opened.AdminToken} {
		tunnel := "/tunnels/" + opened.SessionID
		if x := read[theExtended](t, w.do("POST", tunnel+"/extend", secret, `{"expires_in":"3h"}`), 200); x.SessionID != opened.SessionID || !x.ExpiresAt.After(opened.ExpiresAt) {
			t.Errorf("extended to %+v", x)
		}
		v := read[theViewers](t, w.do("GET", tunnel+"/viewers", secret, ""), 200)
		if len(v.Viewers) != 1 {
			t.Fatalf("viewers: %+v", v)
		}
		if r := w.do("DELETE", tunnel+"/viewers/"+v.Viewers[0].ViewerID, secret, ""); r.status/100 != 2 {
			t.Errorf("a viewer is sent away: %d %s", r.status, r.body)
		}
	}
	if c := read[theClosed](t, w.do("DELETE", "/agents/gpu-1/tunnel?session_id="+opened.SessionID, "integration", ""), 200); !slices.Equal(c.Closed, []string{opened.SessionID}) {
		t.Errorf("closed %q", c.Closed)
	}
	if c := read[theClosed](t, w.do("DELETE", "/agents/gpu-1/tunnel", "integration", ""), 200); !slices.Equal(c.Closed, []string{plain.SessionID}) {
		t.Errorf("closed %q", c.Closed)
	}
	read[theClosed](t, w.do("DELETE", "/agents/gpu-1/tunnel", "integration", ""), 200)
	if none := read[theTunnel](t, w.do("GET", "/agents/gpu-1/tunnel", "integration", ""), 200); none.IsActive || none.SessionID != "" || none.TunnelURL != "" || len(none.Sessions) != 0 {
		t.Errorf("without a tunnel: %+v", none)
	}

	// Tasks: admit, renew, release.
	tasks := "/agents/gpu-2/tasks"
	lease := read[theLease](t, w.do("POST", tasks, "integration", `{"task_id":"render-1","ttl":"60s","detail":"frame 3"}`), 201)
	if a := read[theAgent](t, w.do("GET", "/agents/gpu-2", "integration", ""), 200); a.AgentStatus != "busy" || a.CurrentTaskID != "render-1" || a.RunningCount != 1 || !slices.Equal(a.RunningTasks, []string{"render-1"}) {
		t.Errorf("with a task the agent is %+v", a)
	}
	holder := fmt.Sprintf(`{"lease_token":%q}`, lease.LeaseToken)
	if again := read[theLease](t, w.do("PUT", tasks+"/render-1", "integration", holder), 200); again.FencingToken != lease.FencingToken {
		t.Errorf("renewed %+v to %+v", lease, again)
	}
	if r := w.do("DELETE", tasks+"/render-1?outcome=completed", "integration", holder); r.status != 204 {
		t.Errorf("released: %d %s", r.status, r.body)
	}
	if next := read[theLease](t, w.do("POST", tasks, "integration", ""), 201); next.FencingToken != lease.FencingToken+1 || next.TaskID == "" {
		t.Errorf("the next lease is %+v after %+v", next, lease)
	}

	// What the machine's owner declared.
	key := ident.AgentKey{Team: ours, Agent: "gpu-3"}
	percent := 40.0
	if _, err := w.store.UpdateAgent(t.Context(), key, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
		r.Declared = wire.State{SyncPhase: "models", SyncDetail: "12 of 30", SyncPercent: &percent}
		return store.Effects{}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if a := read[theAgent](t, w.do("GET", "/agents/gpu-3", "integration", ""), 200); a.AgentStatus != "syncing" || a.SyncPhase != "models" || a.SyncDetail != "12 of 30" || a.SyncPercent != 40 {
		t.Errorf("while it syncs the agent is %+v", a)
	}

	// Credentials: the secret once, and never again.
	made := read[theSecret](t, w.do("POST", "/credentials", "user", `{"kind":"integration","name":"ci","expires_in":"90d"}`), 201)
	r := w.do("GET", "/credentials", "user", "")
	if l := read[theCredentials](t, r, 200); len(l.Credentials) != 1 || l.Credentials[0].ID != made.ID || !strings.HasPrefix(made.Secret, l.Credentials[0].Prefix) || strings.Contains(string(r.body), made.Secret) {
		t.Errorf("listed: %s", r.body)
	}
	if r := w.do("DELETE", "/credentials/"+made.ID, "user", ""); r.status/100 != 2 {
		t.Errorf("revoked: %d %s", r.status, r.body)
	}
}

// A device as the published clients pair it: no body, the code in the address of a page, a
// poll every few seconds, and the end by the device itself.
func TestContractOfPairing(t *testing.T) {
	w := newWorld(t)
	p := read[thePairing](t, w.do("POST", "/desktop/pair/start", "", ""), 200)
	if p.UserCode != "AB7K-PNQ3" || !strings.HasSuffix(p.VerificationURI, "/desktop/pair?user_code="+p.UserCode) || p.ExpiresIn != 300 || p.Interval != 2 {
		t.Errorf("begun: %+v", p)
	}
	if now := read[thePoll](t, w.do("POST", "/desktop/pair/poll", "", fmt.Sprintf(`{"device_code":%q}`, p.DeviceCode)), 200); now != (thePoll{Status: "pending"}) {
		t.Errorf("before it is confirmed: %+v", now)
	}
	if r := w.do("POST", "/desktop/pair/confirm", "user", `{"user_code":"AB7K-PNQ3","device_name":"laptop"}`); r.status/100 != 2 {
		t.Errorf("confirmed: %d %s", r.status, r.body)
	}
	if now := read[thePoll](t, w.do("POST", "/desktop/pair/poll", "", `{"device_code":"pc-y"}`), 200); now.Status != "approved" || !strings.HasPrefix(now.RawKey, "dk-") || !strings.HasPrefix(now.AgentKey, "ak-") {
		t.Errorf("afterwards: %+v", now)
	}
	if r := w.do("POST", "/desktop/pair/poll", "", `{"device_code":"pc-z"}`); r.status != 404 {
		t.Errorf("an unknown one: %d %s", r.status, r.body)
	}
	if r := w.do("POST", "/auth/device/revoke", "device", ""); r.status/100 != 2 {
		t.Errorf("it ends itself: %d %s", r.status, r.body)
	}
}

// An error of each kind.
func TestContractOfErrors(t *testing.T) {
	w := newWorld(t)
	for i := range 3 {
		w.known(ident.AgentID(fmt.Sprintf("gpu-%d", i+1)))
	}
	into[theOpened](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	into[theLease](t, w.do("POST", "/agents/gpu-2/tasks", "user", `{"task_id":"t"}`), 201)
	gone, _ := w.store.Presence(ident.AgentKey{Team: ours, Agent: "gpu-3"})
	gone.GoneSince = time.Now().Add(-time.Minute)
	w.store.SetPresence(gone)

	for _, c := range []struct {
		method, path, secret, body string
		status                     int
		code                       string
		first                      func() // what is done before
	}{
		{method: "GET", path: "/agents", status: 401, code: "unauthenticated"},
		{method: "GET", path: "/agents", secret: "sk-wrong", status: 401, code: "unauthenticated"},
		{method: "GET", path: "/agents", secret: "agent", status: 403, code: "forbidden"},
		{method: "GET", path: "/agents?current_page=1&page=2", secret: "user", status: 400, code: "invalid_parameter"},
		{method: "GET", path: "/agents?sort=name", secret: "user", status: 400, code: "unknown_parameter"},
		{method: "GET", path: "/agents?per_page=101", secret: "user", status: 422, code: "out_of_range"},
		{method: "GET", path: "/agents/nobody", secret: "user", status: 404, code: "agent_not_found"},
		{method: "GET", path: "/agents/gpu-1", secret: "stranger", status: 404, code: "agent_not_found"},
		{method: "DELETE", path: "/agents/gpu-1/tunnel?session_id=" + strings.Repeat("0", 32), secret: "user", status: 404, code: "tunnel_not_found"},
		{method: "GET", path: "/nowhere", secret: "user", status: 404, code: "not_found"},
		{method: "PUT", path: "/agents", secret: "user", status: 405, code: "method_not_allowed"},
		{method: "POST", path: "/agents/gpu-1/tunnel", secret: "user", body: `{"port":1}`, status: 400, code: "unknown_field"},
		{method: "POST", path: "/agents/gpu-1/tunnel", secret: "user", body: `{"target_port":0}`, status: 422, code: "out_of_range"},
		{method: "POST", path: "/agents/gpu-3/tunnel", secret: "user", status: 409, code: "agent_offline"},
		{method: "POST", path: "/agents/gpu-2/tunnel", secret: "user", body: `{"when_busy":"reject"}`, status: 409, code: "agent_busy"},
		{method: "POST", path: "/agents/gpu-1/tasks", secret: "user", status: 409, code: "agent_in_tunnel"},
		{method: "POST", path: "/agents/gpu-2/tasks", secret: "user", status: 409, code: "agent_busy"},
		{method: "POST", path: "/agents/gpu-3/tasks", secret: "user", status: 409, code: "agent_offline"},
		{method: "PUT", path: "/agents/gpu-2/tasks/other", secret: "user", body: `{"lease_token":"lt-x"}`, status: 410, code: "lease_expired"},
		{method: "POST", path: "/credentials", secret: "integration", body: `{"kind":"agent","name":"x"}`, status: 403, code: "forbidden"},
		{method: "POST", path: "/agents/gpu-1/tunnel", secret: "user", status: 403, code: "port_not_allowed", first: func() { w.prober.set(wire.Probed{Allowed: false, Detail: "port 8188 is not allowed here"}, 0) }},
		{method: "POST", path: "/agents/gpu-1/tasks", secret: "user", status: 503, code: "store_unavailable", first: func() { w.store.SetDown(true) }},
	} {
		call := fmt.Sprintf("%s %s as %q", c.method, c.path, c.secret)
		if c.first != nil {
			c.first()
		}
		r := w.do(c.method, c.path, c.secret, c.body)
		p := read[theError](t, r, c.status)
		if p.Code != c.code || p.Status != c.status || p.Title != http.StatusText(c.status) || p.ErrorMessage == "" || p.ErrorMessage != p.Detail {
			t.Errorf("%s: want %d %s with a text for people: %s", call, c.status, c.code, r.body)
		}
		if got := r.header.Get("Content-Type"); got != "application/problem+json" || r.header.Get(api.HeaderRequestID) != p.RequestID {
			t.Errorf("%s: content type %q, request %q", call, got, p.RequestID)
		}
		if challenge := r.header.Get("WWW-Authenticate"); (c.status == 401) != strings.HasPrefix(challenge, "Bearer") {
			t.Errorf("%s: WWW-Authenticate is %q", call, challenge)
		}
		retries := c.status == 503 || c.status == 409
		if retries != (p.RetryAfter > 0) || retries && r.header.Get("Retry-After") != strconv.Itoa(p.RetryAfter) {
			t.Errorf("%s: retry_after is %d, the header %q", call, p.RetryAfter, r.header.Get("Retry-After"))
		}
	}
}
