package peers_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Whoever opens connections and says nothing, from as many addresses as it likes,
// does not keep the relays of the pool apart, and makes room for them at once: not
// only when the time for a handshake is over.
func TestSilentConnectionsKeepNoRelayOut(t *testing.T) {
	relays := two(t, newAuthority(t), func(context.Context, ident.AgentKey, uint64, wire.Hello) (*fleet.Stream, error) {
		return nil, fleet.ErrAway
	})
	from := func(address string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
		c, err := d.DialContext(t.Context(), "tcp", relays.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	for i := range 300 {
		from(fmt.Sprintf("127.0.%d.1", i%30+1))
	}
	var said string
	if err := relays.a.Ask(t.Context(), "b", "name", 5, &said); err != nil || said != "b got 5" {
		t.Errorf("beside 300 silent connections of thirty addresses, b said %q, %v", said, err)
	}
	oldest := from("127.0.99.1")
	for range 32 {
		from("127.0.99.1")
	}
	_ = oldest.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := oldest.Read(make([]byte, 1)); err == nil {
		t.Errorf("the oldest connection of an address that has its share is closed, it read %d bytes", n)
	}
}
