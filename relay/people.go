package relay

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/people"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// people makes what keeps the records of people.
func (r *Relay) people(p *parts) (*people.People, error) {
	origin := p.resolver.ConsoleOrigin()
	if r.cfg.SignInOff() != "" {
		origin = ""
	}
	unsaid, _ := p.creds.RoleIn("", "", "", true) // of whom nobody says a role, in whatever team
	return people.New(people.Config{
		Store: p.store, Rights: p.rights, Audit: p.audit, Origin: origin, DefaultRole: unsaid, Now: now,
	})
}

func (o operator) CreateInvite(ctx context.Context, team ident.TeamID, req api.CreateInviteRequest) (api.CreatedInvite, error) {
	return o.p.people.Invite(ctx, o.principal().InTeam(team), team, req)
}

func (o operator) Invites(team ident.TeamID) []api.Invite { return o.p.people.Invites(team) }

func (o operator) RevokeInvite(ctx context.Context, team ident.TeamID, id string) error {
	return o.p.people.TakeBack(ctx, o.principal().InTeam(team), team, id)
}

func (o operator) Members(team ident.TeamID) []api.Member { return o.p.people.Members(team) }

func (o operator) SetRole(ctx context.Context, team ident.TeamID, user ident.UserID, role api.Role) (api.Member, error) {
	return o.p.people.SetRole(ctx, o.principal().InTeam(team), team, user, role)
}

func (o operator) RemoveMember(ctx context.Context, team ident.TeamID, user ident.UserID, keepTunnels bool) (api.Revoked, error) {
	return o.p.people.Remove(ctx, o.principal().InTeam(team), team, user, keepTunnels)
}

// Teams lists the teams of which there is anything, if only a name or a member; those
// with a name first, by it.
func (o operator) Teams() []admin.Team {
	of := map[ident.TeamID]*admin.Team{}
	at := func(id ident.TeamID) *admin.Team {
		if of[id] == nil {
			of[id] = &admin.Team{Team: id}
		}
		return of[id]
	}
	for _, t := range o.p.rights.Teams() {
		row := at(t.Team)
		row.Credentials, row.Agents, row.Tunnels = t.Credentials, t.Agents, t.Tunnels
	}
	for team, n := range o.p.people.Counts() {
		at(team).Members = n
	}
	for _, t := range o.p.people.Teams() {
		at(t.ID).Name = t.Name
	}
	out := make([]admin.Team, 0, len(of))
	for _, t := range of {
		out = append(out, *t)
	}
	slices.SortFunc(out, func(a, b admin.Team) int {
		if (a.Name == "") != (b.Name == "") {
			return cmp.Compare(b.Name, a.Name) // the one without comes last
		}
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Team, b.Team))
	})
	return out
}

func (o operator) CreateTeam(ctx context.Context, name string) (store.TeamRecord, error) {
	return o.p.people.CreateTeam(ctx, o.principal(), name)
}

func (o operator) RenameTeam(ctx context.Context, team ident.TeamID, name string) (store.TeamRecord, error) {
	return o.p.people.RenameTeam(ctx, o.principal().InTeam(team), team, name)
}

// RemoveTeam removes a team's people first: who may not sign in any more makes nothing
// new.
func (o operator) RemoveTeam(ctx context.Context, team ident.TeamID) (out admin.RemovedTeam, err error) {
	by := o.principal().InTeam(team)
	known := o.p.people.HasPeople(team) || len(o.p.store.Credentials(team)) > 0 // revoked ones too: it may be done again
	for _, t := range o.p.rights.Teams() {
		known = known || t.Team == team
	}
	if !known {
		return out, api.Problemf(api.CodeNotFound, "there is nothing of a team %s: 'adit-relay team list' shows the teams", team)
	}
	if out.Members, out.Invites, err = o.p.people.RemoveTeam(ctx, team); err != nil {
		return out, err
	}
	err = o.p.audit.Append(ctx, audit.Record{
		Event: audit.TeamRemoved, Actor: by.Name, Team: team, Detail: fmt.Sprintf("its people: %d members, %d invitations", out.Members, out.Invites),
	})
	if err != nil {
		return out, fmt.Errorf("the team's people were removed, but the audit log could not be written: %w", err)
	}
	out.Removed, err = o.p.rights.RemoveTeam(ctx, by, team)
	return out, err
}
