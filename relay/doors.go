package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/hub"
	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/diag"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/lifecycle"
	"github.com/adit-tunnel/adit/shared/metric"
)

// serveLink authenticates an agent and gives its request to the hub.
func (r *Relay) serveLink(w http.ResponseWriter, req *http.Request) {
	p, err := r.p.creds.Authenticate(req)
	switch {
	case err != nil:
	case !r.p.store.Serving(): // said before the upgrade, so that the agent tries another relay at once
		err = api.StoreUnavailable("this relay has lost its store and takes no links until it is back", nil).WithRetry(time.Second)
	default:
		err = r.p.hub.ServeLink(w, req, p)
	}
	if err == nil {
		return
	}
	var problem *api.Problem
	if !errors.As(err, &problem) {
		problem = api.NewProblem(api.CodeInternal, "the relay could not serve the link").WithCause(err)
	}
	id := ident.NewRequestID()
	if problem.Status == http.StatusUnauthorized || problem.Status == http.StatusForbidden {
		rec := audit.Record{Event: audit.AuthRefused, Detail: "link: " + string(problem.Code), RequestID: id, RemoteAddr: r.remote(req)}
		if err := r.p.audit.Append(req.Context(), rec); err != nil {
			r.log.Warn("write audit record", "event", rec.Event, "error", err)
		}
	}
	r.log.Debug("link refused", "code", problem.Code, "remote", r.remote(req), "request_id", id, "error", problem.Cause)
	problems.AnswerOwn(w, req, problem, id)
}

// agentAPI serves the gate's routes to one agent, over its link.
func (r *Relay) agentAPI(p creds.Principal) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.p.api.ServeAgent(w, req, p) })
}

// agentEvent records what happened to an agent's session.
func (r *Relay) agentEvent(e hub.Event) {
	rec := audit.Record{
		Event: e.Kind, Actor: e.Principal.Name, Team: e.Key.Team, Agent: e.Key.Agent, Epoch: e.Epoch, Detail: e.Detail, RemoteAddr: e.RemoteAddr,
	}
	if err := r.p.audit.Append(context.Background(), rec); err != nil {
		r.log.Warn("write audit record", "event", e.Kind, "error", err)
	}
}

// viewed records that somebody became a viewer of a tunnel.
func (r *Relay) viewed(v usage.View) {
	t, ok := r.p.store.Tunnel(v.Session)
	if !ok {
		return // closed this moment
	}
	rec := audit.Record{
		Event: audit.TunnelViewed, Actor: "viewer", Team: t.Team, Agent: t.Agent, Session: t.Session,
		Detail: fmt.Sprintf("viewer %s, %s", v.Viewer, v.Kind),
	}
	switch {
	case v.Party.User != "":
		rec.Actor = "user:" + string(v.Party.User)
		rec.Detail += fmt.Sprintf(", %q", v.Party.Name)
	case v.Party.Name != "": // of a credential, or what somebody said who knocked
		rec.Detail += fmt.Sprintf(", named %q", v.Party.Name)
	}
	if link, ok := r.p.store.Link(v.Party.Link); ok {
		rec.Detail += fmt.Sprintf(", by link %s %q", link.ID, link.Name)
	}
	rec.Detail += fmt.Sprintf(", user agent %q", v.Party.UserAgent)
	if v.Party.Remote.IsValid() {
		rec.RemoteAddr = v.Party.Remote.String()
	}
	if err := r.p.audit.Append(context.Background(), rec); err != nil {
		r.log.Warn("write audit record", "event", rec.Event, "error", err)
	}
}

// otherRelays lists the pool's other relays that are not draining.
func (r *Relay) otherRelays() []string {
	var urls []string
	for _, o := range r.p.store.Relays() {
		if o.ID != r.id() && o.URL != "" && !o.Draining && !slices.Contains(urls, o.URL) {
			urls = append(urls, o.URL)
		}
	}
	return urls
}

// ready says why the relay is not, if it is not. One whose store takes nothing new is:
// what runs goes on through it, and its fellows have the same store. Anybody may ask, so
// how much there is and what fills it is for adit-relay status.
func (r *Relay) ready(context.Context) (note string, _ *api.Problem) {
	if r.draining.Load() {
		return "", api.NewProblem(api.CodeRelayDraining, "the relay is stopping")
	}
	st := r.p.store.Status()
	switch {
	case !st.Quorum || st.Stale || !r.p.store.Serving():
		return "", api.Problemf(api.CodeStoreUnavailable, "the store is not available: %s", st.Detail)
	case st.Unwritable:
		return "", api.NewProblem(api.CodeStoreFull, "the store is full (NOSPACE), and nothing can be written; adit-relay status on the relay's host says what to do")
	case st.Full:
		return "the store: it is nearly full, and nothing new is made; adit-relay status on the relay's host says what to do", nil
	}
	return "", nil
}

func (r *Relay) trusted(ip net.IP) bool {
	a, ok := netip.AddrFromSlice(ip)
	return ok && r.trustedAddr(a.Unmap())
}

func (r *Relay) trustedAddr(a netip.Addr) bool {
	return slices.ContainsFunc(r.proxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// remote is the caller's address: the connection's, or what the last trusted proxy
// says of it.
func (r *Relay) remote(req *http.Request) string {
	if a := caller.User(req, r.trustedAddr); a.IsValid() {
		return a.String()
	}
	return ""
}

func (r *Relay) metricsHandler(reg *prometheus.Registry) http.Handler {
	if r.cfg.Metrics.Listen == "" {
		return nil
	}
	f := metric.In(reg)
	f.Gauges("adit_relay_build_info", "Always 1; the label says which build runs.", "version").WithLabelValues(lifecycle.Version()).Set(1)
	f.Says("adit_relay_draining", "1 while the relay is stopping.", r.draining.Load)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	if r.cfg.Metrics.Pprof {
		diag.Profiles(mux)
	}
	return mux
}

// status is what `adit-relay status` shows.
func (r *Relay) status(context.Context) admin.Status {
	agents, streams := r.p.hub.Count()
	st := admin.Status{
		Relay: r.id(), Version: lifecycle.Version(), PublicURL: r.cfg.PublicURL, StartedAt: r.started, Draining: r.draining.Load(),
		Store: r.p.store.Status(), Agents: agents, Streams: streams, Relays: r.p.store.Relays(),
	}
	if r.p.peers != nil {
		st.Peers, _ = r.p.peers.Links()
	}
	for range r.p.store.AllTunnels() {
		st.Tunnels++
	}
	if r.cfg.WildcardDomain == "" {
		st.Warnings = append(st.Warnings, "no wildcard_domain: apps with absolute paths (Jupyter, TensorBoard, vite) do not work in path form")
	}
	if r.cfg.ServesPathForm() && r.cfg.ConsoleURL == "" {
		st.Warnings = append(st.Warnings, "path_form is on without console_url: an app's script shares the console's origin, and can show a page of its own at the console's address")
	}
	if r.p.certs != nil {
		st.Certificates = r.p.certs.Status()
		st.Warnings = append(st.Warnings, r.certificateWarnings(st.Certificates)...)
	}
	if r.p.certs == nil && r.cfg.Public().Scheme == "http" && r.cfg.Public().Hostname() != "localhost" {
		st.Warnings = append(st.Warnings, "public_url is plain http: tokens travel unencrypted")
	}
	return st
}
