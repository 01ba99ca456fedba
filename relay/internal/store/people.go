package store

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// TeamRecord gives a team its name. A team without one exists all the same: it is a UUID.
type TeamRecord struct {
	ID        ident.TeamID `json:"id"`
	Name      string       `json:"name"`
	CreatedBy string       `json:"created_by"`
	CreatedAt time.Time    `json:"created_at"`
}

// UserRecord is a person, in whatever teams.
type UserRecord struct {
	ID    ident.UserID `json:"id"`
	Name  string       `json:"name,omitempty"`
	Email string       `json:"email,omitempty"`
	// Handle is the person's name towards passkeys: random bytes, never shown.
	Handle    []byte          `json:"handle,omitempty"`
	Passkeys  []PasskeyRecord `json:"passkeys,omitempty"`
	CreatedAt time.Time       `json:"created_at"`
	// SignedOutAt ends whatever the person signed in to before it: everywhere.
	SignedOutAt time.Time `json:"signed_out_at,omitzero"`
}

// PasskeyRecord is one passkey of a person.
type PasskeyRecord struct {
	ID   string `json:"id"` // the credential's id, base64url
	Name string `json:"name"`
	// Credential is the public key and its state, as the library for it writes them.
	Credential json.RawMessage `json:"credential"`
	CreatedAt  time.Time       `json:"created_at"`
	LastUsed   time.Time       `json:"last_used,omitzero"`
}

// MemberRecord is a person's place in a team, as the store knows it. One that was removed
// stays as a tombstone: an issuer that still names the person does not bring them back.
type MemberRecord struct {
	Team      ident.TeamID `json:"team"`
	User      ident.UserID `json:"user"`
	Role      api.Role     `json:"role"`
	Source    string       `json:"source"` // issuer, invite, owner, operator: who the role is from
	JoinedAt  time.Time    `json:"joined_at"`
	InvitedBy string       `json:"invited_by,omitempty"`
	// MadeBy is the credential that the invitation was made with, if any.
	MadeBy    ident.CredentialID `json:"made_by,omitempty"`
	RemovedAt time.Time          `json:"removed_at,omitzero"`
	// RemovedBy is who did, or SourceIssuer: it names them no more, and may do so again.
	RemovedBy string `json:"removed_by,omitempty"`
	// KeepTunnels says of a removed one that what they opened stays open.
	KeepTunnels bool `json:"keep_tunnels,omitempty"`
}

// Sources of a member. By an invitation and by the operator they need no issuer that names
// the team; with a role that an owner gave instead of the issuer they do.
const (
	SourceIssuer   = "issuer"
	SourceInvite   = "invite"
	SourceOwner    = "owner" // of the team
	SourceOperator = "operator"
)

// Removed says whether the person is no member any more.
func (r MemberRecord) Removed() bool { return !r.RemovedAt.IsZero() }

// Unsaid says of one who was removed that it was by the issuer's word, which may bring
// them back.
func (r MemberRecord) Unsaid() bool { return r.Removed() && r.RemovedBy == SourceIssuer }

// Ends says whether the removal ends what the person made or opened at a time. Whom the
// issuer named no more for a while, and names again, may go on with what is newer.
func (r MemberRecord) Ends(at time.Time) bool {
	return r.Removed() && !(r.Unsaid() && (at.IsZero() || at.After(r.RemovedAt)))
}

// SignInRecord is a browser in which a person is signed in. Its end is its deletion.
type SignInRecord struct {
	Hash string       `json:"sha256"` // of the cookie's secret
	User ident.UserID `json:"user"`
	// Teams are those that the issuer named at the sign-in. What the store knows of the
	// person counts beside them, and above them.
	Teams []SignInTeam `json:"teams,omitempty"`
	// Groups are those that the issuer named, for access: people.
	Groups     []string  `json:"groups,omitempty"`
	Method     string    `json:"method"` // issuer, invite, passkey
	Browser    string    `json:"browser,omitempty"`
	RemoteAddr string    `json:"remote_addr,omitempty"`
	IssuedAt   time.Time `json:"issued_at"`
	SeenAt     time.Time `json:"seen_at"`
	ExpiresAt  time.Time `json:"expires_at"` // moves on while it is used
	EndsAt     time.Time `json:"ends_at"`    // and never beyond this
}

// SignInTeam is a team that the issuer named.
type SignInTeam struct {
	ID   ident.TeamID `json:"id"`
	Name string       `json:"name,omitempty"`
	Role api.Role     `json:"role,omitempty"` // empty: the issuer says nothing of roles
}

