package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// echo is a WebSocket app that sends back what it gets.
func echo(rw http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{InsecureSkipVerify: true, Subprotocols: []string{"chat"}, CompressionMode: websocket.CompressionContextTakeover})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(1 << 20)
	for {
		kind, b, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if string(b) == "bye" {
			_ = c.Close(4321, "as you like")
			return
		}
		if c.Write(r.Context(), kind, b) != nil {
			return
		}
	}
}

// webSocket connects to a tunnel.
func (w *world) webSocket(segment string, o *websocket.DialOptions) (*websocket.Conn, *http.Response, error) {
	if o == nil {
		o = &websocket.DialOptions{}
	}
	o.Host = w.public.Host
	c, resp, err := websocket.Dial(w.t.Context(), strings.Replace(w.pathURL(segment, "/ws"), "http", "ws", 1), o)
	if c != nil {
		w.t.Cleanup(func() { c.CloseNow() })
	}
	return c, resp, err
}

func TestWebSocketEchoAndCloseCodes(t *testing.T) {
	w := newWorld(t, nil)
	rec, seg := w.tunnel(w.appFunc(echo), nil)
	c, resp, err := w.webSocket(seg, &websocket.DialOptions{Subprotocols: []string{"other", "chat"}, CompressionMode: websocket.CompressionContextTakeover})
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadLimit(1 << 20)
	if c.Subprotocol() != "chat" || !strings.Contains(resp.Header.Get("Sec-WebSocket-Extensions"), "permessage-deflate") {
		t.Errorf("negotiated %q %q", c.Subprotocol(), resp.Header.Get("Sec-WebSocket-Extensions"))
	}
	for _, n := range []int{0, 1, 125, 126, 65535, 65536, 300000} {
		want := bytes.Repeat([]byte("x"), n)
		if err := c.Write(t.Context(), websocket.MessageBinary, want); err != nil {
			t.Fatal(err)
		}
		_, got, err := c.Read(t.Context())
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes came back as %d: %v", n, len(got), err)
		}
	}
	if v := w.meter.Viewers(rec.Session); len(v) != 1 || v[0].Connections != 1 || v[0].BytesIn < 1000 {
		t.Errorf("viewers %+v", v)
	}
	_ = c.Write(t.Context(), websocket.MessageText, []byte("bye"))
	_, _, err = c.Read(t.Context())
	var ce websocket.CloseError
	if !errors.As(err, &ce) || ce.Code != 4321 || ce.Reason != "as you like" {
		t.Errorf("the app's close code came as %v", err)
	}
	eventually(t, "the use has ended", func() bool { return w.meter.Totals(rec.Session).BytesOut > 0 && w.connections(rec) == 0 })
}

func (w *world) connections(r store.TunnelRecord) int {
	n := 0
	for _, v := range w.meter.Viewers(r.Session) {
		n += v.Connections
	}
	return n
}

func TestWebSocketSeesCloseFrame(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*world, store.TunnelRecord)
		code websocket.StatusCode
	}{
		"tunnel closed": {func(w *world, r store.TunnelRecord) { w.close(r.Session) }, 1001},
		"relay drains": {func(w *world, r store.TunnelRecord) {
			if err := w.edge.Drain(w.t.Context()); err != nil {
				w.t.Error(err)
			}
		}, 1012},
		"viewer kicked": {func(w *world, r store.TunnelRecord) { w.meter.Kick(r.Session, w.meter.Viewers(r.Session)[0].ViewerID) }, 1008},
	} {
		for _, protocol := range []api.Protocol{api.ProtocolHTTP, api.ProtocolTCP} {
			t.Run(name+" "+string(protocol), func(t *testing.T) {
				w := newWorld(t, nil)
				port := w.appFunc(echo)
				if protocol == api.ProtocolTCP {
					port = w.rawApp(func(c net.Conn) { _, _ = io.Copy(c, c) })
				}
				rec, seg := w.tunnel(port, func(r *store.TunnelRecord) { r.Protocol = protocol })
				c1, _, err := w.webSocket(seg, nil)
				if err != nil {
					t.Fatal(err)
				}
				_ = c1.Write(t.Context(), websocket.MessageBinary, []byte("hi"))
				if _, b, err := c1.Read(t.Context()); err != nil || string(b) != "hi" {
					t.Fatalf("%q %v", b, err)
				}
				got := make(chan error, 1)
				go func() { _, _, err := c1.Read(t.Context()); got <- err }()
				begin := time.Now()
				c.end(w, rec)
				if code := websocket.CloseStatus(<-got); code != c.code {
					t.Errorf("the browser saw close code %d, want %d", code, c.code)
				}
				eventually(t, "the use has ended", func() bool { return w.connections(rec) == 0 })
				testkit.Took(t, "the end", time.Since(begin), time.Second)
			})
		}
	}
}

