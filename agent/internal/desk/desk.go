// Package desk owns the streams that a relay opens to this machine: it reads
// each one's hello, has the last word on whether it is allowed, and connects it
// to a local port. It never trusts the relay's own checks, and it never reaches
// anything but loopback.
package desk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Causes with which the desk ends streams.
var (
	ErrPaused = errors.New("the agent was paused")
	ErrClosed = errors.New("the tunnel was closed")
)

// Terminal serves one terminal stream whose hello was accepted; it writes the
// verdict itself, since only it knows whether a terminal could be started.
type Terminal func(ctx context.Context, s *link.Stream, h wire.Hello) error

// Config is what a Desk needs. All functions must be safe for concurrent use.
type Config struct {
	Ports    api.Ports                                                   // what a tunnel may reach
	OwnPorts func() []uint16                                             // the agent's own listeners, always refused
	Epoch    func() uint64                                               // the agent session's generation
	Paused   func() bool                                                 // the kill switch
	Closed   func(ident.SessionID) bool                                  // whether a tunnel is known to be closed
	Dial     func(ctx context.Context, port uint16) (splice.Conn, error) // forward.Dial
	Terminal Terminal                                                    // nil: terminals are not enabled
	// Dialing is told when a port is dialled for a hello, and what came of it; nil: nobody is.
	Dialing func(ctx context.Context, h wire.Hello) (context.Context, func(error))

	MaxStreams   int           // at once, over all links; default 4096
	HelloTimeout time.Duration // default 10 s
	Linger       time.Duration // how long a half-closed stream may make no progress; 0: splice's default
	Logger       *slog.Logger
	Registerer   prometheus.Registerer
}

// Desk serves the streams of all links of an agent.
type Desk struct {
	conf     Config
	metrics  *metrics
	refusals *rate.Limiter // of refusals in the log: a hostile relay must not fill the disk

	mu         sync.Mutex
	streams    map[*stream]struct{}
	suppressed int
}

// stream is one accepted stream while it lives.
type stream struct {
	session ident.SessionID
	cancel  context.CancelCauseFunc
	moved   atomic.Bool // bytes moved since Busy last looked
	waiting atomic.Bool // the last bytes went to the app, which has not answered yet
}

func (st *stream) toApp() {
	st.touch()
	if !st.waiting.Load() {
		st.waiting.Store(true)
	}
}

func (st *stream) fromApp() {
	st.touch()
	if st.waiting.Load() {
		st.waiting.Store(false)
	}
}

// asking is a stream whose reads are noted as on their way to the app, before the
// app can answer them: noted after the write, a quick answer could be first, and an
// idle stream would look busy for ever.
type asking struct {
	*link.Stream
	st *stream
}

// Read notes what it returns.
func (a asking) Read(p []byte) (int, error) {
	n, err := a.Stream.Read(p)
	if n > 0 {
		a.st.toApp()
	}
	return n, err
}

// touch reads before it writes: the mark is set already for all but the first
// piece between two looks, and a read leaves the cache line alone.
func (st *stream) touch() {
	if !st.moved.Load() {
		st.moved.Store(true)
	}
}

// refusers is how many streams over the limit are answered at once; further ones
// are closed without a word.
const refusers = 64

// New returns a Desk.
func New(conf Config) *Desk {
	if conf.MaxStreams == 0 {
		conf.MaxStreams = 4096
	}
	if conf.HelloTimeout == 0 {
		conf.HelloTimeout = 10 * time.Second
	}
	return &Desk{
		conf:     conf,
		metrics:  newMetrics(conf.Registerer),
		refusals: rate.NewLimiter(10, 50),
		streams:  map[*stream]struct{}{},
	}
}

