package aditcli_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// people plays the relay's members and invitations: an owner who calls, one whose name
// steers terminals, two of one name, and a crowd that fills more than a page.
func people(mux *http.ServeMux) {
	var mu sync.Mutex
	now := time.Now()
	members := []api.Member{
		{UserID: "adit:01", UserName: "alice", Email: "alice@example.com", Role: api.RoleOwner, Source: "operator", InvitedBy: "operator:admin-socket", JoinedAt: now.Add(-time.Hour), SeenAt: now},
		{UserID: "auth0|x/y", UserName: "bob\x1b[2J", Role: api.RoleMember, Source: "invite", JoinedAt: now, InvitedBy: "alice"},
		{UserID: "twin-1", UserName: "twin", Role: api.RoleViewer, Source: "issuer", JoinedAt: now},
		{UserID: "twin-2", UserName: "Twin", Role: api.RoleViewer, Source: "issuer", JoinedAt: now},
	}
	for i := range 100 {
		members = append(members, api.Member{UserID: ident.UserID("crowd-" + strconv.Itoa(i)), Role: api.RoleViewer, Source: "issuer", JoinedAt: now})
	}
	members = append(members, api.Member{UserID: "last", UserName: "zoe", Role: api.RoleViewer, Source: "issuer", JoinedAt: now})
	var invites []api.Invite

	mux.HandleFunc("GET /api/v1/members", func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		page, _ := strconv.Atoi(q.URL.Query().Get("current_page"))
		per, _ := strconv.Atoi(q.URL.Query().Get("per_page"))
		from := min((page-1)*per, len(members))
		write(w, 200, api.MemberList{
			Members:  members[from:min(from+per, len(members))],
			PageMeta: api.PageMeta{CurrentPage: page, PerPage: per, TotalCount: len(members)},
		})
	})
	find := func(w http.ResponseWriter, q *http.Request) int {
		i := slices.IndexFunc(members, func(m api.Member) bool { return string(m.UserID) == q.PathValue("user") })
		switch {
		case i < 0:
			refuse(w, api.CodeMemberNotFound, "there is no such member")
		case members[i].Role == api.RoleOwner:
			refuse(w, api.CodeLastOwner, "the team would have no owner any more")
			i = -1
		}
		return i
	}
	mux.HandleFunc("PATCH /api/v1/members/{user}", func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		var req api.ChangeMemberRequest
		if err := json.NewDecoder(q.Body).Decode(&req); err != nil {
			refuse(w, api.CodeInvalidBody, err.Error())
			return
		}
		if i := find(w, q); i >= 0 {
			members[i].Role, members[i].Source = req.Role, "owner"
			write(w, 200, members[i])
		}
	})
	mux.HandleFunc("DELETE /api/v1/members/{user}", func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if i := find(w, q); i >= 0 {
			members = slices.Delete(members, i, i+1)
			out := api.Revoked{Credentials: 2, Tunnels: 3}
			if q.URL.Query().Get("keep_tunnels") == "true" {
				out.Tunnels = 0
			}
			write(w, 200, out)
		}
	})
	mux.HandleFunc("POST /api/v1/invites", func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		var req api.CreateInviteRequest
		if err := json.NewDecoder(q.Body).Decode(&req); err != nil {
			refuse(w, api.CodeInvalidBody, err.Error())
			return
		}
		if req.Role == api.RoleOwner {
			refuse(w, api.CodeRoleRequired, "nobody gives a role above their own")
			return
		}
		lives := 24 * time.Hour
		if req.ExpiresIn != nil {
			lives = req.ExpiresIn.D()
		}
		i := api.Invite{InviteID: "9f0c8a5e9b7d4c21", Name: req.Name, Role: req.Role, CreatedBy: "alice", CreatedAt: time.Now(), ExpiresAt: time.Now().Add(lives)}
		invites = append(invites, i)
		write(w, 201, api.CreatedInvite{Invite: i, InviteURL: "https://relay.example.com/console#invite=inv-story"})
	})
	mux.HandleFunc("GET /api/v1/invites", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		write(w, 200, api.InviteList{Invites: append([]api.Invite{}, invites...)})
	})
	mux.HandleFunc("DELETE /api/v1/invites/{invite}", func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		n := len(invites)
		if invites = slices.DeleteFunc(invites, func(i api.Invite) bool { return i.InviteID == q.PathValue("invite") }); len(invites) == n {
			refuse(w, api.CodeInviteNotFound, "there is no such open invitation")
			return
		}
		w.WriteHeader(204)
	})
}
