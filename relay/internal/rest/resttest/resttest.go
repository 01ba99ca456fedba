// Package resttest checks answers of the HTTP interface against its OpenAPI
// description, for any test that talks to a relay. It is used by no program.
package resttest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"

	"github.com/adit-tunnel/adit/shared/api"
)

// Description is a description that answers can be compared with. Loading one
// takes a second: share it among tests.
type Description struct {
	mu sync.Mutex // the validator fills caches
	v  validator.Validator
}

// mappings are objects of which the description names no property: a relay of the last
// release has the labels so.
const mappings = "**.agent_labels.*"

// Load reads a description, as GET /api/v1/openapi.json serves it, and refuses one
// that is no valid OpenAPI document.
func Load(spec []byte) (*Description, error) {
	doc, err := libopenapi.NewDocument(spec)
	if err != nil {
		return nil, fmt.Errorf("read the OpenAPI description: %w", err)
	}
	v, errs := validator.NewValidator(doc, config.WithFormatAssertions(), config.WithStrictMode(), config.WithStrictIgnorePaths(mappings), config.WithoutSecurityValidation(),
		config.WithStrictIgnoredHeadersExtra("Allow", "Cache-Control", "X-Content-Type-Options", "X-Request-Id", "Retry-After", "Www-Authenticate", "Content-Security-Policy", "Referrer-Policy"))
	if len(errs) > 0 {
		return nil, fmt.Errorf("read the OpenAPI description: %w", errors.Join(errs...))
	}
	if ok, faults := v.ValidateDocument(); !ok {
		for _, f := range faults {
			errs = append(errs, fmt.Errorf("%s: %s", f.Message, f.Reason))
		}
		return nil, fmt.Errorf("the OpenAPI description is invalid: %w", errors.Join(errs...))
	}
	return &Description{v: v}, nil
}

// Checker compares answers with a description for one test.
type Checker struct {
	t testing.TB
	d *Description
}

// For returns a Checker that reports to a test.
func (d *Description) For(t testing.TB) *Checker { return &Checker{t: t, d: d} }

// Check fails the test when an answer of the interface is not as described. What
// is not under api.Base is passed over.
func (c *Checker) Check(req *http.Request, res *http.Response, body []byte) {
	c.t.Helper()
	if !strings.HasPrefix(req.URL.Path, api.Base+"/") || req.URL.Path == api.Base+"/openapi.json" { // Load checks that one
		return
	}
	call := fmt.Sprintf("%s %s -> %d", req.Method, req.URL.Path, res.StatusCode)
	for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": api.StrictPolicy} {
		if got := res.Header.Get(name); got != want {
			c.t.Errorf("%s: header %s is %q, want %q", call, name, got, want)
		}
	}
	if res.StatusCode >= 400 {
		c.problem(call, res, body)
	}
	if res.StatusCode == http.StatusMethodNotAllowed || res.StatusCode == http.StatusNotFound && bytes.Contains(body, []byte(`"code":"`+string(api.CodeNotFound)+`"`)) ||
		res.StatusCode == http.StatusUnauthorized || strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") || req.Method == http.MethodHead {
		return // no operation of the description: any path answers so
	}
	copied := *res
	copied.Body = io.NopCloser(bytes.NewReader(body))
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	ok, faults := c.d.v.ValidateHttpResponse(req, &copied)
	if ok {
		return
	}
	for _, f := range faults {
		c.t.Errorf("%s is not as described: %s: %s", call, f.Message, f.Reason)
		for _, s := range f.SchemaValidationErrors {
			c.t.Errorf("  %s: %s", s.FieldPath, s.Reason)
		}
	}
	c.t.Logf("  body: %.1000s", body)
}

// problem checks what every refusal has, whatever the route.
func (c *Checker) problem(call string, res *http.Response, body []byte) {
	c.t.Helper()
	var p api.Problem
	if err := json.Unmarshal(body, &p); err != nil {
		c.t.Errorf("%s: a refusal is no JSON: %v", call, err)
		return
	}
	if got := res.Header.Get("Content-Type"); got != api.ProblemContentType {
		c.t.Errorf("%s: content type %q, want %q", call, got, api.ProblemContentType)
	}
	if p.Status != res.StatusCode || p.Code == "" || p.RequestID == "" || string(p.RequestID) != res.Header.Get(api.HeaderRequestID) {
		c.t.Errorf("%s: incomplete problem: %s", call, body)
	}
	if res.StatusCode == http.StatusUnauthorized && res.Header.Get("WWW-Authenticate") == "" {
		c.t.Errorf("%s: no WWW-Authenticate", call)
	}
	if (res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusTooManyRequests) && res.Header.Get("Retry-After") == "" {
		c.t.Errorf("%s: no Retry-After", call)
	}
}

// Wrap returns a transport that checks every answer. Event streams are passed on
// unread.
func (c *Checker) Wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		res, err := next.RoundTrip(req)
		if err != nil || !strings.HasPrefix(req.URL.Path, api.Base+"/") || strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
			return res, err
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil {
			return nil, fmt.Errorf("read answer: %w", err)
		}
		res.Body = io.NopCloser(bytes.NewReader(body))
		c.Check(req, res, body)
		return res, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
