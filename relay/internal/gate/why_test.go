package gate_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Every relay of a pool knows why a tunnel ended, one that starts afterwards too.
func TestEveryRelayKnowsWhyATunnelEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a, b := p.relay("a", 0, gate.Limits{}), p.relay("b", 0, gate.Limits{})
		p.connect(a, "a", 1)
		spec := func(port uint16, expires, idle time.Duration) gate.OpenSpec {
			return gate.OpenSpec{Port: port, Protocol: api.ProtocolTCP, ExpiresIn: expires, IdleTimeout: idle}
		}
		closed, revoked := a.open(t, spec(1, time.Hour, 0)).Tunnel.Session, a.open(t, spec(2, time.Hour, 0)).Tunnel.Session
		removed := a.open(t, spec(6, time.Hour, 0)).Tunnel.Session
		expired, idle := a.open(t, spec(3, time.Minute, 0)).Tunnel.Session, a.open(t, spec(4, time.Hour, 90*time.Second)).Tunnel.Session
		synctest.Wait()
		if e, ok := b.Why(closed); ok {
			t.Errorf("an open tunnel is over: %s", e)
		}
		time.Sleep(2 * time.Minute)
		for id, reason := range map[ident.SessionID]store.Reason{closed: store.ReasonAsked, revoked: store.ReasonRevoked, removed: store.ReasonRemoved} {
			if _, err := b.Close(t.Context(), "user:alice", box, []ident.SessionID{id}, false, reason); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		late := p.relay("c", 0, gate.Limits{})
		for id, want := range map[ident.SessionID]string{
			closed: "the tunnel was closed", expired: "the tunnel expired", idle: "the tunnel was closed: nobody used it for 1m30s",
			revoked: "the tunnel was closed: the credential that opened it was revoked",
			removed: "the tunnel was closed: the person who opened it was removed from the team",
		} {
			for name, r := range map[string]*relay{"a": a, "b": b} {
				if e, ok := r.Why(id); !ok || e.String() != want || e.Key != box || e.Protocol != api.ProtocolTCP {
					t.Errorf("relay %s says %q %v, want %q", name, e, ok, want)
				}
			}
			if id == idle {
				want = "the tunnel was closed: nobody used it"
			}
			if e, ok := late.Why(id); !ok || e.String() != want {
				t.Errorf("a relay that starts later says %q %v, want %q", e, ok, want)
			}
		}
		if _, ok := a.Why(ident.NewSessionID()); ok {
			t.Error("a tunnel that never was is no tunnel that ended")
		}
		time.Sleep(11 * time.Minute)
		if e, ok := a.Why(closed); ok {
			t.Errorf("it is remembered for longer than 10 minutes: %s", e)
		}
		again := a.open(t, spec(5, time.Hour, 0))
		if rec, _ := p.store.Agent(box); len(rec.Ended) != 0 || len(rec.Closed) != 5 {
			t.Errorf("the agent's record is not kept small: %v", rec.Ended)
		}
		if _, err := a.Close(t.Context(), "user:alice", box, []ident.SessionID{again.Tunnel.Session}, false, store.ReasonAsked); err != nil {
			t.Fatal(err)
		}
	})
}

// A relay of the last release drops what it does not know of an agent's record: the
// others go by what they saw while the tunnel was closing.
func TestAnOldRelayForgetsTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a := p.relay("a", 0, gate.Limits{})
		p.connect(a, "a", 1)
		o := a.open(t, gate.OpenSpec{Port: 1, ExpiresIn: time.Hour})
		synctest.Wait()
		if _, err := a.Close(t.Context(), "user:alice", box, nil, true, store.ReasonAsked); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := p.store.UpdateAgent(t.Context(), box, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
			r.Ended = nil
			return store.Effects{}, nil
		}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if e, ok := a.Why(o.Tunnel.Session); !ok || e.String() != "the tunnel was closed" {
			t.Errorf("says %q %v", e, ok)
		}
		if e, ok := p.relay("b", 0, gate.Limits{}).Why(o.Tunnel.Session); ok {
			t.Errorf("a relay that cannot know says %q", e)
		}
	})
}
