package aditcli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"sync"

	"github.com/coder/websocket"
	"golang.org/x/term"

	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/backoff"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// remoteTerminal joins the terminal that the command runs in to one on a machine.
type remoteTerminal struct {
	app       *app
	transport http.RoundTripper
	login     login // of the relay that at is of
	at        *url.URL
	tty       *os.File
	session   ident.SessionID     // of a tunnel that was opened for it
	attach    wire.TerminalAttach // with how far the output was seen

	shown bool // something was printed already
	ended bool // the shell is over
}

var (
	errLeft     = errors.New("left by ~.") //nolint:revive,staticcheck // the escape ends with a dot
	errInputEnd = errors.New("the terminal's input ended")
)

// maxTyped is how many reads of the keyboard wait while the link is lost; ~. must be
// seen behind them.
const maxTyped = 1024

// reset leaves full-screen programs' modes, whatever they were.
const reset = "\x1b[!p\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[0m"

// clearScreen makes room for a replay.
const clearScreen = reset + "\x1b[2J\x1b[H"

// run runs until the shell ends, the user leaves, or ctx ends.
func (t *remoteTerminal) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	raw, err := term.MakeRaw(int(t.tty.Fd()))
	if err != nil {
		return fmt.Errorf("set the terminal raw: %w", err)
	}
	restore := sync.OnceFunc(func() {
		if t.shown {
			_, _ = fmt.Fprint(t.app.out, reset)
		}
		_ = term.Restore(int(t.tty.Fd()), raw)
	})
	defer restore()
	typed := make(chan []byte, maxTyped)
	go t.read(ctx, typed, cancel) // it ends with the process: a read of stdin cannot be interrupted

	var wait backoff.Backoff
	for {
		attached, err := t.once(ctx, typed)
		if attached {
			wait.Reset()
		}
		var exit *exitError
		switch cause := context.Cause(ctx); {
		case errors.As(err, &exit):
			return exit
		case err == nil, errors.Is(cause, errLeft):
			restore()
			t.app.notef("")
			return nil
		case cause != nil:
			return cause
		case !t.again(err):
			restore()
			return err
		}
		t.note("%s; attaching again, ~. leaves", client.Describe(err))
		if wait.Wait(ctx) != nil && !errors.Is(context.Cause(ctx), errLeft) {
			return context.Cause(ctx)
		}
	}
}

// note prints a line into a raw terminal.
func (t *remoteTerminal) note(format string, args ...any) {
	_, _ = fmt.Fprintf(t.app.err, "\r\n[adit: %s]\r\n", clean(fmt.Sprintf(format, args...)))
}

// again says whether an end may pass by itself.
func (t *remoteTerminal) again(err error) bool {
	var ce websocket.CloseError
	if !errors.As(err, &ce) {
		return t.shown || client.Temporary(err)
	}
	switch ce.Code {
	case wire.CloseRefused, wire.CloseDenied, wire.CloseLimit, wire.CloseInternal, websocket.StatusGoingAway, websocket.StatusPolicyViolation:
		return false
	case wire.CloseNothing, wire.CloseLost:
		return t.shown || t.attach.ReadOnly || ce.Code == wire.CloseLost
	}
	return true
}

// read takes in what is typed, and leaves when told to.
func (t *remoteTerminal) read(ctx context.Context, typed chan<- []byte, cancel context.CancelCauseFunc) {
	e := escapes{start: true}
	buf := make([]byte, 16<<10)
	for {
		n, err := t.tty.Read(buf)
		out, act := e.filter(buf[:n])
		if act == actHelp {
			t.note("~. leave   ~~ type a ~   ~? this list")
		}
		if len(out) > 0 {
			select {
			case typed <- out:
			case <-ctx.Done():
				return
			}
		}
		switch {
		case act == actLeave:
			cancel(errLeft)
			return
		case err != nil:
			cancel(errInputEnd)
			return
		}
	}
}

