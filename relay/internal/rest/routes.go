package rest

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// route is one line of the table: what is asked, and who may. A caller must be of a kind
// that it admits, must have the role in the team, and, when narrowed, one of the scopes.
type route struct {
	method    string
	path      string       // below api.Base, a pattern of http.ServeMux
	admits    []creds.Kind // nobody else
	role      api.Role     // the least; of agents and admin tokens none is asked
	others    api.Role     // the least for what somebody else opened; empty: as role
	scopes    []api.Scope  // any one of them
	operation string       // its name in the description and in metrics
	serve     func(w http.ResponseWriter, r *http.Request, p creds.Principal) error
	public    bool // no secret is needed
	anyTeam   bool // a person may leave X-Team-ID out
	long      bool // may take as long as it likes
	gated     bool // the gate records its refusals
}

func (rt route) admitsKind(k creds.Kind) bool { return slices.Contains(rt.admits, k) }

var (
	team      = []creds.Kind{creds.KindUser, creds.KindDevice, creds.KindIntegration}
	people    = []creds.Kind{creds.KindUser, creds.KindDevice}
	signedIn  = []creds.Kind{creds.KindUser} // in person: no device lets another one in
	devices   = []creds.Kind{creds.KindDevice}
	teamAdmin = append(slices.Clone(team), kindTunnelAdmin)
	teamAgent = append(slices.Clone(team), creds.KindAgent)
)

// The scopes of routes: reading what one acts on belongs to each.
var (
	everyScope = api.Scopes // says only who calls
	anyScope   = []api.Scope{api.ScopeRead, api.ScopeTunnels, api.ScopeTasks, api.ScopeLinks}
	ofTunnels  = []api.Scope{api.ScopeTunnels}
	ofTasks    = []api.Scope{api.ScopeTasks}
	ofLinks    = []api.Scope{api.ScopeLinks}
	seeTunnels = []api.Scope{api.ScopeRead, api.ScopeTunnels, api.ScopeLinks}
	seeLinks   = []api.Scope{api.ScopeRead, api.ScopeLinks}
	noScope    []api.Scope // not for whoever is narrowed
)

