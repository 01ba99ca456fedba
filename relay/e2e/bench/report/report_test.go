package report_test

import (
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/relay/e2e/bench/lab"
	"github.com/adit-tunnel/adit/relay/e2e/bench/load"
	"github.com/adit-tunnel/adit/relay/e2e/bench/report"
)

func sample(round int, row, target string, rate float64) report.Sample {
	return report.Sample{Case: report.Loopback, Round: round, Row: row, Target: target, Result: load.Result{Rate: rate, Ops: int64(rate), Moved: int64(rate)}, CPU: 1, Others: 0.1}
}

// The ratio is made within each round, so that a machine that was slow in one of them
// changes nothing.
func TestRatiosAreOfOneRound(t *testing.T) {
	var all []report.Sample
	for round, speed := range []float64{1, 0.1, 1} {
		all = append(all, sample(round, "down-1", lab.Nginx, 1e9*speed), sample(round, "down-1", lab.Adit, 1.5e9*speed))
	}
	all = append(all, report.Sample{Case: "20ms", Row: "down-1", Target: lab.Adit}) // another case's
	table := report.Make(report.Loopback, all)
	c := table.Cells["down-1"][lab.Adit]
	if c.Ratio != 1.5 || c.Rate != 1.5e9 || c.Samples != 3 || table.Rounds != 3 {
		t.Errorf("want the median 1.5e9 and the ratio 1.5 of 3 rounds; got %+v", c)
	}
	if want := 1 / 1.5e9 * (1 << 30); c.CPUPerGiB < want*0.99 || c.CPUPerGiB > want*1.01 {
		t.Errorf("a CPU second for 1.5e9 bytes should be %.3f s/GiB; got %.3f", want, c.CPUPerGiB)
	}
}

// Rounds in which others had the machine say nothing, where two others are there.
func TestDisturbedRoundsAreLeftOut(t *testing.T) {
	var all []report.Sample
	for round, speed := range []float64{1, 0.01, 1} {
		adit := sample(round, "down-1", lab.Adit, 1e9*speed)
		adit.Others = 1 - speed
		all = append(all, sample(round, "down-1", lab.Nginx, 1e9), adit)
	}
	if c := report.Make(report.Loopback, all).Cells["down-1"][lab.Adit]; c.Rate != 1e9 || c.Ratio != 1 || c.Samples != 2 {
		t.Errorf("want the two rounds that nobody disturbed; got %+v", c)
	}
	all = all[2:4] // the disturbed one alone
	if c := report.Make(report.Loopback, all).Cells["down-1"][lab.Adit]; c.Rate != 1e7 || c.Samples != 1 {
		t.Errorf("a disturbed round is better than none; got %+v", c)
	}
}

func TestBars(t *testing.T) {
	all := []report.Sample{
		sample(1, "rps-16", lab.Nginx, 1000), sample(1, "rps-16", lab.Adit, 600),
		sample(1, "rps-64", lab.Nginx, 1000), sample(1, "rps-64", lab.Adit, 400),
		{Case: report.Loopback, Target: lab.Adit, Idle: &report.Idle{RelayPSS: 20 << 20, AgentPSS: 30 << 20}},
	}
	table := report.Make(report.Loopback, all)
	met := map[string]bool{}
	for _, v := range table.Verdicts {
		met[v.What] = v.Met
	}
	want := map[string]bool{"requests, 16 connections": true, "requests, 64 connections": false, "idle PSS of the relay": true, "idle PSS of the agent": false}
	for what, wanted := range want {
		if got, ok := met[what]; !ok || got != wanted {
			t.Errorf("%s: want met=%v, got %v (judged at all: %v)", what, wanted, got, ok)
		}
	}
	if len(met) != len(want) {
		t.Errorf("only what was measured is judged; got %v", met)
	}
	var out strings.Builder
	if err := table.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"| requests, 64 connections | 1000/s x1.00 | 400/s x0.40 |", "NOT MET", "20 / 30"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("the table should contain %q:\n%s", text, out.String())
		}
	}
}

// With a line, ratios are to a direct connection.
func TestLineIsComparedWithDirect(t *testing.T) {
	var all []report.Sample
	for _, s := range []report.Sample{sample(1, "down-8", lab.Direct, 100e6), sample(1, "down-8", lab.Adit, 95e6)} {
		s.Case = "80ms"
		all = append(all, s)
	}
	table := report.Make("80ms", all)
	if len(table.Verdicts) != 1 || !table.Verdicts[0].Met || table.Verdicts[0].Value != 0.95 {
		t.Errorf("95 of 100 MB/s should meet the bar of 0.9; got %v", table.Verdicts)
	}
}
