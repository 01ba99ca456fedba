package edge_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/link"
)

// A user who takes nothing while memory is short is ended, whatever it speaks: the
// relay keeps nothing of its request, and what it is told later is no whole answer.
func TestUsersWhoTakeNothingAreEnded(t *testing.T) {
	endless := func(rw http.ResponseWriter, _ *http.Request) {
		for block := make([]byte, 64<<10); ; {
			if _, err := rw.Write(block); err != nil {
				return
			}
		}
	}
	talk := func(rw http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(rw, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		for block := make([]byte, 64<<10); ; {
			if err := c.Write(r.Context(), websocket.MessageBinary, block); err != nil {
				return
			}
		}
	}
	// reader is what a user has in hand; its end is what reading it to the end gives.
	type reader func() error
	body := func(w *world, seg string) reader {
		resp := w.get(seg, "/")
		return func() error { _, err := io.Copy(io.Discard, resp.Body); return err }
	}
	socket := func(w *world, seg string, first string) reader {
		c, resp, err := w.webSocket(seg, nil)
		if resp != nil && resp.StatusCode == http.StatusServiceUnavailable {
			return func() error { return err } // those before have taken all there is
		}
		if err != nil {
			t.Fatal(err)
		}
		c.SetReadLimit(-1)
		if err := c.Write(t.Context(), websocket.MessageBinary, []byte(first)); err != nil {
			t.Fatal(err)
		}
		return func() error {
			for {
				if _, _, err := c.Read(t.Context()); err != nil {
					// Only a close frame is an end; the library wraps what the socket said.
					return fmt.Errorf("close code %d: %v", websocket.CloseStatus(err), err) //nolint:errorlint // io.EOF of the socket is none
				}
			}
		}
	}
	for name, front := range map[string]struct {
		app      http.HandlerFunc
		protocol api.Protocol
		secure   bool
		begin    func(w *world, seg string) reader
	}{
		"HTTP/1.1":  {app: endless, begin: body},
		"HTTP/2":    {app: endless, begin: body, secure: true},
		"WebSocket": {app: talk, begin: func(w *world, seg string) reader { return socket(w, seg, "hello") }},
		"TCP": {app: endless, protocol: api.ProtocolTCP, begin: func(w *world, seg string) reader {
			return socket(w, seg, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var ended atomic.Int64
			poor := &machine{budget: link.NewBudget(3 << 20)}
			poor.budget.Relieved = func(r link.Relief) { ended.Add(int64(r.Streams)) }
			w := newWorld(t, func(c *edge.Config) {
				c.Fleet = poor.connect(t).fleet()
				if front.secure {
					c.PathFallback = "tls"
				}
			})
			_, seg := w.tunnel(w.appFunc(front.app), func(r *store.TunnelRecord) {
				if front.protocol != "" {
					r.Protocol = front.protocol
				}
			})
			const users = 16 // of 256 KiB at least
			var readers []reader
			for range users {
				readers = append(readers, front.begin(w, seg))
			}
			eventually(t, "who was given up is served no more", func() bool {
				n := ended.Load()
				return n > 0 && w.edge.Active() <= users-n
			})
			torn := make(chan error, users)
			for _, r := range readers {
				go func() { torn <- r() }()
			}
			for range ended.Load() {
				if err := <-torn; err == nil || errors.Is(err, io.EOF) || strings.Contains(err.Error(), "close code 1000") {
					t.Errorf("a user who was given up got %v, as if the answer were whole", err)
				}
			}
		})
	}
}
