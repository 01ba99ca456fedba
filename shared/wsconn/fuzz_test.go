package wsconn_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/shared/wsconn"
)

// FuzzMessages sends a sequence of messages and compares what the stream reads with
// what the rules say. Each message is one byte of kind, one of size and the bytes
// that follow: kind 0..1 text, otherwise binary, written in one frame or two.
//
// Fuzz it with -fuzzminimizetime=1x: each input costs two real connections, and
// while the fuzzer minimizes it tries nothing new for up to a minute.
func FuzzMessages(f *testing.F) {
	f.Add([]byte("\x02\x05hello"))
	f.Add([]byte("\x02\x05hello\x02\x00"))
	f.Add([]byte("\x02\x05hello\x02\x00\x02\x04more"))
	f.Add([]byte("\x02\x00\x02\x00"))
	f.Add([]byte("\x03\x06abcdef\x03\x00\x00\x01t"))
	f.Add([]byte("\x00\x03txt"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, script []byte) {
		c, s := sockets(t, nil)
		server := wsconn.New(s, wsconn.Options{})
		defer func() { _ = server.Reset() }()

		var want []byte
		ended, refused := false, false
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		got := make(chan error, 1)
		var read bytes.Buffer
		go func() { _, err := io.Copy(&read, server); got <- err }()
		for len(script) >= 2 && !refused {
			kind, n := script[0], int(script[1])
			p := script[2:min(len(script), 2+n)]
			script = script[2+len(p):]
			typ := websocket.MessageBinary
			if kind < 2 {
				typ = websocket.MessageText
			}
			switch {
			case typ == websocket.MessageText:
				refused = true
			case len(p) == 0:
				ended = true
			case ended:
				refused = true
			default:
				want = append(want, p...)
			}
			if err := send(ctx, c, typ, p, kind%2 == 1); err != nil {
				t.Fatalf("send: %v", err)
			}
		}
		if refused {
			if _, _, err := c.Read(ctx); websocket.CloseStatus(err) < 1002 {
				t.Errorf("a refused message ends with %v; want a status of refusal", err)
			}
		} else {
			_ = c.Close(websocket.StatusNormalClosure, "")
		}
		err := <-got
		if !bytes.Equal(read.Bytes(), want) {
			t.Errorf("read %q; want %q", read.Bytes(), want)
		}
		if clean := ended || !refused; clean != (err == nil) {
			t.Errorf("ended with %v; want a clean end: %v", err, clean)
		}
		if errors.Is(err, io.EOF) {
			t.Errorf("an unclean end counts as io.EOF: %v", err)
		}
	})
}

// send sends one message, in two frames where split says so.
func send(ctx context.Context, c *websocket.Conn, typ websocket.MessageType, p []byte, split bool) error {
	if !split {
		return c.Write(ctx, typ, p)
	}
	w, err := c.Writer(ctx, typ)
	if err != nil {
		return err
	}
	for _, part := range [][]byte{p[:len(p)/2], p[len(p)/2:]} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return w.Close()
}
