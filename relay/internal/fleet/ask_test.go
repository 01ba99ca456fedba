package fleet_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// use has somebody use the session's tunnel through a relay.
func use(t *testing.T, r *relay, from string, bytesIn, bytesOut int) {
	t.Helper()
	u, err := r.meter.Begin(t.Context(), session, party(from), usage.WebSocket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.End)
	u.In(bytesIn)
	u.Out(bytesOut)
}

// party is Alice for one address, somebody who is not known for all others.
func party(from string) usage.Party {
	p := usage.Party{Remote: netip.MustParseAddr(from)}
	if from == "192.0.2.1" {
		p.User, p.Name = "u-alice", "Alice"
	}
	return p
}

func TestProbe(t *testing.T) {
	for name, c := range map[string]struct {
		here, there string
		holder      ident.RelayID
		want        string // the app; empty: the agent is away
	}{
		"the agent is here":             {here: "jupyter", there: "comfyui", holder: "b", want: "jupyter"},
		"the agent is at another relay": {there: "comfyui", holder: "b", want: "comfyui"},
		"the agent is nowhere":          {there: "comfyui"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool("a", "b")
			p.relays["a"].app, p.relays["b"].app, p.holder = c.here, c.there, c.holder
			got, err := p.relays["a"].Probe(t.Context(), key, wire.Probe{Port: 8188})
			if got.App != c.want || errors.Is(err, fleet.ErrAway) != (c.want == "") {
				t.Errorf("it found %q, %v, want %q", got.App, err, c.want)
			}
		})
	}
	r := alone()
	r.pool.holder = "b"
	if _, err := r.Probe(t.Context(), key, wire.Probe{}); !errors.Is(err, fleet.ErrAway) {
		t.Errorf("a relay that is alone asks another: %v", err)
	}
}

// Figures are those of all relays that answer in time.
func TestTotalsAreSummedUp(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := newPool("a", "b", "c", "d")
		use(t, p.relays["a"], "192.0.2.1", 1, 10)
		time.Sleep(time.Minute)
		use(t, p.relays["b"], "192.0.2.2", 2, 20)
		use(t, p.relays["c"], "192.0.2.3", 4, 40)
		last := time.Now()
		use(t, p.relays["d"], "192.0.2.4", 8, 80)
		p.silent["d"] = true
		start := time.Now()
		got := p.relays["a"].Totals(t.Context(), []ident.SessionID{session})
		if s := got[session]; len(got) != 1 || s.Viewers != 3 || s.BytesIn != 7 || s.BytesOut != 70 || s.LastUsed.Before(last) {
			t.Errorf("the sum is %+v", got)
		}
		use(t, p.relays["b"], "192.0.2.1", 0, 0)
		if s := p.relays["c"].Totals(t.Context(), []ident.SessionID{session})[session]; !slices.Equal(s.Names, []string{"Alice"}) {
			t.Errorf("it is used by %q, want Alice, who came by two relays", s.Names)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %s beside a relay that does not answer", took)
		}
		var remotes []string
		for _, v := range p.relays["a"].Viewers(t.Context(), session) {
			remotes = append(remotes, v.RemoteAddr)
		}
		if remotes[0] != "192.0.2.1" || len(remotes) != 4 {
			t.Errorf("the viewers are %v, of whom 192.0.2.1 was first", remotes)
		}
		if got := p.relays["a"].Totals(t.Context(), nil); len(got) != 0 {
			t.Errorf("nothing was asked, and %v answered", got)
		}
	})
}

// Whoever is sent away stays out on every relay, wherever it was seen.
func TestKickIsForAllRelays(t *testing.T) {
	for _, seen := range []ident.RelayID{"a", "b"} {
		p := newPool("a", "b", "c")
		use(t, p.relays[seen], "192.0.2.1", 0, 0)
		viewers := p.relays["a"].Viewers(t.Context(), session)
		if len(viewers) != 1 {
			t.Fatalf("seen at %s: %v", seen, viewers)
		}
		if who, ok := p.relays["a"].Kick(t.Context(), session, viewers[0].ViewerID); !ok || who.User != "u-alice" || who.Name != "Alice" {
			t.Errorf("seen at %s: %+v was kicked (%v)", seen, who, ok)
		}
		for id, r := range p.relays {
			if _, err := r.meter.Begin(t.Context(), session, party("192.0.2.1"), usage.HTTP); !errors.Is(err, usage.ErrKicked) {
				t.Errorf("seen at %s, it gets in at %s: %v", seen, id, err)
			}
			u, err := r.meter.Begin(t.Context(), session, party("192.0.3.1"), usage.HTTP)
			if err != nil {
				t.Errorf("another one is kept out at %s: %v", id, err)
				continue
			}
			u.End()
		}
		if slices.ContainsFunc(p.relays["a"].Viewers(t.Context(), session), func(v api.Viewer) bool { return v.RemoteAddr == "192.0.2.1" }) {
			t.Error("it is in the list still")
		}
		if _, ok := p.relays["a"].Kick(t.Context(), session, "v-unknown"); ok {
			t.Error("nobody was kicked")
		}
	}
}
