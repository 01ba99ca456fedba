package rest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// events is an open event stream.
type events struct {
	t    *testing.T
	c    chan event // closed at the stream's end
	stop func()
}

type event struct {
	id, kind, comment string
	data              api.Event
}

func (w *world) watch(server *httptest.Server, secret, last string) *events {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", server.URL+api.Base+"/agents/watch", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	res, err := server.Client().Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" || res.Header.Get("Cache-Control") != "no-store" {
		w.t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	e := &events{t: w.t, c: make(chan event, 100), stop: cancel}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(e.c)
		defer func() { _ = res.Body.Close() }()
		sc := bufio.NewScanner(res.Body)
		var ev event
		for sc.Scan() {
			name, value, _ := strings.Cut(sc.Text(), ": ")
			switch {
			case sc.Text() == "":
				e.c <- ev
				ev = event{}
			case name == "id":
				ev.id = value
			case name == "event":
				ev.kind = value
			case name == "data":
				if err := json.Unmarshal([]byte(value), &ev.data); err != nil {
					w.t.Errorf("%v: %s", err, value)
				}
			default:
				ev.comment = sc.Text()
			}
		}
	}()
	w.t.Cleanup(func() { cancel(); <-done })
	return e
}

// next returns the next event, comments left out.
func (e *events) next() (event, bool) {
	e.t.Helper()
	limit := time.After(testkit.Patience)
	for {
		select {
		case ev, ok := <-e.c:
			if ok && ev.kind == "" {
				continue
			}
			return ev, ok
		case <-limit:
			e.t.Fatal("no event within 5 s")
		}
	}
}

// last reads to the end and returns the last event.
func (e *events) last() (last event) {
	e.t.Helper()
	for {
		ev, ok := e.next()
		if !ok {
			return last
		}
		last = ev
	}
}

// until returns the first event of a kind that fits.
func (e *events) until(kind string, fits func(api.Event) bool) event {
	e.t.Helper()
	for {
		ev, ok := e.next()
		if !ok {
			e.t.Fatalf("the stream ended before %s", kind)
		}
		if ev.kind == kind && (fits == nil || fits(ev.data)) {
			return ev
		}
	}
}

func (w *world) serve() *httptest.Server {
	s := httptest.NewServer(w.api)
	w.t.Cleanup(s.Close)
	return s
}

func TestWatch(t *testing.T) {
	w := newWorld(t)
	w.connect(theirs, "other")
	server := w.serve()
	e := w.watch(server, "user", "")
	first, _ := e.next()
	if first.kind != api.EventSnapshot || len(first.data.Agents) != 1 || first.data.Agents[0].AgentID != "gpu-1" || first.id == "" {
		t.Fatalf("first is %+v", first)
	}
	w.connect(theirs, "more")
	o := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	e.until(api.EventAgentChanged, func(ev api.Event) bool {
		if ev.AgentID != "gpu-1" {
			t.Errorf("another team's agent: %+v", ev)
		}
		return ev.Agent.AgentStatus == api.StatusTunnel
	})
	into[api.Closed](t, w.do("DELETE", "/agents/gpu-1/tunnel", "user", ""), 200)
	closed := e.until(api.EventTunnelClosed, nil)
	if closed.data.Session != o.SessionID || closed.data.Detail == "" {
		t.Errorf("closed %+v", closed.data)
	}
	w.store.DropPresence(ident.AgentKey{Team: ours, Agent: "gpu-1"})
	e.until(api.EventAgentGone, func(ev api.Event) bool { return ev.AgentID == "gpu-1" })
	e.stop()

	// One that resumes is told of the tunnels' events that it missed, no others.
	e = w.watch(server, "user", first.id)
	if ev, _ := e.next(); ev.kind != api.EventSnapshot || len(ev.data.Agents) != 0 {
		t.Errorf("resumed with %+v", ev)
	}
	if ev := e.until(api.EventTunnelClosed, nil); ev.data.Session != o.SessionID {
		t.Errorf("resumed with %+v", ev)
	}
	e.stop()
	e = w.watch(server, "user", closed.id)
	if ev, _ := e.next(); ev.kind != api.EventSnapshot {
		t.Errorf("resumed with %+v", ev)
	}
	w.connect(ours, "gpu-9")
	if ev, _ := e.next(); ev.kind != api.EventAgentChanged {
		t.Errorf("told again of %+v", ev)
	}
	// It says that it lives.
	limit := time.After(testkit.Patience)
	for comment := false; !comment; {
		select {
		case ev := <-e.c:
			comment = ev.comment != ""
		case <-limit:
			t.Fatal("no comment")
		}
	}
	// It ends with the credential.
	w.auth.mu.Lock()
	w.auth.cancels["user:alice"](creds.ErrRevoked)
	w.auth.mu.Unlock()
	if bye := e.last(); bye.kind != api.EventGoodbye || bye.data.Detail != creds.ErrRevoked.Error() {
		t.Errorf("whose credential was revoked hears last %+v", bye)
	}
	// And with the relay.
	e = w.watch(server, "device", "")
	e.until(api.EventSnapshot, nil)
	w.api.Drain()
	if bye := e.last(); bye.kind != api.EventGoodbye || bye.data.Detail != "the relay restarts" {
		t.Errorf("at a restart the last event is %+v", bye)
	}
	w.want(w.do("GET", "/agents/watch", "user", ""), "Service Unavailable relay_draining")
}

