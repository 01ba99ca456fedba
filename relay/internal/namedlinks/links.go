package namedlinks

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// MaxPerTunnel bounds the named links of one tunnel.
const MaxPerTunnel = 64

const (
	// keepViewers bounds the marks in the record of a link without a limit.
	keepViewers = 256
	// maxKnown bounds the viewers of one link that are remembered in memory; others
	// are looked for in the record.
	maxKnown = 4096
	// confirm bounds the wait for the store before a link counts as used up.
	confirm = 2 * time.Second
)

// ErrOver says that a link admits nobody more: used up, or taken back just now.
var ErrOver = errors.New("the link is used up or over")

// Store is where links are kept.
type Store interface {
	CreateLink(ctx context.Context, r store.LinkRecord, most int) error
	UpdateLink(ctx context.Context, session ident.SessionID, id ident.LinkID, change func(*store.LinkRecord) error) (store.LinkRecord, error)
	DeleteLink(ctx context.Context, session ident.SessionID, id ident.LinkID) error
	Link(id ident.LinkID) (store.LinkRecord, bool)
	TunnelLinks(id ident.SessionID) []store.LinkRecord
	AllLinks() iter.Seq[store.LinkRecord]
	Tunnel(id ident.SessionID) (store.TunnelRecord, bool)
	Credential(id ident.CredentialID) (store.CredentialRecord, bool)
	Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool)
	CatchUp(ctx context.Context) error
	Subscribe(buffer int) gate.Feed
}

// Usage is what uses tunnels on this relay.
type Usage interface {
	CutLink(id ident.SessionID, link ident.LinkID, cause error) int
	LinkUse(id ident.SessionID, link ident.LinkID) (viewers int, last time.Time)
}

// Config is what Links is made of. Store, Usage, Audit and Logger are required.
type Config struct {
	Store      Store
	Usage      Usage
	Audit      gate.Auditor
	Key        ident.ClusterKey
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Links runs the rule. It is safe for concurrent use.
type Links struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	mu     sync.Mutex
	memory map[ident.LinkID]*memory
	ended  map[ident.LinkID]ended
	order  []ident.LinkID // of ended, oldest first
}

// ended is a link that is over, remembered for those who come back by it.
type ended struct {
	session ident.SessionID
	text    string
	at      time.Time
}

// memory is what this relay knows of a link before the store does.
type memory struct {
	known   map[string]struct{} // admitted viewers' marks
	looked  map[string]struct{} // of previews, which leave the rest alone
	pending []string            // of a link without limit: not written yet
	used    time.Time
	written time.Time // the value of used that the record has
	session ident.SessionID
}

// New checks the configuration and returns Links. Run must run for links to end.
func New(cfg Config) (*Links, error) {
	if cfg.Store == nil || cfg.Usage == nil || cfg.Audit == nil || cfg.Logger == nil {
		return nil, errors.New("namedlinks: Store, Usage, Audit and Logger are required")
	}
	return &Links{cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Registerer), memory: map[ident.LinkID]*memory{}, ended: map[ident.LinkID]ended{}}, nil
}

// Spec is what a new link shall be.
type Spec struct {
	Name      string
	ExpiresIn time.Duration // 0: with the tunnel
	MaxUses   int           // 0: any number
	// Credential is the one that it is made with, and User the person; it ends with the
	// one's revocation and the other's removal.
	Credential ident.CredentialID
	User       ident.UserID
	Access     *store.AccessRule // nil: the tunnel's
}

