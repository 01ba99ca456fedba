package gate_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
)

func TestHardEndIdleEndAndWarnings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a, b := p.relay("a", 0, gate.Limits{}), p.relay("b", 0, gate.Limits{})
		p.connect(a, "a", 1)
		var mu sync.Mutex
		var heard []string
		start := time.Now()
		note := func(n gate.Notice) {
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, fmt.Sprintf("%s %.0f %s", n.Kind, time.Since(start).Seconds(), n.Session[:4]))
		}
		defer a.Hear(note)()
		hard := a.open(t, gate.OpenSpec{Port: 1, ExpiresIn: 10 * time.Minute, IdleTimeout: time.Hour})
		idle := a.open(t, gate.OpenSpec{Port: 2, ExpiresIn: 24 * time.Hour, IdleTimeout: 5 * time.Minute})
		far := a.open(t, gate.OpenSpec{Port: 3, ExpiresIn: 24 * time.Hour, IdleTimeout: 5 * time.Minute})
		if why := a.ClosesBecause(idle.Tunnel); !strings.Contains(why, "idle since") {
			t.Errorf("closes_because is %q", why)
		}
		if why := a.ClosesBecause(hard.Tunnel); !strings.Contains(why, "hard end") {
			t.Errorf("closes_because is %q", why)
		}
		for range 12 { // used through the relay that does not hold the agent
			b.local.Use(far.Tunnel.Session)
			time.Sleep(time.Minute)
		}
		for o, want := range map[*gate.Opened]store.Reason{&hard: store.ReasonExpired, &idle: store.ReasonIdle} {
			if got, _ := a.local.WasCut(o.Tunnel.Session); got != want {
				t.Errorf("cut because %q, want %q", got, want)
			}
			if _, ok := p.store.Tunnel(o.Tunnel.Session); ok {
				t.Error("its record is still there")
			}
		}
		if _, ok := a.local.WasCut(far.Tunnel.Session); ok {
			t.Error("a tunnel in use through another relay was closed as idle")
		}
		if n := p.store.Writes(); n > 12 {
			t.Errorf("%d writes to the agent's record", n)
		}
		mu.Lock()
		want := []string{
			"tunnel_closing 270 " + string(idle.Tunnel.Session[:4]), "tunnel_closed 300 " + string(idle.Tunnel.Session[:4]),
			"tunnel_closing 540 " + string(hard.Tunnel.Session[:4]), "tunnel_closed 600 " + string(hard.Tunnel.Session[:4]),
		}
		if !slices.Equal(heard, want) {
			t.Errorf("heard %q\nwant  %q", heard, want)
		}
		mu.Unlock()
		time.Sleep(6 * time.Minute)
		if _, ok := a.local.WasCut(far.Tunnel.Session); !ok {
			t.Error("nobody uses it any more and it is still open")
		}
		time.Sleep(10 * time.Second)
		if _, err := a.admit(t, "t", time.Minute); err != nil {
			t.Errorf("all tunnels are gone: %v", err)
		}
	})
}

func TestAnIdleEndThatTheStoreDidNotTakeIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a := p.relay("a", 0, gate.Limits{})
		p.connect(a, "a", 1)
		o := a.open(t, gate.OpenSpec{Port: 1, ExpiresIn: time.Hour, IdleTimeout: 5 * time.Minute})
		p.store.SetDown(true)
		time.Sleep(6 * time.Minute)
		if _, ok := a.local.WasCut(o.Tunnel.Session); ok {
			t.Error("an idle tunnel was cut although the store does not say that it closes")
		}
		p.store.SetDown(false)
		time.Sleep(2 * time.Second)
		if got, _ := a.local.WasCut(o.Tunnel.Session); got != store.ReasonIdle {
			t.Errorf("with the store back it was cut because %q, want %q", got, store.ReasonIdle)
		}
	})
}