// once attaches and carries until this attachment's end. err is nil or an exitError
// when the shell has ended.
func (t *remoteTerminal) once(ctx context.Context, typed <-chan []byte) (attached bool, err error) {
	c, err := dialTerminal(ctx, t.transport, t.at, t.login.header())
	if err != nil {
		return false, err
	}
	defer func() { _ = c.CloseNow() }()
	first := t.attach
	first.Cols, first.Rows = t.size()
	b, err := json.Marshal(first)
	if err != nil {
		return false, err
	}
	if err := c.Write(ctx, websocket.MessageText, b); err != nil {
		return false, fmt.Errorf("attach: %w", err)
	}
	live, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { t.send(live, c, typed) })
	for {
		typ, b, err := c.Read(ctx)
		if err != nil {
			return attached, said(err)
		}
		if typ == websocket.MessageText {
			var ready wire.TerminalReady
			if json.Unmarshal(b, &ready) == nil && ready.State == wire.TerminalWaiting {
				t.note("%s is away; waiting for it", ready.Agent)
			}
			attached = attached || ready.State == wire.TerminalAttached
			continue
		}
		if len(b) == 0 {
			continue
		}
		done, err := t.frame(ctx, c, wire.FrameType(b[0]), b[1:])
		if done || err != nil {
			return attached, err
		}
	}
}

// frame takes in one frame.
func (t *remoteTerminal) frame(ctx context.Context, c *websocket.Conn, typ wire.FrameType, p []byte) (done bool, err error) {
	switch typ {
	case wire.FrameReplay:
		r, ok := wire.ParseReplay(p)
		if ok && !r.Continues && t.shown {
			_, _ = fmt.Fprint(t.app.out, clearScreen)
		}
		t.shown = true
		t.attach.Instance, t.attach.Seen = r.Instance, r.Position
	case wire.FrameData:
		if _, err := t.app.out.Write(p); err != nil {
			return false, err
		}
		t.attach.Seen += uint64(len(p))
		return false, message(ctx, c, wire.FrameAck, wire.Position(t.attach.Seen))
	case wire.FrameExit:
		e, _ := wire.ParseExit(p)
		t.ended = true
		switch {
		case e.Status > 0:
			return true, &exitError{int(e.Status)}
		case e.Status < 0:
			t.note("%s", e.Text)
			return true, &exitError{exitFailed}
		}
		return true, nil
	}
	return false, nil
}

// send carries what is typed, and the size when it changes.
func (t *remoteTerminal) send(ctx context.Context, c *websocket.Conn, typed <-chan []byte) {
	resized, stop := sizeChanges()
	defer stop()
	cols, rows := t.size()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case b := <-typed:
			err = message(ctx, c, wire.FrameData, b)
		case <-resized:
			w, h := t.size()
			if w != cols || h != rows {
				cols, rows = w, h
				err = message(ctx, c, wire.FrameResize, wire.Pair(w, h))
			}
		}
		if err != nil {
			return // reading says why
		}
	}
}

func message(ctx context.Context, c *websocket.Conn, typ wire.FrameType, p []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	return c.Write(ctx, websocket.MessageBinary, append([]byte{byte(typ)}, p...))
}

func (t *remoteTerminal) size() (cols, rows uint16) {
	w, h, err := term.GetSize(int(t.tty.Fd()))
	if err != nil || w < 2 || h < 1 {
		return 80, 24
	}
	return uint16(min(w, 1000)), uint16(min(h, 1000))
}

type action uint8

const (
	actNone action = iota
	actLeave
	actHelp
)

// escapes finds ~ sequences at the beginning of a line, as ssh's client does.
type escapes struct {
	start bool // at the beginning of a line
	tilde bool // behind a ~ there
}

// filter returns what goes to the machine. What comes behind an action that leaves
// goes nowhere.
func (e *escapes) filter(p []byte) (out []byte, act action) {
	for _, b := range p {
		switch {
		case e.tilde:
			e.tilde, e.start = false, false
			switch b {
			case '.':
				return out, actLeave
			case '?':
				act, e.start = actHelp, true
			case '~':
				out = append(out, '~')
			default:
				out = append(out, '~', b)
				e.start = b == '\r' || b == '\n'
			}
		case e.start && b == '~':
			e.tilde = true
		default:
			out = append(out, b)
			e.start = b == '\r' || b == '\n'
		}
	}
	return out, act
}
