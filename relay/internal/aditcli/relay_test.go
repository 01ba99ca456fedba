package aditcli_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/wsconn"
)

// relayToken is the one token that the relay of a story accepts.
const relayToken = "sk-story2222222222222222222222222222222222222"

// relay plays an Adit relay: its interface with three machines, and its tunnels.
// Behind every tcp tunnel is an app that answers a connection's bytes in upper
// case once its client has said all; port 9 is closed.
type relay struct {
	tb     testing.TB
	srv    *httptest.Server
	key    ident.ClusterKey
	broken atomic.Int32 // so many tunnel dials are answered 503
	feeds  atomic.Int32
	ctx    context.Context

	mu       sync.Mutex
	pairing  string               // "nobody" confirms in time; "slow": the code lasts; "old": the relay knows no pairing
	polls    int                  // of the program that waits
	asked    api.PairStartRequest // what the last one asked for
	devices  map[string]bool      // keys of devices that were let in
	sessions []api.Session        // newest first
	agents   map[ident.SessionID]ident.AgentID
	once     map[string]ident.SessionID
	answered map[string]bool // knocks, and whether they were admitted
}

func newRelay(tb testing.TB) *relay {
	ctx, cancel := context.WithCancel(tb.Context())
	r := &relay{tb: tb, ctx: ctx, agents: map[ident.SessionID]ident.AgentID{}, once: map[string]ident.SessionID{}, devices: map[string]bool{}, answered: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /api/v1/agents", r.listAgents)
	mux.HandleFunc("GET /api/v1/agents/watch", r.watch)
	mux.HandleFunc("GET /api/v1/agents/{id}", r.showAgent)
	mux.HandleFunc("POST /api/v1/agents/{id}/tunnel", r.openTunnel)
	mux.HandleFunc("GET /api/v1/agents/{id}/tunnel", r.status)
	mux.HandleFunc("DELETE /api/v1/agents/{id}/tunnel", r.closeTunnel)
	mux.HandleFunc("POST /api/v1/tunnels/{session}/extend", r.extend)
	mux.HandleFunc("GET /api/v1/tunnels/{session}/viewers", r.viewers)
	mux.HandleFunc("GET /api/v1/tunnels/{session}/access", r.access)
	mux.HandleFunc("PUT /api/v1/tunnels/{session}/access", r.access)
	mux.HandleFunc("GET /api/v1/tunnels/{session}/knocks", r.knocks)
	mux.HandleFunc("POST /api/v1/tunnels/{session}/knocks/{knock}", r.answerKnock)
	mux.HandleFunc("DELETE /api/v1/tunnels/{session}/viewers/{viewer}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("POST /api/v1/desktop/pair/start", r.startPairing)
	mux.HandleFunc("POST /api/v1/desktop/pair/poll", r.pollPairing)
	mux.HandleFunc("GET /api/v1/me", r.me)
	mux.HandleFunc("POST /api/v1/auth/device/revoke", r.revokeDevice)
	people(mux)
	mux.HandleFunc("/tunnel/{segment}/", r.tunnel)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, q *http.Request) { // a host of the tunnel's own
		label, _, _ := strings.Cut(q.Host, ".")
		q.SetPathValue("segment", label)
		r.tunnel(w, q)
	})
	r.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.HasPrefix(q.URL.Path, "/api/") && !r.knows(q) {
			refuse(w, api.CodeUnauthenticated, "no such credential")
			return
		}
		mux.ServeHTTP(w, q)
	}))
	r.srv.Start()
	tb.Cleanup(func() {
		cancel()
		r.srv.CloseClientConnections()
		r.srv.Close()
	})
	return r
}

// knows says whether a call is let in: with the token of the stories, as a device that was
// paired, or to be paired.
func (r *relay) knows(q *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	token, _ := strings.CutPrefix(q.Header.Get("Authorization"), "Bearer ")
	return token == relayToken || r.devices[token] || r.pairing != "old" && strings.HasPrefix(q.URL.Path, "/api/v1/desktop/pair/")
}

