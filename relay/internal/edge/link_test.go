package edge_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// linked is a Dialer over a real link to a small agent.
type linked struct {
	mu   sync.Mutex
	link *link.Link // nil: away
	back chan struct{}

	budget *link.Budget // of the relay's end; nil: the link's default
}

func (d *linked) Open(ctx context.Context, key ident.AgentKey, h wire.Hello) (edge.Stream, error) {
	d.mu.Lock()
	l := d.link
	d.mu.Unlock()
	if l == nil {
		return nil, edge.ErrAway
	}
	s, err := link.OpenFor(ctx, l, link.Owner{Tenant: string(key.Team), Agent: string(key.Agent), Tunnel: string(h.Session)}, h)
	if errors.Is(err, link.ErrClosed) {
		return nil, errors.Join(err, edge.ErrAway)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (d *linked) Wait(ctx context.Context, _ ident.AgentKey) error {
	d.mu.Lock()
	l, back := d.link, d.back
	d.mu.Unlock()
	if l != nil {
		select {
		case <-l.Done():
		default:
			return nil
		}
	}
	select {
	case <-back:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connect makes a link and an agent at its other end.
func (d *linked) connect(t testing.TB) {
	t.Helper()
	far, near := testkit.TCP(t)
	agent, err := link.NewClient(far, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	relay, err := link.NewServer(near, link.Config{Budget: d.budget})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			s, err := agent.Accept(ctx)
			if err != nil {
				return
			}
			all.Go(func() { serveStream(ctx, s) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = agent.Close(nil)
		_ = relay.Close(nil)
		all.Wait()
	})
	d.mu.Lock()
	d.link = relay
	close(d.back)
	d.back = make(chan struct{})
	d.mu.Unlock()
}

func serveStream(ctx context.Context, s *link.Stream) {
	h, err := wire.ReadHello(s)
	if err != nil {
		_ = s.Close()
		return
	}
	c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(int(h.Port)))
	if err != nil {
		_, _ = s.Write(wire.AppendVerdict(nil, wire.Verdict{Code: wire.CodeAppRefused, Text: "connection refused"}))
		_ = s.Close()
		return
	}
	if _, err := s.Write(wire.AppendVerdict(nil, wire.Verdict{})); err != nil {
		_ = c.Close()
		_ = s.Close()
		return
	}
	_, _ = splice.Both(ctx, s, c.(*net.TCPConn), splice.Options{})
}

func TestOverARealLink(t *testing.T) {
	d := &linked{back: make(chan struct{})}
	w := newWorld(t, func(c *edge.Config) { c.Dialer = d; c.Hold = 20 * time.Second })
	d.connect(t)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			echo(rw, r)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(rw, "%s %d", r.Method, n)
	})
	rec, seg := w.tunnel(port, nil)
	for i := range 20 {
		method, body := "GET", ""
		if i%2 == 1 {
			method, body = "POST", strings.Repeat("x", 100<<10)
		}
		resp := w.do(w.request(method, seg, "/", strings.NewReader(body)))
		if got, want := text(t, resp.Body), fmt.Sprintf("%s %d", method, len(body)); got != want {
			t.Fatalf("request %d: %d %s, want %s", i, resp.StatusCode, got, want)
		}
	}
	if n := w.edge.IdleStreams(); n != 1 {
		t.Errorf("%d streams are kept after requests one after the other", n)
	}
	_, nobody := w.tunnel(1, nil)
	if resp := w.get(nobody, "/"); resp.StatusCode != 502 || !strings.Contains(text(t, resp.Body), "app_refused") {
		t.Errorf("nothing listens: %d", resp.StatusCode)
	}
	c, _, err := w.webSocket(seg, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Write(t.Context(), websocket.MessageText, []byte("hi"))
	if _, b, err := c.Read(t.Context()); err != nil || string(b) != "hi" {
		t.Errorf("%q %v", b, err)
	}
	got := make(chan error, 1)
	go func() { _, _, err := c.Read(t.Context()); got <- err }()
	w.close(rec.Session)
	if code := websocket.CloseStatus(<-got); code != 1001 {
		t.Errorf("close code %d", code)
	}

	tcpPort := w.rawApp(func(c net.Conn) {
		line, _ := bufio.NewReader(c).ReadString('\n')
		_, _ = io.WriteString(c, "you said "+line)
	})
	_, tcp := w.tunnel(tcpPort, func(r *store.TunnelRecord) { r.Protocol = api.ProtocolTCP })
	c, _, err = w.webSocket(tcp, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Write(t.Context(), websocket.MessageBinary, []byte("hello\n"))
	if _, b, err := c.Read(t.Context()); err != nil || string(b) != "you said hello\n" {
		t.Errorf("%q %v", b, err)
	}
}

// TestLinkLostAndBack: a GET that lost its stream, and its idle streams with it, is
// carried out on the new link.
func TestLinkLostAndBack(t *testing.T) {
	d := &linked{back: make(chan struct{})}
	w := newWorld(t, func(c *edge.Config) { c.Dialer = d; c.Hold = 20 * time.Second })
	d.connect(t)
	arrived := make(chan struct{}, 10)
	var requests atomic.Int32
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		if requests.Add(1) == 1 {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(rw, "second")
	})
	_, seg := w.tunnel(port, nil)
	done := make(chan string, 1)
	r := w.request("GET", seg, "/", nil)
	go func() {
		resp, err := w.client().Do(r)
		if err != nil {
			done <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		done <- string(b)
	}()
	<-arrived
	d.mu.Lock()
	old := d.link
	d.link = nil
	d.mu.Unlock()
	_ = old.Close(errors.New("cable pulled"))
	d.connect(t)
	if got := <-done; got != "second" {
		t.Errorf("after the link came back: %s", got)
	}
}
