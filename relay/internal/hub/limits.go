package hub

import (
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
)

// What agents may cost is limited by the second: links, which each claim a generation
// in the store, and changes of what an agent says, which are written at once. Each
// counts for its credential and for its team; what is for every agent of a team grows
// with the number of agents that a team may have, for all of them come back at once
// after a relay was restarted.

const (
	// Of a credential that is for one agent: that has 72 links at most.
	ownLinks     = 128
	ownLinksRate = 2
	// Changes of one agent; what comes faster waits in memory.
	sessionNews     = 8
	sessionNewsRate = 1
	// Bytes of such changes, of one credential; a team has twice that.
	newsBytes     = 8 << 20
	newsBytesRate = 512 << 10
)

// paces are token buckets by name.
type paces struct {
	mu      sync.Mutex
	buckets map[string]*rate.Limiter
}

// maxPaces bounds the memory: beyond it the full buckets, which say nothing, go.
const maxPaces = 50000

// allow takes n from the bucket of that name.
func (p *paces) allow(name string, perSecond float64, burst, n int) bool {
	now := time.Now()
	p.mu.Lock()
	b := p.buckets[name]
	if b == nil {
		if len(p.buckets) >= maxPaces {
			for k, b := range p.buckets {
				if b.TokensAt(now) >= float64(b.Burst()) {
					delete(p.buckets, k)
				}
			}
		}
		if p.buckets == nil {
			p.buckets = make(map[string]*rate.Limiter)
		}
		b = rate.NewLimiter(rate.Limit(perSecond), burst)
		p.buckets[name] = b
	}
	p.mu.Unlock()
	return b.AllowN(now, min(n, burst))
}

// mayLink refuses a link of a credential, or of a team, that makes too many.
func (h *Hub) mayLink(p creds.Principal) *api.Problem {
	burst := max(ownLinks, h.cfg.AgentsPerTeam/5)
	perSecond := max(ownLinksRate, float64(h.cfg.AgentsPerTeam)/50)
	own, ownPerSecond := burst, perSecond
	if p.Agent != "" {
		own, ownPerSecond = ownLinks, ownLinksRate
	}
	if h.links.allow(string(p.Credential), ownPerSecond, own, 1) && h.links.allow(string(p.Team), 2*perSecond, 2*burst, 1) {
		return nil
	}
	// Not all at the same moment.
	return api.NewProblem(api.CodeTooManyLinks, "this credential, or its team, makes links too fast").WithRetry(time.Second + rand.N(4*time.Second))
}

// mayTell says whether a change of so many bytes may be written now.
func (s *session) mayTell(bytes int) bool {
	n := &s.hub.news
	return s.news.Allow() &&
		n.allow(string(s.principal.Credential), newsBytesRate, newsBytes, bytes) &&
		n.allow(string(s.principal.Team), 2*newsBytesRate, 2*newsBytes, bytes)
}
