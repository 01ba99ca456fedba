package store_test

import (
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// A code is used once in the pool, and a tunnel has a bounded number of them.
func TestATerminalCodeIsUsedOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		session := ident.NewSessionID()
		for _, hash := range []string{"a", "b"} {
			r := store.CodeRecord{Hash: hash, Session: session, ReadOnly: true, CreatedBy: "user:alice", ExpiresAt: time.Now().Add(time.Hour).UTC()}
			if err := s.CreateCode(t.Context(), r, 2); err != nil {
				t.Fatal(err)
			}
		}
		r := store.CodeRecord{Hash: "c", Session: session, ExpiresAt: time.Now().Add(time.Hour)}
		if err := s.CreateCode(t.Context(), r, 2); !errors.Is(err, store.ErrLimit) {
			t.Errorf("the third of two: %v", err)
		}
		if _, err := s.TakeCode(t.Context(), ident.NewSessionID(), "a"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("for another tunnel: %v", err)
		}
		results := make(chan error, 4)
		for range 4 {
			go func() {
				got, err := s.TakeCode(t.Context(), session, "a")
				if err == nil && (!got.ReadOnly || got.CreatedBy != "user:alice") {
					err = errors.New("it is another one")
				}
				results <- err
			}()
		}
		used := 0
		for range 4 {
			switch err := <-results; {
			case err == nil:
				used++
			case !errors.Is(err, store.ErrNotFound):
				t.Errorf("take: %v", err)
			}
		}
		if used != 1 {
			t.Errorf("it was used %d times", used)
		}
		if err := s.CreateCode(t.Context(), r, 2); err != nil {
			t.Errorf("with room again: %v", err)
		}
		// Codes that are made and used all day leave nothing that fills the store.
		marks, err := w.raw().Get(t.Context(), "/adit/v1/taken/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil || marks.Count != 0 {
			t.Errorf("a used code leaves %d marks, %v", marks.Count, err)
		}
	})
}

// A thief's codes keep nobody from the terminal when the thief's credential is revoked.
func TestCodesOfARevokedCredentialKeepNoPlace(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		session, stolen := ident.NewSessionID(), store.CredentialRecord{ID: "cred_1", Team: teamA, Hash: "h"}
		if err := s.CreateCredential(t.Context(), stolen); err != nil {
			t.Fatal(err)
		}
		code := func(hash string, by ident.CredentialID) error {
			return s.CreateCode(t.Context(), store.CodeRecord{Hash: hash, Session: session, Credential: by, ExpiresAt: time.Now().Add(time.Hour)}, 2)
		}
		for _, hash := range []string{"a", "b"} {
			if err := code(hash, stolen.ID); err != nil {
				t.Fatal(err)
			}
		}
		if err := code("c", ""); !errors.Is(err, store.ErrLimit) {
			t.Errorf("the third of two: %v", err)
		}
		if _, err := s.RevokeCredential(t.Context(), teamA, stolen.ID, time.Now(), false); err != nil {
			t.Fatal(err)
		}
		if err := s.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := code("c", ""); err != nil {
			t.Errorf("after the revocation: %v", err)
		}
		if _, err := s.TakeCode(t.Context(), session, "a"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a code of the revoked credential: %v", err)
		}
	})
}
