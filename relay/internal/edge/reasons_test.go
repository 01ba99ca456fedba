package edge_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Who is cut off is told the true reason, whichever comes first: the close frame, or
// a try of theirs to come back. A tunnel of protocol http has one page for whatever is
// not there, which names them all; a program with a tcp tunnel's address is told which.
func TestTheTrueReasonWhicheverRoadIsFaster(t *testing.T) {
	for name, c := range map[string]struct {
		text   string // of an end
		end    func(*world, store.TunnelRecord)
		code   websocket.StatusCode
		frame  string
		status int
		detail [2]string // of http, of tcp
	}{
		"closed":  {text: "the tunnel was closed", code: 1001, status: 404, detail: [2]string{"was closed", "the tunnel was closed;"}},
		"expired": {text: "the tunnel expired", code: 1001, status: 404, detail: [2]string{"has expired", "the tunnel expired;"}},
		"idle":    {text: "the tunnel was closed: nobody used it for 30m", code: 1001, status: 404, detail: [2]string{"was closed", "nobody used it for 30m;"}},
		"revoked": {text: "the tunnel was closed: the credential that opened it was revoked", code: 1001, status: 404, detail: [2]string{"was closed", "revoked;"}},
		"kicked": {
			end:  func(w *world, r store.TunnelRecord) { w.meter.Kick(r.Session, w.meter.Viewers(r.Session)[0].ViewerID) },
			code: 1008, frame: "disconnected by the tunnel's owner", status: 403, detail: [2]string{"owner disconnected you", "owner disconnected you"},
		},
		"restart": {
			end:  func(w *world, _ store.TunnelRecord) { _ = w.edge.Drain(w.t.Context()) },
			code: 1012, frame: "the relay restarts", status: 503, detail: [2]string{"the relay restarts", "the relay restarts"},
		},
	} {
		for i, protocol := range []api.Protocol{api.ProtocolHTTP, api.ProtocolTCP} {
			for _, road := range []string{"the close frame first", "the new attempt first"} {
				t.Run(name+" "+string(protocol)+", "+road, func(t *testing.T) {
					var why atomic.Pointer[string]
					w := newWorld(t, func(c *edge.Config) {
						c.Why = func(ident.SessionID) (string, bool) {
							if s := why.Load(); s != nil {
								return *s, protocol == api.ProtocolTCP
							}
							return "", false
						}
					})
					port := w.appFunc(echo)
					if protocol == api.ProtocolTCP {
						port = w.rawApp(func(c net.Conn) { _, _ = io.Copy(c, c) })
					}
					rec, seg := w.tunnel(port, func(r *store.TunnelRecord) { r.Protocol = protocol })
					user, _, err := w.webSocket(seg, nil)
					if err != nil {
						t.Fatal(err)
					}
					_ = user.Write(t.Context(), websocket.MessageBinary, []byte("hi"))
					if _, b, err := user.Read(t.Context()); err != nil || string(b) != "hi" {
						t.Fatalf("%q %v", b, err)
					}
					frame, end := c.frame, c.end
					if end == nil {
						frame = c.text
						end = func(w *world, r store.TunnelRecord) {
							why.Store(&c.text)
							w.mu.Lock()
							delete(w.tunnels, r.Session)
							w.mu.Unlock()
							w.edge.Drop(r.Session, &usage.Over{Of: usage.ErrClosed, Text: c.text})
						}
					}
					if road == "the close frame first" {
						got := make(chan error, 1)
						go func() { _, _, err := user.Read(t.Context()); got <- err }()
						end(w, rec)
						var ce websocket.CloseError
						if err := <-got; !errors.As(err, &ce) || ce.Code != c.code || !strings.Contains(ce.Reason, frame) {
							t.Errorf("the close frame says %v, want %d and that %s", err, c.code, frame)
						}
						return
					}
					if name == "kicked" { // while there is somebody to kick
						end(w, rec)
						_ = user.CloseNow()
					} else {
						_ = user.CloseNow()
						end(w, rec)
					}
					_, resp, err := w.webSocket(seg, nil)
					if err == nil || resp == nil {
						t.Fatalf("a new attempt is admitted: %v", err)
					}
					b, _ := io.ReadAll(resp.Body)
					if resp.StatusCode != c.status || !strings.Contains(string(b), c.detail[i]) {
						t.Errorf("a new attempt is answered %d %s, want %d and that %s", resp.StatusCode, b, c.status, c.detail[i])
					}
				})
			}
		}
	}
}

// What a tunnel's end is told for is its address, whole and right.
func TestTheReasonIsForWhoHasTheAddress(t *testing.T) {
	asked := atomic.Int32{}
	w := newWorld(t, func(c *edge.Config) {
		c.Why = func(ident.SessionID) (string, bool) { asked.Add(1); return "the tunnel expired", true }
	})
	id := ident.NewSessionID()
	right := string(clusterKey.Segment(id))
	wrong := []byte(right)
	wrong[40] ^= 1
	if wrong[40] < 'a' || wrong[40] > 'z' {
		wrong[40] = 'a' + (wrong[40]-'2')%5
	}
	_, resp, err := w.webSocket(string(wrong), nil)
	if err == nil || resp == nil || resp.StatusCode != http.StatusNotFound {
		t.Fatalf("%+v %v", resp, err)
	}
	if b, _ := io.ReadAll(resp.Body); strings.Contains(string(b), "the tunnel expired") || asked.Load() != 0 {
		t.Errorf("a wrong token learns %s", b)
	}
	if r := w.get(right, "/"); r.StatusCode != http.StatusNotFound || asked.Load() != 0 {
		t.Errorf("a browser gets the page for whatever is not there: %d", r.StatusCode)
	}
	_, resp, err = w.webSocket(right, nil)
	if err == nil || resp == nil {
		t.Fatal("admitted")
	}
	if b, _ := io.ReadAll(resp.Body); !strings.Contains(string(b), "the tunnel expired") {
		t.Errorf("a program with the address learns %s", b)
	}
}
