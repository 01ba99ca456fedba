// Package fakerelay owns a relay's side of the link for the agent's tests: real
// sockets and the real protocol, with answers that the test chooses, hostile ones
// too. It is imported by tests only and keeps no tunnels or leases.
package fakerelay

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Token is the credential that a Relay takes until told otherwise.
const Token = ident.Secret("ak-fakefakefakefakefakefakefakefakefakefake")

// Relay is a running fake relay.
type Relay struct {
	URL  string
	Addr string // host:port

	tb    testing.TB
	http  *httptest.Server
	conns chan *Conn
	wg    sync.WaitGroup

	mu         sync.Mutex
	name       ident.RelayID
	generation uint64
	tunnels    []wire.TunnelNotice
	admit      func(wire.AgentHello) (*wire.Welcome, *wire.Goodbye)
	refuse     func() *api.Problem
	gate       http.Handler
	open       map[*Conn]struct{}
	attempts   int
	closed     bool
}

// Start starts a relay that lives as long as the test.
func Start(tb testing.TB) *Relay {
	r := &Relay{tb: tb, conns: make(chan *Conn, 64), name: "fake", open: map[*Conn]struct{}{}, generation: 100}
	r.http = httptest.NewServer(http.HandlerFunc(r.serve))
	r.URL, r.Addr = r.http.URL, r.http.Listener.Addr().String()
	tb.Cleanup(r.close)
	return r
}

func (r *Relay) close() {
	r.mu.Lock()
	r.closed = true
	open := make([]*Conn, 0, len(r.open))
	for c := range r.open {
		open = append(open, c)
	}
	r.mu.Unlock()
	for _, c := range open {
		_ = c.Link.Close(errors.New("the test is over"))
	}
	r.http.Close()
	r.wg.Wait()
}

// SetTunnels sets what welcomes list.
func (r *Relay) SetTunnels(list ...wire.TunnelNotice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tunnels = list
}

// Admit sets who decides on hellos: one of the two results is set, or neither for
// the usual welcome.
func (r *Relay) Admit(f func(wire.AgentHello) (*wire.Welcome, *wire.Goodbye)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.admit = f
}

// Refuse sets who decides on upgrades; nil, or a nil problem, admits.
func (r *Relay) Refuse(f func() *api.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse = f
}

// Gate sets what serves the agent's gate streams.
func (r *Relay) Gate(h http.Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gate = h
}

// Attempts is how many upgrades were asked for.
func (r *Relay) Attempts() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attempts
}

// Next waits for the next agent that was welcomed.
func (r *Relay) Next() *Conn {
	r.tb.Helper()
	select {
	case c := <-r.conns:
		return c
	case <-time.After(testkit.Patience):
		r.tb.Fatal("expected the agent to link to the relay")
		return nil
	}
}

// NextWithin is Next with a limit of its own, for promises about time, which the long
// form of the tests judges.
func (r *Relay) NextWithin(limit time.Duration) *Conn {
	r.tb.Helper()
	select {
	case c := <-r.conns:
		return c
	case <-time.After(testkit.Limit(limit)):
		r.tb.Fatalf("expected the agent to link to the relay within %s", limit)
		return nil
	}
}

func (r *Relay) serve(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.attempts++
	refuse, closed := r.refuse, r.closed
	if !closed {
		r.wg.Add(1)
		defer r.wg.Done()
	}
	r.mu.Unlock()
	if q.URL.Path != wire.LinkPath {
		_, _ = w.Write([]byte("ok\n"))
		return
	}
	if q.Header.Get("Authorization") != "Bearer "+Token.Reveal() {
		api.NewProblem(api.CodeUnauthenticated, "bad credential").Write(w, "")
		return
	}
	if refuse != nil {
		if p := refuse(); p != nil {
			p.Write(w, "")
			return
		}
	}
	l, err := link.Accept(w, q, link.Config{})
	if err != nil {
		return
	}
	c := &Conn{Link: l, relay: r, messages: make(chan wire.Message, 1024)}
	r.mu.Lock()
	r.open[c] = struct{}{}
	r.mu.Unlock()
	defer func() {
		_ = l.Close(nil)
		r.mu.Lock()
		delete(r.open, c)
		r.mu.Unlock()
	}()
	c.serve()
}

// Conn is one agent's link.
type Conn struct {
	Link       *link.Link
	Hello      wire.AgentHello
	Generation uint64

	relay    *Relay
	control  *link.Stream
	out      *wire.Encoder
	messages chan wire.Message
}

