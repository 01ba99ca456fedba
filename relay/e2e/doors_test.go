package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// crowd keeps 600 connections of sixty addresses at a door: each says what opens the
// door half-way, and then nothing. One that is closed comes again after a while. It
// returns when all have been there, and ends with the test.
func crowd(t *testing.T, port int, say string) {
	t.Helper()
	const size, addresses = 600, 60
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { stop(); wg.Wait() })
	var came atomic.Int64
	for i := range size {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(i%addresses+2), 1)}, Timeout: 10 * time.Second}
		wg.Go(func() {
			for once := false; ctx.Err() == nil; {
				c, err := d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
				if err == nil {
					undo := context.AfterFunc(ctx, func() { _ = c.Close() })
					_, _ = io.WriteString(c, say)
					if !once {
						once = true
						came.Add(1)
					}
					_, _ = io.Copy(io.Discard, c)
					undo()
					_ = c.Close()
				}
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Second):
				}
			}
		})
	}
	(&world.World{T: t}).Eventually(2*time.Minute, "600 silent connections are at the door", func() bool { return came.Load() == size })
}

// attaches says whether a terminal is to be had with a tunnel's token.
func attaches(t *testing.T, r *world.Relay, tun api.Tunnel) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(r.URL, "http")+wire.TerminalPath+string(tun.SessionID)+wire.TerminalSocket, nil)
	if err != nil {
		return err
	}
	defer func() { _ = c.CloseNow() }()
	if err := c.Write(ctx, websocket.MessageText, []byte(`{"token":"`+tun.AdminToken+`","cols":80,"rows":24}`)); err != nil {
		return err
	}
	for {
		_, b, err := c.Read(ctx)
		if err != nil {
			return err
		}
		if strings.Contains(string(b), `"attached"`) {
			return nil
		}
	}
}

// enrolls hands in a new enrollment token as a machine does.
func enrolls(t *testing.T, r *world.Relay, agent string) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.URL+api.EnrollPath, strings.NewReader(`{"agent_id":"`+agent+`"}`))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+enrollToken(r))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		b, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%d %s", resp.StatusCode, b)
	}
	return nil
}

// TestSilentSocketsShutNoDoor has 600 connections at each door of the public listener,
// of strangers or of another team, and wants every door open for everybody else.
func TestSilentSocketsShutNoDoor(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	terminalAgent(w, r)
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "hello") })})
	hostile := r.Credential("agent", otherTeam, "--name", "hostile")
	upgrade := "Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	body := "Host: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
	guess := ident.NewSecret(ident.PrefixEnroll).Reveal()
	for n, door := range []struct{ name, say string }{
		{"the listener", ""},
		{"half a header", "GET / HTTP/1.1\r\nHost: x\r\n"},
		{"a terminal", "GET " + wire.TerminalPath + string(tun.SessionID) + wire.TerminalSocket + " HTTP/1.1\r\n" + upgrade + "\r\n"},
		{"a link", "GET " + wire.LinkPath + " HTTP/1.1\r\n" + upgrade + "Sec-WebSocket-Protocol: " + wire.Subprotocol + "\r\nAuthorization: Bearer " + hostile + "\r\n\r\n"},
		{"enrollment", "POST " + api.EnrollPath + " HTTP/1.1\r\n" + body + "Authorization: Bearer " + guess + "\r\n\r\n"},
		{"the API", "POST " + api.Base + "/agents/gpu-1/tunnel HTTP/1.1\r\n" + body + "Authorization: Bearer " + ident.NewSecret(ident.PrefixIntegration).Reveal() + "\r\n\r\n"},
	} {
		t.Run(door.name, func(t *testing.T) {
			crowd(t, r.Port, door.say)
			if err := attaches(t, r, tun); err != nil {
				t.Errorf("a terminal is to be had: %v", err)
			}
			if status, body := world.Get(w.HTTP(), r.HostURL(tun)); status != http.StatusOK || body != "hello" {
				t.Errorf("a tunnel is to be used: %d %s", status, body)
			}
			if err := enrolls(t, r, fmt.Sprint("new-", n)); err != nil {
				t.Errorf("a machine enrolls: %v", err)
			}
			fakeAgent(r, world.Team, fmt.Sprint("late-", n), nil)
			// Its presence is written beside its welcome.
			w.Eventually(20*time.Second, "an agent that came meanwhile is listed", func() bool {
				_, p := r.API(sk, http.MethodGet, fmt.Sprint("/agents/late-", n), nil, nil)
				return p == nil
			})
		})
	}
}

