package creds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Bounds of a credential's life, when it has an end at all.
const (
	minLife = 24 * time.Hour
	maxLife = 365 * 24 * time.Hour
)

// keptPerTeam bounds a team's credentials with those that were revoked or expired: so
// many times those that may work.
const keptPerTeam = 10

// MaxNameBytes bounds a credential's name.
const MaxNameBytes = 64

// Create makes a credential of a team and returns its record and the secret, which
// is nowhere kept. The operator names the user of a device credential; a person's
// device credentials are always their own. The error is a *api.Problem.
func (a *Authenticator) Create(ctx context.Context, by Principal, team ident.TeamID, user ident.UserID, req api.CreateCredentialRequest) (store.CredentialRecord, ident.Secret, error) {
	if p := mayManage(by, team); p != nil {
		return store.CredentialRecord{}, "", p
	}
	now := time.Now().UTC()
	rec := store.CredentialRecord{ID: ident.NewCredentialID(), Kind: req.Kind, Team: team, Name: req.Name,
		CreatedBy: by.Name, CreatedAt: now, Agent: req.AgentID}
	if by.Kind == KindOperator {
		rec.Name = cmp.Or(rec.Name, string(req.Kind))
	} else {
		user = by.User
	}
	if req.Kind == api.KindDevice {
		rec.User = user
	}
	if req.ExpiresIn != nil {
		rec.ExpiresAt = now.Add(req.ExpiresIn.D())
	}
	rec.MadeBy, rec.Maker = by.Credential, by.Person()
	if maker, ok := a.cfg.Store.Credential(by.Credential); ok && !maker.ExpiresAt.IsZero() && (rec.ExpiresAt.IsZero() || rec.ExpiresAt.After(maker.ExpiresAt)) {
		rec.ExpiresAt = maker.ExpiresAt // no credential outlives its maker
	}
	prefix, p := check(rec, req)
	if p == nil {
		p = narrow(&rec, by, req)
	}
	if p != nil {
		return store.CredentialRecord{}, "", p
	}
	if p := a.room(team, now); p != nil {
		return store.CredentialRecord{}, "", p
	}
	secret := ident.NewSecret(prefix)
	rec.Prefix, rec.Hash = secret.DisplayPrefix(), secret.Hash()
	if err := a.cfg.Store.CreateCredential(ctx, rec); err != nil {
		return store.CredentialRecord{}, "", storeProblem("create credential", err)
	}
	return rec, secret, nil
}

// Revoke makes a credential of the team useless, and those that were made with it, here
// at once and on every relay within seconds; it returns their records, its own first.
// What they opened is closed as the records say, by whoever holds it: this package
// closes links and sockets alone. Revoking again is no error, and finishes what was
// interrupted. The error is a *api.Problem.
func (a *Authenticator) Revoke(ctx context.Context, by Principal, team ident.TeamID, id ident.CredentialID, keepTunnels bool) ([]store.CredentialRecord, error) {
	// A device may always end itself.
	if p := mayManage(by, team); p != nil && (by.Kind != KindDevice || by.Credential != id) {
		return nil, p
	}
	// The maker first: from then on its children are worth nothing, whatever happens here.
	ids, line := []ident.CredentialID{id}, store.Credentials(a.cfg.Store.Credential)
	for _, rec := range a.cfg.Store.Credentials(team) {
		if rec.ID != id && line.MadeWith(rec.ID, id) && (rec.RevokedAt.IsZero() || rec.KeepTunnels && !keepTunnels) {
			ids = append(ids, rec.ID)
		}
	}
	var out []store.CredentialRecord
	for _, id := range ids {
		rec, err := a.cfg.Store.RevokeCredential(ctx, team, id, time.Now().UTC(), keepTunnels)
		if err != nil {
			return nil, storeProblem("revoke credential", err)
		}
		for _, w := range a.watched.of(id) { // the index may be a moment behind
			w.cancel(ErrRevoked)
		}
		out = append(out, rec)
	}
	// Whoever is told that it is revoked must not see it accepted here. If the store does
	// not answer now, it is revoked all the same, and the index learns of it later.
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	_ = a.cfg.Store.CatchUp(ctx)
	return out, nil
}

