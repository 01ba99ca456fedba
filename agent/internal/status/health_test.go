package status_test

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
)

func TestUnhealthyUntilTheChecksHaveAnswered(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer s.Close()
	b := board(t, filepath.Join(t.TempDir(), "state.json"))
	o := observer(t, b, "no-such-command", "", s.URL)
	if b.Facts().Unhealthy == "" {
		t.Error("a machine whose health was never checked counts as healthy")
	}
	o.Observe(t.Context())
	if got := b.Facts().Unhealthy; got != "" {
		t.Errorf("after a check that passed: %q", got)
	}
	b = board(t, filepath.Join(t.TempDir(), "state.json"))
	observer(t, b, "no-such-command", "")
	if got := b.Facts().Unhealthy; got != "" {
		t.Errorf("without checks the machine is healthy, not %q", got)
	}
}
