package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// ErrNoAgent is wrapped by errors that say no agent answers.
var ErrNoAgent = errors.New("no agent answers")

// Client calls the local interface of the agent on this machine.
type Client struct {
	http *http.Client
	base string
}

// NewClient returns a Client of the first of the addresses that answers when it is
// called: paths of unix sockets, or host:port of a loopback listener.
func NewClient(addrs ...string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		var errs []error
		for _, addr := range addrs {
			network := "tcp"
			if strings.Contains(addr, "/") {
				network = "unix"
			}
			c, err := d.DialContext(ctx, network, addr)
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		return nil, fmt.Errorf("%w: %w", ErrNoAgent, errors.Join(errs...))
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}, base: "http://localhost"}
}

// Report asks for the agent's status.
func (c *Client) Report(ctx context.Context) (status.Report, error) {
	return call[status.Report](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Diag asks for a diagnostic bundle, which the caller closes.
func (c *Client) Diag(ctx context.Context) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/v1/diag", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("the agent answered %s; it gives a bundle over its socket only", resp.Status)
	}
	return resp.Body, nil
}

// Admit asks for a task lease.
func (c *Client) Admit(ctx context.Context, q api.AdmitTaskRequest) (api.TaskLease, error) {
	return call[api.TaskLease](ctx, c, http.MethodPost, "/v1/tasks", q)
}

// Renew renews a task lease.
func (c *Client) Renew(ctx context.Context, id ident.TaskID, q api.RenewTaskRequest) (api.TaskLease, error) {
	return call[api.TaskLease](ctx, c, http.MethodPut, "/v1/tasks/"+url.PathEscape(string(id)), q)
}

// Release gives a task lease back.
func (c *Client) Release(ctx context.Context, id ident.TaskID, token string, outcome api.TaskOutcome) error {
	_, err := call[json.RawMessage](ctx, c, http.MethodDelete, "/v1/tasks/"+url.PathEscape(string(id))+"?outcome="+url.QueryEscape(string(outcome)), api.RenewTaskRequest{LeaseToken: token})
	return err
}

// Declare says what the machine is doing.
func (c *Client) Declare(ctx context.Context, q StateRequest) (wire.State, error) {
	return call[wire.State](ctx, c, http.MethodPost, "/v1/state", q)
}

// Pause throws the kill switch, Resume takes it back.
func (c *Client) Pause(ctx context.Context) (wire.State, error) {
	return call[wire.State](ctx, c, http.MethodPost, "/v1/pause", struct{}{})
}

// Resume takes the kill switch back.
func (c *Client) Resume(ctx context.Context) (wire.State, error) {
	return call[wire.State](ctx, c, http.MethodPost, "/v1/resume", struct{}{})
}

// call makes one call; a refusal is an *api.Problem.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (out T, err error) {
	var send io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return out, fmt.Errorf("encode request: %w", err)
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, send)
	if err != nil {
		return out, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return out, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return out, client.ReadProblem(resp)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return out, fmt.Errorf("read answer: %w", err)
	}
	if len(bytes.TrimSpace(answer)) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(answer, &out); err != nil {
		return out, fmt.Errorf("read answer: %w", err)
	}
	return out, nil
}
