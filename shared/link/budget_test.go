package link_test

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// receiving returns a pair of links of which only the server's end is in the budget.
func receiving(t *testing.T, b *link.Budget) (client, server *link.Link) {
	t.Helper()
	c, s := testkit.TCP(t)
	client, err := link.NewClient(c, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if server, err = link.NewServer(s, link.Config{Budget: b}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(errTest); _ = server.Close(errTest) })
	return client, server
}

// billed opens a stream whose near end is an owner's.
func streamOf(t *testing.T, o link.Owner, client, server *link.Link) (near, far *link.Stream) {
	t.Helper()
	near, err := server.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if far, err = client.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	near.Bill(o)
	return near, far
}

// A tenant whose users take nothing pays for it when memory is used up: with its own
// streams, on whichever link they are and whoever receives. Others keep all of theirs,
// and so does the link itself.
// Whoever keeps many streams of which each holds less than everybody may is not spared
// for that when nobody takes anything from them.
func TestManySmallStreamsThatNobodyReadsAreNoWayAroundTheBudget(t *testing.T) {
	const limit = 8 << 20
	budget := link.NewBudget(limit)
	agent, relay := receiving(t, budget)
	var writing sync.WaitGroup
	for range 128 {
		_, far := streams(t, agent, relay)
		writing.Go(func() { _, _ = far.Write(make([]byte, 255<<10)) })
	}
	writing.Wait()
	// Somebody else's data comes now and then; without any there is no hurry.
	near, far := streams(t, agent, relay)
	tick, stop := time.NewTicker(20*time.Millisecond), make(chan struct{})
	defer tick.Stop()
	defer close(stop)
	go func() {
		for {
			if _, err := far.Write(make([]byte, 1<<10)); err != nil {
				return
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	var taken atomic.Int64
	go func() {
		for p := make([]byte, 1<<10); ; {
			n, err := near.Read(p)
			if taken.Add(int64(n)); err != nil {
				return
			}
		}
	}()
	eventually(t, "what waits fits into the budget", func() bool { return budget.Used() <= limit/8*7 })
	before := taken.Load()
	eventually(t, "who reads goes on", func() bool { return taken.Load() > before+10<<10 })
}

func TestTheHeaviestPays(t *testing.T) {
	budget := link.NewBudget(8 << 20)
	var mu sync.Mutex
	relieved := map[link.Owner]int{}
	budget.Relieved = func(r link.Relief) {
		mu.Lock()
		defer mu.Unlock()
		relieved[r.Owner] += r.Streams
	}
	hostile := link.Owner{Tenant: "hostile", Agent: "gpu", Tunnel: "endless"}
	calm := link.Owner{Tenant: "hostile", Agent: "gpu", Tunnel: "calm"}
	other := link.Owner{Tenant: "other", Agent: "gpu", Tunnel: "theirs"}
	clientA, serverA := receiving(t, budget)
	clientB, serverB := receiving(t, budget)
	var wg sync.WaitGroup
	fill := func(far *link.Stream, n int) {
		wg.Go(func() { _, _ = far.Write(make([]byte, n)) })
	}
	var kept []*link.Stream
	keep := func(o link.Owner, client, server *link.Link) {
		near, far := streamOf(t, o, client, server)
		kept = append(kept, near)
		fill(far, 200<<10)
	}
	keep(link.Owner{}, clientA, serverA) // a control stream, beside the flood
	keep(link.Owner{}, clientB, serverB)
	keep(calm, clientA, serverA)
	keep(other, clientB, serverB)
	eventually(t, "they hold what they got", func() bool { return budget.Used() >= 800<<10 })
	const streams = 40 // of 256 KiB at least: more than there is
	told := make(chan error, streams)
	given := 0
	var stuck []*link.Stream
	for range streams {
		near, far := streamOf(t, hostile, clientA, serverA)
		near.OnGivenUp(func(err error) { told <- err })
		stuck = append(stuck, near)
		fill(far, 1<<20)
	}
	for range streams/4 - 2 {
		if err := <-told; !errors.Is(err, link.ErrMemory) {
			t.Errorf("a stream was given up for %v; want link.ErrMemory", err)
		}
	}
	if n := budget.Used(); n > 8<<20 {
		t.Errorf("%d bytes wait, more than the budget", n)
	}
	// The other tenant receives now, and is the one that finds the memory full.
	near, far := streamOf(t, other, clientB, serverB)
	wg.Go(func() { _, _ = far.Write(make([]byte, 32<<20)); _ = far.CloseWrite() })
	if b, err := io.ReadAll(near); err != nil || len(b) != 32<<20 {
		t.Errorf("the other tenant got %d bytes of its download, %v", len(b), err)
	}
	for i, s := range kept {
		if _, err := io.ReadFull(s, make([]byte, 200<<10)); err != nil {
			t.Errorf("stream %d, which held less than anybody may, got %v", i, err)
		}
	}
	for _, s := range stuck {
		if _, err := s.Write([]byte("x")); errors.Is(err, link.ErrMemory) {
			given++
		}
	}
	t.Logf("%d of %d streams were given up, %d KiB wait", given, streams, budget.Used()>>10)
	mu.Lock()
	if len(relieved) != 1 || relieved[hostile] != given {
		t.Errorf("given up: %v, %d in all; want those of %v only", relieved, given, hostile)
	}
	mu.Unlock()
	links := []*link.Link{clientA, serverA, clientB, serverB}
	for _, l := range links {
		if err := l.Err(); err != nil {
			t.Errorf("a link ended: %v", err)
		}
	}
	for _, l := range links {
		_ = l.Close(errTest)
	}
	wg.Wait()
	if n := budget.Used(); n != 0 {
		t.Errorf("%d bytes of dead links count", n)
	}
}

// What readers and writers have in hand counts too: a user who takes nothing holds
// the buffer that is being written to it.
func TestBuffersInHandCount(t *testing.T) {
	budget := link.NewBudget(64 << 20)
	client, server := receiving(t, budget)
	near, far := streamOf(t, somebody, client, server)
	mustWrite(t, far, "unread")
	eventually(t, "unread data counts", func() bool { return budget.Used() == 6 })
	if n, err := near.Read(make([]byte, 64<<10)); n != 6 || err != nil {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	if n := budget.Used(); n != 64<<10 {
		t.Errorf("%d bytes count while the reader has its buffer in hand; want 64 KiB", n)
	}
	near.Watch(func() {})
	if n := budget.Used(); n != 0 {
		t.Errorf("%d bytes count when nobody reads any more", n)
	}
	near.Unwatch()
	done := make(chan error, 1)
	go func() { _, err := near.Write(make([]byte, 32<<20)); done <- err }()
	eventually(t, "a buffer that waits to be sent counts, and no more than is at hand", func() bool { return budget.Used() == 256<<10 })
	_ = near.Reset()
	<-done
	eventually(t, "nothing counts at the end", func() bool { return budget.Used() == 0 })
}

// A tenant that holds all of the memory in streams too small to be given up opens no
// more.
func TestATenantThatHoldsAllOpensNoMore(t *testing.T) {
	budget := link.NewBudget(1 << 20)
	client, server := receiving(t, budget)
	var wg sync.WaitGroup
	defer wg.Wait()
	var refused error
	for i := range 64 {
		near, err := link.OpenFor(t.Context(), server, somebody, hello())
		if err != nil {
			refused = err
			break
		}
		far, err := client.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, far, string(make([]byte, 200<<10)))
		eventually(t, "it has arrived", func() bool { return budget.Used() >= int64(i+1)*200<<10 })
		_ = near
	}
	if !errors.Is(refused, link.ErrMemory) {
		t.Errorf("one stream more gives %v; want link.ErrMemory", refused)
	}
	if _, err := link.OpenFor(t.Context(), server, link.Owner{Tenant: "another"}, hello()); err != nil {
		t.Errorf("another tenant opens a stream: %v", err)
	}
}

func TestBudgetForgetsADeadLink(t *testing.T) {
	budget := link.NewBudget(64 << 20)
	client, server := tcpPair(t, link.Config{Budget: budget})
	_, far := streams(t, client, server)
	mustWrite(t, far, "unread")
	eventually(t, "unread data counts", func() bool { return budget.Used() == 6 })
	_ = server.Close(errTest)
	_ = client.Close(errTest)
	if n := budget.Used(); n != 0 {
		t.Errorf("%d bytes of dead links count", n)
	}
}
