package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// peakMemory is the most memory that a process ever had resident, in MiB.
func peakMemory(t *testing.T, p *world.Process) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmHWM in %s", b)
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kb >> 10
}

// endless is an app that answers as much as is taken, whatever it is asked.
func endless(w http.ResponseWriter, _ *http.Request) {
	block := make([]byte, 256<<10)
	for {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

// blob is an app that answers so many bytes as its path says.
func blob(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil {
		hello(w, r)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(n))
	block := make([]byte, 64<<10)
	for n > 0 {
		k, err := w.Write(block[:min(n, len(block))])
		if err != nil {
			return
		}
		n -= k
	}
}

// bystander is the other tenant: it downloads, asks for small things and opens
// tunnels all the while.
type bystander struct {
	r       *world.Relay
	sk      string
	url     string
	c       *http.Client
	term    *websocket.Conn
	printed chan struct{} // something came from the terminal

	mu        sync.Mutex
	whole     int
	small     []time.Duration
	keys      []time.Duration // until the terminal echoed
	opened    []time.Duration
	faults    []string
	downloads int
}

// newBystander is for a tenant whose agent is at a relay, and whose users come through
// that or another one. The terminal's page has an origin.
func newBystander(r, through *world.Relay, origin string) *bystander {
	b := &bystander{r: r, sk: r.Credential("integration", world.Team), c: r.W.HTTP()}
	t := r.W.T
	tun := b.r.Open(b.sk, "gpu-1", map[string]any{"target_port": app(t, blob), "host_header": "public"})
	b.url = "http://" + through.Addr() + pathOf(r.PathURL(tun))
	var err error
	if b.term, err = dialTerminal(t, through, string(tun.SessionID), origin, wire.TerminalAttach{Token: tun.AdminToken, Cols: 80, Rows: 24}); err != nil {
		t.Fatal(err)
	}
	b.printed = make(chan struct{}, 1)
	go b.watch(b.term)
	return b
}

func (b *bystander) fault(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, fmt.Sprintf(format, args...))
}

const blobSize = 32 << 20

func (b *bystander) download() {
	b.mu.Lock()
	b.downloads++
	b.mu.Unlock()
	resp, err := b.c.Get(b.url + strconv.Itoa(blobSize))
	if err != nil {
		b.fault("download: %v", err)
		return
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != blobSize || resp.StatusCode != http.StatusOK {
		b.fault("download: %d, %d of %d bytes: %v", resp.StatusCode, n, blobSize, err)
		return
	}
	b.mu.Lock()
	b.whole++
	b.mu.Unlock()
}

func (b *bystander) ask() {
	start := time.Now()
	status, body := world.Get(b.c, b.url+"x")
	took := time.Since(start)
	if status != http.StatusOK || body != "hello from /x" {
		b.fault("small request: %d %.100s", status, body)
	}
	b.mu.Lock()
	b.small = append(b.small, took)
	b.mu.Unlock()
}

func (b *bystander) open() {
	start := time.Now()
	var t api.Tunnel
	status, p := b.r.API(b.sk, http.MethodPost, "/agents/gpu-1/tunnel", map[string]any{"target_port": 9, "host_header": "public"}, &t)
	took := time.Since(start)
	if status != http.StatusCreated {
		b.fault("open: %d %v", status, p)
		return
	}
	if status, p := b.r.API(b.sk, http.MethodDelete, "/agents/gpu-1/tunnel?session_id="+string(t.SessionID), nil, nil); status >= 300 {
		b.fault("close: %d %v", status, p)
	}
	b.mu.Lock()
	b.opened = append(b.opened, took)
	b.mu.Unlock()
}

// use uses the relay until it has so many downloads.
func (b *bystander) use(ctx context.Context, downloads int) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	every := func(d time.Duration, f func()) {
		wg.Go(func() {
			for ctx.Err() == nil {
				f()
				select {
				case <-ctx.Done():
				case <-time.After(d):
				}
			}
		})
	}
	every(50*time.Millisecond, func() { b.key(b.term) })
	every(20*time.Millisecond, b.ask)
	every(time.Second, b.open)
	for range downloads {
		b.download()
	}
	cancel()
	wg.Wait()
}

// take returns and forgets what it saw.
func (b *bystander) take() (text string, p99 time.Duration, whole int, faults []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	slices.Sort(b.small)
	slices.Sort(b.opened)
	slices.Sort(b.keys)
	p99 = percentile(b.small, 0.99)
	text = fmt.Sprintf("%d of %d downloads whole; %d small requests, p99 %s, median %s; %d tunnels opened, median %s; %d keys typed, p99 %s; %d faults; p99 of small requests %s",
		b.whole, b.downloads, len(b.small), p99, percentile(b.small, 0.5), len(b.opened), percentile(b.opened, 0.5), len(b.keys), percentile(b.keys, 0.99), len(b.faults), p99)
	whole, faults = b.whole, b.faults
	b.whole, b.downloads, b.small, b.opened, b.keys, b.faults = 0, 0, nil, nil, nil, nil
	return text, p99, whole, faults
}

// watch reads what the terminal prints, and acknowledges it as pages do.
func (b *bystander) watch(term *websocket.Conn) {
	ctx, shown := b.r.W.T.Context(), uint64(0)
	for {
		m, p, err := term.Read(ctx)
		if err != nil {
			b.fault("the terminal ended: %v", err)
			close(b.printed)
			return
		}
		switch {
		case m != websocket.MessageBinary || len(p) == 0:
		case wire.FrameType(p[0]) == wire.FrameReplay:
			shown = binary.BigEndian.Uint64(p[2:])
		case wire.FrameType(p[0]) == wire.FrameData:
			shown += uint64(len(p) - 1)
			_ = term.Write(ctx, websocket.MessageBinary, binary.BigEndian.AppendUint64([]byte{byte(wire.FrameAck)}, shown)) // its end shows with the next read
			select {
			case b.printed <- struct{}{}:
			default:
			}
		}
	}
}

// key types in the other tenant's terminal and waits for what it prints.
func (b *bystander) key(term *websocket.Conn) {
	select {
	case <-b.printed: // of the key before
	default:
	}
	start := time.Now()
	if err := term.Write(b.r.W.T.Context(), websocket.MessageBinary, append([]byte{byte(wire.FrameData)}, "x\x7f"...)); err != nil {
		b.fault("terminal: %v", err)
		return
	}
	select {
	case _, ok := <-b.printed:
		if !ok {
			b.fault("the terminal ended")
		}
	case <-time.After(testkit.Patience):
		b.fault("the terminal prints nothing")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys = append(b.keys, time.Since(start))
}

// hostile is the tenant whose users take nothing.
type hostile struct {
	t     *testing.T
	r     *world.Relay
	sk    string
	conns []net.Conn
}

func newHostile(r *world.Relay) *hostile {
	return &hostile{t: r.W.T, r: r, sk: r.Credential("integration", otherTeam)}
}

// path opens a tunnel and returns its path.
func (h *hostile) path(agent string, port int, protocol string) string {
	h.t.Helper()
	return pathOf(h.r.PathURL(h.r.Open(h.sk, agent, map[string]any{"target_port": port, "tunnel_protocol": protocol, "host_header": "public"})))
}

// takeNothing opens connections to a relay that send something and read nothing.
func (h *hostile) takeNothing(n int, addr, request string, more ...[]byte) {
	h.t.Helper()
	for range n {
		d := net.Dialer{Control: smallBuffers}
		c, err := d.Dial("tcp", addr)
		if err != nil {
			h.t.Fatal(err)
		}
		h.conns = append(h.conns, c)
		if _, err := io.WriteString(c, request); err != nil {
			h.t.Fatal(err)
		}
		if len(more) > 0 {
			go func() { // until nothing is taken any more, or the relay ends it
				for {
					if _, err := c.Write(more[0]); err != nil {
						return
					}
				}
			}()
		}
	}
}

// close ends them.
func (h *hostile) close() {
	for _, c := range h.conns {
		_ = c.Close()
	}
	h.conns = nil
}

func getOf(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n" }

func upgradeTo(path string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
}

// talker is an app that sends WebSocket messages without end.
func talker(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	for block := make([]byte, 256<<10); ; {
		if err := c.Write(r.Context(), websocket.MessageBinary, block); err != nil {
			return
		}
	}
}

// smallBuffers keeps what the hostile tenant's own sockets hold small: all of this
// test's machines are one kernel, whose memory for sockets they share.
func smallBuffers(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10)
	})
}