// TestNoCloseFrameInsideAFrame: a close frame in the middle of the app's frame
// would be read as its payload.
func TestNoCloseFrameInsideAFrame(t *testing.T) {
	w := newWorld(t, nil)
	port := w.rawApp(func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", acceptKey(r))
		_, _ = c.Write([]byte{0x82, 10, 'h', 'a', 'l', 'f'}) // 4 of 10 bytes
		_, _ = io.Copy(io.Discard, c)
	})
	rec, seg := w.tunnel(port, nil)
	conn, br := w.dial()
	upgrade(conn, w, seg)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v %v", resp, err)
	}
	half := make([]byte, 6)
	if _, err := io.ReadFull(br, half); err != nil || string(half[2:]) != "half" {
		t.Fatalf("%q %v", half, err)
	}
	begin := time.Now()
	w.close(rec.Session)
	rest, _ := io.ReadAll(br)
	if len(rest) > 0 {
		t.Errorf("something was put into the frame: %q", rest)
	}
	testkit.Took(t, "the end", time.Since(begin), time.Second)
}

func upgrade(conn net.Conn, w *world, seg string) {
	fmt.Fprintf(conn, "GET /tunnel/%s/ HTTP/1.1\r\nHost: %s\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", seg, w.public.Host)
}

// acceptKey answers the key of upgrade (RFC 6455, section 1.3).
func acceptKey(*http.Request) string { return "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" }

func TestWrongSwitchIsNotCopied(t *testing.T) {
	w := newWorld(t, nil)
	for name, answer := range map[string]string{
		"wrong accept": "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
		"other":        "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
	} {
		port := w.rawApp(func(c net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.WriteString(c, answer)
				_, _ = io.Copy(io.Discard, c)
			}
		})
		_, seg := w.tunnel(port, nil)
		conn, br := w.dial()
		upgrade(conn, w, seg)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 502 || !strings.Contains(text(t, resp.Body), "app_bad_upgrade") {
			t.Errorf("%s: %v %v", name, resp, err)
		}
	}
}

// TestHalfCloseAndBytesSentWithTheHandshake: neither side's early bytes are lost,
// and the end of one direction leaves the other open.
func TestHalfCloseAndBytesSentWithTheHandshake(t *testing.T) {
	w := newWorld(t, nil)
	port := w.rawApp(func(c net.Conn) {
		br := bufio.NewReader(c)
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\nSet-Cookie: a=b; Path=/\r\n\r\nfirst", acceptKey(r))
		b, _ := io.ReadAll(br) // until the user's half-close
		fmt.Fprintf(c, "got %d", len(b))
	})
	_, seg := w.tunnel(port, nil)
	conn, br := w.dial()
	fmt.Fprintf(conn, "GET /tunnel/%s/ HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nearly", seg, w.public.Host)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Set-Cookie") != "a=b; Path=/tunnel/"+seg+"/" {
		t.Fatalf("%v %v", resp, err)
	}
	_, _ = io.WriteString(conn, "later")
	_ = conn.(*net.TCPConn).CloseWrite()
	if got := text(t, br); got != "firstgot 10" {
		t.Errorf("the user saw %q", got)
	}
}

