package wan_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/wan"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

func TestBytesPassUnchanged(t *testing.T) {
	l := wan.Start(t, echo(t), wan.Options{Delay: 2 * time.Millisecond, Buffer: 40 << 10})
	conn := dial(t, l)
	sent := make([]byte, 3<<20)
	_, _ = rand.Read(sent)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = conn.Write(sent)
		_ = conn.CloseWrite()
	})
	got, err := io.ReadAll(conn)
	wg.Wait()
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("all bytes and the end of stream should come back; got %d of %d, %v", len(got), len(sent), err)
	}
	testkit.Eventually(t, "the closed connection to be forgotten", func() bool { return l.Conns() == 0 })
	if l.Accepted() != 1 {
		t.Errorf("want one accepted connection, got %d", l.Accepted())
	}
}

func TestDelay(t *testing.T) {
	const oneWay = 30 * time.Millisecond
	l := wan.Start(t, echo(t), wan.Options{Delay: oneWay})
	start := time.Now()
	conn := dial(t, l)
	roundTrip(t, conn)
	if d := time.Since(start); d < 4*oneWay {
		t.Errorf("handshake and round trip should take two round trips, %s; got %s", 4*oneWay, d)
	}
	if d := roundTrip(t, conn); d < 2*oneWay {
		t.Errorf("a round trip should take %s; got %s", 2*oneWay, d)
	}
	l.Set(wan.Options{})
	testkit.Eventually(t, "without delay a round trip should be short", func() bool { return roundTrip(t, conn) < 2*oneWay })
}

// TestBandwidthIsShared also shows that delay does not limit what is under way.
func TestBandwidthIsShared(t *testing.T) {
	const rate, each = 8 << 20, 1 << 20
	l := wan.Start(t, echo(t), wan.Options{Bandwidth: rate, Delay: 20 * time.Millisecond})
	start := time.Now()
	var wg sync.WaitGroup
	for range 2 {
		conn := dial(t, l)
		wg.Go(func() { _, _ = conn.Write(make([]byte, each)) })
		wg.Go(func() { _, _ = io.ReadFull(conn, make([]byte, each)) })
	}
	wg.Wait()
	took, least := time.Since(start), 2*each*time.Second/rate
	t.Logf("2 MiB there and back at 8 MiB/s took %s", took)
	if took < least {
		t.Errorf("two connections should share the wire and take %s together; took %s", least, took)
	}
	testkit.Took(t, "the wire should be used well", took, 8*least)
}

func TestStalls(t *testing.T) {
	l := wan.Start(t, echo(t), wan.Options{StallEvery: 10, StallFor: 30 * time.Millisecond})
	conn := dial(t, l)
	start := time.Now()
	for range 6 { // 24 bytes each way: two stalls before the last one
		roundTrip(t, conn)
	}
	if took := time.Since(start); took < 60*time.Millisecond {
		t.Errorf("lost packets should cost two stalls; took %s", took)
	}
}

func TestCutAndHeal(t *testing.T) {
	l := wan.Start(t, echo(t), wan.Options{})
	conn := dial(t, l)
	roundTrip(t, conn)
	for range 3 {
		l.Cut()
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a cut should reset the connection; got %v", err)
		}
		if _, err := net.Dial("tcp", l.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a cut link should refuse; got %v", err)
		}
		testkit.Eventually(t, "cut connections to be gone", func() bool { return l.Conns() == 0 })
		l.Heal()
		conn = dial(t, l)
		roundTrip(t, conn)
	}
	l.Reset()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a reset should reset the connection; got %v", err)
	}
	roundTrip(t, dial(t, l))
}

func TestFreezeLosesNothing(t *testing.T) {
	l := wan.Start(t, echo(t), wan.Options{})
	conn := dial(t, l)
	roundTrip(t, conn)
	l.Freeze()
	if _, err := conn.Write([]byte("held")); err != nil {
		t.Fatalf("a frozen link takes bytes: %v", err)
	}
	silent(t, conn)
	l.Heal()
	b := make([]byte, 4)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "held" {
		t.Errorf("after healing the bytes should arrive; got %q, %v", b, err)
	}
}

func TestBlackholeIsForGood(t *testing.T) {
	l := wan.Start(t, echo(t), wan.Options{})
	old := dial(t, l)
	roundTrip(t, old)
	l.Blackhole()
	during := dial(t, l)
	for _, conn := range []*net.TCPConn{old, during} {
		if _, err := conn.Write([]byte("lost")); err != nil {
			t.Fatalf("a black hole takes bytes: %v", err)
		}
		silent(t, conn)
	}
	l.Heal()
	roundTrip(t, dial(t, l))
	silent(t, old)
	silent(t, during)
	_ = old.CloseWrite() // even a goodbye is not heard
	silent(t, old)
	l.Cut()
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a cut should end the lost connection; got %v", err)
	}
}

func TestEndsPass(t *testing.T) {
	listener := listen(t)
	accepted := make(chan *net.TCPConn, 1)
	go func() {
		c, err := listener.AcceptTCP()
		if err == nil {
			accepted <- c
		}
	}()
	l := wan.Start(t, listener.Addr().String(), wan.Options{Delay: time.Millisecond})
	near := dial(t, l)
	far := <-accepted
	_ = near.CloseWrite()
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a half-close should arrive as the end; got %v", err)
	}
	if _, err := far.Write([]byte("x")); err != nil {
		t.Errorf("the other half should still work: %v", err)
	}
	if _, err := io.ReadFull(near, make([]byte, 1)); err != nil {
		t.Errorf("the other half should still work: %v", err)
	}
	_ = far.SetLinger(0)
	_ = far.Close()
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a reset should arrive as a reset; got %v", err)
	}
}

func TestTargetDown(t *testing.T) {
	listener := listen(t)
	addr := listener.Addr().String()
	_ = listener.Close()
	conn, err := net.Dial("tcp", wan.Start(t, addr, wan.Options{}).Addr())
	if err != nil {
		return // reset before the dial saw its success
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(testkit.Patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("where the target is down the connection should end; got %v", err)
	}
}

// silent checks that nothing arrives, for a moment.
func silent(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	n, err := conn.Read(make([]byte, 1))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nothing should arrive; got %d bytes, %v", n, err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(testkit.Patience))
}

func roundTrip(t *testing.T, conn *net.TCPConn) time.Duration {
	t.Helper()
	start := time.Now()
	b := []byte("ping")
	if _, err := conn.Write(b); err != nil {
		t.Fatalf("write: %v", err)
	}
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "ping" {
		t.Fatalf("read: %q, %v", b, err)
	}
	return time.Since(start)
}

func dial(t *testing.T, l *wan.Link) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", l.Addr())
	if err != nil {
		t.Fatalf("connect through %s: %v", l, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(testkit.Patience))
	return conn.(*net.TCPConn)
}

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// echo runs a server that returns what it gets, and half-closes when its peer does.
func echo(t *testing.T) string {
	t.Helper()
	l := listen(t)
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	return l.Addr().String()
}
