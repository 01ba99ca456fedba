package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"
)

const (
	memberName = "adit"
	// peerURL stands in the member's record and nowhere else: a single member has no
	// peers and listens for none.
	peerURL = "unix://adit-embedded"
	// startTimeout bounds the start: a long log is read in seconds.
	startTimeout = 2 * time.Minute
	// maxSocketPath is what fits sockaddr_un (unix(7): 108 bytes with the final NUL).
	maxSocketPath = 107
)

// embedded is an etcd member inside this process, reachable by unix socket only.
type embedded struct {
	etcd     *embed.Etcd
	endpoint string
	limit    int64 // its quota
	lock     *os.File
	run      *os.File // the socket's directory, kept open for its /proc name
}

// startEmbedded runs a member with its data in dataDir/etcd, creating it when
// there is none. The directory belongs to one process at a time.
func startEmbedded(ctx context.Context, dataDir string, quota int64, log *slog.Logger) (_ *embedded, err error) {
	lock, err := lockDir(dataDir)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(dataDir, "etcd")
	e := &embedded{lock: lock, limit: limitFor(dir, quota)}
	defer func() {
		if err != nil {
			e.stop()
		}
	}()
	socket, err := e.socketPath(filepath.Join(dataDir, "run"))
	if err != nil {
		return nil, err
	}
	e.endpoint = "unix://" + socket
	cfg, err := memberConfig(dir, socket, e.limit, log)
	if err != nil {
		return nil, err
	}
	if e.etcd, err = embed.StartEtcd(cfg); err != nil {
		return nil, fmt.Errorf("start the embedded store: %w", err)
	}
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case <-e.etcd.Server.ReadyNotify():
		return e, nil
	case err := <-e.etcd.Err():
		return nil, fmt.Errorf("start the embedded store: %w", err)
	case <-e.etcd.Server.StopNotify():
		return nil, errors.New("start the embedded store: it stopped by itself")
	case <-timer.C:
		return nil, fmt.Errorf("start the embedded store: not ready after %s", startTimeout)
	case <-ctx.Done():
		return nil, fmt.Errorf("start the embedded store: %w", context.Cause(ctx))
	}
}

func memberConfig(dir, socket string, quota int64, log *slog.Logger) (*embed.Config, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	peer, err := url.Parse(peerURL)
	if err != nil {
		return nil, err
	}
	client := url.URL{Scheme: "unix", Path: socket}
	cfg := embed.NewConfig()
	cfg.Name = memberName
	cfg.Dir = dir
	cfg.ListenPeerUrls = nil
	cfg.AdvertisePeerUrls = []url.URL{*peer}
	cfg.ListenClientUrls = []url.URL{client}
	cfg.AdvertiseClientUrls = []url.URL{client}
	cfg.InitialCluster = cfg.InitialClusterFromName(memberName)
	cfg.InitialClusterToken = memberName
	cfg.EnableGRPCGateway = false
	// Alone in its cluster the member elects itself: short ticks only shorten the
	// start. (A member of several needs longer ones.)
	cfg.TickMs, cfg.ElectionMs = 20, 200
	cfg.QuotaBackendBytes = quota
	// History serves watches that fell behind and the outcome of changes that timed
	// out: seconds. Heartbeats write much of it.
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = "1m"
	// Without followers nobody needs the applied entries in memory.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 5000, 100
	cfg.MaxTxnOps = 1024
	cfg.WatchProgressNotifyInterval = progressEvery
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(log.With("from", "etcd"), slog.LevelWarn))
	return cfg, nil
}

// watch returns when ctx ends, or with an error when the member or its listener
// ends by itself.
func (e *embedded) watch(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-e.etcd.Server.StopNotify():
		return errors.New("the embedded store ended by itself")
	case err := <-e.etcd.Err():
		return fmt.Errorf("the embedded store stopped listening: %w", err)
	}
}

// stop ends the member and gives the directory back. Clients must be closed
// before: their open watches would be waited for.
func (e *embedded) stop() {
	if e.etcd != nil {
		select {
		case <-e.etcd.Server.ReadyNotify():
		default:
			// Close waits for the listeners, and they for a member that got ready.
			e.etcd.Server.HardStop()
		}
		e.etcd.Close()
		for range e.etcd.Err() { // closed once all of its goroutines have ended
		}
	}
	if e.run != nil {
		_ = e.run.Close()
	}
	_ = e.lock.Close() // ends the lock
}

// socketPath returns a name for the member's socket in dir that fits a socket
// address. A data directory may be deeper than that: then the way leads through
// this process's open descriptor of the directory, which is short and, unlike a
// name in a temporary directory, leaves nothing behind after a kill.
func (e *embedded) socketPath(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	// An existing directory may be wider open; the socket has no other guard.
	if err := os.Chmod(dir, 0o700); err != nil {
		return "", err
	}
	abs, err := filepath.Abs(filepath.Join(dir, "etcd.sock"))
	if err != nil {
		return "", err
	}
	if len(abs) <= maxSocketPath && !strings.ContainsAny(abs, "?#%") {
		return abs, nil
	}
	if e.run, err = os.Open(dir); err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/self/fd/%d/etcd.sock", e.run.Fd()), nil
}

// lockDir takes the directory for this process, or says at once who has it.
func lockDir(dir string) (_ *os.File, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the data directory: %w", err)
		}
		who := "another process"
		if pid, err := io.ReadAll(io.LimitReader(f, 16)); err == nil && len(pid) > 0 {
			who = "process " + strings.TrimSpace(string(pid))
		}
		return nil, fmt.Errorf("%w: %s holds %s; stop that one first, or give this one a data_dir of its own", ErrLocked, who, dir)
	}
	// The number is for the message above only; the lock ends with the process.
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	return f, nil
}