// TestSilentSocketsKeepNoRelayOut has 600 connections at the peer doors of a pool, and
// wants a relay that starts meanwhile to reach the others' agents.
func TestSilentSocketsKeepNoRelayOut(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, nil)
	f.run(1, 1)
	tun := f.open(1, "http")[0]
	there := f.holder(agentName(0))
	here := 1 - there
	for _, r := range f.relays {
		for _, kv := range r.Env {
			if addr, ok := strings.CutPrefix(kv, "ADIT_PEER_LISTEN="); ok {
				var port int
				if _, err := fmt.Sscanf(addr, "127.0.0.1:%d", &port); err != nil {
					t.Fatal(err)
				}
				crowd(t, port, "")
			}
		}
	}
	if err := f.relays[here].Stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	f.start(here)
	f.relays[here].WaitReady(time.Minute)
	status, body := 0, ""
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	f.w.Eventually(time.Minute, "a relay that has just started reaches the other's agent", func() bool {
		status, body = f.get(c, f.through(f.relays[here], tun, ""))
		return status == http.StatusOK
	})
	if holder := f.holder(agentName(0)); holder != there {
		t.Errorf("the agent moved to relay %d: this shows nothing", holder)
	}
	t.Logf("through the other relay: %d, %d bytes", status, len(body))
}

// knock makes a link with a credential, says who it is, and goes.
func knock(t *testing.T, r *world.Relay, token, id string) {
	t.Helper()
	l, err := link.Dial(t.Context(), carrier.DialOptions{URL: fmt.Sprintf("http://127.0.0.1:%d", r.Port), Token: ident.Secret(token)}, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close(nil) }()
	control, err := link.OpenHello(t.Context(), l, wire.Hello{Kind: wire.KindControl})
	if err != nil {
		t.Fatal(err)
	}
	hello := wire.Message{Type: wire.TypeHello, Hello: &wire.AgentHello{Agent: ident.AgentID(id), Instance: ident.NewNonce(), Version: "0", Platform: "test/test"}}
	if err := wire.NewEncoder(control).Write(hello); err != nil {
		t.Fatal(err)
	}
	if m, err := wire.NewDecoder(control).Read(); err != nil || m.Welcome == nil {
		t.Fatalf("the relay welcomes an agent: %+v %v", m, err)
	}
}

// audited is what a stopped relay recorded.
func audited(t *testing.T, r *world.Relay) []audit.Record {
	t.Helper()
	var out []audit.Record
	for rec, err := range audit.Read(filepath.Join(r.DataDir, "audit"), audit.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rec)
	}
	return out
}

// auditBytes is the size of the records chosen, as they are on the disk.
func auditBytes(t *testing.T, r *world.Relay, has string) (n int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.DataDir, "audit", "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			if bytes.Contains(line, []byte(has)) {
				n += len(line)
			}
		}
	}
	return n
}

