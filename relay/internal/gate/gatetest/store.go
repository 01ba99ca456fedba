// Package gatetest is for tests: a store in memory with the semantics that the
// gate and the API rely on (compare-and-set per agent, effects in the same step,
// once-keys, a change feed), a recorder for the audit and one for what is cut. It
// holds no durable state and is used by no program.
package gatetest

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Store is the state that any number of relays share.
type Store struct {
	mu          sync.Mutex
	agents      map[ident.AgentKey]store.AgentRecord
	floors      map[ident.TeamID]store.AgentRecord // where the counts of new records begin
	tunnels     map[ident.SessionID]store.TunnelRecord
	presences   map[ident.AgentKey]store.Presence
	relays      map[ident.RelayID]store.RelayRecord
	credentials map[ident.CredentialID]store.CredentialRecord
	members     map[member]store.MemberRecord
	users       map[ident.UserID]store.UserRecord
	once        map[string]onceValue
	feeds       map[*feed]struct{}
	down        bool
	stale       bool
	mute        bool
	full        bool
	writes      int
}

type onceValue struct {
	value string
	until time.Time
}

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{
		agents: map[ident.AgentKey]store.AgentRecord{}, floors: map[ident.TeamID]store.AgentRecord{}, tunnels: map[ident.SessionID]store.TunnelRecord{},
		presences: map[ident.AgentKey]store.Presence{}, relays: map[ident.RelayID]store.RelayRecord{},
		credentials: map[ident.CredentialID]store.CredentialRecord{}, members: map[member]store.MemberRecord{}, users: map[ident.UserID]store.UserRecord{}, once: map[string]onceValue{}, feeds: map[*feed]struct{}{},
	}
}

// View is the store as one relay sees it, with a clock that is off by so much.
type View struct {
	*Store
	Off time.Duration
}

// SetMute makes changes of agents' records land without an answer.
func (s *Store) SetMute(mute bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mute = mute
}

// Unanswered is the error for a change that landed without an answer.
type Unanswered struct{ rec store.AgentRecord }

// Error implements error.
func (Unanswered) Error() string { return "no answer came" }

// Unwrap makes it the error of a store that is away.
func (Unanswered) Unwrap() error { return store.ErrUnavailable }

// Settle says that it landed.
func (u Unanswered) Settle(context.Context) (store.AgentRecord, bool, error) { return u.rec, true, nil }

// SetDown makes every access to the store fail, or work again; what is read from
// memory stays.
func (s *Store) SetDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// SetStale says that what is read from memory may be out of date, or is not.
func (s *Store) SetStale(stale bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stale = stale
}

// Status says how the store is.
func (s *Store) Status() store.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return store.Status{Quorum: !s.down, Stale: s.stale}
}

// Writes returns how many changes of agents' records there were.
func (s *Store) Writes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

func (s *Store) now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// UpdateAgent implements gate.Store.
func (v View) UpdateAgent(ctx context.Context, key ident.AgentKey, change func(time.Time, *store.AgentRecord) (store.Effects, error)) (store.AgentRecord, error) {
	return v.updateAgent(key, v.now().Add(v.Off), change)
}

// UpdateAgent implements gate.Store.
func (s *Store) UpdateAgent(ctx context.Context, key ident.AgentKey, change func(time.Time, *store.AgentRecord) (store.Effects, error)) (store.AgentRecord, error) {
	return s.updateAgent(key, s.now(), change)
}