func (r *relay) startPairing(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.polls, r.asked = 0, api.PairStartRequest{}
	if err := json.NewDecoder(q.Body).Decode(&r.asked); err != nil {
		refuse(w, api.CodeInvalidBody, err.Error())
		return
	}
	out := api.PairStarted{DeviceCode: "pc-story", UserCode: "AB7K-PNQ3", VerificationURI: r.url() + "/desktop/pair?user_code=AB7K-PNQ3", ExpiresIn: 300, Interval: 1}
	if r.pairing == "nobody" {
		out.ExpiresIn = 2
	}
	write(w, 200, out)
}

// pollPairing lets the program in at its fourth poll. The second one fails on the way, the
// third comes to a relay of an earlier release.
func (r *relay) pollPairing(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch r.polls++; {
	case r.pairing == "nobody" || r.pairing == "slow" || r.polls == 1:
		write(w, 200, api.PairPolled{Status: "pending"})
	case r.polls == 2:
		api.NewProblem(api.CodeStoreUnavailable, "no quorum").WithRetry(time.Second).Write(w, "req-story")
	case r.polls == 3:
		refuse(w, api.CodeUnauthenticated, "no secret")
	default:
		key := ident.NewSecret(ident.PrefixDevice).Reveal()
		r.devices[key] = true
		write(w, 200, api.PairPolled{Status: "approved", RawKey: key, TeamID: storyTeam, TeamName: "vision", UserName: "Alice"})
	}
}

const storyTeam = ident.TeamID("0b1e6f2c-3a44-4f6e-9d7a-2b1c3d4e5f60")

func (r *relay) me(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pairing == "old" {
		refuse(w, api.CodeNotFound, "there is no such route")
		return
	}
	write(w, 200, api.Me{
		Kind: "device", Name: "dk:adit:alice/laptop", UserID: "adit:alice", UserName: "Alice", Email: "alice@example.com", TeamID: storyTeam, Role: api.RoleMember,
		Teams: []api.MyTeam{{TeamID: storyTeam, TeamName: "vision", Role: api.RoleMember}, {TeamID: "0b1e6f2c-3a44-4f6e-9d7a-2b1c3d4e5f61", TeamName: "speech\x1b[2J", Role: api.RoleViewer}},
	})
}

func (r *relay) revokeDevice(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pairing == "old" {
		refuse(w, api.CodeNotFound, "there is no such route")
		return
	}
	token, _ := strings.CutPrefix(q.Header.Get("Authorization"), "Bearer ")
	delete(r.devices, token)
	out := api.Revoked{Credentials: 1, Tunnels: len(r.sessions)}
	if q.URL.Query().Get("keep_tunnels") == "true" {
		out.Tunnels = 0
	}
	write(w, 200, out)
}

func (r *relay) url() string { return r.srv.URL }

