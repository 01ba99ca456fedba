package link_test

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/adit-tunnel/adit/shared/link"
)

// FuzzFrames gives a link whatever a hostile peer may send: it may end the link, and
// must neither crash nor hang nor leave anything behind.
func FuzzFrames(f *testing.F) {
	frame := func(typ, flags byte, id, length byte, body string) string {
		return string([]byte{0, typ, 0, flags, 0, 0, 0, id, 0, 0, 0, length}) + body
	}
	f.Add([]byte(frame(2, 1, 0, 9, "")))                                                      // ping
	f.Add([]byte(frame(1, 1, 1, 0, "") + frame(0, 0, 1, 5, "hello") + frame(1, 4, 1, 0, ""))) // stream
	f.Add([]byte(frame(1, 1, 1, 0, "") + frame(1, 8, 1, 0, "") + frame(1, 8, 1, 0, "")))      // two resets
	f.Add([]byte(frame(1, 1, 1, 0, "") + frame(1, 4, 1, 0, "") + frame(1, 8, 1, 0, "")))      // end, reset
	f.Add([]byte(frame(1, 1, 2, 0, "") + frame(1, 1, 2, 0, "")))                              // the other's id, twice
	f.Add([]byte(frame(0, 0, 7, 3, "abc") + frame(3, 0, 0, 0, "")))                           // nobody's stream; go away
	f.Add([]byte(frame(1, 1, 1, 0, "") + "\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff")) // beyond the window
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, s := net.Pipe()
		budget := link.NewBudget(1 << 20)
		server, err := link.NewServer(s, link.Config{Budget: budget, MaxIncoming: 8})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(io.Discard, c) })
		wg.Go(func() {
			for {
				st, err := server.Accept(t.Context())
				if err != nil {
					return
				}
				wg.Go(func() {
					_, _ = io.Copy(io.Discard, st)
					_ = st.Close()
				})
			}
		})
		_, _ = c.Write(data)
		_ = c.Close()
		<-server.Done()
		_ = server.Close(errTest)
		wg.Wait()
		if n := budget.Used(); n != 0 {
			t.Errorf("%d bytes of a dead link count", n)
		}
	})
}