// table is the whole interface.
func (a *API) table() []route {
	const viewer, member, admin, owner = api.RoleViewer, api.RoleMember, api.RoleAdmin, api.RoleOwner
	return []route{
		{method: "GET", path: "/openapi.json", operation: "getOpenAPI", serve: a.openAPI, public: true},

		{method: "GET", path: "/me", admits: team, scopes: everyScope, operation: "getMe", serve: a.me, anyTeam: true},

		{method: "GET", path: "/agents", admits: team, role: viewer, scopes: anyScope, operation: "listAgents", serve: a.listAgents},
		{method: "GET", path: "/agents/watch", admits: team, role: viewer, scopes: anyScope, operation: "watchAgents", serve: a.watchAgents, long: true},
		{method: "GET", path: "/agents/{agent_id}", admits: team, role: viewer, scopes: anyScope, operation: "getAgent", serve: a.getAgent},

		{method: "POST", path: "/agents/{agent_id}/tunnel", admits: team, role: member, scopes: ofTunnels, operation: "openTunnel", serve: a.openTunnel, long: true, gated: true},
		{method: "GET", path: "/agents/{agent_id}/tunnel", admits: team, role: viewer, scopes: seeTunnels, operation: "getTunnels", serve: a.getTunnels},
		{method: "DELETE", path: "/agents/{agent_id}/tunnel", admits: team, role: member, others: admin, scopes: ofTunnels, operation: "closeTunnels", serve: a.closeTunnels},

		{method: "POST", path: "/tunnels/{session_id}/extend", admits: teamAdmin, role: member, others: admin, scopes: ofTunnels, operation: "extendTunnel", serve: a.extendTunnel},
		{method: "GET", path: "/tunnels/{session_id}/access", admits: teamAdmin, role: viewer, scopes: seeTunnels, operation: "getTunnelAccess", serve: a.getTunnelAccess},
		{method: "PUT", path: "/tunnels/{session_id}/access", admits: teamAdmin, role: member, others: admin, scopes: ofTunnels, operation: "setTunnelAccess", serve: a.setTunnelAccess},
		{method: "POST", path: "/tunnels/{session_id}/terminal", admits: teamAdmin, role: member, others: admin, scopes: ofTunnels, operation: "openTerminal", serve: a.openTerminal},
		{method: "GET", path: "/tunnels/{session_id}/viewers", admits: teamAdmin, role: viewer, scopes: seeTunnels, operation: "listViewers", serve: a.listViewers},
		{method: "DELETE", path: "/tunnels/{session_id}/viewers/{viewer_id}", admits: teamAdmin, role: member, others: admin, scopes: ofTunnels, operation: "kickViewer", serve: a.kickViewer},

		{method: "GET", path: "/tunnels/{session_id}/knocks", admits: teamAdmin, role: viewer, scopes: seeTunnels, operation: "listKnocks", serve: a.listKnocks},
		{method: "POST", path: "/tunnels/{session_id}/knocks/{knock_id}", admits: teamAdmin, role: member, others: admin, scopes: ofTunnels, operation: "answerKnock", serve: a.answerKnock},

		{method: "POST", path: "/tunnels/{session_id}/links", admits: teamAdmin, role: member, others: admin, scopes: ofLinks, operation: "createLink", serve: a.createLink},
		{method: "GET", path: "/tunnels/{session_id}/links", admits: teamAdmin, role: viewer, scopes: seeLinks, operation: "listLinks", serve: a.listLinks},
		{method: "PUT", path: "/tunnels/{session_id}/links/{link_id}/access", admits: teamAdmin, role: member, others: admin, scopes: ofLinks, operation: "setLinkAccess", serve: a.setLinkAccess},
		{method: "DELETE", path: "/tunnels/{session_id}/links/{link_id}", admits: teamAdmin, role: member, others: admin, scopes: ofLinks, operation: "revokeLink", serve: a.revokeLink},

		{method: "POST", path: "/agents/{agent_id}/tasks", admits: teamAgent, role: member, scopes: ofTasks, operation: "admitTask", serve: a.admitTask, gated: true},
		{method: "PUT", path: "/agents/{agent_id}/tasks/{task_id}", admits: teamAgent, role: member, scopes: ofTasks, operation: "renewTask", serve: a.renewTask},
		{method: "DELETE", path: "/agents/{agent_id}/tasks/{task_id}", admits: teamAgent, role: member, scopes: ofTasks, operation: "releaseTask", serve: a.releaseTask},

		{method: "POST", path: "/credentials", admits: people, role: admin, scopes: noScope, operation: "createCredential", serve: a.createCredential},
		{method: "GET", path: "/credentials", admits: people, role: admin, scopes: noScope, operation: "listCredentials", serve: a.listCredentials},
		{method: "DELETE", path: "/credentials/{credential_id}", admits: people, role: admin, scopes: noScope, operation: "revokeCredential", serve: a.revokeCredential},

		{method: "POST", path: "/desktop/pair/start", operation: "startPairing", serve: a.startPairing, public: true},
		{method: "POST", path: "/desktop/pair/poll", operation: "pollPairing", serve: a.pollPairing, public: true},
		{method: "POST", path: "/desktop/pair/show", admits: signedIn, role: member, scopes: noScope, operation: "showPairing", serve: a.showPairing},
		{method: "POST", path: "/desktop/pair/confirm", admits: signedIn, role: member, scopes: noScope, operation: "confirmPairing", serve: a.confirmPairing},
		{method: "POST", path: "/auth/device/revoke", admits: devices, role: viewer, scopes: noScope, operation: "revokeDevice", serve: a.revokeDevice},
		{method: "GET", path: "/members", admits: people, role: member, scopes: noScope, operation: "listMembers", serve: a.listMembers},
		{method: "PATCH", path: "/members/{user_id}", admits: people, role: owner, scopes: noScope, operation: "changeMember", serve: a.changeMember},
		{method: "DELETE", path: "/members/{user_id}", admits: people, role: viewer, others: admin, scopes: noScope, operation: "removeMember", serve: a.removeMember},

		{method: "POST", path: "/invites", admits: people, role: admin, scopes: noScope, operation: "createInvite", serve: a.createInvite},
		{method: "GET", path: "/invites", admits: people, role: admin, scopes: noScope, operation: "listInvites", serve: a.listInvites},
		{method: "DELETE", path: "/invites/{invite_id}", admits: people, role: admin, scopes: noScope, operation: "revokeInvite", serve: a.revokeInvite},

		// A device does not decide by what else its person gets in.
		{method: "GET", path: "/devices", admits: people, role: viewer, scopes: noScope, operation: "listDevices", serve: a.listDevices},
		{method: "DELETE", path: "/devices/{device_id}", admits: signedIn, role: viewer, scopes: noScope, operation: "forgetDevice", serve: a.forgetDevice},
	}
}

// Routes returns method and path of every route, for tests and documentation.
func (a *API) Routes() [][2]string {
	var out [][2]string
	for _, rt := range a.table() {
		out = append(out, [2]string{rt.method, api.Base + rt.path})
	}
	return out
}

// agent finds the agent that the path names, in the caller's team: one of another
// team is not there. A miss is confirmed, since the caller may be faster than the
// store's watch.
func (a *API) agent(r *http.Request, p creds.Principal) (ident.AgentKey, error) {
	id, err := ident.ParseAgentID(r.PathValue("agent_id"))
	if err != nil {
		return ident.AgentKey{}, api.NotFound(api.CodeAgentNotFound)
	}
	key := ident.AgentKey{Team: p.Team, Agent: id}
	if !p.MayReach(id) {
		return key, api.NotFound(api.CodeAgentNotFound)
	}
	if _, ok := a.cfg.Store.Agent(key); ok {
		return key, nil
	}
	if err := a.catchUp(r.Context()); err != nil {
		return key, err
	}
	if _, ok := a.cfg.Store.Agent(key); ok {
		return key, nil
	}
	return key, api.NotFound(api.CodeAgentNotFound)
}

