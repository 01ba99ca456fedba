package peers_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/peers"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

var key = ident.AgentKey{Team: "6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11", Agent: "gpu-1"}

// pool is what both relays know: each other, and that b has the agent.
type pool struct {
	mu     sync.Mutex
	relays map[ident.RelayID]store.RelayRecord
	late   map[ident.RelayID]store.RelayRecord // known once caught up
	down   bool
	fenced chan struct{}
}

func (p *pool) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *pool) CatchUp(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return store.ErrUnavailable
	}
	maps.Copy(p.relays, p.late)
	return nil
}

func (p *pool) Relays() (out []store.RelayRecord) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.relays {
		out = append(out, r)
	}
	return out
}
func (p *pool) Relay(id ident.RelayID) (store.RelayRecord, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.relays[id]
	return r, ok
}
func (p *pool) Presence(ident.AgentKey) (store.Presence, bool) {
	return store.Presence{Relay: "b", Epoch: 7}, true
}
func (p *pool) Agent(ident.AgentKey) (store.AgentRecord, bool) {
	return store.AgentRecord{Relay: "b", Epoch: 7}, true
}
func (p *pool) Serving() bool           { return true }
func (p *pool) Fenced() <-chan struct{} { return p.fenced }

type silent struct{ c chan store.Change }

func (s silent) C() <-chan store.Change { return s.c }
func (silent) Lost() bool               { return false }
func (silent) Close()                   {}

// authority makes certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.key, a.cert = a.sign("ca", &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}), nil
	raw, err := os.ReadFile(filepath.Join(a.dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	if a.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) sign(name string, template *x509.Certificate) *ecdsa.PrivateKey {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, k
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, k.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, b := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(b), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return k
}

func (a *authority) files(name string) peers.Files {
	a.sign(name, &x509.Certificate{DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}})
	return peers.Files{CA: filepath.Join(a.dir, "ca.pem"), Cert: filepath.Join(a.dir, name+".pem"), Key: filepath.Join(a.dir, name+".key")}
}

