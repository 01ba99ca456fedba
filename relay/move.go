package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/adit-tunnel/adit/relay/internal/config"
	"github.com/adit-tunnel/adit/relay/internal/store"
)

// MoveStore carries the store inside a stopped relay, in data_dir, to the external
// one that store.endpoints names, which must have none of Adit's records. Then the
// old one is put aside, so that no relay begins with it again by mistake. It
// returns how many records were carried.
func MoveStore(ctx context.Context, cfg config.Relay, log *slog.Logger) (int, error) {
	if len(cfg.Store.Endpoints) == 0 {
		return 0, errors.New("store.endpoints names no store to move to; write it into the configuration first")
	}
	old := filepath.Join(cfg.DataDir, "etcd")
	if _, err := os.Stat(old); err != nil {
		return 0, fmt.Errorf("there is no store in data_dir to move: %w", err)
	}
	tlsTo, err := clientTLS(cfg.Store.TLS.CAFile, cfg.Store.TLS.CertFile, cfg.Store.TLS.KeyFile)
	if err != nil {
		return 0, fmt.Errorf("store.tls: %w", err)
	}
	from, err := store.New(store.Config{
		DataDir: cfg.DataDir, QuotaBytes: cfg.Store.Quota, Relay: store.RelayRecord{ID: "store-move"}, Logger: log,
	})
	if err != nil {
		return 0, err
	}
	rctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- from.Run(rctx) }()
	sum, err := copyStore(ctx, from, store.Target{Endpoints: cfg.Store.Endpoints, TLS: tlsTo, Logger: log}, ended)
	stop()
	if rerr := <-ended; err == nil {
		err = rerr
	}
	if err != nil {
		return 0, err
	}
	aside := old + ".moved"
	if err := os.Rename(old, aside); err != nil {
		return sum.Records, fmt.Errorf("all %d records are in the new store; put the old one aside yourself: %w", sum.Records, err)
	}
	return sum.Records, nil
}

// copyStore waits for the old store and copies it. A store that ends by itself puts
// its error back for the caller.
func copyStore(ctx context.Context, from *store.Store, to store.Target, ended chan error) (store.Summary, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	ready := make(chan error, 1)
	go func() { ready <- from.Ready(ctx) }()
	select {
	case err := <-ready:
		if err != nil {
			return store.Summary{}, fmt.Errorf("open the store in data_dir: %w", err)
		}
	case err := <-ended:
		cancel()
		<-ready
		ended <- nil
		return store.Summary{}, fmt.Errorf("open the store in data_dir (is the relay stopped?): %w", err)
	}
	return store.Copy(ctx, from, to)
}
