package carrier_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

var errTest = errors.New("the test is over")

// relay accepts connections; they go to the channel.
func relay(t *testing.T, secure bool) (*httptest.Server, chan carrier.Conn) {
	t.Helper()
	accepted := make(chan carrier.Conn, 16)
	srv := httptest.NewUnstartedServer(acceptInto(t, accepted))
	if secure {
		srv.Listener = carrier.Listener(srv.Listener)
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv, accepted
}

func acceptInto(t *testing.T, accepted chan<- carrier.Conn) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := carrier.Accept(w, r)
		if err != nil {
			t.Logf("accept: %v", err)
			return
		}
		accepted <- c
	})
}

func dialOptions(srv *httptest.Server) carrier.DialOptions {
	o := carrier.DialOptions{URL: srv.URL, Token: "ak-test", Proxy: http.ProxyURL(nil)}
	if srv.TLS != nil {
		o.TLS = srv.Client().Transport.(*http.Transport).TLSClientConfig
	}
	return o
}

// works moves bytes both ways over a dialled connection and closes both ends.
func works(t *testing.T, client carrier.Conn, accepted <-chan carrier.Conn) {
	t.Helper()
	server := <-accepted
	defer func() { _ = client.Close(); _ = server.Close() }()
	pass(t, client, server)
	pass(t, server, client)
}

// pass sends small writes and large ones, of one slice and of two.
func pass(t *testing.T, from, to carrier.Conn) {
	t.Helper()
	large := bytes.Repeat([]byte("large"), 20<<10)
	var want []byte
	sent := make(chan error, 1)
	writes := [][2][]byte{{[]byte("head"), []byte("body")}, {[]byte("alone"), nil}, {nil, large}, {[]byte("head"), large}}
	for _, w := range writes {
		want = append(append(want, w[0]...), w[1]...)
	}
	go func() {
		var err error
		for _, w := range writes {
			err = errors.Join(err, from.Writev(w[0], w[1]))
		}
		sent <- err
	}()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what arrives is not what was sent: %v", err)
	}
	if err := <-sent; err != nil {
		t.Errorf("send: %v", err)
	}
}

func TestCarriers(t *testing.T) {
	for _, c := range []struct {
		name                  string
		websocketOnly, secure bool
		want                  string
	}{
		{"upgrade", false, false, "tcp"},
		{"websocket", true, false, "websocket"},
		{"upgrade over TLS", false, true, "tcp"},
		{"websocket over TLS", true, true, "websocket"},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv, accepted := relay(t, c.secure)
			o := dialOptions(srv)
			o.WebSocketOnly = c.websocketOnly
			client, err := carrier.Dial(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if client.Name() != c.want {
				t.Errorf("the carrier is %q; want %q", client.Name(), c.want)
			}
			works(t, client, accepted)
		})
	}
}

func TestDialSendsTokenAndPath(t *testing.T) {
	var seen atomic.Pointer[http.Request]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r)
		api.NewProblem(api.CodeRelayDraining, "the relay is stopping").
			WithRetry(7*time.Second).Write(w, "")
	}))
	defer srv.Close()
	_, err := carrier.Dial(t.Context(), dialOptions(srv))
	var refused *carrier.RefusedError
	if !errors.As(err, &refused) || refused.Status != 503 || refused.Problem == nil || refused.Problem.Code != "relay_draining" ||
		refused.RetryAfter != 7*time.Second {
		t.Fatalf("a refusal arrives as %#v (%v)", refused, err)
	}
	r := seen.Load()
	if r.Header.Get("Authorization") != "Bearer ak-test" || r.URL.Path != wire.LinkPath {
		t.Errorf("the relay saw %s with %v", r.URL, r.Header)
	}
	if strings.Contains(err.Error(), "ak-test") {
		t.Errorf("the error shows the token: %v", err)
	}
}

func TestRefusalsAreNotTriedTwice(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		api.NewProblem(api.CodeWrongAgent, "not yours").Write(w, "")
	}))
	defer srv.Close()
	_, err := carrier.Dial(t.Context(), dialOptions(srv))
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != "wrong_agent" || asked.Load() != 1 {
		t.Errorf("got %v after %d requests; want the problem after one", err, asked.Load())
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the token went where a redirect pointed")
	}))
	defer elsewhere.Close()
	srv := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer srv.Close()
	_, err := carrier.Dial(t.Context(), dialOptions(srv))
	var refused *carrier.RefusedError
	if !errors.As(err, &refused) || refused.Status != 307 || refused.Location != elsewhere.URL {
		t.Errorf("a redirect gives %v; want a refusal that names the place", err)
	}
}

