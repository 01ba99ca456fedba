package wsconn_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/wsconn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ splice.Conn = (*wsconn.Conn)(nil)

// sockets returns the two ends of a WebSocket, the client's first.
func sockets(t testing.TB, opts *websocket.DialOptions) (*websocket.Conn, *websocket.Conn) {
	t.Helper()
	got := make(chan *websocket.Conn, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		got <- c
	}))
	defer srv.Close()
	client, _, err := websocket.Dial(t.Context(), srv.URL, opts)
	if err != nil {
		t.Fatal(err)
	}
	server := <-got
	t.Cleanup(func() { _ = client.CloseNow(); _ = server.CloseNow() })
	return client, server
}

// pair returns a stream's two ends, the client's first.
func pair(t testing.TB, opts wsconn.Options) (*wsconn.Conn, *wsconn.Conn) {
	t.Helper()
	c, s := sockets(t, nil)
	client, server := wsconn.New(c, opts), wsconn.New(s, opts)
	t.Cleanup(func() { _ = client.Reset(); _ = server.Reset() })
	return client, server
}

// raw returns a plain WebSocket client before a stream.
func raw(t testing.TB, opts wsconn.Options) (*websocket.Conn, *wsconn.Conn) {
	t.Helper()
	c, s := sockets(t, nil)
	server := wsconn.New(s, opts)
	t.Cleanup(func() { _ = c.CloseNow(); _ = server.Reset() })
	return c, server
}

func mustSend(t testing.TB, c *websocket.Conn, typ websocket.MessageType, p []byte) {
	t.Helper()
	if err := c.Write(t.Context(), typ, p); err != nil {
		t.Fatal(err)
	}
}

func TestBytesBothWays(t *testing.T) {
	client, server := pair(t, wsconn.Options{})
	data := make([]byte, 5<<20)
	_, _ = rand.Read(data)
	var wg sync.WaitGroup
	for _, c := range []*wsconn.Conn{client, server} {
		wg.Go(func() {
			if _, err := c.Write(data); err != nil {
				t.Errorf("write: %v", err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Errorf("half-close: %v", err)
			}
		})
		wg.Go(func() {
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
				t.Errorf("read %d of %d bytes: %v", len(got), len(data), err)
			}
		})
	}
	wg.Wait()
	wg.Go(func() { _ = client.Close() })
	if err := server.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	wg.Wait()
}

func TestHalfCloseIsAnEmptyMessage(t *testing.T) {
	client, server := raw(t, wsconn.Options{})
	mustSend(t, client, websocket.MessageBinary, []byte("question"))
	mustSend(t, client, websocket.MessageBinary, nil)
	if got, err := io.ReadAll(server); err != nil || string(got) != "question" {
		t.Fatalf("read %q, %v; want the question and its end", got, err)
	}
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("reading again gives %v; want io.EOF again", err)
	}
	select {
	case <-server.Done():
		t.Error("a half-closed peer counts as gone")
	default:
	}
	if _, err := server.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if err := server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"answer", ""} {
		typ, got, err := client.Read(t.Context())
		if err != nil || typ != websocket.MessageBinary || string(got) != want {
			t.Fatalf("the client got %v %q, %v; want binary %q", typ, got, err, want)
		}
	}
	if _, err := server.Write([]byte("more")); err == nil {
		t.Error("writing after CloseWrite works; want an error")
	}
	// The close frame after a half-close is noticed although nobody reads.
	go func() { _ = client.Close(websocket.StatusNormalClosure, "") }()
	<-server.Done()
}

func TestPlainClose(t *testing.T) {
	client, server := raw(t, wsconn.Options{})
	mustSend(t, client, websocket.MessageBinary, []byte("bye"))
	go func() { _ = client.Close(websocket.StatusNormalClosure, "") }()
	if got, err := io.ReadAll(server); err != nil || string(got) != "bye" {
		t.Errorf("read %q, %v; want what was sent and a clean end", got, err)
	}
	<-server.Done()
	if _, err := server.Write([]byte("x")); err == nil {
		t.Error("writing to a closed WebSocket works; want an error")
	}
	if err := server.Close(); err != nil {
		t.Errorf("closing after the peer did: %v", err)
	}
}

func TestLostConnectionIsNoEnd(t *testing.T) {
	client, server := raw(t, wsconn.Options{})
	_ = client.CloseNow()
	if _, err := server.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a lost connection reads as %v; want an error that is no io.EOF", err)
	}
}