// InviteRecord is an invitation into a team, which works once and ends by itself.
type InviteRecord struct {
	Hash      string       `json:"sha256"` // of the secret
	Team      ident.TeamID `json:"team"`
	Role      api.Role     `json:"role"`
	Name      string       `json:"name"` // of the person
	CreatedBy string       `json:"created_by"`
	// By is the person who made it, if it was one: it is worth nothing without them.
	By        ident.UserID       `json:"by,omitempty"`
	MadeBy    ident.CredentialID `json:"made_by,omitempty"`
	CreatedAt time.Time          `json:"created_at"`
	ExpiresAt time.Time          `json:"expires_at"`
}

// PairingRecord is a program that waits for a person to let it in. No key is in it: keys
// are made when the program comes for them.
type PairingRecord struct {
	Hash        string        `json:"sha256"`    // of the device code
	UserCode    string        `json:"user_code"` // a keyed hash of what the person types
	Client      string        `json:"client,omitempty"`
	MachineName string        `json:"machine_name,omitempty"`
	Keys        []api.PairKey `json:"keys"`
	Agent       ident.AgentID `json:"agent,omitempty"`
	RemoteAddr  string        `json:"remote_addr"`
	CreatedAt   time.Time     `json:"created_at"`
	ExpiresAt   time.Time     `json:"expires_at"`
	// Who let it in; empty: nobody has yet.
	Team       ident.TeamID `json:"team,omitempty"`
	User       ident.UserID `json:"user,omitempty"`
	Role       api.Role     `json:"role,omitempty"` // theirs at that moment
	By         string       `json:"by,omitempty"`   // for the audit log
	DeviceName string       `json:"device_name,omitempty"`
}

// Approved says whether somebody let it in.
func (r PairingRecord) Approved() bool { return r.User != "" }

// The tables of the records above.
type people struct {
	teams    *table[TeamRecord]
	users    *table[UserRecord]
	members  *table[MemberRecord]
	signIns  *table[SignInRecord]
	invites  *table[InviteRecord]
	pairings *table[PairingRecord]
	knocks   *table[KnockRecord]
}

func newPeople() people {
	return people{
		teams: newTable(KindTeam, dirTeam, func(name string, r *TeamRecord) { r.ID = ident.TeamID(name) }, nil,
			func(r *TeamRecord, c *Change) { c.Key.Team = r.ID }),
		users: newTable(KindUser, dirUser, func(name string, r *UserRecord) { r.ID = userNamed(name) },
			func(r *UserRecord) []string {
				if len(r.Handle) == 0 {
					return nil
				}
				return []string{listHandle + string(r.Handle)}
			},
			func(r *UserRecord, c *Change) { c.User = r.ID }),
		members: newTable(KindMember, dirMember,
			func(name string, r *MemberRecord) {
				team, user, _ := strings.Cut(name, "/")
				r.Team, r.User = ident.TeamID(team), userNamed(user)
			},
			func(r *MemberRecord) []string { return []string{listTeam + string(r.Team), listUser + string(r.User)} },
			func(r *MemberRecord, c *Change) { c.Key.Team, c.User = r.Team, r.User }),
		signIns: newTable(KindSignIn, dirSignIn, func(name string, r *SignInRecord) { r.Hash = name },
			func(r *SignInRecord) []string { return []string{listUser + string(r.User)} },
			func(r *SignInRecord, c *Change) { c.User = r.User }),
		invites: newTable(KindInvite, dirInvite, func(name string, r *InviteRecord) { r.Hash = name },
			func(r *InviteRecord) []string { return []string{listTeam + string(r.Team)} },
			func(r *InviteRecord, c *Change) { c.Key.Team = r.Team }),
		pairings: newTable(KindPairing, dirPairing, func(name string, r *PairingRecord) { r.Hash = name },
			func(r *PairingRecord) []string { return []string{listCode + r.UserCode} }, nil),
		knocks: newTable(KindKnock, dirKnock,
			func(name string, r *KnockRecord) {
				session, id, _ := strings.Cut(name, "/")
				r.Session, r.ID = ident.SessionID(session), id
			},
			func(r *KnockRecord) []string { return []string{string(r.Session)} },
			func(r *KnockRecord, c *Change) { c.Session = r.Session }),
	}
}

// Prefixes of the names of lists.
const (
	listTeam   = "team/"
	listUser   = "user/"
	listCode   = "code/"
	listHandle = "handle/"
)

func (p people) byDir() map[string]mirrored {
	return map[string]mirrored{
		dirTeam: p.teams, dirUser: p.users, dirMember: p.members, dirSignIn: p.signIns, dirInvite: p.invites, dirPairing: p.pairings, dirKnock: p.knocks,
	}
}

// userName is a person in a key: their id may hold anything printable.
func userName(id ident.UserID) string { return base64.RawURLEncoding.EncodeToString([]byte(id)) }

func userNamed(name string) ident.UserID {
	b, _ := base64.RawURLEncoding.DecodeString(name) // a key that this package wrote
	return ident.UserID(b)
}

