package uplink_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/agent/internal/uplink"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

func notice(n byte, expires time.Duration) wire.TunnelNotice {
	id := []byte("00000000000000000000000000000000")
	id[31] = n
	return wire.TunnelNotice{Session: ident.SessionID(id), Port: 8188, Protocol: "http", OpenedAt: time.Now().UTC(), ExpiresAt: time.Now().Add(expires).UTC()}
}

func table(t *testing.T, path string) *uplink.Tunnels {
	t.Helper()
	tt := uplink.NewTunnels(path, slog.New(slog.DiscardHandler))
	if err := tt.Load(); err != nil {
		t.Fatal(err)
	}
	return tt
}

func TestWelcomeReconciles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tunnels.json")
	tt := table(t, path)
	a, b, c := notice('a', time.Hour), notice('b', time.Hour), notice('c', time.Hour)
	tt.Welcome(&wire.Welcome{Tunnels: []wire.TunnelNotice{a, b}}, true)
	select {
	case <-tt.Known():
	default:
		t.Error("after a welcome the tunnels are known")
	}
	// While the link was away, a was closed and c opened.
	tt.Welcome(&wire.Welcome{Tunnels: []wire.TunnelNotice{b, c}}, true)
	if got := tt.IDs(); len(got) != 2 || got[0] != b.Session || got[1] != c.Session {
		t.Errorf("after the second welcome %v are open", got)
	}
	// A further link's list may be older than what another link said.
	tt.Welcome(&wire.Welcome{Tunnels: []wire.TunnelNotice{b}}, false)
	if tt.Count() != 2 {
		t.Error("a further link's list removed a tunnel")
	}
	tt.Shut(b)
	tt.Opened(b)
	if tt.Count() != 1 || !tt.Closed(b.Session) {
		t.Error("a late notice opened a closed tunnel again")
	}
	tt.Save()
	if again := table(t, path); again.Count() != 1 || again.IDs()[0] != c.Session {
		t.Errorf("after a restart %v are open", again.IDs())
	}
}

func TestTunnelsExpireByTheRelaysClock(t *testing.T) {
	for _, skew := range []time.Duration{0, 2 * time.Hour, -2 * time.Hour} {
		tt := table(t, filepath.Join(t.TempDir(), "tunnels.json"))
		relayNow := time.Now().Add(skew)
		n := notice('a', 0)
		n.ExpiresAt = relayNow.Add(10 * time.Minute)
		tt.Welcome(&wire.Welcome{Time: relayNow, Tunnels: []wire.TunnelNotice{n}}, true)
		now := time.Now()
		if tt.Expire(now.Add(10 * time.Minute)); tt.Count() != 1 {
			t.Errorf("skew %s: gone before its margin has passed", skew)
		}
		if tt.Expire(now.Add(11 * time.Minute)); tt.Count() != 0 {
			t.Errorf("skew %s: still there after its margin", skew)
		}
	}
}

func TestBrokenTableIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tunnels.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := uplink.NewTunnels(path, slog.New(slog.DiscardHandler)).Load(); err == nil {
		t.Error("a broken table was read")
	}
}

func TestBadNoticesAreIgnored(t *testing.T) {
	tt := table(t, filepath.Join(t.TempDir(), "tunnels.json"))
	tt.Opened(wire.TunnelNotice{Session: "../../etc/passwd"})
	if tt.Count() != 0 {
		t.Error("a tunnel with a bad id was taken")
	}
}
