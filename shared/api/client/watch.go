package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/backoff"
)

// Limits of the event stream.
const (
	// watchSilence is how long the stream may be silent: the relay sends a comment
	// every 15 s, so three were lost.
	watchSilence = 45 * time.Second
	// watchMaxLine bounds one line: a snapshot of thousands of agents is one line.
	watchMaxLine = 64 << 20
	// watchMaxRetry bounds the wait that the relay may ask for.
	watchMaxRetry = 30 * time.Second
)

// ErrSilent is why a stream that sent nothing for too long was given up.
var ErrSilent = errors.New("the event stream fell silent")

// Watch calls fn for every event of GET /agents/watch: a snapshot first, then
// changes. It reconnects by itself, resuming behind the last event, and returns
// when ctx ends, when fn returns an error (that one), or when repeating is of no
// use. lost, unless nil, hears of every lost connection and of the time until
// the next try.
func (c *Client) Watch(ctx context.Context, fn func(api.Event) error, lost func(err error, wait time.Duration)) error {
	s := &watch{c: c, fn: fn}
	var wait backoff.Backoff
	for {
		got, err := s.connect(ctx)
		var stop *stopError
		switch {
		case errors.As(err, &stop):
			return stop.err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !errors.Is(err, io.EOF) && !errors.Is(err, ErrSilent) && !Temporary(err):
			return fmt.Errorf("watch agents: %w", err)
		}
		if got {
			wait.Reset()
		}
		pause := max(wait.Next(), s.retry)
		if p, ok := errors.AsType[*api.Problem](err); ok {
			pause = max(pause, p.RetryAfter.D())
		}
		if lost != nil {
			lost(err, pause)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// stopError carries an error of the caller's function, which ends the watch.
type stopError struct{ err error }

func (e *stopError) Error() string { return e.err.Error() }

type watch struct {
	c     *Client
	fn    func(api.Event) error
	last  string        // id of the last event
	bye   string        // why the relay ended the stream; empty: it did not say
	retry time.Duration // as the relay wishes
}

// connect reads one connection to its end; got says whether any event came.
func (s *watch) connect(ctx context.Context) (got bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The answer's head has the same limit of silence.
	silent := time.AfterFunc(watchSilence, func() { cancel(ErrSilent) })
	defer silent.Stop()

	h := http.Header{"Accept": {"text/event-stream"}, "Cache-Control": {"no-cache"}}
	if s.last != "" {
		h.Set("Last-Event-ID", s.last)
	}
	req, err := s.c.request(ctx, call{method: http.MethodGet, path: "/agents/watch", header: h}, nil)
	if err != nil {
		return false, err
	}
	res, err := s.c.http.Do(req)
	if err != nil {
		return false, s.c.connError(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return false, ReadProblem(res)
	}
	s.bye = ""
	err = s.read(res.Body, func() { silent.Reset(watchSilence) }, &got)
	var stop *stopError
	if err != nil && !errors.As(err, &stop) && !errors.Is(err, io.EOF) {
		err = s.c.connError(ctx, err)
	}
	if s.bye != "" && !errors.As(err, &stop) {
		err = &goodbyeError{s.bye}
	}
	return got, err
}

// goodbyeError is the end of a stream that the relay gave a reason for. It is io.EOF.
type goodbyeError struct{ text string }

func (e *goodbyeError) Error() string { return e.text }
func (e *goodbyeError) Unwrap() error { return io.EOF }

// read parses the event stream (HTML standard, section 9.2.6). It returns io.EOF
// at the stream's end.
func (s *watch) read(r io.Reader, alive func(), got *bool) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 64<<10), watchMaxLine)
	var data bytes.Buffer
	var kind, id string
	for sc.Scan() {
		alive()
		line := bytes.TrimSuffix(sc.Bytes(), []byte("\r"))
		if len(line) == 0 {
			if id != "" {
				s.last = id
			}
			if data.Len() > 0 {
				if err := s.emit(kind, data.Bytes()); err != nil {
					return err
				}
				*got = true
			}
			data.Reset()
			kind, id = "", ""
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "data":
			if data.Len() > 0 {
				data.WriteByte('\n')
			}
			data.Write(value)
		case "event":
			kind = string(value)
		case "id":
			if !bytes.ContainsRune(value, 0) {
				id = string(value)
			}
		case "retry":
			if ms, err := strconv.Atoi(string(value)); err == nil && ms >= 0 {
				s.retry = min(time.Duration(ms)*time.Millisecond, watchMaxRetry)
			}
		} // a comment has an empty field name, unknown fields are ignored
	}
	if err := sc.Err(); err != nil {
		return err
	}
	return io.EOF
}

func (s *watch) emit(kind string, data []byte) error {
	var ev api.Event
	if err := json.Unmarshal(data, &ev); err != nil {
		return &stopError{fmt.Errorf("watch agents: event %q: %w", kind, err)}
	}
	if ev.Kind == "" {
		ev.Kind = kind
	}
	if ev.Kind == api.EventGoodbye {
		s.bye = ev.Detail
		return nil
	}
	if err := s.fn(ev); err != nil {
		return &stopError{err}
	}
	return nil
}
