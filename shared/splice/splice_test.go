package splice_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type outcome struct {
	res splice.Result
	err error
}

// between runs Both between two TCP connections and returns their outer ends.
func between(t testing.TB, ctx context.Context, opts splice.Options) (left, right *net.TCPConn, end chan outcome) {
	left, a := testkit.TCP(t)
	right, b := testkit.TCP(t)
	end = make(chan outcome, 1)
	go func() {
		res, err := splice.Both(ctx, a, b, opts)
		end <- outcome{res, err}
	}()
	return left, right, end
}

func TestBothDirectionsAndCounts(t *testing.T) {
	var ab, ba atomic.Int64
	left, right, end := between(t, t.Context(), splice.Options{
		AtoB: func(n int) { ab.Add(int64(n)) }, BtoA: func(n int) { ba.Add(int64(n)) },
	})
	up, down := make([]byte, 3<<20), make([]byte, 5<<20)
	_, _ = rand.Read(up)
	_, _ = rand.Read(down)
	var wg sync.WaitGroup
	send := func(c *net.TCPConn, b []byte) { _, _ = c.Write(b); _ = c.CloseWrite() }
	wg.Go(func() { send(left, up) })
	wg.Go(func() { send(right, down) })
	wg.Go(func() {
		if got, err := io.ReadAll(left); err != nil || !bytes.Equal(got, down) {
			t.Errorf("left got %d bytes, %v; want %d unchanged", len(got), err, len(down))
		}
	})
	if got, err := io.ReadAll(right); err != nil || !bytes.Equal(got, up) {
		t.Errorf("right got %d bytes, %v; want %d unchanged", len(got), err, len(up))
	}
	wg.Wait()
	o := <-end
	if o.err != nil || o.res != (splice.Result{AtoB: 3 << 20, BtoA: 5 << 20}) || ab.Load() != 3<<20 || ba.Load() != 5<<20 {
		t.Errorf("ended with %+v, callbacks %d and %d", o, ab.Load(), ba.Load())
	}
}

// An ssh command with its input closed may say nothing for hours.
func TestHalfClosedAndIdleIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		la, a := pipe()
		lb, b := pipe()
		end := make(chan outcome, 1)
		go func() {
			res, err := splice.Both(t.Context(), a, b, splice.Options{Linger: time.Second})
			end <- outcome{res, err}
		}()
		_ = la.CloseWrite()
		if _, err := lb.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("the half-close arrives as %v; want io.EOF", err)
		}
		time.Sleep(10 * time.Hour)
		go func() { _, _ = lb.Write([]byte("done")); _ = lb.CloseWrite() }()
		if got, err := io.ReadAll(la); err != nil || string(got) != "done" {
			t.Errorf("after ten idle hours the other end got %q, %v; want the answer", got, err)
		}
		if o := <-end; o.err != nil {
			t.Errorf("ended with %v", o.err)
		}
	})
}

// A side that can take no more, and another that goes on sending what it had to say.
func TestLingerIsByProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		la, a := pipe()
		lb, b := pipe()
		end := make(chan outcome, 1)
		go func() {
			res, err := splice.Both(t.Context(), a, b, splice.Options{Linger: time.Second})
			end <- outcome{res, err}
		}()
		b.breakWrites()
		go func() { _, _ = la.Write([]byte("upload")) }()
		start := time.Now()
		for range 10 { // slower in all than Linger, faster each
			time.Sleep(900 * time.Millisecond)
			go func() { _, _ = lb.Write([]byte("x")) }()
			if _, err := io.ReadFull(la, make([]byte, 1)); err != nil {
				t.Fatalf("what the broken side still had to say got lost after %s: %v", time.Since(start), err)
			}
		}
		o := <-end
		if !errors.Is(o.err, errBroken) || o.res.BtoA != 10 {
			t.Errorf("ended with %+v; want the write error and ten bytes", o)
		}
		if idle := time.Since(start) - 9*time.Second; idle > 2*time.Second {
			t.Errorf("an idle broken pair was kept for %s; want two seconds at most", idle)
		}
	})
}

