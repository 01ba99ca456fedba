package edge_test

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// twoLinks opens streams over one of an agent's two links, as the hub does.
type twoLinks struct {
	fleet.Hub
	links  [2]*machine
	second atomic.Bool // where new streams go
}

func (d *twoLinks) Open(ctx context.Context, key ident.AgentKey, h wire.Hello) (*fleet.Stream, error) {
	if d.second.Load() {
		return d.links[1].Open(ctx, key, h)
	}
	return d.links[0].Open(ctx, key, h)
}

// calm is a lane beside another one that carries one stream.
type calm struct{}

func (calm) Stale() bool                { return false }
func (calm) Leaving() bool              { return false }
func (calm) Crowded() bool              { return false }
func (calm) Outnumbered(inUse int) bool { return inUse >= 3 }
func (calm) Left(*fleet.Stream)         {}

// Idle streams are reused, but not so that all that begins at once goes over the one
// link that has them.
func TestReuseLeavesNoLinkOut(t *testing.T) {
	d := &twoLinks{}
	for i := range d.links {
		d.links[i] = (&machine{lane: calm{}}).connect(t)
	}
	w := newWorld(t, func(c *edge.Config) { c.Fleet = fleet.New(fleet.Config{Hub: d}) })
	const many = 8
	arrived, leave := make(chan struct{}, many), make(chan struct{})
	port := w.appFunc(func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-leave
	})
	_, segment := w.tunnel(port, nil)
	client := w.client()
	at := func() {
		var all sync.WaitGroup
		for range many {
			r := w.request(http.MethodGet, segment, "/", nil)
			all.Go(func() {
				resp, err := client.Do(r)
				if err != nil {
					t.Error(err)
					arrived <- struct{}{}
					return
				}
				_ = resp.Body.Close()
			})
		}
		for range many {
			<-arrived
		}
		for range many {
			select {
			case leave <- struct{}{}:
			case <-t.Context().Done():
			}
		}
		all.Wait()
	}
	at()
	eventually(t, "all streams are idle", func() bool { return w.edge.IdleStreams() == many })
	d.second.Store(true)
	at()
	if n := d.links[0].opened.Load(); n != many {
		t.Errorf("%d streams were opened for %d requests at once", n, many)
	}
	if n := d.links[1].opened.Load(); n == 0 || n == many {
		t.Errorf("of %d requests at once, %d got new streams, where idle ones are on one link of two", many, n)
	}
}
