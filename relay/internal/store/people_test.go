package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// put writes a record by its change, which must be taken.
func put[R any](t *testing.T, what string, change func(func(*R) error) (R, error), r R) {
	t.Helper()
	if _, err := change(func(cur *R) error { *cur = r; return nil }); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func addMember(t *testing.T, s *store.Store, team ident.TeamID, user ident.UserID, role api.Role) {
	t.Helper()
	put(t, "member", func(c func(*store.MemberRecord) error) (store.MemberRecord, error) {
		return s.ChangeMember(t.Context(), team, user, c)
	}, store.MemberRecord{Team: team, User: user, Role: role, Source: store.SourceInvite, JoinedAt: time.Now()})
}

func user(t *testing.T, s *store.Store, r store.UserRecord) {
	t.Helper()
	put(t, "person", func(c func(*store.UserRecord) error) (store.UserRecord, error) {
		return s.ChangeUser(t.Context(), r.ID, c)
	}, r)
}

func signIn(t *testing.T, s *store.Store, hash string, who ident.UserID, expires time.Time) {
	t.Helper()
	if err := s.CreateSignIn(t.Context(), store.SignInRecord{Hash: hash, User: who, IssuedAt: time.Now(), ExpiresAt: expires, EndsAt: expires}); err != nil {
		t.Fatalf("sign in: %v", err)
	}
}

func upToDate(t *testing.T, stores ...*store.Store) {
	t.Helper()
	for _, s := range stores {
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// An issuer may name people with anything printable: none of it is part of a key.
const odd = ident.UserID("auth0|x/../y é %2F")

// Every relay has the records of people, each in the lists of what it belongs to, and in
// no list that it was taken out of.
func TestPeopleInTheMirror(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		a, b := w.relay(), w.relay()
		sub := b.Subscribe(1000)
		defer sub.Close()
		ctx, hour := t.Context(), time.Now().Add(time.Hour)

		put(t, "team", func(c func(*store.TeamRecord) error) (store.TeamRecord, error) { return a.ChangeTeam(ctx, teamA, c) }, store.TeamRecord{ID: teamA, Name: "vision"})
		put(t, "team", func(c func(*store.TeamRecord) error) (store.TeamRecord, error) { return a.ChangeTeam(ctx, teamB, c) }, store.TeamRecord{ID: teamB, Name: "audio"})
		user(t, a, store.UserRecord{ID: odd, Name: "alice", Handle: []byte("one")})
		user(t, a, store.UserRecord{ID: "bob", Name: "bob"})
		addMember(t, a, teamA, odd, api.RoleOwner)
		addMember(t, a, teamA, "bob", api.RoleViewer)
		addMember(t, a, teamB, odd, api.RoleViewer)
		for i := range 3 {
			signIn(t, a, fmt.Sprint("hash-", i), odd, hour)
		}
		signIn(t, a, "hash-bob", "bob", hour)
		if err := a.CreateSignIn(ctx, store.SignInRecord{Hash: "hash-1", User: "mallory"}); !errors.Is(err, store.ErrExists) {
			t.Errorf("a second sign-in of one secret gave %v", err)
		}
		for _, i := range []store.InviteRecord{{Hash: "i1", Team: teamA, ExpiresAt: hour}, {Hash: "i2", Team: teamA, ExpiresAt: hour}, {Hash: "i3", Team: teamB, ExpiresAt: hour}} {
			if err := a.CreateInvite(ctx, i); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.CreatePairing(ctx, store.PairingRecord{Hash: "p1", UserCode: "code", ExpiresAt: hour}); err != nil {
			t.Fatal(err)
		}
		look := func() string {
			t.Helper()
			upToDate(t, b)
			var out []string
			for _, r := range b.Teams() {
				out = append(out, "team "+r.Name)
			}
			for _, team := range []ident.TeamID{teamA, teamB} {
				for _, m := range b.Members(team) {
					if m.Team != team {
						t.Errorf("a member of %s is listed in %s", m.Team, team)
					}
					out = append(out, fmt.Sprintf("member %.1s %s %s", team, m.User, m.Role))
				}
				for _, i := range b.Invites(team) {
					out = append(out, fmt.Sprintf("invite %.1s %s", team, i.Hash))
				}
			}
			for _, who := range []ident.UserID{odd, "bob"} {
				if u, ok := b.User(who); ok {
					out = append(out, "user "+u.Name)
				}
				out = append(out, fmt.Sprintf("%s in %d teams, signed in %d times", who, len(b.Memberships(who)), len(b.SignIns(who))))
			}
			for _, handle := range []string{"one", "two", ""} {
				if u, ok := b.UserByHandle([]byte(handle)); ok {
					out = append(out, "handle "+handle+" "+string(u.ID))
				}
			}
			for _, p := range b.PairingsByCode("code") {
				out = append(out, fmt.Sprintf("pairing %s %v", p.Hash, p.Approved()))
			}
			return strings.Join(append(out, fmt.Sprint("pairings ", len(b.Pairings()))), "\n")
		}
		want := func(when, text string) {
			t.Helper()
			if got := look(); got != text {
				t.Errorf("%s:\n%s\nwant\n%s", when, got, text)
			}
		}
		want("at first", `team audio
team vision
member 1 `+string(odd)+` owner
member 1 bob viewer
invite 1 i1
invite 1 i2
member 2 `+string(odd)+` viewer
invite 2 i3
user alice
`+string(odd)+` in 2 teams, signed in 3 times
user bob
bob in 1 teams, signed in 1 times
handle one `+string(odd)+`
pairing p1 false
pairings 1`)
		if r, ok := b.SignIn("hash-1"); !ok || r.User != odd || r.Hash != "hash-1" {
			t.Errorf("the sign-in is %+v", r)
		}
		if got := b.MemberCounts(); got[teamA] != 2 || got[teamB] != 1 || len(got) != 2 {
			t.Errorf("the counts are %v", got)
		}

		user(t, a, store.UserRecord{ID: odd, Name: "Alice", Handle: []byte("two")})
		addMember(t, a, teamA, "bob", api.RoleAdmin)
		if _, err := a.ChangeMember(ctx, teamB, odd, func(m *store.MemberRecord) error { m.RemovedAt = time.Now(); return nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := a.ChangePairing(ctx, "p1", func(r *store.PairingRecord) error { r.User = odd; return nil }); err != nil {
			t.Fatal(err)
		}
		for _, end := range []error{
			a.DeleteSignIn(ctx, "hash-0"), a.DeleteSignIn(ctx, "hash-0"), a.DeleteInvite(ctx, "i1"), a.DeleteInvite(ctx, "never"), a.DeleteTeam(ctx, teamB),
			a.DeleteUser(ctx, "bob"), a.DeleteUser(ctx, "nobody"), a.DeleteMember(ctx, teamA, "nobody"),
		} {
			if end != nil {
				t.Error(end)
			}
		}
		want("after changes", `team vision
member 1 `+string(odd)+` owner
member 1 bob admin
invite 1 i2
member 2 `+string(odd)+` viewer
invite 2 i3
user Alice
`+string(odd)+` in 2 teams, signed in 2 times
bob in 1 teams, signed in 1 times
handle two `+string(odd)+`
pairing p1 true
pairings 1`)
		if got := b.MemberCounts(); got[teamB] != 0 {
			t.Errorf("who was removed is counted: %v", got)
		}
		if err := a.DeleteMember(ctx, teamB, odd); err != nil {
			t.Error(err)
		}
		upToDate(t, b)
		if len(b.Members(teamB)) != 0 || len(b.Memberships(odd)) != 1 {
			t.Error("a member that was deleted is listed")
		}

		// Subscribers are told whose it is, without looking.
		heard := map[string]bool{}
		for deadline := time.After(testkit.Patience); !heard["member 2222 "+string(odd)+" true"]; {
			select {
			case c := <-sub.C():
				heard[fmt.Sprintf("%s %.4s %s %v", c.Kind, c.Key.Team, c.User, c.Deleted)] = true
			case <-deadline:
				t.Fatalf("heard of %v", heard)
			}
		}
		for _, s := range []string{"team 2222  true", "user  " + string(odd) + " false", "user  bob true", "member 1111 bob false", "sign_in  " + string(odd) + " false", "sign_in  " + string(odd) + " true", "invite 1111  true", "pairing   false"} {
			if !heard[s] {
				t.Errorf("a subscriber did not hear of %q, but of %v", s, heard)
			}
		}
	})
}

// What ended while a relay heard nothing is gone when it reads everything anew.
func TestPeopleAfterACompaction(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		a := w.relay()
		cable := newWire()
		b := w.relay(on(cable), withTTL(60*time.Second))
		ctx, hour := t.Context(), time.Now().Add(time.Hour)
		user(t, a, store.UserRecord{ID: odd, Name: "alice", Handle: []byte("h")})
		addMember(t, a, teamA, odd, api.RoleOwner)
		addMember(t, a, teamA, "gone", api.RoleOwner)
		signIn(t, a, "stays", odd, hour)
		signIn(t, a, "gone", odd, hour)
		if err := a.CreateInvite(ctx, store.InviteRecord{Hash: "gone", Team: teamA, ExpiresAt: hour}); err != nil {
			t.Fatal(err)
		}
		upToDate(t, b)
		sub := b.Subscribe(100)
		defer sub.Close()
		cable.cut()
		cable.drop()
		lists := b.Lists()
		if err := errors.Join(a.DeleteSignIn(ctx, "gone"), a.DeleteMember(ctx, teamA, "gone"), a.DeleteInvite(ctx, "gone")); err != nil {
			t.Fatal(err)
		}
		user(t, a, store.UserRecord{ID: odd, Name: "alice", Handle: []byte("other")})
		g, err := w.raw().Get(ctx, "x")
		if err == nil {
			_, err = w.raw().Compact(ctx, g.Header.Revision, clientv3.WithCompactPhysical())
		}
		if err != nil {
			t.Fatal(err)
		}
		cable.mend()
		want := map[string]bool{"sign_in gone true": true, "invite gone true": true, "user alice": true, "member": true}
		for deadline := time.After(testkit.Patience); len(want) > 0; {
			select {
			case c := <-sub.C():
				switch c.Kind {
				case store.KindSignIn, store.KindInvite:
					delete(want, fmt.Sprintf("%s %s %v", c.Kind, c.Name, c.Deleted))
				case store.KindUser:
					delete(want, "user alice")
				case store.KindMember:
					if c.User == "gone" && c.Deleted && c.Key.Team == teamA {
						delete(want, "member")
					}
				}
			case <-deadline:
				t.Fatalf("a subscriber did not hear of %v", want)
			}
		}
		if b.Lists() == lists {
			t.Error("the watch went on past the compaction: this test tests nothing")
		}
		if s := b.SignIns(odd); len(s) != 1 || s[0].Hash != "stays" {
			t.Errorf("the sign-ins are %+v", s)
		}
		if m := b.Members(teamA); len(m) != 1 || m[0].User != odd || len(b.Memberships("gone")) != 0 {
			t.Errorf("the members are %+v", m)
		}
		if _, ok := b.UserByHandle([]byte("h")); ok || len(b.Invites(teamA)) != 0 {
			t.Error("a handle or an invitation of before is found")
		}
	})
}

// An invitation and a pairing are used once, by one of any who try at once.
func TestTakenOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		a, b := w.relay(), w.relay()
		ctx, hour := t.Context(), time.Now().Add(time.Hour)
		if err := a.CreateInvite(ctx, store.InviteRecord{Hash: "i", Team: teamA, Name: "alice", Role: api.RoleAdmin, ExpiresAt: hour}); err != nil {
			t.Fatal(err)
		}
		if err := a.CreatePairing(ctx, store.PairingRecord{Hash: "p", UserCode: "c", ExpiresAt: hour}); err != nil {
			t.Fatal(err)
		}
		// Each who takes it brings keys of their own; those of the one who gets it are written.
		keys := func(i int) []store.CredentialRecord {
			return []store.CredentialRecord{
				{ID: ident.CredentialID(fmt.Sprintf("cred_%015dd", i)), Team: teamA, Hash: fmt.Sprint("d", i)},
				{ID: ident.CredentialID(fmt.Sprintf("cred_%015da", i)), Team: teamA, Hash: fmt.Sprint("a", i)},
			}
		}
		if _, err := b.TakePairing(ctx, "p", keys(99)...); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a pairing that nobody confirmed gave %v", err)
		}
		if r, err := b.ChangePairing(ctx, "p", func(r *store.PairingRecord) error { r.User, r.Team = "bob", teamA; return nil }); err != nil || !r.Approved() {
			t.Errorf("confirmed: %+v, %v", r, err)
		}
		var wg sync.WaitGroup
		var invites, pairings, winner atomic.Int32
		for i := range 12 {
			s := []*store.Store{a, b}[i%2]
			wg.Go(func() {
				switch r, err := s.TakeInvite(ctx, "i"); {
				case err == nil && r.Name == "alice" && r.Team == teamA && r.Role == api.RoleAdmin:
					invites.Add(1)
				case !errors.Is(err, store.ErrNotFound):
					t.Errorf("take the invitation: %+v, %v", r, err)
				}
				switch r, err := s.TakePairing(ctx, "p", keys(i)...); {
				case err == nil && r.User == "bob":
					pairings.Add(1)
					winner.Store(int32(i))
				case !errors.Is(err, store.ErrNotFound):
					t.Errorf("take the pairing: %+v, %v", r, err)
				}
			})
		}
		wg.Wait()
		if invites.Load() != 1 || pairings.Load() != 1 {
			t.Errorf("the invitation was used %d times, the pairing %d times", invites.Load(), pairings.Load())
		}
		upToDate(t, b)
		if made, want := b.Credentials(teamA), keys(int(winner.Load())); len(made) != 2 || made[0].Hash != want[1].Hash && made[0].Hash != want[0].Hash {
			t.Errorf("the keys that were written are %+v, want both of number %d", made, winner.Load())
		}
		for what, err := range map[string]error{
			"an expired invitation": a.CreateInvite(ctx, store.InviteRecord{Hash: "x", ExpiresAt: time.Now().Add(-time.Second)}),
			"an expired pairing":    a.CreatePairing(ctx, store.PairingRecord{Hash: "x", ExpiresAt: time.Now().Add(-time.Second)}),
		} {
			if err == nil {
				t.Errorf("%s was written", what)
			}
		}
		if _, err := a.ChangePairing(ctx, "p", func(*store.PairingRecord) error { return nil }); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("confirming a pairing that was taken gave %v", err)
		}
	})
}

