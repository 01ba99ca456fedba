package hub

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
)

const (
	// maxGateStreams bounds the streams that one agent may have open towards the relay.
	maxGateStreams = 64
	// backlog is how many streams may be on their way to being accepted, here and at the
	// agent. Each place costs memory, on every link.
	backlog = 128
	// callsLinger is how long another stream is waited for after one.
	callsLinger = 5 * time.Second
)

// gateCalls serves the streams that an agent opens: calls to its own gate, HTTP over the
// stream, one connection each. Most agents never call, so nothing waits until one does.
type gateCalls struct {
	link  *link.Link
	owner link.Owner // the agent
	serve func() *http.Server

	mu    sync.Mutex
	awake bool // somebody accepts
	more  bool // a stream came since that was last looked at
	over  bool
	wg    sync.WaitGroup

	// For who accepts, and then for end.
	server *http.Server
	conns  *connListener
	slots  chan struct{}
}

// came notes that a stream came, or may have.
func (g *gateCalls) came(ctx context.Context) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.more = true
	if !g.awake && !g.over {
		g.awake = true
		g.wg.Go(func() { g.accept(ctx) })
	}
}

// accept takes streams until none has come for a while.
func (g *gateCalls) accept(ctx context.Context) {
	for g.stay() {
		for {
			waiting, cancel := context.WithTimeout(ctx, callsLinger)
			st, err := g.link.Accept(waiting)
			cancel()
			if err != nil {
				break
			}
			g.take(ctx, st)
		}
		if ctx.Err() != nil || g.link.Err() != nil {
			return
		}
	}
}

// stay says whether a stream came meanwhile; if not, the next one wakes another.
func (g *gateCalls) stay() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.awake = g.more && !g.over
	g.more = false
	return g.awake
}

// take serves one stream.
func (g *gateCalls) take(ctx context.Context, st *link.Stream) {
	st.Bill(g.owner)
	if g.conns == nil {
		g.conns, g.slots = newConnListener(g.link), make(chan struct{}, maxGateStreams)
		g.server = g.serve()
		g.wg.Go(func() { _ = g.server.Serve(g.conns) }) // ends with the listener
	}
	select {
	case g.slots <- struct{}{}:
	default:
		_ = st.Close()
		return
	}
	g.wg.Go(func() {
		defer func() { <-g.slots }()
		g.conns.greet(ctx, st)
	})
}

// end waits for all of it. The link has ended.
func (g *gateCalls) end() {
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
	// Who accepts may be about to make the server: with the link gone, that one's
	// listener ends by itself.
	g.wg.Wait()
	if g.server != nil {
		_ = g.server.Close()
	}
}

func (h *Hub) gateServer(ctx context.Context, s *session) *http.Server {
	return &http.Server{
		Handler:           h.cfg.GateHTTP(s.principal.BoundTo(s.key.Agent)),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
}
