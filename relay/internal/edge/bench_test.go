package edge_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
)

// BenchmarkGet compares the edge with httputil.ReverseProxy on small answers, over
// real connections on both sides: user, proxy and app are all in the figures. "known" is a
// tunnel with a rule, whose app is told who asks.
func BenchmarkGet(b *testing.B) {
	keys := identities(b)
	w := newWorld(b, func(c *edge.Config) { c.Access, c.Identity = lets{viewer: alice}, keys })
	port := w.rawApp(func(c net.Conn) {
		br := bufio.NewReader(c)
		answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 128\r\n\r\n" + strings.Repeat("x", 128))
		for {
			line, err := br.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) == 2 {
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		}
	})
	_, seg := w.tunnel(port, nil)
	_, known := w.tunnel(port, func(r *store.TunnelRecord) { r.Access = &store.AccessRule{Mode: api.AccessTeam, Version: 1} })
	target := &url.URL{Scheme: "http", Host: "127.0.0.1:" + strconv.Itoa(port)}
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	reference := httptest.NewServer(&httputil.ReverseProxy{Transport: transport, FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.SetXForwarded() }})
	b.Cleanup(func() { reference.Close(); transport.CloseIdleConnections() })
	for _, c := range []struct{ name, addr, path string }{
		{"edge", w.addr(), "/tunnel/" + seg + "/x"}, {"known", w.addr(), "/tunnel/" + known + "/x"}, {"reverseproxy", reference.Listener.Addr().String(), "/x"},
		{"direct", "127.0.0.1:" + strconv.Itoa(port), "/x"},
	} {
		b.Run(c.name, func(b *testing.B) {
			request := []byte(fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n", c.path, w.public.Host))
			b.ReportAllocs()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				conn, err := net.Dial("tcp", c.addr)
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				br := bufio.NewReader(conn)
				for pb.Next() {
					if _, err := conn.Write(request); err != nil {
						b.Error(err)
						return
					}
					for {
						line, err := br.ReadSlice('\n')
						if err != nil {
							b.Error(err)
							return
						}
						if len(line) == 2 {
							break
						}
					}
					if _, err := br.Discard(128); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkDownload moves 64 MiB an operation.
func BenchmarkDownload(b *testing.B) {
	w := newWorld(b, nil)
	const size = 64 << 20
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", strconv.Itoa(size))
		buf := make([]byte, 256<<10)
		for range size / len(buf) {
			if _, err := rw.Write(buf); err != nil {
				return
			}
		}
	})
	_, seg := w.tunnel(port, nil)
	buf := make([]byte, 256<<10)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		resp := w.get(seg, "/")
		if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, buf); n != size || err != nil {
			b.Fatal(n, err)
		}
	}
}
