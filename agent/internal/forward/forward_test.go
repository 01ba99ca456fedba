package forward_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/agent/internal/forward"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

var _ interface {
	splice.Conn
	Reset() error
} = (*forward.Conn)(nil)

func listen(t *testing.T, addr string) (net.Listener, uint16) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("listen on %s: %v", addr, err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestReachesBothLoopbacks(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, port := listen(t, addr)
		start := time.Now()
		c, err := forward.Dial(t.Context(), port)
		if err != nil {
			t.Fatalf("an app on %s is not reached: %v", addr, err)
		}
		if c.RemoteAddr().String() != l.Addr().String() {
			t.Errorf("reached %s, not %s", c.RemoteAddr(), l.Addr())
		}
		testkit.Took(t, "reaching an app on "+addr, time.Since(start), 200*time.Millisecond)
		_ = c.Close()
	}
}

func TestRefusedNamesPortAndUsualApp(t *testing.T) {
	port := uint16(testkit.FreePort(t))
	_, err := forward.Dial(t.Context(), port)
	var e *forward.Error
	if !errors.As(err, &e) || e.Code != wire.CodeAppRefused || e.Port != port {
		t.Fatalf("a closed port gives %v", err)
	}
	v := (&forward.Error{Port: 8188, Code: wire.CodeAppRefused}).Verdict()
	if v.Code != wire.CodeAppRefused || !strings.Contains(v.Text, "8188") || !strings.Contains(v.Text, "ComfyUI") {
		t.Errorf("the refusal reads %q", v.Text)
	}
	v = (&forward.Error{Port: 8888, Code: wire.CodeAppTimeout}).Verdict()
	if v.Code != wire.CodeAppTimeout || !strings.Contains(v.Text, "8888") || !strings.Contains(v.Text, "Jupyter") {
		t.Errorf("the time-out reads %q", v.Text)
	}
}

func TestContextEndsDial(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the tunnel was closed")
	cancel(cause)
	if _, err := forward.Dial(ctx, uint16(testkit.FreePort(t))); !errors.Is(err, cause) {
		t.Fatalf("a cancelled dial gives %v, not its cause", err)
	}
}

func TestResetIsNoCleanEnd(t *testing.T) {
	l, port := listen(t, "127.0.0.1:0")
	c, err := forward.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	app, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	if err := c.Reset(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(app); err == nil {
		t.Fatal("the app took a reset for a clean end")
	}
}