func (c *Conn) serve() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	control, err := c.Link.Accept(ctx)
	if err != nil {
		return
	}
	if h, err := wire.ReadHello(control); err != nil || h.Kind != wire.KindControl {
		c.relay.tb.Errorf("the first stream is %v (%v), not the control stream", h.Kind, err)
		return
	}
	if _, err := control.Write(wire.AppendVerdict(nil, wire.Verdict{})); err != nil {
		return
	}
	in := wire.NewDecoder(control)
	c.control, c.out = control, wire.NewEncoder(control)
	m, err := in.Read()
	if err != nil || m.Hello == nil {
		return // an agent that changed its mind
	}
	c.Hello = *m.Hello
	welcome, bye := c.relay.decide(c.Hello)
	if bye != nil {
		_ = c.out.Write(wire.Message{Type: wire.TypeGoodbye, Goodbye: bye})
		return
	}
	c.Generation = welcome.Generation
	if err := c.out.Write(wire.Message{Type: wire.TypeWelcome, Welcome: welcome}); err != nil {
		return
	}
	c.relay.conns <- c
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(c.acceptGate)
	for {
		m, err := in.Read()
		if err != nil {
			_ = c.Link.Close(err)
			return
		}
		if m.Type == wire.TypePing {
			_ = c.out.Write(wire.Message{Type: wire.TypePong, Ping: m.Ping})
		}
		select {
		case c.messages <- m:
		default: // nobody reads; the test does not care
		}
	}
}

func (r *Relay) decide(h wire.AgentHello) (*wire.Welcome, *wire.Goodbye) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.admit != nil {
		if w, bye := r.admit(h); w != nil || bye != nil {
			return w, bye
		}
	}
	if h.LinkIndex == 0 || h.Generation != r.generation {
		r.generation = max(r.generation, h.Generation) + 1
	}
	return &wire.Welcome{Generation: r.generation, Relay: r.name, Version: "test", Tunnels: r.tunnels, Time: time.Now()}, nil
}

func (c *Conn) acceptGate() {
	streams := make(chan net.Conn)
	server := &http.Server{Handler: c.relay.gate, ReadHeaderTimeout: time.Minute}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer server.Close()
	wg.Go(func() { _ = server.Serve(&listener{streams, c.Link}) })
	for {
		s, err := c.Link.Accept(context.Background())
		if err != nil {
			return
		}
		if h, err := wire.ReadHello(s); err != nil || h.Kind != wire.KindGate {
			c.relay.tb.Errorf("the agent opened a stream of kind %v (%v)", h.Kind, err)
			return
		}
		if _, err := s.Write(wire.AppendVerdict(nil, wire.Verdict{})); err != nil {
			return
		}
		select {
		case streams <- s:
		case <-c.Link.Done():
			return
		}
	}
}

type listener struct {
	streams chan net.Conn
	link    *link.Link
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case s := <-l.streams:
		return s, nil
	case <-l.link.Done():
		return nil, net.ErrClosed
	}
}
func (l *listener) Close() error   { return nil }
func (l *listener) Addr() net.Addr { return l.link.RemoteAddr() }

// Send sends a message to the agent.
func (c *Conn) Send(m wire.Message) {
	c.relay.tb.Helper()
	if err := c.out.Write(m); err != nil {
		c.relay.tb.Errorf("send %s to the agent: %v", m.Type, err)
	}
}

// Raw writes bytes to the control stream as they are.
func (c *Conn) Raw(b []byte) { _, _ = c.control.Write(b) }

// Goodbye ends the link on purpose.
func (c *Conn) Goodbye(reason wire.GoodbyeReason, detail string, moveTo ...string) {
	c.Send(wire.Message{Type: wire.TypeGoodbye, Goodbye: &wire.Goodbye{Reason: reason, Detail: detail, MoveTo: moveTo}})
}

// Expect waits for a message of a type that satisfies ok (nil: any).
func (c *Conn) Expect(typ string, ok func(wire.Message) bool) wire.Message {
	c.relay.tb.Helper()
	timeout := time.After(testkit.Patience)
	for {
		select {
		case m := <-c.messages:
			if m.Type == typ && (ok == nil || ok(m)) {
				return m
			}
		case <-timeout:
			c.relay.tb.Fatalf("expected the agent to send %s", typ)
		}
	}
}

// Open opens a stream to the agent.
func (c *Conn) Open(h wire.Hello) *link.Stream {
	c.relay.tb.Helper()
	if h.Epoch == 0 {
		h.Epoch = c.Generation
	}
	s, err := link.OpenHello(context.Background(), c.Link, h)
	if err != nil {
		c.relay.tb.Fatalf("open a stream to the agent: %v", err)
	}
	return s
}

// Verdict opens a stream, returns the agent's verdict on it, and closes it.
func (c *Conn) Verdict(h wire.Hello) wire.Verdict {
	c.relay.tb.Helper()
	s := c.Open(h)
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	err := s.Verdict(ctx)
	if err == nil {
		return wire.Verdict{}
	}
	var v wire.Verdict
	if !errors.As(err, &v) {
		c.relay.tb.Fatalf("expected a verdict of the agent, got: %v", err)
	}
	return v
}
