package edge_test

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// lanes opens streams over one of two links, as the hub does, and says which.
type lanes struct {
	*dialer
	links  [2]*link.Link
	second atomic.Bool // where new streams go
	opened [2]atomic.Int64
}

func (d *lanes) Open(ctx context.Context, key ident.AgentKey, h wire.Hello) (edge.Stream, error) {
	s, err := d.dialer.Open(ctx, key, h)
	if err != nil {
		return nil, err
	}
	i := 0
	if d.second.Load() {
		i = 1
	}
	d.opened[i].Add(1)
	if _, err := d.links[i].Open(ctx); err != nil { // what the link counts
		return nil, err
	}
	return &laned{stream: s.(*stream), lane: d.links[i]}, nil
}

type laned struct {
	*stream
	lane *link.Link
}

func (s *laned) Lane() *link.Link { return s.lane }
func (*laned) Crowded() bool      { return false }

// Outnumbered: the other link has nothing but one stream.
func (*laned) Outnumbered(inUse int) bool { return inUse >= 3 }

// Idle streams are reused, but not so that all that begins at once goes over the one
// link that has them.
func TestReuseLeavesNoLinkOut(t *testing.T) {
	d := &lanes{}
	w := newWorld(t, func(c *edge.Config) {
		d.dialer = c.Dialer.(*dialer)
		c.Dialer = d
	})
	for i := range d.links {
		near, far := net.Pipe()
		var err error
		if d.links[i], err = link.NewClient(near, link.Config{}); err != nil {
			t.Fatal(err)
		}
		peer, err := link.NewServer(far, link.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.links[i].Close(nil); _ = peer.Close(nil) })
	}
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
	if n := d.opened[0].Load(); n != many {
		t.Errorf("%d streams were opened for %d requests at once", n, many)
	}
	if n := d.opened[1].Load(); n == 0 || n == many {
		t.Errorf("of %d requests at once, %d got new streams, where idle ones are on one link of two", many, n)
	}
}
