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
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// atOnce bounds how many agents connect at a time.
const atOnce = 64

// pingInterval is an agent's.
const pingInterval = 5 * time.Second

// Crowd is the agents. Grow and Churn are for one caller.
type Crowd struct {
	URL   string       // of the relay
	Token ident.Secret // a credential for any agent of the team

	agents  []*agent
	running sync.WaitGroup
	mu      sync.Mutex
	lost    error // the first link that ended by itself
}

// Name is the name of one of the agents.
func Name(i int) ident.AgentID { return ident.AgentID(fmt.Sprintf("crowd-%05d", i)) }

// agent is one of them.
type agent struct {
	link *link.Link
	out  *wire.Encoder
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
			a, err := c.connect(ctx, i)
			if err != nil {
				once.Do(func() { first = fmt.Errorf("agent %s: %w", Name(i), err) })
				return
			}
			c.agents[i] = a
		})
	}
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(first, context.Cause(ctx), c.lost)
}

func (c *Crowd) connect(ctx context.Context, i int) (*agent, error) {
	dial, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	l, err := link.Dial(dial, link.DialOptions{URL: c.URL, Token: c.Token})
	if err != nil {
		return nil, err
	}
	control, err := link.OpenHello(dial, l, wire.Hello{Kind: wire.KindControl})
	if err != nil {
		return nil, errors.Join(err, l.Close(err))
	}
	a := &agent{link: l, out: wire.NewEncoder(control)}
	in := wire.NewDecoder(control)
	hello := wire.AgentHello{
		Agent: Name(i), Instance: string(ident.NewRequestID()), Version: "crowd", Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Labels: map[string]string{"zone": fmt.Sprintf("rack-%d", i%40)}, Capabilities: []string{wire.CapProbe}, TaskCapacity: 1, Facts: facts(),
	}
	defer context.AfterFunc(dial, func() { _ = l.Close(context.Cause(dial)) })()
	if err := a.out.Write(wire.Message{Type: wire.TypeHello, Hello: &hello}); err != nil {
		return nil, errors.Join(err, l.Close(err))
	}
	for {
		m, err := in.Read()
		if err == nil && m.Goodbye != nil {
			err = fmt.Errorf("the relay says %s: %s", m.Goodbye.Reason, m.Goodbye.Detail)
		}
		if err != nil {
			return nil, errors.Join(err, l.Close(err))
		}
		if m.Welcome != nil {
			break
		}
	}
	c.running.Go(func() { c.converse(ctx, a, in) })
	return a, nil
}

// facts are what a machine with one GPU reports.
func facts() wire.Facts {
	return wire.Facts{Tool: "comfyui", ToolVersion: "0.3.40", OSType: "posix", GPUs: []wire.GPU{{Name: "NVIDIA GeForce RTX 4090", Type: "cuda", VRAMTotal: 24 << 30, VRAMFree: 20 << 30}}}
}

// converse answers the relay until the link or ctx ends.
func (c *Crowd) converse(ctx context.Context, a *agent, in *wire.Decoder) {
	ctx, cancel := context.WithCancel(ctx)
	var pace sync.WaitGroup
	defer pace.Wait()
	defer cancel()
	pace.Go(func() {
		ping, fact := time.NewTicker(pingInterval), time.NewTicker(wire.HeartbeatInterval)
		defer ping.Stop()
		defer fact.Stop()
		f := facts()
		for id := uint64(1); ; id++ {
			var err error
			select {
			case now := <-ping.C:
				err = a.out.Write(wire.Message{Type: wire.TypePing, Ping: &wire.Ping{ID: id, Sent: now.UnixNano()}})
			case <-fact.C:
				err = a.out.Write(wire.Message{Type: wire.TypeFacts, Facts: &f})
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
		m, err := in.Read()
		switch {
		case err != nil:
		case m.Type == wire.TypePing && m.Ping != nil:
			err = a.out.Write(wire.Message{Type: wire.TypePong, Ping: m.Ping})
		case m.Probe != nil:
			err = a.out.Write(wire.Message{Type: wire.TypeProbed, Probed: &wire.Probed{ID: m.Probe.ID, Listening: true, Allowed: true, App: "comfyui", HostHeader: "public"}})
		}
		if err == nil {
			continue
		}
		_ = a.link.Close(err)
		if ctx.Err() == nil {
			c.mu.Lock()
			if c.lost == nil {
				c.lost = fmt.Errorf("a link ended: %w", err)
			}
			c.mu.Unlock()
		}
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
			a := c.agents[sent%len(c.agents)]
			if err := a.out.Write(wire.Message{Type: wire.TypeState, State: &state}); err != nil {
				return sent, err
			}
		}
		if since >= d {
			return sent, nil
		}
	}
}

// Wait returns when all agents have ended, after ctx did.
func (c *Crowd) Wait() { c.running.Wait() }