// Create makes a link of an open tunnel.
func (l *Links) Create(ctx context.Context, by string, t store.TunnelRecord, spec Spec) (store.LinkRecord, error) {
	r := store.LinkRecord{
		ID: ident.NewLinkID(), Session: t.Session, Team: t.Team, Agent: t.Agent, Name: spec.Name, MaxUses: spec.MaxUses, Access: spec.Access,
		CreatedBy: by, Credential: spec.Credential, User: spec.User, CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
	}
	if spec.ExpiresIn > 0 {
		r.ExpiresAt = r.CreatedAt.Add(spec.ExpiresIn)
	}
	switch err := l.cfg.Store.CreateLink(ctx, r, MaxPerTunnel); {
	case errors.Is(err, store.ErrNotFound):
		return r, api.NotFound(api.CodeTunnelNotFound)
	case errors.Is(err, store.ErrLimit):
		return r, api.Problemf(api.CodeLinkLimit, "the tunnel has %d named links, which is the limit; revoke one", MaxPerTunnel)
	case err != nil:
		return r, unavailable(err)
	}
	l.metrics.created.Inc()
	detail := fmt.Sprintf("expires %s, max uses %d", until(r), r.MaxUses)
	if r.Access != nil {
		detail += ", " + r.Access.String()
	}
	l.audit(ctx, audit.LinkCreated, by, r, detail)
	// So that whoever made it finds it in the list.
	if err := l.cfg.Store.CatchUp(ctx); err != nil {
		l.log.Debug("wait for a new link to be listed", "link_id", r.ID, "error", err)
	}
	return r, nil
}

func until(r store.LinkRecord) string {
	if r.ExpiresAt.IsZero() {
		return "with the tunnel"
	}
	return r.ExpiresAt.Format(time.RFC3339)
}

// Revoke takes a link back and cuts who came in by it: here at once, on other
// relays when they hear of it.
func (l *Links) Revoke(ctx context.Context, by string, session ident.SessionID, id ident.LinkID) error {
	r, err := l.find(ctx, session, id)
	if err != nil {
		return err
	}
	switch err := l.cfg.Store.DeleteLink(ctx, session, id); {
	case errors.Is(err, store.ErrNotFound):
		return api.NotFound(api.CodeLinkNotFound)
	case err != nil:
		return unavailable(err)
	}
	n := l.cut(session, id, revoked)
	l.metrics.revoked.Inc()
	l.audit(ctx, audit.LinkRevoked, by, r, fmt.Sprintf("%d uses under way here", n))
	return nil
}

// find returns a link of a tunnel. A miss is confirmed, since the caller may be faster than
// the store's watch.
func (l *Links) find(ctx context.Context, session ident.SessionID, id ident.LinkID) (store.LinkRecord, error) {
	r, ok := l.cfg.Store.Link(id)
	if ok && r.Session == session {
		return r, nil
	}
	if err := l.cfg.Store.CatchUp(ctx); err != nil {
		return r, unavailable(err)
	}
	if r, ok = l.cfg.Store.Link(id); !ok || r.Session != session {
		return r, api.NotFound(api.CodeLinkNotFound)
	}
	return r, nil
}

// SetAccess changes who may come by a link: to what change makes of the present rule, in
// which store.ErrUnchanged leaves it as it is.
func (l *Links) SetAccess(ctx context.Context, by string, session ident.SessionID, id ident.LinkID, change func(old *store.AccessRule) (*store.AccessRule, error)) (Listed, error) {
	if _, err := l.find(ctx, session, id); err != nil {
		return Listed{}, err
	}
	r, err := l.cfg.Store.UpdateLink(ctx, session, id, func(r *store.LinkRecord) (err error) {
		r.Access, err = change(r.Access)
		return err
	})
	var refused *api.Problem
	switch {
	case errors.As(err, &refused):
		return Listed{}, refused
	case errors.Is(err, store.ErrNotFound):
		return Listed{}, api.NotFound(api.CodeLinkNotFound)
	case err != nil:
		return Listed{}, unavailable(err)
	}
	text := "access as its tunnel's"
	if r.Access != nil {
		text = r.Access.String()
	}
	l.audit(ctx, audit.AccessChanged, by, r, text)
	if err := l.cfg.Store.CatchUp(ctx); err != nil {
		l.log.Debug("wait for a changed link to be listed", "link_id", r.ID, "error", err)
	}
	return l.Now(r), nil
}

// What users of a link that is over are told.
const (
	revoked = "the link was revoked"
	expired = "the link expired"
)

const (
	endedFor = 10 * time.Minute
	maxEnded = 4096
)

