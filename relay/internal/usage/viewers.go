package usage

import (
	"cmp"
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
	Names    []string  // of persons who use it now, sorted: MaxNames and one more at most
}

// MaxNames is how many persons Totals name; one more in Names means that there are others.
const MaxNames = 3

// Totals returns a tunnel's figures; zero ones for a tunnel never used here.
func (m *Meter) Totals(id ident.SessionID) Totals {
	s := m.find(id)
	if s == nil {
		return Totals{}
	}
	now := time.Now()
	s.mu.Lock()
	n := 0
	var names []string
	for p, v := range s.viewers {
		if !v.present(now) {
			continue
		}
		n++
		if p.User != "" {
			names = append(names, cmp.Or(v.name, string(p.User)))
		}
	}
	s.mu.Unlock()
	return Totals{LastUsed: s.used(now), Viewers: n, BytesIn: s.in.Load(), BytesOut: s.out.Load(), Names: someNames(names)}
}

// someNames are names, each once, sorted, and no more than are told.
func someNames(names []string) []string {
	slices.Sort(names)
	names = slices.Compact(names)
	return names[:min(len(names), MaxNames+1)]
}

// Plus are the figures of two relays together.
func (t Totals) Plus(o Totals) Totals {
	if o.LastUsed.After(t.LastUsed) {
		t.LastUsed = o.LastUsed
	}
	t.Viewers, t.BytesIn, t.BytesOut = t.Viewers+o.Viewers, t.BytesIn+o.BytesIn, t.BytesOut+o.BytesOut
	t.Names = someNames(slices.Concat(t.Names, o.Names))
	return t
}

// present says whether the viewer is using the tunnel now.
func (v *viewer) present(now time.Time) bool {
	return v.uses > 0 || now.Sub(time.Unix(0, v.lastSeen.Load())) < presence
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
		if !v.present(now) {
			continue
		}
		remote := ""
		if p.Remote.IsValid() {
			remote = p.Remote.String()
		}
		list = append(list, api.Viewer{
			ViewerID: v.id, UserID: p.User, UserName: v.name, RemoteAddr: remote, UserAgent: p.UserAgent, Since: v.since.UTC(),
			LastSeen: time.Unix(0, v.lastSeen.Load()).UTC(), Connections: v.uses,
			BytesIn: v.in.Load(), BytesOut: v.out.Load(), LinkID: p.Link,
		})
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b api.Viewer) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ViewerID, b.ViewerID))
	})
	return list
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
