package usage

import (
	"context"

	"github.com/adit-tunnel/adit/shared/ident"
)

type watchedKey struct{}

// Watched returns a context whose uses somebody else ends when their viewer may not use
// the tunnel any more.
func Watched(ctx context.Context) context.Context { return context.WithValue(ctx, watchedKey{}, true) }

// CutUnwatched ends the uses of a tunnel, or of a named link of it, that nobody watches:
// they began when there was no rule of access. Others may begin. It returns how many it
// ended.
func (m *Meter) CutUnwatched(id ident.SessionID, link ident.LinkID, cause error) int {
	s := m.find(id)
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for u := range s.uses {
		if link != "" && u.viewer.link != link || u.ctx.Value(watchedKey{}) != nil {
			continue
		}
		u.cancel(cause)
		n++
	}
	return n
}