func refuse(w http.ResponseWriter, code api.Code, detail string) {
	api.NewProblem(code, detail).Write(w, "req-story")
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (r *relay) machines() []api.Agent {
	pct := 42.0
	return []api.Agent{
		{
			AgentID: "gpu-1", AgentStatus: api.StatusIdle, AgentLabels: api.Labels{"amd64", "gpu", "pool=render"}, LastHeartbeat: time.Now(), RunningTasks: []ident.TaskID{},
			Tool: "comfyui", ToolVersion: "0.3.40", LinkRTTMillis: 12.5, LinkCongestion: "bbr",
			SystemStats: &api.SystemStats{GPUDevices: []api.GPUDevice{{DeviceName: "RTX 4090", VRAMTotal: 24 << 30, VRAMFree: 20 << 30}}},
		},
		{AgentID: "busy", AgentStatus: api.StatusBusy, LastHeartbeat: time.Now(), RunningCount: 1, RunningTasks: []ident.TaskID{"render"}, CurrentTaskID: "render"},
		// What a machine says of itself must not steer the terminal.
		{AgentID: "odd", AgentStatus: api.StatusSyncing, LastHeartbeat: time.Now(), SyncPhase: "models\x1b[2J\u009b2J\u202e", SyncPercent: &pct},
	}
}

func (r *relay) listAgents(w http.ResponseWriter, _ *http.Request) {
	m := r.machines()
	write(w, 200, api.AgentList{AgentList: m, PageMeta: api.PageMeta{CurrentPage: 1, PerPage: 100, TotalCount: len(m)}})
}

func (r *relay) find(w http.ResponseWriter, q *http.Request) *api.Agent {
	for _, m := range r.machines() {
		if string(m.AgentID) == q.PathValue("id") {
			return &m
		}
	}
	refuse(w, api.CodeAgentNotFound, "no such agent")
	return nil
}

func (r *relay) showAgent(w http.ResponseWriter, q *http.Request) {
	if m := r.find(w, q); m != nil {
		write(w, 200, m)
	}
}

// watch sends some events and ends; the second connection is refused for good.
func (r *relay) watch(w http.ResponseWriter, _ *http.Request) {
	if r.feeds.Add(1) > 1 {
		refuse(w, api.CodeUnauthenticated, "revoked meanwhile")
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	m := r.machines()
	m[0].AgentStatus, m[0].Tunnels = api.StatusTunnel, 1
	for i, ev := range []api.Event{
		{Kind: api.EventSnapshot, Agents: r.machines()},
		{Kind: api.EventAgentChanged, AgentID: "gpu-1", Agent: &m[0]},
		{Kind: api.EventTunnelClosed, AgentID: "gpu-1", Session: "00112233445566778899aabbccddeeff", Detail: "idle"},
		{Kind: api.EventAgentGone, AgentID: "busy"},
	} {
		b, _ := json.Marshal(ev)
		_, _ = fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", i, ev.Kind, b)
	}
}

func (r *relay) openTunnel(w http.ResponseWriter, q *http.Request) {
	var req api.OpenTunnelRequest
	if err := json.NewDecoder(q.Body).Decode(&req); err != nil {
		refuse(w, api.CodeInvalidBody, err.Error())
		return
	}
	if q.PathValue("id") == "away" {
		api.NewProblem(api.CodeAgentOffline, "agent away is not connected").WithStatus(http.StatusConflict).WithRetry(5*time.Second).Write(w, "req-story")
		return
	}
	m := r.find(w, q)
	if m == nil {
		return
	}
	port, protocol, expires := 8188, req.TunnelProtocol, time.Now().Add(24*time.Hour)
	if req.TargetPort != nil {
		port = *req.TargetPort
	}
	if req.ExpiresIn != nil {
		expires = time.Now().Add(req.ExpiresIn.D())
	}
	switch {
	case m.AgentStatus == api.StatusBusy && req.WhenBusy == api.BusyReject:
		refuse(w, api.CodeAgentBusy, "a task is running: render")
		return
	case port == 23:
		refuse(w, api.CodePortNotAllowed, "port 23 is not in allow_ports")
		return
	case protocol == "":
		protocol = api.ProtocolHTTP
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	id := ident.NewSessionID()
	r.agents[id] = m.AgentID
	access := api.Access{Access: req.Access, People: req.People, From: req.From, ReadOnly: req.ReadOnly}
	if access.Access == "" {
		access.Access = api.AccessAnyone
	}
	if req.Access == api.AccessPIN && req.PIN != "correct horse" {
		refuse(w, api.CodeOutOfRange, "another PIN was expected")
		return
	}
	s := api.Session{
		SessionID: id, TunnelURL: r.address(id, protocol), TargetPort: port, TunnelProtocol: protocol, Label: req.Label, OpenedBy: "sk:story", OpenedByName: map[int]string{5432: "Alice (laptop)"}[port],
		OpenedAt: time.Now(), ExpiresAt: expires, IdleTimeout: api.Duration(30 * time.Minute), LastUsedAt: time.Now(), ClosesBecause: "expires", Access: access,
	}
	r.sessions = append([]api.Session{s}, r.sessions...)
	t := api.Tunnel{
		SessionID: id, TunnelURL: s.TunnelURL, AdminToken: "adm-story", TunnelProtocol: protocol, TargetPort: port, ExpiresAt: expires,
		IdleTimeout: s.IdleTimeout, RunningTasks: m.RunningCount, AlternateURLs: []string{}, Warnings: []string{}, Access: access,
	}
	if port == 8888 {
		t.Warnings = append(t.Warnings, "Jupyter needs the subdomain form")
	}
	write(w, 201, t)
}

func (r *relay) address(id ident.SessionID, p api.Protocol) string {
	base := r.srv.URL
	if p == api.ProtocolTCP {
		base = "ws" + strings.TrimPrefix(base, "http")
	}
	return base + "/tunnel/" + string(r.key.Segment(id)) + "/"
}

func (r *relay) status(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := api.TunnelStatus{Sessions: []api.Session{}}
	for _, s := range r.sessions {
		if string(r.agents[s.SessionID]) == q.PathValue("id") {
			st.Sessions = append(st.Sessions, s)
		}
	}
	if len(st.Sessions) > 0 {
		st.IsActive, st.SessionID, st.TunnelURL = true, st.Sessions[0].SessionID, st.Sessions[0].TunnelURL
	}
	write(w, 200, st)
}

func (r *relay) closeTunnel(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := q.URL.Query().Get("session_id")
	closed := []ident.SessionID{}
	r.sessions = slices.DeleteFunc(r.sessions, func(s api.Session) bool {
		hit := string(r.agents[s.SessionID]) == q.PathValue("id") && (one == "" || one == string(s.SessionID))
		if hit {
			closed = append(closed, s.SessionID)
		}
		return hit
	})
	if one != "" && len(closed) == 0 {
		refuse(w, api.CodeTunnelNotFound, "no such tunnel")
		return
	}
	write(w, 200, api.Closed{Closed: closed})
}

func (r *relay) extend(w http.ResponseWriter, q *http.Request) {
	write(w, 200, api.Extended{SessionID: ident.SessionID(q.PathValue("session")), ExpiresAt: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)})
}

func (r *relay) viewers(w http.ResponseWriter, _ *http.Request) {
	write(w, 200, api.ViewerList{Viewers: []api.Viewer{{
		ViewerID: "9a1b2c3d4e5f6071", RemoteAddr: "192.0.2.7", UserAgent: "evil\x1b]0;title\a", Since: time.Now(), LastSeen: time.Now(), Connections: 2, BytesOut: 3 << 20,
	}}})
}

// knocks are of two who wait at each tunnel until they are answered. What they call themselves
// must not steer the terminal.
func (r *relay) knocks(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := api.KnockList{Knocks: []api.Knock{}}
	for id, name := range map[string]string{"k1": "Alice", "k2": "Mallory\x1b]0;title\a"} {
		if _, ok := r.answered[id]; !ok {
			out.Knocks = append(out.Knocks, api.Knock{
				KnockID: id, SessionID: ident.SessionID(q.PathValue("session")), Name: name, RemoteAddr: "192.0.2.7", KnockedAt: time.Now(), ExpiresAt: time.Now().Add(10 * time.Minute),
			})
		}
	}
	write(w, 200, out)
}

func (r *relay) answerKnock(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var req api.AnswerKnockRequest
	id := q.PathValue("knock")
	_, done := r.answered[id]
	if err := json.NewDecoder(q.Body).Decode(&req); err != nil || req.Admit == nil || done || id != "k1" && id != "k2" {
		refuse(w, api.CodeKnockNotFound, "they do not wait any more, or somebody answered them already")
		return
	}
	r.answered[id] = *req.Admit
	w.WriteHeader(204)
}

// access shows and changes who may use a tunnel; a PIN is kept where it cannot be read.
func (r *relay) access(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.sessions {
		s := &r.sessions[i]
		if string(s.SessionID) != q.PathValue("session") {
			continue
		}
		if q.Method == http.MethodPut {
			var req api.AccessRequest
			if err := json.NewDecoder(q.Body).Decode(&req); err != nil {
				refuse(w, api.CodeInvalidBody, err.Error())
				return
			}
			if req.Access == api.AccessPIN && req.PIN != "" && req.PIN != "correct horse" {
				refuse(w, api.CodeOutOfRange, "another PIN was expected")
				return
			}
			s.Access = api.Access{Access: req.Access, People: req.People, From: req.From, ReadOnly: req.ReadOnly}
		}
		write(w, 200, s.Access)
		return
	}
	refuse(w, api.CodeTunnelNotFound, "no such tunnel")
}

func (r *relay) closeAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions = nil
}

func (r *relay) open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions)
}

