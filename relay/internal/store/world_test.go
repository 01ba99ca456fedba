package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

const (
	teamA = ident.TeamID("11111111-1111-4111-8111-111111111111")
	teamB = ident.TeamID("22222222-2222-4222-8222-222222222222")
)

var gpu1 = ident.AgentKey{Team: teamA, Agent: "gpu-1"}

// world is one etcd, embedded in the first store or external to all.
type world struct {
	t         *testing.T
	endpoints []string // empty until an embedded store runs
	external  bool
	dir       string // of the embedded store
	relays    int
}

// everywhere runs a test on an embedded and on an external store.
func everywhere(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	t.Parallel()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, &world{t: t, dir: t.TempDir()})
	})
	t.Run("external", func(t *testing.T) {
		t.Parallel()
		test(t, &world{t: t, external: true, endpoints: []string{startEtcd(t)}})
	})
}

// startEtcd runs an etcd with a TCP listener in the manner of an external one.
func startEtcd(t *testing.T) string {
	t.Helper()
	return startCluster(t, 1)[0].url
}

// member is one of an external cluster.
type member struct {
	etcd *embed.Etcd
	url  string
	stop func()
}

// externalConfig is that of a member with listeners of its own.
func externalConfig(t *testing.T, scheme string) *embed.Config {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	client := url.URL{Scheme: scheme, Host: fmt.Sprintf("127.0.0.1:%d", testkit.FreePort(t))}
	peer := url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", testkit.FreePort(t))}
	cfg.Name = "member-" + peer.Port()
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.TickMs, cfg.ElectionMs = 50, 500
	cfg.UnsafeNoFsync = true
	cfg.EnableGRPCGateway = false
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	return cfg
}

// startMember runs one member until the test ends.
func startMember(t *testing.T, cfg *embed.Config) *member {
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Errorf("start an external etcd: %v", err)
		return nil
	}
	m := &member{etcd: e, url: cfg.ListenClientUrls[0].String()}
	m.stop = sync.OnceFunc(func() {
		e.Close()
		for range e.Err() {
		}
	})
	t.Cleanup(m.stop)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		t.Error("an external etcd does not get ready")
	}
	return m
}

// startCluster runs an external etcd of so many members.
func startCluster(t *testing.T, size int) []*member {
	t.Helper()
	var configs []*embed.Config
	var initial []string
	for range size {
		cfg := externalConfig(t, "http")
		configs, initial = append(configs, cfg), append(initial, cfg.InitialCluster)
	}
	members := make([]*member, size)
	var wg sync.WaitGroup
	for i, cfg := range configs {
		cfg.InitialCluster = strings.Join(initial, ",")
		wg.Go(func() { members[i] = startMember(t, cfg) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return members
}

// option changes a store before it runs.
type option func(cfg *store.Config, prepare *[]func(*store.Store))

func withTTL(d time.Duration) option {
	return func(cfg *store.Config, _ *[]func(*store.Store)) { cfg.LeaseTTL = d }
}

func withNow(now func() time.Time) option {
	return func(cfg *store.Config, _ *[]func(*store.Store)) { cfg.Now = now }
}

func prepared(f func(*store.Store)) option {
	return func(_ *store.Config, p *[]func(*store.Store)) { *p = append(*p, f) }
}

// on puts the store behind a wire that can be cut.
func on(w *wire) option { return prepared(func(s *store.Store) { s.DialWith(w.dial) }) }

// through sends the store's requests through f.
func through(f func(store.Doer) store.Doer) option {
	return prepared(func(s *store.Store) { s.Intercept(f) })
}

// relay runs one more relay's store in the world and waits until it is ready. The
// first one carries the embedded etcd.
func (w *world) relay(opts ...option) *store.Store {
	w.t.Helper()
	s, _ := w.relayWith(opts...)
	return s
}

// relayWith is relay, with a function that stops it.
func (w *world) relayWith(opts ...option) (*store.Store, func()) {
	w.t.Helper()
	w.relays++
	cfg := store.Config{
		Endpoints: w.endpoints,
		Relay:     store.RelayRecord{ID: ident.RelayID(fmt.Sprintf("relay-%d", w.relays)), Version: "test"},
		Logger:    slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if len(cfg.Endpoints) == 0 {
		cfg.DataDir, cfg.QuotaBytes = w.dir, 2<<30
	}
	var prepare []func(*store.Store)
	for _, o := range opts {
		o(&cfg, &prepare)
	}
	s, err := store.New(cfg)
	if err != nil {
		w.t.Fatalf("new store: %v", err)
	}
	for _, p := range prepare {
		p(s)
	}
	stop := run(w.t, s)
	if len(w.endpoints) == 0 {
		w.endpoints = s.Client().Endpoints()
		w.t.Cleanup(func() { w.endpoints = nil })
	}
	return s, stop
}

// run runs a store until the returned function is called or the test ends.
func run(t testing.TB, s *store.Store) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the store stopped with: %v", err)
		}
	})
	t.Cleanup(stop)
	ready, cancelReady := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancelReady()
	if err := s.Ready(ready); err != nil {
		t.Fatalf("the store does not get ready: %v", err)
	}
	return stop
}

