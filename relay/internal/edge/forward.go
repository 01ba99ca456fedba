package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/wire"
)

const (
	// cutLinger is what a user who does not read is given when the tunnel closes;
	// everything must be over within a second.
	cutLinger = 400 * time.Millisecond
	// maxInformational bounds the 1xx answers before the real one.
	maxInformational = 16
)

// heads holds requests' headers while they are written.
var heads = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

var (
	errLost      = errors.New("the stream ended before the answer began")
	errBadAnswer = errors.New("the answer is no HTTP/1.1")
	errSwitched  = errors.New("the app switched protocols wrongly")
)

// forward sends the request to the app and its answer to the user.
func (x *exchange) forward() {
	x.unwatch = x.watchCut()
	defer func() { x.unwatch() }()
	defer x.finishBody()
	x.local = x.hostModeLocal()
	x.host = x.r.Host
	if x.local {
		x.host = localHost(x.route.Record.Port)
	}
	box := heads.Get().(*[]byte)
	*box = x.appendHead((*box)[:0])
	u, resp, err := x.roundTrip(*box)
	if x.body == nil { // a sender may still have it
		heads.Put(box)
	}
	if err != nil {
		x.fail(err)
		return
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		if err := validSwitch(x, resp); err != nil {
			_ = u.Close()
			x.fail(err)
			return
		}
		x.unwatch() // what follows has its own way to be cut
		x.serveUpgraded(u, resp)
		return
	}
	x.answer(u, resp)
}

// watchCut has the end of the use end the exchange. The function it returns undoes
// that, and waits if it is happening: a deadline set later would hit the
// connection's next request.
func (x *exchange) watchCut() func() {
	fired := make(chan struct{})
	undo := context.AfterFunc(x.use.Context(), func() {
		defer close(fired)
		x.guard.end(x.rc)
	})
	stopped := false
	return func() {
		if stopped {
			return
		}
		stopped = true
		if !undo() {
			<-fired
		}
	}
}

// roundTrip sends the request and returns its answer's header, trying again where
// the rules allow it.
func (x *exchange) roundTrip(head []byte) (*upstream, *http.Response, error) {
	repeatable := x.r.ContentLength == 0 && x.r.Method != http.MethodTrace && safeMethod(x.r.Method)
	fresh, lost := x.upgrade, 0
	for {
		u, err := x.stream(fresh, !repeatable)
		if err != nil {
			return nil, nil, err
		}
		resp, err := x.attempt(u, head)
		if err == nil {
			return u, resp, nil
		}
		_ = u.Close()
		if x.cause() != nil || x.body != nil {
			return nil, nil, err
		}
		switch {
		case x.hold.Retry(x.use.Context(), err):
		case errors.Is(err, errLost) && repeatable && u.reused:
			// The app closed an idle connection just then: nobody's fault, and no
			// sign that a new one will be lost.
		case errors.Is(err, errLost) && repeatable && lost == 0:
			lost++
		default:
			return nil, nil, err
		}
		fresh = true
		x.e.metrics.retries.Inc()
	}
}

// stream returns an idle stream or opens one, waiting for an agent that is away.
func (x *exchange) stream(fresh, once bool) (*upstream, error) {
	if !fresh {
		if u := x.idle.get(once); u != nil {
			u.use.Store(x.use)
			return u, nil
		}
	}
	s, err := x.e.config.Fleet.Open(x.use.Context(), x.route.Record.Key(), x.hello(), &x.hold)
	if err != nil {
		return nil, err
	}
	return newUpstream(s, x.idle, x.use), nil
}

// hello says to the agent for what a stream is.
func (x *exchange) hello() wire.Hello {
	r := &x.route.Record
	return wire.Hello{Kind: wire.KindTCP, Port: r.Port, Session: r.Session, Request: x.id}
}

// attempt sends the request on one stream and reads its answer's header.
func (x *exchange) attempt(u *upstream, head []byte) (*http.Response, error) {
	if !x.guard.set(u) {
		return nil, x.cause()
	}
	if x.r.ContentLength != 0 {
		x.startBody(u, head)
	} else {
		wait := x.e.config.HeaderTimeout
		if _, err := u.Write(head); err != nil {
			wait = brokenWait // the reader knows better why: a refusal comes that way
		}
		x.guard.arm(u, wait)
	}
	resp, err := x.readAnswer(u)
	x.guard.disarm(u)
	return resp, err
}

// readAnswer reads headers until one is not informational.
func (x *exchange) readAnswer(u *upstream) (*http.Response, error) {
	defer func() { u.budget = -1 }()
	for range maxInformational {
		u.budget = maxAnswerHeader
		if _, err := u.br.Peek(1); err != nil {
			return nil, before(err)
		}
		resp, err := http.ReadResponse(u.br, x.r)
		if err != nil {
			return nil, notHTTP(err)
		}
		switch code := resp.StatusCode; {
		case code == http.StatusSwitchingProtocols || code >= 200:
			return resp, nil
		case code == http.StatusContinue:
			if x.body != nil {
				x.body.goOn()
			}
		case code == http.StatusEarlyHints:
			x.earlyHints(resp.Header)
		}
	}
	return nil, fmt.Errorf("%w: too many informational answers", errBadAnswer)
}

// before classifies the end of a stream on which no byte of an answer came.
func before(err error) error {
	var v wire.Verdict
	var t net.Error
	switch {
	case errors.As(err, &v), errors.Is(err, errHeaderTooLarge), errors.As(err, &t) && t.Timeout():
		return err
	}
	return fmt.Errorf("%w: %w", errLost, err)
}

// notHTTP classifies what could not be parsed as an answer.
func notHTTP(err error) error {
	var t net.Error
	if errors.As(err, &t) && t.Timeout() || errors.Is(err, errHeaderTooLarge) {
		return err
	}
	return fmt.Errorf("%w: %w", errBadAnswer, err)
}

// earlyHints passes on the links of a 103 (RFC 8297), and with them the policy under
// which the browser asks for what they name. No other field has a meaning there that
// the final answer's would not have.
func (x *exchange) earlyHints(from http.Header) {
	links := x.rewritten("Link", from["Link"])
	if len(links) == 0 || !x.r.ProtoAtLeast(1, 1) {
		return
	}
	h := x.w.Header()
	h["Link"], h["Referrer-Policy"] = links, []string{referrerPolicy(from["Referrer-Policy"])}
	x.w.WriteHeader(http.StatusEarlyHints)
	delete(h, "Link")
	delete(h, "Referrer-Policy")
}

// fail answers for an app that did not, or ends the connection when the user left.
func (x *exchange) fail(err error) {
	if x.guard.wasCut() || x.cause() != nil {
		// Not the request's context: net/http ends that too when a cut interrupts
		// its reading.
		cause := x.cause()
		if errors.Is(cause, context.Canceled) {
			x.abort() // the user left
		}
		x.problem(x.cutProblem(cause))
		return
	}
	p := x.problemOf(err)
	if p.Status >= 500 {
		x.e.log.Debug("request not served", "request_id", x.id, "session_id", x.route.Record.Session, "code", p.Code, "error", err)
	}
	x.problem(p)
}
