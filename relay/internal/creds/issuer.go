package creds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
)

const (
	fetchTimeout    = 5 * time.Second
	refreshEvery    = 10 * time.Minute // so that a key the issuer withdrew stops working
	retryFirst      = time.Second      // after an attempt that went wrong
	retryMost       = 30 * time.Second
	askedFetchEvery = 5 * time.Second // at most, for unknown keys; see refresh
	askedFetchBurst = 3
)

// errLimited says that the issuer was asked too recently to be asked again.
var errLimited = errors.New("the issuer was asked a moment ago")

// issuer is the key set of an OpenID Connect issuer: found by discovery, read
// when first needed, kept while the issuer is away.
type issuer struct {
	url    string
	client *http.Client
	log    *slog.Logger
	m      *metrics

	flight singleflight.Group // one fetch at a time; others wait for its result
	asked  *rate.Limiter      // of fetches caused by callers, who may be hostile

	mu      sync.RWMutex
	keys    keySet
	jwksURL string // empty until discovered
}

func newIssuer(rawURL string, client *http.Client, log *slog.Logger, m *metrics) (*issuer, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, errors.New("auth.oidc.issuer: not an http or https URL")
	}
	c := http.Client{}
	if client != nil {
		c = *client
	}
	// A redirect to plain http would let anyone on the path choose the keys.
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if len(via) > 3 {
			return errors.New("more than 3 redirects")
		}
		return sameSecurity(u.Scheme, req.URL.Scheme)
	}
	return &issuer{url: rawURL, client: &c, log: log, m: m,
		asked: rate.NewLimiter(rate.Every(askedFetchEvery), askedFetchBurst)}, nil
}

func sameSecurity(issuer, other string) error {
	if issuer == "https" && other != "https" {
		return errors.New("an https issuer points to something that is not https")
	}
	return nil
}

func (i *issuer) current() keySet {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.keys
}

// refresh reads the key set on behalf of a caller that shows an unknown key. It
// is limited, since anybody can make up a token with an unknown key. Whatever it
// returns, a fetch may have ended meanwhile: look at current again.
func (i *issuer) refresh() error {
	_, err, _ := i.flight.Do("", func() (any, error) {
		if !i.asked.Allow() {
			i.m.refreshes.WithLabelValues("issuer", "limited").Inc()
			return nil, errLimited
		}
		return nil, i.fetch(context.Background())
	})
	return err
}

// run keeps the key set fresh until ctx ends.
func (i *issuer) run(ctx context.Context) {
	retry, down := retryFirst, false
	for {
		_, err, _ := i.flight.Do("", func() (any, error) { return nil, i.fetch(ctx) })
		if ctx.Err() != nil {
			return
		}
		wait := refreshEvery
		switch {
		case errors.Is(err, errLimited): // joined a caller that was turned away
			wait = retry
		case err != nil:
			if !down { // once per outage; the metric counts the rest
				i.log.Warn("issuer's keys not refreshed", "issuer", i.url, "error", err, "keys_kept", len(i.current()))
			}
			down, wait = true, retry
			retry = min(2*retry, retryMost)
		default:
			if down {
				i.log.Info("issuer's keys refreshed again", "issuer", i.url, "keys", len(i.current()))
			}
			retry, down = retryFirst, false
		}
		wait -= time.Duration(rand.Int64N(int64(wait)/5 + 1)) // a pool of relays does not ask in step
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// fetch reads the discovery document, when that is due, and the key set. The
// context is never a request's: others wait for the result too.
func (i *issuer) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	err := i.fetchWithin(ctx)
	if err != nil {
		i.m.refreshes.WithLabelValues("issuer", "error").Inc()
		return err
	}
	i.m.refreshes.WithLabelValues("issuer", "ok").Inc()
	return nil
}

func (i *issuer) fetchWithin(ctx context.Context) error {
	i.mu.RLock()
	jwksURL := i.jwksURL
	i.mu.RUnlock()
	if jwksURL == "" {
		var err error
		if jwksURL, err = i.discover(ctx); err != nil {
			return fmt.Errorf("discover issuer: %w", err)
		}
	}
	b, err := i.get(ctx, jwksURL)
	var keys keySet
	if err == nil {
		keys, err = parseJWKS(b)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil {
		i.jwksURL = "" // it may have moved: discover anew next time
		return fmt.Errorf("read issuer's key set: %w", err)
	}
	i.keys, i.jwksURL = keys, jwksURL
	return nil
}

// discover reads the provider's configuration (OpenID Connect Discovery 1.0,
// section 4) and returns where the keys are.
func (i *issuer) discover(ctx context.Context) (string, error) {
	b, err := i.get(ctx, strings.TrimSuffix(i.url, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return "", err
	}
	var doc struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return "", errors.New("configuration is not JSON")
	}
	if doc.Issuer != i.url { // exactly (section 4.3)
		return "", fmt.Errorf("configuration is of issuer %q, not %q: a trailing slash counts", doc.Issuer, i.url)
	}
	u, err := url.Parse(doc.JWKSURI)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", errors.New("configuration has no usable jwks_uri")
	}
	self, err := url.Parse(i.url)
	if err != nil {
		return "", err
	}
	return doc.JWKSURI, sameSecurity(self.Scheme, u.Scheme)
}

// get reads a small document. Its text never gets into an error: an issuer's
// error page is no business of the log.
func (i *issuer) get(ctx context.Context, u string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := i.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: status %d", u, resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxKeysBytes+1))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", u, err)
	}
	if len(b) > maxKeysBytes {
		return nil, fmt.Errorf("get %s: longer than %d bytes", u, maxKeysBytes)
	}
	return b, nil
}