// Serve accepts the streams of one link until the link dies or ctx ends, and
// returns when all of them have ended: ctx's end cuts them.
func (d *Desk) Serve(ctx context.Context, l *link.Link) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	for {
		s, err := l.Accept(ctx)
		if err != nil {
			cancel(err) // the link is gone: so are the streams
			return err
		}
		// Only spawn here: whatever waits in this loop makes every other stream wait,
		// and a stream that is never accepted kills the whole link.
		st := &stream{}
		streamCtx, streamCancel := context.WithCancelCause(ctx)
		st.cancel = streamCancel
		switch n := d.add(st); {
		case n <= d.conf.MaxStreams:
			wg.Go(func() { defer d.remove(st); d.serve(streamCtx, st, s) })
		case n <= d.conf.MaxStreams+refusers:
			wg.Go(func() { defer d.remove(st); d.overloaded(s) })
		default:
			d.remove(st)
			d.metrics.streams.WithLabelValues(kindUnknown, outcomeOverloaded).Inc()
			_ = s.Close()
		}
	}
}

func (d *Desk) add(st *stream) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams[st] = struct{}{}
	d.metrics.active.Set(float64(len(d.streams)))
	return len(d.streams)
}

func (d *Desk) remove(st *stream) {
	st.cancel(nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.streams, st)
	d.metrics.active.Set(float64(len(d.streams)))
}

// Active is the number of streams that live now.
func (d *Desk) Active() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.streams)
}

// Cut ends the streams of one tunnel and returns how many there were.
func (d *Desk) Cut(session ident.SessionID) int {
	return d.cut(ErrClosed, func(st *stream) bool { return st.session == session })
}

// CutAll ends every stream with a cause and returns how many there were.
func (d *Desk) CutAll(cause error) int { return d.cut(cause, func(*stream) bool { return true }) }

func (d *Desk) cut(cause error, which func(*stream) bool) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for st := range d.streams {
		if which(st) {
			st.cancel(cause)
			n++
		}
	}
	return n
}

// Busy counts the open streams, and those of them that someone would miss: those that moved bytes
// since the last call, and those whose app still owes an answer. What stays is
// idle: connections kept alive, sockets on which nothing happens.
func (d *Desk) Busy() (moving, open int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for st := range d.streams {
		if st.moved.Swap(false) || st.waiting.Load() {
			moving++
		}
	}
	return moving, len(d.streams)
}

// serve is one stream's life. A panic in it ends this stream only.
func (d *Desk) serve(ctx context.Context, st *stream, s *link.Stream) {
	kind, outcome := kindUnknown, outcomePanic
	// Whoever sees the stream end finds its cause in the log and in the metrics.
	defer func() {
		if p := recover(); p != nil {
			d.conf.Logger.Error("stream panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
		d.metrics.streams.WithLabelValues(kind, outcome).Inc()
		_ = s.Close()
	}()
	// A cut must reach a stream that waits in a read of its hello, too.
	stop := context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(longAgo) })
	defer stop()
	_ = s.SetDeadline(time.Now().Add(d.conf.HelloTimeout))
	h, err := wire.ReadHello(s)
	if err != nil {
		outcome = d.refuse(s, h, wire.Verdict{Code: wire.CodeBadHello, Text: err.Error()})
		return
	}
	// What waits for an app that takes nothing counts as its tunnel's, which pays for it.
	s.Bill(link.Owner{Tenant: h.Kind.String(), Tunnel: string(h.Session)})
	s.OnGivenUp(st.cancel)
	kind = kindLabel(h.Kind)
	if v := d.admit(st, h); v.Code != wire.CodeOK {
		outcome = d.refuse(s, h, v)
		return
	}
	switch h.Kind {
	case wire.KindTerminal:
		outcome = d.terminal(ctx, s, h)
	default:
		outcome = d.tcp(ctx, st, s, h)
	}
}

