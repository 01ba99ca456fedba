package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// wsEcho is an app that answers every WebSocket message with itself, and any other
// request at once.
func wsEcho(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/ws" {
		fmt.Fprint(w, "page")
		return
	}
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	for {
		typ, b, err := c.Read(r.Context())
		if err != nil || c.Write(r.Context(), typ, b) != nil {
			return
		}
	}
}

// ending is what a watch of the agents tells of tunnels' ends.
type ending struct {
	kind   string
	detail string
	at     time.Time
}

// watchEndings follows the relay's event stream and sends the endings of tunnels.
func watchEndings(t *testing.T, r *world.Relay, sk string) func(ident.SessionID) <-chan ending {
	t.Helper()
	c, err := client.New(client.Config{BaseURL: fmt.Sprintf("http://127.0.0.1:%d", r.Port), Token: ident.Secret(sk)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	chans := make(chan func(map[ident.SessionID]chan ending))
	events := make(chan api.Event, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		of := map[ident.SessionID]chan ending{}
		for {
			select {
			case <-ctx.Done():
				return
			case f := <-chans:
				f(of)
			case e := <-events:
				if of[e.Session] == nil {
					of[e.Session] = make(chan ending, 100)
				}
				of[e.Session] <- ending{e.Kind, e.Detail, time.Now()}
			}
		}
	}()
	ready, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		_ = c.Watch(ctx, func(e api.Event) error {
			switch e.Kind {
			case api.EventSnapshot:
				close(ready)
			case api.EventTunnelClosing, api.EventTunnelClosed:
				events <- e
			}
			return nil
		}, nil)
	}()
	t.Cleanup(func() { cancel(); <-done; <-watched })
	select {
	case <-ready:
	case <-time.After(testkit.Patience):
		t.Fatal("the event stream begins with a snapshot")
	}
	return func(id ident.SessionID) <-chan ending {
		got := make(chan chan ending, 1)
		chans <- func(of map[ident.SessionID]chan ending) {
			if of[id] == nil {
				of[id] = make(chan ending, 100)
			}
			got <- of[id]
		}
		return <-got
	}
}

// next waits for the next ending.
func next(t *testing.T, what string, ch <-chan ending, limit time.Duration) ending {
	t.Helper()
	select {
	case e := <-ch:
		return e
	case <-time.After(testkit.Limit(limit)):
		t.Fatalf("expected within %s: %s", limit, what)
		return ending{}
	}
}

// session returns one tunnel as the status shows it; nil when it is closed.
func session(r *world.Relay, sk, agent string, id ident.SessionID) *api.Session {
	var st api.TunnelStatus
	succeed(r, sk, http.MethodGet, "/agents/"+agent+"/tunnel", nil, &st)
	for _, s := range st.Sessions {
		if s.SessionID == id {
			return &s
		}
	}
	return nil
}

// What keeps a tunnel open is people's bytes and frames, and nothing else.
func TestIdleCloseExplainsItself(t *testing.T) {
	w := world.New(t)
	r := w.Relay()
	a := w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	endings := watchEndings(t, r, sk)
	port := app(t, wsEcho)
	const idle = 5 * time.Second
	open := func(label string) api.Tunnel {
		return r.Open(sk, "gpu-1", map[string]any{"target_port": port, "label": label, "idle_timeout": idle.String(), "host_header": "public"})
	}
	dial := func(tun api.Tunnel) *websocket.Conn {
		c, _, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(r.HostURL(tun), "http")+"ws", &websocket.DialOptions{HTTPClient: w.HTTP()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.CloseNow() })
		return c
	}
	pages, frames, pings, quiet, kept := open("pages"), open("frames"), open("pings"), open("quiet"), open("kept")
	talking, silent := dial(frames), dial(pings)
	began := time.Now()
	// A closed connection would be use at its end: these stay open, and read what
	// comes, pongs among it.
	silentCtx := silent.CloseRead(t.Context())

	if s := session(r, sk, "gpu-1", quiet.SessionID); s == nil || !strings.Contains(s.ClosesBecause, "idle since") || !strings.Contains(s.ClosesBecause, "idle timeout 5s") {
		t.Errorf("closes_because says what the tunnel waits for: %+v", s)
	}
	// The warning comes before the close; then one call is enough to keep it, though
	// its hard end does not move.
	warning := next(t, "a warning before the idle close", endings(kept.SessionID), 2*idle)
	if warning.kind != api.EventTunnelClosing || !strings.Contains(warning.detail, "nobody uses it") {
		t.Errorf("the warning says %+v", warning)
	}
	var extended api.Extended
	if status, p := r.API(kept.AdminToken, http.MethodPost, "/tunnels/"+string(kept.SessionID)+"/extend", map[string]any{"expires_in": "1h"}, &extended); status != http.StatusOK {
		t.Fatalf("extend: %d %v", status, p)
	}
	keptAt := time.Now()

	// For more than twice the idle time: a page, a frame, a ping; and status calls, the
	// agent's own probing and its heartbeats all along.
	for time.Since(began) < 2*idle+2*time.Second {
		if status, _ := world.Get(w.HTTP(), pages.TunnelURL); status != http.StatusOK {
			t.Fatalf("a page each second keeps the tunnel open, but after %s: %d", time.Since(began), status)
		}
		if err := talking.Write(t.Context(), websocket.MessageText, []byte("still here")); err != nil {
			t.Fatalf("a frame each second keeps the tunnel open, but after %s: %v", time.Since(began), err)
		}
		if _, b, err := talking.Read(t.Context()); err != nil || string(b) != "still here" {
			t.Fatalf("the app answers %q %v", b, err)
		}
		if silentCtx.Err() == nil {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_ = silent.Ping(ctx) // answered by the app, as long as the tunnel is open
			cancel()
		}
		session(r, sk, "gpu-1", quiet.SessionID)
		_, _ = r.API(sk, http.MethodGet, "/tunnels/"+string(pings.SessionID)+"/viewers", nil, nil) // until it is closed
		_ = w.Run(a.Env, filepath.Join(w.Bin, "adit-agent"), "status", "--json")
		<-time.After(500 * time.Millisecond) // people are not faster
	}
	for name, tun := range map[string]api.Tunnel{"pings alone": pings, "status calls alone": quiet} {
		ch := endings(tun.SessionID)
		warned := next(t, "a warning before the close", ch, idle)
		closed := next(t, "the idle close", ch, idle)
		if warned.kind != api.EventTunnelClosing || closed.kind != api.EventTunnelClosed || closed.detail != "idle" {
			t.Errorf("%s: %+v, then %+v; want a warning, then closed because idle", name, warned, closed)
		}
		if d := closed.at.Sub(began); d < idle-time.Second || d > idle+3*time.Second {
			t.Errorf("%s kept a tunnel of idle time %s open for %s", name, idle, d)
		}
		if session(r, sk, "gpu-1", tun.SessionID) != nil {
			t.Errorf("%s: the tunnel is still listed", name)
		}
	}
	if err := context.Cause(silentCtx); err == nil {
		t.Error("the silent WebSocket ends with its tunnel")
	}
	closed := next(t, "the extended tunnel's close, an idle time after the call", skipWarnings(t, endings(kept.SessionID)), 2*idle)
	if d := closed.at.Sub(keptAt); d < idle-time.Second {
		t.Errorf("one call to extend kept the tunnel for %s, want an idle time more", d)
	}
	for name, tun := range map[string]api.Tunnel{"pages": pages, "frames": frames} {
		if s := session(r, sk, "gpu-1", tun.SessionID); s == nil {
			t.Errorf("%s did not keep the tunnel open", name)
		}
	}
	// Left alone these close, too, and then tasks are admitted.
	w.Eventually(3*idle, "tasks are admitted once the last tunnel has closed by itself", func() bool {
		status, _ := r.API(sk, http.MethodPost, "/agents/gpu-1/tasks", nil, nil)
		return status == http.StatusCreated
	})
	_, _, err := talking.Read(t.Context())
	if code := websocket.CloseStatus(err); code != websocket.StatusGoingAway {
		t.Errorf("an idle close ends a WebSocket with %v, want close code 1001", err)
	}
}