func TestAbnormalStatusIsAnError(t *testing.T) {
	client, server := raw(t, wsconn.Options{})
	go func() { _ = client.Close(websocket.StatusInternalError, "broken") }()
	_, err := server.Read(make([]byte, 1))
	if websocket.CloseStatus(err) != websocket.StatusInternalError {
		t.Errorf("status 1011 reads as %v; want an error with that status", err)
	}
}

func TestTextIsRefused(t *testing.T) {
	client, server := raw(t, wsconn.Options{})
	mustSend(t, client, websocket.MessageText, []byte("hello"))
	if _, _, err := client.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusUnsupportedData {
		t.Errorf("after a text message the client gets %v; want status 1003", err)
	}
	if _, err := server.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a text message reads as %v; want an error", err)
	}
}

func TestDataAfterTheEndIsRefused(t *testing.T) {
	client, server := raw(t, wsconn.Options{})
	mustSend(t, client, websocket.MessageBinary, nil)
	mustSend(t, client, websocket.MessageBinary, []byte("more"))
	if _, _, err := client.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusProtocolError {
		t.Errorf("after data behind the end the client gets %v; want status 1002", err)
	}
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the end reads as %v; want io.EOF", err)
	}
}

func TestMessageSizes(t *testing.T) {
	client, server := raw(t, wsconn.Options{})
	big := make([]byte, wsconn.MaxMessage)
	_, _ = rand.Read(big)
	go func() {
		_ = client.Write(t.Context(), websocket.MessageBinary, big)
		_ = client.Write(t.Context(), websocket.MessageBinary, append(big, 1))
	}()
	got := make([]byte, len(big))
	if _, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got, big) {
		t.Fatalf("a message of 1 MiB: %v", err)
	}
	go func() { _, _ = io.Copy(io.Discard, server) }()
	if _, _, err := client.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusMessageTooBig {
		t.Errorf("a message over 1 MiB gives %v; want status 1009", err)
	}
}

func TestOutgoingMessagesAreCut(t *testing.T) {
	client, server := raw(t, wsconn.Options{})
	client.SetReadLimit(64 << 10)
	go func() { _, _ = server.Write(make([]byte, 200<<10)) }()
	total := 0
	for total < 200<<10 {
		_, b, err := client.Read(t.Context())
		if err != nil {
			t.Fatalf("after %d bytes: %v", total, err)
		}
		total += len(b)
	}
}

// websocket: a deadline closes a NetConn. Here it must interrupt one call only.
func TestTrapDeadlineClosesNetConn(t *testing.T) {
	client, server := pair(t, wsconn.Options{})
	_ = server.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := server.Read(make([]byte, 1))
	var ne net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("a read past its deadline gives %v; want os.ErrDeadlineExceeded", err)
	}
	_ = server.SetReadDeadline(time.Time{})

	// A blocked reader is interrupted too.
	got := make(chan error, 1)
	go func() { _, err := server.Read(make([]byte, 1)); got <- err }()
	_ = server.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if err := <-got; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a reader under a new deadline gets %v; want os.ErrDeadlineExceeded", err)
	}
	_ = server.SetReadDeadline(time.Time{})

	// And a blocked writer; the stream stays whole.
	_ = client.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	sent := 0
	for {
		n, err := client.Write(bytes.Repeat([]byte{'a'}, 64<<10))
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("a write past its deadline gives %v; want os.ErrDeadlineExceeded", err)
			}
			break
		}
		sent += n
	}
	_ = client.SetWriteDeadline(time.Time{})
	go func() { _, _ = client.Write([]byte("z")); _ = client.CloseWrite() }()
	all, err := io.ReadAll(server)
	// The deadline passed within the last write, whose bytes still go, or before it.
	whole := len(all) == sent+64<<10+1 || len(all) == sent+1
	if err != nil || !whole || all[len(all)-1] != 'z' {
		t.Errorf("after deadlines %d bytes arrived, %v; want %d, or %d when the deadline passed between two writes, and the last one z", len(all), err, sent+64<<10+1, sent+1)
	}
}