func (r *relay) newest(port int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		if s.TargetPort == port {
			return s.TunnelURL
		}
	}
	return ""
}

// tunnel is the path form: a page for http, a WebSocket for tcp.
func (r *relay) tunnel(w http.ResponseWriter, q *http.Request) {
	if r.broken.Add(-1) >= 0 {
		api.NewProblem(api.CodeAgentOffline, "the machine is away").Write(w, "req-story")
		return
	}
	id, ok := r.key.Verify(ident.Segment(q.PathValue("segment")))
	r.mu.Lock()
	at := slices.IndexFunc(r.sessions, func(s api.Session) bool { return s.SessionID == id })
	var s api.Session
	if at >= 0 {
		s = r.sessions[at]
	}
	r.mu.Unlock()
	shown := q.Header.Get(api.HeaderAuthorization)
	switch {
	case shown != "" && !strings.HasPrefix(q.Host, "127.0.0.1:"):
		r.tb.Errorf("the login was shown to %s", q.Host)
	case !ok || at < 0:
		refuse(w, api.CodeTunnelNotFound, "no such tunnel")
		return
	case s.Access.Access == api.AccessTeam && shown != "Bearer "+relayToken:
		refuse(w, api.CodeAccessRequired, "the tunnel is for its team")
		return
	case s.TargetPort == 9:
		refuse(w, api.CodeAppRefused, "nothing listens on port "+strconv.Itoa(s.TargetPort))
		return
	case s.TargetPort == 6006 && q.URL.Path != "/": // path_form: off
		http.Redirect(w, q, "http://"+q.PathValue("segment")+".localhost:"+strings.TrimPrefix(q.Host, "127.0.0.1:")+"/", http.StatusPermanentRedirect)
	case s.TunnelProtocol == api.ProtocolHTTP:
		_, _ = io.WriteString(w, "a page")
		return
	}
	c, err := websocket.Accept(w, q, nil)
	if err != nil {
		return
	}
	near, far := tcpPair(r.ctx)
	var app sync.WaitGroup
	defer app.Wait()
	app.Go(func() {
		defer func() { _ = far.Close() }()
		if s.TargetPort == 2200 {
			_, _ = io.WriteString(far, "SSH-2.0-story\r\n")
		}
		b, _ := io.ReadAll(far)
		_, _ = io.WriteString(far, strings.ToUpper(string(b)))
	})
	_, _ = splice.Both(r.ctx, near, wsconn.New(c, wsconn.Options{}), splice.Options{})
}

func tcpPair(ctx context.Context) (*net.TCPConn, *net.TCPConn) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer func() { _ = ln.Close() }()
	a, err := new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	if err != nil {
		panic(err)
	}
	b, err := ln.Accept()
	if err != nil {
		panic(err)
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}
