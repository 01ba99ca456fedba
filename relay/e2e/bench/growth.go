package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/bench/crowd"
	"github.com/adit-tunnel/adit/relay/e2e/bench/lab"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/ident"
)

// growth measures one relay as it gets more agents and tunnels.
type growth struct {
	o        *options
	lab      *lab.Lab
	relay    *lab.Relay
	crowd    *lab.Asked // the agents
	observer *lab.Asked // a second relay's view of the store
	api      *client.Client
	found    findings
}

const (
	opensTimed = 200  // opened one after another
	churnRate  = 1000 // changes a second
	openers    = 32   // opening at once
	perAgent   = 64   // tunnels, at most: the relay's own limit
)

// grow runs the whole of it.
func (o *options) grow(ctx context.Context, dir string) error {
	if o.quick {
		o.agents, o.tunnels = 50, 200
	}
	if most := o.agents * perAgent; o.tunnels > most {
		return fmt.Errorf("%d agents have at most %d tunnels, not %d", o.agents, most, o.tunnels)
	}
	l := &lab.Lab{Near: lab.Loopback{}, Far: lab.Loopback{}, Bin: o.bin, Dir: filepath.Join(dir, "g")}
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return err
	}
	defer l.End()
	g := &growth{o: o, lab: l}
	for _, step := range []func(context.Context) error{g.start, g.agents, g.idle, g.watch, g.tunnels} {
		if err := step(ctx); err != nil {
			return fmt.Errorf("growth: %w", err)
		}
	}
	return g.found.print(os.Stdout)
}

// steps of a curve.
func (g *growth) steps() int {
	if g.o.quick {
		return 2
	}
	return 10
}

// start starts the relay, its observer and a crowd of nobody.
func (g *growth) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if g.relay, err = g.lab.StartRelay(ctx, "g", false,
		"ADIT_LOG_LEVEL=warn", "ADIT_LIMITS_AGENTS="+strconv.Itoa(g.o.agents+1), "ADIT_LIMITS_AGENTS_PER_TEAM="+strconv.Itoa(10*g.o.agents), "ADIT_LIMITS_OPENS_PER_MINUTE=100000000",
		"ADIT_LIMITS_TUNNELS_PER_AGENT="+strconv.Itoa(perAgent), "ADIT_LIMITS_TUNNELS_PER_TEAM="+strconv.Itoa(g.o.tunnels+2*opensTimed),
		"ADIT_LIMITS_CONNECTIONS_PER_ADDRESS="+strconv.Itoa(g.o.agents+1000)); err != nil {
		return err
	}
	secret, err := g.relay.Credential(ctx, "agent")
	if err != nil {
		return err
	}
	base := "http://127.0.0.1:" + g.relay.Port
	if g.api, err = client.New(client.Config{
		BaseURL: base, Token: ident.Secret(g.relay.Token()), Transport: &http.Transport{MaxIdleConnsPerHost: openers}, Timeout: time.Minute,
	}); err != nil {
		return err
	}
	if g.observer, err = g.lab.StartAsked(lab.Loopback{}, "observer", filepath.Join(filepath.Dir(self), "observer"), nil, g.relay.Store()); err != nil {
		return err
	}
	g.crowd, err = g.lab.StartAsked(lab.Loopback{}, "crowd", self, []string{"BENCH_CREDENTIAL=" + secret}, "crowd", base)
	return err
}

// point reads what the relay and the observer use now.
func (g *growth) point(ctx context.Context, agents, tunnels int) (point, error) {
	if !g.o.quick {
		pause(ctx, 2*time.Second) // what connecting took goes
	}
	// The collection is asked for, so that garbage is no part of the curve.
	if _, err := g.get(ctx, "/debug/pprof/heap?gc=1"); err != nil {
		return point{}, err
	}
	metrics, err := g.get(ctx, "/metrics")
	if err != nil {
		return point{}, err
	}
	m := lab.ReadMemory(g.relay.PID)
	p := point{Agents: agents, Tunnels: tunnels, PSS: m.PSS, RSS: m.RSS}
	p.Goroutines = int(metric(metrics, "go_goroutines"))
	p.Heap = int64(metric(metrics, "go_memstats_heap_alloc_bytes"))
	p.Store = int64(metric(metrics, "adit_relay_store_size_bytes"))
	var seen observed
	if err := g.observer.Ask(&seen, "memory"); err != nil {
		return point{}, err
	}
	p.Index = seen.Heap
	fmt.Fprintf(os.Stderr, "growth: %d agents, %d tunnels\n", agents, tunnels)
	return p, ctx.Err()
}

