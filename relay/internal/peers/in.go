package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/wire"
)

// The operations that one relay asks of another.
const (
	opHello  = "hello"  // first on every link: who is there
	opStream = "stream" // a stream to an agent
	opAsk    = "ask"    // a question, by name
	opLeave  = "leave"  // none: the asker ends what still passes there
)

// request is the payload of a stream's hello. Port, session and request id of the
// inner hello are the outer one's, as is the generation that the asker knows.
type request struct {
	Op    string        `json:"op"`
	Relay ident.RelayID `json:"relay,omitempty"` // hello: who asks

	Team    ident.TeamID  `json:"team,omitempty"` // stream: to which agent
	Agent   ident.AgentID `json:"agent,omitempty"`
	Kind    wire.Kind     `json:"kind,omitempty"`    // stream: of the inner hello
	Payload []byte        `json:"payload,omitempty"` // stream: of the inner hello

	Question string `json:"question,omitempty"` // ask: which
}

// helloTime bounds a handshake, and from there the time to the first stream.
const helloTime = 5 * time.Second

// Bounds of the connections that have not shown who they are, over all and of one
// address. Where the other relays come from is not known beforehand, and an address
// proves nothing: so none is spared.
const (
	maxHandshakes        = 256
	maxHandshakesAddress = 32
)

var errCrowded = errors.New("it had not shown who it is when another connection needed its place")

func (p *Peers) listen(ctx context.Context, ln net.Listener) error {
	waiting := caller.NewRoom(maxHandshakes, maxHandshakesAddress)
	for {
		conn, err := ln.Accept()
		if err != nil {
			var t net.Error
			if errors.As(err, &t) && t.Timeout() {
				continue
			}
			return fmt.Errorf("accept other relays: %w", err)
		}
		greeting, cancel := context.WithCancelCause(ctx)
		place := waiting.Enter(address(conn), func() {
			cancel(errCrowded)
			_ = conn.Close() // frees reads that know no context
		})
		p.wg.Go(func() {
			l, from, err := p.greet(greeting, conn)
			place.Leave()
			if cause := context.Cause(greeting); err != nil && errors.Is(cause, errCrowded) {
				err = cause
			}
			cancel(nil)
			if err != nil {
				p.metrics.refused.Inc()
				p.stranger(conn, err)
				return
			}
			p.serve(ctx, l, from)
		})
	}
}

// address is what counts as one at the door.
func address(conn net.Conn) string {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return conn.RemoteAddr().String()
	}
	return caller.Key(host)
}

// stranger logs a connection that is no relay's: a few of each address, since who
// knocks without end should not fill the log.
func (p *Peers) stranger(conn net.Conn, err error) {
	level := slog.LevelDebug
	if p.strangers.Take(address(conn), time.Now()) {
		level = slog.LevelWarn
	}
	p.log.Log(context.Background(), level, "a connection to the peer listener is no relay's", "remote", conn.RemoteAddr().String(), "error", err)
}

// greet makes a link of a connection whose other end proved to be a relay.
func (p *Peers) greet(ctx context.Context, conn net.Conn) (*link.Link, ident.RelayID, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	c := tls.Server(conn, p.tls.Load())
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, "", err
	}
	cert, err := leaf(c)
	if err != nil {
		_ = c.Close()
		return nil, "", err
	}
	l, err := link.NewServer(c, p.linkConfig())
	if err != nil {
		return nil, "", err
	}
	from, err := p.meet(ctx, l, cert)
	if err != nil {
		_ = l.Close(err)
		return nil, "", err
	}
	return l, from, nil
}

// meet takes the first stream, which must be a hello.
func (p *Peers) meet(ctx context.Context, l *link.Link, cert *x509.Certificate) (ident.RelayID, error) {
	st, err := l.Accept(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = st.Close() }()
	_, r, err := readRequest(st)
	if err == nil {
		err = p.know(ctx, r, cert)
	}
	if err != nil {
		refuse(st, wire.CodeBadHello, err.Error())
		return "", err
	}
	if _, err := st.Write(wire.AppendVerdict(nil, wire.Verdict{})); err != nil {
		return "", err
	}
	return r.Relay, nil
}

