package store_test

import (
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/relay/internal/store"
)

// A ticket is used once in the pool, and its mark goes by itself.
func TestATicketIsUsedOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s, ends := w.relay(), time.Now().Add(5*time.Minute)
		results := make(chan error, 6)
		for range 6 {
			go func() { results <- s.UseTicket(t.Context(), "a", ends) }()
		}
		used := 0
		for range 6 {
			switch err := <-results; {
			case err == nil:
				used++
			case !errors.Is(err, store.ErrExists):
				t.Errorf("use: %v", err)
			}
		}
		if used != 1 {
			t.Errorf("it was used %d times", used)
		}
		if err := s.UseTicket(t.Context(), "b", ends); err != nil {
			t.Errorf("another one: %v", err)
		}
		if err := s.UseTicket(t.Context(), "c", time.Now().Add(-time.Second)); err == nil {
			t.Error("one that has ended was used")
		}
		marks, err := w.raw().Get(t.Context(), "/adit/v1/taken/", clientv3.WithPrefix())
		if err != nil || marks.Count != 2 {
			t.Fatalf("%d marks, %v", marks.Count, err)
		}
		for _, kv := range marks.Kvs {
			if kv.Lease == 0 {
				t.Errorf("the mark %s stays for ever", kv.Key)
			}
		}
	})
}
