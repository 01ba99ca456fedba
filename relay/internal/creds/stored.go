package creds

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// form is what a kind of stored credential looks like.
type form struct {
	prefix string
	kind   Kind
	stored api.CredentialKind
}

var forms = [...]form{
	{ident.PrefixIntegration, KindIntegration, api.KindIntegration},
	{ident.PrefixDevice, KindDevice, api.KindDevice},
	{ident.PrefixAgent, KindAgent, api.KindAgent},
}

// bodyLength is that of ident.NewSecret: 200 bits in base32.
const bodyLength = 40

func formOf(s ident.Secret) (form, bool) {
	for _, f := range forms {
		if strings.HasPrefix(s.Reveal(), f.prefix) {
			return f, true
		}
	}
	return form{}, false
}

func wellFormed(s ident.Secret, f form) bool {
	body := strings.TrimPrefix(s.Reveal(), f.prefix)
	return len(body) == bodyLength && strings.Trim(body, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// stored authenticates a credential of the store. X-Team-ID plays no part.
func (a *Authenticator) stored(r *http.Request, secret ident.Secret, f form) (Principal, *refusal) {
	if !wellFormed(secret, f) {
		return Principal{}, invalid(outcomeMalformed, "the credential is not complete, or has characters that none has")
	}
	hash := secret.Hash()
	rec, ok := a.cfg.Store.CredentialByHash(hash)
	if !ok {
		refused := a.misses.settle(r.Context(), hash, a.cfg.ClientAddr(r), invalid(outcomeUnknown, "no such credential"), func() bool {
			rec, ok = a.cfg.Store.CredentialByHash(hash)
			return ok
		})
		if refused != nil {
			return Principal{}, refused
		}
	}
	if rec.Kind != f.stored || !secret.Matches(rec.Hash) {
		return Principal{}, invalid(outcomeUnknown, "no such credential")
	}
	now := time.Now()
	if refused := a.usable(rec, now); refused != nil {
		return Principal{}, refused
	}
	role, refused := a.standing(rec)
	if refused != nil {
		return Principal{}, refused
	}
	if a.cfg.Store.Status().Stale {
		// It was good when this relay last heard of it, and may have been revoked since.
		return Principal{}, unavailable(api.StoreUnavailable("this relay has not heard from its store for a while, so the credential may have been revoked since: try again, or another relay", nil))
	}
	a.lastUse.note(rec, now)
	p := Principal{
		Kind: f.kind, Team: rec.Team, Role: role, Scopes: rec.Scopes, Agents: rec.Agents, Ports: rec.Ports,
		Maker: rec.Maker, Credential: rec.ID, ExpiresAt: rec.ExpiresAt,
	}
	switch f.kind {
	case KindDevice:
		p.User = rec.User
		p.Name = "dk:" + string(rec.User) + "/" + rec.Name
	case KindAgent:
		p.Agent = rec.Agent
		p.Name = "ak:" + rec.Name
	default:
		p.Name = "sk:" + rec.Name
	}
	return p, nil
}

// usable says why a credential is good for nothing any more, if so. What was made with
// another one is good for no longer than that.
func (a *Authenticator) usable(rec store.CredentialRecord, now time.Time) *refusal {
	switch stone, revoked := store.Credentials(a.cfg.Store.Credential).Revoked(rec.ID); {
	case revoked && stone.ID == rec.ID:
		return invalid(outcomeRevoked, "the credential was revoked")
	case revoked:
		return invalid(outcomeRevoked, "the credential was made with one that was revoked")
	case !rec.ExpiresAt.IsZero() && !now.Before(rec.ExpiresAt):
		return invalid(outcomeExpired, "the credential has expired")
	}
	return nil
}

// MayLink says why a principal may not bring up the link of an agent. An agent that has
// a credential of its own links with that alone, so that a key which is for any agent
// of the team is no key to it.
func (a *Authenticator) MayLink(p Principal, key ident.AgentKey) error {
	if !p.MayLink(key) {
		return fmt.Errorf("this credential is for agent %q only, not for %q", p.Agent, key.Agent)
	}
	if p.Agent != "" {
		return nil
	}
	now := time.Now()
	for _, rec := range a.cfg.Store.AgentCredentials(key) {
		if a.usable(rec, now) == nil {
			return fmt.Errorf("agent %q has a credential of its own (%s…, id %s), and this one is for any agent of the team: give the machine its own (adit-agent enroll), give it another agent_id, or revoke its own (adit-relay credential revoke %s)",
				key.Agent, rec.Prefix, rec.ID, rec.ID)
		}
	}
	return nil
}

const (
	confirmTimeout  = 3 * time.Second
	negativeFor     = 30 * time.Second
	negativeMost    = 4096
	missesPerSecond = 10 // of the whole relay
	missesBurst     = 50
	missesAddrEvery = time.Second
	missesAddrBurst = 20
	addressesMost   = 4096
)

// misses settles whether a hash that the index does not have exists at all. The
// index may be a moment behind the store, so a miss deserves one look; but anyone
// can make up secrets, so looks are rationed: per address, over all, and never
// twice for the same hash.
type misses struct {
	store Store
	m     *metrics

	addresses *caller.Limits

	mu     sync.Mutex
	all    *rate.Limiter
	absent map[string]time.Time // hash -> known to be absent until
}

func newMisses(s Store, m *metrics) *misses {
	return &misses{store: s, m: m,
		all:       rate.NewLimiter(missesPerSecond, missesBurst),
		addresses: caller.NewLimits(missesAddrEvery, missesAddrBurst, addressesMost),
		absent:    make(map[string]time.Time),
	}
}

// settle returns nil when find finds it, and unknown when it is nowhere.
func (s *misses) settle(ctx context.Context, hash, addr string, unknown *refusal, find func() bool) *refusal {
	switch reason := s.spared(hash, addr, time.Now()); {
	case reason == "limited" && !trusted(s.store.Status()):
		// Agents that come back to a relay which is cut off, all from one address,
		// must not be told that their credentials are no good.
		s.m.misses.WithLabelValues("unavailable").Inc()
		return cannotTell(nil)
	case reason != "":
		s.m.misses.WithLabelValues(reason).Inc()
		return unknown
	}
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	err := s.store.CatchUp(ctx)
	if find() {
		s.m.misses.WithLabelValues("found").Inc()
		return nil
	}
	if err != nil {
		s.m.misses.WithLabelValues("unavailable").Inc()
		return cannotTell(err)
	}
	s.m.misses.WithLabelValues("confirmed").Inc()
	s.remember(hash, time.Now())
	return unknown
}

// trusted says whether the index is behind the store by moments at most.
func trusted(st store.Status) bool { return st.Quorum && !st.Stale }

func cannotTell(err error) *refusal {
	return unavailable(api.StoreUnavailable("the credential or sign-in is not known here, and the store cannot be asked now", err))
}

// spared says why the store need not, or must not, be asked; empty: ask.
func (s *misses) spared(hash, addr string, now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until, ok := s.absent[hash]; ok && now.Before(until) {
		return "cached"
	}
	// The address first: one that has used up its share takes nothing of the others'.
	if !s.addresses.Take(addr, now) || !s.all.AllowN(now, 1) {
		return "limited"
	}
	return ""
}

func (s *misses) remember(hash string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.absent) >= negativeMost {
		for h, until := range s.absent {
			if !now.Before(until) {
				delete(s.absent, h)
			}
		}
		if len(s.absent) >= negativeMost {
			clear(s.absent)
		}
	}
	s.absent[hash] = now.Add(negativeFor)
}
