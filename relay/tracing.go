package relay

import (
	"fmt"
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/attribute"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/lifecycle"
	"github.com/adit-tunnel/adit/shared/logs"
	"github.com/adit-tunnel/adit/shared/traces"
)

// tracing makes the traces; nil without an endpoint.
func (r *Relay) tracing() (*traces.Traces, error) {
	t, err := traces.New(traces.Config{
		Endpoint: r.cfg.Trace.Endpoint, Ratio: r.cfg.Trace.Ratio, Service: "adit-relay", Version: lifecycle.Version(), Instance: r.cfg.RelayID,
		Logger: r.log.With("part", "traces"),
	})
	if err != nil {
		return nil, fmt.Errorf("trace.endpoint: %w", err)
	}
	return t, nil
}

// describe says what a request is in a trace. Tunnels are named by their session id:
// host and path would give away the tunnel's address. Links have no end, and health
// checks no interest.
func (r *Relay) describe(req *http.Request) (string, []attribute.KeyValue, bool) {
	path := req.URL.Path
	label, domain, _ := strings.Cut(strings.ToLower(req.Host), ".")
	if id, _, err := ident.Segment(label).Split(); err == nil && domain != "" {
		return "tunnel request", []attribute.KeyValue{traces.String("adit.session_id", string(id))}, true
	}
	if rest, ok := strings.CutPrefix(path, "/tunnel/"); ok {
		segment, _, _ := strings.Cut(rest, "/")
		if id, _, err := ident.Segment(segment).Split(); err == nil {
			return "tunnel request", []attribute.KeyValue{traces.String("adit.session_id", string(id))}, true
		}
		return "tunnel request", nil, true
	}
	if strings.HasPrefix(path, "/api/") {
		return "api " + req.Method, []attribute.KeyValue{traces.String("url.path", logs.Redact(path))}, true
	}
	return "", nil, false
}
