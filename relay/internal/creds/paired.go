package creds

import (
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Paired are the credentials of a pairing that was confirmed, not written yet, and their
// secrets, which are nowhere kept. What was not asked for is empty.
type Paired struct {
	Records       []store.CredentialRecord
	Device, Agent ident.Secret
}

// Pair makes what a pairing gives out: a device of the person who confirmed it, with at
// most the role given, and a credential of the one machine. The machine's ends with the
// device's, where both are made. The caller writes the records, in one step. The error
// is a *api.Problem.
func (a *Authenticator) Pair(p store.PairingRecord, role api.Role) (Paired, error) {
	now := time.Now().UTC()
	if p := a.room(p.Team, now); p != nil {
		return Paired{}, p
	}
	var out Paired
	for _, key := range p.Keys {
		rec := store.CredentialRecord{
			ID: ident.NewCredentialID(), Kind: api.KindDevice, Team: p.Team, Name: p.DeviceName,
			CreatedBy: p.By, CreatedAt: now, Maker: p.User, Role: role,
		}
		secret := &out.Device
		prefix := ident.PrefixDevice
		switch key {
		case api.PairDevice:
			rec.User = p.User
		case api.PairAgent:
			secret, prefix = &out.Agent, ident.PrefixAgent
			rec.Kind, rec.Agent, rec.Name = api.KindAgent, p.Agent, string(p.Agent)
		}
		*secret = ident.NewSecret(prefix)
		rec.Prefix, rec.Hash = secret.DisplayPrefix(), secret.Hash()
		out.Records = append(out.Records, rec)
	}
	for i := range out.Records {
		if rec := &out.Records[i]; rec.Kind == api.KindAgent && len(out.Records) > 1 {
			rec.MadeBy = out.Records[1-i].ID
		}
	}
	return out, nil
}
