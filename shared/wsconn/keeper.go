package wsconn

import (
	"bufio"
	"net"
	"net/http"
)

// Keeper is given to websocket.Accept in place of a ResponseWriter, and keeps hold
// of the connection that it takes over: to end it without waiting for a goodbye.
type Keeper struct {
	http.ResponseWriter
	Conn net.Conn // nil before Accept has taken it over
}

// Hijack implements http.Hijacker.
func (k *Keeper) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(k.ResponseWriter).Hijack()
	k.Conn = conn
	return conn, rw, err
}
