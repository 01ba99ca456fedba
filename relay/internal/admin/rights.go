package admin

import (
	"context"
	"net/http"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/rights"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Tunnel is a tunnel as the operator sees it: never its address, which is access.
type Tunnel struct {
	Session    ident.SessionID    `json:"session_id"`
	Team       ident.TeamID       `json:"team"`
	Agent      ident.AgentID      `json:"agent_id"`
	Port       uint16             `json:"target_port"`
	Protocol   api.Protocol       `json:"tunnel_protocol"`
	Label      string             `json:"label,omitempty"`
	OpenedBy   string             `json:"opened_by"`
	Credential ident.CredentialID `json:"credential,omitempty"` // that opened it, if one did
	OpenedAt   time.Time          `json:"opened_at"`
	ExpiresAt  time.Time          `json:"expires_at"`
}

// Tunnels is the answer of GET and DELETE /v1/tunnels.
type Tunnels struct {
	Tunnels []Tunnel `json:"tunnels"`
}

// Rights is what the surface needs of rights.
type Rights interface {
	RevokeCredential(ctx context.Context, id ident.CredentialID, keepTunnels bool) (api.Revoked, error)
	Tunnels(f rights.Filter) []store.TunnelRecord
	CloseTunnels(ctx context.Context, f rights.Filter) ([]store.TunnelRecord, error)
}

func (s *Server) routeRights(mux *http.ServeMux) {
	mux.HandleFunc("DELETE /v1/credentials/{id}", s.answer(func(r *http.Request) (any, error) {
		id, err := ident.ParseCredentialID(r.PathValue("id"))
		if err != nil {
			return nil, api.NewProblem(api.CodeInvalidParameter, err.Error())
		}
		return s.cfg.Rights.RevokeCredential(r.Context(), id, r.URL.Query().Get("keep_tunnels") == "true")
	}))
	mux.HandleFunc("GET /v1/tunnels", s.answer(func(r *http.Request) (any, error) {
		f, err := filter(r)
		if err != nil {
			return nil, err
		}
		return shown(s.cfg.Rights.Tunnels(f)), nil
	}))
	mux.HandleFunc("DELETE /v1/tunnels", s.answer(func(r *http.Request) (any, error) {
		f, err := filter(r)
		if err == nil && f == (rights.Filter{}) {
			err = api.NewProblem(api.CodeInvalidParameter, "say whose tunnels: team, user or agent")
		}
		if err != nil {
			return nil, err
		}
		closed, err := s.cfg.Rights.CloseTunnels(r.Context(), f)
		return shown(closed), err
	}))
}

// filter reads which tunnels are meant. An agent's name says something within its team
// only.
func filter(r *http.Request) (f rights.Filter, err error) {
	q := r.URL.Query()
	if v := q.Get("team"); v != "" {
		if f.Team, err = ident.ParseTeamID(v); err != nil {
			return f, api.NewProblem(api.CodeTeamInvalid, err.Error())
		}
	}
	if v := q.Get("agent"); v != "" {
		if f.Agent, err = ident.ParseAgentID(v); err != nil || f.Team == "" {
			return f, api.NewProblem(api.CodeInvalidParameter, "agent: the name of one, together with its team")
		}
	}
	f.User = ident.UserID(q.Get("user"))
	return f, nil
}

func shown(list []store.TunnelRecord) Tunnels {
	out := Tunnels{Tunnels: make([]Tunnel, 0, len(list))}
	for _, t := range list {
		out.Tunnels = append(out.Tunnels, Tunnel{
			Session: t.Session, Team: t.Team, Agent: t.Agent, Port: t.Port, Protocol: t.Protocol, Label: t.Label,
			OpenedBy: t.OpenedBy, Credential: t.Credential, OpenedAt: t.OpenedAt.UTC(), ExpiresAt: t.ExpiresAt.UTC(),
		})
	}
	return out
}