// agentSide is an agent's stream: a link's, as the hub's are, on a pipe.
func agentSide(t *testing.T, serve func(st *link.Stream, h wire.Hello)) func(context.Context, wire.Hello) (*fleet.Stream, error) {
	t.Helper()
	near, far := net.Pipe()
	relay, err := link.NewServer(near, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	agent, err := link.NewClient(far, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var serving sync.WaitGroup
		defer serving.Wait()
		for {
			st, err := agent.Accept(context.Background())
			if err != nil {
				return
			}
			serving.Go(func() {
				defer func() { _ = st.Close() }()
				if h, err := wire.ReadHello(st); err == nil {
					serve(st, h)
				}
			})
		}
	}()
	t.Cleanup(func() { _ = relay.Close(nil); _ = agent.Close(nil); <-done })
	return func(ctx context.Context, h wire.Hello) (*fleet.Stream, error) {
		st, err := link.OpenHello(ctx, relay, h)
		if err != nil {
			return nil, err
		}
		return fleet.NewStream(st, h.Session, nil), nil
	}
}

// duo is relays a and b. b's address is addr, and left names who was told that the
// other one leaves.
type duo struct {
	a, b *peers.Peers
	addr string
	left chan ident.RelayID
	pool *pool
	feed chan store.Change // of b
}

// two starts relays a and b; b opens streams as it is told.
func two(t *testing.T, a *authority, open func(context.Context, ident.AgentKey, uint64, wire.Hello) (*fleet.Stream, error)) duo {
	t.Helper()
	var addr string
	left := make(chan ident.RelayID, 8)
	pl := &pool{relays: map[ident.RelayID]store.RelayRecord{}, fenced: make(chan struct{})}
	made := map[ident.RelayID]*peers.Peers{}
	var feed chan store.Change
	for _, id := range []ident.RelayID{"a", "b"} {
		changes := make(chan store.Change)
		feed = changes
		addr = fmt.Sprintf("127.0.0.1:%d", testkit.FreePort(t))
		pl.set(func() { pl.relays[id] = store.RelayRecord{ID: id, PeerURL: "https://" + addr} })
		p, err := peers.New(peers.Config{
			Relay: id, Listen: addr, TLS: a.files(string(id)), Pool: pl, Open: open, Logger: slog.New(slog.DiscardHandler),
			Subscribe: func(int) peers.Changes { return silent{changes} },
			Leaving:   func() { left <- id },
			Answers: map[string]func(context.Context, []byte) (any, error){"name": func(_ context.Context, q []byte) (any, error) {
				return string(id) + " got " + string(q), nil
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		made[id] = p
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		t.Cleanup(func() {
			stop()
			if err := <-done; err != nil {
				t.Errorf("relay %s: %v", id, err)
			}
		})
	}
	testkit.Eventually(t, "both relays listen", func() bool {
		for _, r := range pl.Relays() {
			c, err := net.Dial("tcp", r.PeerURL[len("https://"):])
			if err != nil {
				return false
			}
			_ = c.Close()
		}
		return true
	})
	return duo{made["a"], made["b"], addr, left, pl, feed}
}

// TestTheDoorIsForRelaysThatTheStoreKnows comes with a good certificate of the pool's
// authority that names no relay of the pool: the authority may sign for others, too.
func TestTheDoorIsForRelaysThatTheStoreKnows(t *testing.T) {
	ca := newAuthority(t)
	relays := two(t, ca, func(context.Context, ident.AgentKey, uint64, wire.Hello) (*fleet.Stream, error) {
		return nil, fleet.ErrAway
	})
	b, _ := relays.pool.Relay("b")
	view := &pool{relays: map[ident.RelayID]store.RelayRecord{"b": b, "c": {ID: "c"}}, fenced: make(chan struct{})}
	c, err := peers.New(peers.Config{
		Relay: "c", Listen: "127.0.0.1:0", TLS: ca.files("c"), Pool: view, Logger: slog.New(slog.DiscardHandler),
		Open: func(context.Context, ident.AgentKey, uint64, wire.Hello) (*fleet.Stream, error) {
			return nil, fleet.ErrAway
		},
		Subscribe: func(int) peers.Changes { return silent{make(chan store.Change)} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("relay c: %v", err)
		}
	})
	ask := func() error {
		var got string
		return c.Ask(t.Context(), "b", "name", "?", &got)
	}
	testkit.Eventually(t, "relay c runs", func() bool { err := ask(); return err == nil || !strings.Contains(err.Error(), "stopped") })
	if err := ask(); err == nil || !strings.Contains(err.Error(), `no relay "c"`) {
		t.Errorf("a relay that the store does not know asks: %v", err)
	}
	relays.pool.set(func() { relays.pool.down = true })
	testkit.Eventually(t, "the refusal says that the store cannot be asked", func() bool {
		err := ask()
		return err != nil && strings.Contains(err.Error(), "cannot be asked")
	})
	// It has just started, and this relay has not heard of it yet.
	relays.pool.set(func() {
		relays.pool.down, relays.pool.late = false, map[ident.RelayID]store.RelayRecord{"c": {ID: "c"}}
	})
	testkit.Eventually(t, "a relay that the store knows is let in", func() bool { return ask() == nil })
	// Its lease is over, and its record gone.
	relays.pool.set(func() { delete(relays.pool.relays, "c"); relays.pool.late = nil })
	relays.feed <- store.Change{Kind: store.KindRelay, Relay: "c", Deleted: true}
	testkit.Eventually(t, "a relay whose record is gone is out", func() bool {
		_, from := relays.b.Links()
		return ask() != nil && !slices.Contains(from, "c")
	})
}

func TestStreamTakesOneHop(t *testing.T) {
	toAgent := agentSide(t, func(st *link.Stream, h wire.Hello) {
		if h.Port == 1 {
			_, _ = st.Write(wire.AppendVerdict(nil, wire.Verdict{Code: wire.CodeAppRefused, Text: "nothing listens"}))
			return
		}
		_, _ = st.Write(wire.AppendVerdict(nil, wire.Verdict{}))
		_, _ = io.Copy(st, st)
		_ = st.CloseWrite()
	})
	relays := two(t, newAuthority(t), func(ctx context.Context, k ident.AgentKey, epoch uint64, h wire.Hello) (*fleet.Stream, error) {
		switch {
		case k != key || epoch != 7 || h.Kind != wire.KindTCP:
			return nil, fmt.Errorf("%w: %v %d %s", fleet.ErrAway, k, epoch, h.Kind)
		case h.Port == 2:
			return nil, fleet.ErrAway
		case h.Port == 3:
			return nil, fleet.ErrCut
		}
		return toAgent(ctx, h)
	})
	a := relays.a
	st, err := a.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP, Port: 9})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Write([]byte("there and back")); err != nil {
		t.Fatal(err)
	}
	_ = st.CloseWrite()
	if b, err := io.ReadAll(st); err != nil || string(b) != "there and back" {
		t.Errorf("through the other relay came %q, %v", b, err)
	}
	_ = st.Close()

	st, err = a.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP, Port: 1})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = st.Write(make([]byte, 1<<20)) // a request in full flow does not hide the refusal
	var v wire.Verdict
	if err := st.Verdict(t.Context()); !errors.As(err, &v) || v.Code != wire.CodeAppRefused {
		t.Errorf("the agent's refusal arrived as %v", err)
	}
	if _, err := st.Read(make([]byte, 1)); !errors.As(err, &v) {
		t.Errorf("reading after the refusal gave %v", err)
	}
	_ = st.Close()

	for port, want := range map[uint16]error{2: fleet.ErrAway, 3: fleet.ErrCut} {
		if _, err := a.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP, Port: port}); !errors.Is(err, want) {
			t.Errorf("port %d: %v, want %v", port, err, want)
		}
	}
	// What came from a relay goes to no other: the mark of a hop is no kind that an
	// agent's stream can have.
	for _, kind := range []wire.Kind{wire.KindPeer, wire.KindGate, wire.KindControl} {
		if _, err := a.Open(t.Context(), key, wire.Hello{Kind: kind, Port: 9}); !errors.Is(err, fleet.ErrAway) {
			t.Errorf("a stream of kind %s should be refused: %v", kind, err)
		}
	}
	var said string
	if err := a.Ask(t.Context(), "b", "name", 5, &said); err != nil || said != "b got 5" {
		t.Errorf("asked, b said %q, %v", said, err)
	}
}

