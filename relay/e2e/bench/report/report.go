// Package report makes medians, ratios and verdicts of a bench's samples. It owns the
// rows of the table and the bars; it measures nothing.
package report

import (
	"slices"

	"github.com/adit-tunnel/adit/relay/e2e/bench/lab"
	"github.com/adit-tunnel/adit/relay/e2e/bench/load"
)

// Row is one line of the table: a load.
type Row struct {
	Name  string `json:"name"`
	Title string `json:"title"`
	Kind  string `json:"-"`
	Conns int    `json:"-"`
}

// Rows are the loads, in the order of tables.
var Rows = []Row{
	{"rps-16", "requests, 16 connections", load.Requests, 16},
	{"rps-64", "requests, 64 connections", load.Requests, 64},
	{"new-16", "new connections, 16", load.NewConns, 16},
	{"down-1", "download, 1 stream", load.Download, 1},
	{"down-8", "download, 8 streams", load.Download, 8},
	{"up-1", "upload, 1 stream", load.Upload, 1},
	{"up-8", "upload, 8 streams", load.Upload, 8},
	{"ws-1", "WebSocket echoes, 1 socket", load.WebSockets, 1},
	{"ws-64", "WebSocket echoes, 64 sockets", load.WebSockets, 64},
	{"mix", "small requests under 4 downloads", load.UnderBulk, 4},
}

// IsBytes says whether the row's rate is in bytes.
func (r Row) IsBytes() bool { return r.Kind == load.Download || r.Kind == load.Upload }

// Sample is one measurement.
type Sample struct {
	Case   string      `json:"case"`
	Round  int         `json:"round"`
	Row    string      `json:"row"`
	Target string      `json:"target"`
	Result load.Result `json:"result"`
	CPU    float64     `json:"cpu_s"`          // of relay and agent, seconds
	Others float64     `json:"others"`         // share of the machine that was none of the bench's
	Links  int         `json:"links"`          // of the agent, as configured; 0: the default
	Idle   *Idle       `json:"idle,omitempty"` // instead of a load: before any
}

// Idle is the memory of a target that nobody uses yet, in bytes.
type Idle struct {
	RelayPSS int64 `json:"relay_pss"`
	AgentPSS int64 `json:"agent_pss"`
	RelayRSS int64 `json:"relay_rss"`
	AgentRSS int64 `json:"agent_rss"`
}

// Cell is what one target did in one row: medians over the rounds. The ratio is the
// median of each round's own ratio, so that what the machine did meanwhile falls out.
type Cell struct {
	Rate      float64 `json:"rate"` // a second: answers, echoes or bytes
	Ratio     float64 `json:"ratio,omitempty"`
	Bulk      float64 `json:"bulk,omitempty"` // bytes a second
	BulkRatio float64 `json:"bulk_ratio,omitempty"`
	P50       float64 `json:"p50_ms,omitempty"`
	P99       float64 `json:"p99_ms,omitempty"`
	CPUPerGiB float64 `json:"cpu_s_per_gib,omitempty"`
	CPUPerOp  float64 `json:"cpu_us_per_op,omitempty"`
	Spread    float64 `json:"spread"` // half of what lies between worst and best, as a share of the median
	Errors    int64   `json:"errors,omitempty"`
	Samples   int     `json:"samples"`
}

// Table is the outcome of a case.
type Table struct {
	Case      string                     `json:"case"`
	Rounds    int                        `json:"rounds"`
	Others    float64                    `json:"others"` // median share of the machine that others used
	Reference map[string]string          `json:"reference"`
	Targets   []string                   `json:"targets"`
	Rows      []Row                      `json:"rows"`
	Cells     map[string]map[string]Cell `json:"cells"` // row, target
	Idle      map[string]Idle            `json:"idle"`
	Verdicts  []Verdict                  `json:"bars"`
}

// Loopback is the name of the case whose ratios are to nginx; those of the others
// are to a direct connection.
const Loopback = "loopback"

// reference is what a target is compared with.
func reference(kase, target string) string {
	switch {
	case kase != Loopback:
		return lab.Direct
	case target == lab.AditTLS || target == lab.NginxTLS:
		return lab.NginxTLS
	}
	return lab.Nginx
}