func (s *Store) updateAgent(key ident.AgentKey, now time.Time, change func(time.Time, *store.AgentRecord) (store.Effects, error)) (store.AgentRecord, error) {
	for {
		s.mu.Lock()
		old, down := s.record(key), s.down
		s.mu.Unlock()
		if down {
			return store.AgentRecord{}, store.ErrUnavailable
		}
		next := old.Clone()
		effects, err := change(now, &next) // without the lock, as callers expect
		s.mu.Lock()
		if o := effects.Once; o != nil {
			if v, ok := s.once[o.Key]; ok && now.Before(v.until) {
				s.mu.Unlock()
				return old, &store.OnceError{Value: v.value}
			}
		}
		switch {
		case errors.Is(err, store.ErrUnchanged):
			s.mu.Unlock()
			return old, nil
		case err != nil:
			s.mu.Unlock()
			return old, err
		case s.record(key).Nonce != old.Nonce: // another was faster
			s.mu.Unlock()
			continue
		}
		var changes []store.Change
		for id, edit := range effects.EditTunnels {
			t, ok := s.tunnels[id]
			if !ok {
				s.mu.Unlock()
				return old, store.ErrNotFound
			}
			edit(&t)
			s.tunnels[id] = t
			changes = append(changes, store.Change{Kind: store.KindTunnel, Key: key, Session: id})
		}
		next.N, next.Nonce = old.N+1, ident.NewNonce()
		s.agents[key] = next.Clone()
		s.writes++
		changes = append(changes, store.Change{Kind: store.KindAgent, Key: key})
		for _, t := range effects.PutTunnels {
			s.tunnels[t.Session] = t
			changes = append(changes, store.Change{Kind: store.KindTunnel, Key: key, Session: t.Session})
		}
		for _, id := range effects.DeleteTunnels {
			delete(s.tunnels, id)
			changes = append(changes, store.Change{Kind: store.KindTunnel, Key: key, Session: id, Deleted: true})
		}
		if o := effects.Once; o != nil {
			s.once[o.Key] = onceValue{o.Value, now.Add(o.TTL)}
		}
		s.publish(changes...)
		mute := s.mute
		s.mu.Unlock()
		if mute {
			return store.AgentRecord{}, Unanswered{next.Clone()}
		}
		return next, nil
	}
}

// record is an agent's, or the beginning of one. The lock is held.
func (s *Store) record(key ident.AgentKey) store.AgentRecord {
	if r, ok := s.agents[key]; ok {
		return r.Clone()
	}
	return s.floors[key.Team].Clone()
}

// RemoveAgent implements gate.Store.
func (s *Store) RemoveAgent(_ context.Context, key ident.AgentKey, gone func(time.Time, store.AgentRecord) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.agents[key]
	if _, here := s.presences[key]; !ok || here || !gone(s.now(), r.Clone()) {
		return nil
	}
	f := s.floors[key.Team]
	s.floors[key.Team] = store.AgentRecord{Epoch: max(f.Epoch, r.Epoch), N: max(f.N, r.N), Fencing: max(f.Fencing, r.Fencing)}
	delete(s.agents, key)
	s.publish(store.Change{Kind: store.KindAgent, Key: key, Deleted: true})
	return nil
}

// AgentCount implements gate.Store.
func (s *Store) AgentCount(team ident.TeamID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for key := range s.agents {
		if key.Team == team {
			n++
		}
	}
	return n
}

// SetFull makes the store one that takes nothing new, or not.
func (s *Store) SetFull(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
}

// Room implements gate.Store.
func (s *Store) Room() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.full
}

// UpdateTunnel implements gate.Store.
func (s *Store) UpdateTunnel(_ context.Context, id ident.SessionID, change func(*store.TunnelRecord) error) (store.TunnelRecord, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return store.TunnelRecord{}, store.ErrUnavailable
	}
	t, ok := s.tunnels[id]
	if !ok {
		return t, store.ErrNotFound
	}
	switch err := change(&t); {
	case errors.Is(err, store.ErrUnchanged):
		return s.tunnels[id], nil
	case err != nil:
		return t, err
	}
	s.tunnels[id] = t
	s.publish(store.Change{Kind: store.KindTunnel, Key: t.Key(), Session: id})
	return t, nil
}

// OnceValue implements gate.Store.
func (s *Store) OnceValue(_ context.Context, key string) (string, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return "", false, store.ErrUnavailable
	}
	v, ok := s.once[key]
	return v.value, ok && s.now().Before(v.until), nil
}

// CatchUp implements gate.Store.
func (s *Store) CatchUp(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return store.ErrUnavailable
	}
	return nil
}

// Tunnel implements gate.Store.
func (s *Store) Tunnel(id ident.SessionID) (store.TunnelRecord, bool) { return get(s, s.tunnels, id) }

// Agent implements gate.Store.
func (s *Store) Agent(key ident.AgentKey) (store.AgentRecord, bool) {
	r, ok := get(s, s.agents, key)
	return r.Clone(), ok
}

