package front_test

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/front"
)

// The kernel's memory for sockets is all connections': a user who takes nothing holds
// little of it.
func TestWhoTakesNothingHoldsLittleOfTheKernel(t *testing.T) {
	written := make(chan int, 1)
	s := front.New(front.Config{
		Listen: "127.0.0.1:0", ConnsPerAddress: 10, Logger: slog.New(slog.DiscardHandler),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			rc := http.NewResponseController(w)
			n := 0
			for {
				_ = rc.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
				k, err := w.Write(make([]byte, 64<<10))
				if err == nil {
					err = rc.Flush()
				}
				if n += k; err != nil || n > 32<<20 {
					written <- n
					return
				}
			}
		}),
	})
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).SetReadBuffer(16 << 10)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if n := <-written; n > 1<<20 {
		t.Errorf("the kernel took %d bytes for a user who reads none; want a few hundred KiB", n)
	}
	_ = c.Close()
	_ = s.Close()
	<-served
}
