package link_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

// opener opens streams; who accepts them is up to the transport it came with.
type opener func() (io.ReadWriteCloser, error)

// transports are what bulk is measured on. "socket" is one TCP connection per
// stream, the yardstick; "yamux" is yamux as it comes, on a TCP connection.
func transports(b *testing.B) map[string]func(b *testing.B, accept func(io.ReadWriteCloser)) (opener, func()) {
	m := map[string]func(b *testing.B, accept func(io.ReadWriteCloser)) (opener, func()){
		"socket": func(b *testing.B, accept func(io.ReadWriteCloser)) (opener, func()) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					wg.Go(func() { accept(c) })
				}
			})
			return func() (io.ReadWriteCloser, error) { return net.Dial("tcp", l.Addr().String()) },
				func() { _ = l.Close(); wg.Wait() }
		},
		"yamux": func(b *testing.B, accept func(io.ReadWriteCloser)) (opener, func()) {
			c, s := testkit.TCP(b)
			cfg := yamux.DefaultConfig()
			cfg.MaxStreamWindowSize = 4 << 20
			cfg.LogOutput = io.Discard
			client, err := yamux.Client(c, cfg)
			if err != nil {
				b.Fatal(err)
			}
			server, err := yamux.Server(s, cfg)
			if err != nil {
				b.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					st, err := client.AcceptStream()
					if err != nil {
						return
					}
					wg.Go(func() { accept(st) })
				}
			})
			return func() (io.ReadWriteCloser, error) { return server.OpenStream() },
				func() { _ = client.Close(); _ = server.Close(); wg.Wait() }
		},
	}
	for name, pair := range carriers {
		for _, down := range []bool{true, false} {
			dir := map[bool]string{true: "down", false: "up"}[down] // down: agent to relay, masked
			m["link-"+name+"-"+dir] = func(b *testing.B, accept func(io.ReadWriteCloser)) (opener, func()) {
				client, server := pair(b, link.Config{})
				from, to := server, client
				if down {
					from, to = client, server
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					for {
						s, err := to.Accept(context.Background())
						if err != nil {
							return
						}
						s.Bill(somebody)
						wg.Go(func() { accept(s) })
					}
				})
				return func() (io.ReadWriteCloser, error) { return billed(from.Open(b.Context())) },
					func() { _ = client.Close(errTest); _ = server.Close(errTest); wg.Wait() }
			}
		}
	}
	return m
}

func billed(s *link.Stream, err error) (io.ReadWriteCloser, error) {
	if err == nil {
		s.Bill(somebody)
	}
	return s, err
}

func BenchmarkBulk(b *testing.B) {
	for name, pair := range transports(b) {
		for _, n := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/streams=%d", name, n), func(b *testing.B) { bulk(b, pair, n) })
		}
	}
}

func bulk(b *testing.B, pair func(*testing.B, func(io.ReadWriteCloser)) (opener, func()), n int) {
	var arrived sync.WaitGroup
	open, stop := pair(b, func(c io.ReadWriteCloser) {
		defer arrived.Done()
		_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 64<<10))
		_ = c.Close()
	})
	defer stop()
	var streams []io.ReadWriteCloser
	for range n {
		arrived.Add(1)
		s, err := open()
		if err != nil {
			b.Fatal(err)
		}
		streams = append(streams, s)
	}
	const chunk = 64 << 10
	b.ReportAllocs()
	b.SetBytes(chunk)
	b.ResetTimer()
	cpu := cpuTime()
	var wg sync.WaitGroup
	for i, s := range streams {
		share := b.N / n
		if i < b.N%n {
			share++
		}
		wg.Go(func() {
			buf := make([]byte, chunk)
			for range share {
				if _, err := s.Write(buf); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, s := range streams {
		_ = s.Close()
	}
	arrived.Wait()
	b.ReportMetric((cpuTime()-cpu).Seconds()/(float64(b.N)*chunk/(1<<30)), "cpu-s/GiB")
}

// BenchmarkEcho is the round trip of a small message on an open stream.
func BenchmarkEcho(b *testing.B) {
	for name, pair := range transports(b) {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/streams=%d", name, n), func(b *testing.B) {
				open, stop := pair(b, func(c io.ReadWriteCloser) { _, _ = io.Copy(c, c); _ = c.Close() })
				defer stop()
				var streams []io.ReadWriteCloser
				for range n {
					s, err := open()
					if err != nil {
						b.Fatal(err)
					}
					streams = append(streams, s)
				}
				b.ReportAllocs()
				b.ResetTimer()
				cpu := cpuTime()
				var wg sync.WaitGroup
				for i, s := range streams {
					share := b.N / n
					if i < b.N%n {
						share++
					}
					wg.Go(func() {
						buf := make([]byte, 128)
						for range share {
							if _, err := s.Write(buf); err != nil {
								b.Error(err)
								return
							}
							if _, err := io.ReadFull(s, buf); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
				for _, s := range streams {
					_ = s.Close()
				}
			})
		}
	}
}

// BenchmarkOpenHello is the whole life of a stream: hello, verdict, one message each
// way, close.
func BenchmarkOpenHello(b *testing.B) {
	for name, pair := range carriers {
		b.Run(name, func(b *testing.B) {
			client, server := pair(b, link.Config{})
			ok := wire.AppendVerdict(nil, wire.Verdict{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					s, err := client.Accept(context.Background())
					if err != nil {
						return
					}
					wg.Go(func() {
						defer func() { _ = s.Close() }()
						if _, err := wire.ReadHello(s); err != nil {
							return
						}
						_, _ = s.Write(ok)
						_, _ = io.Copy(s, s)
					})
				}
			})
			buf := make([]byte, 128)
			h := hello()
			b.ReportAllocs()
			for b.Loop() {
				s, err := link.OpenFor(b.Context(), server, somebody, h)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := s.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(s, buf); err != nil {
					b.Fatal(err)
				}
				_ = s.Close()
			}
			_ = client.Close(errTest)
			wg.Wait()
		})
	}
}

// BenchmarkSmallUnderBulk is a small message's round trip while four streams carry
// bulk in the same direction as the answer.
func BenchmarkSmallUnderBulk(b *testing.B) {
	for name, pair := range carriers {
		b.Run(name, func(b *testing.B) {
			client, server := pair(b, link.Config{})
			var wg sync.WaitGroup
			for range 4 {
				near, far := streams(b, client, server)
				wg.Go(func() {
					buf := make([]byte, 64<<10)
					for {
						if _, err := far.Write(buf); err != nil {
							return
						}
					}
				})
				wg.Go(func() { _, _ = io.Copy(io.Discard, near) })
			}
			near, far := streams(b, client, server)
			wg.Go(func() { _, _ = io.Copy(far, far) })
			buf := make([]byte, 128)
			start, before := time.Now(), server.Stats().BytesIn
			for b.Loop() {
				if _, err := near.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(near, buf); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(server.Stats().BytesIn-before)/1e6/time.Since(start).Seconds(), "bulk-MB/s")
			_ = client.Close(errors.New("bench over"))
			_ = server.Close(errTest)
			wg.Wait()
		})
	}
}
