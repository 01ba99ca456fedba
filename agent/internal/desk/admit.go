package desk

import (
	"fmt"
	"slices"

	"github.com/adit-tunnel/adit/shared/wire"
)

// admit decides on a hello by everything but the app itself, and enters the
// stream under its tunnel. Entering and looking at the switches happen in this
// order, so that whoever throws a switch and then cuts misses no stream.
func (d *Desk) admit(st *stream, h wire.Hello) wire.Verdict {
	d.mu.Lock()
	st.session = h.Session
	d.mu.Unlock()
	no := func(code wire.Code, format string, args ...any) wire.Verdict {
		return wire.Verdict{Code: code, Text: fmt.Sprintf(format, args...)}
	}
	if now := d.conf.Epoch(); h.Epoch < now {
		return no(wire.CodeStaleEpoch, "the stream is of generation %d, the agent's session is of generation %d", h.Epoch, now)
	}
	if d.conf.Paused() {
		return no(wire.CodePaused, "the owner of this machine paused the agent: `adit-agent resume` on the machine ends that")
	}
	if h.Session != "" && d.conf.Closed(h.Session) {
		return no(wire.CodeUnknownTunnel, "the tunnel is closed")
	}
	switch h.Kind {
	case wire.KindTCP:
		return d.admitPort(h.Port)
	case wire.KindTerminal:
		if d.conf.Terminal == nil {
			return no(wire.CodeTerminalDisabled, "terminals are off on this machine: terminal.enabled in the agent's configuration turns them on")
		}
		return wire.Verdict{}
	}
	return no(wire.CodeBadHello, "the agent serves no streams of kind %s", h.Kind)
}

func (d *Desk) admitPort(port uint16) wire.Verdict {
	if !d.Allowed(port) {
		return wire.Verdict{Code: wire.CodePortNotAllowed, Text: fmt.Sprintf("port %d is not among the ports that this machine allows (%s): allow_ports in the agent's configuration", port, d.allowedText(port))}
	}
	return wire.Verdict{}
}

// Allowed says whether the machine's policy lets a tunnel reach a port.
func (d *Desk) Allowed(port uint16) bool {
	return port != 0 && d.conf.Ports.Contain(port) && !slices.Contains(d.conf.OwnPorts(), port)
}

func (d *Desk) allowedText(port uint16) string {
	if d.conf.Ports.Contain(port) {
		return "it is the agent's own"
	}
	return d.conf.Ports.String()
}
