package store

import (
	"iter"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// maxMakers bounds how far a credential's makers are followed. Each is older than what
// it made, so a longer row, or one that bites its tail, was written by somebody else.
const maxMakers = 32

// Credentials finds a credential's record, revoked ones too.
type Credentials func(id ident.CredentialID) (CredentialRecord, bool)

// line yields a credential, the one that it was made with, and so on, within its team.
func (find Credentials) line(id ident.CredentialID) iter.Seq[CredentialRecord] {
	return func(yield func(CredentialRecord) bool) {
		team := ident.TeamID("")
		for i := range maxMakers {
			r, ok := find(id)
			if i == 0 {
				team = r.Team
			}
			if !ok || r.Team != team || !yield(r) {
				return
			}
			id = r.MadeBy
		}
	}
}

// Revoked returns the revocation that a credential is worth nothing since: its own, or
// that of one in the line of its makers. That a relay died before it had revoked the
// children does not save them.
func (find Credentials) Revoked(id ident.CredentialID) (CredentialRecord, bool) {
	for r := range find.line(id) {
		if !r.RevokedAt.IsZero() {
			return r, true
		}
	}
	return CredentialRecord{}, false
}

// Closed says since when what a credential opened is closed: when it, or one in the
// line of its makers, was revoked and its tunnels were not kept. A credential whose
// record is gone closes nothing: it has expired, and expiry closes nothing either.
func (find Credentials) Closed(id ident.CredentialID) (since time.Time, closed bool) {
	for r := range find.line(id) {
		if !r.RevokedAt.IsZero() && !r.KeepTunnels && (!closed || r.RevokedAt.Before(since)) {
			since, closed = r.RevokedAt, true
		}
	}
	return since, closed
}

// MadeWith says whether a credential was made with another one, or with one in the
// line that begins there.
func (find Credentials) MadeWith(id, maker ident.CredentialID) bool {
	for r := range find.line(id) {
		if r.MadeBy == maker && maker != "" {
			return true
		}
	}
	return false
}
