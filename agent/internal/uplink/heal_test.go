package uplink_test

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/agent/internal/fakerelay"
	"github.com/adit-tunnel/adit/agent/internal/uplink"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/wan"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestDrainMovesAtOnce(t *testing.T) {
	r, other := fakerelay.Start(t), fakerelay.Start(t)
	w := start(t, nil, r.URL)
	c := r.Next()
	testkit.Eventually(t, "the link lives long enough to have been a success", func() bool {
		up := w.up.Status().Up
		return len(up) == 1 && time.Since(up[0].Since) > 1100*time.Millisecond
	})
	c.Goodbye(wire.GoodbyeDrain, "stopping", other.URL)
	moved := other.NextWithin(500 * time.Millisecond)
	if moved.Hello.Generation != c.Generation {
		t.Errorf("the hello at the new relay shows generation %d, not the %d that was seen", moved.Hello.Generation, c.Generation)
	}
}

func TestRelayKilledAndBackAfterASecond(t *testing.T) {
	var late []time.Duration
	for range 3 {
		r := fakerelay.Start(t)
		path := wan.Start(t, r.Addr, wan.Options{})
		w := start(t, nil, "http://"+path.Addr())
		r.Next()
		path.Cut()
		<-time.After(time.Second)
		back := time.Now()
		path.Heal()
		r.Next()
		late = append(late, time.Since(back))
		w.stop()
	}
	slices.Sort(late) // the middle one: this machine has other things to do
	t.Logf("back %v after an outage of one second", late)
	testkit.Took(t, "the agent is back after an outage of one second", late[1], 500*time.Millisecond)
}

func TestLostPeerIsReplacedWithinSeconds(t *testing.T) {
	r := fakerelay.Start(t)
	path := wan.Start(t, r.Addr, wan.Options{})
	w := start(t, nil, "http://"+path.Addr())
	first := r.Next()
	testkit.Eventually(t, "the agent is online", w.up.Online)
	path.Blackhole() // a NAT forgot the connection
	lost := time.Now()
	<-time.After(4 * time.Second)
	path.Heal() // new connections work, the old one never will
	second := r.NextWithin(12 * time.Second)
	t.Logf("a lost peer is replaced after %s", time.Since(lost))
	if second.Hello.Instance != first.Hello.Instance || second.Generation <= first.Generation {
		t.Errorf("the new link is of instance %s, generation %d", second.Hello.Instance, second.Generation)
	}
	testkit.Eventually(t, "one link is left", func() bool { return len(w.up.Status().Up) == 1 && w.up.Epoch() == second.Generation })
}

func TestLinkThatSpeaksAgainIsKept(t *testing.T) {
	r := fakerelay.Start(t)
	path := wan.Start(t, r.Addr, wan.Options{})
	w := start(t, nil, "http://"+path.Addr())
	c := r.Next()
	s := c.Open(wire.Hello{Kind: wire.KindTCP, Port: testkit.ServeTCP(t, echo)})
	defer s.Close()
	roundTrip(t, s)
	path.Freeze() // the cable is pulled: nothing is lost
	<-time.After(5 * time.Second)
	path.Heal()
	roundTrip(t, s) // the stream went on
	if got := w.up.Epoch(); got != c.Generation {
		t.Errorf("the link was replaced: generation %d, not %d", got, c.Generation)
	}
}

func TestGraceful(t *testing.T) {
	r := fakerelay.Start(t)
	w := start(t, func(c *uplink.Config) { c.StopGrace = time.Hour }, r.URL)
	c := r.Next()
	s := c.Open(wire.Hello{Kind: wire.KindTCP, Port: testkit.ServeTCP(t, echo)})
	defer s.Close()
	roundTrip(t, s)
	begun := time.Now()
	w.stop()
	testkit.Took(t, "stopping with an idle stream", time.Since(begun), 20*time.Second)
	c.Expect(wire.TypeGoodbye, func(m wire.Message) bool { return m.Goodbye.Reason == wire.GoodbyeShutdown })
}

func TestStopLetsTransfersFinish(t *testing.T) {
	r := fakerelay.Start(t)
	// The limits are far away: a slow machine's pauses are no end of the transfer.
	w := start(t, func(c *uplink.Config) { c.StopGrace, c.StopQuiet = time.Minute, 20*time.Second }, r.URL)
	c := r.Next()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // takes breaths longer than a look at what moves
		app, err := l.Accept()
		if err != nil {
			return
		}
		defer app.Close()
		for range 3 {
			<-time.After(400 * time.Millisecond)
			_, _ = app.Write(make([]byte, 1000))
		}
	}()
	s := c.Open(wire.Hello{Kind: wire.KindTCP, Port: uint16(l.Addr().(*net.TCPAddr).Port)})
	defer s.Close()
	if err := s.Verdict(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); w.stop() }()
	got, err := io.ReadAll(s)
	if err != nil || len(got) != 3000 {
		t.Errorf("the transfer was cut by the stop: %d bytes, %v", len(got), err)
	}
	<-done
}

func TestKillEndsTheGrace(t *testing.T) {
	r := fakerelay.Start(t)
	kill := make(chan struct{})
	w := start(t, func(c *uplink.Config) { c.Kill, c.StopGrace = kill, time.Hour }, r.URL)
	c := r.Next()
	s := c.Open(wire.Hello{Kind: wire.KindTCP, Port: testkit.ServeTCP(t, echo)})
	defer s.Close()
	stopFlood := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // never idle
		for {
			select {
			case <-stopFlood:
				return
			default:
				if _, err := s.Write([]byte("x")); err != nil {
					return
				}
				if _, err := s.Read(make([]byte, 1)); err != nil {
					return
				}
			}
		}
	})
	time.AfterFunc(800*time.Millisecond, func() { close(kill) })
	w.stop()
	close(stopFlood)
	_ = s.Close()
	wg.Wait()
}

func TestOtherRelayTakesOver(t *testing.T) {
	a, b := fakerelay.Start(t), fakerelay.Start(t)
	path := wan.Start(t, a.Addr, wan.Options{})
	start(t, nil, "http://"+path.Addr(), b.URL)
	a.Next()
	path.Cut()
	lost := time.Now()
	b.Next()
	testkit.Took(t, "the other relay is reached", time.Since(lost), time.Second)
}
