package store

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// mirror is the store's records in memory. One goroutine writes it (the watch's,
// which may therefore read without the lock), everybody reads. Entries are
// replaced, never changed, so that a reader may keep what it got. One RWMutex
// guards all: a read holds it for a map access, a write for those of one response,
// whose records were decoded before; measured in BenchmarkMirrorRead.
type mirror struct {
	mu          sync.RWMutex
	tunnels     map[ident.SessionID]*entry[TunnelRecord]
	byAgent     map[ident.AgentKey][]*entry[TunnelRecord] // newest first
	links       map[ident.LinkID]*entry[LinkRecord]
	linksOf     map[ident.SessionID][]*entry[LinkRecord] // oldest first
	agents      map[ident.AgentKey]*entry[AgentRecord]
	agentsOf    map[ident.TeamID]int // how many
	presences   map[ident.AgentKey]*entry[Presence]
	byTeam      map[ident.TeamID][]*entry[Presence] // by agent id
	credentials map[ident.CredentialID]*entry[CredentialRecord]
	byHash      map[string]*entry[CredentialRecord]
	credsOf     map[ident.TeamID][]*entry[CredentialRecord] // by id
	relays      map[ident.RelayID]*entry[RelayRecord]
	people      people
	tables      map[string]mirrored // by dir

	generation uint32 // of the list being read; see beginList
	words      map[string]string

	rev     atomic.Int64
	waitMu  sync.Mutex
	waiters chan struct{} // closed when rev advances; nil when nobody waits
}

// entry is one record with its place in the store's history.
type entry[T any] struct {
	record T
	rev    int64  // ModRevision
	seen   uint32 // generation of the list that had it last
}

func newMirror() *mirror {
	m := &mirror{
		tunnels:     map[ident.SessionID]*entry[TunnelRecord]{},
		byAgent:     map[ident.AgentKey][]*entry[TunnelRecord]{},
		links:       map[ident.LinkID]*entry[LinkRecord]{},
		linksOf:     map[ident.SessionID][]*entry[LinkRecord]{},
		agents:      map[ident.AgentKey]*entry[AgentRecord]{},
		agentsOf:    map[ident.TeamID]int{},
		presences:   map[ident.AgentKey]*entry[Presence]{},
		byTeam:      map[ident.TeamID][]*entry[Presence]{},
		credentials: map[ident.CredentialID]*entry[CredentialRecord]{},
		byHash:      map[string]*entry[CredentialRecord]{},
		credsOf:     map[ident.TeamID][]*entry[CredentialRecord]{},
		relays:      map[ident.RelayID]*entry[RelayRecord]{},
		people:      newPeople(),
		words:       map[string]string{},
	}
	m.tables = m.people.byDir()
	return m
}

// commit is a change that is ready to be made; it needs m.mu and says what it did.
type commit func() *Change

// put prepares the current value of a key: it decodes, without the lock. There is
// no commit when the key is none of the mirror's or the value is the one it has.
func (m *mirror) put(kv *mvccpb.KeyValue) (commit, error) {
	dir, rest := splitKey(string(kv.Key))
	switch dir {
	case dirTunnel:
		if session, id, ok := splitLink(rest); ok {
			return m.putLink(session, id, kv)
		}
		return m.putTunnel(ident.SessionID(rest), kv)
	case dirAgent:
		return m.putAgent(rest, kv)
	case dirPresence:
		return m.putPresence(rest, kv)
	case dirCredential:
		return m.putCredential(ident.CredentialID(rest), kv)
	case dirRelay:
		id := ident.RelayID(rest)
		e, err := decode(m.relays[id], kv, m.generation)
		if e == nil {
			return nil, err
		}
		return func() *Change {
			m.relays[id] = e
			return &Change{Kind: KindRelay, Relay: id}
		}, nil
	}
	if t, ok := m.tables[dir]; ok {
		return t.put(rest, kv, m.generation)
	}
	return nil, nil
}

