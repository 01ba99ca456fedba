package access

import (
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// MaxPass is how long a pass is good at most.
const MaxPass = 12 * time.Hour

// pass is what a browser shows at a tunnel's address. It says by what its holder came in,
// and is good for one address, one version of the rule and one kind of browser. Of a
// person it says which sign-in they came with: who that is, and whether they still may,
// is looked up each time.
type pass struct {
	Session ident.SessionID `json:"t"`
	Link    ident.LinkID    `json:"l,omitempty"`
	OwnRule bool            `json:"o,omitempty"` // of the link's rule, not the tunnel's
	Version uint64          `json:"v"`
	PIN     string          `json:"p,omitempty"` // mark of the hash of the PIN that was right
	How     How             `json:"h"`
	Name    string          `json:"n,omitempty"` // as somebody who knocked said
	SignIn  string          `json:"s,omitempty"`
	Browser string          `json:"b,omitempty"`
	Ends    time.Time       `json:"e"`
}

// Mark is the short hash of a text, as a pass keeps that of its browser.
func Mark(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

// Seal makes the pass of somebody who may use a tunnel now, good until then or for
// MaxPass, whichever is less. ends says how long that is.
func (a *Access) Seal(v Viewer, browser string, t *store.TunnelRecord, l *store.LinkRecord, until time.Time) (secret ident.Secret, ends time.Time) {
	rule := RuleOf(t, l)
	ends = a.cfg.Now().Add(MaxPass)
	for _, end := range []time.Time{until, t.ExpiresAt} {
		if !end.IsZero() && end.Before(ends) {
			ends = end
		}
	}
	p := pass{Session: t.Session, Version: rule.Version, How: v.How, SignIn: v.by.SignIn, Browser: Mark(browser), Ends: ends.UTC().Truncate(time.Second)}
	if l != nil {
		p.Link, p.OwnRule = l.ID, l.Access != nil
	}
	if p.SignIn == "" {
		p.Name = v.Name
	}
	if rule.Mode == api.AccessPIN && v.How == ByPIN {
		p.PIN = Mark(rule.PINHash)
	}
	a.metrics.pass(v.How)
	return ident.Secret(ident.PrefixPass + a.seals.seal(purposePass, p)), p.Ends
}

// fits says whether a pass is for what it is shown for.
func (p *pass) fits(req Request, rule *store.AccessRule) bool {
	var link ident.LinkID
	own := false
	if req.Link != nil {
		link, own = req.Link.ID, req.Link.Access != nil
	}
	return p.Session == req.Tunnel.Session && p.Link == link && p.OwnRule == own && p.Version == rule.Version &&
		(p.How != ByPIN || p.PIN == Mark(rule.PINHash)) && p.Browser == Mark(req.Browser)
}

// open reads a pass of this pool. What was opened once is kept, since a page comes with
// many requests.
func (a *Access) open(secret ident.Secret) (*pass, bool) {
	if p := a.passes.get(secret); p != nil {
		return p, true
	}
	text, ok := cutSecret(secret, ident.PrefixPass)
	if !ok || len(text) > maxSealed {
		return nil, false
	}
	p := new(pass)
	if !a.seals.open(purposePass, text, p) {
		return nil, false
	}
	a.passes.put(secret, p)
	return p, true
}

// maxPasses bounds those that are kept opened.
const maxPasses = 4096

// passes are some that were opened. They are not changed.
type passes struct {
	mu   sync.RWMutex
	seen map[ident.Secret]*pass
}

func (s *passes) get(secret ident.Secret) *pass {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.seen[secret]
}

func (s *passes) put(secret ident.Secret, p *pass) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil || len(s.seen) >= maxPasses {
		s.seen = map[ident.Secret]*pass{} // they are opened again in no time
	}
	s.seen[secret] = p
}