// tcp connects a stream to its port and copies until both sides are done.
func (d *Desk) tcp(ctx context.Context, st *stream, s *link.Stream, h wire.Hello) string {
	dialing, done := ctx, func(error) {}
	if d.conf.Dialing != nil {
		dialing, done = d.conf.Dialing(ctx, h)
	}
	app, err := d.conf.Dial(dialing, h.Port)
	done(err)
	if err != nil {
		var refusal interface{ Verdict() wire.Verdict }
		if errors.As(err, &refusal) {
			return d.refuse(s, h, refusal.Verdict())
		}
		return d.refuse(s, h, wire.Verdict{Code: wire.CodeInternal, Text: err.Error()})
	}
	defer app.Close()
	if _, err := s.Write(wire.AppendVerdict(nil, wire.Verdict{})); err != nil {
		d.conf.Logger.Debug("stream lost before its verdict", "session_id", h.Session, "request_id", h.Request, "error", err)
		return outcomeCut
	}
	_ = s.SetDeadline(time.Time{})
	result, err := splice.Both(ctx, asking{s, st}, app, splice.Options{
		AtoB:   func(n int) { d.metrics.bytesIn.Add(float64(n)); st.touch() },
		BtoA:   func(n int) { d.metrics.bytesOut.Add(float64(n)); st.fromApp() },
		Linger: d.conf.Linger,
	})
	d.conf.Logger.Debug("stream ended", "port", h.Port, "session_id", h.Session, "request_id", h.Request,
		"bytes_in", result.AtoB, "bytes_out", result.BtoA, "error", err)
	if err != nil {
		return outcomeCut
	}
	return outcomeOK
}

func (d *Desk) terminal(ctx context.Context, s *link.Stream, h wire.Hello) string {
	_ = s.SetDeadline(time.Time{})
	err := d.conf.Terminal(ctx, s, h)
	var refusal wire.Verdict
	switch {
	case errors.As(err, &refusal):
		return outcomeLabel(refusal.Code)
	case err != nil:
		d.conf.Logger.Debug("terminal stream ended", "session_id", h.Session, "request_id", h.Request, "error", err)
		return outcomeCut
	}
	return outcomeOK
}

// overloaded answers a stream that is over the limit.
func (d *Desk) overloaded(s *link.Stream) {
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(time.Second))
	text := fmt.Sprintf("the agent serves %d connections already, its limit", d.conf.MaxStreams)
	d.metrics.streams.WithLabelValues(kindUnknown, d.refuse(s, wire.Hello{}, wire.Verdict{Code: wire.CodeOverloaded, Text: text})).Inc()
}

// refuse logs a refusal, writes it, and returns its outcome label.
func (d *Desk) refuse(s net.Conn, h wire.Hello, v wire.Verdict) string {
	d.audit(h, v)
	if _, err := s.Write(wire.AppendVerdict(nil, v)); err != nil {
		d.conf.Logger.Debug("write verdict", "session_id", h.Session, "request_id", h.Request, "error", err)
	}
	return outcomeLabel(v.Code)
}

// audit records a refusal. What only says that the app is down is no matter of
// policy and is logged as detail.
func (d *Desk) audit(h wire.Hello, v wire.Verdict) {
	level := slog.LevelWarn
	if v.Code == wire.CodeAppRefused || v.Code == wire.CodeAppTimeout {
		level = slog.LevelDebug
	}
	d.mu.Lock()
	allowed := level == slog.LevelDebug || d.refusals.Allow()
	skipped := d.suppressed
	if allowed {
		d.suppressed = 0
	} else {
		d.suppressed++
	}
	d.mu.Unlock()
	if !allowed {
		return
	}
	attrs := []any{"audit", true, "code", int(v.Code), "text", v.Text, "kind", h.Kind.String(), "port", h.Port,
		"session_id", h.Session, "request_id", h.Request, "epoch", h.Epoch}
	if skipped > 0 && level == slog.LevelWarn {
		attrs = append(attrs, "refusals_not_logged", skipped)
	}
	d.conf.Logger.Log(context.Background(), level, "stream refused", attrs...)
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)
