package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
)

// Looking at a token leaves it as it is, and shows none that is used or expired.
func TestEnrollmentIsReadWithoutUsingIt(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		r := store.EnrollmentRecord{Hash: "abc", Team: teamA, Agent: "gpu-1", ExpiresAt: time.Now().Add(time.Hour).UTC()}
		if err := s.CreateEnrollment(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, err := s.Enrollment(t.Context(), "abc"); err != nil || got.Agent != "gpu-1" || got.Team != teamA {
				t.Errorf("reading gave %+v, %v", got, err)
			}
		}
		if _, err := s.TakeEnrollment(t.Context(), "abc"); err != nil {
			t.Errorf("taking a token that was read: %v", err)
		}
		for _, hash := range []string{"abc", "unknown"} {
			if _, err := s.Enrollment(t.Context(), hash); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("reading %s gave %v, expected ErrNotFound", hash, err)
			}
		}
	})
}
