// Package crowd is many agents in one process: each has a link of its own, over which
// it says and answers what an agent does that nobody uses. It carries no tunnel's
// bytes, and knows nothing of how it is measured.
package crowd

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/adit-tunnel/adit/shared/backoff"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// atOnce bounds how many agents connect at a time.
const atOnce = 64

// Crowd is the agents. Grow and Churn are for one caller.
type Crowd struct {
	URL   string       // of the relay
	Token ident.Secret // a credential for any agent of the team

	agents  []*agent
	running sync.WaitGroup
	again   atomic.Int64
}

// Again is how often an agent had to connect once more, as agents do: because the
// relay could not admit it just then, or its link was lost.
func (c *Crowd) Again() int64 { return c.again.Load() }

// Name is the name of one of the agents.
func Name(i int) ident.AgentID { return ident.AgentID(fmt.Sprintf("crowd-%05d", i)) }

// agent is one of them.
type agent struct {
	now atomic.Pointer[uplink]
}

// uplink is an agent's link.
type uplink struct {
	link *link.Link
	out  *wire.Encoder
	in   *wire.Decoder
}

// Grow connects agents until there are n of them. They stay until ctx ends.
func (c *Crowd) Grow(ctx context.Context, n int) error {
	from := len(c.agents)
	if n <= from {
		return nil
	}
	c.agents = append(c.agents, make([]*agent, n-from)...)
	var wg sync.WaitGroup
	var first error
	var once sync.Once
	places := make(chan struct{}, atOnce)
	for i := from; i < n && ctx.Err() == nil; i++ {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			up, err := c.persist(ctx, i)
			if err != nil {
				once.Do(func() { first = fmt.Errorf("agent %s: %w", Name(i), err) })
				return
			}
			a := &agent{}
			a.now.Store(up)
			c.agents[i] = a
			c.running.Go(func() { c.live(ctx, i, a, up) })
		})
	}
	wg.Wait()
	return errors.Join(first, context.Cause(ctx))
}

// persist connects, again and again for a while.
func (c *Crowd) persist(ctx context.Context, i int) (*uplink, error) {
	var wait backoff.Backoff
	for until := time.Now().Add(2 * time.Minute); ; {
		up, err := c.connect(ctx, i)
		if err == nil || ctx.Err() != nil || time.Now().After(until) {
			return up, err
		}
		c.again.Add(1)
		t := time.NewTimer(wait.Next())
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// live keeps an agent linked until ctx ends.
func (c *Crowd) live(ctx context.Context, i int, a *agent, up *uplink) {
	for {
		converse(ctx, up)
		if ctx.Err() != nil {
			return
		}
		c.again.Add(1)
		var err error
		if up, err = c.persist(ctx, i); err != nil {
			return // Churn finds its link closed
		}
		a.now.Store(up)
	}
}

func (c *Crowd) connect(ctx context.Context, i int) (*uplink, error) {
	dial, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	l, err := link.Dial(dial, carrier.DialOptions{URL: c.URL, Token: c.Token}, link.Config{})
	if err != nil {
		return nil, err
	}
	control, err := link.OpenHello(dial, l, wire.Hello{Kind: wire.KindControl})
	if err != nil {
		return nil, errors.Join(err, l.Close(err))
	}
	up := &uplink{link: l, out: wire.NewEncoder(control), in: wire.NewDecoder(control)}
	hello := wire.AgentHello{
		Agent: Name(i), Instance: string(ident.NewRequestID()), Version: "crowd", Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Labels: map[string]string{"zone": fmt.Sprintf("rack-%d", i%40)}, Capabilities: []string{wire.CapProbe}, TaskCapacity: 1, Facts: facts(),
	}
	defer context.AfterFunc(dial, func() { _ = l.Close(context.Cause(dial)) })()
	if err := up.out.Write(wire.Message{Type: wire.TypeHello, Hello: &hello}); err != nil {
		return nil, errors.Join(err, l.Close(err))
	}
	for {
		m, err := up.in.Read()
		if err == nil && m.Goodbye != nil {
			err = fmt.Errorf("the relay says %s: %s", m.Goodbye.Reason, m.Goodbye.Detail)
		}
		if err != nil {
			return nil, errors.Join(err, l.Close(err))
		}
		if m.Welcome != nil {
			return up, nil
		}
	}
}

// facts are what a machine with one GPU reports.
func facts() wire.Facts {
	return wire.Facts{Tool: "comfyui", ToolVersion: "0.3.40", OSType: "posix", GPUs: []wire.GPU{{Name: "NVIDIA GeForce RTX 4090", Type: "cuda", VRAMTotal: 24 << 30, VRAMFree: 20 << 30}}}
}

// converse answers the relay until the link or ctx ends.
func converse(ctx context.Context, a *uplink) {
	ctx, cancel := context.WithCancel(ctx)
	var pace sync.WaitGroup
	defer pace.Wait()
	defer cancel()
	pace.Go(func() {
		fact := time.NewTicker(wire.HeartbeatInterval)
		defer fact.Stop()
		f := facts()
		for id := uint64(1); ; id++ {
			var err error
			select {
			case <-fact.C:
				err = errors.Join(a.out.Write(wire.Message{Type: wire.TypeFacts, Facts: &f}), a.out.Write(wire.Message{Type: wire.TypePing, Ping: &wire.Ping{ID: id}}))
			case <-ctx.Done():
				_ = a.link.Close(context.Cause(ctx))
				return
			}
			if err != nil {
				return // the reader says why
			}
		}
	})
	for {
		m, err := a.in.Read()
		switch {
		case err != nil:
		case m.Probe != nil:
			err = a.out.Write(wire.Message{Type: wire.TypeProbed, Probed: &wire.Probed{ID: m.Probe.ID, Listening: true, Allowed: true, App: "comfyui", HostHeader: "public"}})
		}
		if err == nil {
			continue
		}
		_ = a.link.Close(err)
		return
	}
}

// Churn declares new states for so long, so many a second over all agents, and
// returns how many.
func (c *Crowd) Churn(ctx context.Context, perSecond int, d time.Duration) (int, error) {
	start := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	sent := 0
	for {
		select {
		case <-ctx.Done():
			return sent, context.Cause(ctx)
		case <-tick.C:
		}
		since := time.Since(start)
		for want := int(min(since, d).Seconds() * float64(perSecond)); sent < want; sent++ {
			percent := float64((sent+sent/len(c.agents))%1000) / 10 // another one each time
			state := wire.State{SyncPhase: "models", SyncPercent: &percent}
			// One that is between two links says it with the next one's hello, or not at all.
			_ = c.agents[sent%len(c.agents)].now.Load().out.Write(wire.Message{Type: wire.TypeState, State: &state})
		}
		if since >= d {
			return sent, nil
		}
	}
}

// Wait returns when all agents have ended, after ctx did.
func (c *Crowd) Wait() { c.running.Wait() }
