package edge_test

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/tunnels"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const team = ident.TeamID("11111111-2222-3333-4444-555555555555")

var clusterKey = ident.ClusterKey{1, 2, 3}

// world is a relay's edge in front of real apps on a machine.
type world struct {
	t       testing.TB
	edge    *edge.Edge
	server  *httptest.Server
	public  *url.URL
	meter   *usage.Meter
	machine *machine

	mu      sync.Mutex
	tunnels map[ident.SessionID]store.TunnelRecord
	links   map[ident.LinkID]store.LinkRecord
}

func (w *world) Tunnel(id ident.SessionID) (store.TunnelRecord, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.tunnels[id]
	return r, ok
}

func (w *world) TunnelState(_ ident.AgentKey, id ident.SessionID) (store.TunnelState, bool) {
	_, ok := w.Tunnel(id)
	return store.TunnelState{State: store.TunnelOpen}, ok
}

func (w *world) Link(id ident.LinkID) (store.LinkRecord, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l, ok := w.links[id]
	return l, ok
}

func (w *world) CatchUp(context.Context) error { return nil }

// nothing answers where no tunnel is.
func nothing(w http.ResponseWriter, r *http.Request) {
	problems.AnswerOwn(w, r, api.NewProblem(api.CodeNotFound, "nothing is here"), ident.NewRequestID())
}

// newWorld starts a world; change may alter the edge's configuration.
func newWorld(t testing.TB, change func(*edge.Config)) *world {
	t.Helper()
	return newWorldAt(t, change, nil)
}

// newWorldAt is newWorld with other addresses.
func newWorldAt(t testing.TB, change func(*edge.Config), at func(*tunnels.Config)) *world {
	t.Helper()
	w := &world{t: t, meter: usage.New(usage.Config{}), tunnels: map[ident.SessionID]store.TunnelRecord{}}
	w.machine = new(machine).connect(t)
	var handler atomic.Pointer[edge.Edge]
	w.server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { handler.Load().ServeHTTP(rw, r) }))
	w.server.EnableHTTP2 = true
	config := edge.Config{Fleet: w.machine.fleet(), Meter: w.meter, Own: func(*http.Request) http.Handler { return nil }, Else: http.HandlerFunc(nothing), Hold: 10 * time.Second, HeaderTimeout: 15 * time.Minute, MaxStreams: 512}
	if testing.Verbose() {
		config.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	secure := false
	if change != nil {
		change(&config)
		secure = config.PathFallback == "tls" // the test's own mark
		if secure {
			config.PathFallback = ""
		}
	}
	scheme := "http"
	if secure {
		w.server.StartTLS()
		scheme = "https"
	} else {
		w.server.Start()
	}
	w.server.Client().Transport.(*http.Transport).DisableCompression = true
	port := w.server.Listener.Addr().(*net.TCPAddr).Port
	w.public = &url.URL{Scheme: scheme, Host: "localhost:" + strconv.Itoa(port)}
	addresses := tunnels.Config{Store: w, Key: clusterKey, PublicURL: w.public, WildcardDomain: "localhost", PathForm: true}
	if at != nil {
		at(&addresses)
	}
	resolver, err := tunnels.New(addresses)
	if err != nil {
		t.Fatal(err)
	}
	config.Resolver = resolver
	w.edge, err = edge.New(config)
	if err != nil {
		t.Fatal(err)
	}
	handler.Store(w.edge)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.edge.Run(ctx) }()
	t.Cleanup(func() {
		w.server.CloseClientConnections()
		w.server.Close()
		cancel()
		<-ended
		http.DefaultClient.CloseIdleConnections()
	})
	return w
}

// tunnel opens a tunnel to a port and returns its record and segment.
func (w *world) tunnel(port int, change func(*store.TunnelRecord)) (store.TunnelRecord, string) {
	r := store.TunnelRecord{
		Session: ident.NewSessionID(), Team: team, Agent: "box", Port: uint16(port), Protocol: api.ProtocolHTTP,
		OpenedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour), AskedHost: api.HostPublic,
	}
	if change != nil {
		change(&r)
	}
	w.mu.Lock()
	w.tunnels[r.Session] = r
	w.mu.Unlock()
	return r, string(clusterKey.Segment(r.Session))
}

func (w *world) close(id ident.SessionID) int {
	w.mu.Lock()
	delete(w.tunnels, id)
	w.mu.Unlock()
	return w.edge.Drop(id, nil)
}

// app starts a real HTTP app and returns its port.
func (w *world) app(h http.Handler) int {
	s := httptest.NewServer(h)
	w.t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.Listener.Addr().(*net.TCPAddr).Port
}

func (w *world) appFunc(f http.HandlerFunc) int { return w.app(f) }

// rawApp serves each connection by a function, for what no HTTP library does.
func (w *world) rawApp(f func(net.Conn)) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			all.Go(func() { defer c.Close(); f(c) })
		}
	})
	w.t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// addr is the relay's address, and host what a browser writes into Host.
func (w *world) addr() string { return w.server.Listener.Addr().String() }

// pathURL is the address in path form.
func (w *world) pathURL(segment, rest string) string {
	return w.public.Scheme + "://" + w.addr() + "/tunnel/" + segment + rest
}

// request makes a request with the public Host.
func (w *world) request(method, segment, rest string, body io.Reader) *http.Request {
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.pathURL(segment, rest), body)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Host = w.public.Host
	return r
}

// do sends without following redirects and without decompression.
func (w *world) do(r *http.Request) *http.Response {
	w.t.Helper()
	resp, err := w.client().Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (w *world) client() *http.Client {
	return &http.Client{Transport: w.server.Client().Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// getHost is get in subdomain form.
func (w *world) getHost(segment, rest string) *http.Response {
	w.t.Helper()
	r := w.request("GET", segment, "", nil)
	r.URL.Path, r.Host = rest, segment+".localhost:"+w.public.Port()
	return w.do(r)
}

func (w *world) get(segment, rest string) *http.Response {
	w.t.Helper()
	return w.do(w.request("GET", segment, rest, nil))
}

// dial opens a raw connection to the relay.
func (w *world) dial() (net.Conn, *bufio.Reader) {
	c, err := net.Dial("tcp", w.addr())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(testkit.Patience))
	return c, bufio.NewReader(c)
}

func text(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	testkit.Eventually(t, what, ok)
}
