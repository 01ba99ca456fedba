// Package relay is the facade of Adit's public half: it puts the parts of a relay
// together, starts them in order and stops them in order. It owns no rule.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/config"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/lifecycle"
	"github.com/adit-tunnel/adit/shared/logs"
)

// Config is what a Relay is made of.
type Config struct {
	Settings config.Relay // complete and valid
	Logger   *slog.Logger
	Recent   *logs.Recent // what the logger logged last, for diag; may be nil
}

// Relay is one relay process.
type Relay struct {
	cfg      config.Relay
	log      *slog.Logger
	recent   *logs.Recent
	p        *parts
	started  time.Time
	proxies  []netip.Prefix // trusted
	draining atomic.Bool
	drainNow chan struct{} // asked over the admin socket
}

// New reads the keys and puts the relay together. Nothing runs and nothing listens
// until Run.
func New(c Config) (*Relay, error) {
	r := &Relay{cfg: c.Settings, log: c.Logger, recent: c.Recent, started: time.Now().UTC(), proxies: c.Settings.Proxies(), drainNow: make(chan struct{}, 1)}
	p, err := r.assemble()
	if err != nil {
		return nil, err
	}
	r.p = p
	return r, nil
}

// storeTime bounds the wait for the store at the start.
const storeTime = 60 * time.Second

// Run runs the relay until SIGTERM, SIGINT or a drain over the admin socket, and
// then stops it in order; a second signal stops it at once. reload is called on
// SIGHUP, after the certificate and the key files were read again.
func (r *Relay) Run(ctx context.Context, reload func() error) error {
	drain, kill, hup, stop := lifecycle.Signals(ctx)
	defer stop()

	// Each layer runs under a context of its own and ends when its turn comes, not
	// when the signal does: the store is last, since all else leans on it.
	base := layer(kill)
	defer base.end()
	base.run("store", r.p.store.Run)
	if err := base.wait(storeTime, drain, r.p.store.Ready); err != nil {
		return fmt.Errorf("start the store: %w", err)
	}
	if err := base.wait(storeTime, drain, func(ctx context.Context) error {
		return r.p.store.CheckClusterKey(ctx, fingerprint(r.p.key))
	}); err != nil {
		return err
	}
	base.run("audit", r.p.audit.Run)
	r.note(ctx, audit.RelayStarted, lifecycle.Version())

	rules := layer(kill)
	defer rules.end()
	rules.run("creds", r.p.creds.Run)
	rules.run("usage", r.p.meter.Run)
	rules.run("gate", r.p.gate.Run)
	rules.run("links", r.p.links.Run)
	rules.run("access", r.p.access.Run)
	rules.run("hub", r.p.hub.Run)
	rules.run("memory", r.boundMemory)
	if r.p.peers != nil {
		rules.run("peers", r.p.peers.Run)
	}
	rules.run("edge", r.p.edge.Run)
	rules.run("api", r.p.api.Run)
	rules.run("admin", r.p.admin.Run)
	if r.p.traces != nil {
		rules.run("traces", r.p.traces.Run)
	}
	if r.p.certs != nil {
		rules.run("certs", r.p.certs.Run)
	}

	if err := r.p.front.Open(ctx); err != nil {
		return err
	}
	doors := layer(kill)
	defer doors.end()
	doors.run("listener", func(context.Context) error { return r.p.front.Serve() })
	if r.cfg.TLS.ACME.Enabled && r.cfg.TLS.ACME.HTTPListen != "" {
		doors.run("plain listener", r.servePlain)
	}
	if r.p.metrics != nil {
		doors.run("metrics", r.serveMetrics)
	}
	rules.run("watchdog", func(ctx context.Context) error {
		err := lifecycle.Watchdog(ctx, func() bool { return true })
		if err == nil {
			<-ctx.Done() // systemd asks for none
		}
		return err
	})
	r.log.Info("relay ready", "listen", r.p.front.Addr().String(), "public_url", r.cfg.PublicURL, "relay_id", r.cfg.RelayID, "version", lifecycle.Version())
	if err := lifecycle.Ready(); err != nil {
		r.log.Warn("tell systemd", "error", err)
	}

	fault := r.supervise(drain, hup, reload, base, rules, doors)
	r.stop(kill, doors)
	return fault
}

