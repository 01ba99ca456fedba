package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/adit-tunnel/adit/shared/wire"
)

// messages has one of every type.
func messages() []wire.Message {
	percent := 12.5
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	facts := wire.Facts{
		Tool: "comfyui", OSType: "linux", GPUs: []wire.GPU{{Name: "A100", VRAMTotal: 80 << 30}},
		Link: &wire.LinkFacts{RTTMillis: 1.5, Congestion: "bbr"}, Hooks: &wire.HookFailure{Hook: "opened", Detail: "exit 1"},
	}
	notice := wire.TunnelNotice{Session: session, Port: 8188, Protocol: "http", OpenedAt: at, ExpiresAt: at.Add(time.Hour)}
	return []wire.Message{
		{Type: wire.TypeHello, Hello: &wire.AgentHello{
			Agent: "gpu-7", Instance: "i", Generation: 3, Version: "v1", Platform: "linux/amd64", Labels: map[string]string{"GPU": "A100"},
			Capabilities: []string{wire.CapTerminal, wire.CapProbe}, TaskCapacity: 1, Facts: facts, State: wire.State{Paused: true},
		}},
		{Type: wire.TypeWelcome, Welcome: &wire.Welcome{Generation: 4, Relay: "relay-1", Version: "v1", Relays: []string{"https://b"}, Tunnels: []wire.TunnelNotice{notice}}},
		{Type: wire.TypeFacts, Facts: &facts},
		{Type: wire.TypeState, State: &wire.State{SyncPhase: "models", SyncDetail: "flux", SyncPercent: &percent}},
		{Type: wire.TypePing, Ping: &wire.Ping{ID: 1, Sent: 2}},
		{Type: wire.TypePong, Ping: &wire.Ping{ID: 1, Sent: 2}},
		{Type: wire.TypeTunnelOpened, TunnelOpened: &notice},
		{Type: wire.TypeTunnelClosed, TunnelClosed: &wire.TunnelNotice{Session: session, Reason: "idle"}},
		{Type: wire.TypeProbe, Probe: &wire.Probe{ID: 9, Port: 8888, Protocol: "http", PublicHost: "x.localhost"}},
		{Type: wire.TypeProbed, Probed: &wire.Probed{ID: 9, Listening: true, Allowed: true, App: "jupyter", HostHeader: "local", Warnings: []string{"w"}}},
		{Type: wire.TypeGoodbye, Goodbye: &wire.Goodbye{Reason: wire.GoodbyeDrain, MoveTo: []string{"https://b"}}},
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	var stream bytes.Buffer
	enc := wire.NewEncoder(&stream)
	for _, m := range messages() {
		if err := enc.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	dec := wire.NewDecoder(iotest.HalfReader(&stream))
	for _, want := range messages() {
		want.V = wire.ProtocolVersion
		if got, err := dec.Read(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s should arrive as it was sent\n got %+v, %v\nwant %+v", want.Type, got, err, want)
		}
	}
	if _, err := dec.Read(); err != io.EOF {
		t.Errorf("a clean end should read as io.EOF; got %v", err)
	}
}

// TestNewerPeer is the version policy: unknown types and fields are ignored, at
// every depth, and so is a higher version.
func TestNewerPeer(t *testing.T) {
	dec := wire.NewDecoder(strings.NewReader(
		`{"v":9,"type":"teleport","teleport":{"to":"mars"},"more":[1,2,3]}` + "\n" +
			`{"v":9,"type":"hello","hello":{"agent_id":"a","facts":{"tool":"x","fusion":{"mw":3}},"quantum":true,"state":{}},"sig":"…"}` + "\n" +
			`{"v":9,"type":"goodbye","goodbye":{"reason":"bored","until":"tomorrow"}}` + "\n"))
	m, err := dec.Read()
	if err != nil || m.Type != "teleport" || !reflect.DeepEqual(m, wire.Message{V: 9, Type: "teleport"}) {
		t.Errorf("an unknown type should come with no known field; got %+v, %v", m, err)
	}
	if m, err = dec.Read(); err != nil || m.Hello == nil || m.Hello.Agent != "a" || m.Hello.Facts.Tool != "x" {
		t.Errorf("unknown fields should be passed over; got %+v, %v", m, err)
	}
	if m, err = dec.Read(); err != nil || m.Goodbye == nil || m.Goodbye.Reason != "bored" {
		t.Errorf("an unknown reason should arrive; got %+v, %v", m, err)
	}
}

// TestOlderPeer sends as little as the first version does.
func TestOlderPeer(t *testing.T) {
	dec := wire.NewDecoder(strings.NewReader(`{"v":1,"type":"hello","hello":{"agent_id":"a"}}` + "\n" + `{"type":"welcome","welcome":{"generation":1}}`))
	if m, err := dec.Read(); err != nil || m.Hello == nil || m.Hello.Generation != 0 || m.Hello.State.Paused {
		t.Errorf("absent fields should be zero; got %+v, %v", m, err)
	}
	if m, err := dec.Read(); err != nil || m.V != 0 || m.Welcome == nil || m.Welcome.Generation != 1 {
		t.Errorf("a last line without its end should be read; got %+v, %v", m, err)
	}
}

func TestMalformedMessages(t *testing.T) {
	for name, line := range map[string]string{
		"empty line": "\n", "no JSON": "hello\n", "a list": "[]\n", "no type": "{}\n", "wrong type": `{"type":1}` + "\n",
		"wrong field": `{"type":"hello","hello":[]}` + "\n", "cut": `{"type":"ping","pi`,
	} {
		if _, err := wire.NewDecoder(strings.NewReader(line)).Read(); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: it should be refused; got %v", name, err)
		}
	}
	broken := errors.New("link is down")
	if _, err := wire.NewDecoder(iotest.ErrReader(broken)).Read(); !errors.Is(err, broken) {
		t.Errorf("a reader's error should come through; got %v", err)
	}
}

func TestMessageSize(t *testing.T) {
	sized := func(n int) wire.Message {
		return wire.Message{Type: wire.TypeGoodbye, Goodbye: &wire.Goodbye{Reason: "error", Detail: strings.Repeat("x", n)}}
	}
	line, err := json.Marshal(wire.Message{V: 1, Type: wire.TypeGoodbye, Goodbye: &wire.Goodbye{Reason: "error", Detail: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	largest := wire.MaxMessage - len(line) // with the newline
	var stream bytes.Buffer
	if err := wire.NewEncoder(&stream).Write(sized(largest)); err != nil || stream.Len() != wire.MaxMessage {
		t.Fatalf("a message of %d bytes should be sent; %d, %v", wire.MaxMessage, stream.Len(), err)
	}
	if m, err := wire.NewDecoder(&stream).Read(); err != nil || len(m.Goodbye.Detail) != largest {
		t.Errorf("the largest message should be read; got %v", err)
	}
	if err := wire.NewEncoder(&stream).Write(sized(largest + 1)); !errors.Is(err, wire.ErrMessageTooLong) || stream.Len() != 0 {
		t.Errorf("a longer one should not be sent; got %v", err)
	}
	endless := io.MultiReader(strings.NewReader(`{"type":"`), endless{})
	if _, err := wire.NewDecoder(endless).Read(); !errors.Is(err, wire.ErrMessageTooLong) {
		t.Errorf("an endless line should be given up; got %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestEncoderIsForSeveralWriters(t *testing.T) {
	var stream bytes.Buffer // written to by one Write per message, under the encoder's lock
	enc := wire.NewEncoder(&stream)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				if err := enc.Write(wire.Message{Type: wire.TypePing, Ping: &wire.Ping{ID: uint64(i)}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	dec := wire.NewDecoder(&stream)
	for n := 0; ; n++ {
		if _, err := dec.Read(); err == io.EOF {
			if n != 400 {
				t.Errorf("want 400 whole messages, got %d", n)
			}
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzDecoder(f *testing.F) {
	for _, m := range messages() {
		line, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(line, '\n'))
	}
	for _, s := range []string{"", "\n", "{}\n", "null\n", `{"type":"x"}{"type":"y"}` + "\n", `{"type":"hello","hello":null}`, `{"TYPE":"ping","ping":{"id":-1}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dec := wire.NewDecoder(bytes.NewReader(b))
		for range len(b) + 1 {
			m, err := dec.Read()
			if err != nil && !errors.Is(err, wire.ErrMalformed) {
				return
			}
			if err == nil {
				if m.Type == "" {
					t.Error("a message without type should be refused")
				}
				var out bytes.Buffer
				if err := wire.NewEncoder(&out).Write(m); err != nil && !errors.Is(err, wire.ErrMessageTooLong) {
					// Times of the year 10000 and later cannot be written (RFC 3339); they
					// cannot be read either.
					t.Errorf("what was read should be sendable: %v", err)
				}
			}
		}
	})
}
