package testkit

import (
	"net"
	"sync"
	"testing"
)

func listen(tb testing.TB) *net.TCPListener {
	tb.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatalf("listen on 127.0.0.1: %v", err)
	}
	return l
}

// ServeTCP serves each connection to a port of 127.0.0.1 by a function until the
// test ends, and then waits for those that are served still.
func ServeTCP(tb testing.TB, serve func(net.Conn)) (port uint16) {
	tb.Helper()
	l := listen(tb)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = c.Close() }()
				serve(c)
			})
		}
	})
	tb.Cleanup(func() { _ = l.Close(); all.Wait() })
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// TCP returns the two ends of a TCP connection. They are closed with the test.
func TCP(tb testing.TB) (client, server *net.TCPConn) {
	tb.Helper()
	l := listen(tb)
	defer func() { _ = l.Close() }()
	client, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		tb.Fatalf("connect to 127.0.0.1: %v", err)
	}
	tb.Cleanup(func() { _ = client.Close() })
	if server, err = l.AcceptTCP(); err != nil {
		tb.Fatalf("accept on 127.0.0.1: %v", err)
	}
	tb.Cleanup(func() { _ = server.Close() })
	return client, server
}
