// Package traces owns OpenTelemetry traces: spans of requests, of streams and of the
// agent's dials, sent to a collector by OTLP over HTTP. Without an endpoint there is
// no *Traces at all, and whoever would use one does nothing. It puts no secret into a
// span: whoever names an attribute answers for its value, and error texts are redacted.
package traces

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/adit-tunnel/adit/shared/logs"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Config says where traces go.
type Config struct {
	// Endpoint is the collector's base URL, such as http://127.0.0.1:4318; empty: what
	// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT says.
	Endpoint string
	Ratio    float64 // of traces that begin here, or come from outside, that are sent
	Service  string  // such as adit-relay
	Version  string
	Instance string // which of them
	Logger   *slog.Logger
}

// Traces makes spans. Until Run runs they lead nowhere.
type Traces struct {
	cfg     Config
	options []otlptracehttp.Option
	tracer  atomic.Pointer[trace.Tracer]
}

// New checks the configuration; without an endpoint it returns nil.
func New(cfg Config) (*Traces, error) {
	t := &Traces{cfg: cfg}
	switch {
	case cfg.Endpoint != "":
		u, err := Endpoint(cfg.Endpoint)
		if err != nil {
			return nil, err
		}
		t.options = append(t.options, otlptracehttp.WithEndpointURL(u.String()))
	case cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")) == "":
		return nil, nil
	}
	return t, nil
}

// Endpoint is the URL to which spans are posted: the base's, with OTLP's own path
// where it has none.
func Endpoint(base string) (*url.URL, error) {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("%q is no http or https URL; write it as http://collector:4318", logs.Redact(base))
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/v1/traces"
	}
	return u, nil
}

// flushTime bounds the last words at the end.
const flushTime = 3 * time.Second

// Run sends spans until ctx ends. A collector that is away costs spans, nothing else.
func (t *Traces) Run(ctx context.Context) error {
	exporter, err := otlptracehttp.New(ctx, t.options...)
	if err != nil {
		return fmt.Errorf("make the exporter of traces: %w", err)
	}
	// The library reports to the whole process; this is the only one in it.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { t.cfg.Logger.Warn("send traces", "error", err) }))
	ratio := sdk.TraceIDRatioBased(t.cfg.Ratio)
	provider := sdk.NewTracerProvider(
		sdk.WithBatcher(exporter, sdk.WithBatchTimeout(2*time.Second)),
		sdk.WithSampler(sdk.ParentBased(ratio)),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", t.cfg.Service), attribute.String("service.version", t.cfg.Version), attribute.String("service.instance.id", t.cfg.Instance),
		)),
	)
	tracer := provider.Tracer("github.com/adit-tunnel/adit")
	t.tracer.Store(&tracer)
	<-ctx.Done()
	t.tracer.Store(nil)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	if err := provider.Shutdown(last); err != nil {
		t.cfg.Logger.Warn("send the last traces", "error", err)
	}
	return nil
}

// String is an attribute.
func String(key, value string) attribute.KeyValue { return attribute.String(key, value) }

// Int is an attribute.
func Int(key string, value int) attribute.KeyValue { return attribute.Int(key, value) }

// Span is one piece of work.
type Span struct{ span trace.Span }

// Start begins a span below the context's.
func (t *Traces) Start(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, Span) {
	return t.start(ctx, name, trace.SpanKindInternal, attrs)
}

func (t *Traces) start(ctx context.Context, name string, kind trace.SpanKind, attrs []attribute.KeyValue) (context.Context, Span) {
	tracer := t.tracer.Load()
	if tracer == nil {
		return ctx, Span{trace.SpanFromContext(context.Background())}
	}
	ctx, span := (*tracer).Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(attrs...))
	return ctx, Span{span}
}

// Set adds attributes.
func (s Span) Set(attrs ...attribute.KeyValue) { s.span.SetAttributes(attrs...) }

// End ends the span, with what went wrong.
func (s Span) End(err error) {
	if err != nil {
		s.span.SetStatus(codes.Error, logs.Redact(err.Error()))
	}
	s.span.End()
}

// ToWire is the context's span as a hello carries it; zero when it is not sent.
func ToWire(ctx context.Context) wire.Trace {
	c := trace.SpanContextFromContext(ctx)
	if !c.IsValid() || !c.IsSampled() {
		return wire.Trace{}
	}
	return wire.Trace{ID: c.TraceID(), Span: c.SpanID(), Flags: byte(c.TraceFlags())}
}

// FromWire returns a context whose spans continue that of a hello.
func FromWire(ctx context.Context, w wire.Trace) context.Context {
	c := trace.NewSpanContext(trace.SpanContextConfig{TraceID: w.ID, SpanID: w.Span, TraceFlags: trace.TraceFlags(w.Flags), Remote: true})
	if !c.IsValid() {
		return ctx
	}
	return trace.ContextWithSpanContext(ctx, c)
}

// Describe says what a request's span is called and shows; false: it gets none.
type Describe func(r *http.Request) (name string, attrs []attribute.KeyValue, ok bool)

// Handler gives every request that describe knows a span. It continues the trace of
// the caller's traceparent (W3C), whether it is sent is decided here, and hands the
// span on in the same header.
func (t *Traces) Handler(describe Describe, next http.Handler) http.Handler {
	var w3c propagation.TraceContext
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, attrs, ok := describe(r)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		ctx := r.Context()
		if c := trace.SpanContextFromContext(w3c.Extract(ctx, propagation.HeaderCarrier(r.Header))); c.IsValid() && t.sends(c.TraceID()) {
			ctx = trace.ContextWithRemoteSpanContext(ctx, c.WithTraceFlags(trace.FlagsSampled))
		}
		ctx, span := t.start(ctx, name, trace.SpanKindServer, append(attrs, attribute.String("http.request.method", r.Method)))
		w3c.Inject(ctx, propagation.HeaderCarrier(r.Header))
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			var err error
			if rec.status >= http.StatusInternalServerError {
				err = fmt.Errorf("status %d", rec.status)
			}
			span.Set(attribute.Int("http.response.status_code", rec.status))
			span.End(err)
		}()
		next.ServeHTTP(rec, r.WithContext(ctx))
	})
}

// sends says whether a trace that began elsewhere is sent from here: whoever calls
// from outside must not decide that all of it is.
func (t *Traces) sends(id trace.TraceID) bool {
	return sdk.TraceIDRatioBased(t.cfg.Ratio).ShouldSample(sdk.SamplingParameters{TraceID: id}).Decision == sdk.RecordAndSample
}

// recorder sees the status, and hides nothing from http.ResponseController.
type recorder struct {
	http.ResponseWriter
	status int
	wrote  bool
}

// WriteHeader is part of http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if !r.wrote && (status >= http.StatusOK || status == http.StatusSwitchingProtocols) {
		r.status, r.wrote = status, true
	}
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Hijack is part of http.Hijacker: whoever takes the connection over switches protocols.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := http.NewResponseController(r.ResponseWriter).Hijack()
	if err == nil && !r.wrote {
		r.status, r.wrote = http.StatusSwitchingProtocols, true
	}
	return conn, buf, err
}
