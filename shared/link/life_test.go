package link_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// blackhole is a connection whose wire can be cut without either end noticing.
type blackhole struct {
	net.Conn
	cut *atomic.Bool
}

func (b blackhole) Write(p []byte) (int, error) {
	if b.cut.Load() {
		return len(p), nil
	}
	return b.Conn.Write(p)
}

func TestHalfOpenIsNoticedIn15s(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, s := net.Pipe()
		var cut atomic.Bool
		client, server := connPair(t, c, blackhole{s, &cut}, link.Config{}) // the client hears nothing
		near, _ := streams(t, client, server)
		time.Sleep(time.Hour)
		if client.Err() != nil || server.Err() != nil {
			t.Fatalf("an idle hour ended the link: %v, %v", client.Err(), server.Err())
		}
		cut.Store(true)
		start := time.Now()
		<-client.Done()
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("a dead peer was noticed after %s; want 15 s at most", took)
		}
		if err := client.Err(); !errors.Is(err, link.ErrClosed) || !strings.Contains(err.Error(), "nothing heard") {
			t.Errorf("the link ended with %v; want the reason", err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, link.ErrClosed) {
			t.Errorf("a stream of the link reads as %v", err)
		}
		_ = client.Close(errTest)
		_ = server.Close(errTest)
	})
}

// A peer that is slow to take data is not dead: it still talks.
func TestCongestedIsNotDead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, s := net.Pipe()
		slow := &slowConn{Conn: s, delay: 4 * time.Second}
		client, server := connPair(t, c, slow, link.Config{OpenTimeout: time.Minute})
		near, far := streams(t, client, server)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = near.Write(make([]byte, 4<<20)); _ = near.CloseWrite() })
		n, err := io.Copy(io.Discard, far)
		if err != nil || n != 4<<20 {
			t.Errorf("over a congested link %d bytes arrived, %v", n, err)
		}
		wg.Wait()
		_ = client.Close(errTest)
		_ = server.Close(errTest)
	})
}

type slowConn struct {
	net.Conn
	delay time.Duration
}

func (s *slowConn) Write(p []byte) (int, error) {
	time.Sleep(s.delay)
	return s.Conn.Write(p)
}

func TestCloseCause(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		near, far := streams(t, client, server)
		errMoved := errors.New("moved to another relay")
		mustWrite(t, near, "goodbye")
		_ = server.Close(errMoved)
		_ = server.Close(errTest)
		if err := server.Err(); !errors.Is(err, link.ErrClosed) || !errors.Is(err, errMoved) {
			t.Errorf("the link ended with %v; want the first cause", err)
		}
		mustRead(t, far, "goodbye") // was flushed
		<-client.Done()
		err := client.Err()
		if !errors.Is(err, link.ErrClosed) || errors.Is(err, io.EOF) {
			t.Errorf("at the peer the link ended with %v", err)
		}
		if client.Carrier() == "websocket" && !strings.Contains(err.Error(), "moved to another relay") {
			t.Errorf("at the peer the link ended with %v; want the reason", err)
		}
	})
}

// mute is a connection that takes nothing more once it is cut, as one whose peer
// hung up, and that holds back what the peer said until it is heard.
type mute struct {
	net.Conn
	cut, held, closed atomic.Bool
	heard             chan struct{} // closed when reads go on
}

func (m *mute) Write(p []byte) (int, error) {
	if m.cut.Load() {
		return 0, syscall.EPIPE
	}
	return m.Conn.Write(p)
}

func (m *mute) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	if m.held.Load() {
		<-m.heard
		if m.closed.Load() {
			return 0, net.ErrClosed
		}
	}
	return n, err
}

func (m *mute) Close() error {
	m.closed.Store(true)
	return m.Conn.Close()
}

// Who cannot speak any more still listens: what the peer said before it hung up is
// there to be read.
func TestUnreadOutlivesBrokenWrite(t *testing.T) {
	c, s := testkit.TCP(t)
	conn := &mute{Conn: c, heard: make(chan struct{})}
	client, server := connPair(t, conn, s, link.Config{})
	near, far := streams(t, client, server)
	conn.held.Store(true)
	mustWrite(t, near, "goodbye")
	_ = server.Close(errTest)
	conn.cut.Store(true)
	if _, err := far.Write([]byte("anyone?")); err != nil {
		t.Errorf("writing gives %v before the peer's end was read", err)
	}
	close(conn.heard)
	mustRead(t, far, "goodbye")
	<-client.Done()
}

