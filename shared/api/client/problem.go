package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// maxProblem bounds what is read of a refusal's body.
const maxProblem = 64 << 10

// ReadProblem turns an answer that is no success into a problem. The body is read
// but not closed. What is no problem document becomes one with api.CodeNotARelay.
func ReadProblem(res *http.Response) *api.Problem {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if res.StatusCode/100 == 3 {
		return notARelay(res, "it redirects to another address: use that one")
	}
	p := &api.Problem{}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxProblem))
	if kind != api.ProblemContentType || (err != nil && len(b) == 0) || json.Unmarshal(b, p) != nil || p.Code == "" {
		return notARelay(res, "this is no answer of an Adit relay; a proxy in front of it, or another server")
	}
	p.Status = res.StatusCode
	if p.RequestID == "" {
		p.RequestID, _ = ident.ParseRequestID(res.Header.Get(api.HeaderRequestID))
	}
	p.RetryAfter = retryAfter(res.Header.Get("Retry-After"), time.Now())
	return p
}

func notARelay(res *http.Response, why string) *api.Problem {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if kind == "" {
		kind = "no content type"
	}
	p := api.Problemf(api.CodeNotARelay, "the address answered %d %s (%s): %s", res.StatusCode, http.StatusText(res.StatusCode), kind, why).WithStatus(res.StatusCode)
	p.RetryAfter = retryAfter(res.Header.Get("Retry-After"), time.Now())
	return p
}

// retryAfter reads either form of the header (RFC 9110, section 10.2.3).
func retryAfter(s string, now time.Time) api.Duration {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 1e6 {
		return api.Duration(time.Duration(n) * time.Second)
	}
	if t, err := http.ParseTime(s); err == nil && t.After(now) {
		return api.Duration(t.Sub(now).Round(time.Second))
	}
	return 0
}

// busy are the codes that mean 'later', whatever their status.
var busy = []api.Code{api.CodeAgentBusy, api.CodeAgentOffline, api.CodeAgentInTunnel, api.CodeAgentUnhealthy, api.CodeAgentSyncing}

// Temporary says whether the same call may succeed later without anybody mending
// anything: the agent is busy or away, limits, no quorum, a lost connection.
func Temporary(err error) bool {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		switch p.Status {
		case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		case http.StatusBadGateway: // app_refused needs somebody to start the app
			return p.Code == api.CodeNotARelay || p.Hop == api.HopLink
		}
		return slices.Contains(busy, p.Code)
	}
	if errors.Is(err, ErrTimeout) {
		return true
	}
	var lost *ConnError
	if !errors.As(err, &lost) || errors.Is(err, context.Canceled) {
		return false
	}
	return !permanent(lost.Err)
}

// permanent tells connection errors that repeating does not mend.
func permanent(err error) bool {
	var (
		dns     *net.DNSError
		addr    *net.AddrError
		cert    *tls.CertificateVerificationError
		host    x509.HostnameError
		record  tls.RecordHeaderError
		unknown x509.UnknownAuthorityError
	)
	switch {
	case errors.As(err, &dns):
		return dns.IsNotFound
	case errors.As(err, &addr), errors.As(err, &cert), errors.As(err, &host), errors.As(err, &record), errors.As(err, &unknown):
		return true
	}
	return errors.Is(err, http.ErrSchemeMismatch)
}

// Describe is one line about an error for people: what was done, what went wrong,
// at which hop, and the request's id to look for in the relay's log.
func Describe(err error) string {
	var p *api.Problem
	if !errors.As(err, &p) {
		return err.Error()
	}
	s := err.Error()
	switch {
	case p.Hop != "" && p.RequestID != "":
		return fmt.Sprintf("%s (hop: %s, request: %s)", s, p.Hop, p.RequestID)
	case p.Hop != "":
		return fmt.Sprintf("%s (hop: %s)", s, p.Hop)
	case p.RequestID != "":
		return fmt.Sprintf("%s (request: %s)", s, p.RequestID)
	}
	return s
}
