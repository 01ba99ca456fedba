package main

import (
	"fmt"
	"io"
	"strings"
	"sync/atomic"
)

// point is a relay at one moment of its growth. Sizes are in bytes.
type point struct {
	Agents, Tunnels int
	PSS, RSS, Heap  int64
	Store           int64 // of the store's file
	Index           int64 // alive in a process that has the index and nothing else
	Goroutines      int
	PerSecond       float64 // agents or tunnels of the step before
	Opens           percentiles
}

// findings are what the growth showed.
type findings struct {
	agents, tunnels      []point // the first of each is before any
	openAtOne, openAtAll percentiles
	again                int64        // agents that had to connect once more
	refused              atomic.Int64 // opens that the relay put off, and that were asked for again
	idleCPU              float64      // share of a core
	churned              int
	events               int64
	churnRate            float64 // a second
	churnCPU, eventCPU   float64 // seconds
}

// barIdleAgent is what an idle agent may cost the relay, in KiB.
const barIdleAgent = 60

const kib, mib = 1 << 10, 1 << 20

// each is the growth of a figure per unit, over a whole curve.
func each(curve []point, count func(point) int, figure func(point) int64) float64 {
	first, last := curve[0], curve[len(curve)-1]
	return float64(figure(last)-figure(first)) / float64(max(1, count(last)-count(first)))
}

func countAgents(p point) int  { return p.Agents }
func countTunnels(p point) int { return p.Tunnels }

func (f *findings) print(w io.Writer) error {
	var b strings.Builder
	b.WriteString("\n### growth: idle agents, each with a link of its own\n\n")
	b.WriteString("| agents | PSS MiB | RSS MiB | heap MiB | goroutines | KiB PSS an agent, of this step | agents linked a second |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for i, p := range f.agents {
		step := "-"
		if i > 0 {
			step = fmt.Sprintf("%.1f", each(f.agents[i-1:i+1], countAgents, func(p point) int64 { return p.PSS })/kib)
		}
		fmt.Fprintf(&b, "| %d | %.0f | %.0f | %.0f | %d | %s | %.0f |\n", p.Agents, mb(p.PSS), mb(p.RSS), mb(p.Heap), p.Goroutines, step, p.PerSecond)
	}
	perAgent := each(f.agents, countAgents, func(p point) int64 { return p.PSS }) / kib
	met := "met"
	if perAgent > barIdleAgent {
		met = "NOT MET"
	}
	last := f.agents[len(f.agents)-1]
	goroutines := each(f.agents, countAgents, func(p point) int64 { return int64(p.Goroutines) })
	fmt.Fprintf(&b, "\n    an idle agent costs the relay %.1f KiB of PSS and %.1f goroutines; bar <= %d KiB  %s\n", perAgent, goroutines, barIdleAgent, met)
	fmt.Fprintf(&b, "    opening a tunnel, one after another: p50 %.1f ms, p99 %.1f ms at 1 agent; p50 %.1f ms, p99 %.1f ms at %d\n",
		f.openAtOne.P50, f.openAtOne.P99, f.openAtAll.P50, f.openAtAll.P99, last.Agents)
	if f.again > 0 {
		fmt.Fprintf(&b, "    %d times an agent had to connect once more: the relay had too much to do\n", f.again)
	}
	fmt.Fprintf(&b, "    %d idle agents keep %.0f %% of a core of the relay busy\n", last.Agents, 100*f.idleCPU)
	fmt.Fprintf(&b, "    %d changes of agents, %.0f a second: %.0f us of the relay's CPU each, written and heard; %.0f us for each of the %d events in a relay that only hears of them\n",
		f.churned, f.churnRate, f.churnCPU/float64(max(1, f.churned))*1e6, f.eventCPU/float64(max(1, f.events))*1e6, f.events)

	b.WriteString("\n### growth: open tunnels\n\n")
	b.WriteString("| tunnels | PSS MiB | heap MiB | goroutines | index MiB | store's file MiB | opened a second | p50 ms | p99 ms |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, p := range f.tunnels {
		fmt.Fprintf(&b, "| %d | %.0f | %.0f | %d | %.1f | %.0f | %.0f | %.1f | %.1f |\n",
			p.Tunnels, mb(p.PSS), mb(p.Heap), p.Goroutines, mb(p.Index), mb(p.Store), p.PerSecond, p.Opens.P50, p.Opens.P99)
	}
	pss := each(f.tunnels, countTunnels, func(p point) int64 { return p.PSS })
	index := each(f.tunnels, countTunnels, func(p point) int64 { return p.Index })
	store := each(f.tunnels, countTunnels, func(p point) int64 { return p.Store })
	fmt.Fprintf(&b, "\n    1,000 open tunnels cost the relay %.1f MiB of PSS, the store inside it included; the index takes %.1f MiB for 100,000, and the store's file %.1f KiB a tunnel\n",
		pss*1000/mib, index*100000/mib, store/kib)
	if n := f.refused.Load(); n > 0 {
		fmt.Fprintf(&b, "    %d opens were put off or not answered at first, and asked for again: the relay had more to do than it could\n", n)
	}
	b.WriteString("\n" + f.limit(perAgent, store) + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// The store's default limit of size, in bytes (store.quota_bytes).
const storeQuota = 2 << 30

// limit says in a paragraph what gives out first when agents or tunnels become more.
func (f *findings) limit(perAgent, store float64) string {
	last, open := f.agents[len(f.agents)-1], f.tunnels[len(f.tunnels)-1]
	var says []string
	cores := "-"
	if f.idleCPU > 0 {
		cores = fmt.Sprintf("%.0f", float64(last.Agents)/f.idleCPU)
	}
	says = append(says, fmt.Sprintf("What comes next: the heartbeats of idle agents fill one core of the relay at about %s agents, and their memory 1 GiB at about %.0f.", cores, (1<<30)/max(1, perAgent*kib)))
	if f.idleCPU > 0 && float64(last.Agents)/f.idleCPU < (1<<30)/max(1, perAgent*kib) {
		says = append(says, "So processor time for heartbeats is the nearer limit of the two; more relays share it, since each keeps only the links of its own agents.")
	} else {
		says = append(says, "So memory is the nearer limit of the two; more relays share it, since each keeps only the links of its own agents.")
	}
	if store > 0 {
		says = append(says, fmt.Sprintf("Tunnels are bounded by the store: its file reaches the default quota of 2 GiB at about %.0f of them.", float64(storeQuota)/store))
	}
	says = append(says, fmt.Sprintf("Opening goes on at %.0f a second with %d tunnels open (%.0f with none): each is a synced write of the one store that all relays share, which does not become faster with more of them.",
		open.PerSecond, open.Tunnels, f.tunnels[min(1, len(f.tunnels)-1)].PerSecond))
	if f.eventCPU > 0 && f.events > 0 {
		says = append(says, fmt.Sprintf("Every relay of a pool hears of every change: at %.0f us an event, %.0f changes a second fill a core of each.", f.eventCPU/float64(f.events)*1e6, float64(f.events)/f.eventCPU))
	}
	return strings.Join(says, "\n")
}

func mb(bytes int64) float64 { return float64(bytes) / mib }
