package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// ballast writes until the store takes no more.
func ballast(t *testing.T, raw *clientv3.Client) {
	t.Helper()
	value := strings.Repeat("x", 64<<10)
	for n := 0; ; n++ {
		if _, err := raw.Put(t.Context(), fmt.Sprintf("/ballast/%d", n), value); err != nil {
			return
		}
	}
}

func withQuota(bytes int64) option {
	return func(cfg *store.Config, _ *[]func(*store.Store)) { cfg.QuotaBytes = bytes }
}

// What keeps people safe, and what runs, does not need the room that somebody took:
// in a store that is nearly full nothing new is made, and all else goes on.
func TestRoomIsKeptForWhatMustAlwaysBePossible(t *testing.T) {
	t.Parallel()
	w := &world{t: t, dir: t.TempDir()}
	s := w.relay(withQuota(32 << 20))
	now := time.Now()
	known := tunnelOf(gpu1, now)
	cred := store.CredentialRecord{ID: "cred_1", Kind: api.KindAgent, Team: teamA, Name: "stolen", CreatedAt: now, Hash: "h"}
	if err := s.CreateCredential(t.Context(), cred); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdateAgent(t.Context(), gpu1, open(known)); err != nil {
		t.Fatal(err)
	}
	raw := w.raw()
	for n := 0; !s.Status().Full; n++ { // no faster than the store is looked at
		if _, err := raw.Put(t.Context(), fmt.Sprintf("/ballast/%d", n), strings.Repeat("x", 16<<10)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(time.Millisecond):
		}
	}
	testkit.Eventually(t, "the store says that it is nearly full", func() bool {
		st := s.Status()
		return st.Full && !st.Unwritable && st.QuotaBytes == 32<<20 && strings.Contains(st.Detail, "quota_bytes")
	})

	gpu2 := gpu1
	gpu2.Agent = "gpu-2"
	for what, err := range map[string]error{
		"a new agent": func() error { _, err := s.UpdateAgent(t.Context(), gpu2, add); return err }(),
		"a new tunnel": func() error {
			_, err := s.UpdateAgent(t.Context(), gpu1, open(tunnelOf(gpu1, now)))
			return err
		}(),
		"a new credential": s.CreateCredential(t.Context(), store.CredentialRecord{ID: "cred_2", Team: teamA}),
		"a new link":       s.CreateLink(t.Context(), store.LinkRecord{ID: "l", Session: known.Session}, 5),
		"a terminal code":  s.CreateCode(t.Context(), store.CodeRecord{Hash: "c", Session: known.Session, ExpiresAt: now.Add(time.Hour)}, 5),
		"a new enrollment": s.CreateEnrollment(t.Context(), store.EnrollmentRecord{Hash: "e", ExpiresAt: now.Add(time.Hour)}),
	} {
		if !errors.Is(err, store.ErrFull) || !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s gave %v, expected ErrFull", what, err)
		}
	}
	for what, err := range map[string]error{
		"a change of a known agent": func() error { _, err := s.UpdateAgent(t.Context(), gpu1, add); return err }(),
		"its presence":              s.PutPresence(t.Context(), store.Presence{Team: gpu1.Team, Agent: gpu1.Agent, Epoch: 0}),
		"a revocation": func() error {
			_, err := s.RevokeCredential(t.Context(), teamA, cred.ID, now, false)
			return err
		}(),
		"a tunnel's end": func() error {
			_, err := s.UpdateAgent(t.Context(), gpu1, func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
				delete(r.Tunnels, known.Session)
				return store.Effects{DeleteTunnels: []ident.SessionID{known.Session}}, nil
			})
			return err
		}(),
	} {
		if err != nil {
			t.Errorf("%s in a store that is nearly full: %v", what, err)
		}
	}

	if _, err := raw.Delete(t.Context(), "/ballast/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "with room again the store takes new agents", func() bool {
		_, err := s.UpdateAgent(t.Context(), gpu2, add)
		return err == nil
	})
}

// A relay whose store was full when it ended starts again, and can at once do what
// must always be possible.
func TestAStartWithAFullStoreMendsItself(t *testing.T) {
	t.Parallel()
	w := &world{t: t, dir: t.TempDir()}
	s, stop := w.relayWith(withQuota(16 << 20))
	cred := store.CredentialRecord{ID: "cred_1", Kind: api.KindAgent, Team: teamA, Name: "stolen", Hash: "h"}
	if err := s.CreateCredential(t.Context(), cred); err != nil {
		t.Fatal(err)
	}
	ballast(t, w.raw())
	testkit.Eventually(t, "the store says that nothing can be written", func() bool { return s.Status().Unwritable })
	stop()

	w.endpoints = nil
	again := w.relay(withQuota(16 << 20)) // ready: it has its lease
	if _, err := again.RevokeCredential(t.Context(), teamA, cred.ID, time.Now(), false); err != nil {
		t.Errorf("a revocation after the start with a full store: %v", err)
	}
	if err := again.CreateCredential(t.Context(), store.CredentialRecord{ID: "cred_2", Team: teamA}); !errors.Is(err, store.ErrFull) {
		t.Errorf("something new in a store above its quota gave %v, expected ErrFull", err)
	}
	if _, err := w.raw().Delete(t.Context(), "/ballast/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "with room again something new is made", func() bool {
		return again.CreateCredential(t.Context(), store.CredentialRecord{ID: "cred_3", Team: teamA}) == nil
	})
}