// cut ends what came in by a link, and remembers why. The first reason stands.
func (l *Links) cut(session ident.SessionID, id ident.LinkID, text string) int {
	l.mu.Lock()
	now := time.Now()
	if _, known := l.ended[id]; !known {
		for len(l.order) > 0 && (len(l.order) >= maxEnded || now.Sub(l.ended[l.order[0]].at) >= endedFor) {
			delete(l.ended, l.order[0])
			l.order = l.order[1:]
		}
		l.ended[id], l.order = ended{session, text, now}, append(l.order, id)
	}
	text = l.ended[id].text
	l.mu.Unlock()
	return l.cfg.Usage.CutLink(session, id, &usage.Over{Of: usage.ErrRevoked, Text: text})
}

// Why says of which tunnel a link was that is over, and why it is. It is false for
// one that is not over, never was, or ended too long ago.
func (l *Links) Why(id ident.LinkID) (ident.SessionID, string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.ended[id]
	return e.session, e.text, ok && time.Since(e.at) < endedFor
}

func unavailable(err error) *api.Problem {
	if refusal := store.Refusal(err); refusal != nil {
		return refusal
	}
	return store.Refusal(fmt.Errorf("%w: %w", store.ErrUnavailable, err))
}

// Listed is a link with its use as far as this relay knows.
type Listed struct {
	store.LinkRecord
	ViewersNow int
}

// Now completes a record with what is not written yet.
func (l *Links) Now(r store.LinkRecord) Listed {
	viewers, last := l.cfg.Usage.LinkUse(r.Session, r.ID)
	if last.After(r.LastUsed) {
		r.LastUsed = last
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.memory[r.ID]; m != nil {
		for _, mark := range m.pending {
			if !slices.Contains(r.Viewers, mark) {
				r.Uses++
			}
		}
		if m.used.After(r.LastUsed) {
			r.LastUsed = m.used
		}
	}
	return Listed{r, viewers}
}

// List returns a tunnel's links, the oldest first.
func (l *Links) List(session ident.SessionID) []Listed {
	records := l.cfg.Store.TunnelLinks(session)
	out := make([]Listed, 0, len(records))
	for _, r := range records {
		if r.ExpiresAt.IsZero() || time.Now().Before(r.ExpiresAt) {
			out = append(out, l.Now(r))
		}
	}
	return out
}

// mark is a viewer as a link remembers it. It says nothing to who does not know
// the viewer already.
func (l *Links) mark(id ident.LinkID, p usage.Party) string {
	mac := hmac.New(sha256.New, l.cfg.Key[:])
	fmt.Fprintf(mac, "link-viewer\n%s\n%s\n%s", id, addr(caller.Network(p.Remote)), p.UserAgent)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:8])
}

func addr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.WithZone("").String()
}

// Admitted says whether a viewer has been admitted by a link before.
func (l *Links) Admitted(r store.LinkRecord, p usage.Party) bool {
	return l.admitted(r, l.mark(r.ID, p))
}

func (l *Links) admitted(r store.LinkRecord, mark string) bool {
	_, ok := l.remembered(r.ID, mark)
	return ok || slices.Contains(r.Viewers, mark)
}

func (l *Links) remembered(id ident.LinkID, mark string) (struct{}, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.memory[id].has(mark)
}

func (m *memory) has(mark string) (struct{}, bool) {
	if m == nil {
		return struct{}{}, false
	}
	v, ok := m.known[mark]
	return v, ok
}

// Open says whether a link has a place for a viewer, or has admitted it before. It
// uses nothing up. The answer no takes as long as that for a link that is gone,
// which the store has to confirm.
func (l *Links) Open(ctx context.Context, r store.LinkRecord, p usage.Party) bool {
	if r.MaxUses == 0 || r.Uses < r.MaxUses || l.Admitted(r, p) {
		return true
	}
	l.refuse(ctx)
	return false
}

func (l *Links) refuse(ctx context.Context) {
	l.metrics.refused.Inc()
	ctx, cancel := context.WithTimeout(ctx, confirm)
	defer cancel()
	if err := l.cfg.Store.CatchUp(ctx); err != nil {
		l.log.Debug("confirm that a link is used up", "error", err)
	}
}

