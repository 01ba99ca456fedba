package access

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Bounds of knocks.
const (
	KnockTime    = 10 * time.Minute // that somebody waits
	maxKnocks    = 20               // that wait at a tunnel
	maxKnocksOf  = 3                // that wait, or were refused, of one network
	maxKnockName = 64               // characters
	maxUserAgent = 256              // bytes
)

// Knock has somebody wait at a tunnel until a member of the team answers. The secret binds
// the knock to its browser. An empty one without an error: the tunnel does not ask for it
// any more. The error is a *api.Problem.
func (d *Doors) Knock(ctx context.Context, req Request, name string) (ident.Secret, error) {
	rule, err := d.rule(req, api.AccessKnock)
	if rule == nil {
		return "", err
	}
	name = strings.TrimSpace(name)
	if name == "" || utf8.RuneCountInString(name) > maxKnockName || !printable(name) {
		return "", api.Problemf(api.CodeOutOfRange, "name: say who you are, in 1 to %d characters", maxKnockName)
	}
	now := d.cfg.Now()
	from := req.Remote.String()
	if !d.knocks.Take(from, now) {
		d.metrics.knocks.WithLabelValues(knockLimited).Inc()
		return "", api.NewProblem(api.CodeTooManyTries, "your network knocks too often").WithRetry(max(time.Second, d.knocks.Wait(from, now)))
	}
	done, err := d.come(req.Tunnel.Session, caller.Key(from), now)
	if err != nil {
		d.metrics.knocks.WithLabelValues(knockLimited).Inc()
		return "", err
	}
	defer done()
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	rec := store.KnockRecord{
		ID: hex.EncodeToString(id), Session: req.Tunnel.Session, Name: name, RemoteAddr: from,
		UserAgent: shorten(req.Browser), At: now.UTC(), Version: rule.Version, ExpiresAt: now.Add(KnockTime).UTC(),
	}
	if end := req.Tunnel.ExpiresAt; !end.IsZero() && end.Before(rec.ExpiresAt) {
		rec.ExpiresAt = end
	}
	if req.Link != nil {
		rec.Link = req.Link.ID
	}
	secret := ident.Secret(rec.ID + "." + random())
	rec.Browser = secret.Hash()
	if err := d.cfg.Store.CreateKnock(ctx, rec); err != nil {
		return "", doorProblem(err)
	}
	if err := d.audit(ctx, req, audit.TunnelKnock, name); err != nil {
		return "", err
	}
	d.metrics.knocks.WithLabelValues(knockTaken).Inc()
	// So that the browser finds itself waiting here; another relay may be a moment behind.
	_ = d.cfg.Store.CatchUp(ctx)
	return secret, nil
}

// come counts somebody who is about to wait, until done is called. Relays that have not
// heard of each other's yet may together take a few more than there may be.
func (d *Doors) come(session ident.SessionID, from string, now time.Time) (done func(), _ error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	waiting, same := len(d.coming[session]), 0
	for _, addr := range d.coming[session] {
		if addr == from {
			same++
		}
	}
	for _, k := range d.cfg.Store.Knocks(session) {
		if !now.Before(k.ExpiresAt) {
			continue
		}
		if k.Answer == "" {
			waiting++
		}
		if k.Answer != answerAdmit && caller.Key(k.RemoteAddr) == from {
			same++
		}
	}
	switch {
	case same >= maxKnocksOf:
		return nil, api.Problemf(api.CodeTooManyTries, "%d of your network wait here already, or were refused", maxKnocksOf).WithRetry(time.Minute)
	case waiting >= maxKnocks:
		return nil, api.Problemf(api.CodeTooManyRequests, "%d wait here already, as many as may", maxKnocks).WithRetry(30 * time.Second)
	}
	d.coming[session] = append(d.coming[session], from)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		list := d.coming[session]
		if i := slices.Index(list, from); i >= 0 {
			list = slices.Delete(list, i, i+1)
		}
		if d.coming[session] = list; len(list) == 0 {
			delete(d.coming, session)
		}
	}, nil
}

