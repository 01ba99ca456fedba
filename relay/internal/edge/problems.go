package edge

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/fleet"
	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/apps"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// problem answers with a problem: a page for people, the document for programs.
func (x *exchange) problem(p *api.Problem) {
	if x.r.ProtoMajor == 1 && (x.bodyOpen() || x.guard.wasCut()) {
		x.w.Header().Set("Connection", "close")
	}
	x.status = p.Status
	x.e.metrics.problem(p)
	problems.Answer(x.w, x.r, p, x.id)
}

// What users are told. No text here contains an address of the tunnel.

func errNoTunnel() *api.Problem {
	return api.NewProblem(api.CodeTunnelNotFound,
		"there is no open tunnel at this address: it was closed or taken back, has expired, is used up or never existed; ask whoever sent the link for a new one")
}

// errOver is errNoTunnel for whoever may be told more.
func errOver(text string) *api.Problem {
	return api.NewProblem(api.CodeTunnelNotFound, text+"; ask whoever sent the link for a new one")
}

func errOrigin() *api.Problem {
	return api.NewProblem(api.CodeCrossOrigin, "the request comes from a page of another origin than this tunnel's; to admit a known front end, open the tunnel with allow_origins")
}

func errBadTarget() *api.Problem {
	return api.NewProblem(api.CodeBadRequestTarget, "the path contains a space or a control character")
}

func errBadHost() *api.Problem {
	return api.NewProblem(api.CodeBadHost, "the Host field is not a host")
}

func errServiceWorker() *api.Problem {
	return api.NewProblem(api.CodeServiceWorkerRefused,
		"at this address the app shares its origin with others, whose pages a service worker could watch; service workers need a host for each tunnel: set wildcard_domain in the relay's configuration")
}

func errTooMany(limit int) *api.Problem {
	return api.Problemf(api.CodeTooManyRequests, "this tunnel has %d requests and connections under way, which is its limit; try again when some have ended", limit).WithRetry(2 * time.Second)
}

func errDraining() *api.Problem {
	return api.NewProblem(api.CodeRelayDraining, restarting).WithRetry(2 * time.Second)
}

func errUpgradeRequired() *api.Problem {
	return api.NewProblem(api.CodeUpgradeRequired,
		"this tunnel carries TCP, which a browser cannot show; on your machine run: adit connect URL -L 127.0.0.1:2222 (or --stdio as ssh's ProxyCommand), with this page's address as URL")
}

func errSubprotocol() *api.Problem {
	return api.NewProblem(api.CodeSubprotocolUnsupported, `the WebSocket subprotocol must be "binary" or none`)
}

// cutProblem is for a use that was ended, or refused, by the relay.
func (x *exchange) cutProblem(cause error) *api.Problem {
	if over, ok := errors.AsType[*usage.Over](cause); ok && errors.Is(cause, access.ErrRemoved) {
		return api.NewProblem(api.CodeAccessDenied, over.Text).WithCause(cause)
	}
	if over, ok := errors.AsType[*usage.Over](cause); ok && x.route.Record.Protocol == api.ProtocolTCP {
		return errOver(over.Text).WithCause(cause)
	}
	if errors.Is(cause, usage.ErrKicked) {
		return api.NewProblem(api.CodeViewerDisconnected, "the tunnel's owner disconnected you; it admits you again after some minutes")
	}
	if errors.Is(cause, link.ErrMemory) {
		return errMemory().WithCause(cause)
	}
	return errNoTunnel().WithCause(cause)
}

func errMemory() *api.Problem {
	return api.NewProblem(api.CodeMemoryShort,
		"the relay is short of memory, and most of it waits to be taken by users of this team; end connections that do not read, and try again").WithRetry(5 * time.Second)
}

