package usage

import (
	"errors"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// ErrRevoked is the cause that ends the uses of a named link that is over; an Over of
// it says why.
var ErrRevoked = errors.New("the link is over")

// linkEnd is the end of a named link.
type linkEnd struct {
	at    time.Time
	cause error
}

// CutLink says that a named link of a tunnel is over: it ends all uses that came in
// by it and refuses later ones, while others go on. It returns how many it ended.
func (m *Meter) CutLink(id ident.SessionID, link ident.LinkID, cause error) int {
	if link == "" {
		return 0
	}
	if cause == nil {
		cause = ErrRevoked
	}
	s := m.findOrMake(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.linksOver == nil {
		s.linksOver = map[ident.LinkID]linkEnd{}
	}
	if _, ok := s.linksOver[link]; !ok {
		s.linksOver[link] = linkEnd{time.Now(), cause}
	}
	n := 0
	for u := range s.uses {
		if u.viewer.link == link {
			u.cancel(cause)
			n++
		}
	}
	return n
}

// LinkUse returns how many viewers use a tunnel by a named link now, and when one
// of those remembered was seen last (zero: none).
func (m *Meter) LinkUse(id ident.SessionID, link ident.LinkID) (viewers int, last time.Time) {
	s := m.find(id)
	if s == nil {
		return 0, time.Time{}
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.viewers {
		if v.link != link {
			continue
		}
		if v.present(now) {
			viewers++
		}
		if seen := time.Unix(0, v.lastSeen.Load()); seen.After(last) {
			last = seen
		}
	}
	return viewers, last
}

// forgetLinks drops, with the session's mutex held, that links are over, when no
// request can be left that found them before.
func (s *session) forgetLinks(now time.Time) {
	for link, end := range s.linksOver {
		if now.Sub(end.at) >= closedFor {
			delete(s.linksOver, link)
		}
	}
}
