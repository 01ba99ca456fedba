package store

import (
	"cmp"
	"iter"
	"slices"

	"github.com/adit-tunnel/adit/shared/ident"
)

// The reads below answer from memory and never wait for the store. What they
// return belongs to the caller, but for slices and maps inside tunnels, presences
// and credentials, which are shared and must not be changed.

// Tunnel returns a tunnel's record.
func (s *Store) Tunnel(id ident.SessionID) (TunnelRecord, bool) {
	return lookup(s.mirror, s.mirror.tunnels, id)
}

// AgentTunnels returns an agent's tunnels, the newest first.
func (s *Store) AgentTunnels(key ident.AgentKey) []TunnelRecord {
	return records(s.mirror, s.mirror.byAgent, key)
}

// Agent returns an agent's gate.
func (s *Store) Agent(key ident.AgentKey) (AgentRecord, bool) {
	r, ok := lookup(s.mirror, s.mirror.agents, key)
	if !ok {
		return AgentRecord{}, false
	}
	return r.Clone(), true
}

// AgentCount returns how many agents of a team have a record, connected or not.
func (s *Store) AgentCount(team ident.TeamID) int {
	s.mirror.mu.RLock()
	defer s.mirror.mu.RUnlock()
	return s.mirror.agentsOf[team]
}

// TunnelState returns what an agent's gate says of a tunnel.
func (s *Store) TunnelState(key ident.AgentKey, id ident.SessionID) (TunnelState, bool) {
	r, _ := lookup(s.mirror, s.mirror.agents, key)
	state, ok := r.Tunnels[id] // records in the mirror are replaced, never changed
	return state, ok
}

// Presence returns where an agent is connected.
func (s *Store) Presence(key ident.AgentKey) (Presence, bool) {
	return lookup(s.mirror, s.mirror.presences, key)
}

// Presences returns a team's connected agents, sorted by agent id.
func (s *Store) Presences(team ident.TeamID) []Presence {
	return records(s.mirror, s.mirror.byTeam, team)
}

// CredentialByHash returns the credential whose secret has this hash.
func (s *Store) CredentialByHash(hash string) (CredentialRecord, bool) {
	return lookup(s.mirror, s.mirror.byHash, hash)
}

// Credential returns a credential, revoked ones too.
func (s *Store) Credential(id ident.CredentialID) (CredentialRecord, bool) {
	return lookup(s.mirror, s.mirror.credentials, id)
}

// Credentials returns a team's credentials, sorted by id, revoked ones too.
func (s *Store) Credentials(team ident.TeamID) []CredentialRecord {
	return records(s.mirror, s.mirror.credsOf, team)
}

// AgentCredentials returns the credentials that are for one agent only, revoked ones
// too.
func (s *Store) AgentCredentials(key ident.AgentKey) []CredentialRecord {
	s.mirror.mu.RLock()
	defer s.mirror.mu.RUnlock()
	var out []CredentialRecord
	for _, e := range s.mirror.credsOf[key.Team] {
		if e.record.Agent == key.Agent {
			out = append(out, e.record)
		}
	}
	return out
}

// AllCredentials yields every credential, in no order, as of its start.
func (s *Store) AllCredentials() iter.Seq[CredentialRecord] {
	return func(yield func(CredentialRecord) bool) {
		for _, e := range snapshot(s.mirror, s.mirror.credentials) {
			if !yield(e.value.record) {
				return
			}
		}
	}
}

// Relay returns a relay that is alive as far as the store knows.
func (s *Store) Relay(id ident.RelayID) (RelayRecord, bool) {
	return lookup(s.mirror, s.mirror.relays, id)
}

// Relays returns the relays that are alive, sorted by id.
func (s *Store) Relays() []RelayRecord {
	var out []RelayRecord
	for _, e := range snapshot(s.mirror, s.mirror.relays) {
		out = append(out, e.value.record)
	}
	slices.SortFunc(out, func(a, b RelayRecord) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// AllTunnels yields every tunnel, in no order, as of its start.
func (s *Store) AllTunnels() iter.Seq[TunnelRecord] {
	return func(yield func(TunnelRecord) bool) {
		for _, e := range snapshot(s.mirror, s.mirror.tunnels) {
			if !yield(e.value.record) {
				return
			}
		}
	}
}

// AllAgents yields every agent's gate, in no order, as of its start. The records'
// maps are shared: they must not be changed.
func (s *Store) AllAgents() iter.Seq2[ident.AgentKey, AgentRecord] {
	return func(yield func(ident.AgentKey, AgentRecord) bool) {
		for _, e := range snapshot(s.mirror, s.mirror.agents) {
			if !yield(e.key, e.value.record) {
				return
			}
		}
	}
}

// AllPresences yields every connected agent, in no order, as of its start.
func (s *Store) AllPresences() iter.Seq[Presence] {
	return func(yield func(Presence) bool) {
		for _, e := range snapshot(s.mirror, s.mirror.presences) {
			if !yield(e.value.record) {
				return
			}
		}
	}
}

func lookup[K comparable, T any](m *mirror, from map[K]*entry[T], key K) (T, bool) {
	m.mu.RLock()
	e, ok := from[key]
	m.mu.RUnlock()
	if !ok {
		var none T
		return none, false
	}
	return e.record, true
}

func records[K comparable, T any](m *mirror, index map[K][]*entry[T], key K) []T {
	m.mu.RLock()
	defer m.mu.RUnlock()
	list := index[key]
	out := make([]T, len(list))
	for i, e := range list {
		out[i] = e.record
	}
	return out
}

type pair[K comparable, T any] struct {
	key   K
	value *entry[T]
}

// snapshot copies a map's entries, so that whoever walks over them holds no lock
// and may call back.
func snapshot[K comparable, T any](m *mirror, from map[K]*entry[T]) []pair[K, T] {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]pair[K, T], 0, len(from))
	for k, e := range from {
		out = append(out, pair[K, T]{k, e})
	}
	return out
}

type counts struct{ tunnels, agents int }

func (m *mirror) counts() counts {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return counts{tunnels: len(m.tunnels), agents: len(m.agents)}
}
