package edge_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestHoldAndComeBack(t *testing.T) {
	w := newWorld(t, func(c *edge.Config) { c.Hold = 10 * time.Second })
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, "back") })
	_, seg := w.tunnel(port, nil)
	gone := w.machine.set(nil)
	done := make(chan string, 1)
	r := w.request("POST", seg, "/", strings.NewReader("x"))
	go func() {
		resp, err := w.client().Do(r)
		if err != nil {
			done <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		done <- string(b)
	}()
	select {
	case got := <-done:
		t.Fatalf("not held: %s", got)
	case <-time.After(100 * time.Millisecond):
	}
	w.machine.set(gone)
	if got := <-done; got != "back" {
		t.Errorf("after the agent's return: %s", got)
	}
}

func TestAgentOffline(t *testing.T) {
	w := newWorld(t, func(c *edge.Config) { c.Hold = 50 * time.Millisecond })
	_, seg := w.tunnel(1, nil)
	w.machine.set(nil)
	resp := w.get(seg, "/")
	body := text(t, resp.Body)
	if resp.StatusCode != 503 || !strings.Contains(body, `"agent_offline"`) || !strings.Contains(body, `"hop":"link"`) || resp.Header.Get("Retry-After") != "3" {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	r := w.request("GET", seg, "/", nil)
	r.Header.Set("Accept", "text/html,*/*")
	resp = w.do(r)
	body = text(t, resp.Body)
	csp := resp.Header.Get("Content-Security-Policy")
	if resp.StatusCode != 503 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") || !strings.Contains(body, `http-equiv="refresh"`) ||
		!strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || strings.Contains(body, seg) || strings.Contains(body, "http://") {
		t.Errorf("the page: %v %s", resp.Header, body)
	}
}

func TestRelayThatStopsSaysSo(t *testing.T) {
	w := newWorld(t, nil)
	_, seg := w.tunnel(1, nil)
	w.machine.draining.Store(true)
	resp := w.get(seg, "/")
	if body := text(t, resp.Body); resp.StatusCode != 503 || !strings.Contains(body, `"relay_draining"`) || resp.Header.Get("Retry-After") == "" {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
}

func TestRefusalsNameTheHop(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		code   wire.Code
		status int
		want   string
		hop    api.Hop
	}{
		{wire.CodePortNotAllowed, 403, "port_not_allowed", api.HopAgent},
		{wire.CodeAppRefused, 502, "app_refused", api.HopApp},
		{wire.CodeAppTimeout, 504, "app_timeout", api.HopApp},
		{wire.CodePaused, 503, "agent_paused", api.HopAgent},
		{wire.CodeOverloaded, 503, "agent_overloaded", api.HopAgent},
		{wire.CodeBadHello, 502, "agent_incompatible", api.HopAgent},
		{wire.CodeInternal, 502, "agent_error", api.HopAgent},
	} {
		for _, protocol := range []api.Protocol{api.ProtocolHTTP, api.ProtocolTCP} {
			_, seg := w.tunnel(8188, func(r *store.TunnelRecord) { r.Protocol = protocol })
			w.machine.refuse.Store(&wire.Verdict{Code: c.code, Text: "<because>"})
			r := w.request("GET", seg, "/", nil)
			if protocol == api.ProtocolTCP {
				r.Header.Set("Connection", "Upgrade")
				r.Header.Set("Upgrade", "websocket")
				r.Header.Set("Sec-WebSocket-Version", "13")
				r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
			}
			resp := w.do(r)
			body := text(t, resp.Body)
			if resp.StatusCode != c.status || !strings.Contains(body, `"code":"`+c.want+`"`) || !strings.Contains(body, `"hop":"`+string(c.hop)+`"`) {
				t.Errorf("%s, verdict %d: %d %s", protocol, c.code, resp.StatusCode, body)
			}
			if c.code == wire.CodeAppRefused && (!strings.Contains(body, "8188") || !strings.Contains(body, "ComfyUI")) {
				t.Errorf("the port and its usual app are not named: %s", body)
			}
		}
	}
	_, seg := w.tunnel(8188, nil)
	r := w.request("GET", seg, "/", nil)
	r.Header.Set("Accept", "text/html")
	if body := text(t, w.do(r).Body); strings.Contains(body, "<because>") {
		t.Error("the agent's text is not escaped")
	}
}

func TestAgentNotToldYet(t *testing.T) {
	w := newWorld(t, nil)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, "ok") })
	_, seg := w.tunnel(port, nil)
	w.machine.refuse.Store(&wire.Verdict{Code: wire.CodeUnknownTunnel, Text: "once"})
	if resp := w.get(seg, "/"); resp.StatusCode != 200 {
		t.Errorf("the first request to a new tunnel: %d %s", resp.StatusCode, text(t, resp.Body))
	}
}

