package e2e

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/e2e/world"
)

// span is one that arrived, with the service that sent it.
type span struct {
	*otlp.Span
	service string
}

// otlpReceiver is an OpenTelemetry collector as far as traces go.
type otlpReceiver struct {
	*httptest.Server
	mu    sync.Mutex
	spans []span
	raw   strings.Builder
	fault string
}

func newReceiver(t *testing.T) *otlpReceiver {
	t.Helper()
	c := &otlpReceiver{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/traces" { // somebody's who looks for what had this port before
			http.NotFound(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		var req collector.ExportTraceServiceRequest
		err := proto.Unmarshal(body, &req)
		c.mu.Lock()
		defer c.mu.Unlock()
		if err != nil || r.Header.Get("Content-Type") != "application/x-protobuf" {
			c.fault = fmt.Sprint(r.URL.Path, " ", r.Header.Get("Content-Type"), " ", err)
		}
		c.raw.Write(body)
		for _, res := range req.ResourceSpans {
			service := ""
			for _, kv := range res.Resource.Attributes {
				if kv.Key == "service.name" {
					service = kv.Value.GetStringValue()
				}
			}
			for _, scope := range res.ScopeSpans {
				for _, s := range scope.Spans {
					c.spans = append(c.spans, span{s, service})
				}
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(c.Close)
	return c
}

// find returns the spans that a test asks for.
func (c *otlpReceiver) find(ok func(span) bool) []span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []span
	for _, s := range c.spans {
		if ok(s) {
			out = append(out, s)
		}
	}
	return out
}

func (s span) attribute(key string) string {
	for _, kv := range s.Attributes {
		if kv.Key == key {
			if v := kv.Value.GetStringValue(); v != "" {
				return v
			}
			return fmt.Sprint(kv.Value.GetIntValue())
		}
	}
	return ""
}

func TestTracesOfARequestThroughATunnel(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	c := newReceiver(t)
	// The relay is told by its own key, the agent by OpenTelemetry's variable.
	r := w.Relay("ADIT_TRACE_ENDPOINT=" + c.URL)
	w.Agent(r, "gpu-1", "OTEL_EXPORTER_OTLP_ENDPOINT="+c.URL)
	sk := r.Credential("integration", world.Team)
	var mu sync.Mutex
	seen := map[string]string{}
	port := app(t, func(rw http.ResponseWriter, req *http.Request) {
		mu.Lock()
		seen[req.URL.Path] = req.Header.Get("Traceparent")
		mu.Unlock()
		if req.URL.Path == "/ws" {
			ws, err := websocket.Accept(rw, req, &websocket.AcceptOptions{InsecureSkipVerify: true})
			if err != nil {
				return
			}
			defer func() { _ = ws.CloseNow() }()
			kind, b, err := ws.Read(req.Context())
			if err == nil {
				_ = ws.Write(req.Context(), kind, b)
			}
			return
		}
		hello(rw, req)
	})
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "host_header": "public"})
	const caller = "4bf92f3577b34da6a3ce929d0e0e4736"
	if status, _ := world.Get(w.HTTP(), tun.TunnelURL+"page", "Traceparent", "00-"+caller+"-00f067aa0ba902b7-01"); status != http.StatusOK {
		t.Fatalf("the page: %d", status)
	}
	sayHello(t, w, strings.Replace(r.HostURL(tun), "http", "ws", 1)+"ws", websocket.MessageText)
	dead := r.Open(sk, "gpu-1", map[string]any{"target_port": w.FreePort(), "host_header": "public"})
	if status, _ := world.Get(w.HTTP(), r.HostURL(dead)); status != http.StatusBadGateway {
		t.Errorf("a port where nothing listens: %d", status)
	}

	of := func(name string) func(span) bool {
		return func(s span) bool { return s.Name == name && hex.EncodeToString(s.TraceId) == caller }
	}
	w.Eventually(30*time.Second, "the spans of the page arrive, from both halves", func() bool {
		return len(c.find(of("tunnel request"))) == 1 && len(c.find(of("open stream"))) == 1 && len(c.find(of("dial"))) == 1
	})
	request, open, dial := c.find(of("tunnel request"))[0], c.find(of("open stream"))[0], c.find(of("dial"))[0]
	if hex.EncodeToString(request.ParentSpanId) != "00f067aa0ba902b7" || string(open.ParentSpanId) != string(request.SpanId) || string(dial.ParentSpanId) != string(open.SpanId) {
		t.Errorf("caller, request, stream and dial are one below the other")
	}
	if request.service != "adit-relay" || dial.service != "adit-agent" || dial.attribute("server.port") != fmt.Sprint(port) || request.attribute("adit.session_id") != string(tun.SessionID) || request.attribute("http.response.status_code") != "200" {
		t.Errorf("the spans say what they are of: %v %v", request, dial)
	}
	mu.Lock()
	if want := "00-" + caller + "-" + hex.EncodeToString(request.SpanId) + "-01"; seen["/page"] != want {
		t.Errorf("the app sees traceparent %q, want %q", seen["/page"], want)
	}
	mu.Unlock()
	w.Eventually(30*time.Second, "the spans of the rest arrive", func() bool {
		return len(c.find(func(s span) bool {
			return s.Name == "api POST" && s.attribute("url.path") == "/api/v1/agents/gpu-1/tunnel" && s.attribute("http.response.status_code") == "201"
		})) == 2 && len(c.find(func(s span) bool {
			return s.Name == "tunnel request" && s.attribute("http.response.status_code") == "101"
		})) == 1 &&
			len(c.find(func(s span) bool { return s.Name == "dial" && s.Status.GetCode() == otlp.Status_STATUS_CODE_ERROR })) >= 1
	})

	// No secret is in what was sent, however it was written.
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault != "" {
		t.Errorf("what was sent is OTLP: %s", c.fault)
	}
	all := canaries{t: t, value: map[string]string{}}
	all.add("credential", sk)
	all.tunnel("tunnel", r, tun)
	all.tunnel("dead tunnel", r, dead)
	all.search("the spans", []byte(c.raw.String()))
	t.Logf("%d spans in %d bytes", len(c.spans), c.raw.Len())
}

// Without an endpoint nothing is made and nothing is added.
func TestNoTracesWithoutAnEndpoint(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	port := app(t, func(rw http.ResponseWriter, req *http.Request) { fmt.Fprint(rw, req.Header.Get("Traceparent")) })
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": port, "host_header": "public"})
	const caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for sent, want := range map[string]string{"": "", caller: caller} {
		var header []string
		if sent != "" {
			header = []string{"Traceparent", sent}
		}
		if status, body := world.Get(w.HTTP(), tun.TunnelURL, header...); status != http.StatusOK || body != want {
			t.Errorf("a request with traceparent %q arrives with %q, %d", sent, body, status)
		}
	}
}