// Presence implements gate.Store.
func (s *Store) Presence(key ident.AgentKey) (store.Presence, bool) { return get(s, s.presences, key) }

// Relay implements gate.Store.
func (s *Store) Relay(id ident.RelayID) (store.RelayRecord, bool) { return get(s, s.relays, id) }

func get[K comparable, T any](s *Store, m map[K]T, key K) (T, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := m[key]
	return v, ok
}

// AgentTunnels implements gate.Store.
func (s *Store) AgentTunnels(key ident.AgentKey) []store.TunnelRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []store.TunnelRecord
	for _, t := range s.tunnels {
		if t.Key() == key {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b store.TunnelRecord) int {
		if c := b.OpenedAt.Compare(a.OpenedAt); c != 0 {
			return c
		}
		if a.Session < b.Session {
			return -1
		}
		return 1
	})
	return out
}

// AllAgents implements gate.Store.
func (s *Store) AllAgents() iter.Seq2[ident.AgentKey, store.AgentRecord] {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.All(maps.Clone(s.agents))
}

// AllTunnels implements gate.Store.
func (s *Store) AllTunnels() iter.Seq[store.TunnelRecord] {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Values(maps.Clone(s.tunnels))
}

// Credential implements gate.Store.
func (s *Store) Credential(id ident.CredentialID) (store.CredentialRecord, bool) {
	return get(s, s.credentials, id)
}

// SetCredential writes a credential.
func (s *Store) SetCredential(r store.CredentialRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credentials[r.ID] = r
	s.publish(store.Change{Kind: store.KindCredential, Key: ident.AgentKey{Team: r.Team}, Credential: r.ID})
}

// Member implements gate.Store.
func (s *Store) Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool) {
	return get(s, s.members, member{team, user})
}

// SetMember writes a person's place in a team.
func (s *Store) SetMember(r store.MemberRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members[member{r.Team, r.User}] = r
	s.publish(store.Change{Kind: store.KindMember, Key: ident.AgentKey{Team: r.Team}, User: r.User})
}

// User returns a person, if somebody said who it is.
func (s *Store) User(id ident.UserID) (store.UserRecord, bool) { return get(s, s.users, id) }

// SetUser writes what is known of a person.
func (s *Store) SetUser(r store.UserRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[r.ID] = r
	s.publish(store.Change{Kind: store.KindUser, User: r.ID})
}

type member struct {
	team ident.TeamID
	user ident.UserID
}

// Presences returns a team's presences by agent id.
func (s *Store) Presences(team ident.TeamID) []store.Presence {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []store.Presence
	for _, p := range s.presences {
		if p.Team == team {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b store.Presence) int {
		if a.Agent < b.Agent {
			return -1
		}
		return 1
	})
	return out
}

// SetPresence writes a presence.
func (s *Store) SetPresence(p store.Presence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.presences[p.Key()] = p
	s.publish(store.Change{Kind: store.KindPresence, Key: p.Key()})
}

// DropPresence removes a presence.
func (s *Store) DropPresence(key ident.AgentKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.presences, key)
	s.publish(store.Change{Kind: store.KindPresence, Key: key, Deleted: true})
}

// SetRelay makes a relay known as alive, or not.
func (s *Store) SetRelay(id ident.RelayID, alive bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if alive {
		s.relays[id] = store.RelayRecord{ID: id}
	} else {
		delete(s.relays, id)
	}
	s.publish(store.Change{Kind: store.KindRelay, Relay: id, Deleted: !alive})
}

// Subscribe implements gate.Store.
func (s *Store) Subscribe(buffer int) gate.Feed {
	f := &feed{s: s, c: make(chan store.Change, max(buffer, 1))}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.feeds[f] = struct{}{}
	return f
}

// publish is called with the lock held.
func (s *Store) publish(changes ...store.Change) {
	for f := range s.feeds {
		for _, c := range changes {
			select {
			case f.c <- c:
			default:
				f.lost = true
			}
		}
	}
}

type feed struct {
	s    *Store
	c    chan store.Change
	lost bool
}

func (f *feed) C() <-chan store.Change { return f.c }

func (f *feed) Lost() bool {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	lost := f.lost
	f.lost = false
	return lost
}

func (f *feed) Close() {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	delete(f.s.feeds, f)
}
