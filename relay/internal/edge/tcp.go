package edge

import (
	"net/http"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/wsconn"
)

// subprotocol is what noVNC asks for; asking for none means the same.
const subprotocol = "binary"

// serveTCP serves a connection to a tunnel of protocol tcp. The stream to the app
// comes first, so that a refusal is an HTTP answer.
func (e *Edge) serveTCP(x *exchange) {
	if !x.upgrade {
		x.w.Header().Set("Upgrade", "websocket")
		x.w.Header().Set("Connection", "Upgrade")
		x.problem(errUpgradeRequired())
		return
	}
	if asked := x.r.Header["Sec-Websocket-Protocol"]; len(asked) > 0 && !listed(asked, subprotocol) {
		x.problem(errSubprotocol())
		return
	}
	if !x.begin(usage.TCP) {
		return
	}
	defer x.use.End()
	x.unwatch = x.watchCut()
	defer func() { x.unwatch() }()
	stream, err := e.config.Fleet.Connect(x.use.Context(), x.route.Record.Key(), x.hello(), &x.hold)
	e.metrics.retries.Add(float64(x.hold.Retries()))
	if err != nil {
		x.fail(err)
		return
	}
	app := newUpstream(stream, x.idle, x.use)
	x.unwatch()
	if x.guard.wasCut() {
		_ = app.Close()
		x.fail(x.cause())
		return
	}
	keep := &wsconn.Keeper{ResponseWriter: x.w}
	c, err := websocket.Accept(keep, x.r, &websocket.AcceptOptions{
		Subprotocols:       []string{subprotocol},
		InsecureSkipVerify: true, // check() compared Origin, more strictly
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil { // it has answered
		_ = app.Close()
		x.status, x.aborted = http.StatusInternalServerError, true
		x.e.log.Debug("websocket not accepted", "request_id", x.id, "error", err)
		return
	}
	x.begun(http.StatusSwitchingProtocols)
	x.e.metrics.tcp.Inc()
	defer x.e.metrics.tcp.Dec()
	user := wsconn.New(c, wsconn.Options{})
	x.join(user, app, func(code uint16, reason string) {
		// It waits for the peer, or for a place among what the peer does not read,
		// longer than a closed tunnel may live.
		late := time.AfterFunc(goodbyeLinger, func() { _ = keep.Conn.Close() })
		defer late.Stop()
		_ = user.CloseWith(websocket.StatusCode(code), reason)
	}, splice.Options{})
}
