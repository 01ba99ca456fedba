package hub

import (
	"fmt"
	"sync"
	"time"

	"github.com/adit-tunnel/adit/shared/wire"
)

// pacer pings an agent, and ends a link on which nothing was heard for too long. It
// lives on timers alone.
type pacer struct {
	m    *member
	dead *time.Timer

	mu   sync.Mutex
	ping *time.Timer // nil: stopped
	id   uint64
}

func newPacer(m *member) *pacer {
	p := &pacer{m: m}
	p.dead = time.AfterFunc(silence, func() {
		_ = m.link.Close(fmt.Errorf("nothing heard of the agent for %s", silence))
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ping = time.AfterFunc(pingInterval, p.ring)
	return p
}

func (p *pacer) ring() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ping == nil {
		return
	}
	p.id++
	p.m.send(wire.Message{Type: wire.TypePing, Ping: &wire.Ping{ID: p.id, Sent: time.Now().UnixNano()}})
	p.ping.Reset(pingInterval)
}

// heard notes that the agent said something.
func (p *pacer) heard() { p.dead.Reset(silence) }

// stop ends both timers.
func (p *pacer) stop() {
	p.dead.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ping.Stop()
	p.ping = nil
}