// TestNobodyTurnsTheHistoryOver has one team connect an agent again and again, guess
// secrets and open and close as fast as it may, and looks at what the audit has of
// that and of the other team.
func TestNobodyTurnsTheHistoryOver(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	port := app(t, func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "hello") })
	sk, theirs := r.Credential("integration", world.Team, "--name", "quiet"), r.Credential("integration", otherTeam, "--name", "loud")
	ak := r.Credential("agent", otherTeam, "--name", "loop")
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port})
	named := makeLink(r, sk, tun, map[string]any{"name": "for the review"})

	// Viewers, each there more than once.
	for range 3 {
		for _, agent := range []string{"first/1", "second/]0;\u202e2", "\"quoted\" " + strings.Repeat("long", 200)} {
			if status, _ := world.Get(w.HTTP(), r.HostURL(tun), "User-Agent", agent); status != http.StatusOK {
				t.Fatalf("the tunnel answers: %d", status)
			}
		}
		if status, _ := world.Get(w.HTTP(), named.URL, "User-Agent", "guest/1"); status != http.StatusOK {
			t.Fatalf("the named link answers: %d", status)
		}
	}
	// Refusals by the API: another team's tunnel, a route that is not for the kind, a
	// secret that is none, also where a path should be.
	canary := ident.NewSecret(ident.PrefixDevice).Reveal()
	for _, c := range []struct {
		method, path, as string
		want             int
	}{
		{http.MethodGet, "/tunnels/" + string(tun.SessionID) + "/viewers", theirs, 404},
		{http.MethodGet, "/credentials", theirs, 403},
		{http.MethodDelete, "/credentials/" + canary, theirs, 403},
		{http.MethodGet, "/agents/gpu-1", canary, 401},
	} {
		if status, _ := r.Raw(c.as, c.method, c.path, nil); status != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, status, c.want)
		}
	}
	const guesses = 200
	for range guesses {
		r.Raw(ident.NewSecret(ident.PrefixIntegration).Reveal(), http.MethodGet, "/agents", nil)
	}

	// The loops.
	const connects, cycles = 150, 20
	for range connects {
		knock(t, r, ak, "loop-1")
	}
	fakeAgent(r, otherTeam, "gpu-1", nil)
	for range cycles {
		r.Open(theirs, "gpu-1", map[string]any{"target_port": 9})
		if status, p := r.API(theirs, http.MethodDelete, "/agents/gpu-1/tunnel", nil, nil); status != http.StatusOK {
			t.Fatalf("close: %d %v", status, p)
		}
	}
	printed := w.Run(nil, filepath.Join(w.Bin, "adit-relay"), "audit", "--team", world.Team, "--socket", filepath.Join(r.DataDir, "admin.sock"))
	if !strings.Contains(printed, `"tunnel_opened"`) || strings.Contains(printed, "loop-1") {
		t.Errorf("the quiet team's history is to be read by itself: %s", printed)
	}
	if err := r.Stop(time.Minute); err != nil {
		t.Fatal(err)
	}

	all := audited(t, r)
	written, told := map[audit.Event]int{}, map[audit.Event]int{}
	views := map[string]audit.Record{}
	var refused []string
	for _, rec := range all {
		if rec.Agent == "loop-1" || rec.Event == audit.AuthRefused && strings.HasSuffix(rec.Detail, "GET /agents") {
			written[rec.Event]++
			told[rec.Event] += int(rec.LeftOut)
			if rec.LeftOut == 0 {
				told[rec.Event]++
			}
		}
		switch rec.Event {
		case audit.TunnelViewed:
			if rec.Team != world.Team || rec.Agent != "gpu-1" || rec.Session != tun.SessionID || rec.RemoteAddr != "127.0.0.1" {
				t.Errorf("a view says of which tunnel and from where: %+v", rec)
			}
			views[rec.Detail] = rec
		case audit.APIRefused:
			refused = append(refused, rec.Actor+" "+rec.Detail)
		}
		if b, _ := json.Marshal(rec); strings.Contains(string(b), canary) || strings.Contains(string(b), string(named.URL)) {
			t.Errorf("the audit holds a secret: %s", b)
		}
	}
	for event, want := range map[audit.Event]int{audit.AgentConnected: connects, audit.AuthRefused: guesses} {
		if told[event] != want || written[event] > 30 {
			t.Errorf("%s: %d records speak for %d, want 30 at most for all %d", event, written[event], told[event], want)
		}
	}
	if len(views) != 4 {
		t.Errorf("%d views of four viewers: %v", len(views), views)
	}
	for _, part := range []string{`, http, user agent "first/1"`, `second/`, `"for the review", user agent "guest/1"`} {
		found := false
		for detail := range views {
			found = found || strings.Contains(detail, part)
		}
		if !found {
			t.Errorf("no view has %q: %v", part, views)
		}
	}
	for _, want := range []string{
		"sk:loud 404 tunnel_not_found, GET /tunnels/{session_id}/viewers", "sk:loud 403 forbidden, GET /credentials",
		"sk:loud 403 forbidden, DELETE /credentials/{credential_id}",
	} {
		if strings.Count(strings.Join(refused, "\n"), want) != 1 {
			t.Errorf("the refusal %q is in the audit once: %v", want, refused)
		}
	}

	// What a day of each loop writes of the default 1 GiB. A connect loop has two
	// records each half minute once its burst is over.
	const history, day = 1 << 30, 24 * 3600
	loop := float64(auditBytes(t, r, `"loop-1"`)) / float64(written[audit.AgentConnected]+written[audit.AgentGone]) * 2 * day / 30
	cycle := float64(auditBytes(t, r, `"sk:loud"`)) / cycles * day // 60 a minute by default
	testkit.Figure(t, "of the default history of %d MB, a day's connect loop writes %.1f MB, opening and closing at the permitted rate %.1f MB", history>>20, loop/1e6, cycle/1e6)
	if loop > history/100 || cycle > history/2 {
		t.Errorf("one credential turns the history over too fast")
	}
}
