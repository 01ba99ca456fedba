package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// agents is how many a test has: a few in the short form.
func agents(few int) int {
	if long() {
		return 200
	}
	return few
}

func TestPool(t *testing.T) {
	f := newFleet(t, 3, nil)
	n := agents(24)
	f.run(n, 1)
	t.Run("any relay serves any tunnel", f.anyRelay)
	t.Run("any relay takes a terminal's code once, and knows why a tunnel is over", f.codes)
	t.Run("close and revoke reach all relays", f.closeAndRevoke)
	t.Run("etcd's leader is killed", func(t *testing.T) { f.leaderKilled(t, n) })
	t.Run("the relay that holds the links is killed", func(t *testing.T) { f.relayKilled(t, n) })
}

// anyRelay uses tunnels through relays that do not hold the agent.
func (f *fleet) anyRelay(t *testing.T) {
	c := f.w.HTTP()
	tun := f.relays[0].Open(f.secret, agentName(0), map[string]any{"target_port": f.port()})
	tcp := f.relays[1].Open(f.secret, agentName(0), map[string]any{"target_port": f.port(), "tunnel_protocol": "tcp"})
	for i, r := range f.relays {
		if status, body := f.get(c, f.through(r, tun, "")); status != http.StatusOK || body != "the app" {
			t.Errorf("through %s: %d %s", f.names[i], status, body)
		}
		s, err := f.socket(t.Context(), f.through(r, tun, "ws"))
		if err != nil {
			t.Errorf("a WebSocket through %s: %v", f.names[i], err)
		} else {
			_ = s.Close(websocket.StatusNormalClosure, "")
		}
		raw, _, err := websocket.Dial(t.Context(), f.through(r, tcp, ""), nil)
		if err != nil {
			t.Errorf("TCP through %s: %v", f.names[i], err)
			continue
		}
		conn := websocket.NetConn(t.Context(), raw, websocket.MessageBinary)
		_, _ = conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("HTTP over TCP through %s: %v %v", f.names[i], resp, err)
		}
		_ = conn.Close()
	}
	// A refusal of the agent arrives as what it is, whichever way it came.
	shut := f.relays[0].Open(f.secret, agentName(0), map[string]any{"target_port": f.w.FreePort()})
	for i, r := range f.relays {
		if status, body := f.get(c, f.through(r, shut, "")); status != http.StatusBadGateway || !strings.Contains(body, "app_refused") {
			t.Errorf("a port where nothing listens, through %s: %d %s", f.names[i], status, body)
		}
	}
	// Viewers and figures are those of all relays, whoever is asked, and a kick
	// holds on all of them.
	var list api.ViewerList
	f.relays[2].API(f.secret, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil, &list)
	var st api.TunnelStatus
	f.relays[1].API(f.secret, http.MethodGet, "/agents/"+agentName(0)+"/tunnel", nil, &st)
	i := slices.IndexFunc(st.Sessions, func(s api.Session) bool { return s.SessionID == tun.SessionID })
	if len(list.Viewers) < 3 || i < 0 || st.Sessions[i].Viewers < 3 || st.Sessions[i].BytesOut < 3*7 {
		t.Errorf("three relays carried the tunnel: viewers %d, figures %+v", len(list.Viewers), st.Sessions)
	}
	if status, p := f.relays[2].API(f.secret, http.MethodDelete, "/tunnels/"+string(tun.SessionID)+"/viewers/"+string(list.Viewers[0].ViewerID), nil, nil); p != nil {
		t.Errorf("kick a viewer of another relay: %d %v", status, p)
	}
	kicked := list.Viewers[0].UserAgent
	for i, r := range f.relays {
		req, _ := http.NewRequest(http.MethodGet, f.through(r, tun, ""), nil)
		req.Host = strings.TrimPrefix(f.lb.url, "http://")
		req.Header.Set("User-Agent", kicked)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("the kicked viewer comes through %s: %d, want 403", f.names[i], resp.StatusCode)
		}
	}
	f.strangers(t)
}

