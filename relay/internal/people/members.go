package people

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// role is a member's, by the records.
func (p *People) role(m store.MemberRecord) api.Role { return cmp.Or(m.Role, p.cfg.DefaultRole) }

// Members lists a team's members, by their names. Whom only the issuer knows is not
// among them before they signed in here.
func (p *People) Members(team ident.TeamID) []api.Member {
	out := []api.Member{}
	for _, m := range p.cfg.Store.Members(team) {
		if !m.Removed() {
			out = append(out, p.member(m))
		}
	}
	slices.SortFunc(out, func(a, b api.Member) int {
		return cmp.Or(strings.Compare(strings.ToLower(a.UserName), strings.ToLower(b.UserName)), cmp.Compare(a.UserID, b.UserID))
	})
	return out
}

func (p *People) member(m store.MemberRecord) api.Member {
	out := api.Member{UserID: m.User, Role: p.role(m), Source: m.Source, JoinedAt: m.JoinedAt, InvitedBy: m.InvitedBy}
	if u, ok := p.cfg.Store.User(m.User); ok {
		out.UserName, out.Email = u.Name, u.Email
	}
	for _, s := range p.cfg.Store.SignIns(m.User) {
		if s.SeenAt.After(out.SeenAt) {
			out.SeenAt = s.SeenAt
		}
	}
	return out
}

// find returns a team's member. A miss is confirmed: the caller may be faster than the
// index.
func (p *People) find(ctx context.Context, team ident.TeamID, user ident.UserID) (store.MemberRecord, error) {
	m, ok := p.cfg.Store.Member(team, user)
	if !ok || m.Removed() {
		if err := p.cfg.Store.CatchUp(ctx); err != nil {
			return m, storeProblem("look for the member", err)
		}
		if m, ok = p.cfg.Store.Member(team, user); !ok || m.Removed() {
			return m, api.NotFound(api.CodeMemberNotFound)
		}
	}
	return m, nil
}

// managers counts who may manage a team, if one person had the role as in it: its owners
// and its admins. With as empty the person is in it no more.
func (p *People) managers(team ident.TeamID, user ident.UserID, as api.Role) (owners, admins int) {
	for _, m := range p.cfg.Store.Members(team) {
		role := p.role(m)
		if m.User == user {
			role = as
		} else if m.Removed() {
			continue
		}
		switch role {
		case api.RoleOwner:
			owners++
		case api.RoleAdmin:
			admins++
		}
	}
	return owners, admins
}

// change is one of one member: to another role, or out of the team (empty).
type change struct {
	team     ident.TeamID
	user     ident.UserID
	from, to api.Role
	do, undo func() error
}

// keepManaged makes a change unless it leaves the team without an owner or, of a team
// that has none, without an admin. Two relays may make two changes at once: so it looks
// again afterwards, finds what the other did, and undoes its own; at worst both do. The
// operator may leave a team without anybody.
func (p *People) keepManaged(ctx context.Context, by creds.Principal, c change) error {
	if by.Kind == creds.KindOperator {
		return c.do()
	}
	if err := p.cfg.Store.CatchUp(ctx); err != nil {
		return storeProblem("look at the members", err)
	}
	hadOwners, hadAdmins := p.managers(c.team, c.user, c.from)
	left := func() bool {
		owners, admins := p.managers(c.team, c.user, c.to)
		if hadOwners > 0 {
			return owners > 0
		}
		return hadAdmins == 0 || owners+admins > 0
	}
	last := api.NewProblem(api.CodeLastOwner, "the team would have no owner any more: make somebody else its owner first")
	if hadOwners == 0 {
		last = api.NewProblem(api.CodeLastOwner, "the team would have no admin any more: make somebody else its admin first")
	}
	if !left() {
		return last
	}
	if err := c.do(); err != nil {
		return err
	}
	if err := p.cfg.Store.CatchUp(ctx); err != nil || left() {
		return nil // without an answer: it was well by all that is known
	}
	if err := c.undo(); err != nil {
		return err
	}
	p.settle(ctx)
	return last
}

