package checkup_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/checkup"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func look(t *testing.T, at string) []checkup.Check {
	t.Helper()
	tr, err := client.NewTransport(client.TransportConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.CloseIdleConnections()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	way := checkup.Way{Transport: tr, UserAgent: "test", Timeout: testkit.Patience, Words: checkup.Words{Address: "relay_url", Authority: "tls.ca_file", Resolver: "the resolver"}}
	var found []checkup.Check
	ready := way.Relay(t.Context(), u, func(c checkup.Check) { found = append(found, c) })
	if healthy := !slices.ContainsFunc(found, func(c checkup.Check) bool { return c.State == checkup.Failed }); healthy != ready || healthy != checkup.NewDocument(found).Healthy {
		t.Errorf("ready is %v after %+v", ready, found)
	}
	return found
}

func TestTheWayToARelay(t *testing.T) {
	relay := func(f http.HandlerFunc) string {
		s := httptest.NewServer(f)
		t.Cleanup(s.Close)
		return s.URL
	}
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	for name, c := range map[string]struct {
		at     string
		want   []string // check and state
		remedy string   // of the last
	}{
		"ready": {relay(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" {
				http.NotFound(w, r)
			}
		}), []string{"tcp ok", "relay ok", "clock ok"}, ""},
		"another clock": {relay(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		}), []string{"tcp ok", "relay ok", "clock warn"}, "clock"},
		"draining": {relay(func(w http.ResponseWriter, _ *http.Request) {
			api.NewProblem(api.CodeRelayDraining, "stopping").Write(w, "r")
		}), []string{"tcp ok", "relay failed"}, "its operator"},
		"taken out by a load balancer": {relay(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }), []string{"tcp ok", "relay failed"}, "its operator"},
		"no relay":                     {relay(http.NotFound), []string{"tcp ok", "relay failed"}, "check relay_url"},
		"nobody":                       {"http://127.0.0.1:1", []string{"tcp failed"}, "nothing listens at that address: check relay_url"},
		"a private authority":          {secure.URL, []string{"tcp ok", "tls failed"}, "tls.ca_file"},
		"no TLS":                       {strings.Replace(relay(http.NotFound), "http:", "https:", 1), []string{"tcp ok", "tls failed"}, "plain HTTP"},
	} {
		found := look(t, c.at)
		var got []string
		for _, f := range found {
			got = append(got, f.Check+" "+string(f.State))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
			continue
		}
		last := found[len(found)-1]
		if !strings.Contains(last.Remedy, c.remedy) || (c.remedy == "") != (last.Remedy == "") {
			t.Errorf("%s: the remedy is %q, want it to say %q", name, last.Remedy, c.remedy)
		}
	}
}

func TestAChecksTextDoesNotSteerTheTerminal(t *testing.T) {
	c := checkup.Check{Check: "app", State: checkup.Warn, Millis: 1.25, Detail: "lab\x1b]0;owned\a", Remedy: "look"}
	if got, want := c.Text(false), "warn     app              1.2 ms  lab?]0;owned?\n         -> look\n"; got != want {
		t.Errorf("the check is shown as %q, want %q", got, want)
	}
}