// One team's event streams are bounded, and another team's are not touched.
func TestATeamHasAShareOfEventStreams(t *testing.T) {
	w := newWorld(t)
	server := w.serve()
	const share = 256
	var streams []*events
	for range share {
		streams = append(streams, w.watch(server, "user", ""))
	}
	w.want(w.do("GET", "/agents/watch", "integration", ""), "Too Many Requests team_watch_limit")
	w.watch(server, "stranger", "").stop()
	for _, e := range streams {
		e.stop()
	}
	eventually(t, "streams that ended are not counted", func() bool {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", server.URL+api.Base+"/agents/watch", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer integration")
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// A caller that waits for tasks to end is answered when the relay drains, and
// what waits is taken back.
func TestDrainEndsWaitingOpens(t *testing.T) {
	w := newWorld(t)
	into[api.TaskLease](t, w.do("POST", "/agents/gpu-1/tasks", "agent", `{"ttl":"1h"}`), 201)
	got := make(chan reply, 1)
	go func() {
		got <- w.do("POST", "/agents/gpu-1/tunnel", "user", `{"when_busy":"wait","wait_timeout":"1h"}`)
	}()
	key := ident.AgentKey{Team: ours, Agent: "gpu-1"}
	eventually(t, "the tunnel waits", func() bool { rec, _ := w.store.Agent(key); return len(rec.Tunnels) == 1 })
	w.api.Drain()
	w.want(<-got, "Service Unavailable relay_draining")
	if rec, _ := w.store.Agent(key); len(rec.Tunnels) != 0 {
		t.Errorf("left behind: %v", rec.Tunnels)
	}
}

// A keep-alive connection that was used for a call may be used for a tunnel next:
// no deadline of the call may be left on it.
func TestNoDeadlineIsLeftOnTheConnection(t *testing.T) {
	w := newWorld(t)
	left := make(chan [2]time.Time, 10)
	h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		d := &deadlines{ResponseWriter: rw}
		w.api.ServeHTTP(d, r)
		left <- [2]time.Time{d.write, {}}
	})
	server := httptest.NewServer(h)
	defer server.Close()
	for _, path := range []string{"/agents", "/nothing", "/openapi.json"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+api.Base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer user")
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if d := <-left; !d[0].IsZero() {
			t.Errorf("%s leaves the write deadline %v", path, d[0])
		}
	}
}

type deadlines struct {
	http.ResponseWriter
	write time.Time
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	d.write = t
	return http.NewResponseController(d.ResponseWriter).SetWriteDeadline(t)
}

func (d *deadlines) Unwrap() http.ResponseWriter { return d.ResponseWriter }
