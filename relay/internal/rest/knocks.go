package rest

import (
	"context"
	"net/http"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Doors knows who waits at tunnels to be let in.
type Doors interface {
	Knocks(session ident.SessionID) []api.Knock
	// Answer says what was done, for the audit log; nothing, when it was done already.
	Answer(ctx context.Context, by creds.Principal, t store.TunnelRecord, knock string, admit bool) (done string, err error)
}

func (a *API) listKnocks(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	if _, err := query(r); err != nil {
		return err
	}
	return send(w, http.StatusOK, api.KnockList{Knocks: a.cfg.Doors.Knocks(t.Session)})
}

func (a *API) answerKnock(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	var req api.AnswerKnockRequest
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	if req.Admit == nil {
		return invalid("admit", "true lets them in, false does not")
	}
	id := r.PathValue("knock_id")
	if len(id) > maxLabel {
		return api.NotFound(api.CodeKnockNotFound)
	}
	done, err := a.cfg.Doors.Answer(r.Context(), p, t, id, *req.Admit)
	if err != nil {
		return err
	}
	if done != "" {
		a.audit(r, p, audit.Record{Event: audit.KnockAnswered, Agent: t.Agent, Session: t.Session, Detail: done})
	}
	return sendNothing(w)
}

// knock tells that somebody waits at a tunnel, or does not any more.
func (s *stream) knock(c store.Change) error {
	t, ok := s.api.cfg.Store.Tunnel(c.Session)
	if !ok || t.Team != s.by.Team || !s.by.MayReach(t.Agent) {
		return nil
	}
	e := api.Event{Kind: api.EventTunnelKnock, AgentID: t.Agent, Session: t.Session, Detail: "somebody who waited was answered, or left"}
	for _, k := range s.api.cfg.Doors.Knocks(t.Session) {
		if strings.HasSuffix(c.Name, "/"+k.KnockID) {
			e.Detail = k.Name + " waits to be let in, from " + k.RemoteAddr
		}
	}
	return s.event(e, s.n)
}
