package store

import (
	"context"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/shared/ident"
)

// Doer is the way to etcd that tests put faults into.
type Doer interface {
	Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error)
}

// Intercept puts f between the store's operations and etcd. Before Run only.
func (s *Store) Intercept(f func(Doer) Doer) {
	s.wrap = func(kv keyValues) keyValues { return f(kv) }
}

// DialWith replaces the store's network. Before Run only.
func (s *Store) DialWith(dial func(ctx context.Context, network, address string) (net.Conn, error)) {
	s.dial = dial
}

// SetStaleAfter shortens the silence that makes the mirror stale. Before Run only.
func (s *Store) SetStaleAfter(d time.Duration) { s.staleAfter = d }

// Client is the store's etcd client while it runs.
func (s *Store) Client() *clientv3.Client { return s.client.Load() }

// SweepCredentials runs the periodic sweep now.
func (s *Store) SweepCredentials(ctx context.Context) { s.sweepCredentials(ctx) }

// SweepSignIns runs the periodic sweep now.
func (s *Store) SweepSignIns(ctx context.Context) { s.sweepSignIns(ctx) }

// WaitRevision waits until the mirror has applied a revision.
func (s *Store) WaitRevision(ctx context.Context, rev int64) error { return s.mirror.wait(ctx, rev) }

// MirrorPut applies one event, as the watch does.
func (s *Store) MirrorPut(key, value string, rev int64) {
	s.apply(&clientv3.WatchResponse{Events: []*clientv3.Event{{
		Type: clientv3.EventTypePut,
		Kv:   &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: rev},
	}}})
}

// Names of keys, for raw access.
const (
	Root         = root
	ClusterKey   = clusterKey
	ImportingKey = importingKey
)

// TunnelKey, AgentKey and RelayKey are the names of records in etcd.
func TunnelKey(id ident.SessionID) string { return tunnelKey(id) }
func AgentKey(k ident.AgentKey) string    { return agentKey(k) }
func PresenceKey(k ident.AgentKey) string { return presenceKey(k) }
func RelayKey(id ident.RelayID) string    { return relayKey(id) }

// Lists says how often the mirror was rebuilt from a full list.
func (s *Store) Lists() float64 { return testutil.ToFloat64(s.metrics.lists) }
