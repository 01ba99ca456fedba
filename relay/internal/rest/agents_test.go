package rest_test

import (
	"fmt"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

func TestTaskLease(t *testing.T) {
	w := newWorld(t)
	tasks := "/agents/gpu-1/tasks"
	l := into[api.TaskLease](t, w.do("POST", tasks, "agent", `{"task_id":"t1","ttl":"10s","detail":"epoch 3"}`), 201)
	if l.TaskID != "t1" || l.FencingToken != 1 || !strings.HasPrefix(l.LeaseToken, "lt-") {
		t.Errorf("lease %+v", l)
	}
	r := w.do("POST", tasks, "integration", "")
	w.want(r, "Conflict agent_busy")
	body := into[map[string]any](t, r, 409)
	if secs, _ := body["retry_after"].(float64); secs < 1 || strconv.Itoa(int(secs)) != r.header.Get("Retry-After") {
		t.Errorf("retry_after is %v, the header %q", body["retry_after"], r.header.Get("Retry-After"))
	}
	a := into[api.Agent](t, w.do("GET", "/agents/gpu-1", "user", ""), 200)
	if a.AgentStatus != api.StatusBusy || a.CurrentTaskID != "t1" || a.RunningCount != 1 {
		t.Errorf("the agent is %+v", a)
	}
	token := fmt.Sprintf(`{"lease_token":%q}`, l.LeaseToken)
	renewed := into[api.TaskLease](t, w.do("PUT", tasks+"/t1", "agent", fmt.Sprintf(`{"lease_token":%q,"ttl":600}`, l.LeaseToken)), 200)
	if renewed.FencingToken != l.FencingToken || !renewed.ExpiresAt.After(l.ExpiresAt) {
		t.Errorf("renewed to %+v", renewed)
	}
	w.want(w.do("PUT", tasks+"/t1", "agent", `{"lease_token":"lt-wrong"}`), "Forbidden lease_token_invalid")
	w.want(w.do("PUT", tasks+"/t2", "agent", token), "Gone lease_expired")
	w.want(w.do("PUT", tasks+"/t1", "agent", `{"lease_token":""}`), "Unprocessable Entity out_of_range")
	w.want(w.do("DELETE", tasks+"/t1", "agent", ""), "Unprocessable Entity out_of_range")
	w.want(w.do("DELETE", tasks+"/t1?outcome=won", "agent", token), "Unprocessable Entity out_of_range")
	if r := w.do("DELETE", tasks+"/t1?outcome=failed", "agent", token); r.status != 204 {
		t.Errorf("release: %d %s", r.status, r.body)
	}
	w.want(w.do("DELETE", tasks+"/t1", "agent", token), "Gone lease_expired")
	l = into[api.TaskLease](t, w.do("POST", tasks, "agent", ""), 201)
	if r := w.do("DELETE", tasks+"/"+string(l.TaskID), "agent", "", "X-Lease-Token", l.LeaseToken); r.status != 204 {
		t.Errorf("release by header: %d %s", r.status, r.body)
	}
	if a := into[api.Agent](t, w.do("GET", "/agents/gpu-1", "user", ""), 200); a.TasksCompleted != 1 {
		t.Errorf("%d tasks completed, want 1: the failed one does not count", a.TasksCompleted)
	}
	w.want(w.do("POST", tasks, "agent", `{"ttl":"4s"}`), "Unprocessable Entity out_of_range")
	w.want(w.do("POST", tasks, "agent", `{"ttl":"2h"}`), "Unprocessable Entity out_of_range")
	w.want(w.do("POST", tasks, "agent", `{"task_id":"a b"}`), "Unprocessable Entity out_of_range")

	// Over its link the agent is known, and has the same routes for itself only.
	agent := w.auth.by["agent"]
	for path, want := range map[string]int{"/agents/gpu-1/tasks": 201, "/agents/gpu-2/tasks": 403, "/agents": 403} {
		method := map[bool]string{true: "POST", false: "GET"}[strings.HasSuffix(path, "tasks")]
		rec := httptest.NewRecorder()
		w.api.ServeAgent(rec, httptest.NewRequestWithContext(t.Context(), method, api.Base+path, nil), agent)
		if rec.Code != want {
			t.Errorf("%s over the link: %d, want %d: %s", path, rec.Code, want, rec.Body)
		}
	}
}

func TestAgentsInPagesAndStates(t *testing.T) {
	w := newWorld(t)
	for i := range 4 {
		w.connect(ours, ident.AgentID(fmt.Sprintf("gpu-%d", i+2)))
	}
	w.connect(theirs, "other")
	var list api.AgentList
	for _, second := range []string{"current_page=2", "page=2", "current_page=2&page=2"} {
		list = into[api.AgentList](t, w.do("GET", "/agents?per_page=2&"+second, "user", ""), 200)
		if len(list.AgentList) != 2 || list.AgentList[0].AgentID != "gpu-3" || list.PageMeta != (api.PageMeta{CurrentPage: 2, PerPage: 2, TotalCount: 5}) {
			t.Errorf("%s, the second page: %+v", second, list)
		}
	}
	for _, q := range []string{"current_page=2&page=1", "current_page=1&page=2"} {
		r := w.do("GET", "/agents?"+q, "user", "")
		w.want(r, "Bad Request invalid_parameter")
		if p := into[api.Problem](t, r, 400); !strings.Contains(p.Detail, "current_page is ") || !strings.Contains(p.Detail, " page,") {
			t.Errorf("%s: both should be named: %s", q, p.Detail)
		}
	}
	for _, page := range []string{"9", "4611686018427387904"} {
		list = into[api.AgentList](t, w.do("GET", "/agents?per_page=3&page="+page, "user", ""), 200)
		if len(list.AgentList) != 0 || list.PageMeta.TotalCount != 5 {
			t.Errorf("page %s: %+v", page, list)
		}
	}
	for _, q := range []string{"per_page=101", "per_page=0", "page=0", "current_page=0", "current_page=x&page=1", "current_page=1&page=x", "page=x", "page=-1", "page=99999999999999999999"} {
		w.want(w.do("GET", "/agents?"+q, "user", ""), "Unprocessable Entity out_of_range")
	}
	w.want(w.do("GET", "/agents?page=1&page=2", "user", ""), "Bad Request invalid_parameter")
	w.want(w.do("GET", "/agents?current_page=1&current_page=1", "user", ""), "Bad Request invalid_parameter")

	key := ident.AgentKey{Team: ours, Agent: "gpu-1"}
	rec, _ := w.store.Agent(key)
	now := time.Now()
	for _, c := range []struct {
		want   api.AgentStatus
		change func(r *store.AgentRecord)
	}{
		{api.StatusIdle, func(*store.AgentRecord) {}},
		{api.StatusBusy, func(r *store.AgentRecord) { r.Leases["t"] = store.LeaseState{Expires: now.Add(time.Hour)} }},
		{api.StatusSyncing, func(r *store.AgentRecord) { r.Declared.SyncPhase = "models" }},
		{api.StatusTunnel, func(r *store.AgentRecord) {
			r.Tunnels[ident.NewSessionID()] = store.TunnelState{State: store.TunnelWaiting, Expires: now.Add(time.Hour)}
		}},
		{api.StatusUnhealthy, func(r *store.AgentRecord) { r.Unhealthy = "no GPU" }},
	} {
		if _, err := w.store.UpdateAgent(t.Context(), key, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
			c.change(r)
			return store.Effects{}, nil
		}); err != nil {
			t.Fatal(err)
		}
		r := w.do("GET", "/agents/gpu-1", "user", "")
		if a := into[api.Agent](t, r, 200); a.AgentStatus != c.want {
			t.Errorf("status %s, want %s", a.AgentStatus, c.want)
		}
		for _, unknown := range []string{"tool_version", "pytorch_version", "vram_free", "link_rtt_ms"} {
			if strings.Contains(string(r.body), unknown) {
				t.Errorf("%s is not known and there: %s", unknown, r.body)
			}
		}
	}
	// An agent leaves the list 30 s after its link was lost; not at once.
	for gone, want := range map[time.Duration]int{29 * time.Second: 200, 31 * time.Second: 404} {
		w.store.SetPresence(store.Presence{Team: ours, Agent: "gpu-1", Epoch: rec.Epoch, GoneSince: now.Add(-gone)})
		if r := w.do("GET", "/agents/gpu-1", "user", ""); r.status != want {
			t.Errorf("%v after the link was lost: %d, want %d", gone, r.status, want)
		}
		list := into[api.AgentList](t, w.do("GET", "/agents", "user", ""), 200)
		if shown := list.PageMeta.TotalCount == 5; shown != (want == 200) {
			t.Errorf("%v after the link was lost: in the list: %v", gone, shown)
		}
	}
	if r := w.do("GET", "/agents/gpu-1/tunnel", "user", ""); r.status != 200 {
		t.Errorf("the tunnels of an agent that is away: %d", r.status)
	}
	w.want(w.do("POST", "/agents/gpu-1/tunnel", "user", ""), "Conflict agent_offline")
}
