package link_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// yamux: Stream.Close is half-close and leaves a blocked reader for minutes.
func TestTrapCloseFreesBlockedReaders(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		near, _ := streams(t, client, server)
		got := make(chan error, 1)
		go func() {
			_, err := near.Read(make([]byte, 1))
			got <- err
		}()
		within(t, 10*time.Second, "freeing a reader by Close", func() {
			runtime.Gosched()
			_ = near.Close()
			if err := <-got; !errors.Is(err, net.ErrClosed) {
				t.Errorf("a reader freed by Close got %v; want net.ErrClosed", err)
			}
		})
	})
}

// And none of them slips through, however the two meet.
func TestCloseMeetsReader(t *testing.T) {
	client, server := tcpPair(t, link.Config{})
	within(t, 30*time.Second, "closing 300 streams that are being read", func() {
		for range 300 {
			near, far := streams(t, client, server)
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = near.Read(make([]byte, 1)) })
			wg.Go(func() { _ = near.Close() })
			wg.Wait()
			_ = far.Close()
		}
	})
	eventually(t, "both ends forget the streams", func() bool { return client.NumStreams() == 0 && server.NumStreams() == 0 })
}

// The same for a writer that waits for the peer's window.
func TestTrapCloseFreesBlockedWriters(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		near, _ := streams(t, client, server)
		got := make(chan error, 1)
		go func() {
			_, err := near.Write(make([]byte, 32<<20)) // more than a window, and nobody reads
			got <- err
		}()
		stalled(t, server)
		within(t, 10*time.Second, "freeing a writer by Close", func() {
			_ = near.Close()
			if err := <-got; !errors.Is(err, net.ErrClosed) {
				t.Errorf("a writer freed by Close got %v; want net.ErrClosed", err)
			}
		})
	})
}

// yamux: StreamCloseTimeout fires while data flows. A half-closed stream must live
// as long as it likes.
func TestTrapCloseTimeoutWhileDataFlows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, s := net.Pipe()
		client, server := connPair(t, c, s, link.Config{})
		near, far := streams(t, client, server)
		if err := near.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			time.Sleep(time.Minute)
			mustWrite(t, far, "x")
			mustRead(t, near, "x")
		}
		_ = far.Close()
		if _, err := near.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the end of a half-closed stream reads as %v; want io.EOF", err)
		}
		_ = near.Close()
		_ = client.Close(errTest)
		_ = server.Close(errTest)
	})
}

// yamux: a dead session reads as io.EOF, as if the peer had finished.
func TestTrapDeadSessionReadsAsEOF(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		near, far := streams(t, client, server)
		mustWrite(t, far, "half of the answer")
		mustRead(t, near, "half of the answer")
		got := make(chan error, 1)
		go func() {
			_, err := near.Read(make([]byte, 1))
			got <- err
		}()
		_ = client.Close(errors.New("cable pulled"))
		err := <-got
		if err == nil || errors.Is(err, io.EOF) || !errors.Is(err, link.ErrClosed) {
			t.Errorf("reading on a dead link gives %v; want an error that wraps link.ErrClosed and is no io.EOF", err)
		}
		if _, err := near.Write([]byte("x")); !errors.Is(err, link.ErrClosed) {
			t.Errorf("writing on a dead link gives %v; want link.ErrClosed", err)
		}
		if _, err := server.Open(t.Context()); !errors.Is(err, link.ErrClosed) {
			t.Errorf("opening on a dead link gives %v; want link.ErrClosed", err)
		}
		if _, err := server.Accept(t.Context()); !errors.Is(err, link.ErrClosed) {
			t.Errorf("accepting on a dead link gives %v; want link.ErrClosed", err)
		}
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, link.ErrClosed) {
			t.Errorf("reading where the link was closed gives %v; want link.ErrClosed", err)
		}
	})
}

// ... but what a peer did finish before the link died is finished.
func TestCleanEndSurvivesTheLink(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		near, far := streams(t, client, server)
		mustWrite(t, far, "whole")
		if err := far.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		_ = client.Close(errTest)
		<-server.Done()
		if b, err := io.ReadAll(near); err != nil || string(b) != "whole" {
			t.Errorf("read %q, %v; want the whole answer and a clean end", b, err)
		}
	})
}

// yamux: a stream that is never accepted kills the whole session after 75 s.
func TestTrapUnacceptedStreamKillsSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, s := net.Pipe()
		client, server := connPair(t, c, s, link.Config{})
		near, far := streams(t, client, server)
		if _, err := server.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		mustWrite(t, near, "still here")
		mustRead(t, far, "still here")
		_ = client.Close(errTest)
		_ = server.Close(errTest)
	})
}