// tunnel finds an open tunnel by its id.
func (a *API) tunnel(ctx context.Context, id ident.SessionID) (store.TunnelRecord, error) {
	t, ok := a.cfg.Store.Tunnel(id)
	if !ok {
		if err := a.catchUp(ctx); err != nil {
			return t, err
		}
		if t, ok = a.cfg.Store.Tunnel(id); !ok {
			return t, api.NotFound(api.CodeTunnelNotFound)
		}
	}
	rec, _ := a.cfg.Store.Agent(t.Key())
	if !open(rec, t) {
		return t, api.NotFound(api.CodeTunnelNotFound)
	}
	return t, nil
}

// pathTunnel is tunnel for the one that the path names, in the caller's team, as far as
// the caller may do what the route does to it.
func (a *API) pathTunnel(r *http.Request, p creds.Principal) (store.TunnelRecord, error) {
	id, err := ident.ParseSessionID(r.PathValue("session_id"))
	if err != nil {
		return store.TunnelRecord{}, api.NotFound(api.CodeTunnelNotFound)
	}
	t, err := a.tunnel(r.Context(), id)
	if err != nil {
		return t, a.orWhy(err, id, p)
	}
	if t.Team != p.Team || !p.MayReach(t.Agent) {
		return store.TunnelRecord{}, api.NotFound(api.CodeTunnelNotFound)
	}
	if refused := refusesPort(p, t.Port); refused != nil {
		return store.TunnelRecord{}, refused
	}
	if refused := a.refusesOthers(callOf(r).route, p, t); refused != nil {
		return store.TunnelRecord{}, refused
	}
	return t, nil
}

// orWhy turns the answer that there is no such tunnel into why it is over, for a
// caller of the team that had it.
func (a *API) orWhy(err error, id ident.SessionID, p creds.Principal) error {
	if problem, ok := errors.AsType[*api.Problem](err); !ok || problem.Code != api.CodeTunnelNotFound {
		return err
	}
	if e, ok := a.cfg.Gate.Why(id); ok && e.Key.Team == p.Team && p.MayReach(e.Key.Agent) {
		return api.NewProblem(api.CodeTunnelNotFound, e.String())
	}
	return err
}

func (a *API) catchUp(ctx context.Context) error {
	if err := a.cfg.Store.CatchUp(ctx); err != nil {
		return unavailable(err)
	}
	return nil
}

func unavailable(err error) *api.Problem {
	return api.StoreUnavailable("the relay's store does not answer; it cannot be known whether this exists", err)
}

// query returns one parameter; unknown ones, and one given twice, are refused so
// that a misspelt filter does not silently select everything.
func query(r *http.Request, known ...string) (map[string]string, error) {
	out := map[string]string{}
	for name, values := range r.URL.Query() {
		if !slices.Contains(known, name) {
			return nil, api.Problemf(api.CodeUnknownParameter, "%s: there is no such query parameter", quote(name))
		}
		if len(values) > 1 {
			return nil, api.Problemf(api.CodeInvalidParameter, "%s: given more than once", quote(name))
		}
		out[name] = values[0]
	}
	return out, nil
}

const (
	defaultPerPage = 20
	maxPerPage     = 100
)

// paging reads which page of a list is asked for. page is an alias of current_page,
// from before the contract was published; clients of then go on using it.
func paging(r *http.Request) (page, perPage int, err error) {
	q, err := query(r, "current_page", "page", "per_page")
	if err != nil {
		return 0, 0, err
	}
	if page, err = number(q, "current_page", 1, 0); err != nil {
		return 0, 0, err
	}
	alias, err := number(q, "page", page, 0)
	if err != nil {
		return 0, 0, err
	}
	if _, both := q["current_page"]; both && alias != page {
		return 0, 0, api.Problemf(api.CodeInvalidParameter, "current_page is %d and page, its alias, is %d: give one of the two", page, alias)
	}
	perPage, err = number(q, "per_page", defaultPerPage, maxPerPage)
	return alias, perPage, err
}

// number reads a parameter between 1 and limit (0: no limit).
func number(q map[string]string, name string, def, limit int) (int, error) {
	text, ok := q[name]
	if !ok {
		return def, nil
	}
	n, err := strconv.Atoi(text)
	switch {
	case err != nil || n < 1:
		return 0, invalid(name, "a whole number, 1 or more")
	case limit > 0 && n > limit:
		return 0, invalid(name, "at most %d", limit)
	}
	return n, nil
}

// flag reads a parameter that is true or false, and false when it is absent.
func flag(q map[string]string, name string) (bool, error) {
	switch q[name] {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	}
	return false, invalid(name, "true or false")
}

// checkText refuses text that is too long for people or that terminals obey.
func checkText(field, s string, limit int) error {
	if utf8.RuneCountInString(s) > limit {
		return invalid(field, "at most %d characters", limit)
	}
	for _, c := range s {
		if !unicode.IsPrint(c) {
			return invalid(field, "printable characters only")
		}
	}
	return nil
}
