package link_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

func hello() wire.Hello {
	return wire.Hello{Kind: wire.KindTCP, Port: 8188, Epoch: 7, Session: ident.NewSessionID(), Request: ident.NewRequestID()}
}

// accept takes a stream, checks its hello and answers.
func accept(t testing.TB, client *link.Link, want wire.Hello, v wire.Verdict) *link.Stream {
	t.Helper()
	s, err := client.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := wire.ReadHello(s)
	if err != nil || got.Port != want.Port || got.Session != want.Session || got.Request != want.Request {
		t.Fatalf("the hello arrives as %+v, %v; want %+v", got, err, want)
	}
	mustWrite(t, s, string(wire.AppendVerdict(nil, v)))
	return s
}

// The opener of an SSH or MySQL stream waits for the other side to speak first.
func TestHelloGoesOutWithoutData(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		h := hello()
		near, err := link.OpenHello(t.Context(), server, h)
		if err != nil {
			t.Fatal(err)
		}
		far := accept(t, client, h, wire.Verdict{})
		mustWrite(t, far, "SSH-2.0-test\r\n")
		mustRead(t, near, "SSH-2.0-test\r\n")
		if err := near.Verdict(t.Context()); err != nil {
			t.Errorf("the verdict of an accepted stream is %v; want nil", err)
		}
	})
}

func TestDataDoesNotWaitForTheVerdict(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		h := hello()
		near, err := link.OpenHello(t.Context(), server, h)
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, near, "GET /")
		far, err := client.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := wire.ReadHello(far); err != nil {
			t.Fatal(err)
		}
		mustRead(t, far, "GET /")
		mustWrite(t, far, string(wire.AppendVerdict(nil, wire.Verdict{}))+"200 OK")
		mustRead(t, near, "200 OK")
	})
}

func TestRefusal(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		h := hello()
		near, err := link.OpenHello(t.Context(), server, h)
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, near, "a request that nobody will read")
		no := wire.Verdict{Code: wire.CodeAppRefused, Text: "nothing listens on port 8188"}
		far := accept(t, client, h, no)
		_ = far.Close() // with the request unread: the stream is reset behind the verdict
		<-near.Done()
		var v wire.Verdict
		if _, err := near.Write([]byte("x")); !errors.As(err, &v) || v != no {
			t.Errorf("writing to a refused stream gives %v; want the verdict", err)
		}
		if _, err := near.Read(make([]byte, 10)); !errors.As(err, &v) || v != no {
			t.Errorf("reading a refused stream gives %v; want the verdict", err)
		}
		if err := near.Verdict(t.Context()); !errors.As(err, &v) || v != no {
			t.Errorf("the verdict of a refused stream is %v", err)
		}
	})
}

// A stream that is passed on has two verdicts, which may come as one piece: of the peer
// that passes it on, and of whoever is behind it.
func TestVerdictBehindAVerdict(t *testing.T) {
	each(t, func(t *testing.T, client, server *link.Link) {
		for _, behind := range []wire.Verdict{{}, {Code: wire.CodeAppRefused, Text: "nothing listens on port 8188"}} {
			h := hello()
			near, err := link.OpenHello(t.Context(), server, h)
			if err != nil {
				t.Fatal(err)
			}
			far := accept(t, client, h, wire.Verdict{})
			mustWrite(t, far, string(wire.AppendVerdict(nil, behind))+"200 OK")
			if err := near.Verdict(t.Context()); err != nil {
				t.Fatal(err)
			}
			near.AwaitVerdict()
			if behind.Code == wire.CodeOK {
				mustRead(t, near, "200 OK")
				continue
			}
			var v wire.Verdict
			if _, err := near.Read(make([]byte, 10)); !errors.As(err, &v) || v != behind {
				t.Errorf("reading what the one behind refused gives %v; want its verdict", err)
			}
		}
	})
}

func TestVerdictInPieces(t *testing.T) {
	client, server := tcpPair(t, link.Config{})
	h := hello()
	near, err := link.OpenHello(t.Context(), server, h)
	if err != nil {
		t.Fatal(err)
	}
	far, err := client.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wire.ReadHello(far); err != nil {
		t.Fatal(err)
	}
	for _, b := range wire.AppendVerdict(nil, wire.Verdict{Code: wire.CodePaused, Text: "lunch"}) {
		// A deadline between two bytes loses none of them.
		_ = near.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := near.Read(make([]byte, 1)); err == nil || errors.As(err, new(wire.Verdict)) {
			t.Fatalf("half a verdict reads as %v", err)
		}
		mustWrite(t, far, string(b))
	}
	_ = near.SetReadDeadline(time.Time{})
	var v wire.Verdict
	if _, err := near.Read(make([]byte, 1)); !errors.As(err, &v) || v.Code != wire.CodePaused || v.Text != "lunch" {
		t.Errorf("the verdict arrives as %v", err)
	}
}

func TestVerdictHasAContext(t *testing.T) {
	client, server := tcpPair(t, link.Config{})
	near, err := link.OpenHello(t.Context(), server, hello())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := near.Verdict(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no verdict within the deadline gives %v", err)
	}
	far, err := client.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wire.ReadHello(far); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, far, string(wire.AppendVerdict(nil, wire.Verdict{}))+"late")
	if err := near.Verdict(t.Context()); err != nil {
		t.Errorf("the late verdict is %v; want nil", err)
	}
	mustRead(t, near, "late")
}

// A stream that is passed on is answered twice.
func TestSecondVerdict(t *testing.T) {
	client, server := tcpPair(t, link.Config{})
	h := hello()
	near, err := link.OpenHello(t.Context(), server, h)
	if err != nil {
		t.Fatal(err)
	}
	far := accept(t, client, h, wire.Verdict{})
	if err := near.Verdict(t.Context()); err != nil {
		t.Fatal(err)
	}
	near.AwaitVerdict()
	no := wire.Verdict{Code: wire.CodePaused, Text: "lunch"}
	mustWrite(t, far, string(wire.AppendVerdict(nil, no))+"data")
	var v wire.Verdict
	if _, err := near.Read(make([]byte, 1)); !errors.As(err, &v) || v != no {
		t.Errorf("the second verdict reads as %v; want %v", err, no)
	}
}

func TestNoVerdictIsAnError(t *testing.T) {
	client, server := tcpPair(t, link.Config{})
	near, err := link.OpenHello(t.Context(), server, hello())
	if err != nil {
		t.Fatal(err)
	}
	far, err := client.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wire.ReadHello(far); err != nil {
		t.Fatal(err)
	}
	_ = far.Close()
	if _, err := near.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a stream that ends before its verdict reads as %v; want an error that is no io.EOF", err)
	}
}