// yamux: OpenStream has no context, and waits when the peer's backlog is full.
func TestTrapOpenHasNoContext(t *testing.T) {
	client, server := tcpPair(t, link.Config{AcceptBacklog: 4})
	for range 4 {
		if _, err := server.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	errPatience := errors.New("out of patience")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errPatience)
	defer cancel()
	within(t, 5*time.Second, "Open with a full backlog", func() {
		if _, err := server.Open(ctx); !errors.Is(err, errPatience) {
			t.Errorf("Open beyond the backlog gives %v; want the context's cause", err)
		}
	})
	// The one that was given up does not come through later as a live stream.
	for range 4 {
		if _, err := client.Accept(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s, err := server.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, "wanted")
	for {
		got, err := client.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if b := make([]byte, 6); readFull(got, b) == nil {
			if string(b) != "wanted" {
				t.Errorf("accepted a stream with %q", b)
			}
			return
		}
	}
}

func readFull(r io.Reader, b []byte) error { _, err := io.ReadFull(r, b); return err }

// Also the socket may not take the stream's first frame.
func TestTrapOpenOnAStuckSocket(t *testing.T) {
	c, s := net.Pipe()
	server, err := link.NewServer(s, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(); _ = server.Close(errTest) }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	within(t, 5*time.Second, "Open on a stuck socket", func() {
		for range 3 { // some may be taken by buffers
			if st, err := server.Open(ctx); err == nil {
				go func() { _, _ = st.Write(make([]byte, 1<<20)) }()
			} else if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Open on a stuck socket gives %v; want the deadline", err)
			}
		}
	})
}

// yamux: the window of 256 KiB gives 5 MB/s at 50 ms. Ours is more even where the line
// has no delay, and from the begin; TestWindowFollowsTheRoundTrip has those that do.
func TestTrapWindow(t *testing.T) {
	client, server := tcpPair(t, link.Config{})
	near, err := link.OpenFor(t.Context(), server, somebody, hello())
	if err != nil {
		t.Fatal(err)
	}
	far, err := client.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var sent atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			n, err := far.Write(make([]byte, 64<<10))
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	eventually(t, "512 KiB are on their way to a reader that does not read", func() bool { return sent.Load() >= 512<<10 })
	_ = near.Reset()
	wg.Wait()
}

// yamux: header and body are two writes.
func TestTrapHeaderAndBodyAreTwoWrites(t *testing.T) {
	c, s := testkit.TCP(t)
	counted := &countingConn{Conn: s}
	client, server := connPair(t, c, counted, link.Config{KeepAlive: time.Hour, DeadAfter: 2 * time.Hour})
	near, far := streams(t, client, server)
	eventually(t, "the first ping is answered", func() bool { return server.RTT() > 0 && client.RTT() > 0 })
	before := counted.writes.Load()
	for range 100 {
		mustWrite(t, near, "ping")
		mustRead(t, far, "ping")
	}
	if n := counted.writes.Load() - before; n > 100 {
		t.Errorf("100 small frames took %d writes; want one each", n)
	}
}

type countingConn struct {
	net.Conn
	writes atomic.Int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// A slow reader of one stream must not stall the others.
func TestSlowReaderStallsNobodyElse(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		stuck, _ := streams(t, client, server)
		near, far := streams(t, client, server)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = stuck.Write(make([]byte, 64<<20)) })
		stalled(t, server)
		data := make([]byte, 8<<20)
		_, _ = rand.Read(data)
		wg.Go(func() { _, _ = near.Write(data); _ = near.CloseWrite() })
		got, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("beside a stuck stream, %d of %d bytes arrived: %v", len(got), len(data), err)
		}
		_ = stuck.Close()
		wg.Wait()
	})
}

// A peer that goes on sending to a closed stream learns that nobody listens.
func TestCloseStopsASender(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		near, far := streams(t, client, server)
		sent := make(chan error, 1)
		go func() {
			for {
				if _, err := far.Write(make([]byte, 32<<10)); err != nil {
					sent <- err
					return
				}
			}
		}()
		mustRead(t, near, "\x00\x00")
		_ = near.Close()
		within(t, 20*time.Second, "stopping a sender", func() {
			if err := <-sent; !errors.Is(err, link.ErrReset) {
				t.Errorf("the sender got %v; want link.ErrReset", err)
			}
		})
		<-far.Done()
		_ = far.Close()
		eventually(t, "both ends forget the stream", func() bool { return client.NumStreams() == 0 && server.NumStreams() == 0 })
	})
}

