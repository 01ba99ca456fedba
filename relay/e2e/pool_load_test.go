package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/shared/api"
)

// ownApp answers who asks, echoes what is posted and WebSockets, and is slow where
// it is asked to be.
func ownApp(t *testing.T) *url.URL {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, _ = io.Copy(w, r.Body)
			return
		}
		_, _ = io.WriteString(w, "the app")
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		wait, perr := time.ParseDuration(r.URL.Query().Get("for"))
		if err != nil || perr != nil {
			return
		}
		select {
		case <-time.After(wait):
			_, _ = w.Write(body)
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/ws", wsEcho)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.CloseClientConnections)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// tcpEcho echoes what comes on a port.
func tcpEcho(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return ln.Addr().(*net.TCPAddr).Port
}

// load asks for pages all the time and remembers what went wrong.
type load struct {
	asked, failed atomic.Int64
	mu            sync.Mutex
	worst         time.Duration
	longest       time.Duration // without a success, of one tunnel
	faults        []string
	stop          context.CancelFunc
	wg            sync.WaitGroup
}

// load keeps one request after the other under way on each address.
func (f *fleet) load(addresses []string, every time.Duration) *load {
	return f.loadWith(addresses, every, f.get)
}

// postLoad is load with requests that nobody may repeat, and of which each waits for
// its answer.
func (f *fleet) postLoad(addresses []string, every, wait time.Duration) *load {
	return f.loadWith(addresses, every, func(c *http.Client, address string) (int, string) {
		return f.post(c, address, wait)
	})
}

func (f *fleet) loadWith(addresses []string, every time.Duration, ask func(c *http.Client, address string) (int, string)) *load {
	ctx, cancel := context.WithCancel(f.t.Context())
	l := &load{stop: cancel}
	tr := &http.Transport{MaxIdleConnsPerHost: 256, Proxy: nil}
	c := &http.Client{Timeout: 30 * time.Second, Transport: tr}
	f.t.Cleanup(func() { l.end(); tr.CloseIdleConnections() })
	for _, a := range addresses {
		l.wg.Go(func() {
			good := time.Now()
			tick := time.NewTicker(every)
			defer tick.Stop()
			for ctx.Err() == nil {
				began := time.Now()
				status, body := ask(c, a)
				l.asked.Add(1)
				l.mu.Lock()
				l.worst = max(l.worst, time.Since(began))
				if status == http.StatusOK {
					l.longest = max(l.longest, time.Since(good))
					good = time.Now()
				} else {
					l.failed.Add(1)
					if len(l.faults) < 8 {
						l.faults = append(l.faults, fmt.Sprintf("%s %d %.300s", began.Format("05.000"), status, body))
					}
				}
				l.mu.Unlock()
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
		})
	}
	return l
}

// post posts to the app, which answers after wait, and wants the same back.
func (f *fleet) post(c *http.Client, address string, wait time.Duration) (int, string) {
	sent := bytes.Repeat([]byte("what nobody may send twice "), 40)
	req, err := http.NewRequest(http.MethodPost, strings.TrimSuffix(address, "/")+"/slow?for="+wait.String(), bytes.NewReader(sent))
	if err != nil {
		return 0, err.Error()
	}
	req.Host = strings.TrimPrefix(f.lb.url, "http://")
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return 0, err.Error()
	case resp.StatusCode == http.StatusOK && !bytes.Equal(b, sent):
		return 0, fmt.Sprintf("posted %d bytes, the answer has %d others", len(sent), len(b))
	}
	return resp.StatusCode, string(b)
}

func (l *load) end() { l.stop(); l.wg.Wait() }

func (l *load) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d requests, %d failed, slowest %s, longest time without a success %s", l.asked.Load(), l.failed.Load(), l.worst.Round(time.Millisecond), l.longest.Round(time.Millisecond))
}

// talks keeps one connection open on each address and has all it says echoed, all
// the time; what was lost is connected again at once.
type talks struct {
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	said  int
	ended int
	codes map[websocket.StatusCode]int
	worst time.Duration // from a loss to the first echo of the next connection
	slow  time.Duration // the slowest echo
	wrong []string
}

// webSockets talks to the app's echo; tcp to the echo behind TCP tunnels.
func (f *fleet) webSockets(addresses []string, every time.Duration) *talks {
	var ws []string
	for _, a := range addresses {
		ws = append(ws, strings.TrimSuffix(a, "/")+"/ws")
	}
	return f.talk(ws, every, websocket.MessageText)
}

func (f *fleet) tcp(addresses []string, every time.Duration) *talks {
	return f.talk(addresses, every, websocket.MessageBinary)
}

