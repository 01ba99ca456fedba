package store_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// One of three members lost, the leader at that: a short wait, nothing lost, no
// relay fenced. Two lost: nothing new, and what is known stays.
func TestClusterLosesMembers(t *testing.T) {
	t.Parallel()
	members := startCluster(t, 3)
	w := &world{t: t, external: true}
	for _, m := range members {
		w.endpoints = append(w.endpoints, m.url)
	}
	s := w.relay()
	fenced := s.Fenced()
	var acknowledged []ident.SessionID
	openOne := func() error {
		tu := tunnelOf(gpu1, time.Now())
		_, err := s.UpdateAgent(t.Context(), gpu1, open(tu))
		if err == nil {
			acknowledged = append(acknowledged, tu.Session)
		}
		return err
	}
	for range 10 {
		if err := openOne(); err != nil {
			t.Fatal(err)
		}
	}
	lead := members[0].etcd.Server.Lead()
	var left []*member
	start := time.Now()
	for _, m := range members {
		if uint64(m.etcd.Server.MemberID()) == lead {
			m.etcd.Server.HardStop() // no transfer of leadership, as in a crash
		} else {
			left = append(left, m)
		}
	}
	if len(left) != 2 {
		t.Fatal("no leader")
	}
	for i := range 10 {
		testkit.Eventually(t, "the store takes changes again after losing its leader", func() bool { return openOne() == nil })
		if i == 0 {
			t.Logf("first change %s after the leader was stopped", time.Since(start).Round(time.Millisecond))
		}
	}
	if err := s.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range acknowledged {
		if _, ok := s.Tunnel(id); !ok {
			t.Errorf("acknowledged tunnel %s is gone", id)
		}
	}
	select {
	case <-fenced:
		t.Error("a change of leader fenced the relay")
	default:
	}

	left[0].etcd.Server.HardStop()
	testkit.Eventually(t, "the status says that there is no quorum", func() bool { return !s.Status().Quorum })
	if err := openOne(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("opening a tunnel without a quorum gave %v, expected ErrUnavailable", err)
	}
	if got := s.AgentTunnels(gpu1); len(got) < 20 {
		t.Errorf("without a quorum %d tunnels are known, expected 20", len(got))
	}
	select {
	case <-fenced:
	case <-time.After(testkit.Patience):
		t.Error("a relay that cannot renew its lease goes on serving")
	}
}

// A store that was put back to an older state is taken as it is.
func TestStoreReplaced(t *testing.T) {
	t.Parallel()
	old, young := startEtcd(t), startEtcd(t)
	cable := newWire()
	w := &world{t: t, external: true, endpoints: []string{old}}
	s := w.relay(on(cable))
	for range 5 {
		if _, err := s.UpdateAgent(t.Context(), gpu1, open(tunnelOf(gpu1, time.Now()))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	cable.lead(strings.TrimPrefix(young, "http://"))
	testkit.Eventually(t, "the mirror has what the other store has: nothing", func() bool { return len(s.AgentTunnels(gpu1)) == 0 })
	testkit.Eventually(t, "the relay has a lease there", s.Serving)
	testkit.Eventually(t, "changes are taken", func() bool {
		r, err := s.UpdateAgent(t.Context(), gpu1, add)
		return err == nil && r.N >= 1
	})
}
