package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/adit-tunnel/adit/shared/ident"
)

// Config says where the state lives and who asks.
type Config struct {
	// DataDir holds the embedded store; it is not used with Endpoints.
	DataDir string
	// Endpoints are the URLs of an external etcd, 3.5.10 or newer: before, a watch
	// could report progress past events it had not sent, and a miss could not be
	// confirmed.
	Endpoints []string
	TLS       *tls.Config // for Endpoints
	// Relay is written to the store while this relay serves.
	Relay      RelayRecord
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are kept, not registered
	QuotaBytes int64                 // of the embedded store, which needs it
	LeaseTTL   time.Duration         // whole seconds, at least 2; default 10 s
	Now        func() time.Time      // wall clock; default time.Now
}

// Store is a relay's view of the shared state. Its methods are safe for
// concurrent use; but for New they do nothing useful unless Run is running.
type Store struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	dial    dialFunc
	wrap    func(keyValues) keyValues // tests put faults between here and etcd

	staleAfter time.Duration

	client  atomic.Pointer[clientv3.Client]
	mirror  *mirror
	lease   *relayLease
	catchUp *catchUp
	subs    subscriptions
	stripes [256]stripe
	seed    maphash.Seed

	heard  atomic.Int64  // clock() of the last word from the watch
	stuck  atomic.Bool   // the watch stands still while the store goes on
	relist atomic.Bool   // the mirror's past is not the store's
	reopen atomic.Bool   // the watch shall start over
	nudge  chan struct{} // asks the watch for its progress now
	ready  chan struct{} // closed at the first sync
	synced sync.Once

	versionOnce sync.Once
	running     atomic.Bool
	isFull      atomic.Bool // etcd refuses every write
	tight       atomic.Bool // what is left of the quota is the reserve
	limit       int64       // the embedded store's own quota; set by Run
	relief      relief      // the health check's own

	mu     sync.Mutex
	health health
}

// Status says how the store is.
type Status struct {
	Embedded  bool
	Quorum    bool   // the last linearizable read was answered
	Stale     bool   // the mirror may be out of date: nothing new is granted
	Detail    string // why, when not all is well
	Revision  int64
	Members   int
	SizeBytes int64
	// QuotaBytes is the size at which the store is full; 0: not known.
	QuotaBytes int64
	Full       bool // nothing new is made, to keep room for what must always be possible
	Unwritable bool // the store refuses every write but deletions
}

// New checks the configuration. It starts nothing and touches no file.
func New(cfg Config) (*Store, error) {
	var errs []error
	if len(cfg.Endpoints) == 0 && cfg.DataDir == "" {
		errs = append(errs, errors.New("data_dir: is needed unless store.endpoints are given"))
	}
	if len(cfg.Endpoints) == 0 && cfg.QuotaBytes <= 0 {
		errs = append(errs, errors.New("store.quota_bytes: is needed unless store.endpoints are given"))
	}
	for _, e := range cfg.Endpoints {
		if cfg.TLS != nil && strings.HasPrefix(e, "http://") {
			errs = append(errs, fmt.Errorf("store.endpoints: %s would not use store.tls; write https://", e))
		}
	}
	if _, err := ident.ParseRelayID(string(cfg.Relay.ID)); err != nil {
		errs = append(errs, fmt.Errorf("relay id: %w", err))
	}
	if cfg.LeaseTTL == 0 {
		cfg.LeaseTTL = 10 * time.Second
	}
	if cfg.LeaseTTL < 2*time.Second || cfg.LeaseTTL%time.Second != 0 {
		errs = append(errs, fmt.Errorf("lease ttl: %s is not whole seconds, 2 or more", cfg.LeaseTTL))
	}
	if cfg.Logger == nil {
		errs = append(errs, errors.New("logger: is needed"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Relay.Floors, cfg.Relay.Access = true, true
	s := &Store{
		cfg:     cfg,
		log:     cfg.Logger,
		dial:    (&net.Dialer{}).DialContext,
		mirror:  newMirror(),
		lease:   newRelayLease(cfg.Relay),
		catchUp: newCatchUp(),
		nudge:   make(chan struct{}, 1),
		ready:   make(chan struct{}),
		seed:    maphash.MakeSeed(),

		staleAfter: staleAfter,
	}
	for i := range s.stripes {
		s.stripes[i] = make(stripe, 1)
	}
	s.metrics = newMetrics(cfg.Registerer, s)
	return s, nil
}

// Run connects to the store, embedded or external, keeps the relay's lease and
// the mirror, and blocks until ctx ends; then it stops cleanly and returns nil.
// It returns an error when the embedded store cannot start or ends by itself. It
// runs once.
func (s *Store) Run(ctx context.Context) error {
	if s.running.Swap(true) {
		return errors.New("run the store: it has run already")
	}
	endpoints := s.cfg.Endpoints
	watch := func(context.Context) error { return nil }
	if s.embedded() {
		e, err := startEmbedded(ctx, s.cfg.DataDir, s.cfg.QuotaBytes, s.log)
		if err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
			return nil
		}
		if err != nil {
			return err
		}
		defer e.stop() // after the client is closed: it would wait for open watches
		endpoints, watch, s.limit = []string{e.endpoint}, e.watch, e.limit
	}
	client, err := connect(endpoints, s.cfg.TLS, s.dial, s.log)
	if err != nil {
		return err
	}
	s.client.Store(client)
	defer func() {
		s.client.Store(nil)
		_ = client.Close() // reports only that its own context has ended
		s.subs.close()
	}()

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.runMirror(gctx) })
	g.Go(func() error { return s.runLease(gctx) })
	g.Go(func() error { return s.runCatchUp(gctx) })
	g.Go(func() error { return s.runHealth(gctx) })
	g.Go(func() error { return s.runSweep(gctx) })
	g.Go(func() error { return watch(gctx) })
	return g.Wait()
}