// A connection that takes nothing and says nothing is over, for the first reason.
func TestBrokenWriteEndsLink(t *testing.T) {
	c, s := testkit.TCP(t)
	conn := &mute{Conn: c}
	client, server := connPair(t, conn, s, link.Config{})
	_, far := streams(t, client, server)
	conn.cut.Store(true)
	_, _ = far.Write([]byte("anyone?")) // it may be gone already
	within(t, 10*time.Second, "the end of a link that cannot write", func() { <-client.Done() })
	if err := client.Err(); !errors.Is(err, link.ErrClosed) || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the link ended with %v; want why it could not write", err)
	}
}

func TestCloseWithEOFIsNoCleanEnd(t *testing.T) {
	client, server := tcpPair(t, link.Config{})
	near, _ := streams(t, client, server)
	_ = server.Close(io.EOF)
	if _, err := near.Read(make([]byte, 1)); errors.Is(err, io.EOF) || !errors.Is(err, link.ErrClosed) {
		t.Errorf("reading gives %v; want link.ErrClosed and no io.EOF", err)
	}
}

func TestBrokenProtocolIsTheCause(t *testing.T) {
	c, s := testkit.TCP(t)
	server, err := link.NewServer(s, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, c, strings.Repeat("GET / HTTP/1.1\r\n", 8))
	<-server.Done()
	if err := server.Err(); !strings.Contains(err.Error(), "version") {
		t.Errorf("the link ended with %v; want what was wrong", err)
	}
	_ = server.Close(errTest)
	_ = c.Close()
}

func TestHooksAndStats(t *testing.T) {
	var sent, frames, received atomic.Int64
	cfg := link.Config{Hooks: link.Hooks{
		Sent: func(w link.Written) {
			if w.Queued < 0 || w.Queued > time.Minute {
				t.Errorf("a frame waited %s", w.Queued)
			}
			sent.Add(int64(w.Bytes))
			frames.Add(int64(w.Frames))
		},
		Received: func(n int) { received.Add(int64(n)) },
	}}
	client, server := tcpPair(t, cfg)
	near, far := streams(t, client, server)
	go func() { _, _ = near.Write(make([]byte, 1<<20)); _ = near.CloseWrite() }()
	if n, err := io.Copy(io.Discard, far); n != 1<<20 || err != nil {
		t.Fatal(n, err)
	}
	_ = server.Close(errTest)
	_ = client.Close(errTest)
	a, b := server.Stats(), client.Stats()
	if a.BytesOut < 1<<20 || b.BytesIn < 1<<20 || a.Frames < 4 {
		t.Errorf("stats are %+v and %+v", a, b)
	}
	if sent.Load() != int64(a.BytesOut+b.BytesOut) || frames.Load() != int64(a.Frames+b.Frames) || received.Load() != int64(a.BytesIn+b.BytesIn) {
		t.Errorf("hooks counted %d bytes, %d frames, %d received; stats say %+v and %+v",
			sent.Load(), frames.Load(), received.Load(), a, b)
	}
	if server.RTT() <= 0 {
		t.Error("no round trip was measured")
	}
}

func TestManyStreamsAtOnce(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		var serve, wg sync.WaitGroup
		serve.Go(func() {
			for {
				s, err := client.Accept(t.Context())
				if err != nil {
					return
				}
				serve.Go(func() {
					defer func() { _ = s.Close() }()
					_, _ = io.Copy(s, s)
				})
			}
		})
		for range 300 {
			wg.Go(func() {
				s, err := server.Open(t.Context())
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				defer func() { _ = s.Close() }()
				if _, err := s.Write([]byte("echo")); err != nil {
					t.Errorf("write: %v", err)
				}
				_ = s.CloseWrite()
				if b, err := io.ReadAll(s); err != nil || string(b) != "echo" {
					t.Errorf("read %q, %v", b, err)
				}
			})
		}
		wg.Wait()
		eventually(t, "all streams are forgotten", func() bool { return client.NumStreams() == 0 && server.NumStreams() == 0 })
		_ = client.Close(errTest)
		serve.Wait()
	})
}
