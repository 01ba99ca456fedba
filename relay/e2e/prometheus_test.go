package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/testkit"
)

const configsDir = "../../configs"

// prometheus is a real one with the scrape example and the rules of configs/, that
// scrapes the world's relay and agent each second.
type prometheus struct {
	t    *testing.T
	base string
}

func startPrometheus(w *world.World, r *world.Relay, a *world.Agent) prometheus {
	w.T.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		w.T.Skip("no prometheus here (Debian: apt install prometheus)")
	}
	dir := filepath.Join(w.Dir, "prometheus")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.T.Fatal(err)
	}
	for name, change := range map[string][]string{
		"adit.rules.yml": nil,
		"prometheus.yml": {
			"relay.example.com:9464", fmt.Sprintf("127.0.0.1:%d", r.Metrics),
			"gpu-1.example.com:9465", fmt.Sprintf("127.0.0.1:%d", a.Metrics), "15s", "1s",
		},
	} {
		b, err := os.ReadFile(filepath.Join(configsDir, name))
		if err != nil {
			w.T.Fatal(err)
		}
		text := string(b)
		for i := 0; i+1 < len(change); i += 2 {
			if !strings.Contains(text, change[i]) {
				w.T.Fatalf("%s lost %q, which this test replaces", name, change[i])
			}
			text = strings.ReplaceAll(text, change[i], change[i+1])
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			w.T.Fatal(err)
		}
	}
	port := w.FreePort()
	w.Start("prometheus", nil, program, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		fmt.Sprintf("--web.listen-address=127.0.0.1:%d", port), "--log.level=warn")
	return prometheus{w.T, fmt.Sprintf("http://127.0.0.1:%d/api/v1/", port)}
}

// get calls the API of Prometheus; what it calls an error is one.
func (p prometheus) get(path string, query url.Values, into any) error {
	status, body := world.Get(http.DefaultClient, p.base+path+"?"+query.Encode())
	var envelope struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal([]byte(body), &envelope); err != nil || envelope.Status != "success" {
		return fmt.Errorf("prometheus answers %d %s %s", status, envelope.Error, body)
	}
	return json.Unmarshal(envelope.Data, into)
}

// series is how many an expression has now.
func (p prometheus) series(expr string) (int, error) {
	var out struct{ Result []json.RawMessage }
	err := p.get("query", url.Values{"query": {expr}}, &out)
	return len(out.Result), err
}

// dashboardQueries are the expressions of a dashboard, with its variables filled in.
func dashboardQueries(t *testing.T, name string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(configsDir, "grafana", name))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil || len(d.Panels) == 0 {
		t.Fatalf("%s: %v, %d panels", name, err, len(d.Panels))
	}
	fill := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*")
	out := map[string]string{}
	for _, panel := range d.Panels {
		for _, target := range panel.Targets {
			out[name+": "+panel.Title+" "+target.RefID] = fill.Replace(target.Expr)
		}
	}
	return out
}

var metricName = regexp.MustCompile(`\b(adit|go|process)_[a-z0-9_]+`)

func TestPrometheusAnswersEveryQueryAndAlert(t *testing.T) {
	together(t)
	w := world.New(t)
	r := w.Relay(world.PathForm)
	a := w.Agent(r, "gpu-1")
	p := startPrometheus(w, r, a)
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello), "host_header": "public"})
	c := w.HTTP()
	// A page of each outcome, so that no panel is about something that never was.
	use := func() {
		world.Get(c, tun.TunnelURL)
		world.Get(c, r.PathURL(tun)+"x")
		r.Raw(sk, http.MethodGet, "/agents", nil)
	}
	use()
	dead := r.Open(sk, "gpu-1", map[string]any{"target_port": w.FreePort(), "host_header": "public"})
	world.Get(c, dead.TunnelURL)

	queries := dashboardQueries(t, "relay.json")
	maps.Copy(queries, dashboardQueries(t, "fleet.json"))
	empty := map[string]string{}
	limit := time.Now().Add(testkit.Limit(40*time.Second) - 10*time.Second) // what is missing is said below
	w.Eventually(45*time.Second, "every query has an answer, or time is up", func() bool {
		use()
		clear(empty)
		if n, err := p.series(`up == 1`); err != nil || n != 2 {
			empty["both sides are scraped"] = fmt.Sprint(n, " ", err)
		}
		for name, expr := range queries {
			n, err := p.series(expr)
			if err != nil || n == 0 {
				empty[name] = fmt.Sprint(expr, " ", err)
			}
		}
		return len(empty) == 0 || time.Now().After(limit)
	})
	for name, what := range empty {
		t.Errorf("%s: no answer: %s", name, what)
	}

	var rules struct {
		Groups []struct {
			Rules []struct {
				Name, Query, Health, LastError string
				Annotations                    map[string]string
			}
		}
	}
	w.Eventually(20*time.Second, "every alert was evaluated", func() bool {
		if p.get("rules", nil, &rules) != nil || len(rules.Groups) == 0 {
			return false
		}
		for _, g := range rules.Groups {
			for _, rule := range g.Rules {
				if rule.Health == "unknown" {
					return false
				}
			}
		}
		return true
	})
	alerts := 0
	for _, g := range rules.Groups {
		for _, rule := range g.Rules {
			alerts++
			if rule.Health != "ok" {
				t.Errorf("alert %s: %s %s", rule.Name, rule.Health, rule.LastError)
			}
			if rule.Annotations["runbook"] == "" || rule.Annotations["summary"] == "" {
				t.Errorf("alert %s has no summary or no runbook line", rule.Name)
			}
			queries["alert "+rule.Name] = rule.Query
		}
	}

	// Whatever is named is there: an expression about a name with a fault in it would
	// be silent for ever.
	_, scraped := world.Get(c, fmt.Sprintf("http://127.0.0.1:%d/metrics", r.Metrics))
	_, agent := world.Get(c, fmt.Sprintf("http://127.0.0.1:%d/metrics", a.Metrics))
	scraped += agent
	names := map[string]bool{}
	for where, expr := range queries {
		for _, name := range metricName.FindAllString(expr, -1) {
			names[name] = true
			if !strings.Contains(scraped, "\n"+name+"{") && !strings.Contains(scraped, "\n"+name+" ") {
				t.Errorf("%s names %s, which neither side has", where, name)
			}
		}
	}
	t.Logf("%d expressions, %d of them alerts, over %d metrics", len(queries), alerts, len(names))
}
