package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// AllMembers returns all of the team's members as one page.
func (c *Client) AllMembers(ctx context.Context) (api.MemberList, error) {
	all := api.MemberList{Members: []api.Member{}}
	seen := map[ident.UserID]bool{}
	for page := 1; ; page++ {
		var l api.MemberList
		err := c.do(ctx, call{
			what: "list members", method: http.MethodGet, path: "/members", out: &l,
			query: url.Values{"current_page": {strconv.Itoa(page)}, "per_page": {strconv.Itoa(MaxPerPage)}},
		})
		if err != nil {
			return api.MemberList{}, err
		}
		for _, m := range l.Members { // who moves to the next page between two calls is there once
			if !seen[m.UserID] {
				seen[m.UserID] = true
				all.Members = append(all.Members, m)
			}
		}
		if len(l.Members) == 0 || page*MaxPerPage >= l.PageMeta.TotalCount {
			n := len(all.Members)
			all.PageMeta = api.PageMeta{CurrentPage: 1, PerPage: n, TotalCount: n}
			return all, nil
		}
	}
}

// SetRole gives a member another role.
func (c *Client) SetRole(ctx context.Context, user ident.UserID, role api.Role) (api.Member, error) {
	var out api.Member
	err := c.do(ctx, call{
		what: "set the role of " + string(user), method: http.MethodPatch, path: memberPath(user), in: api.ChangeMemberRequest{Role: role}, out: &out,
	})
	return out, err
}

// RemoveMember takes a person out of the team and returns what ended with that.
func (c *Client) RemoveMember(ctx context.Context, user ident.UserID, keepTunnels bool) (api.Revoked, error) {
	var out api.Revoked
	err := c.do(ctx, call{
		what: "remove " + string(user), method: http.MethodDelete, path: memberPath(user), out: &out,
		query: url.Values{"keep_tunnels": {strconv.FormatBool(keepTunnels)}},
	})
	return out, err
}

// Invite makes an invitation into the team. It is never repeated: each call makes one.
func (c *Client) Invite(ctx context.Context, req api.CreateInviteRequest) (api.CreatedInvite, error) {
	var out api.CreatedInvite
	err := c.do(ctx, call{what: "invite " + req.Name, method: http.MethodPost, path: "/invites", in: req, out: &out, onceOnly: true})
	return out, err
}

// Invites lists the team's open invitations.
func (c *Client) Invites(ctx context.Context) (api.InviteList, error) {
	var out api.InviteList
	err := c.do(ctx, call{what: "list invitations", method: http.MethodGet, path: "/invites", out: &out})
	return out, err
}

// RevokeInvite takes an invitation back.
func (c *Client) RevokeInvite(ctx context.Context, id string) error {
	return c.do(ctx, call{what: "revoke invitation " + id, method: http.MethodDelete, path: "/invites/" + url.PathEscape(id)})
}

func memberPath(user ident.UserID) string { return "/members/" + url.PathEscape(string(user)) }
