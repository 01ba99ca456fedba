package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/wire"
)

// previous is a world of the programs of the version before this one, in the same
// directory.
func previous(w *world.World) *world.World {
	w.T.Helper()
	out, err := exec.CommandContext(w.T.Context(), "../../scripts/previous").Output()
	if err != nil {
		said := ""
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			said = string(e.Stderr)
		}
		w.T.Fatalf("build the previous version: %v\n%s", err, said)
	}
	old := *w
	old.Bin = strings.TrimSpace(string(out))
	now, then := w.Run(nil, filepath.Join(w.Bin, "adit-relay"), "version"), w.Run(nil, filepath.Join(old.Bin, "adit-relay"), "version")
	if now == then {
		w.T.Fatalf("both versions are %s", now)
	}
	w.T.Logf("this version %s, the previous one %s", strings.TrimSpace(now), strings.TrimSpace(then))
	return &old
}

// TestUpgradeOneSide: this version's relay with the previous agent, and the other way
// round, in everything that the two say to each other.
func TestUpgradeOneSide(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	old := previous(w)
	for name, halves := range map[string][2]*world.World{"old agent": {w, old}, "old relay": {old, w}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			relaySide, agentSide := *halves[0], *halves[1]
			relaySide.T, agentSide.T = t, t
			relaySide.Dir, agentSide.Dir = t.TempDir(), t.TempDir()
			r := relaySide.NewRelay(world.PathForm)
			r.Start()
			r.WaitReady(60 * time.Second)
			a := agentSide.NewAgent(r, "gpu-1", "ADIT_LABELS=pool=render,zone=a")
			a.Start()
			sk := r.Credential("integration", world.Team)
			a.WaitOnline(r, sk, 60*time.Second)
			labelled(t, r, w, sk, relaySide.Bin == w.Bin)
			everything(t, r, a, sk)
			if err := a.Stop(30 * time.Second); err != nil {
				t.Errorf("the agent stops: %v", err)
			}
			if err := r.Stop(60 * time.Second); err != nil {
				t.Errorf("the relay stops: %v", err)
			}
		})
	}
}

// labelled looks for the agent's labels: in the API, and with this version's command.
// What the relay adds to them is there if the relay is of this version.
func labelled(t *testing.T, r *world.Relay, now *world.World, sk string, adds bool) {
	t.Helper()
	var one api.Agent
	if status, p := r.API(sk, http.MethodGet, "/agents/gpu-1", nil, &one); status != http.StatusOK {
		t.Fatalf("show the agent: %d %v", status, p)
	}
	list := now.Run([]string{"ADIT_URL=" + fmt.Sprintf("http://127.0.0.1:%d", r.Port), "ADIT_TOKEN=" + sk}, filepath.Join(now.Bin, "adit"), "agents", "--json")
	for label, want := range map[string]bool{"pool=render": true, "zone=a": true, runtime.GOARCH: adds} {
		if slices.Contains(one.AgentLabels, label) != want || strings.Contains(list, fmt.Sprintf("%q", label)) != want {
			t.Errorf("the label %s should be there: %v; the API has %q, adit agents says %s", label, want, one.AgentLabels, list)
		}
	}
}

