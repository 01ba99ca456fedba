package people

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// User returns a person.
func (p *People) User(user ident.UserID) (store.UserRecord, bool) { return p.cfg.Store.User(user) }

// MayAddPasskey says whether a person may have passkeys. Only people whom the relay made
// itself have some: whoever an issuer signs in must not get in when the issuer does not
// let them any more.
func (p *People) MayAddPasskey(user ident.UserID) bool { return madeHere(user) }

// Handle returns a person who may have passkeys, with the handle that those know them by,
// and makes one if there is none. The error is a *api.Problem.
func (p *People) Handle(ctx context.Context, user ident.UserID) (store.UserRecord, error) {
	if !p.MayAddPasskey(user) {
		return store.UserRecord{}, api.NewProblem(api.CodeForbidden, "your organisation's sign-in lets you in: passkeys are for people who came by an invitation")
	}
	u, err := p.cfg.Store.ChangeUser(ctx, user, func(u *store.UserRecord) error {
		switch {
		case u.ID == "":
			return notSignedIn() // forgotten meanwhile
		case len(u.Handle) > 0:
			return store.ErrUnchanged
		}
		u.Handle = make([]byte, 32)
		_, _ = rand.Read(u.Handle) // crypto/rand.Read never fails since Go 1.24
		return nil
	})
	if err != nil {
		return u, storeProblem("make ready for a passkey", err)
	}
	u.ID = user
	return u, nil
}

// ByHandle returns the person whom passkeys know by a handle. A miss is confirmed once.
func (p *People) ByHandle(ctx context.Context, handle []byte) (store.UserRecord, bool) {
	u, ok := p.cfg.Store.UserByHandle(handle)
	if !ok && len(handle) > 0 && p.misses.Allow() && p.cfg.Store.CatchUp(ctx) == nil {
		u, ok = p.cfg.Store.UserByHandle(handle)
	}
	return u, ok
}

// AddPasskey writes a person's passkey. The error is a *api.Problem.
func (p *People) AddPasskey(ctx context.Context, user ident.UserID, passkey store.PasskeyRecord) error {
	name, err := named("name", passkey.Name)
	if err != nil {
		return err
	}
	passkey.Name, passkey.CreatedAt = name, p.now()
	_, err = p.cfg.Store.ChangeUser(ctx, user, func(u *store.UserRecord) error {
		switch {
		case u.ID == "" || len(u.Handle) == 0:
			return notSignedIn()
		case slices.ContainsFunc(u.Passkeys, func(k store.PasskeyRecord) bool { return k.ID == passkey.ID }):
			return api.NewProblem(api.CodeOutOfRange, "this passkey was added already")
		case len(u.Passkeys) >= maxPasskeys:
			return api.Problemf(api.CodeOutOfRange, "a person has at most %d passkeys: remove one first", maxPasskeys)
		}
		u.Passkeys = append(slices.Clone(u.Passkeys), passkey)
		return nil
	})
	if err != nil {
		return storeProblem("add a passkey", err)
	}
	p.settle(ctx)
	return p.audit(ctx, audit.Record{Event: audit.PasskeyAdded, Actor: "user:" + string(user), Detail: fmt.Sprintf("%s %q", shortID(passkey.ID), name)})
}

// UsePasskey writes that a passkey was used, with its state afterwards. The error is a
// *api.Problem.
func (p *People) UsePasskey(ctx context.Context, user ident.UserID, id string, credential json.RawMessage) error {
	_, err := p.cfg.Store.ChangeUser(ctx, user, func(u *store.UserRecord) error {
		u.Passkeys = slices.Clone(u.Passkeys)
		i := slices.IndexFunc(u.Passkeys, func(k store.PasskeyRecord) bool { return k.ID == id })
		if i < 0 {
			return api.NewProblem(api.CodePasskeyRefused, "the passkey was removed")
		}
		u.Passkeys[i].Credential, u.Passkeys[i].LastUsed = credential, p.now()
		return nil
	})
	if err != nil {
		return storeProblem("use a passkey", err)
	}
	return nil
}
