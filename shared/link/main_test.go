package link_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errTest = errors.New("the test is over")

// carriers are the ways to make a pair of links.
var carriers = map[string]func(testing.TB, link.Config) (client, server *link.Link){
	"tcp":       tcpPair,
	"upgrade":   func(t testing.TB, c link.Config) (*link.Link, *link.Link) { return dialPair(t, c, false, false) },
	"websocket": func(t testing.TB, c link.Config) (*link.Link, *link.Link) { return dialPair(t, c, true, false) },
	"upgradeTLS": func(t testing.TB, c link.Config) (*link.Link, *link.Link) {
		return dialPair(t, c, false, true)
	},
	"websocketTLS": func(t testing.TB, c link.Config) (*link.Link, *link.Link) {
		return dialPair(t, c, true, true)
	},
}

// each runs a test on every carrier.
func each(t *testing.T, f func(t *testing.T, client, server *link.Link)) {
	for name, pair := range carriers {
		t.Run(name, func(t *testing.T) {
			client, server := pair(t, link.Config{})
			f(t, client, server)
		})
	}
}

func connPair(t testing.TB, c, s net.Conn, cfg link.Config) (*link.Link, *link.Link) {
	t.Helper()
	client, err := link.NewClient(c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	server, err := link.NewServer(s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(errTest); _ = server.Close(errTest) })
	return client, server
}

func tcpPair(t testing.TB, cfg link.Config) (*link.Link, *link.Link) {
	c, s := testkit.TCP(t)
	return connPair(t, c, s, cfg)
}

// relay serves links; accepted ones go to the channel.
func relay(t testing.TB, cfg link.Config, secure bool) (*httptest.Server, chan *link.Link) {
	t.Helper()
	links := make(chan *link.Link, 16)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l, err := link.Accept(w, r, cfg)
		if err != nil {
			t.Logf("accept: %v", err)
			return
		}
		links <- l
	}))
	if secure {
		srv.Listener = carrier.Listener(srv.Listener)
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv, links
}

func dialPair(t testing.TB, cfg link.Config, websocketOnly, secure bool) (*link.Link, *link.Link) {
	t.Helper()
	srv, links := relay(t, cfg, secure)
	o := carrier.DialOptions{URL: srv.URL, Token: "ak-test", Proxy: http.ProxyURL(nil), WebSocketOnly: websocketOnly}
	if srv.TLS != nil {
		o.TLS = srv.Client().Transport.(*http.Transport).TLSClientConfig
	}
	client, err := link.Dial(t.Context(), o, cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := <-links
	t.Cleanup(func() { _ = client.Close(errTest); _ = server.Close(errTest) })
	return client, server
}

// streams returns the two ends of one stream, opened by the server as relays do.
func streams(t testing.TB, client, server *link.Link) (near, far *link.Stream) {
	t.Helper()
	near, err := server.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	far, err = client.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	near.Bill(somebody)
	far.Bill(somebody)
	return near, far
}

// somebody is whose most streams of these tests are.
var somebody = link.Owner{Tenant: "a tenant", Agent: "an agent", Tunnel: "a tunnel"}

// stalled waits until a writer has filled its window: much was sent, and no more is.
func stalled(t testing.TB, l *link.Link) {
	t.Helper()
	last, same := uint64(0), 0
	eventually(t, "the window is full", func() bool {
		now := l.Stats().BytesOut
		if same++; now != last {
			last, same = now, 0
		}
		return now > 256<<10 && same >= 50
	})
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited a minute for this: %s", what)
		}
	}
}

// within fails the test when f takes longer.
func within(t testing.TB, limit time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatalf("%s took longer than %s", what, limit)
	}
}

func mustRead(t testing.TB, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b, err, want)
	}
}

func mustWrite(t testing.TB, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
}

// bubble runs a test in a synctest bubble. yamux keeps timers in a package pool:
// none from outside must get in, and none from inside must get out.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	empty := func() { runtime.GC(); runtime.GC() }
	empty()
	defer empty()
	synctest.Test(t, f)
}