// codes enters a terminal, which these machines do not have: what the relays say before
// and after that shows whom they admit.
func (f *fleet) codes(t *testing.T) {
	tun := f.relays[0].Open(f.secret, agentName(0), map[string]any{"target_port": f.port()})
	var made api.TerminalCode
	if status, p := f.relays[0].API(f.secret, http.MethodPost, "/tunnels/"+string(tun.SessionID)+"/terminal", nil, &made); status != http.StatusCreated {
		t.Fatalf("make a code: %d %v", status, p)
	}
	enter := func(r *world.Relay, a wire.TerminalAttach) (wire.TerminalReady, websocket.CloseError) {
		t.Helper()
		c, err := dialTerminal(t, r, string(tun.SessionID), "", a)
		if err != nil {
			t.Fatal(err)
		}
		var ready wire.TerminalReady
		if _, b, err := c.Read(t.Context()); err != nil {
			ce, _ := errors.AsType[websocket.CloseError](err)
			return ready, ce
		} else if err := json.Unmarshal(b, &ready); err != nil {
			t.Fatal(err)
		}
		return ready, terminalEnd(t, c)
	}
	_, code, _ := strings.Cut(made.TerminalURL, "#code=")
	ready, end := enter(f.relays[1], wire.TerminalAttach{Code: code})
	if ready.State != wire.TerminalAdmitted || end.Code != wire.CloseDenied {
		t.Errorf("a code of another relay: %+v %v", ready, end)
	}
	for i, r := range f.relays {
		if _, end := enter(r, wire.TerminalAttach{Code: code}); end.Code != wire.CloseRefused {
			t.Errorf("a used code at %s: %v", f.names[i], end)
		}
		if _, end := enter(r, wire.TerminalAttach{Token: ready.Right}); end.Code != wire.CloseDenied {
			t.Errorf("what it brought, at %s: %v", f.names[i], end)
		}
	}
	closeAll(f.relays[2], f.secret, agentName(0), tun)
	for i, r := range f.relays {
		for _, a := range []wire.TerminalAttach{{Token: ready.Right}, {Token: tun.AdminToken}} {
			if _, end := enter(r, a); end.Code != websocket.StatusGoingAway || end.Reason != "the tunnel was closed" {
				t.Errorf("after the close %s says %v", f.names[i], end)
			}
		}
	}
}

// strangers tries the door of the relays without being one.
func (f *fleet) strangers(t *testing.T) {
	addr := ""
	for _, kv := range f.relays[0].Env {
		if a, ok := strings.CutPrefix(kv, "ADIT_PEER_LISTEN="); ok {
			addr = a
		}
	}
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"adit.peer.v1"}, MinVersion: tls.VersionTLS13}}
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err == nil { // with TLS 1.3 the refusal comes with the first read
		_ = c.SetReadDeadline(time.Now().Add(testkit.Patience))
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	if err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("without a certificate the peer listener should refuse: %v", err)
	}
}

