package rest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/apps"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

const (
	maxLabel   = 64  // characters
	maxOrigins = 16  // of allow_origins
	maxKey     = 255 // characters of an idempotency key
	// probeTime is how long a probe may go on in the background.
	probeTime = 10 * time.Second
)

func (a *API) openTunnel(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	key, err := a.agent(r, p)
	if err != nil {
		return err
	}
	var req api.OpenTunnelRequest
	if err := decode(w, r, &req, false); err != nil {
		return err
	}
	spec, err := openSpec(req)
	if err != nil {
		return err
	}
	if refused := refusesPort(p, spec.Port); refused != nil {
		return refused
	}
	if spec.IdempotencyKey, err = idempotencyKey(r); err != nil {
		return err
	}
	spec.BodyHash = bodyHash(key, spec.IdempotencyKey, req)
	if spec.Access, err = a.tunnelRule(req.AccessRequest, spec.Protocol); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	if spec.WhenBusy == api.BusyWait { // may take as long as the tasks do
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		defer context.AfterFunc(a.stopping, func() { cancel(errDraining) })()
		// What a credential waits for ends with it, as all it holds open does.
		live, stop := a.cfg.Auth.Watch(ctx, p)
		defer stop()
		ctx = live
	}
	var late *lateProbe
	spec.Before = func(ctx context.Context, t *store.TunnelRecord) (err error) {
		late, err = a.probe(ctx, t)
		return err
	}
	o, err := a.cfg.Gate.Open(ctx, p, key, spec)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && r.Context().Err() == nil {
			return ended(cause)
		}
		return err
	}
	late.follow(a, o.Tunnel)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	return send(w, http.StatusCreated, a.opened(o))
}

// ended turns the end of a caller's credential or sign-in into the answer that its next call
// would get.
func ended(cause error) error {
	if creds.Ended(cause) {
		return api.NewProblem(api.CodeUnauthenticated, cause.Error())
	}
	return cause
}

// openSpec checks ranges and fills in the defaults that are the API's.
func openSpec(req api.OpenTunnelRequest) (gate.OpenSpec, error) {
	s := gate.OpenSpec{
		Port: apps.DefaultPort, Protocol: api.ProtocolHTTP, WhenBusy: api.BusyAllow, HostHeader: api.HostAuto,
		Label: req.Label, AllowOrigins: req.AllowOrigins, IdentityHeader: req.IdentityHeader,
	}
	if req.TargetPort != nil {
		if *req.TargetPort < 1 || *req.TargetPort > 65535 {
			return s, invalid("target_port", "1 to 65535")
		}
		s.Port = uint16(*req.TargetPort)
	}
	switch req.TunnelProtocol {
	case "":
	case api.ProtocolHTTP, api.ProtocolTCP:
		s.Protocol = req.TunnelProtocol
	default:
		return s, invalid("tunnel_protocol", "http or tcp")
	}
	switch req.WhenBusy {
	case "":
	case api.BusyAllow, api.BusyReject, api.BusyWait:
		s.WhenBusy = req.WhenBusy
	default:
		return s, invalid("when_busy", "allow, reject or wait")
	}
	switch req.HostHeader {
	case "":
	case api.HostAuto, api.HostPublic, api.HostLocal:
		s.HostHeader = req.HostHeader
	default:
		return s, invalid("host_header", "auto, public or local")
	}
	for _, d := range []struct {
		name string
		from *api.Duration
		to   *time.Duration
	}{{"idle_timeout", req.IdleTimeout, &s.IdleTimeout}, {"expires_in", req.ExpiresIn, &s.ExpiresIn}, {"wait_timeout", req.WaitTimeout, &s.WaitTimeout}} {
		if d.from == nil {
			continue
		}
		if d.from.D() < time.Second {
			return s, invalid(d.name, "a second or more")
		}
		*d.to = d.from.D()
	}
	if err := checkText("label", req.Label, maxLabel); err != nil {
		return s, err
	}
	if err := checkIdentityHeader(req.IdentityHeader); err != nil {
		return s, err
	}
	if len(req.AllowOrigins) > maxOrigins {
		return s, invalid("allow_origins", "at most %d", maxOrigins)
	}
	for _, o := range req.AllowOrigins {
		u, err := url.Parse(o)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Scheme+"://"+u.Host != strings.ToLower(o) {
			return s, invalid("allow_origins", "origins like https://app.example.com, without a path")
		}
	}
	return s, nil
}

