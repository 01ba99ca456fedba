package link_test

import (
	"bufio"
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
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// works moves a few bytes over a dialled link and closes both ends.
func works(t *testing.T, client *link.Link, links chan *link.Link) {
	t.Helper()
	server := <-links
	defer func() { _ = client.Close(errTest); _ = server.Close(errTest) }()
	near, far := streams(t, client, server)
	mustWrite(t, near, "there")
	mustRead(t, far, "there")
	mustWrite(t, far, "back")
	mustRead(t, near, "back")
}

func TestDialSendsTokenAndPath(t *testing.T) {
	var seen atomic.Pointer[http.Request]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r)
		api.NewProblem(api.CodeRelayDraining, "the relay is stopping").
			WithRetry(7*time.Second).Write(w, "")
	}))
	defer srv.Close()
	_, err := link.Dial(t.Context(), dialOptions(srv, link.Config{}))
	var refused *link.RefusedError
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
	_, err := link.Dial(t.Context(), dialOptions(srv, link.Config{}))
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
	_, err := link.Dial(t.Context(), dialOptions(srv, link.Config{}))
	var refused *link.RefusedError
	if !errors.As(err, &refused) || refused.Status != 307 || refused.Location != elsewhere.URL {
		t.Errorf("a redirect gives %v; want a refusal that names the place", err)
	}
}

func TestDialURLs(t *testing.T) {
	srv, links := relay(t, link.Config{}, false)
	host := strings.TrimPrefix(srv.URL, "http://")
	for _, u := range []string{"ws://" + host, "http://" + host + "/", "ws://" + host + wire.LinkPath, "http://" + host + "/behind/a/prefix"} {
		o := dialOptions(srv, link.Config{})
		o.URL = u
		client, err := link.Dial(t.Context(), o)
		if err != nil {
			t.Fatalf("%s: %v", u, err)
		}
		works(t, client, links)
	}
	for _, u := range []string{"", "ftp://x", "http://", "://", "relay.example.com"} {
		if _, err := link.Dial(t.Context(), link.DialOptions{URL: u}); err == nil {
			t.Errorf("%q was dialled", u)
		}
	}
}

func TestDialIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here")
	}
	links := make(chan *link.Link, 1)
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: acceptInto(t, links), ReadHeaderTimeout: time.Minute}}
	srv.Start()
	defer srv.Close()
	client, err := link.Dial(t.Context(), dialOptions(srv, link.Config{}))
	if err != nil {
		t.Fatal(err)
	}
	works(t, client, links)
}

func acceptInto(t *testing.T, links chan *link.Link) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l, err := link.Accept(w, r, link.Config{})
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		links <- l
	})
}

func TestUnknownCAIsRefused(t *testing.T) {
	srv, _ := relay(t, link.Config{}, true)
	o := dialOptions(srv, link.Config{})
	o.TLS = nil
	_, err := link.Dial(t.Context(), o)
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
			srv, links := relay(t, link.Config{}, c.secureTarget)
			p, used := proxyServer(t, c.secureProxy, c.login)
			u, _ := url.Parse(p.URL)
			u.User = c.user
			o := dialOptions(srv, link.Config{})
			o.Proxy = http.ProxyURL(u)
			if c.secureProxy {
				o.TLS = o.TLS.Clone()
				o.TLS.RootCAs.AddCert(p.Certificate())
			}
			client, err := link.Dial(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			works(t, client, links)
			if used.Load() != 1 {
				t.Errorf("the proxy was used %d times", used.Load())
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		srv, _ := relay(t, link.Config{}, true)
		p, _ := proxyServer(t, false, "something else")
		u, _ := url.Parse(p.URL)
		u.User = url.UserPassword("me", "secret-pw")
		o := dialOptions(srv, link.Config{})
		o.Proxy = http.ProxyURL(u)
		_, err := link.Dial(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), "407") || strings.Contains(err.Error(), "secret-pw") {
			t.Errorf("a proxy that wants another login gives %v", err)
		}
	})
}

