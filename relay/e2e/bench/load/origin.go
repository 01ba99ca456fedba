package load

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// smallBody is what small requests get: 200 bytes, as of an API.
const smallBody = 200

// Origin is the app at the end of every path.
type Origin struct {
	sunk atomic.Int64
}

// Serve answers HTTP on one listener and says on the other, to each byte that a
// client sends, how many bytes of uploads have arrived. It returns when ctx ends.
func (o *Origin) Serve(ctx context.Context, web, counter net.Listener) error {
	srv := &http.Server{Handler: o.routes(), ReadHeaderTimeout: 30 * time.Second}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer context.AfterFunc(ctx, func() {
		_ = srv.Close()
		_ = counter.Close()
	})()
	defer counter.Close()
	wg.Go(func() {
		for {
			c, err := counter.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { o.count(ctx, c) })
		}
	})
	if err := srv.Serve(web); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (o *Origin) count(ctx context.Context, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	var ask [1]byte
	for {
		if _, err := c.Read(ask[:]); err != nil {
			return
		}
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(o.sunk.Load()))); err != nil {
			return
		}
	}
}

// dialCounter connects to the origin's counter.
func dialCounter(ctx context.Context, path string) (count func() (int64, error), stop func(), err error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, nil, err
	}
	return func() (int64, error) {
		var n [8]byte
		if _, err := c.Write([]byte{1}); err != nil {
			return 0, err
		}
		_, err := io.ReadFull(c, n[:])
		return int64(binary.BigEndian.Uint64(n[:])), err
	}, func() { _ = c.Close() }, nil
}

// ListenCounter opens the counter's socket.
func ListenCounter(ctx context.Context, path string) (net.Listener, error) {
	_ = os.Remove(path) // one that a killed origin left
	var lc net.ListenConfig
	return lc.Listen(ctx, "unix", path)
}

func (o *Origin) routes() http.Handler {
	small := make([]byte, smallBody)
	piece := make([]byte, 64<<10)
	for i := range piece {
		piece[i] = byte(i * 31)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /small", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(small)))
		_, _ = w.Write(small) // the client may be gone
	})
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "how many bytes?", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		for n > 0 {
			k, err := w.Write(piece[:min(n, int64(len(piece)))])
			if err != nil {
				return
			}
			n -= int64(k)
		}
	})
	mux.HandleFunc("POST /sink", func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 128<<10)
		var total int64
		for {
			n, err := r.Body.Read(buf)
			o.sunk.Add(int64(n))
			total += int64(n)
			if errors.Is(err, io.EOF) {
				answer := strconv.AppendInt(nil, total, 10)
				w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
				_, _ = w.Write(answer) // the client may be gone
				return
			}
			if err != nil {
				return
			}
		}
	})
	mux.HandleFunc("GET /ws", echo)
	return mux
}

func echo(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	ctx := context.WithoutCancel(r.Context())
	for {
		kind, b, err := c.Read(ctx)
		if err != nil {
			return
		}
		if err := c.Write(ctx, kind, b); err != nil {
			return
		}
	}
}
