package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/shared/ident"
)

// LinkRecord is a named link: a further address of one tunnel. Its key lies below
// the tunnel's, so that the one deletion that ends a tunnel ends its links, too.
type LinkRecord struct {
	ID        ident.LinkID    `json:"id"`
	Session   ident.SessionID `json:"session_id"`
	Team      ident.TeamID    `json:"team"`
	Agent     ident.AgentID   `json:"agent"`
	Name      string          `json:"name"`
	CreatedBy string          `json:"created_by"`
	// Credential is the one that made it, if any, and User the person.
	Credential ident.CredentialID `json:"credential,omitempty"`
	User       ident.UserID       `json:"user,omitempty"`
	CreatedAt  time.Time          `json:"created_at"`
	ExpiresAt  time.Time          `json:"expires_at,omitzero"` // zero: with the tunnel
	// Access takes the place of the tunnel's for who comes by the link; nil: the tunnel's.
	Access  *AccessRule `json:"access,omitempty"`
	MaxUses int         `json:"max_uses,omitempty"` // 0: any number
	Uses    int         `json:"uses,omitempty"`     // viewers admitted so far
	// Viewers are marks of the viewers that were admitted, which may come back: all
	// of a link with MaxUses, the newest of others.
	Viewers  []string  `json:"viewers,omitempty"`
	LastUsed time.Time `json:"last_used,omitzero"`
}

// Key names the agent of the link's tunnel.
func (l LinkRecord) Key() ident.AgentKey { return ident.AgentKey{Team: l.Team, Agent: l.Agent} }

// ErrLimit says that there are as many records of a kind as may be.
var ErrLimit = errors.New("as many as there may be")

func linksPrefix(id ident.SessionID) string { return tunnelKey(id) + "/link/" }

func linkKey(session ident.SessionID, id ident.LinkID) string {
	return linksPrefix(session) + string(id)
}

// splitLink returns the link that the rest of a key below a tunnel names.
func splitLink(rest string) (ident.SessionID, ident.LinkID, bool) {
	session, id, ok := strings.Cut(rest, "/link/")
	return ident.SessionID(session), ident.LinkID(id), ok
}

// CreateLink writes a new link of a tunnel that exists: ErrNotFound when it does
// not, ErrLimit when it has that many already (two relays at once may both add the
// last one).
func (s *Store) CreateLink(ctx context.Context, r LinkRecord, most int) error {
	defer s.metrics.took(opLink)()
	doing := "create a link of tunnel " + string(r.Session)
	if err := s.takesNew(ctx, doing); err != nil {
		return err
	}
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	key := linkKey(r.Session, r.ID)
	var last error
	for attempt := 0; ; attempt++ {
		if attempt > 0 && !pause(ctx, attempt) {
			return unavailable(ctx, doing, last)
		}
		tunnel, _, err := s.get(ctx, tunnelKey(r.Session))
		if err != nil {
			last = err
			continue
		}
		if tunnel == nil {
			return fmt.Errorf("%s: %w", doing, ErrNotFound)
		}
		there, err := s.do(ctx, clientv3.OpGet(linksPrefix(r.Session), clientv3.WithPrefix(), clientv3.WithKeysOnly()))
		if err != nil {
			last = err
			continue
		}
		for _, kv := range there.Get().Kvs {
			if string(kv.Key) == key {
				return nil // an earlier attempt landed: the id is random, so it is ours
			}
		}
		if len(there.Get().Kvs) >= most {
			return fmt.Errorf("%s: %w", doing, ErrLimit)
		}
		ok, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(tunnelKey(r.Session)), ">", 0)}, clientv3.OpPut(key, string(value)))
		switch {
		case err == nil && ok:
			return nil
		case err != nil && rejected(err):
			return fmt.Errorf("%s: %w", doing, err)
		case full(err):
			return s.refusedAsFull(ctx, doing, err)
		case err != nil:
			s.metrics.unknown.Inc()
			last = err
		}
	}
}

// UpdateLink changes a link by compare-and-set, as UpdateTunnel does a tunnel.
func (s *Store) UpdateLink(ctx context.Context, session ident.SessionID, id ident.LinkID, change func(*LinkRecord) error) (LinkRecord, error) {
	defer s.metrics.took(opLink)()
	doing := "change link " + string(id)
	if err := s.usable(); err != nil {
		return LinkRecord{}, unavailable(ctx, doing, err)
	}
	return changeRecord(ctx, s, doing, linkKey(session, id), change)
}

// DeleteLink ends a link; ErrNotFound when there is none.
func (s *Store) DeleteLink(ctx context.Context, session ident.SessionID, id ident.LinkID) error {
	defer s.metrics.took(opLink)()
	doing := "delete link " + string(id)
	if err := s.usable(); err != nil {
		return unavailable(ctx, doing, err)
	}
	return s.swap(ctx, doing, linkKey(session, id), func(cur *keyValue) (proposal, error) {
		if cur == nil {
			return proposal{}, fmt.Errorf("%s: %w", doing, ErrNotFound)
		}
		return proposal{delete: true}, nil
	})
}

// Link returns a named link.
func (s *Store) Link(id ident.LinkID) (LinkRecord, bool) {
	return lookup(s.mirror, s.mirror.links, id)
}

// TunnelLinks returns a tunnel's named links, the oldest first.
func (s *Store) TunnelLinks(id ident.SessionID) []LinkRecord {
	return records(s.mirror, s.mirror.linksOf, id)
}

// AllLinks yields every named link, in no order, as of its start.
func (s *Store) AllLinks() iter.Seq[LinkRecord] {
	return func(yield func(LinkRecord) bool) {
		for _, e := range snapshot(s.mirror, s.mirror.links) {
			if !yield(e.value.record) {
				return
			}
		}
	}
}

func (m *mirror) putLink(session ident.SessionID, id ident.LinkID, kv *mvccpb.KeyValue) (commit, error) {
	e, err := decode(m.links[id], kv, m.generation)
	if e == nil {
		return nil, err
	}
	e.record.ID, e.record.Session = id, session
	return func() *Change {
		if old, ok := m.links[id]; ok {
			remove(m.linksOf, session, old, oldestFirst)
		}
		m.links[id] = e
		insert(m.linksOf, session, e, oldestFirst)
		return &Change{Kind: KindLink, Key: e.record.Key(), Session: session, Link: id}
	}, nil
}

func (m *mirror) dropLink(id ident.LinkID) *Change {
	e, ok := m.links[id]
	if !ok {
		return nil
	}
	delete(m.links, id)
	remove(m.linksOf, e.record.Session, e, oldestFirst)
	return &Change{Kind: KindLink, Key: e.record.Key(), Session: e.record.Session, Link: id, Deleted: true}
}

func oldestFirst(a, b *entry[LinkRecord]) int {
	if c := a.record.CreatedAt.Compare(b.record.CreatedAt); c != 0 {
		return c
	}
	return strings.Compare(string(a.record.ID), string(b.record.ID))
}
