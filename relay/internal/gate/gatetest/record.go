package gatetest

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Audit keeps records in memory. It implements gate.Auditor.
type Audit struct {
	mu      sync.Mutex
	records []audit.Record
}

// Append implements gate.Auditor.
func (a *Audit) Append(_ context.Context, r audit.Record) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	r.Time = time.Now()
	a.records = append(a.records, r)
	return nil
}

// Records returns what was kept.
func (a *Audit) Records() []audit.Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.records)
}

// Events returns the kinds of what was kept.
func (a *Audit) Events() []audit.Event {
	var out []audit.Event
	for _, r := range a.Records() {
		out = append(out, r.Event)
	}
	return out
}

// Local records what is cut and told on one relay. It implements gate.Local.
type Local struct {
	mu     sync.Mutex
	cut    map[ident.SessionID]store.Reason
	opened []ident.SessionID
	closed []ident.SessionID
	used   map[ident.SessionID]time.Time
}

// NewLocal returns a Local that nothing was told yet.
func NewLocal() *Local {
	return &Local{cut: map[ident.SessionID]store.Reason{}, used: map[ident.SessionID]time.Time{}}
}

// Cut implements gate.Local.
func (l *Local) Cut(_ ident.AgentKey, id ident.SessionID, reason store.Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.cut[id]; !ok {
		l.cut[id] = reason
	}
}

// Opened implements gate.Local.
func (l *Local) Opened(_ ident.AgentKey, t store.TunnelRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opened = append(l.opened, t.Session)
}

// Changed implements gate.Local.
func (l *Local) Changed(ident.AgentKey, store.AgentRecord) {}

// Closed implements gate.Local.
func (l *Local) Closed(_ ident.AgentKey, id ident.SessionID, _ store.Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = append(l.closed, id)
}

// LastUsed implements gate.Local.
func (l *Local) LastUsed(id ident.SessionID) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used[id]
}

// Use notes that a tunnel is used now.
func (l *Local) Use(id ident.SessionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used[id] = time.Now()
}

// WasCut says whether and why a tunnel was cut.
func (l *Local) WasCut(id ident.SessionID) (reason store.Reason, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	reason, ok = l.cut[id]
	return reason, ok
}

// Told returns the tunnels that agents were told of as opened and as closed.
func (l *Local) Told() (opened, closed []ident.SessionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.opened), slices.Clone(l.closed)
}
