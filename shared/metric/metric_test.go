package metric_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/adit-tunnel/adit/shared/metric"
)

func TestMetricsAreRegisteredAsTheyAreMade(t *testing.T) {
	reg := prometheus.NewRegistry()
	for _, f := range []metric.Factory{metric.In(reg), metric.In(nil)} { // the second registers none
		f.Counters("adit_opens_total", "Opens.", "outcome").WithLabelValues("ok").Inc()
		f.Says("adit_serving", "1 while serving.", func() bool { return true })
	}
	want := `
# HELP adit_opens_total Opens.
# TYPE adit_opens_total counter
adit_opens_total{outcome="ok"} 1
# HELP adit_serving 1 while serving.
# TYPE adit_serving gauge
adit_serving 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