// delete applies the end of a key. It needs m.mu.
func (m *mirror) delete(name string) *Change {
	dir, rest := splitKey(name)
	switch dir {
	case dirTunnel:
		if _, id, ok := splitLink(rest); ok {
			return m.dropLink(id)
		}
		return m.dropTunnel(ident.SessionID(rest))
	case dirAgent:
		key, _ := splitAgent(rest)
		if _, ok := m.agents[key]; ok {
			delete(m.agents, key)
			if m.agentsOf[key.Team]--; m.agentsOf[key.Team] == 0 {
				delete(m.agentsOf, key.Team)
			}
			return &Change{Kind: KindAgent, Key: key, Deleted: true}
		}
	case dirPresence:
		key, _ := splitAgent(rest)
		if e, ok := m.presences[key]; ok {
			delete(m.presences, key)
			remove(m.byTeam, key.Team, e, byAgentID)
			return &Change{Kind: KindPresence, Key: key, Deleted: true}
		}
	case dirCredential:
		id := ident.CredentialID(rest)
		if e, ok := m.credentials[id]; ok {
			delete(m.credentials, id)
			delete(m.byHash, e.record.Hash)
			remove(m.credsOf, e.record.Team, e, byCredentialID)
			return &Change{Kind: KindCredential, Key: ident.AgentKey{Team: e.record.Team}, Credential: id, Deleted: true}
		}
	case dirRelay:
		id := ident.RelayID(rest)
		if _, ok := m.relays[id]; ok {
			delete(m.relays, id)
			return &Change{Kind: KindRelay, Relay: id, Deleted: true}
		}
	}
	if t, ok := m.tables[dir]; ok {
		return t.drop(rest)
	}
	return nil
}

func (m *mirror) putTunnel(id ident.SessionID, kv *mvccpb.KeyValue) (commit, error) {
	e, err := decode(m.tunnels[id], kv, m.generation)
	if e == nil {
		return nil, err
	}
	t := &e.record
	t.Session = id
	// Most of a tunnel's texts are those of many others.
	t.Team, t.Agent = ident.TeamID(m.word(string(t.Team))), ident.AgentID(m.word(string(t.Agent)))
	t.Protocol, t.AskedHost = api.Protocol(m.word(string(t.Protocol))), api.HostHeader(m.word(string(t.AskedHost)))
	t.HostHeader, t.App = api.HostHeader(m.word(string(t.HostHeader))), m.word(t.App)
	t.OpenedBy, t.Credential, t.User = m.word(t.OpenedBy), ident.CredentialID(m.word(string(t.Credential))), ident.UserID(m.word(string(t.User)))
	return func() *Change {
		if old, ok := m.tunnels[id]; ok {
			remove(m.byAgent, old.record.Key(), old, newestFirst)
		}
		m.tunnels[id] = e
		insert(m.byAgent, t.Key(), e, newestFirst)
		return &Change{Kind: KindTunnel, Key: t.Key(), Session: id}
	}, nil
}

func (m *mirror) dropTunnel(id ident.SessionID) *Change {
	e, ok := m.tunnels[id]
	if !ok {
		return nil
	}
	delete(m.tunnels, id)
	remove(m.byAgent, e.record.Key(), e, newestFirst)
	return &Change{Kind: KindTunnel, Key: e.record.Key(), Session: id, Deleted: true}
}

func (m *mirror) putAgent(rest string, kv *mvccpb.KeyValue) (commit, error) {
	key, ok := splitAgent(rest)
	if !ok {
		return nil, fmt.Errorf("key %s names no agent", kv.Key)
	}
	e, err := decode(m.agents[key], kv, m.generation)
	if e == nil {
		return nil, err
	}
	return func() *Change {
		if _, ok := m.agents[key]; !ok {
			m.agentsOf[key.Team]++
		}
		m.agents[key] = e
		return &Change{Kind: KindAgent, Key: key}
	}, nil
}

func (m *mirror) putPresence(rest string, kv *mvccpb.KeyValue) (commit, error) {
	key, ok := splitAgent(rest)
	if !ok {
		return nil, fmt.Errorf("key %s names no agent", kv.Key)
	}
	e, err := decode(m.presences[key], kv, m.generation)
	if e == nil {
		return nil, err
	}
	e.record.Team, e.record.Agent = key.Team, key.Agent
	return func() *Change {
		if old, ok := m.presences[key]; ok {
			remove(m.byTeam, key.Team, old, byAgentID)
		}
		m.presences[key] = e
		insert(m.byTeam, key.Team, e, byAgentID)
		return &Change{Kind: KindPresence, Key: key}
	}, nil
}