func memberKey(team ident.TeamID, user ident.UserID) string {
	return string(team) + "/" + userName(user)
}

func key(dir, name string) string { return root + dir + "/" + name }

// Team returns a team that has a name.
func (s *Store) Team(id ident.TeamID) (TeamRecord, bool) {
	return lookup(s.mirror, s.mirror.people.teams.of, string(id))
}

// Teams returns the teams that have a name, sorted by it.
func (s *Store) Teams() []TeamRecord {
	out := all(s.mirror, s.mirror.people.teams)
	slices.SortFunc(out, func(a, b TeamRecord) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}

// User returns a person.
func (s *Store) User(id ident.UserID) (UserRecord, bool) {
	return lookup(s.mirror, s.mirror.people.users.of, userName(id))
}

// UserByHandle returns the person whom passkeys know by a handle.
func (s *Store) UserByHandle(handle []byte) (UserRecord, bool) {
	found := records(s.mirror, s.mirror.people.users.in, listHandle+string(handle))
	if len(found) != 1 {
		return UserRecord{}, false
	}
	return found[0], true
}

// Users returns every person, in no particular order.
func (s *Store) Users() []UserRecord { return all(s.mirror, s.mirror.people.users) }

// Member returns a person's place in a team, removed ones too.
func (s *Store) Member(team ident.TeamID, user ident.UserID) (MemberRecord, bool) {
	return lookup(s.mirror, s.mirror.people.members.of, memberKey(team, user))
}

// Members returns a team's members, removed ones too.
func (s *Store) Members(team ident.TeamID) []MemberRecord {
	return records(s.mirror, s.mirror.people.members.in, listTeam+string(team))
}

// MemberCounts returns how many members each team has that has any, without removed ones.
func (s *Store) MemberCounts() map[ident.TeamID]int {
	out := map[ident.TeamID]int{}
	for _, r := range all(s.mirror, s.mirror.people.members) {
		if !r.Removed() {
			out[r.Team]++
		}
	}
	return out
}

// Memberships returns a person's places in teams, removed ones too.
func (s *Store) Memberships(user ident.UserID) []MemberRecord {
	return records(s.mirror, s.mirror.people.members.in, listUser+string(user))
}

// SignIn returns a browser that is signed in, by its secret's hash.
func (s *Store) SignIn(hash string) (SignInRecord, bool) {
	return lookup(s.mirror, s.mirror.people.signIns.of, hash)
}

// SignIns returns the browsers that a person is signed in with.
func (s *Store) SignIns(user ident.UserID) []SignInRecord {
	return records(s.mirror, s.mirror.people.signIns.in, listUser+string(user))
}

// Invite returns an open invitation, by its secret's hash.
func (s *Store) Invite(hash string) (InviteRecord, bool) {
	return lookup(s.mirror, s.mirror.people.invites.of, hash)
}

// Invites returns a team's open invitations.
func (s *Store) Invites(team ident.TeamID) []InviteRecord {
	return records(s.mirror, s.mirror.people.invites.in, listTeam+string(team))
}

// Pairing returns a program that waits, by its device code's hash.
func (s *Store) Pairing(hash string) (PairingRecord, bool) {
	return lookup(s.mirror, s.mirror.people.pairings.of, hash)
}

// PairingsByCode returns the programs whose user code has this hash: one, or none.
func (s *Store) PairingsByCode(code string) []PairingRecord {
	return records(s.mirror, s.mirror.people.pairings.in, listCode+code)
}

// Pairings returns the programs that wait, in no particular order.
func (s *Store) Pairings() []PairingRecord { return all(s.mirror, s.mirror.people.pairings) }

// ChangeTeam writes a team's record by compare-and-set; change gets the zero record when
// there is none, and ErrUnchanged from it writes nothing.
func (s *Store) ChangeTeam(ctx context.Context, id ident.TeamID, change func(*TeamRecord) error) (TeamRecord, error) {
	return upsert(ctx, s, "change team "+string(id), key(dirTeam, string(id)), change)
}

// ChangeUser is ChangeTeam for a person.
func (s *Store) ChangeUser(ctx context.Context, id ident.UserID, change func(*UserRecord) error) (UserRecord, error) {
	return upsert(ctx, s, "change a person's record", key(dirUser, userName(id)), change)
}

// ChangeMember is ChangeTeam for a person's place in a team.
func (s *Store) ChangeMember(ctx context.Context, team ident.TeamID, user ident.UserID, change func(*MemberRecord) error) (MemberRecord, error) {
	return upsert(ctx, s, "change a member of team "+string(team), key(dirMember, memberKey(team, user)), change)
}

// DeleteTeam forgets a team's name; none is no error.
func (s *Store) DeleteTeam(ctx context.Context, id ident.TeamID) error {
	return s.forget(ctx, "forget team "+string(id), key(dirTeam, string(id)))
}

// DeleteUser forgets a person; none is no error.
func (s *Store) DeleteUser(ctx context.Context, id ident.UserID) error {
	return s.forget(ctx, "forget a person", key(dirUser, userName(id)))
}

// DeleteMember forgets a person's place in a team; none is no error.
func (s *Store) DeleteMember(ctx context.Context, team ident.TeamID, user ident.UserID) error {
	return s.forget(ctx, "forget a member of team "+string(team), key(dirMember, memberKey(team, user)))
}

// CreateSignIn writes that a browser is signed in.
func (s *Store) CreateSignIn(ctx context.Context, r SignInRecord) error {
	return create(ctx, s, "sign in", key(dirSignIn, r.Hash), r, time.Time{})
}

// ChangeSignIn changes one by compare-and-set; ErrNotFound when it has ended.
func (s *Store) ChangeSignIn(ctx context.Context, hash string, change func(*SignInRecord) error) (SignInRecord, error) {
	defer s.metrics.took(opPeople)()
	return changeRecord(ctx, s, "renew a sign-in", key(dirSignIn, hash), change)
}

// DeleteSignIn ends one; one that has ended already is no error.
func (s *Store) DeleteSignIn(ctx context.Context, hash string) error {
	return s.forget(ctx, "sign out", key(dirSignIn, hash))
}

// CreateInvite writes an invitation, which ends by itself at its expiry.
func (s *Store) CreateInvite(ctx context.Context, r InviteRecord) error {
	return create(ctx, s, "create an invitation", key(dirInvite, r.Hash), r, r.ExpiresAt)
}

// TakeInvite uses an invitation up and returns it; ErrNotFound when it is unknown,
// expired or used.
func (s *Store) TakeInvite(ctx context.Context, hash string) (InviteRecord, error) {
	defer s.metrics.took(opPeople)()
	return takeRecord(ctx, s, "use an invitation", key(dirInvite, hash), takenKey(hash), func(r InviteRecord) bool { return s.now().Before(r.ExpiresAt) })
}

// DeleteInvite takes an invitation back; none is no error.
func (s *Store) DeleteInvite(ctx context.Context, hash string) error {
	return s.forget(ctx, "take an invitation back", key(dirInvite, hash))
}

// CreatePairing writes that a program waits, until its expiry.
func (s *Store) CreatePairing(ctx context.Context, r PairingRecord) error {
	return create(ctx, s, "begin a pairing", key(dirPairing, r.Hash), r, r.ExpiresAt)
}

// ChangePairing changes one that waits; ErrNotFound when it is over.
func (s *Store) ChangePairing(ctx context.Context, hash string, change func(*PairingRecord) error) (PairingRecord, error) {
	defer s.metrics.took(opPeople)()
	return changeRecord(ctx, s, "confirm a pairing", key(dirPairing, hash), change)
}

// DeletePairing forgets one that waits; none is no error.
func (s *Store) DeletePairing(ctx context.Context, hash string) error {
	return s.forget(ctx, "forget a pairing", key(dirPairing, hash))
}

// TakePairing uses up a pairing that was confirmed and writes the credentials that come
// of it, all or nothing. It returns the record; ErrNotFound when it is unknown, expired,
// taken or not confirmed.
func (s *Store) TakePairing(ctx context.Context, hash string, made ...CredentialRecord) (PairingRecord, error) {
	defer s.metrics.took(opPeople)()
	const doing = "finish a pairing"
	if err := s.takesNew(ctx, doing); err != nil {
		return PairingRecord{}, err
	}
	var with []clientv3.Op
	for _, c := range made {
		value, err := encoded(doing, c)
		if err != nil {
			return PairingRecord{}, err
		}
		with = append(with, clientv3.OpPut(credentialKey(c.ID), value))
	}
	return takeRecord(ctx, s, doing, key(dirPairing, hash), takenKey(hash),
		func(r PairingRecord) bool { return r.Approved() && s.now().Before(r.ExpiresAt) }, with...)
}

// sweepSignIns deletes those that have expired.
func (s *Store) sweepSignIns(ctx context.Context) {
	for _, r := range all(s.mirror, s.mirror.people.signIns) {
		if ctx.Err() != nil || s.stale() {
			return
		}
		if s.now().Add(-skew).Before(r.ExpiresAt) {
			continue
		}
		err := s.swap(ctx, "delete an expired sign-in", key(dirSignIn, r.Hash), func(cur *keyValue) (proposal, error) {
			var now SignInRecord
			if cur == nil || json.Unmarshal(cur.value, &now) == nil && s.now().Add(-skew).Before(now.ExpiresAt) {
				return proposal{}, ErrUnchanged // gone, or renewed meanwhile
			}
			return proposal{delete: true}, nil
		})
		if err != nil {
			s.log.Debug("sweeping sign-ins", "error", err)
		}
	}
}