// closeAndRevoke times how long an end takes to reach every relay.
func (f *fleet) closeAndRevoke(t *testing.T) {
	tun := f.relays[0].Open(f.secret, agentName(1), map[string]any{"target_port": f.port()})
	type end struct {
		relay int
		code  websocket.StatusCode
		took  time.Duration
	}
	ends := make(chan end, len(f.relays))
	var began time.Time
	var ready sync.WaitGroup
	start := make(chan struct{})
	for i, r := range f.relays {
		s, err := f.socket(t.Context(), f.through(r, tun, "ws"))
		if err != nil {
			t.Fatal(err)
		}
		ready.Add(1)
		go func() {
			ready.Done()
			_, _, err := s.Read(t.Context())
			<-start
			ends <- end{i, websocket.CloseStatus(err), time.Since(began)}
		}()
	}
	ready.Wait()
	away := (f.holder(agentName(1)) + 1) % 3
	began = time.Now()
	close(start)
	if status, p := f.relays[away].API(f.secret, http.MethodDelete, "/agents/"+agentName(1)+"/tunnel?session_id="+string(tun.SessionID), nil, nil); p != nil {
		t.Fatalf("close: %d %v", status, p)
	}
	answered := time.Since(began)
	var worst time.Duration
	for range f.relays {
		e := <-ends
		worst = max(worst, e.took)
		if e.code != websocket.StatusGoingAway {
			t.Errorf("closing reached %s with code %d, want 1001", f.names[e.relay], e.code)
		}
		testkit.Took(t, "closing reaches "+f.names[e.relay], e.took, time.Second)
	}
	for i, r := range f.relays {
		if status, _ := f.get(f.w.HTTP(), f.through(r, tun, "")); status != http.StatusNotFound {
			t.Errorf("%s still knows the closed tunnel: %d", f.names[i], status)
		}
	}
	var st api.Agent
	f.relays[away].API(f.secret, http.MethodGet, "/agents/"+agentName(1), nil, &st)
	if st.AgentStatus != api.StatusIdle {
		t.Errorf("after the close was answered the agent is %s", st.AgentStatus)
	}
	t.Logf("close: answered after %s, all relays' WebSockets ended with 1001 after %s", answered.Round(time.Millisecond), worst.Round(time.Millisecond))

	secret := f.relays[1].Credential("integration", world.Team, "--name", "short-lived")
	gone := make(chan time.Time, len(f.relays))
	for _, r := range f.relays {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.Addr()+api.Base+"/agents/watch", nil)
		req.Header.Set("Authorization", "Bearer "+secret)
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("watch: %v %v", resp, err)
		}
		go func() {
			defer resp.Body.Close()
			lines := bufio.NewScanner(resp.Body)
			lines.Buffer(nil, 1<<20)
			for lines.Scan() {
			}
			gone <- time.Now()
		}()
	}
	id := f.credential(t, "short-lived")
	began = time.Now()
	f.w.Run(nil, f.w.Bin+"/adit-relay", "credential", "revoke", id, "--socket", f.relays[0].DataDir+"/admin.sock")
	done := time.Now()
	worst = 0
	for range f.relays {
		worst = max(worst, (<-gone).Sub(began))
	}
	testkit.Took(t, "revoking reaches all relays", worst, time.Second+done.Sub(began))
	for i, r := range f.relays {
		if status, _ := r.Raw(secret, http.MethodGet, "/agents", nil); status != http.StatusUnauthorized {
			t.Errorf("%s still takes the revoked credential: %d", f.names[i], status)
		}
	}
	t.Logf("revoke: all relays' streams ended %s after the command began (it took %s)", worst.Round(time.Millisecond), done.Sub(began).Round(time.Millisecond))
}

// credential finds a credential's id by its name.
func (f *fleet) credential(t *testing.T, name string) string {
	t.Helper()
	out := f.w.Run(nil, f.w.Bin+"/adit-relay", "credential", "list", "--team", world.Team, "--json", "--socket", f.relays[0].DataDir+"/admin.sock")
	list := decode[api.CredentialList](t, []byte(out))
	for _, c := range list.Credentials {
		if c.Name == name {
			return string(c.ID)
		}
	}
	t.Fatalf("no credential %q in %s", name, out)
	return ""
}

// addresses are the tunnels' through each relay in turn.
func (f *fleet) addresses(tunnels []api.Tunnel, but int) []string {
	var out []string
	for i, tun := range tunnels {
		for k := range f.relays {
			if r := (i + k) % len(f.relays); r != but {
				out = append(out, f.through(f.relays[r], tun, ""))
				break
			}
		}
	}
	return out
}

