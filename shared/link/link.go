package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/adit-tunnel/adit/shared/carrier"
)

// ErrClosed is wrapped by every error of a link that is dead, and of its streams.
var ErrClosed = errors.New("link closed")

// ErrTooManyStreams is wrapped by Open when MaxStreams streams are open already.
var ErrTooManyStreams = errors.New("too many streams on this link")

// ErrReset is wrapped by the errors of a stream whose peer ended it abruptly: it
// takes no more data, and what it sent may be incomplete.
var ErrReset = errors.New("stream reset by the peer")

var (
	errSilent      = errors.New("nothing heard from the peer")
	errLocal       = errors.New("closed on this side")
	errOpenTimeout = errors.New("the link did not take the stream in time")
)

// Config tunes a link. The zero value asks for all defaults.
type Config struct {
	// Window is how many bytes of one stream may be on their way or unread at most,
	// per direction; it bounds a stream's throughput to Window per round trip, and
	// its memory. Lines with short round trips get less, as much as they can use, and so do
	// readers who take little, and whoever has much of the Budget already.
	// Default 8 MiB, least 256 KiB.
	Window uint32
	// AcceptBacklog is how many streams may wait for Accept, and how many may wait for
	// the peer's. An opener waits instead of exceeding its own value, so the peer's must
	// not be less for who opens many. Default 512.
	AcceptBacklog int
	// MaxStreams is how many streams this side may have open at the peer. Default
	// 4096.
	MaxStreams int
	// MaxIncoming is how many streams the peer may have open here; those beyond are
	// reset. Default MaxStreams.
	MaxIncoming int
	// Handshake leaves the peer one stream, on which it says who it is, until HandshakeDone
	// is called: a peer that opens a second one before ends the link. What waits on streams
	// that nobody has accepted yet is nobody's, and the Budget cannot have it back.
	Handshake bool
	// Budget bounds the memory of data that waits to be taken; links may share one.
	// Default: 256 MiB for this link alone.
	Budget *Budget
	// KeepAlive is how long a peer may be silent before it is asked for a sign of life.
	// Default 4 s: an agent doubts its link after 5.5 s.
	KeepAlive time.Duration
	// DeadAfter is how long a peer may be silent before the link is closed; both ends
	// ask, so a living peer is never silent for much more than KeepAlive and a round
	// trip. Default 12 s.
	DeadAfter time.Duration
	// OpenTimeout bounds Open in addition to its context. Default 10 s.
	OpenTimeout time.Duration
	// Logger gets debug records. Default: none.
	Logger *slog.Logger
	// Hooks are called on the data path.
	Hooks Hooks
}

// Hooks let the owner of a link count. They run on the data path, must not block
// and may be nil. Links of one process may share them.
type Hooks struct {
	// Sent is called after each write to the socket.
	Sent func(Written)
	// Received is called after each read from the connection.
	Received func(bytes int)
	// Measured is called with each round trip that was measured: see RTT.
	Measured func(rtt time.Duration)
	// Slowed is called when bulk is sent more slowly from now on, because the line lost
	// too much of it.
	Slowed func()
}

// Written is one write to the socket.
type Written struct {
	Bytes, Frames int           // Frames: those completed by it
	Queued        time.Duration // how long the oldest of them had waited when it was done
	Stalled       time.Duration // how long the socket took
}

// Stats are totals of a link since it began.
type Stats struct {
	BytesIn, BytesOut uint64 // on the connection, frame headers included
	Frames, Batches   uint64 // sent: frames, and writes they were combined into
	QueueDelay        time.Duration
}