// What has an end goes by itself, also when it was changed meanwhile.
func TestWhatEndsByItself(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s, ctx := w.relay(), t.Context()
		soon, later := time.Now().Add(2*time.Second), time.Now().Add(time.Hour)
		for name, ends := range map[string]time.Time{"soon": soon, "later": later} {
			if err := s.CreateInvite(ctx, store.InviteRecord{Hash: name, Team: teamA, ExpiresAt: ends}); err != nil {
				t.Fatal(err)
			}
			if err := s.CreatePairing(ctx, store.PairingRecord{Hash: name, UserCode: "c", ExpiresAt: ends}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.ChangePairing(ctx, name, func(r *store.PairingRecord) error { r.User = "bob"; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		testkit.Eventually(t, "what ends soon is gone", func() bool { return len(s.Invites(teamA)) == 1 && len(s.Pairings()) == 1 })
		if _, ok := s.Invite("later"); !ok || time.Now().Before(soon) {
			t.Error("the wrong one ended, or too early")
		}
		if r, ok := s.Pairing("later"); !ok || !r.Approved() {
			t.Errorf("the pairing that has time is %+v", r)
		}
	})
}

func TestExpiredSignInsAreSwept(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		var shift atomic.Int64
		s := w.relay(withNow(func() time.Time { return time.Now().Add(time.Duration(shift.Load())) }))
		ctx := t.Context()
		for name, life := range map[string]time.Duration{"short": time.Hour, "long": 30 * time.Hour, "renewed": time.Hour} {
			signIn(t, s, name, odd, time.Now().Add(life))
		}
		if r, err := s.ChangeSignIn(ctx, "renewed", func(r *store.SignInRecord) error { r.ExpiresAt = time.Now().Add(20 * time.Hour); return nil }); err != nil || r.User != odd {
			t.Fatalf("renewed: %+v, %v", r, err)
		}
		for _, c := range []struct {
			after time.Duration
			left  string
		}{{30 * time.Minute, "long renewed short"}, {62 * time.Minute, "long renewed short"}, {2 * time.Hour, "long renewed"}, {21 * time.Hour, "long"}, {40 * time.Hour, ""}} {
			shift.Store(int64(c.after))
			upToDate(t, s)
			s.SweepSignIns(ctx)
			upToDate(t, s)
			var got []string
			for _, r := range s.SignIns(odd) {
				got = append(got, r.Hash)
			}
			slices.Sort(got)
			if strings.Join(got, " ") != c.left {
				t.Errorf("after %s left are %v, want %s", c.after, got, c.left)
			}
		}
		if _, err := s.ChangeSignIn(ctx, "short", func(*store.SignInRecord) error { return nil }); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("renewing one that was swept gave %v", err)
		}
	})
}