func smallListener(t *testing.T) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: smallBuffers}
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// smallApp is app on such a listener.
func smallApp(t *testing.T, h http.HandlerFunc) int {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	_ = s.Listener.Close()
	s.Listener = smallListener(t)
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.Listener.Addr().(*net.TCPAddr).Port
}

// deafApp takes connections and reads nothing.
func deafApp(t *testing.T) int {
	t.Helper()
	l := smallListener(t)
	var mu sync.Mutex
	var conns []net.Conn
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			_ = c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// linksLost is how many links of agents a relay has lost.
func linksLost(t *testing.T, r *world.Relay) float64 {
	t.Helper()
	return gauge(t, r.Metrics, `adit_relay_link_disconnects_total\{reason="lost"\}`)
}

func givenUp(t *testing.T, r *world.Relay) float64 {
	t.Helper()
	return gauge(t, r.Metrics, `adit_relay_streams_given_up_total\{reason="stuck"\}`) + gauge(t, r.Metrics, `adit_relay_streams_given_up_total\{reason="full"\}`)
}

// unnoticed has the other tenant use the relay and says what it saw and what the relay
// needed.
func (b *bystander) unnoticed(t *testing.T, downloads int, calm time.Duration, relays ...*world.Relay) (p99 time.Duration) {
	t.Helper()
	b.use(t.Context(), downloads)
	text, p99, whole, faults := b.take()
	testkit.Figure(t, "in the flood: %s, %.1f times what it was", text, float64(p99)/float64(calm))
	if len(faults) > 0 || whole != downloads {
		t.Errorf("the other tenant noticed: %d of %d downloads are whole, %d faults, such as %s", whole, downloads, len(faults), strings.Join(faults[:min(1, len(faults))], ""))
	}
	for _, r := range relays {
		testkit.Figure(t, "%s: %.0f MiB wait, %.0f connections given up, links lost: %.0f, memory %d MiB, at most %d", r.Name,
			gauge(t, r.Metrics, "adit_relay_link_unread_bytes")/(1<<20), givenUp(t, r), linksLost(t, r), rss(t, r.Process), peakMemory(t, r.Process))
		if n := linksLost(t, r); n > 0 {
			t.Errorf("%s lost %.0f links", r.Name, n)
		}
	}
	return p99
}

// bounded checks the promise on the process's memory. A quarter of a small budget is
// less than a relay needs for all else, which has been base.
func bounded(t *testing.T, r *world.Relay, budget, base int) {
	t.Helper()
	limit := budget * 5 / 4
	if budget < 1024 {
		limit += base
	}
	if peak := peakMemory(t, r.Process); peak > limit {
		t.Errorf("%s used %d MiB at a budget of %d, want at most %d", r.Name, peak, budget, limit)
	}
}

// twoTenants starts a relay with a budget in MiB, an agent of the one tenant and two of
// the other, and has the first use it in peace. It returns how long small requests took,
// and the relay's memory.
func twoTenants(t *testing.T, budget int) (b *bystander, h *hostile, calm time.Duration, base int) {
	t.Helper()
	w := world.New(t)
	r := w.Relay(append([]string{fmt.Sprintf("ADIT_LIMITS_MEMORY_BYTES=%d", budget<<20), world.PathForm, "ADIT_LIMITS_OPENS_PER_MINUTE=600"}, quiet...)...)
	terminalAgent(w, r, quiet...)
	tenantAgent(w, r, otherTeam, "gpu-1")
	tenantAgent(w, r, otherTeam, "gpu-2")
	b, h = newBystander(r, r, r.URL), newHostile(r)
	t.Cleanup(h.close)
	return b, h, b.calm(t), rss(t, r.Process)
}

// calm has the tenant use the relay in peace, and says how long small requests took.
func (b *bystander) calm(t *testing.T) time.Duration {
	t.Helper()
	b.use(t.Context(), 5)
	text, p99, _, faults := b.take()
	testkit.Figure(t, "before: %s; memory %d MiB", text, rss(t, b.r.Process))
	if len(faults) > 0 {
		t.Fatalf("before any flood: %v", faults)
	}
	return p99
}

// TestOneTenantCannotStarveAnother has connections of one address take nothing of what
// they asked for. The other tenant must not notice, and the relay needs no more memory
// than it was given.
func TestOneTenantCannotStarveAnother(t *testing.T) {
	budget, connections := 256, 150
	if long() {
		budget, connections = 1024, 200 // the default
	}
	b, h, calm, base := twoTenants(t, budget)
	h.takeNothing(connections, b.r.Addr(), getOf(h.path("gpu-1", smallApp(t, endless), "http")))
	if long() { // this machine makes the flood, and is busy with that first
		b.use(t.Context(), 3)
		b.take()
	}
	p99 := b.unnoticed(t, 10, calm, b.r)
	bounded(t, b.r, budget, base)
	if limit := 3*calm + 50*time.Millisecond; long() && p99 > limit {
		t.Errorf("the other tenant's p99 is %s, more than %s: three times what it was, and what this machine may do", p99, limit)
	}
}

// TestTheHeaviestPaysForMemory has more take nothing than there is room for: users of
// every protocol, on two agents and eight tunnels, and an app to which others send.
func TestTheHeaviestPaysForMemory(t *testing.T) {
	// More of them would use up what this kernel has for sockets, which is also their
	// apps' and their agents'.
	const budget, each = 192, 44
	b, h, calm, base := twoTenants(t, budget)
	r := b.r
	endlessPort, talkerPort, deafPort := smallApp(t, endless), smallApp(t, talker), deafApp(t)
	for _, agent := range []string{"gpu-1", "gpu-2"} {
		h.takeNothing(each, r.Addr(), getOf(h.path(agent, endlessPort, "http")))
		h.takeNothing(each, r.Addr(), upgradeTo(h.path(agent, talkerPort, "http")))
		h.takeNothing(each, r.Addr(), upgradeTo(h.path(agent, endlessPort, "tcp"))+masked("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		h.takeNothing(each, r.Addr(), "POST "+h.path(agent, deafPort, "http")+" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n", make([]byte, 64<<10))
	}
	b.unnoticed(t, 10, calm, r)
	bounded(t, r, budget, base)
	r.W.Eventually(time.Minute, "connections that take nothing are given up", func() bool {
		b.ask() // it is looked at when data comes
		return givenUp(t, r) > 0
	})
	for line := range strings.Lines(r.Log()) {
		if strings.Contains(line, "memory is short") && !strings.Contains(line, `"team":"`+otherTeam) {
			t.Errorf("somebody else than the hostile team paid: %s", line)
		}
	}
	h.close()
	// But for the uploads: the app still has their connections, and takes nothing.
	r.W.Eventually(time.Minute, "what waited is gone when its users are", func() bool {
		return gauge(t, r.Metrics, "adit_relay_link_unread_bytes") < 2*each*256<<10+2<<20
	})
	t.Logf("after: memory %d MiB", rss(t, r.Process))
}

// Users who come through another relay than the agent's share one link between the two:
// who takes nothing there must not stop who does, nor fill either relay.
func TestOneTenantCannotStarveAnotherThroughAPeer(t *testing.T) {
	const budget, connections = 128, 100
	f := newFleet(t, 2, func(*fleet, int) []string { return []string{fmt.Sprintf("ADIT_LIMITS_MEMORY_BYTES=%d", budget<<20)} })
	holds, through := f.relays[0], f.relays[1]
	terminalAgent(f.w, holds, quiet...)
	tenantAgent(f.w, holds, otherTeam, "gpu-1")
	b, h := newBystander(holds, through, f.lb.url), newHostile(holds)
	t.Cleanup(h.close)
	calm := b.calm(t)
	h.takeNothing(connections, through.Addr(), getOf(h.path("gpu-1", smallApp(t, endless), "http")))
	b.unnoticed(t, 10, calm, holds, through)
	h.takeNothing(connections, through.Addr(), upgradeTo(h.path("gpu-1", smallApp(t, talker), "http")))
	b.unnoticed(t, 10, calm, holds, through)
}

// masked is a WebSocket message as browsers send it.
func masked(text string) string {
	return string([]byte{0x82, 0x80 | byte(len(text)), 0, 0, 0, 0}) + text
}