func (c Config) withDefaults() Config {
	if c.Window == 0 {
		c.Window = 8 << 20
	}
	c.Window = min(max(c.Window, yamuxWindow), 1<<30)
	if c.AcceptBacklog <= 0 {
		c.AcceptBacklog = 512
	}
	if c.MaxStreams <= 0 {
		c.MaxStreams = 4096
	}
	if c.MaxIncoming <= 0 {
		c.MaxIncoming = c.MaxStreams
	}
	if c.Budget == nil {
		c.Budget = NewBudget(256 << 20)
	}
	if c.KeepAlive <= 0 {
		c.KeepAlive = 4 * time.Second
	}
	if c.DeadAfter <= 0 {
		c.DeadAfter = 12 * time.Second
	}
	if c.OpenTimeout <= 0 {
		c.OpenTimeout = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Link is one live multiplexed connection. It dies with its socket; Close must
// be called in any case, it waits for the link's goroutines.
type Link struct {
	cfg        Config
	session    *yamux.Session
	mux        *mux
	keepalive  *keepalive
	conn       carrier.Conn
	congestion string
	remote     net.Addr

	opening chan struct{} // bounds calls into yamux that may block
	out, in atomic.Int32  // streams open, by who opened them

	closeOnce sync.Once
	done      chan struct{}

	mu      sync.Mutex
	closing bool
	cause   error // why the link ends, before it has
	err     error // set once, before done is closed
	wg      sync.WaitGroup
}

// Dial makes a link to a relay. ctx bounds the connecting only.
func Dial(ctx context.Context, opts carrier.DialOptions, cfg Config) (*Link, error) {
	c, err := carrier.Dial(ctx, opts)
	if err != nil {
		return nil, err
	}
	return newLink(c, cfg, true)
}

// Accept makes a link of an upgrade request, as carrier.Accept does.
func Accept(w http.ResponseWriter, r *http.Request, cfg Config) (*Link, error) {
	c, err := carrier.Accept(w, r)
	if err != nil {
		return nil, err
	}
	return newLink(c, cfg, false)
}

// NewClient makes a link on any connection, in the role of the side that dialled.
// The link owns the connection from then on, also when an error is returned.
func NewClient(conn net.Conn, cfg Config) (*Link, error) {
	return newLink(carrier.New(conn), cfg, true)
}

// NewServer makes a link on any connection, in the role of the side that accepted.
// The link owns the connection from then on, also when an error is returned.
func NewServer(conn net.Conn, cfg Config) (*Link, error) {
	return newLink(carrier.New(conn), cfg, false)
}

func newLink(c carrier.Conn, cfg Config, client bool) (*Link, error) {
	cfg = cfg.withDefaults()
	l := &Link{
		cfg:     cfg,
		conn:    c,
		remote:  c.NetConn().RemoteAddr(),
		opening: make(chan struct{}, max(1, cfg.AcceptBacklog*3/4)),
		done:    make(chan struct{}),
	}
	l.mux = newMux(c, cfg.Hooks, cfg.Budget, cfg.Window)
	l.mux.handshake.Store(cfg.Handshake)
	l.congestion, l.mux.line = carrier.Tune(c)
	yc := &yamux.Config{
		AcceptBacklog:     cfg.AcceptBacklog,
		EnableKeepAlive:   false, // keepalive.go does it, judging by what arrives, not by one ping
		KeepAliveInterval: cfg.KeepAlive,
		// A congested link is not a dead one: whether the peer lives is decided by
		// keepalive.go alone, and what it decides frees whoever waits here.
		ConnectionWriteTimeout: 24 * time.Hour,
		MaxStreamWindowSize:    yamuxWindow, // it sees no data: see flow.go
		StreamOpenTimeout:      0,           // else one stream that is not accepted kills the session
		StreamCloseTimeout:     0,           // else it fires while data still flows
		Logger:                 yamuxLog{cfg.Logger},
	}
	open := yamux.Server
	if client {
		open = yamux.Client
	}
	session, err := open(l.mux, yc)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("start link: %w", err)
	}
	l.session = session
	cfg.Budget.addLink(l.mux)
	l.keepalive = startKeepalive(l, client)
	l.mux.whenClosed(func() { l.spawn(l.finish) })
	return l, nil
}

// kill ends the session at once; the first cause stays.
func (l *Link) kill(cause error) {
	l.mu.Lock()
	if l.cause == nil {
		l.cause = cause
	}
	l.mu.Unlock()
	_ = l.session.Close()
}

// finish records why the session ended.
func (l *Link) finish() {
	l.mu.Lock()
	cause := l.cause
	l.mu.Unlock()
	if cause == nil {
		if cause = l.mux.reason(); cause == nil {
			cause = l.sessionError()
		}
	}
	// A cause that counts as io.EOF would make a dead link look like a clean end.
	if cause == nil || errors.Is(cause, io.EOF) {
		cause = carrier.ErrPeerClosed
	}
	l.mu.Lock()
	l.cause = cause
	l.err = fmt.Errorf("%w: %w", ErrClosed, cause)
	l.mu.Unlock()
	l.mux.closeFlows()
	l.keepalive.stop()
	close(l.done)
	l.cfg.Logger.Debug("link ended", "remote", l.remote, "cause", cause)
}

// sessionError gets the reason that yamux keeps for itself: a peer that broke the
// protocol. Streams that still wait to be accepted answer first.
func (l *Link) sessionError() error {
	for range l.cfg.AcceptBacklog + 1 {
		_, err := l.session.AcceptStream()
		if err != nil && !errors.Is(err, yamux.ErrSessionShutdown) {
			return err
		}
	}
	return nil
}

// Done is closed when the link is dead.
func (l *Link) Done() <-chan struct{} { return l.done }

// Err is nil while the link lives; then it wraps ErrClosed and the cause: the one
// given to Close, or what happened to the connection.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// dead waits for the cause of a link that is known to be ending.
func (l *Link) dead() error {
	<-l.done
	return l.Err()
}

// Close ends the link: what was written is flushed, for a second at most, the
// peer gets the cause if the carrier can send it, all streams fail with an error that wraps
// ErrClosed and cause, and the link's goroutines are waited for.
func (l *Link) Close(cause error) error {
	if cause == nil {
		cause = errLocal
	}
	l.closeOnce.Do(func() {
		l.mu.Lock()
		if l.cause == nil {
			l.cause = cause
		}
		l.mu.Unlock()
		if l.mux.drain(time.Second) {
			l.conn.CloseHandshake(cause.Error(), 500*time.Millisecond)
		}
		l.kill(cause)
	})
	<-l.done
	l.mu.Lock()
	l.closing = true // no goroutine starts from here on
	l.mu.Unlock()
	l.wg.Wait()
	l.mux.wg.Wait()
	return nil
}

// spawn runs f in a goroutine that Close waits for. It does not when the link is
// closed already.
func (l *Link) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return false
	}
	l.wg.Go(f)
	return true
}

