package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"github.com/adit-tunnel/adit/shared/api/client"
)

// Client speaks to a running relay over its admin socket.
type Client struct {
	socket string
	http   *http.Client
}

// Dial returns a Client for the socket. Nothing is opened until the first call.
func Dial(socket string) *Client {
	var d net.Dialer
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
		DisableKeepAlives: true,
	}}}
}

// Call sends in (nil: no body) and decodes the answer into out (nil: ignored). A
// refusal is an *api.Problem.
func (c *Client) Call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	body, err := c.Stream(ctx, method, path, query, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("read the relay's answer: %w", err)
	}
	return nil
}

// Stream is Call that returns the answer's body, which the caller closes.
func (c *Client) Stream(ctx context.Context, method, path string, query url.Values, in any) (io.ReadCloser, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "admin", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		switch {
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("open the admin socket %s: permission denied; run this as the user of the relay, or as root", c.socket)
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("no admin socket at %s; is the relay running, and is this its data_dir? name another one with --socket", c.socket)
		case errors.Is(err, syscall.ECONNREFUSED): // the file is there, its relay is not
			return nil, fmt.Errorf("nobody answers at the admin socket %s: the relay that made it does not run any more; start it, for instance with systemctl start adit-relay", c.socket)
		}
		return nil, fmt.Errorf("speak to the relay over %s: %w", c.socket, err)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return nil, client.ReadProblem(resp)
	}
	return resp.Body, nil
}