// A half-closed side whose peer then vanishes is not waited for.
func TestGoneAfterHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		la, a := pipe()
		_, b := pipe()
		end := make(chan outcome, 1)
		go func() {
			res, err := splice.Both(t.Context(), a, b, splice.Options{Linger: time.Second})
			end <- outcome{res, err}
		}()
		_ = la.CloseWrite()
		time.Sleep(time.Hour)
		close(a.gone)
		start := time.Now()
		if o := <-end; !errors.Is(o.err, splice.ErrLinger) || time.Since(start) > 2*time.Second {
			t.Errorf("ended with %v after %s; want ErrLinger within two seconds", o.err, time.Since(start))
		}
		if !b.wasReset.Load() {
			t.Error("the other side was closed as if its stream were whole; want a reset")
		}
	})
}

func TestReadErrorEndsBothAtOnce(t *testing.T) {
	left, right, end := between(t, t.Context(), splice.Options{})
	_, _ = left.Write([]byte("x"))
	_, _ = io.ReadFull(right, make([]byte, 1))
	_ = left.SetLinger(0) // Close sends a reset
	_ = left.Close()
	if o := <-end; o.err == nil {
		t.Error("a reset connection ends without an error")
	}
	if _, err := right.Read(make([]byte, 1)); err == nil {
		t.Error("the other side still reads")
	}
}

func TestContextClosesBothAndIsTheCause(t *testing.T) {
	errKicked := errors.New("viewer kicked")
	ctx, cancel := context.WithCancelCause(t.Context())
	left, right, end := between(t, ctx, splice.Options{})
	_, _ = left.Write([]byte("x"))
	_, _ = io.ReadFull(right, make([]byte, 1))
	cancel(errKicked)
	if o := <-end; !errors.Is(o.err, errKicked) || o.res.AtoB != 1 {
		t.Errorf("ended with %+v; want the context's cause and one byte", o)
	}
	for _, c := range []net.Conn{left, right} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a side is still open after the context ended")
		}
	}
	if _, err := splice.Both(ctx, left, right, splice.Options{}); !errors.Is(err, errKicked) {
		t.Errorf("with an ended context Both gives %v; want its cause", err)
	}
}

var errBroken = errors.New("broken pipe")

// half is one end of an in-memory connection whose directions end separately.
type half struct {
	r        *io.PipeReader
	w        *io.PipeWriter
	gone     chan struct{}
	broken   atomic.Bool
	wasReset atomic.Bool
}

func pipe() (*half, *half) {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	return &half{r: r1, w: w2, gone: make(chan struct{})}, &half{r: r2, w: w1, gone: make(chan struct{})}
}

func (h *half) Read(p []byte) (int, error) { return h.r.Read(p) }
func (h *half) Write(p []byte) (int, error) {
	if h.broken.Load() {
		return 0, errBroken
	}
	return h.w.Write(p)
}
func (h *half) breakWrites()          { h.broken.Store(true) }
func (h *half) CloseWrite() error     { return h.w.Close() }
func (h *half) Done() <-chan struct{} { return h.gone }
func (h *half) Close() error          { return errors.Join(h.r.Close(), h.w.Close()) }
func (h *half) Reset() error {
	h.wasReset.Store(true)
	return errors.Join(h.r.CloseWithError(errBroken), h.w.CloseWithError(errBroken))
}

func BenchmarkBoth(b *testing.B) {
	b.ReportAllocs()
	left, right, end := between(b, b.Context(), splice.Options{AtoB: func(int) {}, BtoA: func(int) {}})
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(io.Discard, right); _ = right.CloseWrite() })
	for b.Loop() {
		if _, err := left.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	_ = left.CloseWrite()
	wg.Wait()
	<-end
}