func TestDialURLs(t *testing.T) {
	srv, accepted := relay(t, false)
	host := strings.TrimPrefix(srv.URL, "http://")
	for _, u := range []string{"ws://" + host, "http://" + host + "/", "ws://" + host + wire.LinkPath, "http://" + host + "/behind/a/prefix"} {
		o := dialOptions(srv)
		o.URL = u
		client, err := carrier.Dial(t.Context(), o)
		if err != nil {
			t.Fatalf("%s: %v", u, err)
		}
		works(t, client, accepted)
	}
	for _, u := range []string{"", "ftp://x", "http://", "://", "relay.example.com"} {
		if _, err := carrier.Dial(t.Context(), carrier.DialOptions{URL: u}); err == nil {
			t.Errorf("%q was dialled", u)
		}
	}
}

func TestDialIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here")
	}
	accepted := make(chan carrier.Conn, 1)
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: acceptInto(t, accepted), ReadHeaderTimeout: time.Minute}}
	srv.Start()
	defer srv.Close()
	client, err := carrier.Dial(t.Context(), dialOptions(srv))
	if err != nil {
		t.Fatal(err)
	}
	works(t, client, accepted)
}

func TestUnknownCAIsRefused(t *testing.T) {
	srv, _ := relay(t, true)
	o := dialOptions(srv)
	o.TLS = nil
	_, err := carrier.Dial(t.Context(), o)
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok {
		t.Errorf("a certificate of an unknown CA gives %v", err)
	}
}

// proxy is a CONNECT proxy; it counts, and wants a login where one is given.
func proxyServer(t *testing.T, secure bool, login string) (*httptest.Server, *atomic.Int32) {
	var used atomic.Int32
	var wg sync.WaitGroup
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Header.Get("Proxy-Authorization") != login {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		if r.Header.Get("Authorization") != "" {
			t.Error("the proxy saw the token")
		}
		used.Add(1)
		up, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		down, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		wg.Go(func() { _, _ = io.Copy(up, rw); _ = up.Close() })
		wg.Go(func() { _, _ = io.Copy(down, up); _ = down.Close() })
	}))
	if secure {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(func() { srv.Close(); wg.Wait() })
	return srv, &used
}

func TestDialThroughProxy(t *testing.T) {
	for _, c := range []struct {
		name                      string
		secureProxy, secureTarget bool
		user                      *url.Userinfo
		login                     string
	}{
		{"plain", false, false, nil, ""},
		{"to TLS", false, true, nil, ""},
		{"with a login", false, true, url.UserPassword("me", "pw"), "Basic bWU6cHc="},
		{"over TLS", true, true, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv, accepted := relay(t, c.secureTarget)
			p, used := proxyServer(t, c.secureProxy, c.login)
			u, _ := url.Parse(p.URL)
			u.User = c.user
			o := dialOptions(srv)
			o.Proxy = http.ProxyURL(u)
			if c.secureProxy {
				o.TLS = o.TLS.Clone()
				o.TLS.RootCAs.AddCert(p.Certificate())
			}
			client, err := carrier.Dial(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			works(t, client, accepted)
			if used.Load() != 1 {
				t.Errorf("the proxy was used %d times", used.Load())
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		srv, _ := relay(t, true)
		p, _ := proxyServer(t, false, "something else")
		u, _ := url.Parse(p.URL)
		u.User = url.UserPassword("me", "secret-pw")
		o := dialOptions(srv)
		o.Proxy = http.ProxyURL(u)
		_, err := carrier.Dial(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), "407") || strings.Contains(err.Error(), "secret-pw") {
			t.Errorf("a proxy that wants another login gives %v", err)
		}
	})
}

// An intermediary that knows WebSocket only: it refuses the offer of two, or passes
// on the one it knows.
func TestFallsBackToWebSocket(t *testing.T) {
	for _, refuse := range []bool{true, false} {
		accepted := make(chan carrier.Conn, 1)
		var offers []string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			offers = append(offers, r.Header.Get("Upgrade"))
			if r.Header.Get("Upgrade") != "websocket" {
				if refuse {
					http.Error(w, "what is that?", http.StatusBadRequest)
					return
				}
				r.Header.Set("Upgrade", "websocket")
			}
			acceptInto(t, accepted).ServeHTTP(w, r)
		}))
		client, err := carrier.Dial(t.Context(), dialOptions(srv))
		if err != nil {
			t.Fatalf("after offers %q: %v", offers, err)
		}
		if client.Name() != "websocket" {
			t.Errorf("the link is carried by %q", client.Name())
		}
		works(t, client, accepted)
		srv.Close()
	}
}

func TestDialIsBoundByItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // it never answers
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errTest)
	defer cancel()
	_, err = carrier.Dial(ctx, carrier.DialOptions{URL: "http://" + l.Addr().String(), Proxy: http.ProxyURL(nil)})
	if !errors.Is(err, errTest) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dialling who never answers gives %v; want the context's end", err)
	}
}

func TestAcceptRefusesWhatIsNoUpgrade(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := carrier.Accept(w, r); err == nil {
			t.Error("a plain request became a link's connection")
			_ = c.Close()
		}
	}))
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest || resp.Header.Get("Content-Type") != api.ProblemContentType {
		t.Errorf("a plain request is answered %s", resp.Status)
	}
	// A browser on another site must not make a link either.
	_, _, err = websocket.Dial(t.Context(), srv.URL, &websocket.DialOptions{
		Subprotocols: []string{wire.Subprotocol}, HTTPHeader: http.Header{"Origin": {"https://evil.example"}},
	})
	if err == nil {
		t.Error("a foreign origin became a link's connection")
	}
}

// whole dials the relay with the WebSocket library alone, and returns what it accepted.
func whole(t *testing.T) (*websocket.Conn, carrier.Conn) {
	t.Helper()
	srv, accepted := relay(t, false)
	c, _, err := websocket.Dial(t.Context(), srv.URL, &websocket.DialOptions{Subprotocols: []string{wire.Subprotocol}})
	if err != nil {
		t.Fatal(err)
	}
	server := <-accepted
	t.Cleanup(func() { _ = c.CloseNow(); _ = server.Close() })
	return c, server
}

func TestOversizedMessageIsAnError(t *testing.T) {
	c, server := whole(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { // a gigabyte, if somebody takes it
		w, err := c.Writer(t.Context(), websocket.MessageBinary)
		for i := 0; err == nil && i < 1<<14; i++ {
			_, err = w.Write(make([]byte, 64<<10))
		}
	})
	n, err := io.Copy(io.Discard, server)
	if err == nil || n > 1<<20+4096 {
		t.Errorf("%d bytes of one message were taken, and then %v", n, err)
	}
	_ = server.Close()
}

func TestTextMessageIsAnError(t *testing.T) {
	c, server := whole(t)
	_ = c.Write(t.Context(), websocket.MessageText, []byte("hello"))
	if _, err := server.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "text message") {
		t.Errorf("a text message reads as %v; want what was wrong", err)
	}
}

// A peer that closes a WebSocket says why.
func TestCloseHandshakeTellsWhy(t *testing.T) {
	srv, accepted := relay(t, false)
	o := dialOptions(srv)
	o.WebSocketOnly = true
	client, err := carrier.Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	server := <-accepted
	defer func() { _ = client.Close(); _ = server.Close() }()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { client.CloseHandshake("the agent is stopping", 10*time.Second) })
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, carrier.ErrPeerClosed) || !strings.Contains(err.Error(), "the agent is stopping") {
		t.Errorf("the end of the connection reads as %v; want the reason", err)
	}
}

func TestCongestionIsTold(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells")
	}
	a, _ := testkit.TCP(t)
	if name, _ := carrier.Tune(carrier.New(a)); name == "" {
		t.Error("nothing is told of a socket's congestion control")
	}
	p, q := net.Pipe()
	defer func() { _ = p.Close(); _ = q.Close() }()
	if name, line := carrier.Tune(carrier.New(p)); name != "" || line != nil {
		t.Errorf("a pipe has congestion control %q", name)
	}
}

// A server may send its first bytes along with the 101.
func TestBytesBehindTheUpgrade(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			t.Error(err)
		}
		_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: adit-link\r\n"+
			"Sec-WebSocket-Protocol: %s\r\n\r\nearly", wire.Subprotocol)
	})
	client, err := carrier.Dial(t.Context(), carrier.DialOptions{URL: "http://" + l.Addr().String(), Proxy: http.ProxyURL(nil)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if got, err := io.ReadAll(io.LimitReader(client, 5)); err != nil || string(got) != "early" {
		t.Errorf("behind the 101 comes %q, %v", got, err)
	}
}

func TestAppendBufferGrows(t *testing.T) {
	var b *[]byte
	var want []byte
	for i := range 3000 {
		p := []byte(fmt.Sprintf("%d, ", i))
		b, want = carrier.AppendBuffer(b, p), append(want, p...)
	}
	if !bytes.Equal(*b, want) {
		t.Error("what was appended is not what is there")
	}
	carrier.PutBuffer(b)
}