func (f *fleet) talk(addresses []string, every time.Duration, kind websocket.MessageType) *talks {
	ctx, cancel := context.WithCancel(f.t.Context())
	s := &talks{stop: cancel, codes: map[websocket.StatusCode]int{}}
	f.t.Cleanup(s.end)
	var up sync.WaitGroup // all are connected once before anything happens to them
	for _, address := range addresses {
		up.Add(1)
		s.wg.Go(func() {
			connected := sync.OnceFunc(up.Done)
			defer connected()
			var lost time.Time
			for ctx.Err() == nil {
				c, _, err := websocket.Dial(ctx, address, &websocket.DialOptions{Host: strings.TrimPrefix(f.lb.url, "http://")})
				if err == nil {
					err = s.one(ctx, c, kind, every, func() {
						connected()
						s.back(&lost)
					})
					_ = c.CloseNow()
				}
				if ctx.Err() != nil {
					return
				}
				if code := websocket.CloseStatus(err); lost.IsZero() {
					lost = time.Now()
					s.mu.Lock()
					s.ended++
					s.codes[code]++
					s.mu.Unlock()
				}
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	up.Wait()
	return s
}

// back notes that a connection that was lost lives again.
func (s *talks) back(lost *time.Time) {
	if lost.IsZero() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.worst = max(s.worst, time.Since(*lost))
	*lost = time.Time{}
}

// one talks on a connection until it ends.
func (s *talks) one(ctx context.Context, c *websocket.Conn, kind websocket.MessageType, every time.Duration, lives func()) error {
	say := bytes.Repeat([]byte("echo it "), 32)
	for n := uint64(0); ; n++ {
		binary.BigEndian.PutUint64(say, n&0x7f7f7f7f7f7f7f7f) // also a text
		began := time.Now()
		if err := c.Write(ctx, kind, say); err != nil {
			_, _, rerr := c.Read(ctx) // why, if the other end said so
			return rerr
		}
		var heard []byte
		for len(heard) < len(say) {
			_, b, err := c.Read(ctx)
			if err != nil {
				return err
			}
			heard = append(heard, b...)
		}
		s.mu.Lock()
		s.said++
		s.slow = max(s.slow, time.Since(began))
		if !bytes.Equal(heard, say) {
			s.wrong = append(s.wrong, fmt.Sprintf("echo %d is %.60q", n, heard))
		}
		s.mu.Unlock()
		lives()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

func (s *talks) end() { s.stop(); s.wg.Wait() }

func (s *talks) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%d echoes, the slowest after %s, %d wrong; %d connections ended, codes %v, the slowest back after %s",
		s.said, s.slow.Round(time.Millisecond), len(s.wrong), s.ended, s.codes, s.worst.Round(time.Millisecond))
}

// check wants every echo to be right, ends to have only the code given, and each to
// be followed by another connection in time.
func (s *talks) check(t *testing.T, kind string, code websocket.StatusCode, back time.Duration) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.wrong) > 0 {
		t.Errorf("%s: %d echoes are wrong: %s", kind, len(s.wrong), s.wrong[0])
	}
	for _, c := range slices.Sorted(maps.Keys(s.codes)) {
		if c != code {
			t.Errorf("%s: %d connections ended with code %d, want %d", kind, s.codes[c], c, code)
		}
	}
	if s.worst > back {
		t.Errorf("%s: the slowest was back after %s, want %s", kind, s.worst, back)
	}
	if s.said == 0 {
		t.Errorf("%s: nothing was said", kind)
	}
}

// traffic is constant load of every kind.
type traffic struct {
	http, posts *load
	ws, tcp     *talks
	tunnels     []api.Tunnel // all of them
}

// few bounds how many connections of a kind a test keeps.
func few(n int) int {
	if long() {
		return min(n, 60)
	}
	return min(n, 12)
}

// traffic opens tunnels on n agents and begins to use them; address says where.
func (f *fleet) traffic(n int, every time.Duration, address func(tunnels []api.Tunnel) []string) *traffic {
	f.t.Helper()
	web, raw := f.open(n, "http"), f.open(few(n), "tcp")
	at := address(web)
	return &traffic{
		http:  f.load(at, every),
		posts: f.postLoad(at[:few(n)], every, 700*time.Millisecond),
		ws:    f.webSockets(at[:few(n)], every), tcp: f.tcp(address(raw), every),
		tunnels: append(web, raw...),
	}
}

func (tr *traffic) end() {
	for _, end := range []func(){tr.http.end, tr.posts.end, tr.ws.end, tr.tcp.end} {
		end()
	}
}

func (tr *traffic) String() string {
	return fmt.Sprintf("\n\tGET: %s\n\tPOST, answered after 0.7s: %s\n\tWebSocket: %s\n\tTCP: %s", tr.http, tr.posts, tr.ws, tr.tcp)
}

// faults are the first requests that failed.
func (tr *traffic) faults() string {
	return strings.Join(append(tr.http.faults, tr.posts.faults...), "\n")
}
