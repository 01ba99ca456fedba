package creds

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	touchEvery   = time.Minute // per credential, over all relays as far as the index knows
	touchFlush   = 5 * time.Second
	touchRate    = 100 // writes per second, so that thousands of agents coming back do not fill the store
	touchTimeout = 3 * time.Second
	touchMost    = 100_000 // credentials waiting to be written
)

// lastUse collects when credentials were used, and writes it seldom.
type lastUse struct {
	store Store
	log   *slog.Logger
	m     *metrics

	mu      sync.Mutex
	pending map[ident.CredentialID]time.Time
	written map[ident.CredentialID]time.Time // by this relay, within touchEvery
}

func newLastUse(s Store, log *slog.Logger, m *metrics) *lastUse {
	return &lastUse{store: s, log: log, m: m,
		pending: make(map[ident.CredentialID]time.Time), written: make(map[ident.CredentialID]time.Time)}
}

// note records a use; it never blocks on the store.
func (l *lastUse) note(rec store.CredentialRecord, now time.Time) {
	if now.Sub(rec.LastUsed) < touchEvery { // another relay wrote it, or this one did
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.pending[rec.ID]; !ok && len(l.pending) >= touchMost {
		l.m.touches.WithLabelValues("dropped").Inc()
		return
	}
	l.pending[rec.ID] = now
}

// run writes what is due until ctx ends, and what is left then, briefly.
func (l *lastUse) run(ctx context.Context) {
	tick := time.NewTicker(touchFlush)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			// The store outlives this package in the order of shutdown.
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), touchTimeout)
			defer cancel()
			l.flush(last)
			return
		case <-tick.C:
			l.flush(ctx)
		}
	}
}

func (l *lastUse) flush(ctx context.Context) {
	pace := rate.NewLimiter(touchRate, touchRate)
	for id, at := range l.take(time.Now()) {
		if pace.Wait(ctx) != nil {
			l.putBack(id, at)
			continue
		}
		one, cancel := context.WithTimeout(ctx, touchTimeout)
		err := l.store.TouchCredential(one, id, at)
		cancel()
		if err != nil {
			l.m.touches.WithLabelValues("error").Inc()
			l.log.Debug("last use of a credential not written", "credential", id, "error", err)
			continue // the next use will do; it is information, not state
		}
		l.m.touches.WithLabelValues("ok").Inc()
	}
}

// take removes and returns what is due now.
func (l *lastUse) take(now time.Time) map[ident.CredentialID]time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, at := range l.written {
		if now.Sub(at) >= touchEvery {
			delete(l.written, id)
		}
	}
	due := make(map[ident.CredentialID]time.Time)
	for id, at := range l.pending {
		if _, recent := l.written[id]; !recent {
			due[id] = at
			l.written[id] = now
			delete(l.pending, id)
		}
	}
	return due
}

func (l *lastUse) putBack(id ident.CredentialID, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.written, id)
	if _, newer := l.pending[id]; !newer {
		l.pending[id] = at
	}
}
