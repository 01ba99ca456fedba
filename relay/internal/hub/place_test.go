package hub_test

import (
	"io"
	"sync"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// serveQuietly takes the streams of an agent's links, and reads what comes.
func serveQuietly(t *testing.T, agents ...*agent) (wait func()) {
	var all sync.WaitGroup
	for _, a := range agents {
		all.Go(func() {
			for {
				st, err := a.link.Accept(t.Context())
				if err != nil {
					return
				}
				all.Go(func() {
					defer st.Close()
					if _, err := wire.ReadHello(st); err != nil {
						return
					}
					_, _ = st.Write(wire.AppendVerdict(nil, wire.Verdict{}))
					_, _ = io.Copy(io.Discard, st)
				})
			}
		})
	}
	return func() {
		for _, a := range agents {
			_ = a.link.Close(nil)
		}
		all.Wait()
	}
}

// Streams at work on one link speak for another, before there is any load to see.
func TestOutnumbered(t *testing.T) {
	w := newWorld(t)
	first := w.agent(t, "a", 0, 0)
	second := w.agent(t, "a", 1, 16)
	defer serveQuietly(t, first, second)()
	streams := map[*link.Link]*fleet.Stream{}
	for range 2 {
		st, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		streams[st.Link()] = st
	}
	if len(streams) != 2 {
		t.Fatal("two streams went over one link, with another one free")
	}
	for l, st := range streams { // each link has its control stream and this one
		for inUse, want := range map[int]bool{l.NumStreams(): false, l.NumStreams() + 1: false, l.NumStreams() + 2: true} {
			if got := st.Outnumbered(inUse); got != want {
				t.Errorf("%d in use on one link and %d on the other: outnumbered is %t", inUse, l.NumStreams(), got)
			}
		}
	}
}

// Who kept a stream of an agent that has left asks in vain.
func TestStreamOfNoLink(t *testing.T) {
	w := newWorld(t)
	first := w.agent(t, "a", 0, 0)
	second := w.agent(t, "a", 1, 16)
	wait := serveQuietly(t, first, second)
	st, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if st.Stale() {
		t.Error("a stream of a living link is stale")
	}
	wait()
	within(t, "the stream is stale", st.Stale)
	within(t, "the agent has no link", func() bool { _, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP}); return err != nil })
	if st.Crowded() || st.Outnumbered(100) {
		t.Error("an agent without links has a better one")
	}
}

// What moved for streams that have ended makes no link crowded.
func TestEndedBulkLeavesNoCrowd(t *testing.T) {
	w := newWorld(t)
	first := w.agent(t, "a", 0, 0)
	second := w.agent(t, "a", 1, 16)
	defer serveQuietly(t, first, second)()
	for range 20 { // the load is there to see for a moment only
		bulk, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bulk.Write(make([]byte, 4<<20)); err != nil {
			t.Fatal(err)
		}
		_ = bulk.Reset()
		within(t, "the stream of a bulk transfer is gone", func() bool { return bulk.Link().NumStreams() == 1 })
		lanes := map[*link.Link]int{}
		var streams []*fleet.Stream
		for range 8 {
			st, err := w.hub.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP})
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, st)
			lanes[st.Link()]++
		}
		seen := bulk.Link().Load() > 0
		for _, st := range streams {
			_ = st.Reset()
		}
		within(t, "its followers are gone", func() bool { return first.link.NumStreams() == 1 && second.link.NumStreams() == 1 })
		if !seen {
			continue
		}
		if lanes[bulk.Link()] == 0 {
			t.Error("eight streams went around a link on which nothing moves any more")
		}
		return
	}
	t.Error("the load of a bulk transfer was never to be seen")
}

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
		if st.Link() == bulk.Link() {
			t.Error("a new stream was put beside a bulk transfer, with a calm link there")
		}
		if st.Crowded() {
			t.Error("the calm link counts as crowded")
		}
	}
	_ = bulk.Reset()
	within(t, "the link is calm again", func() bool { return bulk.Link().Load() == 0 })
	for _, a := range []*agent{first, second} {
		_ = a.link.Close(nil)
	}
	all.Wait()
}
