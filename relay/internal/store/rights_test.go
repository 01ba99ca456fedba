package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// A machine's credential that was adopted lives on when its maker is revoked.
func TestAnAdoptedCredentialOutlivesItsMaker(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		ctx := t.Context()
		maker := store.CredentialRecord{ID: ident.NewCredentialID(), Kind: api.KindDevice, Team: teamA, Hash: "maker", User: "bob"}
		machine := store.CredentialRecord{ID: ident.NewCredentialID(), Kind: api.KindAgent, Agent: "gpu-1", Team: teamA, Hash: "machine", MadeBy: maker.ID, Maker: "bob", CreatedBy: "dk:bob/x"}
		for _, r := range []store.CredentialRecord{maker, machine} {
			if err := s.CreateCredential(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.AdoptCredential(ctx, teamB, machine.ID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("another team adopts it: %v", err)
		}
		for range 2 { // again is no error
			if err := s.AdoptCredential(ctx, teamA, machine.ID); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.RevokeCredential(ctx, teamA, maker.ID, time.Now(), false); err != nil {
			t.Fatal(err)
		}
		if err := s.CatchUp(ctx); err != nil {
			t.Fatal(err)
		}
		got, _ := s.Credential(machine.ID)
		if _, revoked := store.Credentials(s.Credential).Revoked(machine.ID); revoked || got.MadeBy != "" || got.Maker != "" || got.CreatedBy != machine.CreatedBy || got.Agent != "gpu-1" {
			t.Errorf("revoked: %t, %+v", revoked, got)
		}
	})
}

// openers are credentials and members in memory.
type openers struct {
	credential store.CredentialRecord
	member     store.MemberRecord
}

func (o openers) Credential(id ident.CredentialID) (store.CredentialRecord, bool) {
	return o.credential, o.credential.ID == id
}

func (o openers) Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool) {
	return o.member, o.member.Team == team && o.member.User == user
}

func TestSinceWhenItIsClosedAndWhy(t *testing.T) {
	early, late := time.Now().Add(-time.Hour), time.Now()
	for name, c := range map[string]struct {
		revoked, removed time.Time
		keepCredential   bool
		keepMember       bool
		since            time.Time
		reason           store.Reason
	}{
		"neither":                        {},
		"revoked":                        {revoked: late, since: late, reason: store.ReasonRevoked},
		"revoked and kept":               {revoked: late, keepCredential: true},
		"removed":                        {removed: late, since: late, reason: store.ReasonRemoved},
		"removed and kept":               {removed: late, keepMember: true},
		"removed, and revoked with that": {removed: early, revoked: late, since: early, reason: store.ReasonRemoved},
		"revoked before":                 {removed: late, revoked: early, since: early, reason: store.ReasonRevoked},
		"kept at the removal only":       {removed: early, revoked: late, keepMember: true, since: late, reason: store.ReasonRevoked},
	} {
		o := openers{
			store.CredentialRecord{ID: "c", Team: teamA, RevokedAt: c.revoked, KeepTunnels: c.keepCredential},
			store.MemberRecord{Team: teamA, User: "bob", RemovedAt: c.removed, KeepTunnels: c.keepMember},
		}
		if since, reason := store.Closed(o, teamA, store.Opened{User: "bob", Credential: "c"}); reason != c.reason || !since.Equal(c.since) {
			t.Errorf("%s: closed since %v because %q, want %v %q", name, since, reason, c.since, c.reason)
		}
		if o.member.RemovedBy = store.SourceIssuer; c.reason == store.ReasonRemoved { // who comes back by the issuer's word goes on with what is newer
			if _, reason := store.Closed(o, teamA, store.Opened{User: "bob", At: c.removed.Add(time.Second)}); reason != "" {
				t.Errorf("%s by the issuer, and named again: closed because %q", name, reason)
			}
			if _, reason := store.Closed(o, teamA, store.Opened{User: "bob", At: c.removed.Add(-time.Second)}); reason != store.ReasonRemoved {
				t.Errorf("%s by the issuer: closed because %q", name, reason)
			}
		}
		if _, reason := store.Closed(o, teamB, store.Opened{User: "bob"}); reason != "" {
			t.Errorf("%s: in another team it is closed because %q", name, reason)
		}
		if _, reason := store.Closed(o, teamA, store.Opened{By: "operator:root"}); reason != "" {
			t.Errorf("%s: what the operator opened is closed because %q", name, reason)
		}
	}
}
