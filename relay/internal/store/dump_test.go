package store_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// fill puts something of every kind into a store.
func fill(t *testing.T, s *store.Store, tunnels int) {
	t.Helper()
	ctx := t.Context()
	if err := s.CheckClusterKey(ctx, "fp"); err != nil {
		t.Fatal(err)
	}
	setEpoch(t, s, gpu1, 5)
	setEpoch(t, s, gone, 9)
	if err := s.RemoveAgent(ctx, gone, always); err != nil {
		t.Fatal(err)
	}
	if err := s.PutPresence(ctx, presenceOf(gpu1, 5)); err != nil {
		t.Fatal(err)
	}
	for i := range tunnels {
		key := ident.AgentKey{Team: teamA, Agent: ident.AgentID(fmt.Sprintf("gpu-%d", i%7))}
		if _, err := s.UpdateAgent(ctx, key, open(tunnelOf(key, time.Now()))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CreateCredential(ctx, store.CredentialRecord{ID: "cred_0", Team: teamA, Name: "<ci & co>", Hash: "h"}); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateEnrollment(ctx, store.EnrollmentRecord{Hash: "e", Team: teamA, ExpiresAt: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ChangeTeam(ctx, teamA, func(r *store.TeamRecord) error { r.ID, r.Name = teamA, "vision"; return nil }); err != nil {
		t.Fatal(err)
	}
	user(t, s, store.UserRecord{ID: odd, Name: "alice", Handle: []byte("h"), Passkeys: []store.PasskeyRecord{{ID: "k", Credential: json.RawMessage(`{"a": 1}`)}}})
	addMember(t, s, teamA, odd, api.RoleOwner)
	signIn(t, s, "s", odd, time.Now().Add(time.Hour)) // whoever is signed in signs in again
	if err := s.CreateInvite(ctx, store.InviteRecord{Hash: "i", Team: teamA, ExpiresAt: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if err := s.CreatePairing(ctx, store.PairingRecord{Hash: "p", UserCode: "c", ExpiresAt: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdateAgent(ctx, gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
		return store.Effects{Once: &store.Once{Key: "k", Value: "v", TTL: time.Hour}}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.CatchUp(ctx); err != nil {
		t.Fatal(err)
	}
}

// gone is an agent whose record was removed.
var gone = ident.AgentKey{Team: teamA, Agent: "gone"}

// compare checks that a store has what another one had.
func compare(t *testing.T, got, want *store.Store) {
	t.Helper()
	n := 0
	for tu := range want.AllTunnels() {
		n++
		if g, ok := got.Tunnel(tu.Session); !ok || g.AdminHash != tu.AdminHash || !g.ExpiresAt.Equal(tu.ExpiresAt) {
			t.Errorf("tunnel %s is %+v, expected %+v", tu.Session, g, tu)
		}
	}
	if n == 0 {
		t.Error("nothing to compare")
	}
	if r, _ := got.Agent(gpu1); r.Epoch != 5 {
		t.Errorf("the epoch is %d, expected 5", r.Epoch)
	}
	if r, err := got.UpdateAgent(t.Context(), gone, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
		r.Epoch++
		return store.Effects{}, nil
	}); err != nil || r.Epoch != 10 {
		t.Errorf("an agent that was removed at generation 9 comes back with %d, %v", r.Epoch, err)
	}
	if c, ok := got.CredentialByHash("h"); !ok || c.Name != "<ci & co>" {
		t.Errorf("the credential is %+v, %v", c, ok)
	}
	if v, ok, err := got.OnceValue(t.Context(), "k"); v != "v" || !ok || err != nil {
		t.Errorf("the earlier result is %q, %v, %v", v, ok, err)
	}
	if err := got.CheckClusterKey(t.Context(), "other"); !errors.Is(err, store.ErrClusterKey) {
		t.Errorf("another cluster key gave %v, expected ErrClusterKey", err)
	}
	if e, err := got.TakeEnrollment(t.Context(), "e"); err != nil || e.Team != teamA {
		t.Errorf("the enrollment token is %+v, %v", e, err)
	}
	if r, _ := got.Team(teamA); r.Name != "vision" {
		t.Errorf("the team is %+v", r)
	}
	if r, ok := got.UserByHandle([]byte("h")); !ok || r.ID != odd || len(r.Passkeys) != 1 {
		t.Errorf("the person is %+v", r)
	}
	if r, ok := got.Member(teamA, odd); !ok || r.Role != api.RoleOwner {
		t.Errorf("the member is %+v", r)
	}
	if len(got.SignIns(odd))+len(got.Invites(teamA))+len(got.Pairings()) != 0 {
		t.Error("a copy signs somebody in, or invites them")
	}
	if _, ok := got.Presence(gpu1); ok {
		t.Error("a copy shows an agent as connected")
	}
}

func TestBackupAndRestore(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		fill(t, s, 30)
		var dump bytes.Buffer
		sum, err := s.Backup(t.Context(), &dump)
		if err != nil {
			t.Fatal(err)
		}
		if sum.Records != 30+7+8 { // tunnels, agents; cluster, floor, credential, enrollment, once, team, person, member
			t.Errorf("the backup has %d records, expected 45", sum.Records)
		}
		dir := t.TempDir()
		log := slog.New(slog.DiscardHandler)

		whole := dump.String()
		lines := strings.SplitAfter(whole, "\n")
		for what, bad := range map[string]string{
			"empty":          "",
			"cut":            whole[:len(whole)/2],
			"without end":    strings.Join(lines[:len(lines)-2], ""),
			"a line less":    strings.Join(append(append([]string{}, lines[:5]...), lines[6:]...), ""),
			"a changed byte": strings.Replace(whole, "user:alice", "user:alicf", 1),
			"something else": "hello\nworld\n",
			"newer":          strings.Replace(whole, `"version":1`, `"version":2`, 1),
		} {
			if _, err := store.Restore(t.Context(), dir, strings.NewReader(bad), log); !errors.Is(err, store.ErrDump) {
				t.Errorf("restoring a backup that is %s gave %v, expected ErrDump", what, err)
			}
		}
		got, err := store.Restore(t.Context(), dir, strings.NewReader(whole), log)
		if err != nil {
			t.Fatal(err)
		}
		if got != sum {
			t.Errorf("restored %+v, expected %+v", got, sum)
		}
		if _, err := store.Restore(t.Context(), dir, strings.NewReader(whole), log); !errors.Is(err, store.ErrNotEmpty) {
			t.Errorf("restoring over a store gave %v, expected ErrNotEmpty", err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "restore-*")); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
		restored := newStore(t, dir)
		run(t, restored)
		compare(t, restored, s)
		if _, err := store.Restore(t.Context(), dir, strings.NewReader(whole), log); !errors.Is(err, store.ErrLocked) {
			t.Errorf("restoring under a running relay gave %v, expected ErrLocked", err)
		}
	})
}

func TestMove(t *testing.T) {
	t.Parallel()
	from := &world{t: t, dir: t.TempDir()}
	s := from.relay()
	fill(t, s, 300) // more than one page and one transaction
	to := store.Target{Endpoints: []string{startEtcd(t)}, Logger: slog.New(slog.DiscardHandler)}
	sum, err := store.Copy(t.Context(), s, to)
	if err != nil {
		t.Fatal(err)
	}
	if sum.Records != 300+7+8 {
		t.Errorf("%d records were carried, expected 315", sum.Records)
	}
	external := &world{t: t, external: true, endpoints: to.Endpoints}
	compare(t, external.relay(), s)
	if _, err := store.Copy(t.Context(), s, to); !errors.Is(err, store.ErrNotEmpty) {
		t.Errorf("copying into a store with records gave %v, expected ErrNotEmpty", err)
	}
}

// An import that was cut short is no store.
func TestUnfinishedImport(t *testing.T) {
	t.Parallel()
	w := &world{t: t, external: true, endpoints: []string{startEtcd(t)}}
	if _, err := w.raw().Put(t.Context(), store.ImportingKey, "{}"); err != nil {
		t.Fatal(err)
	}
	if err := w.relay().CheckClusterKey(t.Context(), "fp"); err == nil {
		t.Error("a relay began with a store whose import has not finished")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.Copy(ctx, w.relay(), store.Target{Endpoints: w.endpoints, Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a cancelled copy succeeded")
	}
}
