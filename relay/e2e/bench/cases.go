package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/bench/lab"
	"github.com/adit-tunnel/adit/relay/e2e/bench/load"
	"github.com/adit-tunnel/adit/relay/e2e/bench/report"
)

// kase is a line between near and far; without a round trip, it is loopback.
type kase struct {
	name string
	rtt  time.Duration
	loss float64
}

var allCases = []kase{
	{name: report.Loopback},
	{name: "20ms", rtt: 20 * time.Millisecond},
	{name: "80ms", rtt: 80 * time.Millisecond},
	{name: "80ms-loss", rtt: 80 * time.Millisecond, loss: 0.01},
}

func findCases(list string) ([]kase, error) {
	if list == "" {
		return allCases, nil
	}
	var out []kase
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(allCases, func(k kase) bool { return k.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no such case: %q (there are loopback, 20ms, 80ms, 80ms-loss)", name)
		}
		out = append(out, allCases[i])
	}
	return out, nil
}

// targetsOf are those of a case: with a line, what a proxy on the near side adds is
// lost in it, so nginx is left out.
func (o *options) targetsOf(k kase) []string {
	switch {
	case len(o.targets) > 0:
		return o.targets
	case k.rtt == 0:
		return lab.Targets
	case o.quick:
		return []string{lab.Direct, lab.Adit}
	}
	return []string{lab.Direct, lab.SSH, lab.Adit, lab.AditTLS}
}

// rowsOf leaves out what says nothing about a long line: how fast a WebSocket's echo
// is, and one connection count more.
func (o *options) rowsOf(k kase) []report.Row {
	return slices.DeleteFunc(slices.Clone(o.rows), func(r report.Row) bool {
		switch {
		case o.quick && k.rtt > 0:
			return r.Name != "down-8" && r.Name != "mix"
		case o.quick:
			return r.Name == "rps-64" || r.Name == "down-1" || r.Name == "up-8" || r.Name == "ws-1"
		case k.rtt > 0:
			return r.Kind == load.WebSockets || r.Name == "rps-64"
		}
		return false
	})
}

// times are how long a load runs before and while it is measured.
func (o *options) times(k kase, row report.Row) (warm, during time.Duration) {
	switch {
	case o.quick && k.rtt == 0:
		return 50 * time.Millisecond, 200 * time.Millisecond
	case o.quick:
		return 500 * time.Millisecond, 500 * time.Millisecond
	case k.rtt == 0:
		warm, during = 200*time.Millisecond, time.Second
	default:
		// A sender needs some round trips before it knows the line.
		warm, during = max(500*time.Millisecond, 15*k.rtt), 2*time.Second
	}
	if o.duration > 0 {
		during = o.duration
	}
	if row.Kind == load.UnderBulk {
		during *= 2 // for a 99th percentile
	}
	return warm, during
}

// runCase starts everything of a case, measures and ends it. Earlier samples say
// which rounds there are already.
func (o *options) runCase(ctx context.Context, k kase, dir string, earlier []report.Sample) ([]report.Sample, error) {
	l := &lab.Lab{Near: lab.Loopback{}, Far: lab.Loopback{}, Bin: o.bin, Dir: filepath.Join(dir, k.name), Links: o.links}
	var err error
	if l.Self, err = os.Executable(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, err
	}
	if k.rtt > 0 {
		end, err := o.line(ctx, k, l)
		if err != nil {
			return nil, err
		}
		defer end()
	}
	defer l.End()
	if err := l.StartOrigin(); err != nil {
		return nil, err
	}
	var targets []*lab.Target
	for _, name := range o.targetsOf(k) {
		t, err := l.StartTarget(ctx, name)
		if err != nil {
			return nil, err
		}
		if _, err := o.load(ctx, l, load.Spec{Endpoint: t.Endpoint, Kind: load.Wait, For: 30 * time.Second}); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		targets = append(targets, t)
	}
	first := 1
	for _, s := range earlier {
		if s.Case == k.name {
			first = max(first, s.Round+1)
		}
	}
	samples := o.idle(ctx, k, targets)
	rounds, rows := o.rounds, o.rowsOf(k)
	if o.quick {
		rounds = 1
	}
	for round := first; round < first+rounds; round++ {
		for _, row := range rows {
			for i := range targets {
				// Another one is first each time.
				s, err := o.measure(ctx, l, k, targets[(i+round)%len(targets)], row, round, round == 1)
				if err != nil {
					return nil, err
				}
				samples = append(samples, s)
			}
		}
		fmt.Fprintf(os.Stderr, "%s: round %d of %d\n", k.name, round-first+1, rounds)
	}
	return samples, nil
}

