package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
)

// ErrNotLetIn is wrapped when a pairing is over and nobody let the program in.
var ErrNotLetIn = errors.New("nobody confirmed the code in time")

// ErrNoPairing is wrapped when the relay knows no pairing, as releases before it.
var ErrNoPairing = errors.New("the relay knows no pairing: it is of an earlier release")

// Bounds of what a relay may say of the waiting.
const (
	pollFastest = time.Second
	pollSlowest = 30 * time.Second
	pollLongest = time.Hour
)

// Pair asks to be let in without a secret, has the code shown, and waits until somebody
// confirmed it. A relay that does not answer for a while is asked again.
func (c *Client) Pair(ctx context.Context, req api.PairStartRequest, show func(api.PairStarted)) (api.PairPolled, error) {
	var started api.PairStarted
	err := c.do(ctx, call{what: "begin pairing", method: http.MethodPost, path: "/desktop/pair/start", in: req, out: &started})
	if noPairing(err) {
		return api.PairPolled{}, fmt.Errorf("begin pairing: %w", ErrNoPairing)
	}
	if err != nil {
		return api.PairPolled{}, err
	}
	show(started)
	seconds := func(n int) time.Duration { return time.Duration(n) * time.Second }
	ctx, cancel := context.WithTimeoutCause(ctx, min(seconds(started.ExpiresIn), pollLongest), ErrNotLetIn)
	defer cancel()
	tick := time.NewTicker(min(max(seconds(started.Interval), pollFastest), pollSlowest))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return api.PairPolled{}, fmt.Errorf("wait to be let in: %w", context.Cause(ctx))
		case <-tick.C:
		}
		var out api.PairPolled
		// Once only: the answer that holds the keys is not given a second time.
		err := c.do(ctx, call{what: "wait to be let in", method: http.MethodPost, path: "/desktop/pair/poll", in: api.PairPollRequest{DeviceCode: started.DeviceCode}, out: &out, onceOnly: true})
		switch p, ok := errors.AsType[*api.Problem](err); {
		case err == nil && out.Status == "approved":
			return out, nil
		case err == nil, ctx.Err() == nil && (Temporary(err) || noPairing(err)): // a pool may be half upgraded
		case ok && p.Code == api.CodePairingNotFound:
			return api.PairPolled{}, fmt.Errorf("wait to be let in: %w (%w)", ErrNotLetIn, p)
		case ctx.Err() == nil:
			return api.PairPolled{}, err
		}
	}
}

// noPairing says whether an answer is that of a relay which has no such routes: it wants a
// secret before it says so.
func noPairing(err error) bool {
	p, ok := errors.AsType[*api.Problem](err)
	return ok && (p.Code == api.CodeUnauthenticated || p.Code == api.CodeNotFound)
}

// Me says who the token's owner is, in the team that the client was made for.
func (c *Client) Me(ctx context.Context) (api.Me, error) {
	var out api.Me
	err := c.do(ctx, call{what: "ask who this is", method: http.MethodGet, path: "/me", out: &out})
	return out, err
}

// RevokeDevice ends the device whose token this is, with what it opened, unless tunnels
// are kept.
func (c *Client) RevokeDevice(ctx context.Context, keepTunnels bool) (api.Revoked, error) {
	var out api.Revoked
	err := c.do(ctx, call{
		what: "revoke this device", method: http.MethodPost, path: "/auth/device/revoke", out: &out,
		query: url.Values{"keep_tunnels": {strconv.FormatBool(keepTunnels)}},
	})
	return out, err
}