// Make makes the table of one case.
func Make(kase string, samples []Sample) Table {
	t := Table{Case: kase, Reference: map[string]string{}, Cells: map[string]map[string]Cell{}, Idle: map[string]Idle{}}
	by := map[string]map[string]map[int]Sample{} // row, target, round
	rounds := map[int]bool{}
	var others []float64
	for _, s := range samples {
		if s.Case != kase {
			continue
		}
		if s.Idle != nil {
			t.Idle[s.Target] = *s.Idle
			continue
		}
		if by[s.Row] == nil {
			by[s.Row] = map[string]map[int]Sample{}
		}
		if by[s.Row][s.Target] == nil {
			by[s.Row][s.Target] = map[int]Sample{}
		}
		by[s.Row][s.Target][s.Round] = s
		rounds[s.Round] = true
		others = append(others, s.Others)
		if !slices.Contains(t.Targets, s.Target) {
			t.Targets = append(t.Targets, s.Target)
			t.Reference[s.Target] = reference(kase, s.Target)
		}
	}
	slices.SortFunc(t.Targets, func(a, b string) int { return slices.Index(lab.Targets, a) - slices.Index(lab.Targets, b) })
	t.Rounds, t.Others = len(rounds), median(others)
	for _, row := range Rows {
		if by[row.Name] == nil {
			continue
		}
		t.Rows = append(t.Rows, row)
		t.Cells[row.Name] = map[string]Cell{}
		for target, mine := range by[row.Name] {
			t.Cells[row.Name][target] = cell(row, mine, by[row.Name][t.Reference[target]])
		}
	}
	t.Verdicts = judge(t)
	return t
}

// tooBusy is the share of the machine in the hands of others above which a sample says
// more about them. Such samples count only where there are no two better ones.
const tooBusy = 0.5

// clean leaves out the samples that others disturbed.
func clean(all map[int]Sample) map[int]Sample {
	good := map[int]Sample{}
	for round, s := range all {
		if s.Others <= tooBusy {
			good[round] = s
		}
	}
	if len(good) < 2 {
		return all
	}
	return good
}

// cell sums up one target's rounds of a row, and compares each with the reference's.
func cell(row Row, mine, theirs map[int]Sample) Cell {
	mine, theirs = clean(mine), clean(theirs)
	var rate, ratio, bulk, bulkRatio, p50, p99, perGiB, perOp []float64
	c, paired := Cell{Samples: len(mine)}, false
	for round, s := range mine {
		r := s.Result
		rate, bulk, p50, p99 = append(rate, r.Rate), append(bulk, r.Bulk), append(p50, r.P50), append(p99, r.P99)
		c.Errors += r.Errors
		if r.Moved > 0 && row.IsBytes() {
			perGiB = append(perGiB, s.CPU/float64(r.Moved)*(1<<30))
		}
		if r.Ops > 0 && row.Kind != load.UnderBulk {
			perOp = append(perOp, s.CPU/float64(r.Ops)*1e6)
		}
		if ref, ok := theirs[round]; ok {
			paired = true
			if ref.Result.Rate > 0 {
				ratio = append(ratio, r.Rate/ref.Result.Rate)
			}
			if ref.Result.Bulk > 0 {
				bulkRatio = append(bulkRatio, r.Bulk/ref.Result.Bulk)
			}
		}
	}
	c.Rate, c.Ratio, c.Bulk, c.BulkRatio = median(rate), median(ratio), median(bulk), median(bulkRatio)
	if !paired && len(theirs) > 0 { // no round was quiet for both
		c.Ratio, c.BulkRatio = unpaired(mine, theirs)
	}
	c.P50, c.P99, c.CPUPerGiB, c.CPUPerOp = median(p50), median(p99), median(perGiB), median(perOp)
	if c.Rate > 0 {
		c.Spread = (slices.Max(rate) - slices.Min(rate)) / 2 / c.Rate
	}
	return c
}

// unpaired is the ratio of medians.
func unpaired(mine, theirs map[int]Sample) (rate, bulk float64) {
	of := func(all map[int]Sample, figure func(load.Result) float64) float64 {
		var v []float64
		for _, s := range all {
			v = append(v, figure(s.Result))
		}
		return median(v)
	}
	if ref := of(theirs, func(r load.Result) float64 { return r.Rate }); ref > 0 {
		rate = of(mine, func(r load.Result) float64 { return r.Rate }) / ref
	}
	if ref := of(theirs, func(r load.Result) float64 { return r.Bulk }); ref > 0 {
		bulk = of(mine, func(r load.Result) float64 { return r.Bulk }) / ref
	}
	return rate, bulk
}

// median is 0 for nothing.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
