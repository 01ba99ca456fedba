package gate_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
)

// Warned of an idle close, a person keeps the tunnel with one call, through any
// relay, also when the hard end would not move by it.
func TestExtendKeepsAnIdleTunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a, b := p.relay("a", 0, gate.Limits{}), p.relay("b", 0, gate.Limits{})
		p.connect(a, "a", 1)
		o := a.open(t, gate.OpenSpec{Port: 1, ExpiresIn: 24 * time.Hour, IdleTimeout: 10 * time.Minute})
		id := o.Tunnel.Session
		time.Sleep(9*time.Minute + 30*time.Second)
		end, err := b.Extend(t.Context(), "x", box, id, time.Minute)
		if err != nil || !end.Equal(o.Tunnel.ExpiresAt) {
			t.Fatalf("extended to %v, %v; want the end as it was, %v", end, err, o.Tunnel.ExpiresAt)
		}
		time.Sleep(9 * time.Minute)
		if _, cut := a.local.WasCut(id); cut {
			t.Error("closed as idle though a person asked to keep it")
		}
		time.Sleep(2 * time.Minute)
		if why, cut := a.local.WasCut(id); !cut || why != store.ReasonIdle {
			t.Errorf("cut: %v (%q); want the idle close ten minutes after the call", cut, why)
		}
	})
}
