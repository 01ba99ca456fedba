package rest

import (
	"context"
	"net/http"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// People keeps the records of members, invitations and what people get in by. Its errors
// are problems, and it writes the audit.
type People interface {
	Members(team ident.TeamID) []api.Member
	SetRole(ctx context.Context, by creds.Principal, team ident.TeamID, user ident.UserID, role api.Role) (api.Member, error)
	Remove(ctx context.Context, by creds.Principal, team ident.TeamID, user ident.UserID, keepTunnels bool) (api.Revoked, error)
	Invite(ctx context.Context, by creds.Principal, team ident.TeamID, req api.CreateInviteRequest) (api.CreatedInvite, error)
	Invites(team ident.TeamID) []api.Invite
	TakeBack(ctx context.Context, by creds.Principal, team ident.TeamID, id string) error
	Devices(by creds.Principal) api.Devices
	Forget(ctx context.Context, by creds.Principal, id string) error
}

func (a *API) listMembers(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	page, perPage, err := paging(r)
	if err != nil {
		return err
	}
	all := a.cfg.People.Members(p.Team)
	return send(w, http.StatusOK, api.MemberList{
		Members:  pageOf(all, page, perPage),
		PageMeta: api.PageMeta{CurrentPage: page, PerPage: perPage, TotalCount: len(all)},
	})
}

// pageOf is one page of a list; beyond its end there is nothing.
func pageOf[T any](all []T, page, perPage int) []T {
	if page > (len(all)+perPage-1)/perPage { // no overflow: page is small from here on
		return []T{}
	}
	from := (page - 1) * perPage
	return all[from:min(from+perPage, len(all))]
}

func (a *API) changeMember(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	if _, err := query(r); err != nil {
		return err
	}
	var req api.ChangeMemberRequest
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	m, err := a.cfg.People.SetRole(r.Context(), p, p.Team, ident.UserID(r.PathValue("user_id")), req.Role)
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, m)
}

// removeMember removes somebody of the team, or the caller themself, which asks for no
// role.
func (a *API) removeMember(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	q, err := query(r, "keep_tunnels")
	if err != nil {
		return err
	}
	keep, err := flag(q, "keep_tunnels")
	if err != nil {
		return err
	}
	out, err := a.cfg.People.Remove(r.Context(), p, p.Team, ident.UserID(r.PathValue("user_id")), keep)
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, out)
}

func (a *API) createInvite(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	if _, err := query(r); err != nil {
		return err
	}
	var req api.CreateInviteRequest
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	out, err := a.cfg.People.Invite(r.Context(), p, p.Team, req)
	if err != nil {
		return err
	}
	return send(w, http.StatusCreated, out)
}

func (a *API) listInvites(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	if _, err := query(r); err != nil {
		return err
	}
	return send(w, http.StatusOK, api.InviteList{Invites: a.cfg.People.Invites(p.Team)})
}

func (a *API) revokeInvite(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	if _, err := query(r); err != nil {
		return err
	}
	if err := a.cfg.People.TakeBack(r.Context(), p, p.Team, r.PathValue("invite_id")); err != nil {
		return err
	}
	return sendNothing(w)
}

func (a *API) listDevices(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	if _, err := query(r); err != nil {
		return err
	}
	return send(w, http.StatusOK, a.cfg.People.Devices(p))
}

func (a *API) forgetDevice(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	if _, err := query(r); err != nil {
		return err
	}
	if err := a.cfg.People.Forget(r.Context(), p, r.PathValue("device_id")); err != nil {
		return err
	}
	return sendNothing(w)
}
