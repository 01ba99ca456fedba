package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// long says whether the tests may take their full size and time.
func long() bool { return testkit.Long() }

// together runs a test beside others, but not in the long form, which judges how long
// things take.
func together(t *testing.T) {
	if !long() {
		t.Parallel()
	}
}

// pinging sends a control stream's pings, as an agent does that has nothing to report.
func pinging(ctx context.Context, out *wire.Encoder) {
	tick := time.NewTicker(wire.HeartbeatInterval)
	defer tick.Stop()
	for id := uint64(1); ; id++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if out.Write(wire.Message{Type: wire.TypePing, Ping: &wire.Ping{ID: id}}) != nil {
				return
			}
		}
	}
}

// fakeAgent brings up an agent of the test's own, with a real link to a real relay.
// It serves streams with serve; without it, it accepts none.
func fakeAgent(r *world.Relay, team, id string, serve func(net.Conn)) *link.Link {
	t := r.W.T
	t.Helper()
	token := r.Credential("agent", team, "--agent", id, "--name", "fake-"+id)
	ctx := t.Context()
	l, err := link.Dial(ctx, carrier.DialOptions{URL: fmt.Sprintf("http://127.0.0.1:%d", r.Port), Token: ident.Secret(token)}, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(nil) })
	control, err := link.OpenHello(ctx, l, wire.Hello{Kind: wire.KindControl})
	if err != nil {
		t.Fatal(err)
	}
	out, in := wire.NewEncoder(control), wire.NewDecoder(control)
	if err := out.Write(wire.Message{Type: wire.TypeHello, Hello: &wire.AgentHello{Agent: ident.AgentID(id), Instance: ident.NewNonce(), Version: "0", Platform: "test/test"}}); err != nil {
		t.Fatal(err)
	}
	if m, err := in.Read(); err != nil || m.Welcome == nil {
		t.Fatalf("the relay welcomes an agent: %+v %v", m, err)
	}
	go func() {
		for {
			m, err := in.Read()
			switch {
			case err != nil:
				return
			case m.Probe != nil:
				_ = out.Write(wire.Message{Type: wire.TypeProbed, Probed: &wire.Probed{ID: m.Probe.ID, Listening: true, Allowed: true, HostHeader: "public"}})
			}
		}
	}()
	go pinging(ctx, out)
	if serve == nil {
		return l
	}
	go func() {
		for {
			s, err := l.Accept(ctx)
			if err != nil {
				return
			}
			go func() {
				defer s.Close()
				if _, err := wire.ReadHello(s); err != nil {
					return
				}
				if _, err := s.Write(wire.AppendVerdict(nil, wire.Verdict{})); err == nil {
					serve(s)
				}
			}()
		}
	}()
	return l
}

