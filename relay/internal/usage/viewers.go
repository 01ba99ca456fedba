package usage

import (
	"slices"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Totals are a tunnel's figures on this relay, since it runs.
type Totals struct {
	LastUsed time.Time // zero: not used
	Viewers  int       // now
	BytesIn  int64     // from users to the app
	BytesOut int64     // from the app to users
}

// Totals returns a tunnel's figures; zero ones for a tunnel never used here.
func (m *Meter) Totals(id ident.SessionID) Totals {
	s := m.find(id)
	if s == nil {
		return Totals{}
	}
	now := time.Now()
	s.mu.Lock()
	n := 0
	for _, v := range s.viewers {
		if v.present(now, m.config.Presence) {
			n++
		}
	}
	s.mu.Unlock()
	return Totals{LastUsed: s.used(now), Viewers: n, BytesIn: s.in.Load(), BytesOut: s.out.Load()}
}

// present says whether the viewer is using the tunnel now.
func (v *viewer) present(now time.Time, within time.Duration) bool {
	return v.uses > 0 || now.Sub(time.Unix(0, v.lastSeen.Load())) < within
}

// Viewers lists who uses the tunnel now, the longest there first.
func (m *Meter) Viewers(id ident.SessionID) []api.Viewer {
	list := []api.Viewer{}
	s := m.find(id)
	if s == nil {
		return list
	}
	now := time.Now()
	s.mu.Lock()
	for p, v := range s.viewers {
		if !v.present(now, m.config.Presence) {
			continue
		}
		remote := ""
		if p.Remote.IsValid() {
			remote = p.Remote.String()
		}
		list = append(list, api.Viewer{
			ViewerID: v.id, RemoteAddr: remote, UserAgent: p.UserAgent, Since: v.since.UTC(),
			LastSeen: time.Unix(0, v.lastSeen.Load()).UTC(), Connections: v.uses,
			BytesIn: v.in.Load(), BytesOut: v.out.Load(), LinkID: p.Link,
		})
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b api.Viewer) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return compare(a.ViewerID, b.ViewerID)
	})
	return list
}

func compare(a, b ident.ViewerID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Cut says that a tunnel is over: it ends all uses with the cause (ErrClosed if
// nil) and refuses later ones. It returns how many it ended. A session id is never
// used again, so there is no way back.
func (m *Meter) Cut(id ident.SessionID, cause error) int {
	if cause == nil {
		cause = ErrClosed
	}
	s := m.findOrMake(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over == nil {
		s.over, s.overAt = cause, time.Now()
	}
	for u := range s.uses {
		u.cancel(cause)
	}
	return len(s.uses)
}

// Touch notes a use that this relay does not see itself, at a time: through
// another relay, or the extension of the tunnel.
func (m *Meter) Touch(id ident.SessionID, at time.Time) {
	s := m.findOrMake(id)
	for {
		old := s.lastUsed.Load()
		if at.UnixNano() <= old || s.lastUsed.CompareAndSwap(old, at.UnixNano()) {
			return
		}
	}
}

// Forget drops what is known of a tunnel whose record is gone. That it is over is
// remembered for a while, for requests that resolved it just before.
func (m *Meter) Forget(id ident.SessionID) {
	m.Cut(id, nil)
	s := m.find(id)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.viewers)
}