// NumStreams is how many streams are open or not yet closed by both ends.
func (l *Link) NumStreams() int { return l.session.NumStreams() }

// RemoteAddr is the address of the peer of the connection.
func (l *Link) RemoteAddr() net.Addr { return l.remote }

// Congestion names the TCP congestion control in use on the link's socket; empty
// when it is not known.
func (l *Link) Congestion() string { return l.congestion }

// Carrier says what carries the link: "tcp" (a plain connection or an HTTP
// upgrade) or "websocket".
func (l *Link) Carrier() string { return l.conn.Name() }

// Stats returns the link's totals.
func (l *Link) Stats() Stats {
	return Stats{
		BytesIn: l.mux.bytesIn.Load(), BytesOut: l.mux.bytesOut.Load(),
		Frames: l.mux.framesOut.Load(), Batches: l.mux.batches.Load(),
		QueueDelay: time.Duration(l.mux.queued.Load()),
	}
}

// yamuxLog turns yamux's log lines into debug records: whatever matters in them
// is also an error that somebody gets.
type yamuxLog struct{ l *slog.Logger }

func (y yamuxLog) Print(v ...any)   { y.Printf("%s", fmt.Sprint(v...)) }
func (y yamuxLog) Println(v ...any) { y.Printf("%s", fmt.Sprint(v...)) }
func (y yamuxLog) Printf(format string, v ...any) {
	if y.l.Enabled(context.Background(), slog.LevelDebug) {
		y.l.Debug("yamux", "line", fmt.Sprintf(format, v...))
	}
}