func TestBackpressure(t *testing.T) {
	client, server := raw(t, wsconn.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	sent := 0
	for ctx.Err() == nil && sent < 64<<20 {
		if client.Write(ctx, websocket.MessageBinary, make([]byte, 256<<10)) == nil {
			sent += 256 << 10
		}
	}
	if sent >= 64<<20 {
		t.Errorf("a stream that nobody reads took %d bytes", sent)
	}
	_ = server.Reset()
}

func TestCloseFreesReader(t *testing.T) {
	_, server := pair(t, wsconn.Options{})
	got := make(chan error, 1)
	go func() { _, err := server.Read(make([]byte, 1)); got <- err }()
	_ = server.CloseWith(websocket.StatusServiceRestart, "the relay restarts")
	if err := <-got; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a reader freed by Close gets %v; want net.ErrClosed", err)
	}
}

func TestCloseCodes(t *testing.T) {
	client, server := raw(t, wsconn.Options{})
	go func() { _ = server.CloseWith(websocket.StatusServiceRestart, "the relay restarts") }()
	_, _, err := client.Read(t.Context())
	var ce websocket.CloseError
	if !errors.As(err, &ce) || ce.Code != websocket.StatusServiceRestart || ce.Reason != "the relay restarts" {
		t.Errorf("the client gets %v; want status 1012 and the reason", err)
	}

	client, server = raw(t, wsconn.Options{OnReset: func() (websocket.StatusCode, string) {
		return websocket.StatusGoingAway, "tunnel closed"
	}})
	go func() { _ = server.Reset() }()
	if _, _, err := client.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("after Reset the client gets %v; want status 1001", err)
	}
}

func TestPings(t *testing.T) {
	pinged := make(chan struct{}, 16)
	c, s := sockets(t, &websocket.DialOptions{OnPingReceived: func(context.Context, []byte) bool {
		pinged <- struct{}{}
		return true
	}})
	server := wsconn.New(s, wsconn.Options{PingInterval: 20 * time.Millisecond})
	defer func() { _ = server.Reset() }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _, _, _ = c.Read(ctx) }()
	for range 5 {
		<-pinged
	}
	select {
	case <-server.Done():
		t.Error("a peer that answers pings is given up")
	default:
	}
}

func TestSilentPeerIsGivenUp(t *testing.T) {
	c, s := sockets(t, &websocket.DialOptions{OnPingReceived: func(context.Context, []byte) bool { return false }})
	server := wsconn.New(s, wsconn.Options{PingInterval: 20 * time.Millisecond})
	defer func() { _ = server.Reset() }()
	go func() { _, _, _ = c.Read(t.Context()) }()
	<-server.Done()
	if _, err := server.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a vanished peer reads as %v; want an error that is no io.EOF", err)
	}
}

// While the stream's owner does not read, pongs cannot be seen: that is no silence.
func TestSlowOwnerKeepsThePeer(t *testing.T) {
	pinged := make(chan struct{}, 64)
	c, s := sockets(t, &websocket.DialOptions{OnPingReceived: func(context.Context, []byte) bool {
		pinged <- struct{}{}
		return true
	}})
	server := wsconn.New(s, wsconn.Options{PingInterval: 20 * time.Millisecond})
	defer func() { _ = server.Reset() }()
	mustSend(t, c, websocket.MessageBinary, []byte("unread"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _, _, _ = c.Read(ctx) }()
	for range 6 {
		<-pinged
	}
	if b := make([]byte, 6); readFull(server, b) != nil || string(b) != "unread" {
		t.Error("the connection was given up while its owner did not read")
	}
}

func readFull(r io.Reader, b []byte) error { _, err := io.ReadFull(r, b); return err }

func BenchmarkStream(b *testing.B) {
	b.ReportAllocs()
	client, server := pair(b, wsconn.Options{})
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(io.Discard, client) })
	for b.Loop() {
		if _, err := server.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	_ = server.CloseWrite()
	wg.Wait()
}

func TestKeeperEndsWithoutAGoodbye(t *testing.T) {
	ended := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		keep := &wsconn.Keeper{ResponseWriter: w}
		c, err := websocket.Accept(keep, r, nil)
		if err != nil {
			ended <- err
			return
		}
		defer c.CloseNow()
		ended <- keep.Conn.Close()
	}))
	defer srv.Close()
	c, _, err := websocket.Dial(t.Context(), srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if _, _, err := c.Read(t.Context()); err == nil || websocket.CloseStatus(err) != -1 {
		t.Errorf("the client read %v; want a connection that breaks", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the server's end: %v", err)
	}
}
