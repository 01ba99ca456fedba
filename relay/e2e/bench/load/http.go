package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// conn is an HTTP/1.1 connection that does as little as it can for a request, so
// that what lies behind it is measured and not it.
type conn struct {
	net.Conn
	in    *bufio.Reader
	keeps bool // the last answer left it open
}

func (r *run) connect(ctx context.Context, buffer int) (*conn, error) {
	c, err := r.dial(ctx)
	if err != nil {
		return nil, err
	}
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(d) // of a living connection it cannot fail
	}
	return &conn{Conn: c, in: bufio.NewReaderSize(c, buffer)}, nil
}

func (c *conn) close() {
	if c != nil {
		_ = c.Close()
	}
}

func (r *run) head(method, path, more string) []byte {
	return []byte(method + " " + path + " HTTP/1.1\r\nHost: " + r.Host + "\r\nUser-Agent: adit-bench\r\n" + more + "\r\n")
}

var errStatus = errors.New("not the answer expected")

// answer reads the head of an answer and returns the length of its body. The origin
// names it always, and nothing between may take it away.
func (c *conn) answer() (int64, error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	status := bytes.TrimSpace(line)
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200")) {
		return 0, fmt.Errorf("%w: %s", errStatus, status)
	}
	c.keeps = true
	length := int64(-1)
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		name, value, more := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(":"))
		switch {
		case !more && len(name) == 0:
			if length < 0 {
				return 0, fmt.Errorf("%w: no Content-Length", errStatus)
			}
			return length, nil
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return 0, err
			}
		case bytes.EqualFold(name, []byte("Connection")):
			c.keeps = !bytes.EqualFold(bytes.TrimSpace(value), []byte("close"))
		}
	}
}

// small makes one small request, on a new connection where c is nil. It returns the
// connection when it can be used again.
func (r *run) small(ctx context.Context, c *conn, last bool) (*conn, error) {
	var err error
	if c == nil {
		if c, err = r.connect(ctx, 4096); err != nil {
			return nil, err
		}
	}
	more := ""
	if last {
		more = "Connection: close\r\n"
	}
	n, err := c.exchange(r.head("GET", "/small", more))
	if err == nil {
		_, err = c.in.Discard(int(n))
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *conn) exchange(request []byte) (int64, error) {
	if _, err := c.Write(request); err != nil {
		return 0, err
	}
	return c.answer()
}

// requests is the loop of one kept connection.
func (r *run) requests(ctx context.Context, done func(time.Time)) {
	head := r.head("GET", "/small", "")
	var c *conn
	defer func() { c.close() }()
	for time.Now().Before(r.to) {
		since := time.Now()
		var err error
		if c == nil {
			if c, err = r.connect(ctx, 4096); err != nil {
				c = nil
			}
		}
		if err == nil {
			var n int64
			if n, err = c.exchange(head); err == nil {
				_, err = c.in.Discard(int(n))
			}
		}
		if err == nil {
			done(since)
		}
		if err != nil || !c.keeps {
			c.close()
			c = nil
		}
		if err != nil {
			r.failed(err)
			sleep(ctx, time.Millisecond)
		}
	}
}

// newConns is requests, each on a connection of its own.
func (r *run) newConns(ctx context.Context, done func(time.Time)) {
	for time.Now().Before(r.to) {
		since := time.Now()
		c, err := r.small(ctx, nil, true)
		if err != nil {
			r.failed(err)
			sleep(ctx, time.Millisecond)
			continue
		}
		done(since)
		c.close()
	}
}

// endlessBytes is more than any measurement moves.
const endlessBytes = 1 << 44

// download reads an endless answer until its time is over, which is no error.
func (r *run) download(ctx context.Context) error {
	c, err := r.connect(ctx, 4096)
	if err != nil {
		return err
	}
	defer c.close()
	if _, err := c.exchange(r.head("GET", "/bytes/"+strconv.Itoa(endlessBytes), "")); err != nil {
		return err
	}
	r.moved.Add(int64(c.in.Buffered()))
	buf := make([]byte, 256<<10)
	for {
		n, err := c.Read(buf)
		r.moved.Add(int64(n))
		if err != nil {
			return err
		}
	}
}

// upload writes an endless body until its time is over, which is no error.
func (r *run) upload(ctx context.Context) error {
	c, err := r.connect(ctx, 4096)
	if err != nil {
		return err
	}
	defer c.close()
	head := r.head("POST", "/sink", "Content-Type: application/octet-stream\r\nContent-Length: "+strconv.Itoa(endlessBytes)+"\r\n")
	if _, err := c.Write(head); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
}

// overtime is nil for an error that is the end of the measurement. A deadline of the
// connection may come a moment before that of the context.
func overtime(ctx context.Context, err error) error {
	if d, ok := ctx.Deadline(); ok && time.Until(d) < time.Millisecond {
		return nil
	}
	return err
}

// webSockets connects all sockets before the measurement's time begins: handshakes are
// no part of it.
func (r *run) webSockets(ctx context.Context) Result {
	var wg sync.WaitGroup
	sockets := make(chan *websocket.Conn, r.Conns)
	for range r.Conns {
		wg.Go(func() {
			if ws, err := r.webSocket(ctx); err != nil {
				r.failed(err)
			} else {
				sockets <- ws
			}
		})
	}
	wg.Wait()
	close(sockets)
	r.begin()
	return r.closedLoop(ctx, func(ctx context.Context, done func(time.Time)) {
		if ws := <-sockets; ws != nil {
			r.echoes(ctx, ws, done)
		}
	})
}

func (r *run) webSocket(ctx context.Context) (*websocket.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	scheme := "ws"
	if r.TLS {
		scheme = "wss"
	}
	// The handshake is the library's; the connection is this package's, so that a
	// host with a name needs no DNS.
	ws, _, err := websocket.Dial(ctx, scheme+"://"+r.Host+"/ws", &websocket.DialOptions{
		HTTPClient: r.client(), CompressionMode: websocket.CompressionDisabled,
	})
	return ws, err
}

// echoes is the loop of one WebSocket.
func (r *run) echoes(ctx context.Context, ws *websocket.Conn, done func(time.Time)) {
	defer func() { _ = ws.CloseNow() }()
	message := make([]byte, wsSize)
	for time.Now().Before(r.to) {
		since := time.Now()
		err := ws.Write(ctx, websocket.MessageBinary, message)
		var back []byte
		if err == nil {
			_, back, err = ws.Read(ctx)
		}
		if err == nil && len(back) != wsSize {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			r.failed(err)
			return
		}
		done(since)
	}
}

// client connects to the endpoint whatever the URL says.
func (r *run) client() *http.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx) }
	return &http.Client{Transport: &http.Transport{DialContext: dial, DialTLSContext: dial, DisableCompression: true}}
}
