package edge

import (
	"context"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
)

const (
	// probeWait is how long a request waits for the probe that decides its Host.
	probeWait = 2 * time.Second
	// probeLimit bounds the probe itself.
	probeLimit = 5 * time.Second
	// probeEvery is how often an undecided tunnel is asked about again.
	probeEvery = 10 * time.Second
)

// hostModeLocal says whether the app sees its own address as Host: as asked when
// the tunnel was opened, else as probing found, else asking the app now. It is
// public while nobody knows.
func (x *exchange) hostModeLocal() bool {
	r := &x.route.Record
	switch {
	case r.AskedHost == api.HostLocal || r.AskedHost == api.HostPublic:
		return r.AskedHost == api.HostLocal
	case r.HostHeader == api.HostLocal || r.HostHeader == api.HostPublic:
		return r.HostHeader == api.HostLocal
	case x.e.config.Prober == nil:
		return false
	}
	m := &x.idle.host
	m.mu.Lock()
	if m.running == nil && m.mode == "" && time.Since(m.asked) >= probeEvery {
		m.running, m.asked = make(chan struct{}), time.Now()
		x.e.tasks.Add(1)
		go x.e.probe(x, m, m.running)
	}
	running, mode := m.running, m.mode
	m.mu.Unlock()
	if running == nil {
		return mode == api.HostLocal
	}
	t := time.NewTimer(probeWait)
	defer t.Stop()
	select {
	case <-running:
	case <-t.C:
	case <-x.use.Context().Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mode == api.HostLocal
}

// probe asks once for all requests that wait for it. It outlives the one that
// began it: the others need its answer too.
func (e *Edge) probe(x *exchange, m *hostMode, running chan struct{}) {
	defer e.tasks.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.r.Context()), probeLimit)
	defer cancel()
	mode, err := e.config.Prober.ProbeHost(ctx, x.route.Record, x.route.Host)
	if err != nil {
		e.log.Debug("probe for the host header", "session_id", x.route.Record.Session, "error", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil && (mode == api.HostLocal || mode == api.HostPublic) {
		m.mode = mode
	}
	m.running = nil
	close(running)
}
