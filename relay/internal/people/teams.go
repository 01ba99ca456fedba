package people

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// CreateTeam gives a new team a name and an id. The error is a *api.Problem.
func (p *People) CreateTeam(ctx context.Context, by creds.Principal, name string) (store.TeamRecord, error) {
	return p.nameTeam(ctx, by, ident.NewTeamID(), name, audit.TeamCreated)
}

// RenameTeam gives a team another name, or its first one: a team is an id, and needs none.
// The error is a *api.Problem.
func (p *People) RenameTeam(ctx context.Context, by creds.Principal, team ident.TeamID, name string) (store.TeamRecord, error) {
	return p.nameTeam(ctx, by, team, name, audit.TeamRenamed)
}

// nameTeam writes a team's name, if no other team has it. Two relays that write the same
// one at the same moment both do; then only the ids tell the teams apart, and whoever asks
// for the name is told so.
func (p *People) nameTeam(ctx context.Context, by creds.Principal, id ident.TeamID, name string, event audit.Event) (store.TeamRecord, error) {
	name, err := named("name", name)
	if err != nil {
		return store.TeamRecord{}, err
	}
	if _, err := ident.ParseTeamID(name); err == nil {
		return store.TeamRecord{}, api.NewProblem(api.CodeOutOfRange, "name: a name that looks like a team's id would be taken for one")
	}
	if err := p.cfg.Store.CatchUp(ctx); err != nil {
		return store.TeamRecord{}, storeProblem("look at the teams", err)
	}
	for _, t := range p.cfg.Store.Teams() {
		if t.ID != id && strings.EqualFold(t.Name, name) {
			return store.TeamRecord{}, api.Problemf(api.CodeTeamExists, "there is a team %q already (%s)", t.Name, t.ID)
		}
	}
	rec, err := p.cfg.Store.ChangeTeam(ctx, id, func(t *store.TeamRecord) error {
		if t.ID == "" {
			t.ID, t.CreatedBy, t.CreatedAt = id, by.Name, p.now()
		}
		t.Name = name
		return nil
	})
	if err != nil {
		return rec, storeProblem("name a team", err)
	}
	p.settle(ctx)
	return rec, p.audit(ctx, audit.Record{Event: event, Actor: by.Name, Team: id, Detail: fmt.Sprintf("%q", name)})
}

// Teams lists the teams that have a name, by it.
func (p *People) Teams() []store.TeamRecord { return p.cfg.Store.Teams() }

// Counts says how many members each team has that has any.
func (p *People) Counts() map[ident.TeamID]int { return p.cfg.Store.MemberCounts() }

// HasPeople says whether a team has a name, members or invitations.
func (p *People) HasPeople(team ident.TeamID) bool {
	_, named := p.cfg.Store.Team(team)
	return named || len(p.cfg.Store.Members(team)) > 0 || len(p.cfg.Store.Invites(team)) > 0
}

// RemoveTeam forgets a team's invitations, its members, removed ones too, and its name,
// and returns how many of the first two there were. People who are in no other team are
// forgotten with it. It may be done again, and then finishes what was interrupted. The
// error is a *api.Problem.
func (p *People) RemoveTeam(ctx context.Context, team ident.TeamID) (members, invites int, err error) {
	const doing = "remove a team's people"
	// What makes members goes first, so that none is made behind this one's back.
	for _, r := range p.cfg.Store.Invites(team) {
		if err := p.cfg.Store.DeleteInvite(ctx, r.Hash); err != nil {
			return members, invites, storeProblem(doing, err)
		}
		invites++
	}
	if err := p.cfg.Store.CatchUp(ctx); err != nil {
		return members, invites, storeProblem(doing, err)
	}
	for _, m := range p.cfg.Store.Members(team) {
		if err := p.forgetMember(ctx, m); err != nil {
			return members, invites, storeProblem(doing, err)
		}
		if !m.Removed() {
			members++
		}
	}
	if err := p.cfg.Store.DeleteTeam(ctx, team); err != nil {
		return members, invites, storeProblem(doing, err)
	}
	p.settle(ctx)
	return members, invites, nil
}

// forgetMember forgets a person's place in a team and, when it was their last one, the
// person: their browsers first, so that none is signed in as nobody.
func (p *People) forgetMember(ctx context.Context, m store.MemberRecord) error {
	if !slices.ContainsFunc(p.cfg.Store.Memberships(m.User), func(o store.MemberRecord) bool { return o.Team != m.Team }) {
		for _, s := range p.cfg.Store.SignIns(m.User) {
			if err := p.cfg.Store.DeleteSignIn(ctx, s.Hash); err != nil {
				return err
			}
		}
		if err := p.cfg.Store.DeleteUser(ctx, m.User); err != nil {
			return err
		}
	}
	return p.cfg.Store.DeleteMember(ctx, m.Team, m.User)
}