// Ready waits until the mirror has been filled and the relay has its lease.
func (s *Store) Ready(ctx context.Context) error {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return unavailable(ctx, "wait for the store", nil)
	}
	return s.WaitServing(ctx)
}

// Status returns how the store is, from what was observed last.
func (s *Store) Status() Status {
	s.mu.Lock()
	h := s.health
	s.mu.Unlock()
	st := Status{
		Embedded: s.embedded(), Quorum: h.quorum, Stale: s.stale(), Detail: h.detail,
		Revision: s.mirror.revision(), Members: h.members, SizeBytes: h.size,
		QuotaBytes: h.quota, Full: !s.Room(), Unwritable: s.isFull.Load(),
	}
	switch {
	case st.Detail != "":
	case st.Unwritable:
		st.Detail = fmt.Sprintf("it is full (%d of %d bytes) and takes nothing but deletions (NOSPACE); a store inside the relay is relieved by and by, and gets some room when the relay starts again; raise store.quota_bytes, of an external etcd --quota-backend-bytes", h.size, h.quota)
	case h.alarm != "":
		st.Detail = h.alarm
	case st.Full:
		st.Detail = fmt.Sprintf("it is nearly full (%d of %d bytes): nothing new is made; raise store.quota_bytes, or find out what fills it (adit-relay audit)", h.size, h.quota)
	}
	if st.Detail == "" && s.stuck.Load() {
		st.Detail = errStuck.Error()
	}
	if st.Detail == "" && st.Stale {
		st.Detail = "no word from the store for " + s.silence().Round(time.Second).String()
	}
	if st.Detail == "" && !s.Serving() {
		st.Detail = "the relay has no lease"
	}
	return st
}

func (s *Store) embedded() bool { return len(s.cfg.Endpoints) == 0 }

// kv returns the way to etcd, nil while there is none.
func (s *Store) kv() keyValues {
	c := s.client.Load()
	if c == nil {
		return nil
	}
	if s.wrap != nil {
		return s.wrap(c)
	}
	return c
}

// usable says why the store must not be asked for a change now.
func (s *Store) usable() error {
	switch {
	case s.client.Load() == nil:
		return fmt.Errorf("%w: it is not running", ErrUnavailable)
	case s.stuck.Load():
		return fmt.Errorf("%w: %w", ErrUnavailable, errStuck)
	case s.stale():
		return fmt.Errorf("%w: no word from it for %s", ErrUnavailable, s.silence().Round(time.Millisecond))
	case !s.Serving():
		return fmt.Errorf("%w: this relay has lost its lease", ErrUnavailable)
	}
	return nil
}

// now is the wall clock as it is stored: UTC, milliseconds.
func (s *Store) now() time.Time { return s.cfg.Now().UTC().Truncate(time.Millisecond) }
