package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func newStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.New(store.Config{DataDir: dir, QuotaBytes: 2 << 30, Relay: store.RelayRecord{ID: "relay-1"}, Logger: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSecondRelayOnOneDirectory(t *testing.T) {
	t.Parallel()
	w := &world{t: t, dir: t.TempDir()}
	_, stop := w.relayWith()
	start := time.Now()
	err := newStore(t, w.dir).Run(t.Context())
	if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second relay got %v, expected ErrLocked and who has the directory", err)
	}
	testkit.Took(t, "telling a second relay", time.Since(start), time.Second)
	stop()
	run(t, newStore(t, w.dir))
}

// A restart has everything, and a directory deeper than a socket's name may be
// long is no hindrance.
func TestRestartInDeepDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 30), "with space")
	w := &world{t: t, dir: dir}
	s, stop := w.relayWith()
	tu := tunnelOf(gpu1, time.Now())
	if _, err := s.UpdateAgent(t.Context(), gpu1, open(tu)); err != nil {
		t.Fatal(err)
	}
	setEpoch(t, s, gpu1, 7)
	stop()
	again := newStore(t, dir)
	run(t, again)
	if got, ok := again.Tunnel(tu.Session); !ok || got.AdminHash != tu.AdminHash {
		t.Errorf("after a restart the tunnel is %+v, %v", got, ok)
	}
	if r, _ := again.Agent(gpu1); r.Epoch != 7 {
		t.Errorf("after a restart the epoch is %d, expected 7", r.Epoch)
	}
}

// Nobody but this user reaches the embedded store, and nobody by network.
func TestEmbeddedStoreIsPrivate(t *testing.T) {
	t.Parallel()
	w := &world{t: t, dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(w.dir, "run"), 0o777); err != nil {
		t.Fatal(err)
	}
	s := w.relay()
	for _, d := range []string{"run", "etcd"} {
		info, err := os.Stat(filepath.Join(w.dir, d))
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s is %v, %v; expected a directory for the owner alone", d, info.Mode(), err)
		}
	}
	for _, e := range s.Client().Endpoints() {
		if !strings.HasPrefix(e, "unix://") {
			t.Errorf("the embedded store listens at %s, expected unix sockets only", e)
		}
	}
	testkit.Eventually(t, "the status says what there is", func() bool {
		st := s.Status()
		return st.Embedded && st.Quorum && !st.Stale && st.Members == 1 && st.SizeBytes > 0 && st.Revision > 0 && st.Detail == ""
	})
}

func TestCannotStart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newStore(t, file).Run(t.Context()); err == nil {
		t.Error("a store in a file started")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := newStore(t, t.TempDir())
	if err := s.Run(ctx); err != nil {
		t.Errorf("stopped before it started: %v", err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("a store ran twice")
	}
}

// No etcd anywhere: Run waits for it, everything else says so within its limits.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	s, err := store.New(store.Config{
		Endpoints: []string{fmt.Sprintf("http://127.0.0.1:%d", testkit.FreePort(t))},
		Relay:     store.RelayRecord{ID: "relay-1"}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	ready, cancelReady := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancelReady()
	if err := s.Ready(ready); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("waiting for a store that is not there gave %v, expected ErrUnavailable", err)
	}
	if _, err := s.UpdateAgent(t.Context(), gpu1, add); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("changing a store that is not there gave %v, expected ErrUnavailable", err)
	}
	short, cancelShort := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancelShort()
	start := time.Now()
	if err := s.CreateCredential(short, store.CredentialRecord{ID: "c"}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("creating a credential gave %v, expected ErrUnavailable", err)
	}
	testkit.Took(t, "the caller's limit of 300 ms", time.Since(start), 2*time.Second)
	cancel()
	start = time.Now()
	if err := <-done; err != nil {
		t.Errorf("stopped without a store: %v", err)
	}
	testkit.Took(t, "stopping without a store", time.Since(start), 4*time.Second)
}

// A full store says so at once, and works again when there is room.
func TestFullStore(t *testing.T) {
	t.Parallel()
	w := &world{t: t, dir: t.TempDir()}
	s := w.relay(func(cfg *store.Config, _ *[]func(*store.Store)) { cfg.QuotaBytes = 2 << 20 })
	raw := w.raw()
	ballast(t, raw)
	start := time.Now()
	if _, err := s.UpdateAgent(t.Context(), gpu1, add); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a change in a full store gave %v, expected ErrUnavailable", err)
	}
	testkit.Took(t, "noticing a full store", time.Since(start), 2*time.Second)
	testkit.Eventually(t, "the status says that the store is full", func() bool { return strings.Contains(s.Status().Detail, "NOSPACE") })
	gone, err := raw.Delete(t.Context(), "/ballast/", clientv3.WithPrefix())
	if err == nil {
		_, err = raw.Compact(t.Context(), gone.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "with room again the store takes changes", func() bool {
		_, err := s.UpdateAgent(t.Context(), gpu1, add)
		return err == nil
	})
}

func TestConfig(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	ok := store.RelayRecord{ID: "relay-1"}
	for name, cfg := range map[string]store.Config{
		"nowhere":      {QuotaBytes: 2 << 30, Relay: ok, Logger: log},
		"no quota":     {DataDir: "d", Relay: ok, Logger: log},
		"no relay":     {DataDir: "d", QuotaBytes: 2 << 30, Logger: log},
		"no logger":    {DataDir: "d", QuotaBytes: 2 << 30, Relay: ok},
		"half seconds": {DataDir: "d", QuotaBytes: 2 << 30, Relay: ok, Logger: log, LeaseTTL: 2500 * time.Millisecond},
		"one second":   {DataDir: "d", QuotaBytes: 2 << 30, Relay: ok, Logger: log, LeaseTTL: time.Second},
	} {
		if _, err := store.New(cfg); err == nil {
			t.Errorf("%s: the configuration was accepted", name)
		}
	}
}

func TestMetricNames(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	w := &world{t: t, dir: t.TempDir()}
	w.relay(func(cfg *store.Config, _ *[]func(*store.Store)) { cfg.Registerer = reg })
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "adit_relay_store_") {
			t.Errorf("metric %s has a foreign name", f.GetName())
		}
	}
}