// skipWarnings returns the first ending that is none.
func skipWarnings(t *testing.T, in <-chan ending) <-chan ending {
	out := make(chan ending, 1)
	go func() {
		for {
			select {
			case e := <-in:
				if e.kind == api.EventTunnelClosed {
					out <- e
					return
				}
			case <-t.Context().Done():
				return
			}
		}
	}()
	return out
}

func TestHardEnd(t *testing.T) {
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	endings := watchEndings(t, r, sk)
	port := app(t, wsEcho)
	began := time.Now()
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "expires_in": "5s", "host_header": "public"})
	longer := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "expires_in": "5s", "host_header": "public"})
	if s := session(r, sk, "gpu-1", tun.SessionID); s == nil || !strings.Contains(s.ClosesBecause, "hard end at") {
		t.Errorf("closes_because names the hard end: %+v", s)
	}
	var extended api.Extended
	if status, p := r.API(longer.AdminToken, http.MethodPost, "/tunnels/"+string(longer.SessionID)+"/extend", map[string]any{"expires_in": "1h"}, &extended); status != http.StatusOK || time.Until(extended.ExpiresAt) < 59*time.Minute {
		t.Fatalf("extend: %d %v %+v", status, p, extended)
	}
	c, _, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(r.HostURL(tun), "http")+"ws", &websocket.DialOptions{HTTPClient: w.HTTP()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	var readErr error
	for { // in use up to the end, which comes all the same
		if readErr = c.Write(t.Context(), websocket.MessageText, []byte("x")); readErr != nil {
			break
		}
		if _, _, readErr = c.Read(t.Context()); readErr != nil {
			break
		}
		if time.Since(began) > testkit.Limit(20*time.Second) {
			t.Fatal("a tunnel of 5 s still carries bytes")
		}
		<-time.After(100 * time.Millisecond)
	}
	d := time.Since(began)
	if d < 4500*time.Millisecond {
		t.Errorf("a tunnel of 5 s carried bytes for %s only", d)
	}
	testkit.Took(t, "the hard end of a tunnel of 5 s", d, 7*time.Second)
	if code := websocket.CloseStatus(readErr); code != websocket.StatusGoingAway && !errors.Is(readErr, context.Canceled) {
		t.Logf("the WebSocket ended with %v", readErr)
	}
	ch := endings(tun.SessionID)
	if e := next(t, "a warning before the hard end", ch, 5*time.Second); e.kind != api.EventTunnelClosing || !strings.Contains(e.detail, "its time ends") {
		t.Errorf("the warning says %+v", e)
	}
	if e := next(t, "the hard end", ch, 5*time.Second); e.kind != api.EventTunnelClosed || e.detail != "expired" {
		t.Errorf("the end says %+v", e)
	}
	if status, body := world.Get(w.HTTP(), longer.TunnelURL); status != http.StatusOK || body != "page" {
		t.Errorf("the extended one works on: %d %q", status, body)
	}
}
