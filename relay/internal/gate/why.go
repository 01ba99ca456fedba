package gate

import (
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Ended is a tunnel that is over.
type Ended struct {
	Key      ident.AgentKey
	Protocol api.Protocol // empty where this relay did not know the tunnel while it was open
	Reason   store.Reason

	idle api.Duration
	at   time.Time
}

// String says it to people, as a clause without a dot.
func (e Ended) String() string {
	switch e.Reason {
	case "", store.ReasonClosed:
		return "the tunnel is closed"
	case store.ReasonAsked:
		return "the tunnel was closed"
	case store.ReasonExpired:
		return "the tunnel expired"
	case store.ReasonIdle:
		if e.idle > 0 {
			text := e.idle.String() // of 30m0s only 30m matters
			if strings.HasSuffix(text, "m0s") {
				text = strings.TrimSuffix(text, "0s")
			}
			if strings.HasSuffix(text, "h0m") {
				text = strings.TrimSuffix(text, "0m")
			}
			return "the tunnel was closed: nobody used it for " + text
		}
		return "the tunnel was closed: nobody used it"
	}
	return "the tunnel was closed: " + string(e.Reason)
}

// Why says why a tunnel is over, to be told to whoever has proved that it was theirs
// to use: with its admin token, its address, or as a caller of its team. It is false
// for a tunnel that is open, never was, or closed too long ago.
func (g *Gate) Why(id ident.SessionID) (Ended, bool) {
	if t, ok := g.store.Tunnel(id); ok {
		rec, _ := g.store.Agent(t.Key())
		e := Ended{Key: t.Key(), Protocol: t.Protocol, idle: t.IdleTimeout}
		switch {
		case rec.Tunnels[id].State == store.TunnelClosing:
			e.Reason = rec.Tunnels[id].Reason
		case !g.now().Before(t.ExpiresAt):
			e.Reason = store.ReasonExpired
		default:
			return Ended{}, false
		}
		return e, true
	}
	// Run may not have seen yet that the record is gone.
	if n, ok := g.book.find(id); ok {
		return g.ended(id, n), true
	}
	return g.book.why(id, g.now())
}

// ended is the end of a tunnel that this relay knew and whose record is gone.
func (g *Gate) ended(id ident.SessionID, n note) Ended {
	if rec, ok := g.store.Agent(n.key); ok {
		if e, ok := rec.Ended[id]; ok {
			return n.ended(e.Reason)
		}
	}
	if n.reason != "" {
		return n.ended(n.reason)
	}
	return n.ended(store.ReasonClosed)
}

// Because is Ended for a tunnel that this relay cuts for a reason.
func (g *Gate) Because(id ident.SessionID, reason store.Reason) Ended {
	if t, ok := g.store.Tunnel(id); ok {
		return Ended{Key: t.Key(), Protocol: t.Protocol, Reason: reason, idle: t.IdleTimeout}
	}
	if e, ok := g.Why(id); ok {
		e.Reason = reason
		return e
	}
	return Ended{Reason: reason}
}