func idempotencyKey(r *http.Request) (string, error) {
	k := r.Header.Get(api.HeaderIdempotencyKey)
	if len(k) > maxKey {
		return "", invalid(api.HeaderIdempotencyKey, "at most %d characters", maxKey)
	}
	return k, nil
}

// bodyHash says what was asked: the same for two spellings of one request. There may be a
// PIN in it, so the key, which is kept nowhere in clear, is hashed with it.
func bodyHash(key ident.AgentKey, once string, req api.OpenTunnelRequest) string {
	b, err := json.Marshal(struct {
		Agent ident.AgentID
		Req   api.OpenTunnelRequest
		Once  string
	}{key.Agent, req, once})
	if err != nil {
		panic(fmt.Sprintf("rest: encode a request that was just decoded: %v", err))
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

func (a *API) opened(o gate.Opened) api.Tunnel {
	t := o.Tunnel
	return api.Tunnel{
		SessionID: t.Session, TunnelURL: a.cfg.Addresses.URL(t), AdminToken: a.cfg.Gate.AdminToken(t.Session).Reveal(),
		TunnelProtocol: t.Protocol, TargetPort: int(t.Port), ExpiresAt: t.ExpiresAt.UTC(), IdleTimeout: t.IdleTimeout,
		RunningTasks: o.Running, AlternateURLs: notNil(a.cfg.Addresses.Alternates(t)), Warnings: notNil(a.warnings(t)),
		Label: t.Label, App: t.App, HostHeader: t.HostHeader, Access: access.Public(t.Access), IdentityHeader: t.IdentityHeader,
	}
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// lateProbe is a probe that had not answered when the tunnel was opened.
type lateProbe struct {
	answer <-chan wire.Probed // closed when none will come
}

// probe asks the agent what listens on the port, before the tunnel is opened: a
// port that its policy refuses must not even briefly keep tasks out. It waits a
// moment only; what comes later is written to the tunnel then.
func (a *API) probe(ctx context.Context, t *store.TunnelRecord) (*lateProbe, error) {
	if a.cfg.Prober == nil || a.stopping.Err() != nil {
		return nil, nil
	}
	public := ""
	if u, err := url.Parse(a.cfg.Addresses.URL(*t)); err == nil {
		public = u.Host
	}
	answer := make(chan wire.Probed, 1)
	key, ask := t.Key(), wire.Probe{Port: t.Port, Protocol: string(t.Protocol), PublicHost: public}
	a.probes.Go(func() {
		defer close(answer)
		pctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTime)
		defer cancel()
		defer context.AfterFunc(a.stopping, cancel)()
		if got, err := a.cfg.Prober.Probe(pctx, key, ask); err == nil {
			answer <- got
		}
	})
	timer := time.NewTimer(a.cfg.ProbeWait)
	defer timer.Stop()
	select {
	case got, ok := <-answer:
		if !ok {
			return nil, nil
		}
		if !got.Allowed {
			return nil, portNotAllowed(t.Port, got.Detail)
		}
		_ = t.Found(got) // it is not written yet
		return nil, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return &lateProbe{answer}, nil
}

func portNotAllowed(port uint16, detail string) *api.Problem {
	if detail == "" {
		detail = "allow_ports in its configuration says which are"
	}
	return api.Problemf(api.CodePortNotAllowed, "the agent does not allow port %d: %s", port, detail)
}

// follow waits in the background for a probe that was late, and writes or acts on
// what it found.
func (l *lateProbe) follow(a *API, t store.TunnelRecord) {
	if l == nil {
		return
	}
	a.probes.Go(func() {
		got, ok := <-l.answer
		if !ok {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), probeTime)
		defer cancel()
		if !got.Allowed {
			if _, cerr := a.cfg.Gate.Close(ctx, "agent:"+string(t.Agent), t.Key(), []ident.SessionID{t.Session}, false, store.ReasonPort); cerr != nil {
				a.log.Warn("close a tunnel to a port that is not allowed", "session_id", t.Session, "error", cerr)
			}
			return
		}
		if _, err := a.cfg.Store.UpdateTunnel(ctx, t.Session, func(t *store.TunnelRecord) error { return t.Found(got) }); err != nil {
			a.log.Debug("write what a probe found", "session_id", t.Session, "error", err)
		}
	})
}

// open says whether a tunnel carries bytes now.
func open(rec store.AgentRecord, t store.TunnelRecord) bool {
	return rec.Tunnels[t.Session].State == store.TunnelOpen && time.Now().Before(t.ExpiresAt)
}

func (a *API) getTunnels(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	key, err := a.agent(r, p)
	if err != nil {
		return err
	}
	if _, err := query(r); err != nil {
		return err
	}
	rec, _ := a.cfg.Store.Agent(key)
	out := api.TunnelStatus{Sessions: []api.Session{}}
	var live []store.TunnelRecord
	var ids []ident.SessionID
	for _, t := range a.cfg.Store.AgentTunnels(key) { // newest first
		if open(rec, t) && p.MayReachPort(t.Port) {
			live, ids = append(live, t), append(ids, t.Session)
		}
	}
	used := a.cfg.Usage.Totals(r.Context(), ids)
	for _, t := range live {
		out.Sessions = append(out.Sessions, a.session(p, t, used[t.Session]))
	}
	if len(out.Sessions) > 0 {
		out.IsActive, out.SessionID, out.TunnelURL = true, out.Sessions[0].SessionID, out.Sessions[0].TunnelURL
	}
	return send(w, http.StatusOK, out)
}

func (a *API) session(p creds.Principal, t store.TunnelRecord, used usage.Totals) api.Session {
	if used.LastUsed.After(t.LastUsed) { // through another relay
		t.LastUsed = used.LastUsed
	}
	return api.Session{
		SessionID: t.Session, TunnelURL: a.cfg.Addresses.URL(t), TargetPort: int(t.Port), TunnelProtocol: t.Protocol,
		Label: t.Label, OpenedBy: t.OpenedBy, OpenedByName: a.personOf(t.Opened()), Own: a.cfg.Auth.Owns(p, t.Opened()), OpenedAt: t.OpenedAt.UTC(), ExpiresAt: t.ExpiresAt.UTC(), IdleTimeout: t.IdleTimeout,
		LastUsedAt: a.cfg.Gate.LastUsed(t), Viewers: used.Viewers, BytesIn: used.BytesIn, BytesOut: used.BytesOut,
		ClosesBecause: a.cfg.Gate.ClosesBecause(t) + usedBy(used.Names), App: t.App, HostHeader: t.HostHeader, Warnings: a.warnings(t),
		Access: access.Public(t.Access), IdentityHeader: t.IdentityHeader,
	}
}

// personOf is what people call who opened something: the person's name, and the device's
// if it was one; empty: the relay knows no name, or it was a program's credential.
func (a *API) personOf(o store.Opened) string {
	u, ok := a.cfg.Store.User(o.User)
	if !ok || u.Name == "" {
		return ""
	}
	if o.By == "user:"+string(o.User) {
		return u.Name
	}
	if device, ok := strings.CutPrefix(o.By, "dk:"+string(o.User)+"/"); ok {
		return u.Name + " (" + device + ")"
	}
	return ""
}

// usedBy says who is known to use a tunnel now, as the end of a clause.
func usedBy(names []string) string {
	if len(names) > usage.MaxNames {
		names = append(names[:usage.MaxNames:usage.MaxNames], "others")
	}
	switch last := len(names) - 1; last {
	case -1:
		return ""
	case 0:
		return "; in use by " + names[0]
	default:
		return "; in use by " + strings.Join(names[:last], ", ") + " and " + names[last]
	}
}

func (a *API) closeTunnels(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	key, err := a.agent(r, p)
	if err != nil {
		return err
	}
	q, err := query(r, "session_id")
	if err != nil {
		return err
	}
	var ids []ident.SessionID
	text, one := q["session_id"]
	if one {
		id, err := ident.ParseSessionID(text)
		if err != nil {
			return api.NotFound(api.CodeTunnelNotFound)
		}
		ids = append(ids, id)
	}
	all := !one
	if a.someRefused(r, p) {
		// Which are there is asked of the store, lest one that was opened a moment ago is
		// taken for nobody's.
		if err := a.catchUp(r.Context()); err != nil {
			return err
		}
		if ids, err = a.mayClose(callOf(r).route, p, key, ids); err != nil {
			return err
		}
		if all = false; len(ids) == 0 {
			return send(w, http.StatusOK, api.Closed{Closed: []ident.SessionID{}})
		}
	}
	closed, err := a.cfg.Gate.Close(r.Context(), p.Name, key, ids, all, store.ReasonAsked)
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, api.Closed{Closed: notNil(closed)})
}

func (a *API) extendTunnel(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	var req api.ExtendRequest
	if err := decode(w, r, &req, false); err != nil {
		return err
	}
	var by time.Duration
	if req.ExpiresIn != nil {
		if by = req.ExpiresIn.D(); by < time.Second {
			return invalid("expires_in", "a second or more")
		}
	}
	expires, err := a.cfg.Gate.Extend(r.Context(), p.Name, t.Key(), t.Session, by)
	if err != nil {
		return a.orWhy(err, t.Session, p)
	}
	return send(w, http.StatusOK, api.Extended{SessionID: t.Session, ExpiresAt: expires.UTC()})
}

// Of a code that enters a terminal: how long it is good for.
const (
	codeLives    = 5 * time.Minute
	maxCodeLives = 24 * time.Hour
)

func (a *API) openTerminal(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	if p.Ports != "" || t.NoTerminal {
		return api.Problemf(api.CodeScopeRequired, "a terminal is the whole machine, and this tunnel or the credential is for some ports of it only: use another tunnel and credential")
	}
	var req api.TerminalRequest
	if err := decode(w, r, &req, false); err != nil {
		return err
	}
	lives := codeLives
	if req.ExpiresIn != nil {
		if lives = req.ExpiresIn.D(); lives < time.Second || lives > maxCodeLives {
			return invalid("expires_in", "a second to 24h")
		}
	}
	address, until, err := a.cfg.Terminals.Mint(r.Context(), t, p, lives, req.ReadOnly)
	if err != nil {
		return a.orWhy(err, t.Session, p)
	}
	return send(w, http.StatusCreated, api.TerminalCode{TerminalURL: address, CodeExpiresAt: until.UTC()})
}

func (a *API) listViewers(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	if _, err := query(r); err != nil {
		return err
	}
	a.audit(r, p, audit.Record{Event: audit.ViewersListed, Agent: t.Agent, Session: t.Session})
	return send(w, http.StatusOK, api.ViewerList{Viewers: notNil(a.cfg.Usage.Viewers(r.Context(), t.Session))})
}

func (a *API) kickViewer(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	t, err := a.pathTunnel(r, p)
	if err != nil {
		return err
	}
	id, err := ident.ParseViewerID(r.PathValue("viewer_id"))
	if err != nil {
		return api.NotFound(api.CodeViewerNotFound)
	}
	who, found := a.cfg.Usage.Kick(r.Context(), t.Session, id)
	if !found {
		return api.NotFound(api.CodeViewerNotFound)
	}
	detail := string(id)
	if who.User != "" {
		detail += fmt.Sprintf(", user:%s %q", who.User, who.Name)
	}
	a.audit(r, p, audit.Record{Event: audit.ViewerKicked, Agent: t.Agent, Session: t.Session, Detail: detail})
	return sendNothing(w)
}