// Admit lets a viewer in, which is a use if it is a new one. ErrOver: there is no
// place any more. An *api.Problem: it cannot be known, since the store is away.
func (l *Links) Admit(ctx context.Context, r store.LinkRecord, p usage.Party) error {
	mark := l.mark(r.ID, p)
	if l.admitted(r, mark) {
		l.remember(r, mark, false)
		return nil
	}
	if r.MaxUses > 0 {
		err := l.take(ctx, r, mark)
		if err != nil {
			return err
		}
	}
	l.remember(r, mark, r.MaxUses == 0)
	l.metrics.uses.Inc()
	l.audit(gate.WithTrace(ctx, gate.Trace{Remote: addr(p.Remote)}), audit.LinkUsed, "viewer", r, "")
	return nil
}

// Previewed notes that somebody looked at what a link leads to without being a viewer,
// or called themselves so: once for each.
func (l *Links) Previewed(ctx context.Context, r store.LinkRecord, p usage.Party) {
	if l.looked(r, l.mark(r.ID, p)) {
		return
	}
	l.audit(gate.WithTrace(ctx, gate.Trace{Remote: addr(p.Remote)}), audit.LinkPreviewed, "anonymous", r, fmt.Sprintf("by %.64q", p.UserAgent))
}

// take uses up one of a limited link's uses, in the store: of two viewers for the
// last one, on whichever relays, exactly one gets it.
func (l *Links) take(ctx context.Context, r store.LinkRecord, mark string) error {
	_, err := l.cfg.Store.UpdateLink(ctx, r.Session, r.ID, func(cur *store.LinkRecord) error {
		switch {
		case slices.Contains(cur.Viewers, mark):
			return store.ErrUnchanged
		case cur.Uses >= cur.MaxUses:
			return ErrOver
		}
		cur.Uses++
		cur.Viewers = append(cur.Viewers, mark)
		cur.LastUsed = time.Now().UTC().Truncate(time.Millisecond)
		return nil
	})
	switch {
	case errors.Is(err, ErrOver), errors.Is(err, store.ErrNotFound):
		l.metrics.refused.Inc()
		return ErrOver
	case err != nil:
		return unavailable(err)
	}
	return nil
}

// remember notes a viewer's use; count says that the record does not have it yet.
func (l *Links) remember(r store.LinkRecord, mark string, count bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.of(r)
	m.used = time.Now()
	if _, ok := m.known[mark]; ok {
		return
	}
	if len(m.known) >= maxKnown {
		clear(m.known)
	}
	m.known[mark] = struct{}{}
	if count {
		m.pending = append(m.pending, mark)
	}
}

// of returns what is remembered of a link, with l.mu held.
func (l *Links) of(r store.LinkRecord) *memory {
	m := l.memory[r.ID]
	if m == nil {
		m = &memory{known: map[string]struct{}{}, looked: map[string]struct{}{}, session: r.Session, used: r.LastUsed, written: r.LastUsed}
		l.memory[r.ID] = m
	}
	return m
}

// looked notes a preview, and says whether the same was noted before.
func (l *Links) looked(r store.LinkRecord, mark string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.of(r)
	if _, ok := m.looked[mark]; ok {
		return true
	}
	if len(m.looked) >= maxKnown {
		clear(m.looked)
	}
	m.looked[mark] = struct{}{}
	return false
}

// audit records what happened to a link; its trace is the request's.
func (l *Links) audit(ctx context.Context, event audit.Event, by string, r store.LinkRecord, more string) {
	detail := fmt.Sprintf("link %s %q", r.ID, r.Name)
	if more != "" {
		detail += ", " + more
	}
	rec := audit.Record{Event: event, Actor: by, Team: r.Team, Agent: r.Agent, Session: r.Session, Detail: detail}
	if t, ok := gate.TraceOf(ctx); ok {
		rec.RequestID, rec.RemoteAddr = t.Request, t.Remote
	}
	if err := l.cfg.Audit.Append(context.WithoutCancel(ctx), rec); err != nil {
		l.log.Error("write audit record", "event", event, "link_id", r.ID, "error", err)
	}
}
