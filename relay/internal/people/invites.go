package people

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Bounds of an invitation's life.
const (
	minInvite = time.Minute
	maxInvite = 24 * time.Hour
)

// limitRetry is when a team that has as many people as it may have may ask again.
const limitRetry = time.Minute

// Invite makes an invitation into a team, which works once. Nobody gives a role above
// their own. The error is a *api.Problem.
func (p *People) Invite(ctx context.Context, by creds.Principal, team ident.TeamID, req api.CreateInviteRequest) (api.CreatedInvite, error) {
	none := api.CreatedInvite{}
	name, err := named("name", req.Name)
	if err != nil {
		return none, err
	}
	role, err := api.ParseRole(string(cmp.Or(req.Role, api.RoleMember)))
	if err != nil {
		return none, api.Problemf(api.CodeOutOfRange, "role: %v", err)
	}
	if !by.Role.AtLeast(role) {
		return none, api.Problemf(api.CodeRoleRequired, "nobody gives a role above their own: yours is %s, this invitation's would be %s", by.Role, role)
	}
	lives := maxInvite
	if req.ExpiresIn != nil {
		lives = req.ExpiresIn.D()
	}
	if lives < minInvite || lives > maxInvite {
		return none, api.Problemf(api.CodeOutOfRange, "expires_in: %s to %s", api.Duration(minInvite), api.Duration(maxInvite))
	}
	if p.cfg.Origin == "" {
		return none, api.NewProblem(api.CodeSignInOff, "nobody can sign in at this relay, since its pages share an origin with the apps behind tunnels: "+
			"its operator sets wildcard_domain or console_url in relay.yaml")
	}
	if err := p.room(team); err != nil {
		return none, err
	}
	n, err := p.openInvites(ctx, team)
	switch {
	case err != nil:
		return none, storeProblem("make room for an invitation", err)
	case n >= maxInvites:
		return none, api.Problemf(api.CodeTooManyMembers, "the team has %d open invitations, which is the limit: take some back, or wait until they end", n).WithRetry(limitRetry)
	}
	now := p.now()
	secret := ident.NewSecret(ident.PrefixInvite)
	rec := store.InviteRecord{
		Hash: secret.Hash(), Team: team, Role: role, Name: name, CreatedBy: by.Name, By: by.User, MadeBy: by.Credential,
		CreatedAt: now, ExpiresAt: now.Add(lives),
	}
	if by.Credential != "" && !by.ExpiresAt.IsZero() && rec.ExpiresAt.After(by.ExpiresAt) {
		rec.ExpiresAt = by.ExpiresAt // it outlives nothing that made it
	}
	if err := p.cfg.Store.CreateInvite(ctx, rec); err != nil {
		return none, storeProblem("create an invitation", err)
	}
	p.settle(ctx)
	err = p.audit(ctx, audit.Record{Event: audit.InviteCreated, Actor: by.Name, Team: team, Detail: fmt.Sprintf("%s for %q, role %s", shortID(rec.Hash), name, role)})
	return api.CreatedInvite{Invite: p.public(rec), InviteURL: p.cfg.Origin + "/console#invite=" + secret.Reveal()}, err
}

// openInvites counts a team's open invitations. At the limit those go that are worth nothing
// any more: nobody sees them in the list, so nobody could take them back.
func (p *People) openInvites(ctx context.Context, team ident.TeamID) (int, error) {
	list := p.cfg.Store.Invites(team)
	if len(list) < maxInvites {
		return len(list), nil
	}
	n := 0
	for _, r := range list {
		if p.usable(r) {
			n++
			continue
		}
		if err := p.cfg.Store.DeleteInvite(ctx, r.Hash); err != nil {
			return n, err //nolint:wrapcheck // the caller says what for
		}
	}
	return n, nil
}

// room says whether a team may have another member.
func (p *People) room(team ident.TeamID) error {
	members := p.cfg.Store.Members(team)
	here := 0
	for _, m := range members {
		if !m.Removed() {
			here++
		}
	}
	switch {
	case here >= maxMembers:
		return api.Problemf(api.CodeTooManyMembers, "the team has %d members, which is the limit: remove some", here).WithRetry(limitRetry)
	case len(members) >= maxRemoved*maxMembers:
		return api.Problemf(api.CodeTooManyMembers, "the team has %d members with those who were removed, which is the limit: the relay's operator has to see to it", len(members)).WithRetry(limitRetry)
	}
	return nil
}

func (p *People) public(r store.InviteRecord) api.Invite {
	return api.Invite{
		InviteID: shortID(r.Hash), Name: r.Name, Role: r.Role, CreatedBy: p.shown(r.CreatedBy, r.By), CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt,
	}
}

// Invites lists a team's invitations that can still be used, the newest first.
func (p *People) Invites(team ident.TeamID) []api.Invite {
	out := []api.Invite{}
	for _, r := range p.cfg.Store.Invites(team) {
		if p.usable(r) {
			out = append(out, p.public(r))
		}
	}
	slices.SortFunc(out, func(a, b api.Invite) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.InviteID, b.InviteID))
	})
	return out
}

