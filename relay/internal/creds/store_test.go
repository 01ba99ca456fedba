package creds_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// TestRevocationThroughTheStore is the promise with the real store: created,
// used at once, revoked by somebody else, and what is open ends.
func TestRevocationThroughTheStore(t *testing.T) {
	s, err := store.New(store.Config{DataDir: t.TempDir(), QuotaBytes: 2 << 30, Relay: store.RelayRecord{ID: "r1"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("store: %v", err)
		}
	})
	ready, done := context.WithTimeout(t.Context(), testkit.Patience)
	defer done()
	if err := s.Ready(ready); err != nil {
		t.Fatal(err)
	}
	a := newAuth(t, creds.Config{Store: s, Changes: creds.StoreChanges(s)})
	stop := start(t, a)
	defer stop()

	rec, secret, err := a.Create(t.Context(), alice, teamA, "", api.CreateCredentialRequest{Kind: api.KindAgent, Name: "gpu"})
	if err != nil {
		t.Fatal(err)
	}
	p := wantAccepted(t, a, request(t, bearer(secret.Reveal())))
	wantRefused(t, a, request(t, bearer(ident.NewSecret(ident.PrefixAgent).Reveal())), 401, "unauthenticated")
	link, stopWatch := a.Watch(t.Context(), p)
	defer stopWatch()

	began := time.Now()
	if _, err := s.RevokeCredential(t.Context(), teamA, rec.ID, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	select {
	case <-link.Done():
		t.Logf("ended %v after the call to revoke", time.Since(began))
	case <-time.After(testkit.Patience):
		t.Fatal("what the credential opened goes on after its revocation")
	}
	if !errors.Is(context.Cause(link), creds.ErrRevoked) || a.Valid(p) {
		t.Errorf("cause is %v", context.Cause(link))
	}
	wantRefused(t, a, request(t, bearer(secret.Reveal())), 401, "unauthenticated")
	_, err = a.Revoke(t.Context(), alice, teamA, ident.NewCredentialID(), false)
	wantProblem(t, err, 404, "credential_not_found", "")
	stop()
}
