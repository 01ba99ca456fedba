package store_test

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
	msg "github.com/adit-tunnel/adit/shared/wire" // wire is a type of these tests
)

func presenceOf(key ident.AgentKey, epoch uint64) store.Presence {
	return store.Presence{Team: key.Team, Agent: key.Agent, Relay: "relay-1", Epoch: epoch, ConnectedAt: time.Now().UTC()}
}

func setEpoch(t *testing.T, s *store.Store, key ident.AgentKey, epoch uint64) {
	t.Helper()
	if _, err := s.UpdateAgent(t.Context(), key, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
		r.Epoch = epoch
		return store.Effects{}, nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A late message of an old session can neither show nor hide an agent.
func TestPresenceFollowsEpoch(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s, other := w.relay(), w.relay()
		if err := s.PutPresence(t.Context(), presenceOf(gpu1, 1)); !errors.Is(err, store.ErrStaleEpoch) {
			t.Errorf("a presence without a session gave %v, expected ErrStaleEpoch", err)
		}
		setEpoch(t, s, gpu1, 1)
		if err := s.PutPresence(t.Context(), presenceOf(gpu1, 1)); err != nil {
			t.Fatal(err)
		}
		// The other relay takes over; this one's mirror may not know yet.
		setEpoch(t, other, gpu1, 2)
		if err := s.PutPresence(t.Context(), presenceOf(gpu1, 1)); !errors.Is(err, store.ErrStaleEpoch) {
			t.Errorf("a presence of the old session gave %v, expected ErrStaleEpoch", err)
		}
		p := presenceOf(gpu1, 2)
		p.Relay = "relay-2"
		if err := other.PutPresence(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if err := s.DeletePresence(t.Context(), gpu1, 1); err != nil {
			t.Fatal(err)
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, ok := s.Presence(gpu1); !ok || got.Relay != "relay-2" {
			t.Errorf("after the old session's goodbye the agent is at %q, %v; expected relay-2", got.Relay, ok)
		}
		if err := other.DeletePresence(t.Context(), gpu1, 2); err != nil {
			t.Fatal(err)
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := s.Presence(gpu1); ok {
			t.Error("the agent is still shown after its session's goodbye")
		}
	})
}

func TestPresenceList(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		for _, a := range []ident.AgentID{"b", "c", "a"} {
			for _, team := range []ident.TeamID{teamA, teamB} {
				key := ident.AgentKey{Team: team, Agent: a}
				setEpoch(t, s, key, 1)
				if err := s.PutPresence(t.Context(), presenceOf(key, 1)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := s.DeletePresence(t.Context(), ident.AgentKey{Team: teamB, Agent: "a"}, 1); err != nil {
			t.Fatal(err)
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		var got []ident.AgentID
		for _, p := range s.Presences(teamA) {
			got = append(got, p.Agent)
		}
		if len(got) != 3 || got[0] != "a" || got[1] != "b" || got[2] != "c" {
			t.Errorf("the team's agents are %v, expected a b c", got)
		}
		if n := len(s.Presences(teamB)); n != 2 {
			t.Errorf("the other team has %d agents, expected 2", n)
		}
		n := 0
		for range s.AllPresences() {
			n++
		}
		for range s.AllAgents() {
			n++
		}
		if n != 5+6 {
			t.Errorf("all presences and agents are %d, expected 11", n)
		}
	})
}

func TestCredentials(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		shift := atomic.Int64{}
		s := w.relay(withNow(func() time.Time { return time.Now().Add(time.Duration(shift.Load())) }))
		ctx := t.Context()
		start := time.Now()
		secret := ident.NewSecret(ident.PrefixIntegration)
		r := store.CredentialRecord{
			ID: ident.NewCredentialID(), Kind: "integration", Team: teamA, Name: "ci", Prefix: secret.DisplayPrefix(),
			Hash: secret.Hash(), CreatedAt: start.UTC(), ExpiresAt: start.Add(24 * time.Hour).UTC(),
		}
		forever := store.CredentialRecord{ID: ident.NewCredentialID(), Team: teamA, Hash: "forever"}
		for _, c := range []store.CredentialRecord{r, forever} {
			if err := s.CreateCredential(ctx, c); err != nil {
				t.Fatal(err)
			}
		}
		thief := r
		thief.Hash = "other"
		for _, c := range []store.CredentialRecord{r, thief} {
			if err := s.CreateCredential(ctx, c); !errors.Is(err, store.ErrExists) {
				t.Errorf("creating over another credential gave %v, expected ErrExists", err)
			}
		}
		sync := func() {
			t.Helper()
			if err := s.CatchUp(ctx); err != nil {
				t.Fatal(err)
			}
		}
		sync()
		if got, ok := s.CredentialByHash(secret.Hash()); !ok || got.ID != r.ID {
			t.Errorf("by its hash the credential is %+v, %v", got, ok)
		}
		if got := s.Credentials(teamA); len(got) != 2 {
			t.Errorf("the team has %d credentials, expected 2", len(got))
		}

		// Touching: once a minute.
		for _, at := range []time.Time{start, start.Add(30 * time.Second), start.Add(2 * time.Minute)} {
			if err := s.TouchCredential(ctx, r.ID, at); err != nil {
				t.Fatal(err)
			}
		}
		sync()
		if got, _ := s.Credential(r.ID); !got.LastUsed.Equal(start.Add(2 * time.Minute)) {
			t.Errorf("last used %v, expected %v", got.LastUsed, start.Add(2*time.Minute))
		}

		if _, err := s.RevokeCredential(ctx, teamB, r.ID, start, false); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("revoking another team's credential gave %v, expected ErrNotFound", err)
		}
		first, err := s.RevokeCredential(ctx, teamA, r.ID, start, false)
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.RevokeCredential(ctx, teamA, r.ID, start.Add(time.Hour), false)
		if err != nil || !again.RevokedAt.Equal(first.RevokedAt) {
			t.Errorf("revoking twice gave %v, %v; expected the first time to stay", again.RevokedAt, err)
		}
		if err := s.TouchCredential(ctx, r.ID, start.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.RevokeCredential(ctx, teamA, forever.ID, start, false); err != nil {
			t.Fatal(err)
		}
		sync()
		if got, _ := s.CredentialByHash(secret.Hash()); got.RevokedAt.IsZero() || got.LastUsed.After(start.Add(time.Hour/2)) {
			t.Errorf("after a use the revoked credential is %+v, expected it as revoked", got)
		}

		// Tombstones go when the secret has expired anyway.
		for _, c := range []struct {
			after time.Duration
			left  int
		}{{12 * time.Hour, 2}, {25 * time.Hour, 1}, {91 * 24 * time.Hour, 0}} {
			shift.Store(int64(c.after))
			s.SweepCredentials(ctx)
			sync()
			if got := s.Credentials(teamA); len(got) != c.left {
				t.Errorf("%s later %d tombstones are left, expected %d", c.after, len(got), c.left)
			}
		}
	})
}

// TestTheSweepFinishesARevocation leaves a revocation as a relay does that died before it
// came to what the credential had made.
func TestTheSweepFinishesARevocation(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s, ctx := w.relay(), t.Context()
		maker := store.CredentialRecord{ID: ident.NewCredentialID(), Team: teamA, Hash: "maker"}
		child := store.CredentialRecord{ID: ident.NewCredentialID(), Team: teamA, Hash: "child", MadeBy: maker.ID}
		other := store.CredentialRecord{ID: ident.NewCredentialID(), Team: teamA, Hash: "other"}
		for _, r := range []store.CredentialRecord{maker, child, other} {
			if err := s.CreateCredential(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.RevokeCredential(ctx, teamA, maker.ID, time.Now(), true); err != nil {
			t.Fatal(err)
		}
		for _, keep := range []bool{true, false} {
			if err := s.CatchUp(ctx); err != nil {
				t.Fatal(err)
			}
			s.SweepCredentials(ctx)
			if err := s.CatchUp(ctx); err != nil {
				t.Fatal(err)
			}
			got, _ := s.Credential(child.ID)
			if got.RevokedAt.IsZero() || !got.KeepTunnels {
				t.Errorf("what it made is %+v; it should be revoked, and its tunnels kept as of its maker", got)
			}
			if _, closed := store.Credentials(s.Credential).Closed(child.ID); closed == keep {
				t.Errorf("what it opened is closed: %t, with the maker's kept: %t", closed, keep)
			}
			if got, _ := s.Credential(other.ID); !got.RevokedAt.IsZero() {
				t.Error("another one was revoked")
			}
			if _, err := s.RevokeCredential(ctx, teamA, maker.ID, time.Now(), false); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestDeletingATeamsRecords(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s, ctx := w.relay(), t.Context()
		if _, err := s.UpdateAgent(ctx, gpu1, add); err != nil {
			t.Fatal(err)
		}
		tu := tunnelOf(gpu1, time.Now())
		if _, err := s.UpdateAgent(ctx, gpu1, open(tu)); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteAgent(ctx, gpu1); !errors.Is(err, store.ErrInUse) {
			t.Errorf("an agent with a tunnel: %v", err)
		}
		if _, err := s.UpdateAgent(ctx, gpu1, shut(tu.Session)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // again is no error
			if err := s.DeleteAgent(ctx, gpu1); err != nil {
				t.Errorf("an agent without tunnels: %v", err)
			}
		}
		if err := s.CatchUp(ctx); err != nil {
			t.Fatal(err)
		}
		if _, ok := s.Agent(gpu1); ok {
			t.Error("the agent is still there")
		}
		for hash, team := range map[string]ident.TeamID{"a": teamA, "b": teamA, "c": teamB} {
			if err := s.CreateEnrollment(ctx, store.EnrollmentRecord{Hash: hash, Team: team, ExpiresAt: time.Now().Add(time.Hour)}); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []int{2, 0} {
			if n, err := s.DeleteEnrollments(ctx, teamA); err != nil || n != want {
				t.Errorf("deleted %d tokens, %v; want %d", n, err, want)
			}
		}
		if _, err := s.Enrollment(ctx, "c"); err != nil {
			t.Errorf("another team's token is gone: %v", err)
		}
	})
}

// Uses that are noted while a credential is revoked never bring it back.
func TestTouchAgainstRevoke(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		stores := []*store.Store{w.relay(), w.relay()}
		for range 10 {
			r := store.CredentialRecord{ID: ident.NewCredentialID(), Team: teamA, Hash: ident.NewNonce()}
			if err := stores[0].CreateCredential(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for i := range 6 {
				wg.Go(func() {
					at := time.Now().Add(time.Duration(i) * time.Hour)
					insist(t, "touch", func() error { return stores[i%2].TouchCredential(t.Context(), r.ID, at) })
				})
			}
			wg.Go(func() {
				insist(t, "revoke", func() error {
					_, err := stores[1].RevokeCredential(t.Context(), teamA, r.ID, time.Now(), false)
					return err
				})
			})
			wg.Wait()
			if err := stores[0].CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, _ := stores[0].Credential(r.ID); got.RevokedAt.IsZero() {
				t.Fatal("a use undid a revocation")
			}
		}
	})
}

// Of many who use one enrollment token exactly one gets it.
func TestEnrollment(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		stores := []*store.Store{w.relay(), w.relay()}
		r := store.EnrollmentRecord{Hash: "abc", Team: teamA, Agent: "gpu-1", CreatedBy: "user:alice", ExpiresAt: time.Now().Add(time.Hour).UTC()}
		if err := stores[0].CreateEnrollment(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var won atomic.Int32
		for i := range 12 {
			wg.Go(func() {
				got, err := stores[i%2].TakeEnrollment(t.Context(), r.Hash)
				switch {
				case err == nil && got.Agent == r.Agent:
					won.Add(1)
				case !errors.Is(err, store.ErrNotFound):
					t.Errorf("taking gave %+v, %v", got, err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d callers got the token, expected exactly one", won.Load())
		}
		if err := stores[0].CreateEnrollment(t.Context(), store.EnrollmentRecord{Hash: "old", ExpiresAt: time.Now().Add(-time.Second)}); err == nil {
			t.Error("a token that has expired was created")
		}
		short := store.EnrollmentRecord{Hash: "short", Team: teamA, ExpiresAt: time.Now().Add(300 * time.Millisecond)}
		if err := stores[0].CreateEnrollment(t.Context(), short); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "an expired token is unknown", func() bool {
			if time.Now().Before(short.ExpiresAt) {
				return false
			}
			_, err := stores[0].TakeEnrollment(t.Context(), short.Hash)
			return errors.Is(err, store.ErrNotFound)
		})
	})
}

func TestClusterKey(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s, other := w.relay(), w.relay()
		for range 2 {
			if err := s.CheckClusterKey(t.Context(), "aaaa"); err != nil {
				t.Fatal(err)
			}
		}
		err := other.CheckClusterKey(t.Context(), "bbbb")
		if !errors.Is(err, store.ErrClusterKey) {
			t.Errorf("another key gave %v, expected ErrClusterKey", err)
		}
		t.Log(err)
		if err := other.CheckClusterKey(t.Context(), "aaaa"); err != nil {
			t.Error(err)
		}
	})
}

func TestARecordKeepsWhatProbesFound(t *testing.T) {
	r := store.TunnelRecord{Port: 8188, AskedHost: api.HostAuto}
	for _, step := range []struct {
		found   msg.Probed
		changes bool
		want    store.TunnelRecord
	}{
		{msg.Probed{Listening: true, App: "comfyui"}, false, r}, // a port that is not allowed was not looked at
		{msg.Probed{Allowed: true}, true, store.TunnelRecord{Warnings: []string{"nothing listens on port 8188 yet"}}},
		{msg.Probed{Allowed: true}, false, store.TunnelRecord{Warnings: []string{"nothing listens on port 8188 yet"}}},
		{msg.Probed{Allowed: true, Listening: true, App: "comfyui", HostHeader: "local", Warnings: []string{"slow"}}, true, store.TunnelRecord{App: "comfyui", HostHeader: api.HostLocal, Warnings: []string{"slow"}}},
		{msg.Probed{Allowed: true}, true, store.TunnelRecord{HostHeader: api.HostLocal, Warnings: []string{"nothing listens on port 8188 yet"}}},
		{msg.Probed{Allowed: true, Listening: true, HostHeader: "strange"}, true, store.TunnelRecord{HostHeader: api.HostLocal}},
	} {
		err := r.Found(step.found)
		if changed := err == nil; changed != step.changes || err != nil && !errors.Is(err, store.ErrUnchanged) {
			t.Errorf("%+v: %v, want a change: %v", step.found, err, step.changes)
		}
		if r.App != step.want.App || r.HostHeader != step.want.HostHeader || !slices.Equal(r.Warnings, step.want.Warnings) {
			t.Errorf("after %+v the record says %q, %q, %q; want %+v", step.found, r.App, r.HostHeader, r.Warnings, step.want)
		}
	}
	asked := store.TunnelRecord{AskedHost: api.HostPublic, HostHeader: api.HostPublic}
	if err := asked.Found(msg.Probed{Allowed: true, Listening: true, HostHeader: "local"}); !errors.Is(err, store.ErrUnchanged) || asked.HostHeader != api.HostPublic {
		t.Errorf("a probe changed the Host that was asked for: %v, %q", err, asked.HostHeader)
	}
}
