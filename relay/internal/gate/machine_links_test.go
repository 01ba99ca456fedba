package gate_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// linkModel says in plain words who has a link to one agent: truly, and not as the
// record has it. A relay's link is of the generation that it was admitted with, and
// carries bytes of a tunnel until the relay cuts that tunnel or the link ends.
type linkModel struct {
	epoch uint64
	links map[ident.RelayID]uint64                   // by relay: the generation of its link
	cut   map[ident.SessionID]map[ident.RelayID]bool // cut by a relay whose link lives
	dead  map[ident.RelayID]bool                     // its process is gone, and its lease with it
	open  map[ident.SessionID]bool                   // true: open; false: closing
}

// carries lists the relays that may move bytes of a tunnel now.
func (m *linkModel) carries(id ident.SessionID) (out []ident.RelayID) {
	for r := range m.links {
		if !m.cut[id][r] {
			out = append(out, r)
		}
	}
	slices.Sort(out)
	return out
}

// TestLinksAgainstAModel runs random histories of an agent whose links go to three
// relays: they join, leave, are adopted, are superseded, and die. Whatever happens, a
// closing tunnel is removed only when no relay carries its bytes, and it is removed
// in the end.
func TestLinksAgainstAModel(t *testing.T) {
	relays := []ident.RelayID{"a", "b", "c"}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		m := &linkModel{links: map[ident.RelayID]uint64{}, cut: map[ident.SessionID]map[ident.RelayID]bool{}, dead: map[ident.RelayID]bool{}, open: map[ident.SessionID]bool{}}
		rec := store.AgentRecord{}
		removed := func(before store.AgentRecord) {
			for id := range before.Tunnels {
				if _, ok := rec.Tunnels[id]; ok {
					continue
				}
				if who := m.carries(id); len(who) > 0 {
					t.Fatalf("tunnel %s is out of the record while %v may carry its bytes; record before: relay %s, also %v", id[:2], who, before.Relay, before.Also)
				}
				delete(m.open, id)
			}
		}
		apply := func(by ident.RelayID, f func(s *gate.Step) error) error {
			next := rec.Clone()
			s := &gate.Step{Record: &next, Now: now, Skew: skew, Relay: by, Gone: func(id ident.RelayID) bool { return m.dead[id] }}
			if err := f(s); err != nil {
				return err
			}
			before := rec
			rec = next
			removed(before)
			return nil
		}
		finish := func(by ident.RelayID, ids []ident.SessionID) {
			for _, id := range ids { // a relay cuts before it says so
				if m.cut[id] == nil {
					m.cut[id] = map[ident.RelayID]bool{}
				}
				m.cut[id][by] = true
			}
			if err := apply(by, func(s *gate.Step) error { return s.FinishClose(ids) }); err != nil && code(err) != "unchanged" {
				t.Fatalf("finish: %v", err)
			}
		}
		closing := func() (ids []ident.SessionID) {
			for id, open := range m.open {
				if !open {
					ids = append(ids, id)
				}
			}
			slices.Sort(ids)
			return ids
		}
		alive := func(t *rapid.T) ident.RelayID {
			r := rapid.SampledFrom(relays).Draw(t, "relay")
			if m.dead[r] {
				t.Skip("it is dead")
			}
			return r
		}
		t.Repeat(map[string]func(*rapid.T){
			"connect": func(t *rapid.T) { // a new generation; others hear of it later
				r := alive(t)
				var epoch uint64
				if err := apply(r, func(s *gate.Step) (err error) {
					epoch, err = s.Connect(gate.Claim{Relay: r, Instance: "i", Seen: m.epoch})
					return err
				}); err != nil {
					t.Fatalf("connect: %v", err)
				}
				m.epoch, m.links[r] = epoch, epoch
			},
			"join": func(t *rapid.T) {
				r := alive(t)
				seen := m.epoch - uint64(rapid.IntRange(0, 1).Draw(t, "behind"))
				err := apply(r, func(s *gate.Step) error { return s.Join(gate.Claim{Relay: r, Instance: "i", Seen: seen}) })
				switch {
				case err == nil && (seen != m.epoch || m.epoch == 0):
					t.Fatalf("joined generation %d, it is %d", seen, m.epoch)
				case err == nil:
					m.links[r] = m.epoch
				case seen == m.epoch && m.epoch > 0:
					t.Fatalf("join: %v", err)
				case !errors.Is(err, gate.ErrSuperseded):
					t.Fatalf("a link of an older generation is refused with %v", err)
				}
			},
			"leave": func(t *rapid.T) { // the link is gone before the relay says so
				r := alive(t)
				epoch, had := m.links[r]
				if !had {
					t.Skip("it has no link")
				}
				delete(m.links, r)
				var handed bool
				err := apply(r, func(s *gate.Step) (err error) {
					handed, err = s.Leave(r, epoch)
					return err
				})
				if err != nil && code(err) != "unchanged" {
					t.Fatalf("leave: %v", err)
				}
				if err == nil && handed && rec.Relay == r {
					t.Fatalf("%s left and handed over, and still is the first", r)
				}
				if err == nil && rec.Also[r] != 0 {
					t.Fatalf("%s left and is still among %v", r, rec.Also)
				}
			},
			"superseded": func(t *rapid.T) { // a relay hears of a newer generation and drops its link
				r := alive(t)
				epoch, had := m.links[r]
				if !had || epoch == m.epoch {
					t.Skip("its link is of the present generation")
				}
				delete(m.links, r)
				_ = apply(r, func(s *gate.Step) error { _, err := s.Leave(r, epoch); return err })
			},
			"adopt": func(t *rapid.T) {
				r := alive(t)
				if !m.dead[rec.Relay] || m.links[r] != m.epoch {
					t.Skip("nobody is to be adopted")
				}
				if err := apply(r, func(s *gate.Step) error { return s.Adopt(r, m.epoch) }); err != nil && code(err) != "unchanged" {
					t.Fatalf("adopt: %v", err)
				}
				if _, listed := rec.Also[r]; rec.Relay == r && listed {
					t.Fatalf("%s is the first and among the others", r)
				}
			},
			"die": func(t *rapid.T) {
				r := alive(t)
				m.dead[r] = true
				delete(m.links, r) // its lease is over: it carries nothing since
			},
			"start again": func(t *rapid.T) {
				r := rapid.SampledFrom(relays).Draw(t, "relay")
				delete(m.dead, r)
			},
			"open": func(t *rapid.T) {
				id := ident.SessionID(fmt.Sprintf("%032d", rapid.IntRange(0, 2).Draw(t, "tunnel")))
				if _, there := m.open[id]; there || slices.Contains(rec.Closed, id) {
					t.Skip("it was there")
				}
				if err := apply(alive(t), func(s *gate.Step) error {
					_, _, err := s.Open(gate.Opening{Tunnel: store.TunnelRecord{Session: id, ExpiresAt: now.Add(time.Hour)}})
					return err
				}); err != nil {
					t.Fatalf("open: %v", err)
				}
				m.open[id], m.cut[id] = true, map[ident.RelayID]bool{}
			},
			"begin close": func(t *rapid.T) {
				if err := apply(alive(t), func(s *gate.Step) error { _, err := s.BeginClose(nil, true, "asked"); return err }); err != nil {
					t.Skip("nothing is open")
				}
				for id := range m.open {
					m.open[id] = false
				}
			},
			"finish close": func(t *rapid.T) {
				ids := closing()
				if len(ids) == 0 {
					t.Skip("nothing closes")
				}
				finish(alive(t), ids)
			},
			"": func(t *rapid.T) {
				if rec.Epoch != m.epoch {
					t.Fatalf("generation %d, should be %d", rec.Epoch, m.epoch)
				}
				for r, epoch := range m.links { // who has a link is in the record
					if _, also := rec.Also[r]; rec.Relay != r && !also {
						t.Fatalf("%s has a link of generation %d, and the record has %s and %v", r, epoch, rec.Relay, rec.Also)
					}
				}
			},
		})
		// When all living relays have looked, what closes is closed.
		ids := closing()
		for range 2 {
			for _, r := range relays {
				if !m.dead[r] {
					finish(r, ids)
				}
			}
		}
		allDead := len(m.dead) == len(relays)
		if left := slices.Collect(maps.Keys(rec.Tunnels)); !allDead && len(closing()) > 0 {
			t.Fatalf("%d tunnels never close: record relay %s, also %v, dead %v, tunnels %v", len(left), rec.Relay, rec.Also, m.dead, rec.Tunnels)
		}
	})
}