func (m *mirror) putCredential(id ident.CredentialID, kv *mvccpb.KeyValue) (commit, error) {
	e, err := decode(m.credentials[id], kv, m.generation)
	if e == nil {
		return nil, err
	}
	e.record.ID = id
	return func() *Change {
		if old, ok := m.credentials[id]; ok {
			delete(m.byHash, old.record.Hash)
			remove(m.credsOf, old.record.Team, old, byCredentialID)
		}
		m.credentials[id] = e
		m.byHash[e.record.Hash] = e
		insert(m.credsOf, e.record.Team, e, byCredentialID)
		return &Change{Kind: KindCredential, Key: ident.AgentKey{Team: e.record.Team}, Credential: id}
	}, nil
}

// decode returns the entry for a key's value, or nil when old is of the same
// revision already, which is then marked as seen.
func decode[T any](old *entry[T], kv *mvccpb.KeyValue, generation uint32) (*entry[T], error) {
	if old != nil && old.rev == kv.ModRevision {
		old.seen = generation // no reader looks at it
		return nil, nil
	}
	e := &entry[T]{rev: kv.ModRevision, seen: generation}
	if err := json.Unmarshal(kv.Value, &e.record); err != nil {
		return nil, fmt.Errorf("record %s: %w", kv.Key, err)
	}
	return e, nil
}

// beginList starts a new generation: entries that the list does not have again
// are deleted by endList.
func (m *mirror) beginList() { m.generation++ }

// endList deletes what the list did not have and returns these changes.
func (m *mirror) endList() []Change {
	var gone []string
	for id, e := range m.tunnels {
		if e.seen != m.generation {
			gone = append(gone, tunnelKey(id))
		}
	}
	for id, e := range m.links {
		if e.seen != m.generation {
			gone = append(gone, linkKey(e.record.Session, id))
		}
	}
	for k, e := range m.agents {
		if e.seen != m.generation {
			gone = append(gone, agentKey(k))
		}
	}
	for k, e := range m.presences {
		if e.seen != m.generation {
			gone = append(gone, presenceKey(k))
		}
	}
	for id, e := range m.credentials {
		if e.seen != m.generation {
			gone = append(gone, credentialKey(id))
		}
	}
	for id, e := range m.relays {
		if e.seen != m.generation {
			gone = append(gone, relayKey(id))
		}
	}
	for _, t := range m.tables {
		gone = append(gone, t.missed(m.generation)...)
	}
	commits := make([]commit, len(gone))
	for i, name := range gone {
		commits[i] = func() *Change { return m.delete(name) }
	}
	return m.commitAll(commits)
}

// commitAll makes the prepared changes, all at one moment for every reader.
func (m *mirror) commitAll(commits []commit) []Change {
	if len(commits) == 0 {
		return nil
	}
	changes := make([]Change, 0, len(commits))
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range commits {
		if change := c(); change != nil {
			changes = append(changes, *change)
		}
	}
	return changes
}

// word returns one shared copy of a text that many records repeat. The table is
// emptied when it got large: what is in use stays in use, and new copies are made.
func (m *mirror) word(s string) string {
	if s == "" {
		return ""
	}
	if w, ok := m.words[s]; ok {
		return w
	}
	if len(m.words) >= 1<<16 {
		clear(m.words)
	}
	m.words[s] = s
	return s
}

func newestFirst(a, b *entry[TunnelRecord]) int {
	return cmp.Or(b.record.OpenedAt.Compare(a.record.OpenedAt), cmp.Compare(a.record.Session, b.record.Session))
}

func byAgentID(a, b *entry[Presence]) int { return cmp.Compare(a.record.Agent, b.record.Agent) }

func byCredentialID(a, b *entry[CredentialRecord]) int { return cmp.Compare(a.record.ID, b.record.ID) }

// insert keeps a list of an index in order.
func insert[K comparable, T any](index map[K][]*entry[T], key K, e *entry[T], order func(a, b *entry[T]) int) {
	list := index[key]
	i, _ := slices.BinarySearchFunc(list, e, order)
	index[key] = slices.Insert(list, i, e)
}

func remove[K comparable, T any](index map[K][]*entry[T], key K, e *entry[T], order func(a, b *entry[T]) int) {
	list := index[key]
	i, found := slices.BinarySearchFunc(list, e, order)
	if !found {
		return
	}
	if list = slices.Delete(list, i, i+1); len(list) == 0 {
		delete(index, key)
		return
	}
	index[key] = list
}
