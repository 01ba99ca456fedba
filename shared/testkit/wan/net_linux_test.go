package wan_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/adit-tunnel/adit/shared/testkit/wan"
)

// startNet runs a net that ends with the test.
func startNet(t *testing.T, line wan.Line) *wan.Net {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TUN devices here: %v", err)
	}
	n := wan.NewNet(line)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the net should end without an error, got %v", err)
		}
	})
	select {
	case <-n.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return n
}

// across returns a connection from near to far, and its other end.
func across(t *testing.T, n *wan.Net) (near, far *net.TCPConn, took time.Duration) {
	t.Helper()
	var l net.Listener
	do := func(s *wan.Side, f func() error) {
		t.Helper()
		if err := s.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	do(n.Far, func() (err error) { l, err = net.Listen("tcp", n.Far.Addr()+":0"); return err })
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	var c net.Conn
	since := time.Now()
	do(n.Near, func() (err error) { c, err = net.DialTimeout("tcp", l.Addr().String(), 30*time.Second); return err })
	took = time.Since(since)
	other := <-accepted
	if other == nil {
		t.Fatal("the connection should be accepted")
	}
	t.Cleanup(func() { _ = c.Close(); _ = other.Close() })
	return c.(*net.TCPConn), other.(*net.TCPConn), took
}

// The kernel's own TCP mends what the line loses: what arrives is what was sent, cut
// bursts included.
func TestNetCarriesAndLoses(t *testing.T) {
	n := startNet(t, wan.Line{RTT: 20 * time.Millisecond, Loss: 0.02, Rate: 1e9, Congestion: "reno"})
	near, far, took := across(t, n)
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var name string
	_ = raw.Control(func(fd uintptr) { name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) })
	if err != nil || name != "reno" {
		t.Errorf("connections should have the line's congestion control, reno; it is %q, %v", name, err)
	}
	if took < 20*time.Millisecond {
		t.Errorf("connecting should take a round trip, 20ms; it took %s", took)
	}
	sent := make([]byte, 1<<20)
	_, _ = rand.Read(sent)
	go func() {
		_, _ = near.Write(sent)
		_ = near.CloseWrite()
	}()
	got, err := io.ReadAll(far)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("all bytes should arrive as they were sent; got %d of %d, %v", len(got), len(sent), err)
	}
	carried, lost, _ := n.Stats()
	if segments := int64(len(sent) / 1460); carried < segments || lost < segments/200 {
		t.Errorf("of %d segments and more about 2 %% should be lost; carried %d, lost %d", segments, carried, lost)
	}
}

func TestNetBoundsItsRate(t *testing.T) {
	n := startNet(t, wan.Line{RTT: 2 * time.Millisecond, Rate: 40e6, Queue: 50 * time.Millisecond})
	near, far, _ := across(t, n)
	const size = 4 << 20
	since := time.Now()
	go func() {
		_, _ = near.Write(make([]byte, size))
		_ = near.CloseWrite()
	}()
	if k, err := io.Copy(io.Discard, far); err != nil || k != size {
		t.Fatalf("all %d bytes should arrive; got %d, %v", size, k, err)
	}
	if least := time.Duration(float64(size*8) / 40e6 * float64(time.Second) * 0.9); time.Since(since) < least {
		t.Errorf("4 MiB at 40 Mbit/s should take %s or more; they took %s", least, time.Since(since))
	}
}

func TestNetHoldsProcesses(t *testing.T) {
	n := startNet(t, wan.Line{})
	var out strings.Builder
	cmd := exec.CommandContext(t.Context(), "cat", "/proc/net/dev")
	cmd.Stdout = &out
	if err := n.Near.Do(cmd.Run); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "wan0:") {
		t.Errorf("a process started near should see the line's device, it sees\n%s", out.String())
	}
}