// gauge reads one number of a process's metrics.
func gauge(t *testing.T, port int, name string) float64 {
	t.Helper()
	status, body := world.Get(http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(body)
	if status != 200 || m == nil {
		t.Fatalf("no metric %s: %d", name, status)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// rss is the memory of a process that is resident, in MiB.
func rss(t *testing.T, p *world.Process) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize() >> 20
}

// neighbour is a tunnel whose user should notice nothing: it is asked again and
// again, and the times are kept.
type neighbour struct {
	relay  *world.Relay
	agent  *world.Agent
	sk     string
	url    string
	port   int // of the app
	c      *http.Client
	mu     sync.Mutex
	times  []time.Duration
	faults []string
}

// quiet is the configuration of relays and agents that are flooded: at debug level
// the log would be what is measured.
var quiet = []string{"ADIT_LOG_LEVEL=info"}

func newNeighbour(w *world.World, env ...string) *neighbour {
	w.T.Helper()
	n := &neighbour{relay: w.Relay(append(append([]string{world.PathForm}, quiet...), env...)...), c: w.HTTP()}
	n.agent = w.Agent(n.relay, "gpu-1", quiet...)
	n.sk = n.relay.Credential("integration", world.Team)
	n.port = app(w.T, hello)
	n.url = n.relay.Open(n.sk, "gpu-1", map[string]any{"target_port": n.port, "host_header": "public"}).TunnelURL
	return n
}

// ask asks until ctx ends.
func (n *neighbour) ask(ctx context.Context) {
	for ctx.Err() == nil {
		start := time.Now()
		status, body := world.Get(n.c, n.url+"x")
		took := time.Since(start)
		n.mu.Lock()
		n.times = append(n.times, took)
		if status != 200 || body != "hello from /x" {
			n.faults = append(n.faults, fmt.Sprintf("%d %s", status, body))
		}
		n.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// take returns the times since the last take, sorted, and what went wrong.
func (n *neighbour) take() (times []time.Duration, faults []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	times, faults, n.times, n.faults = n.times, n.faults, nil, nil
	slices.Sort(times)
	return times, faults
}

func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(float64(len(sorted))*p))]
}

// openFiles is how many files a process may have open here, less what the test's own
// need.
func openFiles(t *testing.T) int {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	const inUse = 2000 // with those of the relay's and its agents' links
	return int(min(limit.Max, 1<<20)) - inUse
}

// flood is what the attackers have open, and what became of it.
type flood struct {
	t     *testing.T
	n     *neighbour
	addr  string
	conns []net.Conn
	wg    sync.WaitGroup
	end   context.Context

	mu      sync.Mutex
	answers map[string]int
}

func (f *flood) dial() net.Conn {
	f.t.Helper()
	// Other addresses than the neighbour's user has, as attackers do.
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+len(f.conns)%200))}}
	c, err := d.Dial("tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.conns = append(f.conns, c)
	return c
}

func (f *flood) note(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[what]++
}

// send writes a request and notes the status of its answer, if one comes.
func (f *flood) send(what, text string) net.Conn {
	c := f.dial()
	f.wg.Go(func() {
		_, _ = io.WriteString(c, text)
		_ = c.SetReadDeadline(time.Now().Add(testkit.Patience))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			f.note(what + ": closed")
			return
		}
		f.note(fmt.Sprintf("%s: %d", what, resp.StatusCode))
	})
	return c
}

