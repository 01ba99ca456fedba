package usage

import (
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// PartyOf returns who a viewer of this relay is.
func (m *Meter) PartyOf(id ident.SessionID, viewer ident.ViewerID) (Party, bool) {
	s := m.find(id)
	if s == nil {
		return Party{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, v := range s.viewers {
		if v.id == viewer {
			return p, true
		}
	}
	return Party{}, false
}

// KickParty is Kick for a party that another relay knows: it ends what the party
// has open here and refuses it from now on, also when it was never here before.
func (m *Meter) KickParty(id ident.SessionID, party Party) {
	s := m.findOrMake(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	v := s.viewers[party]
	if v == nil {
		if len(s.viewers) >= maxViewers {
			s.forgetOne()
		}
		v = &viewer{id: ident.NewViewerID(), since: now}
		s.viewers[party] = v
	}
	v.blocked = now.Add(m.config.Block)
	for u := range s.uses {
		if u.viewer == v {
			u.cancel(ErrKicked)
		}
	}
}
