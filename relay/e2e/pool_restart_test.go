package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/shared/api"
)

// TestPoolRollingRestart stops and starts one relay after the other, as an upgrade
// does, under load through a load balancer.
func TestPoolRollingRestart(t *testing.T) {
	f := newFleet(t, 3, nil)
	n := agents(18)
	f.run(n, 1)
	tr := f.traffic(n, 40*time.Millisecond, func(tunnels []api.Tunnel) (at []string) {
		for _, tun := range tunnels {
			at = append(at, f.relays[0].PathURL(tun))
		}
		return at
	})
	began := time.Now()
	for i, r := range f.relays {
		if err := r.Stop(30 * time.Second); err != nil {
			t.Errorf("%s: %v", f.names[i], err)
		}
		f.start(i)
		r.WaitReady(60 * time.Second)
		<-time.After(300 * time.Millisecond) // the balancer finds it again
	}
	took := time.Since(began)
	tr.end()
	if tr.http.failed.Load()+tr.posts.failed.Load() > 0 {
		t.Errorf("a rolling restart should fail no request: %s\n%s", tr, tr.faults())
	}
	tr.ws.check(t, "WebSockets", websocket.StatusServiceRestart, 2*time.Second)
	tr.tcp.check(t, "TCP", websocket.StatusServiceRestart, 2*time.Second)
	if tr.ws.ended == 0 {
		t.Error("no WebSocket was on a relay that stopped: nothing was shown")
	}
	t.Logf("rolling restart of three relays with %d agents in %s: %s", n, took.Round(time.Millisecond), tr)
}

// TestPoolTwoLinks shows that an agent with links to two relays loses nothing with
// one of them, whichever it is, and that a close waits for both.
func TestPoolTwoLinks(t *testing.T) {
	f := newFleet(t, 3, nil)
	n := agents(12)
	f.run(n, 2)
	tunnels := f.open(n, "http")
	f.w.Eventually(20*time.Second, "every agent is linked to two relays", func() bool {
		total := 0.0
		for _, r := range f.relays {
			total += gauge(t, r.Metrics, "adit_relay_agent_sessions")
		}
		return total == float64(2*n)
	})
	victim := f.holder(agentName(0))
	addresses := f.addresses(tunnels, victim)
	l := f.load(addresses, 20*time.Millisecond)
	socket, err := f.socket(t.Context(), strings.TrimSuffix(addresses[0], "/")+"/ws")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.CloseNow() }()
	<-time.After(500 * time.Millisecond)
	f.relays[victim].Kill()
	<-time.After(2 * time.Second)
	l.end()
	if l.longest > time.Second {
		t.Errorf("losing one of two relays cost more than it may: %s\n%s", l, strings.Join(l.faults, "\n"))
	}
	t.Logf("kill -9 of %s with %d agents of two links each: %s\n%s", f.names[victim], n, l, strings.Join(l.faults, "\n"))

	// Close a tunnel of an agent that had the victim first. Its process is not there
	// to say that it cut: what it might carry counts until its lease is over.
	other := (victim + 1) % 3
	began := time.Now()
	for _, tun := range tunnels {
		f.relays[other].Raw(f.secret, "DELETE", "/agents/"+agentOf(tunnels, tun, n)+"/tunnel?session_id="+string(tun.SessionID), nil)
	}
	f.w.Eventually(30*time.Second, "every agent is idle again", func() bool {
		for i := range n {
			var a api.Agent
			f.relays[other].API(f.secret, "GET", "/agents/"+agentName(i), nil, &a)
			if a.AgentStatus != api.StatusIdle {
				return false
			}
		}
		return true
	})
	t.Logf("closing all %d tunnels after the kill: idle after %s", n, time.Since(began).Round(time.Millisecond))
	f.start(victim)
	f.relays[victim].WaitReady(60 * time.Second)
}

// agentOf names the agent of a tunnel that is one of several rounds over the first n.
func agentOf(tunnels []api.Tunnel, t api.Tunnel, n int) string {
	return agentName(slices.IndexFunc(tunnels, func(x api.Tunnel) bool { return x.SessionID == t.SessionID }) % n)
}