// know says why who asks is no relay of the pool: its certificate must name it, and the
// store must know it now. A relay that just started may have heard of its own record
// before this one did.
func (p *Peers) know(ctx context.Context, r request, cert *x509.Certificate) error {
	switch _, err := ident.ParseRelayID(string(r.Relay)); {
	case r.Op != opHello:
		return errors.New("the first stream of a link between relays is a hello")
	case err != nil:
		return err
	case r.Relay == p.cfg.Relay:
		return fmt.Errorf("another relay has this one's relay_id %q", r.Relay)
	}
	if err := names(cert, r.Relay); err != nil {
		return err
	}
	if _, ok := p.cfg.Pool.Relay(r.Relay); ok {
		return nil
	}
	if err := p.cfg.Pool.CatchUp(ctx); err != nil {
		return fmt.Errorf("relay %q is not known here, and the store cannot be asked now: %w", r.Relay, err)
	}
	if _, ok := p.cfg.Pool.Relay(r.Relay); !ok {
		return fmt.Errorf("the store knows no relay %q: it has no record of one that runs under that relay_id", r.Relay)
	}
	return nil
}

// owner is who the data of a stream to an agent counts as; other streams are the
// relays' own.
func owner(r request, h wire.Hello) link.Owner {
	return link.Owner{Tenant: string(r.Team), Agent: string(r.Agent), Tunnel: string(h.Session)}
}

func readRequest(st *link.Stream) (wire.Hello, request, error) {
	var r request
	_ = st.SetReadDeadline(time.Now().Add(helloTime))
	h, err := wire.ReadHello(st)
	if err != nil {
		return h, r, err
	}
	_ = st.SetReadDeadline(time.Time{})
	if h.Kind != wire.KindPeer {
		return h, r, fmt.Errorf("%w: a stream of kind %s between relays", wire.ErrMalformed, h.Kind)
	}
	if err := json.Unmarshal(h.Payload, &r); err != nil {
		return h, r, fmt.Errorf("%w: request of a relay: %w", wire.ErrMalformed, err)
	}
	return h, r, nil
}

func refuse(st *link.Stream, code wire.Code, text string) {
	_, _ = st.Write(wire.AppendVerdict(nil, wire.Verdict{Code: code, Text: text})) // the other end may be gone
	_ = st.Close()
}

// serve answers what another relay asks until its link ends.
func (p *Peers) serve(ctx context.Context, l *link.Link, from ident.RelayID) {
	p.mu.Lock()
	p.in[l] = from
	p.mu.Unlock()
	if _, ok := p.cfg.Pool.Relay(from); !ok { // its record went between the hello and here
		p.drop(from)
	}
	p.log.Debug("another relay linked to this one", "peer", from)
	// The end of ctx closes all links; this is for one that came meanwhile.
	stop := context.AfterFunc(ctx, func() { _ = l.Close(context.Cause(ctx)) })
	defer func() {
		stop()
		_ = l.Close(nil)
		p.mu.Lock()
		delete(p.in, l)
		p.mu.Unlock()
	}()
	for {
		st, err := l.Accept(ctx)
		if err != nil {
			return
		}
		p.wg.Go(func() { p.answer(ctx, st, from) })
	}
}