// Waited says what became of a knock: a pass when its browser was let in, which it gets
// once; ErrWaiting while nobody has answered; ErrNoKnock when it knocks anew. Other errors
// are a *api.Problem.
func (d *Doors) Waited(ctx context.Context, req Request, secret ident.Secret) (ident.Secret, time.Time, error) {
	var none time.Time
	rule, err := d.rule(req, api.AccessKnock)
	if err != nil {
		return "", none, err
	}
	id, _, ok := strings.Cut(secret.Reveal(), ".")
	if rule == nil || !ok {
		return "", none, ErrNoKnock
	}
	rec, ok := d.cfg.Store.Knock(req.Tunnel.Session, id)
	var link ident.LinkID
	if req.Link != nil {
		link = req.Link.ID
	}
	if !ok || !secret.Matches(rec.Browser) || rec.Link != link || rec.UserAgent != shorten(req.Browser) || rec.Version != rule.Version || !d.cfg.Now().Before(rec.ExpiresAt) {
		return "", none, ErrNoKnock
	}
	switch rec.Answer {
	case "":
		return "", none, ErrWaiting
	case answerAdmit:
	default:
		return "", none, api.NewProblem(api.CodeAccessDenied, "you were not let in; ask whoever sent you the address")
	}
	err = d.cfg.Store.UseTicket(ctx, secret.Hash(), rec.ExpiresAt.Add(time.Minute))
	if errors.Is(err, store.ErrExists) {
		return "", none, ErrNoKnock // whoever brings it again is somebody else, or left and came back
	}
	if err != nil {
		return "", none, doorProblem(err)
	}
	pass, ends := d.pass(req, Viewer{How: ByKnock, Name: rec.Name})
	return pass, ends, nil
}

// What Waited says besides problems.
var (
	ErrWaiting = errors.New("nobody has answered the knock yet")
	ErrNoKnock = errors.New("the browser does not wait here")
)

// Knocks returns who waits at a tunnel, the longest first.
func (d *Doors) Knocks(session ident.SessionID) []api.Knock {
	now, out := d.cfg.Now(), []api.Knock{}
	for _, k := range d.cfg.Store.Knocks(session) {
		if k.Answer == "" && now.Before(k.ExpiresAt) && d.stands(k) {
			out = append(out, api.Knock{
				KnockID: k.ID, SessionID: k.Session, LinkID: k.Link, Name: k.Name, RemoteAddr: k.RemoteAddr, Browser: k.UserAgent,
				KnockedAt: k.At, ExpiresAt: k.ExpiresAt,
			})
		}
	}
	slices.SortFunc(out, func(a, b api.Knock) int {
		return cmp.Or(a.KnockedAt.Compare(b.KnockedAt), cmp.Compare(a.KnockID, b.KnockID))
	})
	return out
}

// Answer lets in who knocks, or does not. Whoever calls may do so. It says what was done,
// for the audit log; nothing, when it was done already. The error is a *api.Problem.
func (d *Doors) Answer(ctx context.Context, by creds.Principal, t store.TunnelRecord, knock string, admit bool) (done string, _ error) {
	answer := answerRefuse
	if admit {
		answer = answerAdmit
	}
	changed := false
	rec, err := d.cfg.Store.ChangeKnock(ctx, t.Session, knock, func(k *store.KnockRecord) error {
		changed = false
		switch {
		case k.Answer == answer && k.By == by.Name:
			return store.ErrUnchanged // the answer to the first time was lost
		case k.Answer != "", !d.cfg.Now().Before(k.ExpiresAt), !d.stands(*k):
			return store.ErrNotFound
		}
		k.Answer, k.By, changed = answer, by.Name, true
		return nil
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return "", api.NewProblem(api.CodeKnockNotFound, "they do not wait any more, or somebody answered them already")
	case err != nil:
		return "", doorProblem(err)
	case !changed:
		return "", nil
	}
	d.metrics.knocks.WithLabelValues(answer).Inc()
	_ = d.cfg.Store.CatchUp(ctx) // so that the next list here does not have them
	return answer + " " + rec.Name + ", from " + rec.RemoteAddr, nil
}

// stands says whether somebody waits who could be let in: nobody, when who may use the
// tunnel was changed since they knocked.
func (d *Doors) stands(k store.KnockRecord) bool {
	t, l, ok := d.cfg.Access.address(k.Session, k.Link)
	if !ok {
		return false
	}
	rule := RuleOf(&t, l)
	return rule != nil && rule.Mode == api.AccessKnock && rule.Version == k.Version
}

func shorten(s string) string {
	if len(s) > maxUserAgent {
		s = s[:maxUserAgent]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