// everything uses what goes over the link, and what both sides decide together.
func everything(t *testing.T, r *world.Relay, a *world.Agent, sk string) {
	t.Helper()
	w := r.W
	port, tcp := appPort(t), echo(t)

	// The gate, asked on the machine and at the relay.
	task := func() (int, string) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(a.W.Bin, "adit-agent"), "task", "--id", "job-1", "--", "true")
		cmd.Env = append(cmd.Environ(), a.Env...)
		out, err := cmd.CombinedOutput()
		code := 0
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			code = e.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		return code, string(out)
	}
	if code, out := task(); code != 0 {
		t.Errorf("a task beside no tunnel: exit code %d\n%s", code, out)
	}
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port})
	if code, out := task(); code != 75 {
		t.Errorf("a task beside a tunnel: exit code %d, want 75\n%s", code, out)
	}
	if status, p := r.API(sk, http.MethodPost, "/agents/gpu-1/tasks", map[string]any{"task_id": "job-2"}, nil); status != http.StatusConflict || p.Code != "agent_in_tunnel" {
		t.Errorf("a lease beside a tunnel: %d %v, want 409 agent_in_tunnel", status, p)
	}

	// HTTP, in both forms of URL, and WebSockets.
	c := w.HTTP()
	for _, url := range []string{r.PathURL(tun), r.HostURL(tun)} {
		if status, body := world.Get(c, url); status != http.StatusOK {
			t.Errorf("the tunnel answers %d %s", status, body)
		}
	}
	sayHello(t, w, strings.Replace(r.PathURL(tun), "http", "ws", 1)+"ws", websocket.MessageText)

	// TCP, with commands of either version.
	stream := r.Open(sk, "gpu-1", map[string]any{"target_port": tcp, "tunnel_protocol": "tcp"})
	sayHello(t, w, stream.TunnelURL, websocket.MessageBinary)
	for _, bin := range []string{w.Bin, a.W.Bin} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "adit"), "connect", "--stdio")
		cmd.Env = append(cmd.Environ(), "ADIT_TUNNEL_URL="+stream.TunnelURL)
		cmd.Stdin = strings.NewReader("over the command\n")
		out, err := cmd.Output()
		if err != nil || string(out) != "over the command\n" {
			t.Errorf("adit connect: %q, %v", out, err)
		}
		list := w.Run([]string{"ADIT_URL=" + fmt.Sprintf("http://127.0.0.1:%d", r.Port), "ADIT_TOKEN=" + sk}, filepath.Join(bin, "adit"), "status", "gpu-1", "--json")
		if !strings.Contains(list, string(tun.SessionID)) {
			t.Errorf("adit status shows the tunnel: %s", list)
		}
	}

	if status, p := r.API(sk, http.MethodDelete, "/agents/gpu-1/tunnel", nil, nil); status != http.StatusOK {
		t.Fatalf("close: %d %v", status, p)
	}
	if status, _ := world.Get(c, r.PathURL(tun)); status != http.StatusNotFound {
		t.Errorf("a closed tunnel answers %d, want 404", status)
	}
	w.Eventually(20*time.Second, "tasks are admitted again", func() bool {
		code, _ := task()
		return code == 0
	})
}

// appPort is the port of an app with a WebSocket.
func appPort(t *testing.T) int {
	t.Helper()
	port, err := strconv.Atoi(ownApp(t).Port())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// sayHello sends a message and wants it back. The app may say something first.
func sayHello(t *testing.T, w *world.World, url string, kind websocket.MessageType) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: w.HTTP()})
	if err != nil {
		t.Errorf("open a WebSocket: %v", err)
		return
	}
	defer func() { _ = c.CloseNow() }()
	if err := c.Write(ctx, kind, []byte("hello")); err != nil {
		t.Errorf("write to a WebSocket: %v", err)
	}
	for {
		_, b, err := c.Read(ctx)
		if err != nil {
			t.Errorf("nothing came back over the WebSocket: %v", err)
			return
		}
		if strings.Contains(string(b), "hello") {
			return
		}
	}
}

