package rest

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/namedlinks"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Links makes, lists, changes and takes back named links.
type Links interface {
	Create(ctx context.Context, by string, t store.TunnelRecord, spec namedlinks.Spec) (store.LinkRecord, error)
	List(session ident.SessionID) []namedlinks.Listed
	Revoke(ctx context.Context, by string, session ident.SessionID, id ident.LinkID) error
	SetAccess(ctx context.Context, by string, session ident.SessionID, id ident.LinkID, change func(old *store.AccessRule) (*store.AccessRule, error)) (namedlinks.Listed, error)
}

func (a *API) createLink(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	var req api.CreateLinkRequest
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	spec := namedlinks.Spec{Name: strings.TrimSpace(req.Name), Credential: p.Credential, User: p.Person()}
	if spec.Name == "" {
		return invalid("name", "1 to %d characters", maxLabel)
	}
	if err := checkText("name", spec.Name, maxLabel); err != nil {
		return err
	}
	if req.ExpiresIn != nil {
		if spec.ExpiresIn = req.ExpiresIn.D(); spec.ExpiresIn < time.Second {
			return invalid("expires_in", "a second or more")
		}
		if longest := a.cfg.Gate.Limits().MaxExpiresIn; spec.ExpiresIn > longest {
			spec.ExpiresIn = longest // no tunnel lives longer
		}
	}
	if req.MaxUses != nil {
		if *req.MaxUses < 1 || *req.MaxUses > api.MaxLinkUses {
			return invalid("max_uses", "1 to %d", api.MaxLinkUses)
		}
		spec.MaxUses = *req.MaxUses
	}
	rule, err := a.linkRule(req.AccessRequest, t.Protocol)
	if err != nil {
		return err
	}
	if spec.Access, err = rule(nil); err != nil && !errors.Is(err, store.ErrUnchanged) {
		return err
	}
	made, err := a.cfg.Links.Create(r.Context(), p.Name, t, spec)
	if err != nil {
		return a.orWhy(err, t.Session, p)
	}
	return send(w, http.StatusCreated, a.namedLink(t, namedlinks.Listed{LinkRecord: made}))
}

func (a *API) listLinks(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	if _, err := query(r); err != nil {
		return err
	}
	out := api.NamedLinkList{Links: []api.NamedLink{}}
	for _, l := range a.cfg.Links.List(t.Session) {
		out.Links = append(out.Links, a.namedLink(t, l))
	}
	// A list holds addresses, which are access.
	a.audit(r, p, audit.Record{Event: audit.LinksListed, Agent: t.Agent, Session: t.Session})
	return send(w, http.StatusOK, out)
}

func (a *API) revokeLink(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	id, err := ident.ParseLinkID(r.PathValue("link_id"))
	if err != nil {
		return api.NotFound(api.CodeLinkNotFound)
	}
	if err := a.cfg.Links.Revoke(r.Context(), p.Name, t.Session, id); err != nil {
		return err
	}
	return sendNothing(w)
}

func (a *API) namedLink(t store.TunnelRecord, l namedlinks.Listed) api.NamedLink {
	ends := t.ExpiresAt
	if !l.ExpiresAt.IsZero() && l.ExpiresAt.Before(ends) {
		ends = l.ExpiresAt
	}
	rule := l.Access
	if rule == nil {
		rule = t.Access
	}
	return api.NamedLink{
		LinkID: l.ID, SessionID: t.Session, Name: l.Name, URL: a.cfg.Addresses.LinkURL(t, l.ID),
		AlternateURLs: notNil(a.cfg.Addresses.LinkAlternates(t, l.ID)), Segment: string(a.cfg.Addresses.LinkSegment(l.ID)),
		CreatedBy: l.CreatedBy, CreatedByName: a.personOf(l.Opened()), CreatedAt: l.CreatedAt.UTC(), ExpiresAt: ends.UTC(), MaxUses: l.MaxUses, Uses: l.Uses,
		LastUsedAt: l.LastUsed.UTC(), Viewers: l.ViewersNow, Access: access.Public(rule),
	}
}
