package edge_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync/atomic"
)

// dropper is an app that closes its first connections without an answer.
func dropper(conns *atomic.Int64, first *int64) func(net.Conn) {
	return func(c net.Conn) {
		n := conns.Add(1)
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if n > atomic.LoadInt64(first) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
		}
	}
}