func TestLostStreamIsRetriedOnce(t *testing.T) {
	w := newWorld(t, nil)
	var conns atomic.Int64
	var dropFirst int64 = 1
	port := w.rawApp(dropper(&conns, &dropFirst))
	_, seg := w.tunnel(port, nil)
	if resp := w.get(seg, "/"); resp.StatusCode != 200 {
		t.Errorf("a GET that lost its stream: %d", resp.StatusCode)
	}
	conns.Store(0)
	atomic.StoreInt64(&dropFirst, 2)
	_, seg = w.tunnel(port, nil)
	if resp := w.get(seg, "/"); resp.StatusCode != 502 || conns.Load() != 2 {
		t.Errorf("lost twice: %d after %d tries", resp.StatusCode, conns.Load())
	}
	for _, body := range []io.Reader{nil, strings.NewReader("x")} {
		conns.Store(0)
		atomic.StoreInt64(&dropFirst, 1)
		_, seg = w.tunnel(port, nil)
		resp := w.do(w.request("POST", seg, "/", body))
		if b := text(t, resp.Body); resp.StatusCode != 502 || conns.Load() != 1 || !strings.Contains(b, "app_closed") {
			t.Errorf("a POST must not be repeated: %d after %d tries, %s", resp.StatusCode, conns.Load(), b)
		}
	}
}

func TestAppThatIsNoHTTP(t *testing.T) {
	w := newWorld(t, func(c *edge.Config) { c.HeaderTimeout = 2 * time.Second })
	ssh := w.rawApp(func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.6\r\n"); io.Copy(io.Discard, c) })
	silent := w.rawApp(func(c net.Conn) { io.Copy(io.Discard, c) })
	endless := w.rawApp(func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		for {
			if _, err := io.WriteString(c, "X: "+strings.Repeat("y", 4000)+"\r\n"); err != nil {
				return
			}
		}
	})
	switcher := w.rawApp(func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: evil\r\n\r\n")
		io.Copy(io.Discard, c)
	})
	for port, want := range map[int]string{ssh: "app_not_http", silent: "app_timeout", endless: "app_header_too_large", switcher: "app_bad_upgrade"} {
		_, seg := w.tunnel(port, nil)
		resp := w.get(seg, "/")
		if body := text(t, resp.Body); !strings.Contains(body, `"code":"`+want+`"`) || !strings.Contains(body, `"hop":"app"`) {
			t.Errorf("%s: %d %s", want, resp.StatusCode, body)
		}
	}
}

func TestTooManyStreams(t *testing.T) {
	w := newWorld(t, func(c *edge.Config) { c.MaxStreams = 2 })
	release := make(chan struct{})
	port := w.appFunc(func(http.ResponseWriter, *http.Request) { <-release })
	rec, seg := w.tunnel(port, nil)
	for range 2 {
		r := w.request("GET", seg, "/", nil)
		go func() {
			if resp, err := w.client().Do(r); err == nil {
				resp.Body.Close()
			}
		}()
	}
	eventually(t, "two requests are under way", func() bool {
		v := w.meter.Viewers(rec.Session)
		return len(v) == 1 && v[0].Connections == 2
	})
	resp := w.get(seg, "/")
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("the third: %d", resp.StatusCode)
	}
	close(release)
}

