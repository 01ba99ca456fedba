package store

import (
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// maxMakers bounds how far a credential's makers are followed. Each is older than what
// it made, so a longer row, or one that bites its tail, was written by somebody else.
const maxMakers = 32

// Credentials finds a credential's record, revoked ones too.
type Credentials func(id ident.CredentialID) (CredentialRecord, bool)

// Line yields a credential, the one that it was made with, and so on, within its team.
func (find Credentials) Line(id ident.CredentialID) iter.Seq[CredentialRecord] {
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
	for r := range find.Line(id) {
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
	for r := range find.Line(id) {
		if !r.RevokedAt.IsZero() && !r.KeepTunnels && (!closed || r.RevokedAt.Before(since)) {
			since, closed = r.RevokedAt, true
		}
	}
	return since, closed
}

// MadeWith says whether a credential was made with another one, or with one in the
// line that begins there.
func (find Credentials) MadeWith(id, maker ident.CredentialID) bool {
	for r := range find.Line(id) {
		if r.MadeBy == maker && maker != "" {
			return true
		}
	}
	return false
}

// People are those behind a credential: who made it and whose it is. What the two may
// not, it may not.
func (r CredentialRecord) People() []ident.UserID {
	var out []ident.UserID
	if r.User != "" {
		out = append(out, r.User)
	}
	if maker := r.maker(); maker != "" && maker != r.User {
		out = append(out, maker)
	}
	return out
}

// maker is the person who made a credential; the last release wrote the name alone.
func (r CredentialRecord) maker() ident.UserID {
	if r.Maker == "" && r.MadeBy == "" {
		if user, ok := strings.CutPrefix(r.CreatedBy, "user:"); ok {
			return ident.UserID(user)
		}
	}
	return r.Maker
}

// OfMachine says whether a credential is for one agent only. That one is its machine's
// and so the team's, whoever made it: it stays when they leave the team.
func (r CredentialRecord) OfMachine() bool { return r.Kind == api.KindAgent && r.Agent != "" }

// Opened says who opened something, or made it: a person, a credential or both, and the
// name under which they did.
type Opened struct {
	User       ident.UserID
	Credential ident.CredentialID
	By         string
	At         time.Time
}

// Opened says who opened the tunnel.
func (t TunnelRecord) Opened() Opened { return Opened{t.User, t.Credential, t.OpenedBy, t.OpenedAt} }

// Opened says who made the named link.
func (l LinkRecord) Opened() Opened { return Opened{l.User, l.Credential, l.CreatedBy, l.CreatedAt} }

// Left says whether a person was removed from a tunnel's team since it was opened. If it
// was kept, it is for others: what the person has of it is worth nothing, also the admin
// token of one that they opened.
func (t TunnelRecord) Left(find Openers, user ident.UserID) bool {
	m, known := find.Member(t.Team, user)
	return user != "" && known && m.Ends(t.OpenedAt)
}

// OpenedBy says whether something was opened by a person, by whatever means.
func (find Credentials) OpenedBy(o Opened, user ident.UserID) bool {
	switch {
	case o.User != "":
		return o.User == user
	case o.Credential == "": // the name alone is of the last release
		return o.By == "user:"+string(user)
	}
	for r := range find.Line(o.Credential) {
		if slices.Contains(r.People(), user) {
			return true
		}
	}
	return false
}

// Openers finds whom, and what, open things hang on.
type Openers interface {
	Credential(id ident.CredentialID) (CredentialRecord, bool)
	Member(team ident.TeamID, user ident.UserID) (MemberRecord, bool)
}

// Closed says since when what somebody opened in a team is closed: the credential was
// revoked, or the person removed, and the tunnels were not kept. The reason is empty when
// it is not.
func Closed(find Openers, team ident.TeamID, o Opened) (since time.Time, reason Reason) {
	if o.Credential != "" {
		if at, closed := Credentials(find.Credential).Closed(o.Credential); closed {
			since, reason = at, ReasonRevoked
		}
	}
	if o.User == "" {
		return since, reason
	}
	if m, ok := find.Member(team, o.User); ok && m.Ends(o.At) && !m.KeepTunnels && (reason == "" || m.RemovedAt.Before(since)) {
		return m.RemovedAt, ReasonRemoved
	}
	return since, reason
}
