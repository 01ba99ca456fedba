package uplink_test

import (
	"errors"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/agent/internal/fakerelay"
	"github.com/adit-tunnel/adit/agent/internal/uplink"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// extras are two extra links of an agent at a relay, after its main one.
func extras(t *testing.T) (w *world, r *fakerelay.Relay, main *fakerelay.Conn, all []*fakerelay.Conn) {
	t.Helper()
	r = fakerelay.Start(t)
	w = start(t, func(c *uplink.Config) { c.ExtraLinks, c.ExtraIdle = 2, 50*time.Millisecond }, r.URL)
	main = r.Next()
	testkit.Eventually(t, "the main link is up", w.up.Online)
	if n := len(w.up.Status().Up); n != 1 {
		t.Errorf("an agent without a tunnel has %d links", n)
	}
	a := notice('a', time.Hour)
	r.SetTunnels(a)
	main.Send(wire.Message{Type: wire.TypeTunnelOpened, TunnelOpened: &a})
	return w, r, main, []*fakerelay.Conn{r.Next(), r.Next()}
}

func TestExtraLinksAreThereWhileATunnelIsOpen(t *testing.T) {
	w, r, main, all := extras(t)
	port := testkit.ServeTCP(t, echo)
	for _, c := range all {
		if c.Hello.LinkIndex < 16 || c.Hello.Instance != main.Hello.Instance || c.Generation != main.Generation {
			t.Errorf("an extra link says it is number %d of session %d", c.Hello.LinkIndex, c.Generation)
		}
		s := c.Open(wire.Hello{Kind: wire.KindTCP, Port: port})
		roundTrip(t, s)
		_ = s.Close()
	}
	// One that is lost is made again.
	_ = all[0].Link.Close(errors.New("lost"))
	again := r.Next()
	if again.Hello.LinkIndex != all[0].Hello.LinkIndex || again.Generation != main.Generation {
		t.Errorf("after the loss of link %d came %d, session %d", all[0].Hello.LinkIndex, again.Hello.LinkIndex, again.Generation)
	}
	a := notice('a', time.Hour)
	main.Send(wire.Message{Type: wire.TypeTunnelClosed, TunnelClosed: &a})
	for _, c := range []*fakerelay.Conn{again, all[1]} {
		c.Expect(wire.TypeGoodbye, nil)
	}
	testkit.Eventually(t, "the main link is left alone", func() bool { return len(w.up.Status().Up) == 1 })
}

func TestMainLinkComesBackBesideExtraLinks(t *testing.T) {
	_, r, main, _ := extras(t)
	_ = main.Link.Close(errors.New("lost"))
	again := r.Next()
	if again.Hello.LinkIndex != 0 || !again.Hello.Join {
		t.Errorf("beside living extra links the next is number %d, join %t; want the main one to join their session", again.Hello.LinkIndex, again.Hello.Join)
	}
}

func TestExtraLinksEndWithTheirSession(t *testing.T) {
	w, r, main, all := extras(t)
	r.Admit(func(h wire.AgentHello) (*wire.Welcome, *wire.Goodbye) {
		if h.Join {
			return nil, &wire.Goodbye{Reason: wire.GoodbyeError, Detail: "no such session: the relay was reset"}
		}
		return nil, nil
	})
	_ = main.Link.Close(errors.New("lost"))
	next := r.Next()
	if next.Generation <= main.Generation {
		t.Errorf("a main link that may not join got generation %d", next.Generation)
	}
	for _, c := range all {
		select {
		case <-c.Link.Done():
		case <-time.After(testkit.Patience):
			t.Error("an extra link outlived its session")
		}
	}
	testkit.Eventually(t, "the new session has extra links of its own", func() bool { return len(w.up.Status().Up) == 3 })
}
