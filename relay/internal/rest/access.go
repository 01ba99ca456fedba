package rest

import (
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// tunnelRule makes the rule of a tunnel that is opened; nil lets in who has the URL.
func (a *API) tunnelRule(req api.AccessRequest, protocol api.Protocol) (*store.AccessRule, error) {
	r, err := a.cfg.Access.Rule(req, protocol)
	if err != nil {
		return nil, err
	}
	rule, err := access.ReplaceTunnel(nil, r, time.Now())
	if errors.Is(err, store.ErrUnchanged) {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return a.kept(rule)
}

// kept returns a rule, unless it would be no more than a word: while a relay of the pool
// does not apply rules, people come in by that one, and it forgets what it cannot read.
func (a *API) kept(rule *store.AccessRule) (*store.AccessRule, error) {
	if rule != nil && a.cfg.AppliesAccess != nil && !a.cfg.AppliesAccess() {
		return nil, api.NewProblem(api.CodeAccessNotYet, "a relay of the pool is of the last release, which lets in who has the URL: who may use a tunnel can be said when all relays are upgraded")
	}
	return rule, nil
}

// linkRule makes what is to be done to the rule of a named link; nil is its tunnel's. What
// only narrows has to say of what: the tunnel's may change, and the link's would stay.
func (a *API) linkRule(req api.AccessRequest, protocol api.Protocol) (func(old *store.AccessRule) (*store.AccessRule, error), error) {
	if req.Access == "" {
		if narrowsOnly(req) {
			return nil, invalid("access", "say it with people, pin, from and read_only: of a named link they stand in the place of all that its tunnel asks for")
		}
		return func(old *store.AccessRule) (*store.AccessRule, error) {
			if old == nil {
				return nil, store.ErrUnchanged
			}
			return nil, nil
		}, nil
	}
	r, err := a.cfg.Access.Rule(req, protocol)
	if err != nil {
		return nil, err
	}
	return func(old *store.AccessRule) (*store.AccessRule, error) {
		rule, err := access.Replace(old, r, time.Now())
		if err != nil {
			return rule, err
		}
		return a.kept(rule)
	}, nil
}

// narrowsOnly says whether a request says how, but not for whom.
func narrowsOnly(req api.AccessRequest) bool {
	return req.Access == "" && (len(req.People)+len(req.From)+len(req.PIN) > 0 || req.ReadOnly)
}

// warnings are a tunnel's, with what is to be said of who may use it.
func (a *API) warnings(t store.TunnelRecord) []string {
	out := t.Warnings
	if w := a.cfg.Access.Warning(t.Access); w != "" {
		out = append(slices.Clone(out), w)
	}
	if t.Access != nil && (t.Access.Mode == api.AccessTeam || t.Access.Mode == api.AccessPeople) && a.cfg.SignInOff != "" {
		out = append(slices.Clone(out), "only programs with a credential of the team get in: "+a.cfg.SignInOff)
	}
	return out
}

func (a *API) getTunnelAccess(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	if _, err := query(r); err != nil {
		return err
	}
	return send(w, http.StatusOK, access.Public(t.Access))
}

func (a *API) setTunnelAccess(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	var req api.AccessRequest
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	if t.Access != nil && narrowsOnly(req) { // the default may let in more people than the present rule
		return invalid("access", "say it with from and read_only: what is sent stands in the place of the whole rule")
	}
	rule, err := a.cfg.Access.Rule(req, t.Protocol)
	if err != nil {
		return err
	}
	changed := false
	t, err = a.cfg.Store.UpdateTunnel(r.Context(), t.Session, func(t *store.TunnelRecord) error {
		made, err := access.ReplaceTunnel(t.Access, rule, time.Now())
		if err == nil {
			made, err = a.kept(made)
		}
		changed = err == nil
		if err == nil {
			t.Access = made
		}
		return err
	})
	var refused *api.Problem
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.Is(err, store.ErrNotFound):
		return a.orWhy(api.NotFound(api.CodeTunnelNotFound), ident.SessionID(r.PathValue("session_id")), p)
	case err != nil:
		return unavailable(err)
	}
	if changed {
		a.audit(r, p, audit.Record{Event: audit.AccessChanged, Agent: t.Agent, Session: t.Session, Detail: t.Access.String()})
		if err := a.catchUp(r.Context()); err != nil { // so that whoever changed it finds it so
			return err
		}
	}
	return send(w, http.StatusOK, access.Public(t.Access))
}

func (a *API) setLinkAccess(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	id, err := ident.ParseLinkID(r.PathValue("link_id"))
	if err != nil {
		return api.NotFound(api.CodeLinkNotFound)
	}
	var req api.AccessRequest
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	change, err := a.linkRule(req, t.Protocol)
	if err != nil {
		return err
	}
	l, err := a.cfg.Links.SetAccess(r.Context(), p.Name, t.Session, id, change)
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, a.namedLink(t, l))
}