// echo is an app that speaks TCP.
func echo(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 32<<10)
				for {
					n, err := c.Read(buf)
					if _, werr := c.Write(buf[:n]); err != nil || werr != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// TestUpgradeRelayInPlace restarts a relay as the next version on the same data, with
// a tunnel and a lease there, and as the previous one again.
func TestUpgradeRelayInPlace(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	old := previous(w)
	r := old.NewRelay()
	r.Start()
	r.WaitReady(60 * time.Second)
	a := old.NewAgent(r, "gpu-1")
	a.Start()
	b := old.NewAgent(r, "gpu-2")
	b.Start()
	sk := r.Credential("integration", world.Team)
	a.WaitOnline(r, sk, 60*time.Second)
	b.WaitOnline(r, sk, 60*time.Second)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": appPort(t)})
	var lease api.TaskLease
	if status, p := r.API(sk, http.MethodPost, "/agents/gpu-2/tasks", map[string]any{"task_id": "job-1", "ttl": "10m"}, &lease); status != http.StatusCreated {
		t.Fatalf("admit a task: %d %v", status, p)
	}
	c := w.HTTP()
	for i, next := range []*world.World{w, old} {
		name := []string{"this version", "the previous version again"}[i]
		began := time.Now()
		if err := r.Stop(60 * time.Second); err != nil {
			t.Errorf("stop: %v", err)
		}
		r.W = next
		r.Start()
		w.Eventually(60*time.Second, "the same URL leads to the app under "+name, func() bool {
			status, _ := world.Get(c, r.HostURL(tun))
			return status == http.StatusOK
		})
		// The other URL was the app's under the previous version, and leads there now.
		want := []int{http.StatusPermanentRedirect, http.StatusOK}[i]
		if status, body := world.Get(c, r.PathURL(tun)); status != want {
			t.Errorf("the path form under %s: %d %s, want %d", name, status, body, want)
		}
		t.Logf("%s serves the tunnel %s after the stop began", name, time.Since(began).Round(time.Millisecond))
		sayHello(t, w, strings.Replace(r.HostURL(tun), "http", "ws", 1)+"ws", websocket.MessageText)
		if status, p := r.API(sk, http.MethodPut, "/agents/gpu-2/tasks/job-1", map[string]any{"lease_token": lease.LeaseToken, "ttl": "10m"}, nil); status != http.StatusOK {
			t.Errorf("%s renews the lease: %d %v", name, status, p)
		}
		if status, p := r.API(sk, http.MethodPost, "/agents/gpu-1/tasks", map[string]any{"task_id": "job-2"}, nil); status != http.StatusConflict || p.Code != "agent_in_tunnel" {
			t.Errorf("%s keeps tasks from the tunnel: %d %v", name, status, p)
		}
	}
}

// TestUpgradeMixedPool runs a pool of one relay of each version: requests that land
// on the one without the machine's link take the hop to the other.
func TestUpgradeMixedPool(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, nil)
	old := previous(f.w)
	if err := f.relays[1].Stop(60 * time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	f.relays[1].Process = f.w.Start("relay-b, previous", f.relays[1].Env, filepath.Join(old.Bin, "adit-relay"), "serve")
	f.relays[1].WaitReady(60 * time.Second)
	const n = 6
	f.run(n, 1)
	tunnels := f.open(n, "http")
	hops := 0
	for i, tun := range tunnels {
		for k, r := range f.relays {
			if f.holder(agentName(i)) != k {
				hops++
			}
			address := fmt.Sprintf("http://127.0.0.1:%d/tunnel/", r.Port)
			_, segment, _ := strings.Cut(r.PathURL(tun), "/tunnel/")
			f.w.Eventually(30*time.Second, "the tunnel works through "+f.names[k], func() bool {
				status, _ := world.Get(f.w.HTTP(), address+segment)
				return status == http.StatusOK
			})
		}
	}
	if hops != n {
		t.Errorf("each machine is linked to one relay: %d hops, want %d", hops, n)
	}
	t.Logf("%d machines on relays of two versions; %d requests took the hop between them", n, hops)

	// A code of this version enters through it, whoever holds the machine; why a tunnel is
	// over is known to this version, whoever closed it.
	for i, tun := range tunnels {
		code := terminalURL(f.relays[0], tun, false)
		c, err := dialTerminal(t, f.relays[0], string(tun.SessionID), "", wire.TerminalAttach{Code: code[strings.Index(code, "#code=")+6:]})
		if err != nil {
			t.Fatal(err)
		}
		if _, b, err := c.Read(t.Context()); err != nil || !strings.Contains(string(b), wire.TerminalAdmitted) {
			t.Errorf("a code: %s %v", b, err)
		}
		closeAll(f.relays[i%2], f.secret, agentName(i), tun)
		f.w.Eventually(30*time.Second, "both relays know of the close", func() bool {
			status, _ := f.relays[0].Raw(tun.AdminToken, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil)
			return status == http.StatusNotFound
		})
		if c, err = dialTerminal(t, f.relays[0], string(tun.SessionID), "", wire.TerminalAttach{Token: tun.AdminToken}); err != nil {
			t.Fatal(err)
		}
		if end := terminalEnd(t, c); end.Code != websocket.StatusGoingAway || end.Reason != "the tunnel was closed" && end.Reason != "the tunnel is closed" {
			t.Errorf("after the close by %s: %v", f.names[i%2], end)
		}
	}
	// A credential is revoked through either, and has opened a tunnel through either on
	// machines of both: all are closed, also by the version that knows nothing of that.
	for by, r := range f.relays {
		sk := f.relays[0].Credential("integration", world.Team, "--name", fmt.Sprint("stolen-", by))
		id := credentialID(t, f.relays[0], world.Team, sk)
		var stolen []api.Tunnel
		for i := range n {
			stolen = append(stolen, f.relays[i/2%2].Open(sk, agentName(i), map[string]any{"target_port": f.port()}))
		}
		program := f.w.Bin
		if by == 1 {
			program = old.Bin
		}
		f.w.Run(nil, filepath.Join(program, "adit-relay"), "credential", "revoke", id, "--socket", filepath.Join(r.DataDir, "admin.sock"))
		f.w.Eventually(10*time.Second, "what the credential opened is closed, revoked through "+f.names[by], func() bool {
			for _, tun := range stolen {
				for _, r := range f.relays {
					if status, _ := f.get(f.w.HTTP(), f.through(r, tun, "")); status != http.StatusNotFound {
						return false
					}
				}
			}
			return true
		})
	}
}
