package gate

import (
	"maps"
	"slices"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// An agent may have links to several relays at once. One of them, Record.Relay,
// tends its tunnels; Record.Also has the others that carry bytes to it or may still
// do so: those that joined the present generation, and those that held an earlier
// one and have not said that their link is gone. A relay is in the record before
// its link is used and leaves it after, so whoever removes a closing tunnel knows
// all that must have cut it first.

// Join adds a relay to an agent's session: a further link of the same process.
func (s *Step) Join(c Claim) error {
	r := s.Record
	if r.Epoch != c.Seen || r.Instance != c.Instance || r.Instance == "" {
		return superseded()
	}
	_ = s.Expire()
	if r.Relay != c.Relay {
		s.also(c.Relay, r.Epoch)
	}
	// It is written also when it changes nothing: a Leave that goes on at the same
	// time then sees that it was overtaken.
	return nil
}

// Leave takes out a relay that has no link of the agent any more. If it was the one
// that tends the agent, another that joined the session takes over; handed says
// whether one has the agent now.
func (s *Step) Leave(relay ident.RelayID, epoch uint64) (handed bool, err error) {
	r := s.Record
	_, listed := r.Also[relay]
	if r.Relay != relay {
		if !listed {
			return r.Epoch == epoch, errUnchanged
		}
		s.notAlso(relay)
		return true, nil
	}
	for _, id := range sortedKeys(r.Also) {
		if r.Also[id] == r.Epoch && !s.isGone(id) {
			s.notAlso(id)
			r.Relay = id
			return true, nil
		}
	}
	return false, errUnchanged
}

// Adopt makes a relay that joined the session the one that tends the agent, when
// the one that did is gone. That one stays among the others: it may count as gone
// for longer than it takes to be missing.
func (s *Step) Adopt(relay ident.RelayID, epoch uint64) error {
	r := s.Record
	if r.Epoch != epoch || r.Relay == relay || r.Also[relay] != epoch {
		return errUnchanged
	}
	old := r.Relay
	s.notAlso(relay)
	s.also(old, 0)
	r.Relay = relay
	return nil
}

func (s *Step) also(id ident.RelayID, epoch uint64) {
	also := maps.Clone(s.Record.Also) // may be shared with other copies of the record
	if also == nil {
		also = make(map[ident.RelayID]uint64, 1)
	}
	also[id] = epoch
	s.Record.Also = also
}

func (s *Step) notAlso(id ident.RelayID) {
	also := maps.Clone(s.Record.Also)
	delete(also, id)
	if len(also) == 0 {
		also = nil
	}
	s.Record.Also = also
}

// move notes that the agent's new generation is at a relay: the one that had the
// last may carry bytes until it has heard of that.
func (s *Step) move(to ident.RelayID) {
	r := s.Record
	if r.Relay != "" && r.Relay != to && !s.isGone(r.Relay) {
		s.also(r.Relay, r.Epoch)
	}
	for _, id := range sortedKeys(r.Also) {
		if id == to || s.isGone(id) {
			s.notAlso(id)
		}
	}
}

func (s *Step) isGone(id ident.RelayID) bool { return s.Gone != nil && s.Gone(id) }

// cut notes that this relay carries nothing of a closing tunnel any more, and says
// whether that is so of all relays that may have.
func (s *Step) cut(t *store.TunnelState) (everywhere, changed bool) {
	if s.Relay == "" || len(s.Record.Also) == 0 && s.Record.Relay == s.Relay {
		return true, false
	}
	if !slices.Contains(t.Cut, s.Relay) {
		t.Cut, changed = append(slices.Clone(t.Cut), s.Relay), true
	}
	done := func(id ident.RelayID) bool { return id == "" || slices.Contains(t.Cut, id) || s.isGone(id) }
	if !done(s.Record.Relay) {
		return false, changed
	}
	for id := range s.Record.Also {
		if !done(id) {
			return false, changed
		}
	}
	return true, changed
}
