package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/checker"
	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// TestPoolHostCutOff pulls the cable that connects one host, with a relay and a
// member of etcd on it, with the other two, while callers everywhere try to open
// tunnels and to run tasks on the same agents. Users and agents still reach all
// three relays. The one that is cut off grants nothing and says why, carries on what
// runs until its lease is over, and is as before when the cable is back; the checker
// finds that no task and tunnel ever met.
func TestPoolHostCutOff(t *testing.T) {
	f := newFleetOn(t, 3, func(w *world.World) *world.Net { return w.NewNet(3) }, nil)
	const n, people = 9, 6 // the last three agents are for people alone
	f.run(n, 1)
	tunnels := f.open(n, "http")
	mine := -1
	for i := people; i < n; i++ {
		if f.holder(agentName(i)) == 0 {
			mine = i
		}
	}
	if mine < 0 {
		t.Fatal("the relay to be cut off holds no agent")
	}
	for i := range people { // these are for both
		f.relays[1].Raw(f.secret, http.MethodDelete, "/agents/"+agentName(i)+"/tunnel", nil)
	}
	cut := f.relays[0]
	lucky := &lucky{cut: cut}
	c, wait := f.callEverywhere(people, lucky)
	through := f.load([]string{f.through(f.relays[1], tunnels[mine], "")}, 50*time.Millisecond)
	<-time.After(2 * time.Second)

	ws := f.watchSocket(f.through(cut, tunnels[mine], "ws"))
	began := time.Now()
	f.net.Pull(0)
	lucky.from(began.Add(200 * time.Millisecond)) // what was on its way when the cable was pulled may be done
	said := f.saysWhy(t, cut, tunnels[mine].AdminToken, mine)
	served := ws(15 * time.Second)
	if served < 2*time.Second {
		t.Errorf("the relay that was cut off carried its WebSocket for %s; it should until its lease is over, 8s after the last renewal", served)
	}
	testkit.Took(t, "the relay that was cut off ends its WebSocket", served, 11*time.Second)
	f.w.Eventually(30*time.Second, "the tunnel works through the other relays", func() bool {
		status, _ := f.get(f.w.HTTP(), f.through(f.relays[2], tunnels[mine], ""))
		return status == http.StatusOK
	})
	moved := time.Since(began)
	if v := f.metric(t, cut, "adit_relay_store_serving"); v != 0 {
		t.Errorf("cut off for %s, its metric serving is %v", moved, v)
	}
	if !strings.Contains(cut.Log(), "the relay lost its lease") || !strings.Contains(cut.Log(), "the store does not answer") {
		t.Error("the log of the relay that is cut off does not say what happened")
	}
	lucky.until(time.Now())
	f.net.Plug(0)
	healed := time.Now()
	cut.WaitReady(60 * time.Second)
	ready := time.Since(healed)
	f.w.Eventually(30*time.Second, "the relay serves again", func() bool {
		status, _ := f.get(f.w.HTTP(), f.through(cut, tunnels[mine], ""))
		return status == http.StatusOK
	})
	again := time.Since(healed)
	<-time.After(time.Second)
	wait()
	through.end()
	t.Logf("host cut off: its WebSocket was carried for %s, the tunnel was at another relay after %s (there: %s); cable back: ready after %s, serves after %s",
		served.Round(time.Millisecond), moved.Round(time.Millisecond), through, ready.Round(time.Millisecond), again.Round(time.Millisecond))
	t.Logf("what it said meanwhile:\n%s", said)
	t.Logf("granted while it lasted: %d by the relay that was cut off, %d by the others", lucky.there, lucky.elsewhere)
	if lucky.there > 0 || lucky.elsewhere == 0 {
		t.Errorf("the relay that was cut off acknowledged %d calls, the others %d", lucky.there, lucky.elsewhere)
	}
	f.proveGate(t, c)
}

// lucky counts the calls that were acknowledged while a relay was cut off.
type lucky struct {
	cut              *world.Relay
	mu               sync.Mutex
	begin, end       time.Time
	there, elsewhere int
}

func (l *lucky) from(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin = at
}

func (l *lucky) until(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end = at
}

func (l *lucky) heard(r *world.Relay, got checker.Call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !got.OK() || l.begin.IsZero() || got.Sent.Before(l.begin) || !l.end.IsZero() && got.Got.After(l.end):
	case r == l.cut:
		l.there++
	default:
		l.elsewhere++
	}
}

// callEverywhere has callers open, close, admit and renew on the first n agents
// through all relays.
func (f *fleet) callEverywhere(n int, l *lucky) (c *callers, wait func()) {
	var boxes []box
	for i := range n {
		boxes = append(boxes, box{id: agentName(i)})
	}
	c = newCallers(f.relays, boxes, f.secret)
	c.told = l.heard
	ctx, stop := context.WithCancel(f.t.Context())
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() { c.run(ctx, i) })
	}
	f.t.Cleanup(func() { stop(); wg.Wait() })
	return c, func() { stop(); wg.Wait() }
}