func TestCutEndsRequestsWithinASecond(t *testing.T) {
	w := newWorld(t, nil)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/pending" {
			io.Copy(io.Discard, r.Body) // net/http notices that a peer left only behind the body
			<-r.Context().Done()
			return
		}
		rw.(http.Flusher).Flush()
		if r.URL.Path == "/flood" {
			io.Copy(rw, pattern{}) // to a user who does not read
			return
		}
		<-r.Context().Done()
	})
	rec, seg := w.tunnel(port, nil)
	open := func(path string) net.Conn {
		conn, _ := w.dial()
		fmt.Fprintf(conn, "GET /tunnel/%s%s HTTP/1.1\r\nHost: %s\r\n\r\n", seg, path, w.public.Host)
		return conn
	}
	stream, pending, flood := open("/stream"), open("/pending"), open("/flood")
	upload, _ := w.dial()
	fmt.Fprintf(upload, "POST /tunnel/%s/pending HTTP/1.1\r\nHost: %s\r\nContent-Length: 100\r\n\r\nabc", seg, w.public.Host)
	eventually(t, "four uses are under way", func() bool {
		v := w.meter.Viewers(rec.Session)
		return len(v) == 1 && v[0].Connections == 4 && v[0].BytesOut > 1<<20
	})
	begin := time.Now()
	if n := w.close(rec.Session); n != 4 {
		t.Errorf("%d uses were cut, want 4", n)
	}
	eventually(t, "all uses have ended", func() bool {
		v := w.meter.Viewers(rec.Session)
		return len(v) == 0 || v[0].Connections == 0
	})
	testkit.Took(t, "cutting all uses", time.Since(begin), time.Second)
	if b, _ := io.ReadAll(stream); strings.HasSuffix(string(b), "0\r\n\r\n") {
		t.Error("the cut stream looks whole")
	}
	if b, _ := io.ReadAll(pending); !strings.Contains(string(b), "404 Not Found") || !strings.Contains(string(b), "Connection: close") {
		t.Errorf("the waiting request got %q", b)
	}
	flood.Close()
}

func TestKick(t *testing.T) {
	w := newWorld(t, func(c *edge.Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	port := w.appFunc(func(http.ResponseWriter, *http.Request) {})
	rec, seg := w.tunnel(port, nil)
	from := func(addr, name string) *http.Request {
		r := w.request("GET", seg, "/", nil)
		r.Header.Set("X-Forwarded-For", addr)
		r.Header.Set("User-Agent", name)
		return r
	}
	w.do(from("192.0.2.1", "a"))
	w.do(from("192.0.2.2", "a"))
	viewers := w.meter.Viewers(rec.Session)
	if len(viewers) != 2 || !w.meter.Kick(rec.Session, viewers[0].ViewerID) {
		t.Fatalf("viewers %v", viewers)
	}
	for _, name := range []string{"a", "b", ""} {
		if resp := w.do(from("192.0.2.1", name)); resp.StatusCode != 403 || !strings.Contains(text(t, resp.Body), "viewer_disconnected") {
			t.Errorf("the kicked viewer, now as %q, got %d", name, resp.StatusCode)
		}
	}
	if resp := w.do(from("192.0.2.2", "a")); resp.StatusCode != 200 {
		t.Errorf("the other viewer got %d", resp.StatusCode)
	}
}

// dropper is an app that closes its first connections without an answer.
func dropper(conns *atomic.Int64, first *int64) func(net.Conn) {
	return func(c net.Conn) {
		n := conns.Add(1)
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if n > atomic.LoadInt64(first) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
		}
	}
}
