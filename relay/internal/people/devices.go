package people

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Devices lists by what a person gets in: paired devices of the team, browsers that are
// signed in, and passkeys; the newest first.
func (p *People) Devices(by creds.Principal) api.Devices {
	out := api.Devices{Devices: []api.Credential{}, SignIns: []api.SignIn{}, Passkeys: []api.Passkey{}}
	if by.User == "" {
		return out
	}
	for _, c := range p.cfg.Store.Credentials(by.Team) {
		if p.owns(by, c) {
			out.Devices = append(out.Devices, creds.Public(c))
		}
	}
	for _, s := range p.cfg.Store.SignIns(by.User) {
		if p.holds(s) {
			out.SignIns = append(out.SignIns, api.SignIn{
				SignInID: shortID(s.Hash), Current: s.Hash == by.SignIn, Method: s.Method, Browser: s.Browser, RemoteAddr: s.RemoteAddr,
				IssuedAt: s.IssuedAt, SeenAt: s.SeenAt, ExpiresAt: s.ExpiresAt,
			})
		}
	}
	u, _ := p.cfg.Store.User(by.User)
	for _, k := range u.Passkeys {
		out.Passkeys = append(out.Passkeys, api.Passkey{PasskeyID: k.ID, Name: k.Name, CreatedAt: k.CreatedAt, LastUsedAt: k.LastUsed})
	}
	slices.SortFunc(out.Devices, func(a, b api.Credential) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	slices.SortFunc(out.SignIns, func(a, b api.SignIn) int {
		return cmp.Or(b.IssuedAt.Compare(a.IssuedAt), cmp.Compare(a.SignInID, b.SignInID))
	})
	slices.SortFunc(out.Passkeys, func(a, b api.Passkey) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.PasskeyID, b.PasskeyID))
	})
	return out
}

// owns says whether a credential is a person's device, in the team that they act in, and
// still works.
func (p *People) owns(by creds.Principal, c store.CredentialRecord) bool {
	if c.Kind != api.KindDevice || c.User != by.User || by.User == "" || c.Team != by.Team {
		return false
	}
	_, revoked := store.Credentials(p.cfg.Store.Credential).Revoked(c.ID)
	return !revoked && (c.ExpiresAt.IsZero() || p.now().Before(c.ExpiresAt))
}

// Forget ends one of the caller's own devices, browsers or passkeys; whose it is
// otherwise, it is not there. The error is a *api.Problem.
func (p *People) Forget(ctx context.Context, by creds.Principal, id string) error {
	found, err := p.forget(ctx, by, id)
	if err == nil && !found {
		if err = p.cfg.Store.CatchUp(ctx); err != nil {
			return storeProblem("look for the device", err)
		}
		found, err = p.forget(ctx, by, id)
	}
	if err == nil && !found {
		err = api.NotFound(api.CodeDeviceNotFound)
	}
	return err
}

func (p *People) forget(ctx context.Context, by creds.Principal, id string) (found bool, err error) {
	if by.User == "" {
		return false, nil
	}
	if c, ok := p.cfg.Store.Credential(ident.CredentialID(id)); ok && p.owns(by, c) {
		_, err := p.cfg.Rights.Revoke(ctx, by, by.Team, c.ID, false)
		return true, err
	}
	for _, s := range p.cfg.Store.SignIns(by.User) {
		if shortID(s.Hash) == id {
			return true, p.SignOut(ctx, s, false)
		}
	}
	if u, _ := p.cfg.Store.User(by.User); !slices.ContainsFunc(u.Passkeys, func(k store.PasskeyRecord) bool { return k.ID == id }) {
		return false, nil
	}
	_, err = p.cfg.Store.ChangeUser(ctx, by.User, func(u *store.UserRecord) error {
		n := len(u.Passkeys)
		if u.Passkeys = slices.DeleteFunc(slices.Clone(u.Passkeys), func(k store.PasskeyRecord) bool { return k.ID == id }); len(u.Passkeys) == n {
			return store.ErrNotFound
		}
		return nil
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return false, nil
	case err != nil:
		return true, storeProblem("remove a passkey", err)
	}
	p.settle(ctx)
	return true, p.audit(ctx, audit.Record{Event: audit.PasskeyRemoved, Actor: by.Name, Detail: fmt.Sprintf("%s of %s", shortID(id), by.User)})
}