// supervise waits for the signal to stop, or for a part that failed.
func (r *Relay) supervise(drain context.Context, hup <-chan struct{}, reload func() error, layers ...*layerRun) error {
	failed := make(chan error, len(layers))
	for _, l := range layers {
		l.onFail(failed)
	}
	for {
		select {
		case <-drain.Done():
			r.log.Info("stopping", "cause", context.Cause(drain))
			return nil
		case <-r.drainNow:
			r.log.Info("stopping", "cause", "asked over the admin socket")
			return nil
		case err := <-failed:
			return err
		case <-hup:
			r.reload(reload)
		}
	}
}

func (r *Relay) reload(more func() error) {
	err := errors.Join(lifecycle.Reloading(), r.reloadCertificates(), r.p.creds.Reload(), r.reloadPeers(), more(), lifecycle.Ready())
	if err != nil {
		r.log.Error("reload: what could not be read stays as it was", "error", err)
		return
	}
	r.log.Info("reloaded certificates, keys and the log level")
}

func (r *Relay) reloadCertificates() error {
	if r.p.certs == nil {
		return nil
	}
	return r.p.certs.Reload()
}

func (r *Relay) reloadPeers() error {
	if r.p.peers == nil {
		return nil
	}
	return r.p.peers.Reload()
}

// stop is the order of a graceful end; each step makes the next one safe.
func (r *Relay) stop(kill context.Context, doors *layerRun) {
	if err := lifecycle.Stopping(); err != nil {
		r.log.Warn("tell systemd", "error", err)
	}
	// 1. Not ready: load balancers look elsewhere, other relays too. Until they do,
	//    everything is served as before.
	r.draining.Store(true)
	r.note(kill, audit.RelayDraining, "")
	if err := r.p.store.SetDraining(kill, true); err != nil {
		r.log.Warn("tell the pool of the drain", "error", err)
	}
	if d := r.cfg.Drain.Delay.D(); d > 0 {
		select {
		case <-time.After(d):
		case <-kill.Done():
		}
	}
	ctx, cancel := context.WithTimeout(kill, r.cfg.Drain.Timeout.D())
	defer cancel()
	// 2. Agents are told to move; no more links and streams.
	r.p.hub.Drain(ctx)
	// 3. The API's event streams and upgraded connections get their goodbye, while
	//    requests under way finish.
	g := new(errgroup.Group)
	g.Go(func() error { return r.p.edge.Drain(ctx) })
	g.Go(func() error { return r.p.terminal.Drain(ctx) })
	g.Go(func() error { return r.p.front.Shutdown(ctx) })
	if r.p.peers != nil {
		g.Go(func() error { r.p.peers.Drain(ctx); return nil })
	}
	r.p.api.Drain()
	if err := g.Wait(); err != nil {
		r.log.Warn("some requests did not finish in time and were cut", "timeout", r.cfg.Drain.Timeout)
		_ = r.p.front.Close() // whatever is left is cut
	}
	r.note(context.WithoutCancel(ctx), audit.RelayStopped, "")
	doors.end()
	// 4. Links, then the rules, then the store: the deferred ends in Run.
}

// note writes a record of the relay itself.
func (r *Relay) note(ctx context.Context, event audit.Event, detail string) {
	if err := r.p.audit.Append(ctx, audit.Record{Event: event, Actor: "relay", Detail: detail}); err != nil {
		r.log.Warn("write audit record", "event", event, "error", err)
	}
}

func (r *Relay) serveMetrics(ctx context.Context) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", r.cfg.Metrics.Listen)
	if err != nil {
		return fmt.Errorf("listen for metrics on %s: %w", r.cfg.Metrics.Listen, err)
	}
	srv := &http.Server{Handler: r.p.metrics, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

func (r *Relay) auditDir() string { return filepath.Join(r.cfg.DataDir, "audit") }

func (r *Relay) id() ident.RelayID { return ident.RelayID(r.cfg.RelayID) }