// TestFloodsDoNotSpread floods one relay in every way at once. A second relay beside
// it, with the same load and no flood, says what the machine itself made slow.
func TestFloodsDoNotSpread(t *testing.T) {
	w := world.New(t)
	n := newNeighbour(w, "ADIT_LIMITS_STREAMS_PER_TUNNEL=128", "ADIT_TUNNEL_HEADER_TIMEOUT=5s", "ADIT_LIMITS_OPENS_PER_MINUTE=600")
	control := newNeighbour(w)
	r := n.relay
	deaf := fakeAgent(r, world.Team, "deaf", nil)
	slow, streams, readers, strangers := 300, 300, 16, 300
	if long() {
		slow, streams, readers, strangers = 5000, 10000, 64, 5000
		// Each connection is a file of the test and one of the relay.
		if wanted, files := slow+2*streams+readers+strangers, openFiles(t); wanted > files {
			slow, streams, strangers = slow*files/wanted, streams*files/wanted, strangers*files/wanted/3*3
			t.Logf("this machine allows %d open files beside those in use: %d, 2x%d and %d connections", files, slow, streams, strangers)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() { n.ask(ctx) })
	asking.Go(func() { control.ask(ctx) })
	defer asking.Wait()
	defer cancel()
	<-time.After(2 * time.Second) // the baseline
	before, faults := n.take()
	control.take()
	if len(faults) > 0 {
		t.Fatalf("the tunnel answers before any flood: %s", faults[0])
	}
	baseMemory, baseGoroutines, agentGoroutines := rss(t, r.Process), gauge(t, r.Metrics, "go_goroutines"), gauge(t, n.agent.Metrics, "go_goroutines")

	release := make(chan struct{})
	hung := app(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	endless := app(t, func(w http.ResponseWriter, _ *http.Request) {
		block := make([]byte, 64<<10)
		for {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	open := func(agent string, port int, protocol string) api.Tunnel {
		return r.Open(n.sk, agent, map[string]any{"target_port": port, "tunnel_protocol": protocol, "host_header": "public"})
	}
	pathOf := func(tun api.Tunnel) string {
		u := r.PathURL(tun)
		return u[strings.Index(u, "/tunnel/"):]
	}
	hungPath, endlessPath, deafPath := pathOf(open("gpu-1", hung, "http")), pathOf(open("gpu-1", endless, "http")), pathOf(open("deaf", 8188, "http"))
	tcp := open("gpu-1", endless, "tcp")
	n.take()

	f := &flood{t: t, n: n, addr: fmt.Sprintf("127.0.0.1:%d", r.Port), end: ctx, answers: map[string]int{}}
	begun := time.Now()
	head := " HTTP/1.1\r\nHost: localhost\r\n"
	var slowConns []net.Conn
	for i := range slow { // headers that never end: some silent, some a byte at a time
		c := f.dial()
		slowConns = append(slowConns, c)
		if i%2 == 0 {
			_, _ = io.WriteString(c, "GET "+hungPath+head+"X-Slow: ")
		}
	}
	for range streams {
		f.send("streams", "GET "+hungPath+head+"\r\n")
	}
	for range streams {
		f.send("deaf agent", "GET "+deafPath+head+"\r\n")
	}
	for range readers {
		c := f.dial()
		_ = c.(*net.TCPConn).SetReadBuffer(4096)
		_, _ = io.WriteString(c, "GET "+endlessPath+head+"\r\n") // and reads nothing
	}
	for i := range strangers {
		switch i % 3 {
		case 0:
			f.send("unknown agent", "GET /agent/v1/link"+head+"Authorization: Bearer ak-"+strings.Repeat("b", 40)+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: "+wire.Subprotocol+"\r\n\r\n")
		case 1:
			f.send("unknown tunnel", "GET /tunnel/"+strings.Repeat("0", 31)+"1-"+strings.Repeat("a", 26)+"/"+head+"\r\n")
		default:
			f.send("huge header", "GET /"+head+"X-Big: "+strings.Repeat("x", 256<<10)+"\r\n\r\n")
		}
	}
	// An agent's credential, and then silence: the link must not stay.
	silent := f.silentLinks(20)
	f.giganticMessage(tcp)

	peak, standing := rss(t, r.Process), begun
	if long() {
		// This machine makes the flood as well, and is busy with that for seconds: what the
		// neighbour waits is judged when all of it is there.
		arriving, faults := n.take()
		control.take()
		t.Logf("p99 while the flood came, for %s: %s (median %s)", time.Since(begun).Round(100*time.Millisecond), percentile(arriving, 0.99), percentile(arriving, 0.5))
		if len(faults) > 0 {
			t.Errorf("the neighbour noticed that the flood came: %d of %d requests went wrong, such as %s", len(faults), len(arriving), faults[0])
		}
		standing = time.Now()
	}
	for time.Since(standing) < 8*time.Second {
		peak = max(peak, rss(t, r.Process))
		<-time.After(100 * time.Millisecond)
	}
	during, faults := n.take()
	beside, _ := control.take()
	p99, base99, control99 := percentile(during, 0.99), percentile(before, 0.99), percentile(beside, 0.99)
	testkit.Figure(t, "p99 before %s, in the flood %s (median %s), of the relay beside it %s (median %s); %d and %d requests", base99, p99, percentile(during, 0.5), control99, percentile(beside, 0.5), len(during), len(beside))
	testkit.Figure(t, "memory before %d MiB, at most %d MiB with %d connections", baseMemory, peak, len(f.conns))
	if len(faults) > 0 {
		t.Errorf("the neighbour noticed the flood: %d of %d requests went wrong, such as %s", len(faults), len(during), faults[0])
	}
	if long() && len(during) < 50 {
		t.Errorf("the neighbour got only %d requests through in the flood", len(during))
	}
	testkit.Took(t, "the neighbour's p99 in the flood, against twenty times what it was before and what an unflooded relay has beside it, together", p99, 20*(control99+base99))
	// Every reader may have its stream's window unread in the relay, and every
	// connection its buffers; nothing else may grow with the flood.
	if limit := baseMemory + 100 + readers*6 + len(f.conns)/8; peak > limit {
		t.Errorf("the relay grew from %d to %d MiB, expected at most %d", baseMemory, peak, limit)
	}

	// The slow ones are thrown out by the relay itself, 15 s after they came.
	for _, c := range slowConns {
		_ = c.SetReadDeadline(begun.Add(testkit.Limit(28 * time.Second)))
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("a connection that never finishes its header is still open after %s", time.Since(begun).Round(time.Second))
			break
		}
	}
	t.Logf("the slow connections were gone after %s", time.Since(begun).Round(100*time.Millisecond))
	for _, c := range silent {
		_ = c.SetReadDeadline(time.Now().Add(testkit.Limit(5 * time.Second)))
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("a link whose agent says no hello is still open after %s", time.Since(begun).Round(time.Second))
		}
	}
	close(release)
	f.wg.Wait()
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.check(streams, strangers)
	cancel()
	asking.Wait()
	n.c.CloseIdleConnections()
	// Streams that were given up wait a minute for the peer's end, as TCP does, and
	// those kept for reuse stay as long; only the deaf agent has many of the first.
	patience := 10 * time.Second
	if long() {
		patience = 90 * time.Second
	} else {
		_ = deaf.Close(nil)
	}
	slack := 3.0*32 + 20
	w.Eventually(patience, fmt.Sprintf("the goroutines come back to the %.0f of before", baseGoroutines), func() bool {
		return gauge(t, r.Metrics, "go_goroutines") <= baseGoroutines+slack
	})
	w.Eventually(patience, fmt.Sprintf("the agent's goroutines come back to the %.0f of before", agentGoroutines), func() bool {
		return gauge(t, n.agent.Metrics, "go_goroutines") <= agentGoroutines+3*slack
	})
	t.Logf("goroutines before %.0f and %.0f, after %.0f and %.0f; memory %d MiB", baseGoroutines, agentGoroutines, gauge(t, r.Metrics, "go_goroutines"), gauge(t, n.agent.Metrics, "go_goroutines"), rss(t, r.Process))
	if status, _ := world.Get(w.HTTP(), n.url); status != 200 {
		t.Errorf("the tunnel answers %d after the flood", status)
	}
}

// check looks at what the attackers were told.
func (f *flood) check(streams, strangers int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.t.Logf("answers: %v", f.answers)
	if n := f.answers["streams: 429"]; n != streams-128 {
		f.t.Errorf("of %d requests at once on a tunnel with a limit of 128, expected %d to get 429, got %d", streams, streams-128, n)
	}
	if n := f.answers["streams: 504"] + f.answers["streams: 200"]; n != 128 {
		f.t.Errorf("what is within the limit reaches the app, which answers late or not at all: expected 128 answers, got %d", n)
	}
	if n := f.answers["deaf agent: 429"] + f.answers["deaf agent: 504"] + f.answers["deaf agent: 503"] + f.answers["deaf agent: 502"]; n != streams {
		f.t.Errorf("every request to an agent that takes no stream gets an error in time, got %d of %d", n, streams)
	}
	third := strangers / 3
	for what, want := range map[string]string{"unknown agent": "401", "unknown tunnel": "404", "huge header": "431"} {
		// A relay that answers before it has read all may close too early for the answer.
		if n := f.answers[what+": "+want]; n != third && (what != "huge header" || n+f.answers[what+": closed"] != third) {
			f.t.Errorf("%s: expected %d times %s, got %d", what, third, want, n)
		}
	}
}

// silentLinks are links that an agent's credential was shown for and nothing more.
func (f *flood) silentLinks(count int) []net.Conn {
	token := f.n.relay.Credential("agent", world.Team, "--agent", "mute", "--name", "mute")
	var out []net.Conn
	for i := range count {
		c := f.dial()
		upgradeTo := "websocket"
		if i%2 == 0 {
			upgradeTo = "adit-link, websocket"
		}
		_, _ = io.WriteString(c, "GET /agent/v1/link HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+token+"\r\nConnection: Upgrade\r\nUpgrade: "+upgradeTo+
			"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: "+wire.Subprotocol+"\r\n\r\n")
		out = append(out, c)
	}
	return out
}

// giganticMessage announces a message of a gigabyte and sends some of it.
func (f *flood) giganticMessage(tun api.Tunnel) {
	f.t.Helper()
	u := f.n.relay.PathURL(tun)
	c := f.dial()
	_, _ = io.WriteString(c, "GET "+u[strings.Index(u, "/tunnel/"):]+" HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	_ = c.SetDeadline(time.Now().Add(testkit.Patience))
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 {
		f.t.Fatalf("a WebSocket to a tcp tunnel: %v %v", resp, err)
	}
	frame := []byte{0x82, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4} // final, binary, masked, 2^30 bytes
	go func() {
		_, _ = c.Write(frame)
		_, _ = c.Write(make([]byte, 4<<20))
	}()
	for { // what the app sends comes first
		h := make([]byte, 2)
		if _, err := io.ReadFull(in, h); err != nil {
			f.t.Errorf("a message of a gigabyte ends the connection with close code 1009, got %v", err)
			return
		}
		size := int(h[1] & 0x7f)
		switch size {
		case 126:
			b := make([]byte, 2)
			_, _ = io.ReadFull(in, b)
			size = int(b[0])<<8 | int(b[1])
		case 127:
			b := make([]byte, 8)
			_, _ = io.ReadFull(in, b)
			size = int(b[4])<<24 | int(b[5])<<16 | int(b[6])<<8 | int(b[7])
		}
		payload := make([]byte, size)
		if _, err := io.ReadFull(in, payload); err != nil {
			f.t.Errorf("a message of a gigabyte ends the connection with close code 1009, got %v", err)
			return
		}
		if h[0]&0x0f == 8 {
			if code := int(payload[0])<<8 | int(payload[1]); code != int(websocket.StatusMessageTooBig) {
				f.t.Errorf("a message of a gigabyte is refused with 1009, got %d", code)
			}
			return
		}
	}
}

// rawApp is an app that reads requests strictly and answers each with its path. It
// keeps the bytes of every header as they came.
type rawApp struct {
	port  int
	mu    sync.Mutex
	heads []string
	count atomic.Int64
}

func newRawApp(t *testing.T) *rawApp {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	a := &rawApp{port: l.Addr().(*net.TCPAddr).Port}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go a.serve(c)
		}
	}()
	return a
}

// badAnswers are what a hostile app answers with.
var badAnswers = map[string]string{
	"/two":      "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n/twoHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nPOISONED",
	"/lengths":  "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 60\r\n\r\n/twoHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nPOISONED",
	"/both":     "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nPOISONED",
	"/switch":   "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nPOISONED",
	"/hints":    strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 64) + "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nPOISONED",
	"/nothing":  "HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\nPOISONED",
	"/notime":   "HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nPOISONED",
	"/inject":   "HTTP/1.1 200 OK\r\nX-Bad: a\rSet-Cookie: b=c\r\nContent-Length: 7\r\n\r\n/inject",
	"/noise":    "\x00\x01\x02 no HTTP at all",
	"/endless":  "HTTP/1.1 200 OK\r\nX-Endless: " + strings.Repeat("x", 2<<20),
	"/overlong": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nPOISONED",
}

func (a *rawApp) serve(c net.Conn) {
	defer c.Close()
	var raw bytes.Buffer
	in := bufio.NewReader(io.TeeReader(c, &raw))
	for {
		raw.Reset()
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		if req.UserAgent() == "adit-agent (probe)" {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			continue
		}
		a.count.Add(1)
		a.mu.Lock()
		head, _, _ := strings.Cut(raw.String(), "\r\n\r\n")
		a.heads = append(a.heads, head)
		a.mu.Unlock()
		if bad, ok := badAnswers[req.URL.Path]; ok {
			_, _ = io.WriteString(c, bad)
			continue
		}
		if strings.HasPrefix(req.URL.Path, "/echo") {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			continue
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
	}
}

// take returns the heads since the last take.
func (a *rawApp) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	heads := a.heads
	a.heads = nil
	return heads
}

// exchangeRaw sends bytes on a connection of their own and returns all that comes
// back until the relay closes or is silent for a moment.
func exchangeRaw(t *testing.T, r *world.Relay, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", r.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		return ""
	}
	var all []byte
	b := make([]byte, 64<<10)
	wait := 3 * time.Second
	for {
		_ = c.SetReadDeadline(time.Now().Add(wait))
		n, err := c.Read(b)
		all = append(all, b[:n]...)
		if err != nil {
			return string(all)
		}
		wait = 100 * time.Millisecond // there was an answer; a second one would follow at once
	}
}

// TestNoSmuggling sends what two HTTP implementations may read differently, and
// counts what arrives at the app.
func TestNoSmuggling(t *testing.T) {
	together(t)
	w := world.New(t)
	r := w.Relay("ADIT_TUNNEL_HEADER_TIMEOUT=3s", world.PathForm)
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	a := newRawApp(t)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": a.port, "host_header": "public"})
	u := r.PathURL(tun)
	p := u[strings.Index(u, "/tunnel/"):]
	host := "Host: localhost:" + strconv.Itoa(r.Port) + "\r\n"
	smuggled := "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	post := "POST " + p + "first HTTP/1.1\r\n" + host
	get := "GET " + p + "first HTTP/1.1\r\n" + host
	sized := func(s string) string { return "Content-Length: " + strconv.Itoa(len(s)) + "\r\n" }
	chunk := func(s string) string { return strconv.FormatInt(int64(len(s)), 16) + "\r\n" + s + "\r\n" }
	for _, c := range []struct {
		name, text string
		app        int // requests that the app may see: exactly so many; -1: none or one
	}{
		{"CL.TE", post + "Content-Length: 80\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, -1},
		{"TE.CL", post + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + chunk(smuggled) + "0\r\n\r\n", -1},
		{"TE.CL, length first", post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(smuggled) + "0\r\n\r\n", -1},
		{"TE.TE, unknown second", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\n" + smuggled, 0},
		{"TE.TE, list", post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + smuggled, 0},
		{"TE unknown", post + "Transfer-Encoding: xchunked\r\n" + sized(smuggled) + "\r\n" + smuggled, 0},
		{"TE with a space before the colon", post + "Transfer-Encoding : chunked\r\n" + sized(smuggled) + "\r\n" + smuggled, 0},
		{"TE with a tab", post + "Transfer-Encoding:\tchunked\r\n\r\n" + chunk(smuggled) + "0\r\n\r\n", -1},
		{"TE with a vertical tab", post + "Transfer-Encoding: \vchunked\r\n" + sized(smuggled) + "\r\n" + smuggled, 0},
		{"TE in a folded line", post + "X: y\r\n Transfer-Encoding: chunked\r\n" + sized(smuggled) + "\r\n" + smuggled, -1},
		{"TE with an underscore", post + "Transfer_Encoding: chunked\r\n" + sized(smuggled) + "\r\n" + smuggled, 1},
		{"TE in HTTP/1.0", strings.Replace(post, "1.1", "1.0", 1) + "Transfer-Encoding: chunked\r\n\r\n" + chunk(smuggled) + "0\r\n\r\n", -1},
		{"two lengths", post + sized(smuggled) + "Content-Length: 0\r\n\r\n" + smuggled, 0},
		{"two lengths in one field", post + "Content-Length: 0, " + strconv.Itoa(len(smuggled)) + "\r\n\r\n" + smuggled, 0},
		{"a signed length", post + "Content-Length: +" + strconv.Itoa(len(smuggled)) + "\r\n\r\n" + smuggled, 0},
		{"a negative length", post + "Content-Length: -1\r\n\r\n" + smuggled, 0},
		{"a hexadecimal length", post + "Content-Length: 0x0\r\n\r\n" + smuggled, 0},
		{"a length named by Connection", post + "Connection: Content-Length\r\n" + sized(smuggled) + "\r\n" + smuggled, 1},
		{"Host named by Connection", get + "Connection: Host, X-Forwarded-Host\r\n\r\n", 1},
		{"X-Forwarded-For named by Connection", get + "X-Forwarded-For: 6.6.6.6\r\nConnection: X-Forwarded-For, X-Forwarded-Prefix, X-Request-Id\r\n\r\n", 1},
		{"X-Forwarded-For with underscores", get + "X_Forwarded_For: 6.6.6.6\r\nX_Forwarded-Prefix: /evil\r\n\r\n", 1},
		{"GET with a body", get + sized(smuggled) + "\r\n" + smuggled, 1},
		{"HEAD with a body", strings.Replace(get, "GET", "HEAD", 1) + sized(smuggled) + "\r\n" + smuggled, 1},
		{"OPTIONS with a chunked body", strings.Replace(get, "GET", "OPTIONS", 1) + "Transfer-Encoding: chunked\r\n\r\n" + chunk(smuggled) + "0\r\n\r\n", 1},
		{"bare LF everywhere", strings.ReplaceAll(get+"\r\n", "\r\n", "\n"), -1},
		{"bare LF in a header", get + "X: y\nTransfer-Encoding: chunked\r\n\r\n" + chunk(smuggled) + "0\r\n\r\n", -1},
		{"bare CR in a header", get + "X: y\rTransfer-Encoding: chunked\r\n\r\n", -1},
		{"bare LF behind a chunk's size", post + "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", -1},
		{"bare LF in a chunk's extension", post + "Transfer-Encoding: chunked\r\n\r\n2;\n\r\n0\r\n\r\n" + smuggled + "0\r\n\r\n", -1},
		{"a chunk's size beyond 64 bits", post + "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + smuggled, -1},
		{"a chunk's size with a sign", post + "Transfer-Encoding: chunked\r\n\r\n-1\r\n" + smuggled, -1},
		{"a chunk without its end", post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n0\r\n\r\n" + smuggled, -1},
		{"trailers that are headers", post + "Trailer: Content-Length, X-Forwarded-For\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 50\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n", -1},
		{"two Hosts", get + "Host: evil.example\r\n\r\n", 0},
		{"a Host with a path", strings.Replace(get, "localhost:", "localhost/x:", 1) + "\r\n", -1},
		{"no Host", "GET " + p + "first HTTP/1.1\r\n\r\n", 0},
		{"an absolute URI", "GET http://localhost" + p + "first HTTP/1.1\r\n" + host + "\r\n", 0},
		{"an absolute URI of a tunnel's host", "GET http://" + strings.Split(p, "/")[2] + ".localhost/first HTTP/1.1\r\n" + host + "\r\n", 0},
		{"h2c", get + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n", 1},
		{"h2c beside websocket", get + "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + smuggled, 1},
		{"websocket of another version, and a request", get + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + smuggled, 1},
		{"websocket that the app refuses, and a request", get + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + smuggled, 1},
		{"HTTP/2 without asking", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0},
		{"HTTP/0.9", "GET " + p + "first\r\n\r\n", 0},
		{"HTTP/1.1 of another spelling", strings.Replace(get, "HTTP/1.1", "HTTP/1.01", 1) + "\r\n", 0},
		{"a space in the path", strings.Replace(get, "first", "fi rst", 1) + "\r\n", 0},
		{"NUL in a header", get + "X: a\x00b\r\n\r\n", 0},
		{"a method that is a line", "GET\n" + p + " HTTP/1.1\r\n" + host + "\r\n", 0},
		{"two requests, in order", get + "\r\n" + strings.Replace(get, "first", "second", 1) + "\r\n", 2},
		{"a request behind a body that is not read", post + "Expect: 100-continue\r\n" + sized(smuggled) + "\r\n" + smuggled, 1},
	} {
		a.take()
		back := exchangeRaw(t, r, c.text)
		heads := a.take()
		if c.app >= 0 && len(heads) != c.app || c.app < 0 && len(heads) > 1 {
			t.Errorf("%s: the app saw %d requests, expected %d\n sent %q\n app saw %q\n answer %q", c.name, len(heads), c.app, c.text, heads, back)
		}
		if c.app == 0 && !regexp.MustCompile(`^HTTP/1\.[01] [45]\d\d`).MatchString(back) && back != "" {
			t.Errorf("%s: expected a refusal, got %.200q", c.name, back)
		}
		for _, h := range heads {
			checkHead(t, c.name, h, host, p)
		}
		for _, next := range []string{"next", "after"} { // whatever is left in a stream would come now
			if status, body := world.Get(http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d%s%s", r.Port, p, next)); status != 200 || body != "/"+next {
				t.Errorf("%s: the next person's request got %d %q", c.name, status, body)
			}
		}
	}
	other := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello), "host_header": "public"})
	for path := range badAnswers {
		back := exchangeRaw(t, r, strings.Replace(get, "/first", path, 1)+"\r\n")
		if strings.Contains(back, "\nSet-Cookie") || strings.Contains(back, "\rSet-Cookie") {
			t.Errorf("the answer %s puts a header in: %q", path, back)
		}
		for _, next := range []string{"next", "after"} {
			if status, body := world.Get(http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d%s%s", r.Port, p, next)); status != 200 || body != "/"+next {
				t.Errorf("behind the hostile answer %s the next request got %d %.80q", path, status, body)
			}
		}
		if status, body := world.Get(w.HTTP(), other.TunnelURL+"x"); status != 200 || body != "hello from /x" {
			t.Errorf("behind the hostile answer %s another tunnel got %d %.80q", path, status, body)
		}
	}
}

// checkHead looks at one request as the app read it.
func checkHead(t *testing.T, name, head, host, prefix string) {
	t.Helper()
	line, fields, _ := strings.Cut(head, "\r\n")
	if strings.Contains(line, "smuggled") || strings.ContainsAny(head, "\x00\v") || regexp.MustCompile(`[^\r]\n|\r[^\n]`).MatchString(head) {
		t.Errorf("%s: smuggled: %q", name, head)
	}
	count := map[string][]string{}
	for f := range strings.SplitSeq(fields, "\r\n") {
		k, v, _ := strings.Cut(f, ":")
		count[strings.ToLower(k)] = append(count[strings.ToLower(k)], strings.TrimSpace(v))
	}
	want := strings.TrimSpace(strings.TrimPrefix(host, "Host:"))
	for field, value := range map[string]string{"x-forwarded-for": "127.0.0.1", "x-forwarded-prefix": strings.TrimSuffix(prefix, "/"), "x-forwarded-proto": "http"} {
		if got := count[field]; len(got) != 1 || got[0] != value {
			t.Errorf("%s: %s is the relay's alone: expected %q, got %q", name, field, value, got)
		}
	}
	if got := count["host"]; len(got) != 1 || got[0] != want && !strings.Contains(name, "Host with a path") {
		t.Errorf("%s: one Host, %s; got %q", name, want, got)
	}
	if len(count["content-length"]) > 1 || len(count["transfer-encoding"]) > 1 || len(count["content-length"])+len(count["transfer-encoding"]) > 1 {
		t.Errorf("%s: one framing; got %q %q", name, count["content-length"], count["transfer-encoding"])
	}
	if len(count["http2-settings"]) > 0 || len(count["upgrade"]) > 0 && count["upgrade"][0] != "websocket" || len(count["x_forwarded_for"]) > 0 || len(count["transfer_encoding"]) > 0 {
		t.Errorf("%s: the app got a field that must stay at the relay: %q", name, head)
	}
}
