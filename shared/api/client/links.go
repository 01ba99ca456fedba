package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// CreateLink makes a named link of a tunnel. It is never repeated: each call makes
// one.
func (c *Client) CreateLink(ctx context.Context, session ident.SessionID, req api.CreateLinkRequest) (api.NamedLink, error) {
	var out api.NamedLink
	err := c.do(ctx, call{what: "make a link of tunnel " + string(session), method: http.MethodPost, path: sessionPath(session) + "/links", in: req, out: &out, onceOnly: true})
	return out, err
}

// Links lists a tunnel's named links.
func (c *Client) Links(ctx context.Context, session ident.SessionID) (api.NamedLinkList, error) {
	var out api.NamedLinkList
	err := c.do(ctx, call{what: "list links of tunnel " + string(session), method: http.MethodGet, path: sessionPath(session) + "/links", out: &out})
	return out, err
}

// RevokeLink takes a named link back.
func (c *Client) RevokeLink(ctx context.Context, session ident.SessionID, id ident.LinkID) error {
	return c.do(ctx, call{what: "revoke link " + string(id), method: http.MethodDelete, path: sessionPath(session) + "/links/" + url.PathEscape(string(id))})
}

// SetLinkAccess changes who may come by a named link.
func (c *Client) SetLinkAccess(ctx context.Context, session ident.SessionID, id ident.LinkID, req api.AccessRequest) (api.NamedLink, error) {
	var out api.NamedLink
	err := c.do(ctx, call{what: "change who may come by link " + string(id), method: http.MethodPut, path: sessionPath(session) + "/links/" + url.PathEscape(string(id)) + "/access", in: req, out: &out})
	return out, err
}
