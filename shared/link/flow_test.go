package link_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// A link speaks yamux, whatever it leaves to the library: an unchanged yamux at the
// other end opens and accepts streams, fills windows, and ends.
func TestSpeaksWithPlainYamux(t *testing.T) {
	c, s := testkit.TCP(t)
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = io.Discard
	far, err := yamux.Client(c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := link.NewServer(s, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close(errTest)
	data := make([]byte, 3<<20) // several windows
	for i := range data {
		data[i] = byte(i * 7)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, c := range []struct {
		name string
		open func() (io.ReadWriteCloser, error)
		peer func() (io.ReadWriteCloser, error)
	}{
		{
			"opened by the link",
			func() (io.ReadWriteCloser, error) { return near.Open(t.Context()) },
			func() (io.ReadWriteCloser, error) { return far.AcceptStream() },
		},
		{
			"opened by yamux",
			func() (io.ReadWriteCloser, error) { return far.OpenStream() },
			func() (io.ReadWriteCloser, error) { return near.Accept(t.Context()) },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, err := c.open()
			if err != nil {
				t.Fatal(err)
			}
			b, err := c.peer()
			if err != nil {
				t.Fatal(err)
			}
			end := func(s io.ReadWriteCloser) error { // half-close, which yamux calls Close
				if w, ok := s.(interface{ CloseWrite() error }); ok {
					return w.CloseWrite()
				}
				return s.Close()
			}
			wg.Go(func() { _, _ = a.Write(data); _ = end(a) })
			wg.Go(func() { _, _ = b.Write(data); _ = end(b) })
			for _, s := range []io.Reader{a, b} {
				if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes arrived, %v; want those %d that were sent", len(got), err, len(data))
				}
			}
			_ = a.Close()
			_ = b.Close()
		})
	}
	if _, err := far.Ping(); err != nil {
		t.Errorf("yamux's ping: %v", err)
	}
}

// frame is one as a peer that breaks the rules may send it.
func frame(typ byte, flags uint16, id, length uint32, body string) string {
	h := make([]byte, 12)
	h[1] = typ
	binary.BigEndian.PutUint16(h[2:], flags)
	binary.BigEndian.PutUint32(h[4:], id)
	binary.BigEndian.PutUint32(h[8:], length)
	return string(h) + body
}

// hostile is a link whose peer is whatever the test writes into the connection.
func hostile(t *testing.T) (net.Conn, *link.Link) {
	c, s := testkit.TCP(t)
	l, err := link.NewServer(s, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(errTest); _ = c.Close() })
	return c, l
}

func TestMoreThanTheWindowEndsTheLink(t *testing.T) {
	c, l := hostile(t)
	mustWrite(t, c, frame(1, 1, 1, 0, ""))
	go func() { // until the link hangs up
		for {
			if _, err := io.WriteString(c, frame(0, 0, 1, 64<<10, strings.Repeat("x", 64<<10))); err != nil {
				return
			}
		}
	}()
	<-l.Done()
	if err := l.Err(); !strings.Contains(err.Error(), "more than it was allowed") {
		t.Errorf("the link ended with %v; want what was wrong", err)
	}
}

// A peer that asks and never listens must not fill the memory with answers.
func TestPingsWithoutListening(t *testing.T) {
	c, l := hostile(t)
	pings := []byte(strings.Repeat(frame(2, 1, 0, 7, ""), 4096))
	_ = c.SetWriteDeadline(time.Now().Add(20 * time.Second))
	for range 256 { // 12 MiB of them
		if _, err := c.Write(pings); err != nil {
			t.Fatalf("the link no longer reads: %v", err)
		}
	}
	if n := l.Stats().Frames; n > 1<<20 {
		t.Errorf("%d answers were sent to a peer that does not listen", n)
	}
	go func() { _, _ = io.Copy(io.Discard, c) }() // now it does
	mustWrite(t, c, frame(1, 1, 1, 0, "")+frame(0, 0, 1, 5, "hello"))
	s, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, s, "hello")
}

// What comes behind an end, or for a stream that is gone, is read over.
func TestDataNobodyWants(t *testing.T) {
	c, l := hostile(t)
	mustWrite(t, c, frame(1, 1, 1, 0, "")+frame(0, 0, 1, 3, "one")+frame(1, 4, 1, 0, "")+
		frame(0, 0, 1, 7, "too late")[:19]+frame(0, 0, 99, 6, "nobody")+
		frame(0, 1, 3, 3, "two"))
	for _, want := range []string{"one", "two"} {
		s, err := l.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mustRead(t, s, want)
		if want == "one" {
			if n, err := s.Read(make([]byte, 9)); !errors.Is(err, io.EOF) {
				t.Errorf("behind the end %d bytes can be read, %v", n, err)
			}
		}
	}
}

// Pieces of all sizes arrive as they were sent, whatever the reader's own size.
func TestAllSizes(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		near, far := streams(t, client, server)
		rnd := rand.New(rand.NewPCG(1, 2))
		data := make([]byte, 8<<20)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			rnd, rest := rand.New(rand.NewPCG(3, 4)), data
			for len(rest) > 0 {
				n := min(len(rest), 1+rnd.IntN(1<<rnd.IntN(18)))
				if _, err := near.Write(rest[:n]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[n:]
			}
			_ = near.CloseWrite()
		})
		var got []byte
		buf := make([]byte, 1<<18)
		for {
			n, err := far.Read(buf[:1+rnd.IntN(1<<rnd.IntN(18))])
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%d bytes arrived of %d, or others", len(got), len(data))
		}
	})
}

// Concurrent calls: each write stays whole, and an end frees a writer that waits.
func TestEndMeetsWriter(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		near, far := streams(t, client, server)
		failed := make(chan error, 1)
		go func() { // more than any window, and nobody reads
			_, err := near.Write(make([]byte, 32<<20))
			failed <- err
		}()
		stalled(t, server)
		if err := near.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := <-failed; !errors.Is(err, net.ErrClosed) {
			t.Errorf("the writer got %v; want net.ErrClosed", err)
		}
		if _, err := io.Copy(io.Discard, far); err != nil {
			t.Errorf("what was sent before the end: %v", err)
		}
	})
}