// An intermediary that knows WebSocket only: it refuses the offer of two, or passes
// on the one it knows.
func TestFallsBackToWebSocket(t *testing.T) {
	for _, refuse := range []bool{true, false} {
		links := make(chan *link.Link, 1)
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
			acceptInto(t, links).ServeHTTP(w, r)
		}))
		client, err := link.Dial(t.Context(), dialOptions(srv, link.Config{}))
		if err != nil {
			t.Fatalf("after offers %q: %v", offers, err)
		}
		if client.Carrier() != "websocket" {
			t.Errorf("the link is carried by %q", client.Carrier())
		}
		works(t, client, links)
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
	within(t, 5*time.Second, "dialling who never answers", func() {
		_, err := link.Dial(ctx, link.DialOptions{URL: "http://" + l.Addr().String(), Proxy: http.ProxyURL(nil)})
		if !errors.Is(err, errTest) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dialling gives %v; want the context's end", err)
		}
	})
}

func TestAcceptRefusesWhatIsNoUpgrade(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l, err := link.Accept(w, r, link.Config{}); err == nil {
			t.Error("a plain request became a link")
			_ = l.Close(errTest)
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
		t.Error("a foreign origin became a link")
	}
}

func TestOversizedMessageEndsTheLink(t *testing.T) {
	srv, links := relay(t, link.Config{}, false)
	c, _, err := websocket.Dial(t.Context(), srv.URL, &websocket.DialOptions{Subprotocols: []string{wire.Subprotocol}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	server := <-links
	defer func() { _ = server.Close(errTest) }()
	go func() { // a gigabyte, if somebody takes it
		w, err := c.Writer(t.Context(), websocket.MessageBinary)
		frame := append([]byte{0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0}, make([]byte, 1<<16)...)
		frame[1] = 1 // window updates for a stream that is not there, over and over
		for i := 0; err == nil && i < 1<<14; i++ {
			_, err = w.Write(slices.Repeat(frame[:12], 4096))
		}
	}()
	<-server.Done()
	if got := server.Stats().BytesIn; got > 1<<20+4096 {
		t.Errorf("%d bytes of one message were taken", got)
	}
}

func TestTextMessageEndsTheLink(t *testing.T) {
	srv, links := relay(t, link.Config{}, false)
	c, _, err := websocket.Dial(t.Context(), srv.URL, &websocket.DialOptions{Subprotocols: []string{wire.Subprotocol}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	server := <-links
	defer func() { _ = server.Close(errTest) }()
	_ = c.Write(t.Context(), websocket.MessageText, []byte("hello"))
	<-server.Done()
	if err := server.Err(); !strings.Contains(err.Error(), "text message") {
		t.Errorf("the link ended with %v; want what was wrong", err)
	}
}

func TestCongestionIsTold(t *testing.T) {
	client, server := tcpPair(t, link.Config{})
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells")
	}
	if client.Congestion() == "" || server.Congestion() == "" {
		t.Errorf("congestion control is %q and %q", client.Congestion(), server.Congestion())
	}
	c, s := net.Pipe()
	l, err := link.NewClient(c, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if l.Congestion() != "" {
		t.Errorf("a pipe has congestion control %q", l.Congestion())
	}
	_ = s.Close()
	_ = l.Close(errTest)
}

// A server may send its first frames along with the 101.
func TestFramesBehindTheUpgrade(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			t.Error(err)
		}
		// Behind it: a ping with id 9, which is answered.
		_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: adit-link\r\n"+
			"Sec-WebSocket-Protocol: %s\r\n\r\n\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x09", wire.Subprotocol)
		got := make([]byte, 24) // our own first ping and the answer, in either order
		if _, err := io.ReadFull(c, got); err != nil || !strings.Contains(string(got), "\x00\x02\x00\x02\x00\x00\x00\x00\x00\x00\x00\x09") {
			t.Errorf("the ping behind the 101 was answered with %x, %v", got, err)
		}
	})
	client, err := link.Dial(t.Context(), link.DialOptions{URL: "http://" + l.Addr().String(), Proxy: http.ProxyURL(nil)})
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	_ = client.Close(errTest)
}