// What was received before a reset can still be read.
func TestResetKeepsWhatArrived(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		near, far := streams(t, client, server)
		mustWrite(t, near, "last words")
		_ = near.Reset()
		<-far.Done()
		mustRead(t, far, "last words")
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, link.ErrReset) {
			t.Errorf("after a reset reading gives %v; want link.ErrReset", err)
		}
		if _, err := far.Write([]byte("x")); !errors.Is(err, link.ErrReset) {
			t.Errorf("after a reset writing gives %v; want link.ErrReset", err)
		}
	})
}

func TestHalfClosePassesThrough(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		near, far := streams(t, client, server)
		mustWrite(t, near, "question")
		if err := near.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(far); err != nil || string(b) != "question" {
			t.Fatalf("read %q, %v; want the question and its end", b, err)
		}
		mustWrite(t, far, "answer")
		_ = far.Close()
		if b, err := io.ReadAll(near); err != nil || string(b) != "answer" {
			t.Fatalf("read %q, %v; want the answer and its end", b, err)
		}
		if _, err := near.Write([]byte("x")); err == nil {
			t.Error("writing after CloseWrite works; want an error")
		}
		_ = near.Close()
		eventually(t, "both ends forget the stream", func() bool { return client.NumStreams() == 0 && server.NumStreams() == 0 })
	})
}

func TestDeadlinesKeepTheStream(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		near, far := streams(t, client, server)
		_ = near.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := near.Read(make([]byte, 1))
		var ne net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("a read past its deadline gives %v; want os.ErrDeadlineExceeded", err)
		}
		_ = near.SetReadDeadline(time.Time{})
		mustWrite(t, far, "later")
		mustRead(t, near, "later")
	})
}

func TestTooManyStreams(t *testing.T) {
	_, server := tcpPair(t, link.Config{MaxStreams: 2})
	var all []*link.Stream
	for range 2 {
		s, err := server.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if _, err := server.Open(t.Context()); !errors.Is(err, link.ErrTooManyStreams) {
		t.Errorf("one stream too many gives %v; want link.ErrTooManyStreams", err)
	}
	_ = all[0].Reset()
	eventually(t, "a closed stream makes room", func() bool {
		s, err := server.Open(t.Context())
		return err == nil && s != nil
	})
}

// Until it was greeted a peer has one stream, and what it sends on others is not kept.
func TestAPeerThatWasNotGreetedOpensOneStream(t *testing.T) {
	greets := func() (*link.Link, *link.Link, *link.Budget) {
		c, s := testkit.TCP(t)
		client, err := link.NewClient(c, link.Config{})
		if err != nil {
			t.Fatal(err)
		}
		budget := link.NewBudget(1 << 30)
		server, err := link.NewServer(s, link.Config{Handshake: true, Budget: budget})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close(errTest); _ = server.Close(errTest) })
		return client, server, budget
	}
	t.Run("early", func(t *testing.T) {
		client, server, budget := greets()
		for range 2 {
			st, err := client.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = st.Write(make([]byte, 200<<10)) }()
		}
		within(t, 10*time.Second, "ending the link", func() { <-server.Done() })
		eventually(t, "nothing waits any more", func() bool { return budget.Used() == 0 })
	})
	t.Run("greeted", func(t *testing.T) {
		client, server, _ := greets()
		streams(t, client, server)
		server.HandshakeDone()
		streams(t, client, server)
	})
}

func TestPeerOpensTooManyStreams(t *testing.T) {
	c, s := testkit.TCP(t)
	client, err := link.NewClient(c, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	server, err := link.NewServer(s, link.Config{MaxIncoming: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close(errTest); _ = server.Close(errTest) }()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if _, err := server.Accept(t.Context()); err != nil {
				return
			}
		}
	})
	if _, err := client.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	second, err := client.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Read(make([]byte, 1)); !errors.Is(err, link.ErrReset) {
		t.Errorf("the stream over the limit reads as %v; want link.ErrReset", err)
	}
	_ = server.Close(errTest)
	wg.Wait()
}

// A stream that is over before it is accepted is never acknowledged by yamux. Its place in
// the peer's backlog comes back nevertheless: else a link loses one after the other, and in
// the end opens nothing any more, alive as it is.
func TestTrapUnacknowledgedStreamsGiveTheirPlacesBack(t *testing.T) {
	const backlog = 8
	client, server := tcpPair(t, link.Config{AcceptBacklog: backlog})
	hello := wire.Hello{Kind: wire.KindTCP, Port: 1}
	open := func(what string) *link.Stream {
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
		defer cancel()
		st, err := link.OpenHello(ctx, client, hello)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return st
	}
	for range 4 {
		for range backlog {
			_ = open("open what is closed at once").Close()
		}
		eventually(t, "all that was sent has arrived", func() bool { return server.Stats().BytesIn == client.Stats().BytesOut })
		for range backlog {
			st, err := server.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_ = st.Close()
		}
	}
	_ = open("open one more").Close()
}