// idle lets the processes settle and reads their memory.
func (o *options) idle(ctx context.Context, k kase, targets []*lab.Target) []report.Sample {
	if !o.quick {
		pause(ctx, 3*time.Second)
	}
	var out []report.Sample
	for _, t := range targets {
		if t.Relay == nil {
			continue
		}
		s := report.Sample{Case: k.name, Target: t.Name, Idle: &report.Idle{}}
		m := lab.ReadMemory(t.Relay.PID)
		s.Idle.RelayPSS, s.Idle.RelayRSS = m.PSS, m.RSS
		if t.Agent != nil {
			m := lab.ReadMemory(t.Agent.PID)
			s.Idle.AgentPSS, s.Idle.AgentRSS = m.PSS, m.RSS
		}
		out = append(out, s)
	}
	return out
}

// load runs a load as a process of its own, near.
func (o *options) load(ctx context.Context, l *lab.Lab, s load.Spec) (load.Result, error) {
	var r load.Result
	doc, err := json.Marshal(s)
	if err != nil {
		return r, err
	}
	out, err := l.Run(ctx, l.Near, nil, l.Self, "load", string(doc))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(out, &r)
}

// measure takes one sample.
func (o *options) measure(ctx context.Context, l *lab.Lab, k kase, t *lab.Target, row report.Row, round int, first bool) (report.Sample, error) {
	s := report.Sample{Case: k.name, Round: round, Row: row.Name, Target: t.Name, Links: o.links}
	spec := load.Spec{Endpoint: t.Endpoint, Kind: row.Kind, Conns: row.Conns, Counter: l.Counter}
	spec.Warm, spec.For = o.times(k, row)
	pause(ctx, 100*time.Millisecond+k.rtt) // what the one before left under way
	if err := l.Alive(); err != nil {
		return s, err
	}
	profiled := func() error { return nil }
	if o.profile != "" && first {
		profiled = o.profiles(ctx, k, t, row, spec)
	}
	cpu, own := lab.CPU(t.PIDs()...), lab.CPU(os.Getpid())
	used, all := lab.Busy()
	var err error
	s.Result, err = o.load(ctx, l, spec)
	if err == nil && s.Result.Rate == 0 && s.Result.Errors == 0 {
		// On a machine that was busy elsewhere for so long, a short measurement says nothing.
		spec.For *= 10
		s.Result, err = o.load(ctx, l, spec)
	}
	s.CPU = (lab.CPU(t.PIDs()...) - cpu).Seconds()
	used2, all2 := lab.Busy()
	if all2 > all {
		s.Others = max(0, float64(used2-used-(lab.CPU(os.Getpid())-own))/float64(all2-all))
	}
	if err == nil {
		err = profiled()
	}
	switch {
	case ctx.Err() != nil:
		return s, context.Cause(ctx)
	case err != nil:
		return s, fmt.Errorf("%s, %s: %w", row.Name, t.Name, err)
	case s.Result.Errors > 0:
		fmt.Fprintf(os.Stderr, "%s: %s, %s: %d errors, the first: %s\n", k.name, row.Name, t.Name, s.Result.Errors, s.Result.Problem)
	}
	if s.Result.Rate == 0 && k.rtt == 0 && row.Kind != load.UnderBulk {
		return s, fmt.Errorf("%s, %s: nothing came through: %s", row.Name, t.Name, s.Result.Problem)
	}
	return s, nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
