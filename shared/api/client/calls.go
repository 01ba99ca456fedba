package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// MaxPerPage is the largest page of a list.
const MaxPerPage = 100

// Agents returns one page of the team's agents; pages count from 1.
func (c *Client) Agents(ctx context.Context, page, perPage int) (api.AgentList, error) {
	var out api.AgentList
	err := c.do(ctx, call{
		what: "list agents", method: http.MethodGet, path: "/agents", out: &out,
		// Not current_page, of which page is an alias: a relay of the last release knows
		// page only, and refuses what it does not know.
		query: url.Values{"page": {strconv.Itoa(page)}, "per_page": {strconv.Itoa(perPage)}},
	})
	return out, err
}

// AllAgents returns all of the team's agents as one page. An agent that moves
// from one page to the next between two calls appears once.
func (c *Client) AllAgents(ctx context.Context) (api.AgentList, error) {
	all := api.AgentList{AgentList: []api.Agent{}}
	seen := map[ident.AgentID]bool{}
	for page := 1; ; page++ {
		l, err := c.Agents(ctx, page, MaxPerPage)
		if err != nil {
			return api.AgentList{}, err
		}
		for _, a := range l.AgentList {
			if !seen[a.AgentID] {
				seen[a.AgentID] = true
				all.AgentList = append(all.AgentList, a)
			}
		}
		if len(l.AgentList) == 0 || page*MaxPerPage >= l.PageMeta.TotalCount {
			n := len(all.AgentList)
			all.PageMeta = api.PageMeta{CurrentPage: 1, PerPage: n, TotalCount: n}
			return all, nil
		}
	}
}

// Agent returns one agent.
func (c *Client) Agent(ctx context.Context, id ident.AgentID) (api.Agent, error) {
	var out api.Agent
	err := c.do(ctx, call{what: "show agent " + string(id), method: http.MethodGet, path: agentPath(id), out: &out})
	return out, err
}

// OpenTunnel opens a tunnel. The key makes a repetition harmless: the relay
// answers the same key of the same caller with the same session. An empty key
// stands for a fresh one. With api.BusyWait the call lasts until the running
// tasks ended, or the context does.
func (c *Client) OpenTunnel(ctx context.Context, id ident.AgentID, req api.OpenTunnelRequest, key string) (api.Tunnel, error) {
	if key == "" {
		key = ident.NewNonce()
	}
	var out api.Tunnel
	err := c.do(ctx, call{
		what: "open tunnel to " + string(id), method: http.MethodPost, path: agentPath(id) + "/tunnel", in: req, out: &out,
		header: http.Header{api.HeaderIdempotencyKey: {key}}, unbound: req.WhenBusy == api.BusyWait,
	})
	return out, err
}

// TunnelStatus lists the agent's open tunnels.
func (c *Client) TunnelStatus(ctx context.Context, id ident.AgentID) (api.TunnelStatus, error) {
	var out api.TunnelStatus
	err := c.do(ctx, call{what: "show tunnels of " + string(id), method: http.MethodGet, path: agentPath(id) + "/tunnel", out: &out})
	return out, err
}

// CloseTunnel closes one tunnel of the agent, or all of them when no session is
// named.
func (c *Client) CloseTunnel(ctx context.Context, id ident.AgentID, session ident.SessionID) (api.Closed, error) {
	k := call{what: "close tunnels of " + string(id), method: http.MethodDelete, path: agentPath(id) + "/tunnel"}
	if session != "" {
		k.what, k.query = "close tunnel "+string(session), url.Values{"session_id": {string(session)}}
	}
	var out api.Closed
	k.out = &out
	err := c.do(ctx, k)
	return out, err
}

// Extend moves the end of a tunnel.
func (c *Client) Extend(ctx context.Context, session ident.SessionID, req api.ExtendRequest) (api.Extended, error) {
	var out api.Extended
	err := c.do(ctx, call{what: "extend tunnel " + string(session), method: http.MethodPost, path: sessionPath(session) + "/extend", in: req, out: &out})
	return out, err
}

// Access says who may use a tunnel.
func (c *Client) Access(ctx context.Context, session ident.SessionID) (api.Access, error) {
	var out api.Access
	err := c.do(ctx, call{what: "ask who may use tunnel " + string(session), method: http.MethodGet, path: sessionPath(session) + "/access", out: &out})
	return out, err
}

// SetAccess changes who may use a tunnel.
func (c *Client) SetAccess(ctx context.Context, session ident.SessionID, req api.AccessRequest) (api.Access, error) {
	var out api.Access
	err := c.do(ctx, call{what: "change who may use tunnel " + string(session), method: http.MethodPut, path: sessionPath(session) + "/access", in: req, out: &out})
	return out, err
}

// OpenTerminal makes an address that opens a tunnel's terminal in a browser, once.
func (c *Client) OpenTerminal(ctx context.Context, session ident.SessionID, req api.TerminalRequest) (api.TerminalCode, error) {
	var out api.TerminalCode
	err := c.do(ctx, call{what: "open a terminal of " + string(session), method: http.MethodPost, path: sessionPath(session) + "/terminal", in: req, out: &out})
	return out, err
}

// Viewers lists who uses a tunnel now.
func (c *Client) Viewers(ctx context.Context, session ident.SessionID) (api.ViewerList, error) {
	var out api.ViewerList
	err := c.do(ctx, call{what: "show viewers of " + string(session), method: http.MethodGet, path: sessionPath(session) + "/viewers", out: &out})
	return out, err
}

// KickViewer ends a viewer's connections.
func (c *Client) KickViewer(ctx context.Context, session ident.SessionID, viewer ident.ViewerID) error {
	return c.do(ctx, call{
		what: "kick viewer " + string(viewer), method: http.MethodDelete,
		path: sessionPath(session) + "/viewers/" + url.PathEscape(string(viewer)),
	})
}

func agentPath(id ident.AgentID) string { return "/agents/" + url.PathEscape(string(id)) }

func sessionPath(id ident.SessionID) string { return "/tunnels/" + url.PathEscape(string(id)) }
