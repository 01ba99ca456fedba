package admin

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/adit-tunnel/adit/relay/internal/rights"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// CreateInvite asks for an invitation into a team.
type CreateInvite struct {
	Team ident.TeamID `json:"team"`
	api.CreateInviteRequest
}

// Members is the answer of GET /v1/members.
type Members struct {
	Members []api.Member `json:"members"`
}

// Team is what there is of a team, with its name and its people.
type Team struct {
	Team        ident.TeamID `json:"team"`
	Name        string       `json:"name,omitempty"`
	Credentials int          `json:"credentials"` // that are neither revoked nor expired
	Agents      int          `json:"agents"`      // known, linked or not
	Tunnels     int          `json:"tunnels"`
	Members     int          `json:"members"`
}

// Teams is the answer of GET /v1/teams.
type Teams struct {
	Teams []Team `json:"teams"`
}

// NameTeam is the body of POST /v1/teams and PATCH /v1/teams/{team}.
type NameTeam struct {
	Name string `json:"name"`
}

// RemovedTeam says what was removed with a team.
type RemovedTeam struct {
	rights.Removed
	Members int `json:"members_removed"`
	Invites int `json:"invites_revoked"`
}

// People is what the surface needs of people and their teams.
type People interface {
	CreateInvite(ctx context.Context, team ident.TeamID, req api.CreateInviteRequest) (api.CreatedInvite, error)
	Invites(team ident.TeamID) []api.Invite
	RevokeInvite(ctx context.Context, team ident.TeamID, id string) error
	Members(team ident.TeamID) []api.Member
	SetRole(ctx context.Context, team ident.TeamID, user ident.UserID, role api.Role) (api.Member, error)
	RemoveMember(ctx context.Context, team ident.TeamID, user ident.UserID, keepTunnels bool) (api.Revoked, error)
	Teams() []Team
	CreateTeam(ctx context.Context, name string) (store.TeamRecord, error)
	RenameTeam(ctx context.Context, team ident.TeamID, name string) (store.TeamRecord, error)
	RemoveTeam(ctx context.Context, team ident.TeamID) (RemovedTeam, error)
}

func (s *Server) routePeople(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/invites", s.answer(func(r *http.Request) (any, error) {
		var req CreateInvite
		if err := decode(r, &req); err != nil {
			return nil, err
		}
		return s.cfg.People.CreateInvite(r.Context(), req.Team, req.CreateInviteRequest)
	}))
	mux.HandleFunc("GET /v1/invites", s.answer(inTeam(func(_ *http.Request, team ident.TeamID) (any, error) {
		return api.InviteList{Invites: s.cfg.People.Invites(team)}, nil
	})))
	mux.HandleFunc("DELETE /v1/invites", s.answer(inTeam(func(r *http.Request, team ident.TeamID) (any, error) {
		return struct{}{}, s.cfg.People.RevokeInvite(r.Context(), team, r.URL.Query().Get("invite"))
	})))
	mux.HandleFunc("GET /v1/members", s.answer(inTeam(func(_ *http.Request, team ident.TeamID) (any, error) {
		return Members{s.cfg.People.Members(team)}, nil
	})))
	mux.HandleFunc("PATCH /v1/members", s.answer(inTeam(func(r *http.Request, team ident.TeamID) (any, error) {
		var req api.ChangeMemberRequest
		if err := decode(r, &req); err != nil {
			return nil, err
		}
		return s.cfg.People.SetRole(r.Context(), team, ident.UserID(r.URL.Query().Get("user")), req.Role)
	})))
	mux.HandleFunc("DELETE /v1/members", s.answer(inTeam(func(r *http.Request, team ident.TeamID) (any, error) {
		return s.cfg.People.RemoveMember(r.Context(), team, ident.UserID(r.URL.Query().Get("user")), r.URL.Query().Get("keep_tunnels") == "true")
	})))
	mux.HandleFunc("GET /v1/teams", s.answer(func(*http.Request) (any, error) { return Teams{s.cfg.People.Teams()}, nil }))
	mux.HandleFunc("POST /v1/teams", s.answer(func(r *http.Request) (any, error) {
		var req NameTeam
		if err := decode(r, &req); err != nil {
			return nil, err
		}
		return s.cfg.People.CreateTeam(r.Context(), req.Name)
	}))
	mux.HandleFunc("PATCH /v1/teams/{team}", s.answer(func(r *http.Request) (any, error) {
		team, err := ident.ParseTeamID(r.PathValue("team"))
		if err != nil {
			return nil, api.NewProblem(api.CodeTeamInvalid, err.Error())
		}
		var req NameTeam
		if err := decode(r, &req); err != nil {
			return nil, err
		}
		return s.cfg.People.RenameTeam(r.Context(), team, req.Name)
	}))
	mux.HandleFunc("DELETE /v1/teams/{team}", s.answer(func(r *http.Request) (any, error) {
		team, err := ident.ParseTeamID(r.PathValue("team"))
		if err != nil {
			return nil, api.NewProblem(api.CodeTeamInvalid, err.Error())
		}
		return s.cfg.People.RemoveTeam(r.Context(), team)
	}))
}

// inTeam reads the team that a request is about.
func inTeam(do func(r *http.Request, team ident.TeamID) (any, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		team, err := ident.ParseTeamID(r.URL.Query().Get("team"))
		if err != nil {
			return nil, api.NewProblem(api.CodeTeamInvalid, err.Error())
		}
		return do(r, team)
	}
}

// decode reads a request's body strictly.
func decode(r *http.Request, into any) error {
	dec := json.NewDecoder(io.LimitReader(r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return api.NewProblem(api.CodeInvalidBody, err.Error())
	}
	return nil
}