// watchSocket echoes on a WebSocket; the function it returns waits for its end and
// returns how long it lived from now.
func (f *fleet) watchSocket(address string) func(limit time.Duration) time.Duration {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	ws, err := f.socket(ctx, address)
	if err != nil {
		f.t.Fatalf("a WebSocket through %s: %v", address, err)
	}
	began, ended := time.Now(), make(chan time.Time, 1)
	go func() {
		defer func() { _ = ws.CloseNow() }()
		last := began
		for ws.Write(ctx, websocket.MessageText, []byte("still there?")) == nil {
			if _, _, err := ws.Read(ctx); err != nil {
				break
			}
			last = time.Now()
			<-time.After(20 * time.Millisecond)
		}
		ended <- last
	}()
	return func(limit time.Duration) time.Duration {
		f.t.Helper()
		defer cancel()
		select {
		case last := <-ended:
			return last.Sub(began)
		case <-time.After(testkit.Limit(limit)):
			f.t.Fatalf("a WebSocket goes on, expected its end within %s", limit)
			return 0
		}
	}
}

// saysWhy asks the relay that is cut off for what it must not grant, and where an
// operator would look. It returns what it said.
func (f *fleet) saysWhy(t *testing.T, cut *world.Relay, admin string, agent int) string {
	t.Helper()
	var said []string
	for _, ask := range []struct {
		method, path, secret string
		body                 map[string]any
	}{
		{http.MethodPost, "/agents/" + agentName(agent) + "/tunnel", f.secret, map[string]any{"target_port": f.port()}},
		{http.MethodPost, "/agents/" + agentName(agent) + "/tasks", f.secret, map[string]any{"ttl": "60s"}},
	} {
		status, raw := cut.Raw(ask.secret, ask.method, ask.path, ask.body)
		if status != http.StatusServiceUnavailable || !strings.Contains(string(raw), "store_unavailable") {
			t.Errorf("cut off, %s %s is answered %d: %s", ask.method, ask.path, status, raw)
		}
		said = append(said, fmt.Sprintf("%s %s: %d %s", ask.method, ask.path, status, strings.TrimSpace(string(raw))))
	}
	f.w.Eventually(15*time.Second, "readyz says that the store does not answer", func() bool {
		status, body := world.Get(f.w.HTTP(), "http://"+cut.Addr()+"/readyz")
		if status != http.StatusServiceUnavailable || !strings.Contains(body, "the store") {
			return false
		}
		said = append(said, fmt.Sprintf("readyz: %d %s", status, strings.TrimSpace(body)))
		return true
	})
	out, err := f.w.Try(nil, f.w.Bin+"/adit-relay", "status", "--socket", filepath.Join(cut.DataDir, "admin.sock"))
	if !strings.Contains(out+fmt.Sprint(err), "the store does not answer") {
		t.Errorf("status does not say why: %v %s", err, out)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "store") {
			said = append(said, "status: "+strings.TrimSpace(line))
		}
	}
	return strings.Join(said, "\n")
}

// metric reads one number of a relay, wherever it runs.
func (f *fleet) metric(t *testing.T, r *world.Relay, name string) float64 {
	t.Helper()
	_, body := world.Get(f.w.HTTP(), fmt.Sprintf("http://%s:%d/metrics", r.Host, r.Metrics))
	for line := range strings.Lines(body) {
		var v float64
		if _, err := fmt.Sscanf(line, name+" %g", &v); err == nil {
			return v
		}
	}
	t.Errorf("no metric %s", name)
	return -1
}

// proveGate waits until nothing is under way and has the checker look at all that is
// left: the relays' audit, the store's history and what the callers were told.
func (f *fleet) proveGate(t *testing.T, c *callers) {
	t.Helper()
	for _, b := range c.agents { // tunnels that nobody closed
		c.call("http://"+f.relays[1].Addr()+api.Base, http.MethodDelete, "/agents/"+b.id+"/tunnel", nil, checker.Call{Op: checker.OpClose, Key: b.key()})
	}
	var left past
	f.w.Eventually(60*time.Second, "what ran out is dropped and what closes is closed", func() bool {
		left = f.etcd.past(t)
		return left.quiet()
	})
	var dirs []string
	for i, r := range f.relays {
		if err := r.Stop(30 * time.Second); err != nil {
			t.Errorf("%s: %v", f.names[i], err)
		}
		dirs = append(dirs, filepath.Join(r.DataDir, "audit"))
	}
	records, err := checker.ReadAudit(dirs...)
	if err != nil {
		t.Fatal(err)
	}
	left = f.etcd.past(t)
	report := checker.Check(checker.Input{Audit: records, History: left.versions, Journal: c.journal, Skew: time.Second})
	t.Logf("the checker found:\n%s", report)
	if len(report.Violations) > 0 {
		t.Errorf("%d violations", len(report.Violations))
	}
	for _, name := range []string{"tunnels", "tasks admitted", "admissions refused as agent_in_tunnel"} {
		if report.Count(name) == 0 {
			t.Errorf("%s: none at all, so nothing was shown", name)
		}
	}
}