// SetRole gives a member another role. The operator may give one to anybody, who then is
// a member, also after they were removed. The error is a *api.Problem.
func (p *People) SetRole(ctx context.Context, by creds.Principal, team ident.TeamID, user ident.UserID, role api.Role) (api.Member, error) {
	if _, err := api.ParseRole(string(role)); err != nil {
		return api.Member{}, api.Problemf(api.CodeOutOfRange, "role: %v", err)
	}
	operator := by.Kind == creds.KindOperator
	before, err := p.find(ctx, team, user)
	switch {
	case err != nil && !operator, err != nil && !notFound(err):
		return api.Member{}, err
	case err != nil:
		if err := p.joins(team, user); err != nil {
			return api.Member{}, err
		}
	case before.Source == store.SourceIssuer && before.Role != "":
		return api.Member{}, api.NewProblem(api.CodeForbidden, "the issuer says this person's role, at each sign-in anew: change it there (auth.oidc.roles_claim)")
	case !by.Role.AtLeast(p.role(before)) || !by.Role.AtLeast(role):
		return api.Member{}, api.Problemf(api.CodeRoleRequired, "nobody gives or takes a role above their own, which is %s", by.Role)
	}
	source := store.SourceOwner
	if before.Source != store.SourceIssuer && before.Source != "" {
		source = before.Source // whoever needs no issuer to be a member still needs none
	}
	if operator {
		source = store.SourceOperator
	}
	var after store.MemberRecord
	set := func(role api.Role, source string) func() error {
		return func() (err error) {
			after, err = p.cfg.Store.ChangeMember(ctx, team, user, func(m *store.MemberRecord) error {
				if m.User == "" || m.Removed() {
					if !operator {
						return api.NotFound(api.CodeMemberNotFound)
					}
					*m = store.MemberRecord{Team: team, User: user, JoinedAt: p.now(), InvitedBy: by.Name}
				}
				m.Role, m.Source = role, source
				return nil
			})
			if err != nil {
				return storeProblem("change a member's role", err)
			}
			return nil
		}
	}
	c := change{team: team, user: user, from: p.role(before), to: role, do: set(role, source), undo: set(before.Role, before.Source)}
	if err := p.keepManaged(ctx, by, c); err != nil {
		return api.Member{}, err
	}
	p.settle(ctx)
	after.Team, after.User = team, user
	return p.member(after), p.audit(ctx, audit.Record{
		Event: audit.MemberRole, Actor: by.Name, Team: team, Detail: fmt.Sprintf("%s: %s, before %s", user, role, cmp.Or(p.role(before), "no member")),
	})
}

// joins checks that somebody may become a member by the operator's word.
func (p *People) joins(team ident.TeamID, user ident.UserID) error {
	if tidy(string(user), maxUser) != string(user) || user == "" {
		return api.Problemf(api.CodeOutOfRange, "user: 1 to %d bytes of printable text", maxUser)
	}
	if _, known := p.cfg.Store.User(user); !known && madeHere(user) {
		return api.NotFound(api.CodeMemberNotFound) // no issuer names such a person
	}
	return p.room(team)
}

// Remove takes a person out of a team. What they hold open there, and what their
// credentials opened, is closed, unless it is kept. Nobody removes somebody of a higher
// role; everybody may remove themself. Removing again is no error, and finishes what was
// interrupted. The error is a *api.Problem.
func (p *People) Remove(ctx context.Context, by creds.Principal, team ident.TeamID, user ident.UserID, keepTunnels bool) (api.Revoked, error) {
	before, err := p.find(ctx, team, user)
	if err != nil && (!notFound(err) || !before.Removed()) {
		return api.Revoked{}, err
	}
	switch {
	case by.User == user && user != "":
	case !by.Role.AtLeast(api.RoleAdmin):
		return api.Revoked{}, api.Problemf(api.CodeRoleRequired, "to remove somebody else needs the role %s in the team; yours is %s", api.RoleAdmin, by.Role)
	case !by.Role.AtLeast(p.role(before)):
		return api.Revoked{}, api.Problemf(api.CodeRoleRequired, "nobody removes somebody of a higher role: theirs is %s, yours is %s", p.role(before), by.Role)
	}
	write := func(doing string, set func(*store.MemberRecord) error) func() error {
		return func() error {
			if _, err := p.cfg.Store.ChangeMember(ctx, team, user, set); err != nil {
				return storeProblem(doing, err)
			}
			return nil
		}
	}
	mark := write("remove a member", func(m *store.MemberRecord) error {
		switch {
		case m.User == "": // forgotten meanwhile, with the team
			return api.NotFound(api.CodeMemberNotFound)
		case !m.Removed() || m.Unsaid():
			m.RemovedAt, m.RemovedBy, m.KeepTunnels = p.now(), by.Name, keepTunnels
		case m.KeepTunnels && !keepTunnels:
			m.KeepTunnels = false
		default:
			return store.ErrUnchanged
		}
		return nil
	})
	if before.Removed() {
		err = mark()
	} else {
		err = p.keepManaged(ctx, by, change{team: team, user: user, from: p.role(before), do: mark, undo: write("take a member back", func(m *store.MemberRecord) error {
			*m = before
			return nil
		})})
	}
	if err != nil {
		return api.Revoked{}, err
	}
	p.settle(ctx)
	detail := fmt.Sprintf("%s, role %s", user, p.role(before))
	if keepTunnels {
		detail += ", their tunnels are kept"
	}
	// What cannot be written down is ended all the same.
	aerr := p.audit(ctx, audit.Record{Event: audit.MemberRemoved, Actor: by.Name, Team: team, Detail: detail})
	out, err := p.cfg.Rights.RemoveMember(ctx, by, team, user, keepTunnels)
	if err == nil {
		err = aerr
	}
	return out, err
}

func notFound(err error) bool {
	p, ok := errors.AsType[*api.Problem](err)
	return ok && p.Status == http.StatusNotFound
}