func TestOnlyDataFramesAreUse(t *testing.T) {
	w := newWorld(t, nil)
	rec, seg := w.tunnel(w.appFunc(echo), nil)
	c, _, err := w.webSocket(seg, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Write(t.Context(), websocket.MessageText, []byte("hello"))
	if _, _, err := c.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := c.CloseRead(t.Context())
	if err := c.Ping(ctx); err != nil { // its answer comes after all that was noted of the echo
		t.Fatal(err)
	}
	before := w.meter.Totals(rec.Session)
	for range 3 {
		if err := c.Ping(ctx); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Write(t.Context(), websocket.MessageText, []byte("2")) // socket.io's ping
	eventually(t, "the bytes are counted", func() bool { return w.meter.Totals(rec.Session).BytesIn > before.BytesIn+20 })
	if after := w.meter.Totals(rec.Session); !after.LastUsed.Equal(before.LastUsed) {
		t.Error("keepalives count as use")
	}
}

func TestTCPOverWebSocket(t *testing.T) {
	w := newWorld(t, nil)
	port := w.rawApp(func(c net.Conn) {
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %d", len(b))
	})
	tcp := func(r *store.TunnelRecord) {
		r.Protocol = api.ProtocolTCP
		r.AllowOrigins = []string{"https://novnc.example"}
	}
	_, seg := w.tunnel(port, tcp)
	c, _, err := w.webSocket(seg, &websocket.DialOptions{Subprotocols: []string{"binary"}, HTTPHeader: http.Header{"Origin": {"https://novnc.example"}}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Subprotocol() != "binary" {
		t.Errorf("subprotocol %q", c.Subprotocol())
	}
	for _, b := range [][]byte{[]byte("hello"), bytes.Repeat([]byte("x"), 1<<20), nil} {
		if err := c.Write(t.Context(), websocket.MessageBinary, b); err != nil {
			t.Fatal(err)
		}
	}
	_, b, err := c.Read(t.Context())
	if err != nil || string(b) != fmt.Sprintf("got %d", 5+1<<20) && string(b) != fmt.Sprintf("got %d", 5+(1<<20)) {
		t.Errorf("after the half-close: %q %v", b, err)
	}
	for name, o := range map[string]*websocket.DialOptions{
		"evil origin":     {HTTPHeader: http.Header{"Origin": {"https://evil.example"}}},
		"null origin":     {HTTPHeader: http.Header{"Origin": {"null"}}},
		"base64 only":     {Subprotocols: []string{"base64"}},
		"other than ours": {Subprotocols: []string{"x", "y"}},
	} {
		if _, resp, err := w.webSocket(seg, o); err == nil || resp == nil || resp.StatusCode != 403 && resp.StatusCode != 400 {
			t.Errorf("%s: admitted: %v %v", name, resp, err)
		}
	}
	_, refused := w.tunnel(1, tcp)
	if _, resp, err := w.webSocket(refused, nil); err == nil || resp.StatusCode != 502 {
		t.Errorf("a port without listener: %v %v", resp, err)
	}
	resp := w.get(seg, "/")
	if body := text(t, resp.Body); resp.StatusCode != 426 || !strings.Contains(body, "adit connect") || strings.Contains(body, seg) {
		t.Errorf("a plain GET: %d %s", resp.StatusCode, body)
	}
	text2, _, err := w.webSocket(seg, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = text2.Write(t.Context(), websocket.MessageText, []byte("text"))
	if _, _, err = text2.Read(context.Background()); websocket.CloseStatus(err) != 1003 {
		t.Errorf("a text message ended with %v", err)
	}
}

// TestCutOfAPeerThatDoesNotRead: nobody's full window may hold a closed tunnel.
func TestCutOfAPeerThatDoesNotRead(t *testing.T) {
	for _, protocol := range []api.Protocol{api.ProtocolHTTP, api.ProtocolTCP} {
		t.Run(string(protocol), func(t *testing.T) {
			w := newWorld(t, nil)
			port := w.rawApp(func(c net.Conn) {
				if protocol == api.ProtocolHTTP {
					r, err := http.ReadRequest(bufio.NewReader(c))
					if err != nil {
						return
					}
					fmt.Fprintf(c, "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", acceptKey(r))
				}
				frame := append([]byte{0x82, 126, 0x10, 0}, make([]byte, 4096)...)
				for {
					if _, err := c.Write(frame); err != nil {
						return
					}
				}
			})
			rec, seg := w.tunnel(port, func(r *store.TunnelRecord) { r.Protocol = protocol })
			conn, _ := w.dial()
			upgrade(conn, w, seg)
			last, same := int64(-1), 0
			eventually(t, "the windows are full", func() bool {
				n := w.meter.Totals(rec.Session).BytesOut
				if n == last && n > 1<<20 {
					same++
				} else {
					last, same = n, 0
				}
				return same > 20
			})
			begin := time.Now()
			w.close(rec.Session)
			eventually(t, "the use has ended", func() bool { return w.connections(rec) == 0 })
			testkit.Took(t, "the end", time.Since(begin), time.Second)
		})
	}
}