func (p *Peers) answer(ctx context.Context, st *link.Stream, from ident.RelayID) {
	h, r, err := readRequest(st)
	switch {
	case err != nil:
		refuse(st, wire.CodeBadHello, err.Error())
	case !p.cfg.Pool.Serving():
		// Another relay may hold this one's agents by now.
		refuse(st, wire.CodeStaleEpoch, errFenced.Error())
	case r.Op == opStream:
		p.pass(ctx, st, h, r, from)
	case r.Op == opAsk && p.cfg.Answers[r.Question] != nil:
		p.reply(ctx, st, p.cfg.Answers[r.Question])
	case r.Op == opLeave:
		_, _ = st.Write(wire.AppendVerdict(nil, wire.Verdict{})) // it goes on without, too
		_ = st.Close()
		p.left(from)
	default:
		refuse(st, wire.CodeBadHello, "this relay knows no such request")
	}
}

// pass serves a stream to one of this relay's own agents.
func (p *Peers) pass(ctx context.Context, st *link.Stream, h wire.Hello, r request, from ident.RelayID) {
	if r.Kind != wire.KindTCP && r.Kind != wire.KindTerminal {
		refuse(st, wire.CodeBadHello, fmt.Sprintf("no stream of kind %s goes from relay to relay", r.Kind))
		return
	}
	_, terr := ident.ParseTeamID(string(r.Team))
	_, aerr := ident.ParseAgentID(string(r.Agent))
	if err := errors.Join(terr, aerr); err != nil {
		refuse(st, wire.CodeBadHello, err.Error())
		return
	}
	passage, leave := p.enter(h.Session, from)
	defer leave()
	st.Bill(owner(r, h))
	key := ident.AgentKey{Team: r.Team, Agent: r.Agent}
	inner, err := p.cfg.Open(ctx, key, h.Epoch, wire.Hello{Kind: r.Kind, Port: h.Port, Session: h.Session, Request: h.Request, Payload: r.Payload, Trace: h.Trace})
	switch {
	case errors.Is(err, fleet.ErrCut):
		refuse(st, wire.CodeUnknownTunnel, err.Error())
		return
	case errors.Is(err, link.ErrTooManyStreams), errors.Is(err, link.ErrMemory):
		refuse(st, wire.CodeOverloaded, err.Error())
		return
	case err != nil:
		refuse(st, wire.CodeStaleEpoch, err.Error())
		return
	}
	if _, err := st.Write(wire.AppendVerdict(nil, wire.Verdict{})); err != nil {
		_ = inner.Close()
		_ = st.Reset()
		return
	}
	p.metrics.passing.Inc()
	defer p.metrics.passing.Dec()
	// Either stream may be given up for its memory while its data waits at the other.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	st.OnGivenUp(cancel)
	inner.OnGivenUp(cancel)
	if _, err := splice.Both(ctx, st, newAgentEnd(ctx, inner), splice.Options{AtoB: passage.move, BtoA: passage.move}); err != nil {
		p.log.Debug("a stream for another relay ended", "peer", from, "session_id", h.Session, "request_id", h.Request, "error", err)
	}
}

// answerTime bounds the answer to a question.
const answerTime = 15 * time.Second

// maxQuestion bounds a question and an answer.
const maxQuestion = 1 << 20

func (p *Peers) reply(ctx context.Context, st *link.Stream, answer func(context.Context, []byte) (any, error)) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	defer func() { _ = st.Close() }()
	if _, err := st.Write(wire.AppendVerdict(nil, wire.Verdict{})); err != nil {
		return
	}
	_ = st.SetReadDeadline(time.Now().Add(helloTime))
	question, err := io.ReadAll(io.LimitReader(st, maxQuestion))
	if err != nil {
		return
	}
	out := reply{}
	got, err := answer(ctx, question)
	if err == nil {
		out.Answer, err = json.Marshal(got)
	}
	if err != nil {
		out = reply{Error: err.Error()}
	}
	line, err := json.Marshal(out)
	if err != nil {
		return
	}
	_ = st.SetWriteDeadline(time.Now().Add(helloTime))
	_, _ = io.Copy(st, bytes.NewReader(line)) // who asked may be gone
}

// reply is an answer or why there is none.
type reply struct {
	Answer json.RawMessage `json:"answer,omitempty"`
	Error  string          `json:"error,omitempty"`
}
