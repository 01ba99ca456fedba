package store

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// keyValues is what the operations need of etcd's client.
type keyValues interface {
	Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error)
}

// dialFunc opens the connection to one endpoint.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// connect returns a client; it does not wait for a connection.
func connect(endpoints []string, tlsConfig *tls.Config, dial dialFunc, log *slog.Logger) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints,
		TLS:       tlsConfig,
		// A dead connection is noticed in 13 s; etcd refuses more frequent pings. What
		// must be quicker (the lease, the watch) has limits of its own.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		// Its warnings are about retries; what comes of them is returned as an error.
		Logger: newZap(log.With("from", "etcd_client"), slog.LevelDebug),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			if path, ok := strings.CutPrefix(address, "unix:"); ok {
				return dial(ctx, "unix", "/"+strings.TrimLeft(path, "/"))
			}
			return dial(ctx, "tcp", address)
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the store: %w", err)
	}
	return c, nil
}

const (
	opTimeout      = 5 * time.Second // of an operation with its retries
	attemptTimeout = 2 * time.Second // of one request
)

// do sends one request with its own deadline.
func (s *Store) do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	kv := s.kv()
	if kv == nil {
		return clientv3.OpResponse{}, ErrUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return kv.Do(ctx, op)
}

// get reads one key, linearizably; nil when there is none. It also returns the
// store's revision of that moment.
func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*keyValue, int64, error) {
	resp, err := s.do(ctx, clientv3.OpGet(key, opts...))
	if err != nil {
		return nil, 0, err
	}
	g := resp.Get()
	if len(g.Kvs) == 0 {
		return nil, g.Header.Revision, nil
	}
	return newKeyValue(g.Kvs[0]), g.Header.Revision, nil
}

// txn sends one transaction and says whether its conditions held.
func (s *Store) txn(ctx context.Context, conditions []clientv3.Cmp, then ...clientv3.Op) (bool, error) {
	resp, err := s.do(ctx, clientv3.OpTxn(conditions, then, nil))
	if err != nil {
		return false, err
	}
	return resp.Txn().Succeeded, nil
}

// pause waits before the next attempt, longer each time and never the same for
// two callers; false when the context ended.
func pause(ctx context.Context, attempt int) bool {
	limit := min(4*time.Millisecond<<min(attempt, 6), 150*time.Millisecond)
	t := time.NewTimer(time.Millisecond + rand.N(limit))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
