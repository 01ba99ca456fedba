package store_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestFilesAreSharedByRelays(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		for name, data := range map[string]string{"acme/a/cert": "one", "acme/a/key": "two", "acme/ab": "three"} {
			if err := s.PutFile(t.Context(), name, []byte(data)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.PutFile(t.Context(), "acme/a/cert", []byte("newer")); err != nil {
			t.Fatal(err)
		}
		r, err := s.File(t.Context(), "acme/a/cert")
		if err != nil || string(r.Data) != "newer" || time.Since(r.Modified) > time.Minute {
			t.Errorf("the file reads %q of %s, %v; want what was written last", r.Data, r.Modified, err)
		}
		if names, err := s.Files(t.Context(), "acme/a"); err != nil || !slices.Equal(names, []string{"acme/a/cert", "acme/a/key"}) {
			t.Errorf("the directory lists %v, %v", names, err)
		}
		if err := s.DeleteFiles(t.Context(), "acme/a"); err != nil {
			t.Fatal(err)
		}
		if names, err := s.Files(t.Context(), ""); err != nil || !slices.Equal(names, []string{"acme/ab"}) {
			t.Errorf("after a directory was deleted there is %v, %v; want its neighbour only", names, err)
		}
		if _, err := s.File(t.Context(), "acme/a/key"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a deleted file reads as %v, want ErrNotFound", err)
		}
		if err := s.DeleteFiles(t.Context(), "acme/a"); err != nil {
			t.Errorf("deleting what is not there: %v", err)
		}
		// They go with a backup: a store that moves keeps its certificates.
		var dump bytes.Buffer
		if _, err := s.Backup(t.Context(), &dump); err != nil || !bytes.Contains(dump.Bytes(), []byte(`"file/acme/ab"`)) {
			t.Errorf("a backup has the files: %v", err)
		}
	})
}

func TestLockIsOneRelaysAtATime(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s := w.relay()
		unlock, err := s.Lock(t.Context(), "issue example.com")
		if err != nil {
			t.Fatal(err)
		}
		other, err := s.Lock(t.Context(), "issue example.org")
		if err != nil {
			t.Fatalf("another name is another lock: %v", err)
		}
		defer func() { _ = other(t.Context()) }()
		short, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		defer cancel()
		if _, err := s.Lock(short, "issue example.com"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second taker waits until its context ends: %v", err)
		}
		got := make(chan error, 1)
		go func() {
			again, err := s.Lock(t.Context(), "issue example.com")
			if err == nil {
				err = again(t.Context())
			}
			got <- err
		}()
		if err := unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-got:
			if err != nil {
				t.Errorf("the next taker gets the lock: %v", err)
			}
		case <-time.After(testkit.Patience):
			t.Error("the next taker gets the lock soon after it was given back")
		}
	})
}