// leaderKilled shows that tunnels do not notice and that opens wait or are refused
// for a short time.
func (f *fleet) leaderKilled(t *testing.T, n int) {
	tr := f.traffic(min(n, 24), 50*time.Millisecond, func(tunnels []api.Tunnel) []string { return f.addresses(tunnels, -1) })
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var refused, opened int
	var slowest, longest time.Duration
	wg.Go(func() {
		last := time.Now()
		for ctx.Err() == nil {
			began := time.Now()
			status, raw := f.relays[opened%3].Raw(f.secret, http.MethodPost, "/agents/"+agentName(2)+"/tunnel", map[string]any{"target_port": f.port(), "idle_timeout": "1h"})
			slowest = max(slowest, time.Since(began))
			switch status {
			case http.StatusCreated:
				opened++
				longest, last = max(longest, time.Since(last)), time.Now()
				tun := decode[api.Tunnel](t, raw)
				f.relays[0].Raw(f.secret, http.MethodDelete, "/agents/"+agentName(2)+"/tunnel?session_id="+string(tun.SessionID), nil)
			case http.StatusServiceUnavailable:
				refused++
				<-time.After(50 * time.Millisecond)
			default:
				t.Errorf("an open was answered %d: %s", status, raw)
			}
		}
	})
	what := f.etcd.killLeader()
	<-time.After(3 * time.Second) // the load goes on over the whole change
	stop()
	wg.Wait()
	tr.end()
	if tr.http.failed.Load()+tr.posts.failed.Load() > 0 || tr.ws.ended+tr.tcp.ended > 0 {
		t.Errorf("existing tunnels noticed: %s\n%s", tr, tr.faults())
	}
	tr.ws.check(t, "WebSockets", 0, 0)
	tr.tcp.check(t, "TCP", 0, 0)
	if longest > 5*time.Second {
		t.Errorf("no tunnel could be opened for %s", longest)
	}
	t.Logf("etcd's leader %s; opens: %d done, %d refused with 503, slowest %s, none for %s at most; tunnels: %s", what, opened, refused, slowest.Round(time.Millisecond), longest.Round(time.Millisecond), tr)
	f.closeAll(t, tr.tunnels[:min(n, 24)])
}

func (f *fleet) closeAll(t *testing.T, tunnels []api.Tunnel) {
	t.Helper()
	for i := range tunnels {
		if status, p := f.relays[0].API(f.secret, http.MethodDelete, "/agents/"+agentName(i)+"/tunnel", nil, nil); p != nil {
			t.Errorf("close the tunnels of %s: %d %v", agentName(i), status, p)
		}
	}
}

// relayKilled kills a relay that holds links, under load of all kinds and while
// everything that has a record is made and ended through it too. It times when the
// others serve again, and wants all that was acknowledged to be there.
func (f *fleet) relayKilled(t *testing.T, n int) {
	used := n * 3 / 4 // the others are for tasks
	victim := f.holder(agentName(0))
	tr := f.traffic(used, 50*time.Millisecond, func(tunnels []api.Tunnel) []string { return f.addresses(tunnels, victim) })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	b, wait := f.keepBooks(ctx, used, n-used)
	<-time.After(1500 * time.Millisecond)
	began := time.Now()
	f.relays[victim].Kill()
	// All are back when every agent is at a living relay and its tunnel answers.
	c := f.w.HTTP()
	for i, a := range f.addresses(tr.tunnels[:used], victim) {
		f.w.Eventually(15*time.Second, "the tunnel of "+agentName(i)+" works again", func() bool {
			status, _ := f.get(c, a)
			return status == http.StatusOK
		})
	}
	back := time.Since(began)
	<-time.After(time.Second)
	stop()
	wait()
	tr.end()
	for kind, longest := range map[string]time.Duration{"GET": tr.http.longest, "POST": tr.posts.longest} {
		if longest > 5*time.Second {
			t.Errorf("after a kill -9 a tunnel served no %s for %s", kind, longest)
		}
	}
	tr.ws.check(t, "WebSockets", websocket.StatusServiceRestart, 5*time.Second)
	tr.tcp.check(t, "TCP", websocket.StatusServiceRestart, 5*time.Second)
	b.check(t)
	for _, tun := range tr.tunnels { // were acknowledged, too
		b.tunnels = append(b.tunnels, &entry{agent: agentOf(tr.tunnels, tun, used), id: string(tun.SessionID)})
	}
	for i, r := range f.relays {
		if i != victim {
			b.audit(t, r, f.names[i])
		}
	}
	f.start(victim)
	f.relays[victim].WaitReady(60 * time.Second)
	b.audit(t, f.relays[victim], f.names[victim]+", started again")
	records := b.recorded(t)
	t.Logf("kill -9 of %s, which held a third of %d agents: all back after %s; through the others: %s\n\t%s; lost: none, on no relay; %d audit records of it, all there",
		f.names[victim], n, back.Round(time.Millisecond), tr, b, records)
	if faults := tr.faults(); faults != "" {
		t.Logf("failed meanwhile: %s", faults)
	}
	b.end(f.relays[victim])
}