// observed is what the observer answers.
type observed struct {
	Heap    int64   `json:"heap"`
	Tunnels int     `json:"tunnels"`
	Events  int64   `json:"events"`
	CPU     float64 `json:"cpu_s"`
}

func (g *growth) get(ctx context.Context, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.relay.Metrics+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", errors.Join(err, g.relay.Alive())
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// metric finds a metric without labels; 0 when there is none.
func metric(text, name string) float64 {
	for in := bufio.NewScanner(strings.NewReader(text)); in.Scan(); {
		if rest, ok := strings.CutPrefix(in.Text(), name+" "); ok {
			v, err := strconv.ParseFloat(rest, 64)
			if err == nil {
				return v
			}
		}
	}
	return 0
}

func (g *growth) askCrowd(format string, args ...any) (int, error) {
	var done crowdDone
	if err := g.crowd.Ask(&done, format, args...); err != nil {
		return 0, errors.Join(err, g.relay.Alive())
	}
	g.found.again = done.Again
	if done.Error != "" {
		return done.N, errors.Join(errors.New(done.Error), g.relay.Alive())
	}
	return done.N, nil
}

// agents connects them step by step.
func (g *growth) agents(ctx context.Context) error {
	p, err := g.point(ctx, 0, 0)
	if err != nil {
		return err
	}
	g.found.agents = []point{p}
	if _, err := g.askCrowd("grow 1"); err != nil {
		return err
	}
	if g.found.openAtOne, err = g.timedOpens(ctx, 1); err != nil {
		return err
	}
	for i := range g.steps() {
		n := max(1, g.o.agents*(i+1)/g.steps())
		since := time.Now()
		if _, err := g.askCrowd("grow %d", n); err != nil {
			return err
		}
		took := time.Since(since)
		if p, err = g.point(ctx, n, 0); err != nil {
			return err
		}
		p.PerSecond = float64(n-g.found.agents[len(g.found.agents)-1].Agents) / took.Seconds()
		g.found.agents = append(g.found.agents, p)
	}
	for _, what := range []string{"heap", "goroutine"} {
		if err := g.profile(ctx, what, "agents-"+what); err != nil {
			return err
		}
	}
	g.found.openAtAll, err = g.timedOpens(ctx, g.o.agents)
	return err
}

// profile writes one of the relay's profiles, if profiles are asked for.
func (g *growth) profile(ctx context.Context, what, name string) error {
	if g.o.profile == "" {
		return nil
	}
	from := lab.Profile{Place: lab.Loopback{}, Addr: g.relay.Metrics}
	return fetch(ctx, from, "/debug/pprof/"+what, filepath.Join(g.o.profile, "growth-"+name+".pprof"))
}

// timedOpens opens tunnels one after another on agents all over, closes them again,
// and returns the times of opening.
func (g *growth) timedOpens(ctx context.Context, agents int) (percentiles, error) {
	n := opensTimed
	if g.o.quick {
		n = 5
	}
	var times []time.Duration
	for i := range n {
		agent := crowd.Name(i * 7919 % agents)
		took, t, err := g.open(ctx, agent)
		if err != nil {
			return percentiles{}, err
		}
		times = append(times, took)
		if _, err := g.api.CloseTunnel(ctx, agent, t.SessionID); err != nil {
			return percentiles{}, err
		}
	}
	return sumUp(times), nil
}

func (g *growth) open(ctx context.Context, agent ident.AgentID) (time.Duration, api.Tunnel, error) {
	since := time.Now()
	day := api.Duration(24 * time.Hour)
	req, key := api.OpenTunnelRequest{IdleTimeout: &day, ExpiresIn: &day, Label: "bench"}, ident.NewNonce()
	for {
		t, err := g.api.OpenTunnel(ctx, agent, req, key)
		if err == nil {
			return time.Since(since), t, nil
		}
		if !client.Temporary(err) || ctx.Err() != nil || time.Since(since) > time.Minute {
			return 0, t, errors.Join(fmt.Errorf("open a tunnel to %s: %w", agent, err), g.relay.Alive())
		}
		g.found.refused.Add(1) // what people would do: the same again, a little later
		pause(ctx, 2*time.Second)
	}
}

// idle measures what all agents cost when nothing happens.
func (g *growth) idle(ctx context.Context) error {
	d := 10 * time.Second
	if g.o.quick {
		d = time.Second
	}
	before := lab.CPU(g.relay.PID)
	pause(ctx, d)
	g.found.idleCPU = (lab.CPU(g.relay.PID) - before).Seconds() / d.Seconds()
	return errors.Join(ctx.Err(), g.profile(ctx, "profile?seconds=10", "idle-cpu"))
}

// watch measures what changes of agents cost: the relay, which writes them down, and
// a relay that only hears of them.
func (g *growth) watch(context.Context) error {
	seconds := 10
	if g.o.quick {
		seconds = 1
	}
	var before, after observed
	if err := g.observer.Ask(&before, "events"); err != nil {
		return err
	}
	cpu, since := lab.CPU(g.relay.PID), time.Now()
	n, err := g.askCrowd("churn %d %d", churnRate, seconds)
	if err != nil {
		return err
	}
	// What was said may take longer to be written than to be said.
	for quiet := 0; quiet < 5 && time.Since(since) < time.Minute; {
		last := after.Events
		if err := g.observer.Ask(&after, "events"); err != nil {
			return err
		}
		if quiet++; after.Events != last {
			quiet = 0
		}
		time.Sleep(100 * time.Millisecond)
	}
	took := time.Since(since).Seconds()
	f := &g.found
	f.churned, f.events = n, after.Events-before.Events
	f.churnRate = float64(n) / took
	f.churnCPU = (lab.CPU(g.relay.PID) - cpu).Seconds() - f.idleCPU*took
	f.eventCPU = after.CPU - before.CPU
	return nil
}

// tunnels opens them step by step, several at once, evenly over the agents.
func (g *growth) tunnels(ctx context.Context) error {
	p, err := g.point(ctx, g.o.agents, 0)
	if err != nil {
		return err
	}
	g.found.tunnels = []point{p}
	opened := 0
	for i := range g.steps() {
		n := max(1, g.o.tunnels*(i+1)/g.steps())
		since := time.Now()
		profiled := make(chan error, 1)
		if i == g.steps()-1 {
			go func() { profiled <- g.profile(ctx, "profile?seconds=10", "opens-cpu") }()
		} else {
			profiled <- nil
		}
		times, err := g.openMany(ctx, opened, n)
		if err != nil {
			return err
		}
		took := time.Since(since)
		if err := <-profiled; err != nil {
			return err
		}
		if p, err = g.point(ctx, g.o.agents, n); err != nil {
			return err
		}
		p.PerSecond, p.Opens = float64(n-opened)/took.Seconds(), sumUp(times)
		g.found.tunnels = append(g.found.tunnels, p)
		opened = n
	}
	var seen observed
	if err := g.observer.Ask(&seen, "events"); err != nil {
		return err
	}
	if seen.Tunnels != opened {
		return fmt.Errorf("%d tunnels were opened, and the index of another relay has %d", opened, seen.Tunnels)
	}
	return nil
}

func (g *growth) openMany(ctx context.Context, from, to int) ([]time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	next := make(chan int)
	var mu sync.Mutex
	var times []time.Duration
	for range openers {
		wg.Go(func() {
			for i := range next {
				took, _, err := g.open(ctx, crowd.Name(i%g.o.agents))
				if err != nil {
					cancel(err)
					return
				}
				mu.Lock()
				times = append(times, took)
				mu.Unlock()
			}
		})
	}
	for i := from; i < to && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return times, context.Cause(ctx)
}

// percentiles of times, in milliseconds.
type percentiles struct{ P50, P99 float64 }

func sumUp(times []time.Duration) percentiles {
	if len(times) == 0 {
		return percentiles{}
	}
	slices.Sort(times)
	ms := func(p float64) float64 {
		return float64(times[min(int(p*float64(len(times))), len(times)-1)]) / float64(time.Millisecond)
	}
	return percentiles{ms(0.5), ms(0.99)}
}