// problemOf names the hop that failed and the remedy.
func (x *exchange) problemOf(err error) *api.Problem {
	port := x.route.Record.Port
	var v wire.Verdict
	var t net.Error
	switch {
	case errors.As(err, &v):
		return verdictProblem(v, port).WithCause(err)
	case errors.Is(err, fleet.ErrAway):
		return errOffline().WithCause(err)
	case errors.Is(err, fleet.ErrDraining): // and no other relay has the agent
		return errDraining().WithCause(err)
	case errors.Is(err, link.ErrMemory):
		return errMemory().WithCause(err)
	case errors.Is(err, link.ErrTooManyStreams):
		return api.NewProblem(api.CodeLinkBusy, "the machine's link carries as many connections as it can; try again when some have ended").WithRetry(2 * time.Second).WithCause(err)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &t) && t.Timeout():
		return api.Problemf(api.CodeAppTimeout, "the app on port %d accepted the request and did not answer in time", port).WithCause(err)
	case errors.Is(err, errSwitched):
		return api.Problemf(api.CodeAppBadUpgrade, "the app on port %d answered the WebSocket handshake wrongly", port).WithCause(err)
	case errors.Is(err, errHeaderTooLarge):
		return api.Problemf(api.CodeAppHeaderTooLarge, "the app on port %d sent a response header of more than 1 MiB", port).WithCause(err)
	case errors.Is(err, link.ErrClosed): // also where its connection ended as an app's would
		return errLinkLost().WithCause(err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, link.ErrReset), errors.Is(err, syscall.ECONNRESET):
		return api.Problemf(api.CodeAppClosed, "the app on port %d closed the connection without an answer; its log may say why", port).WithCause(err)
	case errors.Is(err, errBadAnswer):
		return api.Problemf(api.CodeAppNotHTTP, "what listens on port %d does not answer in plain HTTP/1.1; for ssh, VNC, a database or TLS open a tunnel with tunnel_protocol tcp", port).WithCause(err)
	}
	return errLinkLost().WithCause(err)
}

func errLinkLost() *api.Problem {
	return api.NewProblem(api.CodeLinkLost, "the connection to the machine was lost while the request was under way; it may have been carried out").WithRetry(2 * time.Second)
}

func errOffline() *api.Problem {
	return api.NewProblem(api.CodeAgentOffline, "the machine has no connection to the relay at present; the tunnel stays open and works again when it is back").WithRetry(3 * time.Second)
}

func verdictProblem(v wire.Verdict, port uint16) *api.Problem {
	says := ""
	if v.Text != "" {
		says = " (the agent says: " + v.Text + ")"
	}
	switch v.Code {
	case wire.CodePortNotAllowed:
		return api.Problemf(api.CodePortNotAllowed, "the machine's own policy does not allow port %d; its owner sets allow_ports in the agent's configuration%s", port, says)
	case wire.CodeAppRefused:
		return api.Problemf(api.CodeAppRefused, "nothing listens on port %d of the machine%s; start it there, on 127.0.0.1, and reload%s", port, apps.Usually(port), says).WithRetry(5 * time.Second)
	case wire.CodeAppTimeout:
		return api.Problemf(api.CodeAppTimeout, "port %d of the machine did not accept a connection in time; the app there may hang%s", port, says)
	case wire.CodePaused:
		return api.Problemf(api.CodeAgentPaused, "the machine's owner paused the agent; it goes on after adit-agent resume%s", says).WithRetry(30 * time.Second)
	case wire.CodeOverloaded:
		return api.Problemf(api.CodeAgentOverloaded, "the machine has too many connections open at present%s", says).WithRetry(2 * time.Second)
	case wire.CodeStaleEpoch:
		return errOffline()
	case wire.CodeUnknownTunnel:
		return api.Problemf(api.CodeAgentUnaware, "the machine does not know of this tunnel yet, or knows that it is closed%s", says).WithRetry(2 * time.Second)
	case wire.CodeBadHello:
		return api.Problemf(api.CodeAgentIncompatible, "the machine's agent does not understand this relay; update it%s", says)
	}
	return api.Problemf(api.CodeAgentError, "the machine's agent could not open port %d%s", port, says)
}