// A relay that was just started knows nothing of earlier use.
// Whoever was told that the tunnel is extended keeps it, also when another relay has just
// decided that it is idle. An extension to an end that is earlier moves no end.
func TestExtendingIsInTimeUntilTheCloseIsWritten(t *testing.T) {
	for name, by := range map[string]time.Duration{"a later end": 48 * time.Hour, "no later end": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t)
				a, b := p.relay("a", 0, gate.Limits{}), p.relay("b", 0, gate.Limits{})
				p.connect(a, "a", 1)
				o := a.open(t, gate.OpenSpec{Port: 1, ExpiresIn: 24 * time.Hour, IdleTimeout: 10 * time.Minute})
				extend := func() {
					if _, err := b.Extend(t.Context(), "x", box, o.Tunnel.Session, by); err != nil {
						t.Errorf("extend: %v", err)
					}
				}
				a.before.Store(&extend) // a's next change is the close
				time.Sleep(11 * time.Minute)
				if a.before.Load() != nil {
					t.Fatal("nothing was about to be closed")
				}
				if why, cut := a.local.WasCut(o.Tunnel.Session); cut {
					t.Errorf("it was extended, and closed because %q", why)
				}
				time.Sleep(10 * time.Minute)
				if why, _ := a.local.WasCut(o.Tunnel.Session); why != store.ReasonIdle {
					t.Errorf("unused for its idle time after that, it was cut because %q", why)
				}
			})
		})
	}
}

func TestRestartDoesNotCloseWhatWasUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a := p.relay("a", 0, gate.Limits{})
		p.connect(a, "a", 1)
		o := a.open(t, gate.OpenSpec{Port: 1, IdleTimeout: 10 * time.Minute})
		time.Sleep(5 * time.Minute)
		a.local.Use(o.Tunnel.Session)
		time.Sleep(2 * time.Minute)
		a.stop()
		time.Sleep(5 * time.Minute)
		p.relay("a", 0, gate.Limits{})
		time.Sleep(9 * time.Minute)
		if _, ok := p.store.Tunnel(o.Tunnel.Session); !ok {
			t.Error("closed sooner than its idle time after the restart")
		}
		time.Sleep(2 * time.Minute)
		if _, ok := p.store.Tunnel(o.Tunnel.Session); ok {
			t.Error("not closed")
		}
	})
}

func TestExtendMovesTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a := p.relay("a", 0, gate.Limits{MaxExpiresIn: time.Hour})
		p.connect(a, "a", 1)
		o := a.open(t, gate.OpenSpec{Port: 1, ExpiresIn: 10 * time.Minute, IdleTimeout: time.Hour})
		id := o.Tunnel.Session
		if end, err := a.Extend(t.Context(), "x", box, id, time.Minute); err != nil || !end.Equal(o.Tunnel.ExpiresAt) {
			t.Errorf("an extension shortened the tunnel: %v, %v", end, err)
		}
		time.Sleep(9 * time.Minute)
		end, err := a.Extend(t.Context(), "x", box, id, 100*time.Hour)
		if err != nil || time.Until(end) != time.Hour {
			t.Fatalf("extended to %v: %v; want the cap of an hour", end, err)
		}
		if rec, _ := p.store.Tunnel(id); !rec.ExpiresAt.Equal(end) {
			t.Errorf("the tunnel's own record ends at %v", rec.ExpiresAt)
		}
		time.Sleep(30 * time.Minute)
		if _, ok := a.local.WasCut(id); ok {
			t.Error("cut at its old end")
		}
		time.Sleep(31 * time.Minute)
		if _, ok := a.local.WasCut(id); !ok {
			t.Error("not cut at its new end")
		}
		_, err = a.Extend(t.Context(), "x", box, id, time.Hour)
		wantCode(t, err, "tunnel_not_found")
	})
}

// A change that landed although the store did not answer is in the audit all the
// same, once it is known.
func TestAChangeWithoutAnAnswerIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a := p.relay("a", 0, gate.Limits{})
		p.connect(a, "a", 1)
		p.store.SetMute(true)
		_, err := a.Open(t.Context(), user, box, gate.OpenSpec{Port: 1, ExpiresIn: time.Hour, IdleTimeout: time.Hour})
		if code(err) != "store_unavailable" {
			t.Errorf("the caller is told %v, expected that the store does not answer", err)
		}
		p.store.SetMute(false)
		synctest.Wait()
		if !slices.Contains(a.audit.Events(), audit.TunnelOpened) {
			t.Errorf("the opening landed, and the audit has only %v", a.audit.Events())
		}
	})
}
