// Package enroll owns how a machine gets its credential: it hands a single-use token
// to a relay, or waits until a person lets the machine in, and keeps what comes back in a
// file, written whole and once. It never
// replaces a credential that is there, and never prints or logs a secret.
package enroll

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/printable"
)

const (
	askTime   = 30 * time.Second
	maxAnswer = 64 << 10
)

// ErrUnanswered is wrapped when the relay was asked and no answer could be read: the
// token may be used up.
var ErrUnanswered = errors.New("no answer from the relay")

// ErrEnrolled is wrapped when the machine has a credential already.
var ErrEnrolled = errors.New("already enrolled")

// Options say who asks whom.
type Options struct {
	RelayURL string // http, https, ws or wss
	Agent    ident.AgentID
	Token    ident.Secret
	// Show has a code shown to the person who lets the machine in; with it no token is needed.
	Show   func(api.PairStarted)
	Client string      // the program, as the person sees it
	File   string      // of the credential; its directory must exist
	Owner  int         // user id that the file is given to; negative: nobody else
	TLS    *tls.Config // nil: the system's
	Proxy  func(*http.Request) (*url.URL, error)
}

// Enroll gets a credential and writes it into the file. The place for it is made
// first: a token is not spent on what could not be kept.
func Enroll(ctx context.Context, o Options) (api.Enrolled, error) {
	if err := Vacant(o.File); err != nil {
		return api.Enrolled{}, err
	}
	f, err := os.CreateTemp(filepath.Dir(o.File), ".adit-enroll-") // mode 0600
	if err != nil {
		return api.Enrolled{}, fmt.Errorf("make the credential file: %w", err)
	}
	defer func() {
		_ = f.Close()
		_ = os.Remove(f.Name()) // the credential has a name of its own by then
	}()
	if o.Owner >= 0 {
		if err := f.Chown(o.Owner, -1); err != nil {
			return api.Enrolled{}, fmt.Errorf("give the credential file to the agent's user: %w", err)
		}
	}
	u, err := address(o.RelayURL)
	if err != nil {
		return api.Enrolled{}, err
	}
	get := ask
	if o.Show != nil {
		get = pair
	}
	got, err := get(ctx, o, u)
	if err != nil {
		return api.Enrolled{}, err
	}
	if _, err = io.WriteString(f, got.Credential+"\n"); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Link(f.Name(), o.File) // unlike a rename, it replaces nothing
	}
	if err == nil {
		err = syncDir(filepath.Dir(o.File))
	}
	if err != nil {
		return api.Enrolled{}, fmt.Errorf("keep the credential of %s, which is lost now (revoke it): %w", strings.TrimSpace(string(got.AgentID)+" "+string(got.CredentialID)), err)
	}
	return got, nil
}

// Vacant returns nil when there is no credential file; an error that wraps
// ErrEnrolled when there is one with a credential, another when it is damaged.
func Vacant(file string) error {
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("read the credential file: %w", err)
	case strings.HasPrefix(string(b), ident.PrefixAgent):
		return fmt.Errorf("%w: %s holds a credential", ErrEnrolled, file)
	}
	return fmt.Errorf("%s is there and holds no agent credential: move it away first", file)
}

// address is the relay's, for requests.
func address(relay string) (*url.URL, error) {
	u, err := url.Parse(relay)
	if err != nil {
		return nil, fmt.Errorf("relay_url: %q is no URL", relay)
	}
	switch u.Scheme {
	case "wss":
		u.Scheme = "https"
	case "ws":
		u.Scheme = "http"
	}
	return u, nil
}

func transport(o Options) *http.Transport {
	return &http.Transport{Proxy: o.Proxy, TLSClientConfig: o.TLS, DisableKeepAlives: true}
}

// pair waits until a person lets the machine in.
func pair(ctx context.Context, o Options, u *url.URL) (api.Enrolled, error) {
	c, err := client.New(client.Config{BaseURL: u.String(), UserAgent: o.Client, Transport: transport(o)})
	if err != nil {
		return api.Enrolled{}, err
	}
	name, _ := os.Hostname() // the person sees an address and the agent's name as well
	got, err := c.Pair(ctx, api.PairStartRequest{Client: o.Client, MachineName: printable.Text(name), Keys: []api.PairKey{api.PairAgent}, AgentID: o.Agent}, o.Show)
	if err != nil {
		return api.Enrolled{}, err
	}
	if !sound(got.AgentKey) {
		return api.Enrolled{}, fmt.Errorf("%w: what came is no credential", ErrUnanswered)
	}
	return api.Enrolled{AgentID: o.Agent, TeamID: got.TeamID, Credential: got.AgentKey}, nil
}

// sound says whether a text can be an agent's credential.
func sound(s string) bool {
	return strings.HasPrefix(s, ident.PrefixAgent) && !strings.ContainsAny(s, " \t\r\n")
}

// ask hands a token in.
func ask(ctx context.Context, o Options, u *url.URL) (api.Enrolled, error) {
	body, err := json.Marshal(api.EnrollRequest{AgentID: o.Agent})
	if err != nil {
		return api.Enrolled{}, fmt.Errorf("encode request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.JoinPath(api.EnrollPath).String(), bytes.NewReader(body))
	if err != nil {
		return api.Enrolled{}, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+o.Token.Reveal())
	req.Header.Set("Content-Type", "application/json")
	c := http.Client{
		Transport: transport(o),
		// A token goes to the host that was named, or nowhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := c.Do(req)
	if err != nil {
		return api.Enrolled{}, fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return api.Enrolled{}, fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	if resp.StatusCode != http.StatusCreated {
		var p api.Problem
		if resp.StatusCode >= http.StatusBadRequest && json.Unmarshal(raw, &p) == nil && p.Code != "" {
			return api.Enrolled{}, &p
		}
		return api.Enrolled{}, fmt.Errorf("%s answered %s, which no relay says: is the address right?", u.Redacted(), resp.Status)
	}
	var got api.Enrolled
	if err := json.Unmarshal(raw, &got); err != nil || !sound(got.Credential) {
		return api.Enrolled{}, fmt.Errorf("%w: what came is no credential", ErrUnanswered)
	}
	return got, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
