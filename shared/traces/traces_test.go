package traces_test

import (
	"log/slog"
	"testing"

	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/shared/traces"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEndpoints(t *testing.T) {
	for base, want := range map[string]string{
		"http://127.0.0.1:4318": "http://127.0.0.1:4318/v1/traces", "https://collector/": "https://collector/v1/traces", "https://collector/own/path": "https://collector/own/path",
		"collector:4318": "", "ftp://collector": "",
	} {
		u, err := traces.Endpoint(base)
		if (err != nil) != (want == "") || (err == nil && u.String() != want) {
			t.Errorf("%s is %v, %v; want %q", base, u, err, want)
		}
	}
}

func TestNoneWithoutAnEndpoint(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
	if tr, err := traces.New(traces.Config{Logger: slog.New(slog.DiscardHandler)}); tr != nil || err != nil {
		t.Errorf("without an endpoint there are no traces: %v %v", tr, err)
	}
	if got := traces.ToWire(t.Context()); got != (wire.Trace{}) {
		t.Errorf("a context without a span says none: %v", got)
	}
	if ctx := traces.FromWire(t.Context(), wire.Trace{}); ctx != t.Context() {
		t.Error("no trace changes no context")
	}
	sent := wire.Trace{ID: [16]byte{1}, Span: [8]byte{2}, Flags: 1}
	if got := traces.ToWire(traces.FromWire(t.Context(), sent)); got != sent {
		t.Errorf("a span passes over the wire: %v", got)
	}
}
