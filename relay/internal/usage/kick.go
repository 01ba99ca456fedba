package usage

import (
	"net/netip"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/caller"
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
			p.Name = v.name
			return p, true
		}
	}
	return Party{}, false
}

// place is where a kicked viewer stays out. Of a person who is known that is wherever they
// come from, by whatever way. Of one who is not it is their network, by the way they came
// in: what else a viewer says of itself, its user agent above all, it can change at will.
// Who is not known either and behind the same address is kept out with it, unless they have
// a named link of their own: that is another way in.
type place struct {
	network netip.Addr
	link    ident.LinkID
	user    ident.UserID
}

func (p Party) place() place {
	if p.User != "" {
		return place{user: p.User}
	}
	return place{network: caller.Network(p.Remote), link: p.Link}
}

// Kick ends all that a viewer has open on a tunnel and refuses its place for
// some minutes: it holds the link and would be back at once. The link itself stays
// valid for others, and for the same person from elsewhere; to take it back, close the
// tunnel or revoke the named link. It reports whether there was such a viewer.
func (m *Meter) Kick(id ident.SessionID, viewer ident.ViewerID) bool {
	party, ok := m.PartyOf(id, viewer)
	if ok {
		m.KickParty(id, party)
		m.metrics.kicked.Inc()
	}
	return ok
}

// KickParty is Kick for a party that another relay knows: it ends what its place has
// open here and refuses it from now on, also when it was never here before.
func (m *Meter) KickParty(id ident.SessionID, party Party) {
	s := m.findOrMake(id)
	at := party.place()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kicked == nil {
		s.kicked = map[place]time.Time{}
	}
	s.kicked[at] = time.Now().Add(blocked)
	for u := range s.uses {
		if u.viewer.place == at {
			u.cancel(ErrKicked)
		}
	}
	for p, v := range s.viewers {
		if v.place == at {
			delete(s.viewers, p) // what it still has open ends now
		}
	}
}