// List returns a team's credentials, the newest first. The error is a *api.Problem.
func (a *Authenticator) List(by Principal, team ident.TeamID) ([]api.Credential, error) {
	if p := mayManage(by, team); p != nil {
		return nil, p
	}
	list := []api.Credential{}
	for _, rec := range a.cfg.Store.Credentials(team) {
		if stone, ok := store.Credentials(a.cfg.Store.Credential).Revoked(rec.ID); ok {
			rec.RevokedAt = stone.RevokedAt
		}
		list = append(list, Public(rec))
	}
	slices.SortFunc(list, func(x, y api.Credential) int {
		return cmp.Or(y.CreatedAt.Compare(x.CreatedAt), strings.Compare(string(x.ID), string(y.ID)))
	})
	return list, nil
}

// Public is what may be shown of a record.
func Public(rec store.CredentialRecord) api.Credential {
	return api.Credential{ID: rec.ID, Kind: rec.Kind, Name: rec.Name, Prefix: rec.Prefix, AgentID: rec.Agent, UserID: rec.User,
		CreatedBy: rec.CreatedBy, MadeBy: rec.MadeBy, CreatedAt: rec.CreatedAt, ExpiresAt: rec.ExpiresAt, LastUsedAt: rec.LastUsed,
		Revoked: !rec.RevokedAt.IsZero(), Role: rec.Role, Scopes: rec.Scopes, Agents: rec.Agents, Ports: rec.Ports}
}

func mayManage(by Principal, team ident.TeamID) *api.Problem {
	switch {
	case !by.MayManageCredentials():
		return api.NewProblem(api.CodeForbidden, "credentials are managed by people: with a user session or a device credential")
	case !by.MayUseTeam(team):
		return api.NewProblem(api.CodeNotFound, "no such team")
	}
	return nil
}

// check says what is wrong with a credential to be made, and which prefix its
// secret has.
func check(rec store.CredentialRecord, req api.CreateCredentialRequest) (string, *api.Problem) {
	out := func(format string, args ...any) (string, *api.Problem) {
		return "", api.Problemf(api.CodeOutOfRange, format, args...)
	}
	i := slices.IndexFunc(forms[:], func(f form) bool { return f.stored == rec.Kind })
	switch {
	case i < 0:
		return out("kind: integration, agent or device")
	case !printable(rec.Name, MaxNameBytes):
		return out("name: 1 to %d bytes of printable text", MaxNameBytes)
	case req.ExpiresIn != nil && (req.ExpiresIn.D() < minLife || req.ExpiresIn.D() > maxLife):
		return out("expires_in: 1 to 365 days, or absent for no end")
	case rec.Kind == api.KindDevice && !printable(string(rec.User), 255):
		return out("user: a device credential belongs to a person")
	case rec.Agent != "" && rec.Kind != api.KindAgent:
		return out("agent_id: only for kind agent")
	}
	if rec.Agent != "" {
		if _, err := ident.ParseAgentID(string(rec.Agent)); err != nil {
			return out("agent_id: %v", err)
		}
	}
	return forms[i].prefix, nil
}

// room says why a team can have no more credentials, if so.
func (a *Authenticator) room(team ident.TeamID, now time.Time) *api.Problem {
	if n := a.live(team, now); n >= a.cfg.MaxPerTeam {
		return api.Problemf(api.CodeTooManyCredentials, "the team has %d credentials, which is the limit: revoke some", n)
	}
	// What is revoked stays for a while: to make and revoke in a loop must end, too.
	if n := len(a.cfg.Store.Credentials(team)); n >= keptPerTeam*a.cfg.MaxPerTeam {
		return api.Problemf(api.CodeTooManyCredentials,
			"the team has %d credentials with those that were revoked, which is the limit: these go when they would have expired, after 90 days at the latest", n)
	}
	return nil
}

// live counts a team's credentials that still work.
func (a *Authenticator) live(team ident.TeamID, now time.Time) int {
	n := 0
	for _, rec := range a.cfg.Store.Credentials(team) {
		if a.usable(rec, now) == nil {
			n++
		}
	}
	return n
}

func storeProblem(doing string, err error) *api.Problem {
	if errors.Is(err, store.ErrNotFound) {
		return api.NotFound(api.CodeCredentialNotFound)
	}
	err = fmt.Errorf("%s: %w", doing, err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	if refusal := store.Refusal(err); refusal != nil {
		return refusal
	}
	return api.Internal(err)
}
