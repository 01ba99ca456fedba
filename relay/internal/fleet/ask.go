package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// What relays ask each other. Questions and answers are JSON, and relays of the last
// release ask and answer the same.
const (
	askTotals  = "totals"
	askViewers = "viewers"
	askParty   = "party"
	askKick    = "kick"
	askProbe   = "probe"
)

// askTime bounds what a caller waits for other relays: figures that come later are
// left out.
const askTime = 400 * time.Millisecond

type probeQuestion struct {
	Key   ident.AgentKey
	Probe wire.Probe
}

type kickQuestion struct {
	Session ident.SessionID
	Viewer  ident.ViewerID
	Party   usage.Party
}

type partyAnswer struct {
	Found bool
	Party usage.Party
}

// Answers are what this relay tells others, by question: of itself alone.
func (f *Fleet) Answers() map[string]func(context.Context, []byte) (any, error) {
	return map[string]func(context.Context, []byte) (any, error){
		askTotals: asked(func(_ context.Context, ids []ident.SessionID) (map[ident.SessionID]usage.Totals, error) {
			return f.totalsHere(ids), nil
		}),
		askViewers: asked(func(_ context.Context, id ident.SessionID) ([]api.Viewer, error) {
			return f.cfg.Meter.Viewers(id), nil
		}),
		askParty: asked(func(_ context.Context, q kickQuestion) (a partyAnswer, err error) {
			a.Party, a.Found = f.cfg.Meter.PartyOf(q.Session, q.Viewer)
			return a, nil
		}),
		askKick: asked(func(_ context.Context, q kickQuestion) (struct{}, error) {
			f.cfg.Meter.KickParty(q.Session, q.Party)
			return struct{}{}, nil
		}),
		askProbe: asked(func(ctx context.Context, q probeQuestion) (wire.Probed, error) {
			return f.cfg.Hub.Probe(ctx, q.Key, q.Probe)
		}),
	}
}

// asked decodes a question.
func asked[Q, A any](answer func(context.Context, Q) (A, error)) func(context.Context, []byte) (any, error) {
	return func(ctx context.Context, raw []byte) (any, error) {
		var q Q
		if err := json.Unmarshal(raw, &q); err != nil {
			return nil, fmt.Errorf("read the question: %w", err)
		}
		return answer(ctx, q)
	}
}

// askAll asks every other relay of the pool at the same time and returns what came in
// time: a relay that does not answer is left out.
func askAll[T any](ctx context.Context, f *Fleet, question string, in any) []T {
	if f.peers == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var mu sync.Mutex
	var out []T
	var wg sync.WaitGroup
	for _, r := range f.cfg.Store.Relays() {
		if r.ID == f.cfg.Relay || r.PeerURL == "" {
			continue
		}
		wg.Go(func() {
			var got T
			if err := f.peers.Ask(ctx, r.ID, question, in, &got); err != nil {
				f.cfg.Logger.Debug("another relay does not answer", "peer", r.ID, "question", question, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, got)
		})
	}
	wg.Wait()
	return out
}

// Probe asks an agent what listens on a port, wherever the agent is.
func (f *Fleet) Probe(ctx context.Context, key ident.AgentKey, p wire.Probe) (wire.Probed, error) {
	found, err := f.cfg.Hub.Probe(ctx, key, p)
	if !errors.Is(err, ErrAway) || f.peers == nil {
		return found, err
	}
	at, ok := f.cfg.Store.Presence(key)
	if !ok || at.Relay == "" {
		return found, err
	}
	err = f.peers.Ask(ctx, at.Relay, askProbe, probeQuestion{key, p}, &found)
	return found, err
}

func (f *Fleet) totalsHere(ids []ident.SessionID) map[ident.SessionID]usage.Totals {
	out := make(map[ident.SessionID]usage.Totals, len(ids))
	for _, id := range ids {
		out[id] = f.cfg.Meter.Totals(id)
	}
	return out
}

// Totals sums up tunnels' figures over all relays that answer.
func (f *Fleet) Totals(ctx context.Context, ids []ident.SessionID) map[ident.SessionID]usage.Totals {
	sum := f.totalsHere(ids)
	if len(ids) == 0 {
		return sum
	}
	for _, other := range askAll[map[ident.SessionID]usage.Totals](ctx, f, askTotals, ids) {
		for id, t := range other {
			if s, ok := sum[id]; ok {
				sum[id] = s.Plus(t)
			}
		}
	}
	return sum
}

// Viewers lists who uses a tunnel on any relay that answers, the longest there first.
func (f *Fleet) Viewers(ctx context.Context, id ident.SessionID) []api.Viewer {
	list := f.cfg.Meter.Viewers(id)
	for _, other := range askAll[[]api.Viewer](ctx, f, askViewers, id) {
		list = append(list, other...)
	}
	slices.SortFunc(list, func(a, b api.Viewer) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ViewerID, b.ViewerID))
	})
	return list
}

// Kick finds the viewer on whichever relay knows it and refuses that party on all:
// a load balancer would bring it back through another one. It returns who it was, if
// there was such a viewer.
func (f *Fleet) Kick(ctx context.Context, id ident.SessionID, viewer ident.ViewerID) (party usage.Party, found bool) {
	q := kickQuestion{Session: id, Viewer: viewer}
	party, found = f.cfg.Meter.PartyOf(id, viewer)
	if !found {
		for _, a := range askAll[partyAnswer](ctx, f, askParty, q) {
			if a.Found {
				party, found = a.Party, true
			}
		}
	}
	if !found {
		return usage.Party{}, false
	}
	q.Party = party
	if !f.cfg.Meter.Kick(id, viewer) {
		f.cfg.Meter.KickParty(id, party)
	}
	askAll[struct{}](ctx, f, askKick, q)
	return party, true
}
