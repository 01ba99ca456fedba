package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/bench/lab"
	"github.com/adit-tunnel/adit/relay/e2e/bench/report"
)

const usage = `usage: scripts/bench [--case CASES] [--rounds N] [options]
       scripts/bench --quick
       scripts/bench --growth [--agents N] [--tunnels N]

Builds everything and measures it beside what it is compared with, as processes of
their own: a direct connection, nginx as a plain reverse proxy, and ssh -R. Users and
the relay are near, the agent and the app far. The loads take turns over all of them,
round by round, so that what else the machine does falls on all alike. Prints a table
of medians with ratios, and for each bar whether it is met.

Cases: loopback (ratios to nginx), and with a wide-area line of 1 Gbit/s between near
and far: 20ms, 80ms, 80ms-loss (1 %%) (ratios to direct; needs root, /dev/net/tun and
network namespaces). The TCP at both ends of the line is the kernel's own, with cubic
as its default; a user-space program carries the packets, late, or not at all.

adit is a relay without TLS; adit-tls one with TLS on its only listener, so on the link
and towards users: it is compared with nginx-tls, nginx that speaks TLS to users.

  --case CASES      comma-separated (default: loopback,20ms,80ms,80ms-loss)
  --rounds N        (default 5)
  --rows ROWS       comma-separated names or their beginnings: %s
  --targets NAMES   comma-separated: %s
  --links N         links of the agent (default: the agent's own default)
  --congestion NAME the hosts' congestion control in the cases with a line (default cubic)
  --for DURATION    of each measurement (default 1s, with a line 2s)
  --samples FILE    add the samples to those of earlier runs in FILE, and print all
  --json FILE       write the tables as JSON as well
  --profile DIR     write CPU profiles of relay and agent during each row of round 1;
                    with --growth, of the relay with all agents: its heap,
                    its goroutines, and what idle agents and opening cost it
  --quick           one short round of everything: does it still run?
  --growth          memory and latency of a relay with many agents and tunnels
  --agents N        with --growth: up to so many idle agents (default 10000)
  --tunnels N       with --growth: up to so many open tunnels (default 100000)

A full run takes about 25 minutes, a case about 6.

examples:
  scripts/bench --case loopback
  scripts/bench --case loopback --targets nginx,adit --rows down,rps-64 --profile /tmp/profiles
  scripts/bench --case 80ms-loss --rounds 2 --samples /tmp/samples.jsonl
  scripts/bench --growth --agents 2000 --tunnels 10000
`

// options are the command line.
type options struct {
	cases      []kase
	rounds     int
	rows       []report.Row
	targets    []string // empty: the case's own
	links      int
	congestion string
	duration   time.Duration
	samples    string
	json       string
	profile    string
	quick      bool
	growth     bool
	agents     int
	tunnels    int
	bin        string
}

func parse(args []string) (*options, error) {
	o := &options{}
	var cases, rows, targets string
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&cases, "case", "", "")
	fs.IntVar(&o.rounds, "rounds", 5, "")
	fs.StringVar(&rows, "rows", "", "")
	fs.StringVar(&targets, "targets", "", "")
	fs.IntVar(&o.links, "links", 0, "")
	fs.StringVar(&o.congestion, "congestion", "cubic", "")
	fs.DurationVar(&o.duration, "for", 0, "")
	fs.StringVar(&o.samples, "samples", "", "")
	fs.StringVar(&o.json, "json", "", "")
	fs.StringVar(&o.profile, "profile", "", "")
	fs.BoolVar(&o.quick, "quick", false, "")
	fs.BoolVar(&o.growth, "growth", false, "")
	fs.IntVar(&o.agents, "agents", 10000, "")
	fs.IntVar(&o.tunnels, "tunnels", 100000, "")
	fs.StringVar(&o.bin, "bin", "", "") // scripts/bench says where it built
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		var names []string
		for _, r := range report.Rows {
			names = append(names, r.Name)
		}
		_, err := fmt.Printf(usage, strings.Join(names, ", "), strings.Join(lab.Targets, ", "))
		return nil, errors.Join(flag.ErrHelp, err)
	case err != nil:
		return nil, fmt.Errorf("%w (see --help)", err)
	case fs.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q (see --help)", fs.Arg(0))
	case o.bin == "":
		return nil, errors.New("where are the programs? run scripts/bench")
	case o.rounds < 1 || o.agents < 1 || o.tunnels < 1:
		return nil, errors.New("--rounds, --agents and --tunnels are 1 or more")
	}
	if o.cases, err = findCases(cases); err != nil {
		return nil, err
	}
	if o.rows, err = findRows(rows); err != nil {
		return nil, err
	}
	if o.quick && cases == "" {
		o.cases = []kase{allCases[0], allCases[len(allCases)-1]}
	}
	if targets != "" {
		o.targets = strings.Split(targets, ",")
		for _, t := range o.targets {
			if !slices.Contains(lab.Targets, t) {
				return nil, fmt.Errorf("no such target: %q (there are %s)", t, strings.Join(lab.Targets, ", "))
			}
		}
	}
	return o, nil
}

func findRows(list string) ([]report.Row, error) {
	if list == "" {
		return report.Rows, nil
	}
	var out []report.Row
	for want := range strings.SplitSeq(list, ",") {
		n := len(out)
		for _, r := range report.Rows {
			if strings.HasPrefix(r.Name, want) && !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
		if n == len(out) {
			return nil, fmt.Errorf("no such row: %q", want)
		}
	}
	return out, nil
}

// run does what the command line asks for.
func (o *options) run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "adit-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what is left is in the temporary directory
	if o.growth {
		return o.grow(ctx, dir)
	}
	var samples []report.Sample
	if o.samples != "" {
		if samples, err = readSamples(o.samples); err != nil {
			return err
		}
	}
	var tables []report.Table
	for _, k := range o.cases {
		more, err := o.runCase(ctx, k, dir, samples)
		if err != nil {
			return fmt.Errorf("case %s: %w", k.name, err)
		}
		samples = append(samples, more...)
		if o.samples != "" {
			if err := addSamples(o.samples, more); err != nil {
				return err
			}
		}
		t := report.Make(k.name, samples)
		if err := t.Print(os.Stdout); err != nil {
			return err
		}
		tables = append(tables, t)
	}
	if o.json != "" {
		b, err := json.MarshalIndent(tables, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if o.quick {
		return o.grow(ctx, dir)
	}
	return nil
}

func readSamples(path string) ([]report.Sample, error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	defer f.Close()
	var out []report.Sample
	for dec := json.NewDecoder(f); ; {
		var s report.Sample
		err := dec.Decode(&s)
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		out = append(out, s)
	}
}

func addSamples(path string, samples []report.Sample) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(f)
	for _, s := range samples {
		if err := enc.Encode(s); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}