// TestDrainWaitsForAnswers shows that a relay that stops waits for a request on
// which nothing moves, where another relay's idle streams do not keep it.
func TestDrainWaitsForAnswers(t *testing.T) {
	answer := make(chan struct{})
	toAgent := agentSide(t, func(st *link.Stream, _ wire.Hello) {
		_, _ = st.Write(wire.AppendVerdict(nil, wire.Verdict{}))
		var one [1]byte
		if _, err := st.Read(one[:]); err != nil {
			return // an idle stream that was given up
		}
		<-answer
		_, _ = st.Write([]byte("at last"))
		_ = st.CloseWrite()
	})
	relays := two(t, newAuthority(t), func(ctx context.Context, _ ident.AgentKey, _ uint64, h wire.Hello) (*fleet.Stream, error) {
		return toAgent(ctx, h)
	})
	open := func() *fleet.Stream {
		st, err := relays.a.Open(t.Context(), key, wire.Hello{Kind: wire.KindTCP, Port: 9, Session: ident.NewSessionID()})
		if err == nil {
			err = st.Verdict(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	idle, asked := open(), open()
	if _, err := asked.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if idle.Leaving() {
		t.Error("nobody leaves yet")
	}
	drained := make(chan struct{})
	go func() {
		relays.b.Drain(t.Context())
		close(drained)
	}()
	if id := <-relays.left; id != "a" || !idle.Leaving() {
		t.Errorf("relay %s was told; its streams are leaving: %v", id, idle.Leaving())
	}
	_ = idle.Close()
	select {
	case <-drained:
		t.Fatal("the drain did not wait for a request without an answer")
	case <-time.After(3 * time.Second): // longer than a quiet stream is waited for
	}
	close(answer)
	if b, err := io.ReadAll(asked); err != nil || string(b) != "at last" {
		t.Errorf("the answer is %q, %v", b, err)
	}
	_ = asked.Close()
	select {
	case <-drained:
	case <-time.After(testkit.Patience):
		t.Error("the drain goes on though all is over")
	}
}

// TestOnlyRelaysGetIn shows that the authority's signature alone admits nobody: the
// certificate must name the relay that is said to come.
func TestOnlyRelaysGetIn(t *testing.T) {
	ca := newAuthority(t)
	relays := two(t, ca, func(context.Context, ident.AgentKey, uint64, wire.Hello) (*fleet.Stream, error) {
		return nil, fleet.ErrAway
	})
	other := newAuthority(t)
	for name, c := range map[string]struct {
		files peers.Files
		says  string
		kind  wire.Kind
	}{
		"another authority": {other.files("a"), "a", wire.KindPeer},
		"another's name":    {ca.files("mallory"), "a", wire.KindPeer},
		"no hello":          {ca.files("a"), "", wire.KindPeer},
		"another kind":      {ca.files("a"), "a", wire.KindControl},
	} {
		t.Run(name, func(t *testing.T) {
			cert, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := tls.Dial("tcp", relays.addr, &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{"adit.peer.v1"}})
			if err != nil {
				return // refused in the handshake
			}
			l, err := link.NewClient(conn, link.Config{})
			if err != nil {
				return
			}
			defer func() { _ = l.Close(nil) }()
			op := "stream"
			if c.says != "" {
				op = "hello"
			}
			payload, _ := json.Marshal(map[string]string{"op": op, "relay": c.says})
			st, err := link.OpenHello(t.Context(), l, wire.Hello{Kind: c.kind, Payload: payload})
			if err == nil {
				err = st.Verdict(t.Context())
			}
			if err == nil {
				t.Error("it was let in")
			}
		})
	}
}
