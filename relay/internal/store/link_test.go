package store_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

func linkOf(t store.TunnelRecord, name string, created time.Time) store.LinkRecord {
	return store.LinkRecord{
		ID: ident.NewLinkID(), Session: t.Session, Team: t.Team, Agent: t.Agent, Name: name,
		CreatedBy: "user:alice", CreatedAt: created.UTC().Truncate(time.Millisecond),
	}
}

func namesOf(links []store.LinkRecord) []string {
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	return names
}

// A link lives as its tunnel does: not before it, and not after it.
func TestLinks(t *testing.T) {
	everywhere(t, func(t *testing.T, w *world) {
		s, ctx := w.relay(), t.Context()
		now := time.Now()
		tunnel := tunnelOf(gpu1, now)
		newer, older := linkOf(tunnel, "newer", now), linkOf(tunnel, "older", now.Add(-time.Minute))
		if err := s.CreateLink(ctx, newer, 2); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a link of no tunnel gave %v, expected ErrNotFound", err)
		}
		if _, err := s.UpdateAgent(ctx, gpu1, open(tunnel)); err != nil {
			t.Fatal(err)
		}
		for _, l := range []store.LinkRecord{newer, older, newer} { // the last one as a repeated attempt
			if err := s.CreateLink(ctx, l, 2); err != nil {
				t.Fatalf("create link %s: %v", l.Name, err)
			}
		}
		if err := s.CreateLink(ctx, linkOf(tunnel, "third", now), 2); !errors.Is(err, store.ErrLimit) {
			t.Errorf("a link beyond the limit gave %v, expected ErrLimit", err)
		}
		sync := func() {
			t.Helper()
			if err := s.CatchUp(ctx); err != nil {
				t.Fatal(err)
			}
		}
		sync()
		if got := namesOf(s.TunnelLinks(tunnel.Session)); !slices.Equal(got, []string{"older", "newer"}) {
			t.Errorf("the tunnel's links are %v, expected the oldest first", got)
		}
		if got, ok := s.Link(newer.ID); !ok || got.Key() != gpu1 || got.Session != tunnel.Session || !got.CreatedAt.Equal(newer.CreatedAt) {
			t.Errorf("the link reads as %+v, %v", got, ok)
		}

		used, err := s.UpdateLink(ctx, tunnel.Session, newer.ID, func(l *store.LinkRecord) error { l.Uses++; return nil })
		if err != nil || used.Uses != 1 {
			t.Errorf("using the link gave %+v, %v", used, err)
		}
		errNo := errors.New("no")
		if _, err := s.UpdateLink(ctx, tunnel.Session, newer.ID, func(*store.LinkRecord) error { return errNo }); !errors.Is(err, errNo) {
			t.Errorf("a refused change gave %v, expected its reason", err)
		}
		if _, err := s.UpdateLink(ctx, tunnel.Session, ident.NewLinkID(), func(*store.LinkRecord) error { return nil }); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("changing no link gave %v, expected ErrNotFound", err)
		}
		sync()
		if got, _ := s.Link(newer.ID); got.Uses != 1 {
			t.Errorf("after one use the link has %d", got.Uses)
		}

		if err := s.DeleteLink(ctx, tunnel.Session, older.ID); err != nil {
			t.Error(err)
		}
		if err := s.DeleteLink(ctx, tunnel.Session, older.ID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("deleting a link twice gave %v, expected ErrNotFound", err)
		}
		sync()
		if got := namesOf(s.TunnelLinks(tunnel.Session)); !slices.Equal(got, []string{"newer"}) {
			t.Errorf("after one was deleted the links are %v", got)
		}

		if _, err := s.UpdateAgent(ctx, gpu1, shut(tunnel.Session)); err != nil {
			t.Fatal(err)
		}
		sync()
		if _, ok := s.Link(newer.ID); ok || len(s.TunnelLinks(tunnel.Session)) != 0 {
			t.Error("a link outlived its tunnel")
		}
		for l := range s.AllLinks() {
			t.Errorf("link %s is left", l.Name)
		}
	})
}
