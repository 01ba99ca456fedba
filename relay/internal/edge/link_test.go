package edge_test

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/edge"
)

// TestLinkLostAndBack: a GET that lost its stream, and its idle streams with it, is
// carried out on the new link.
func TestLinkLostAndBack(t *testing.T) {
	w := newWorld(t, func(c *edge.Config) { c.Hold = 20 * time.Second })
	arrived := make(chan struct{}, 10)
	var requests atomic.Int32
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		if requests.Add(1) == 1 {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(rw, "second")
	})
	_, seg := w.tunnel(port, nil)
	done := make(chan string, 1)
	r := w.request("GET", seg, "/", nil)
	go func() {
		resp, err := w.client().Do(r)
		if err != nil {
			done <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		done <- string(b)
	}()
	<-arrived
	_ = w.machine.set(nil).Close(errors.New("cable pulled"))
	w.machine.connect(t)
	if got := <-done; got != "second" {
		t.Errorf("after the link came back: %s", got)
	}
}