// TakeBack makes an invitation worth nothing. The error is a *api.Problem.
func (p *People) TakeBack(ctx context.Context, by creds.Principal, team ident.TeamID, id string) error {
	find := func() (store.InviteRecord, bool) {
		list := p.cfg.Store.Invites(team)
		i := slices.IndexFunc(list, func(r store.InviteRecord) bool { return shortID(r.Hash) == id })
		if i < 0 {
			return store.InviteRecord{}, false
		}
		return list[i], true
	}
	rec, ok := find()
	if !ok {
		if err := p.cfg.Store.CatchUp(ctx); err != nil {
			return storeProblem("look for the invitation", err)
		}
		if rec, ok = find(); !ok {
			return api.NotFound(api.CodeInviteNotFound)
		}
	}
	if err := p.cfg.Store.DeleteInvite(ctx, rec.Hash); err != nil {
		return storeProblem("take an invitation back", err)
	}
	p.settle(ctx)
	return p.audit(ctx, audit.Record{Event: audit.InviteRevoked, Actor: by.Name, Team: team, Detail: fmt.Sprintf("%s for %q", id, rec.Name)})
}

// usable says whether an invitation is worth anything: it has not ended, and whoever made
// it, and what they made it with, may still give what it gives.
func (p *People) usable(r store.InviteRecord) bool {
	if !p.now().Before(r.ExpiresAt) {
		return false
	}
	if r.MadeBy != "" {
		if _, ok := p.cfg.Store.Credential(r.MadeBy); !ok {
			return false
		}
		if _, revoked := store.Credentials(p.cfg.Store.Credential).Revoked(r.MadeBy); revoked {
			return false
		}
	}
	if r.By == "" { // the operator
		return true
	}
	m, ok := p.cfg.Store.Member(r.Team, r.By)
	if !ok { // known to the issuer alone
		return !madeHere(r.By)
	}
	if m.Role != "" && !m.Role.AtLeast(api.RoleAdmin) { // who could not make it now
		return false
	}
	return !m.Removed() && p.role(m).AtLeast(r.Role)
}

func inviteRefused() error {
	return api.NewProblem(api.CodeInviteRefused, "the invitation is unknown, used, expired or taken back: ask whoever sent it for another one")
}

// Accept uses an invitation up and makes its member: a new person, or, when as names
// somebody who is signed in, that one. Who is in the team already keeps the greater role.
// The error is a *api.Problem.
func (p *People) Accept(ctx context.Context, secret ident.Secret, as ident.UserID, remote string) (store.MemberRecord, store.UserRecord, error) {
	fail := func(err error) (store.MemberRecord, store.UserRecord, error) {
		return store.MemberRecord{}, store.UserRecord{}, err
	}
	hash := secret.Hash()
	rec, ok := p.cfg.Store.Invite(hash)
	if !ok {
		if !p.misses.Allow() {
			return fail(api.NewProblem(api.CodeTooManyTries, "too many tries with invitations that do not exist: try again in a moment").WithRetry(time.Second))
		}
		if err := p.cfg.Store.CatchUp(ctx); err != nil {
			return fail(storeProblem("look for the invitation", err))
		}
		if rec, ok = p.cfg.Store.Invite(hash); !ok {
			return fail(inviteRefused())
		}
	}
	if !p.usable(rec) {
		return fail(inviteRefused())
	}
	already, ok := p.cfg.Store.Member(rec.Team, as)
	if as == "" || !ok || already.Removed() {
		if err := p.room(rec.Team); err != nil {
			return fail(err)
		}
	}
	rec, err := p.cfg.Store.TakeInvite(ctx, hash)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return fail(inviteRefused())
	case err != nil:
		return fail(storeProblem("use an invitation", err))
	}
	user := as
	if user == "" {
		user = ident.UserID(creds.OwnUsers + ident.NewNonce())
	}
	person, err := p.cfg.Store.ChangeUser(ctx, user, func(u *store.UserRecord) error {
		if u.ID != "" {
			return store.ErrUnchanged
		}
		*u = store.UserRecord{ID: user, Name: rec.Name, CreatedAt: p.now()}
		return nil
	})
	if err != nil {
		return fail(storeProblem("make a member", err))
	}
	member, err := p.cfg.Store.ChangeMember(ctx, rec.Team, user, func(m *store.MemberRecord) error {
		if m.User != "" && !m.Removed() && p.role(*m).AtLeast(rec.Role) {
			return store.ErrUnchanged
		}
		*m = store.MemberRecord{
			Team: rec.Team, User: user, Role: rec.Role, Source: store.SourceInvite, JoinedAt: p.now(),
			InvitedBy: p.shown(rec.CreatedBy, rec.By), MadeBy: rec.MadeBy,
		}
		return nil
	})
	if err != nil {
		return fail(storeProblem("make a member", err))
	}
	member.Team, member.User, member.Role = rec.Team, user, p.role(member)
	person.ID = user
	p.settle(ctx)
	return member, person, p.audit(ctx, audit.Record{
		Event: audit.InviteTaken, Actor: "user:" + string(user), Team: rec.Team, RemoteAddr: remote,
		Detail: fmt.Sprintf("%s for %q, role %s, made by %s", shortID(hash), rec.Name, member.Role, rec.CreatedBy),
	})
}
