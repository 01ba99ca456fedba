package edge_test

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// machine is a fleet of one, at the other end of a real link: its small agent reaches
// apps on this machine.
type machine struct {
	fleet.Hub              // what is not below is not asked
	budget    *link.Budget // of the relay's end; nil: the link's default
	lane      fleet.Lane   // of its streams
	draining  atomic.Bool  // its relay takes no more streams
	opened    atomic.Int64
	refuse    atomic.Pointer[wire.Verdict] // what the agent says; nil: yes. Of the text "once" it says it once

	mu   sync.Mutex
	link *link.Link // nil: away
	back chan struct{}
}

// fleet is all that an edge sees of it.
func (m *machine) fleet() *fleet.Fleet { return fleet.New(fleet.Config{Hub: m}) }

// connect makes a link and an agent at its other end.
func (m *machine) connect(t testing.TB) *machine {
	t.Helper()
	far, near := testkit.TCP(t)
	agent, err := link.NewClient(far, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	relay, err := link.NewServer(near, link.Config{Budget: m.budget})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			s, err := agent.Accept(ctx)
			if err != nil {
				return
			}
			all.Go(func() { m.serve(ctx, s) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = agent.Close(nil)
		_ = relay.Close(nil)
		all.Wait()
	})
	m.set(relay)
	return m
}

// set puts a link in the place of what is there, and returns that; nil: the agent is away.
func (m *machine) set(l *link.Link) (old *link.Link) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, m.link = m.link, l
	if l != nil && m.back != nil {
		close(m.back)
		m.back = nil
	}
	return old
}

// serve is the agent's side of a stream.
func (m *machine) serve(ctx context.Context, s *link.Stream) {
	h, err := wire.ReadHello(s)
	if err != nil {
		_ = s.Close()
		return
	}
	answer := wire.Verdict{}
	var app net.Conn
	if v := m.refuse.Load(); v != nil {
		answer = *v
		if v.Text == "once" {
			m.refuse.Store(nil)
		}
	} else if app, err = net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(int(h.Port))); err != nil {
		answer = wire.Verdict{Code: wire.CodeAppRefused, Text: "connection refused"}
	}
	_, err = s.Write(wire.AppendVerdict(nil, answer))
	if app == nil {
		_ = s.Close()
		return
	}
	if err != nil {
		_ = app.Close()
		_ = s.Close()
		return
	}
	_, _ = splice.Both(ctx, s, app.(*net.TCPConn), splice.Options{})
}

// Open implements fleet.Hub.
func (m *machine) Open(ctx context.Context, key ident.AgentKey, h wire.Hello) (*fleet.Stream, error) {
	if m.draining.Load() {
		return nil, fleet.ErrDraining
	}
	m.mu.Lock()
	l := m.link
	m.mu.Unlock()
	if l == nil {
		return nil, fleet.ErrAway
	}
	m.opened.Add(1)
	s, err := link.OpenFor(ctx, l, link.Owner{Tenant: string(key.Team), Agent: string(key.Agent), Tunnel: string(h.Session)}, h)
	if errors.Is(err, link.ErrClosed) {
		return nil, errors.Join(err, fleet.ErrAway)
	}
	if err != nil {
		return nil, err
	}
	return fleet.NewStream(s, h.Session, m.lane), nil
}

// Wait implements fleet.Hub.
func (m *machine) Wait(ctx context.Context, _ ident.AgentKey) error {
	m.mu.Lock()
	if m.link != nil {
		m.mu.Unlock()
		return nil
	}
	if m.back == nil {
		m.back = make(chan struct{})
	}
	back := m.back
	m.mu.Unlock()
	select {
	case <-back:
		return nil
	case <-ctx.Done():
		return fleet.ErrAway
	}
}