// raw is a client of one's own.
func (w *world) raw() *clientv3.Client {
	w.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: w.endpoints, Logger: zap.NewNop()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// wire is a network that can hang (packets are lost and sent again later) and be
// mended.
type wire struct {
	mu    sync.Mutex
	flow  chan struct{} // closed while packets pass
	conns map[*wired]struct{}
	to    string // where connections lead instead
}

func newWire() *wire {
	w := &wire{flow: make(chan struct{}), conns: map[*wired]struct{}{}}
	close(w.flow)
	return w
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flow = make(chan struct{})
}

func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.flow)
}

// drop ends the connections that are open now, and what is on its way in them.
func (w *wire) drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.Close()
	}
	clear(w.conns)
}

// lead makes the wire end elsewhere.
func (w *wire) lead(address string) {
	w.mu.Lock()
	w.to = address
	w.mu.Unlock()
	w.drop()
}

func (w *wire) passes() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flow
}

func (w *wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	select {
	case <-w.passes():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.mu.Lock()
	if w.to != "" {
		address = w.to
	}
	w.mu.Unlock()
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	wc := &wired{Conn: c, wire: w, gone: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[wc] = struct{}{}
	return wc, nil
}

// wired is a connection over a wire.
type wired struct {
	net.Conn
	wire *wire
	once sync.Once
	gone chan struct{}
}

func (c *wired) wait() error {
	select {
	case <-c.wire.passes():
		return nil
	case <-c.gone:
		return io.ErrClosedPipe
	}
}

func (c *wired) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if werr := c.wait(); werr != nil {
		return 0, werr
	}
	return n, err
}

func (c *wired) Write(b []byte) (int, error) {
	if err := c.wait(); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *wired) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}

// add is a change that counts in the record.
func add(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
	r.Fencing++
	return store.Effects{}, nil
}

// open is a change that opens a tunnel.
func open(t store.TunnelRecord) func(time.Time, *store.AgentRecord) (store.Effects, error) {
	return func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
		r.Tunnels[t.Session] = store.TunnelState{State: store.TunnelOpen, Expires: t.ExpiresAt}
		return store.Effects{PutTunnels: []store.TunnelRecord{t}}, nil
	}
}

// shut is a change that removes a tunnel.
func shut(id ident.SessionID) func(time.Time, *store.AgentRecord) (store.Effects, error) {
	return func(_ time.Time, r *store.AgentRecord) (store.Effects, error) {
		delete(r.Tunnels, id)
		return store.Effects{DeleteTunnels: []ident.SessionID{id}}, nil
	}
}

func edits(id ident.SessionID, edit func(*store.TunnelRecord)) map[ident.SessionID]func(*store.TunnelRecord) {
	return map[ident.SessionID]func(*store.TunnelRecord){id: edit}
}

func tunnelOf(key ident.AgentKey, opened time.Time) store.TunnelRecord {
	return store.TunnelRecord{
		Session: ident.NewSessionID(), Team: key.Team, Agent: key.Agent, Port: 8188, Protocol: "http",
		OpenedBy: "user:alice", OpenedAt: opened.UTC().Truncate(time.Millisecond), ExpiresAt: opened.Add(time.Hour).UTC().Truncate(time.Millisecond),
		AdminHash: ident.NewSecret(ident.PrefixAdmin).Hash(), AskedHost: "auto",
	}
}

// insist calls what may be called again until the store has answered: on a machine that has
// much to do, an operation's time may be over before it is.
func insist(t *testing.T, what string, f func() error) bool {
	t.Helper()
	for end := time.Now().Add(testkit.Patience); ; {
		err := f()
		if err == nil {
			return true
		}
		if !errors.Is(err, store.ErrUnavailable) || time.Now().After(end) {
			t.Errorf("%s: %v", what, err)
			return false
		}
	}
}
