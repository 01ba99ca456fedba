package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Knocks lists who waits at a tunnel to be let in, the longest first.
func (c *Client) Knocks(ctx context.Context, session ident.SessionID) (api.KnockList, error) {
	var out api.KnockList
	err := c.do(ctx, call{what: "list who waits at tunnel " + string(session), method: http.MethodGet, path: sessionPath(session) + "/knocks", out: &out})
	return out, err
}

// AnswerKnock lets in who waits, or refuses them.
func (c *Client) AnswerKnock(ctx context.Context, session ident.SessionID, knock string, admit bool) error {
	return c.do(ctx, call{
		what: "answer knock " + knock, method: http.MethodPost, path: sessionPath(session) + "/knocks/" + url.PathEscape(knock),
		in: api.AnswerKnockRequest{Admit: &admit},
	})
}
