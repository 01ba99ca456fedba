package hub_test

import (
	"io"
	"sync"
	"testing"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// What begins while a link carries bulk goes to another one.
func TestStreamsGoAroundBulk(t *testing.T) {
	w := newWorld(t)
	first := w.agent(t, "a", 0, 0)
	second := w.agent(t, "a", 1, 16)
	if second.welcome == nil || second.welcome.Generation != 1 {
		t.Fatalf("an extra link joins: %+v %+v", second.welcome, second.bye)
	}
	// Both ends of the link take streams; the first stream of all gets bulk.
	var mu sync.Mutex
	var all sync.WaitGroup
	taken := map[*link.Link]int{}
	for _, a := range []*agent{first, second} {
		all.Go(func() {
			for {
				st, err := a.link.Accept(t.Context())
				if err != nil {
					return
				}
				mu.Lock()
				bulk := len(taken) == 0
				taken[a.link]++
				mu.Unlock()
				all.Go(func() {
					defer st.Close()
					if _, err := wire.ReadHello(st); err != nil {
						return
					}
					_, _ = st.Write(wire.AppendVerdict(nil, wire.Verdict{}))
					for data := make([]byte, 64<<10); bulk; {
						if _, err := st.Write(data); err != nil {
							return
						}
					}
					_, _ = io.Copy(io.Discard, st)
				})
			}
		})
	}
	bulk, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP})
	if err != nil {
		t.Fatal(err)
	}
	all.Go(func() { _, _ = io.Copy(io.Discard, bulk) })
	within(t, "the link of a bulk transfer is crowded", bulk.Crowded)
	for range 4 {
		st, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if st.Lane() == bulk.Lane() {
			t.Error("a new stream was put beside a bulk transfer, with a calm link there")
		}
		if st.Crowded() {
			t.Error("the calm link counts as crowded")
		}
	}
	_ = bulk.Reset()
	within(t, "the link is calm again", func() bool { return bulk.Lane().Load() == 0 })
	for _, a := range []*agent{first, second} {
		_ = a.link.Close(nil)
	}
	all.Wait()
}
