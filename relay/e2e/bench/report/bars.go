package report

import (
	"fmt"

	"github.com/adit-tunnel/adit/relay/e2e/bench/lab"
)

// Verdict says whether a bar is met.
type Verdict struct {
	Target string  `json:"target"`
	What   string  `json:"what"`
	Value  float64 `json:"value"`
	Bar    float64 `json:"bar"`
	AtMost bool    `json:"at_most,omitempty"` // the bar is an upper one
	Unit   string  `json:"unit"`
	Met    bool    `json:"met"`
}

// String is the verdict in one line.
func (v Verdict) String() string {
	sign, met := ">=", "met"
	if v.AtMost {
		sign = "<="
	}
	if !v.Met {
		met = "NOT MET"
	}
	return fmt.Sprintf("%-9s %-48s %8.3g%s  bar %s %.3g%s  %s", v.Target, v.What, v.Value, v.Unit, sign, v.Bar, v.Unit, met)
}

// measure is a way to read a figure out of a table.
type measure int

const (
	byRatio measure = iota // of the rate to the reference's
	byRate                 // MB/s
	byP99                  // ms, at most
	byBulk                 // ratio of the bulk beside
	byCPU                  // CPU seconds a GiB, at most
)

// bar is what is wanted of a target.
type bar struct {
	row   string
	by    measure
	plain float64 // of adit
	tls   float64 // of adit-tls
}

// bars are what a relay must reach beside what it is compared with, by case.
var bars = map[string][]bar{
	Loopback: {
		{"rps-16", byRatio, 0.50, 0.45},
		{"rps-64", byRatio, 0.50, 0.45},
		{"new-16", byRatio, 0.40, 0.35},
		{"down-1", byRatio, 1.2, 0.85},
		{"down-8", byRatio, 1.6, 1.1},
		{"up-1", byRatio, 1.0, 0.7},
		{"up-8", byRatio, 1.2, 0.9},
		{"ws-1", byRatio, 0.45, 0.40},
		{"ws-64", byRatio, 0.65, 0.60},
		{"down-1", byCPU, 1.6, 2.4},
		{"mix", byP99, 10, 10},
		{"mix", byBulk, 0.75, 0.75},
	},
	"80ms": {
		{"down-1", byRatio, 1.0, 1.0},
		{"down-8", byRatio, 0.9, 0.9},
		{"mix", byP99, 130, 130},
	},
	"80ms-loss": {
		{"down-1", byRate, 12, 12},
		{"down-8", byRate, 50, 50},
		{"mix", byP99, 400, 400},
	},
}

// Bars of idle memory, in MiB.
const (
	relayPSS = 45
	agentPSS = 10
)

func judge(t Table) []Verdict {
	var out []Verdict
	titles := map[string]string{}
	for _, r := range t.Rows {
		titles[r.Name] = r.Title
	}
	for _, target := range []string{lab.Adit, lab.AditTLS} {
		for _, b := range bars[t.Case] {
			c, ok := t.Cells[b.row][target]
			if !ok {
				continue
			}
			v := Verdict{Target: target, What: titles[b.row], Bar: b.plain}
			if target == lab.AditTLS {
				v.Bar = b.tls
			}
			switch b.by {
			case byRatio:
				v.Value, v.Unit = c.Ratio, " x "+t.Reference[target]
			case byRate:
				v.Value, v.Unit = c.Rate/1e6, " MB/s"
			case byP99:
				v.Value, v.Unit, v.AtMost, v.What = c.P99, " ms", true, "p99 of "+v.What
			case byBulk:
				v.Value, v.Unit, v.What = c.BulkRatio, " x "+t.Reference[target], "the downloads beside small requests"
			case byCPU:
				v.Value, v.Unit, v.AtMost, v.What = c.CPUPerGiB, " s/GiB", true, "CPU of relay and agent, "+v.What
			}
			v.Met = v.Value >= v.Bar
			if v.AtMost {
				v.Met = v.Value <= v.Bar
			}
			out = append(out, v)
		}
		if idle, ok := t.Idle[target]; ok && t.Case == Loopback {
			for _, m := range []struct {
				what string
				pss  int64
				bar  float64
			}{{"idle PSS of the relay", idle.RelayPSS, relayPSS}, {"idle PSS of the agent", idle.AgentPSS, agentPSS}} {
				mib := float64(m.pss) / (1 << 20)
				out = append(out, Verdict{Target: target, What: m.what, Value: mib, Bar: m.bar, Unit: " MiB", AtMost: true, Met: mib <= m.bar})
			}
		}
	}
	return out
}
