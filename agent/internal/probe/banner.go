package probe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/wire"
)

const maxBanner = 512

// tcp names the program behind a port that was opened for TCP: it listens first,
// then tries greetings that no program takes for a command.
func (p *Prober) tcp(ctx context.Context, c net.Conn, q wire.Probe, a *wire.Probed) {
	if a.App = p.banner(c); a.App != "" {
		return
	}
	// It waits for the other side to speak. The port says whom to greet first.
	greetings := []greeting{greetHTTP, greetPostgres, greetRedis}
	switch q.Port {
	case 5432:
		greetings = []greeting{greetPostgres, greetHTTP}
	case 6379:
		greetings = []greeting{greetRedis, greetHTTP}
	}
	if a.App = p.greet(ctx, q.Port, greetings...); a.App == "http" {
		a.App = ""
		p.http(ctx, q, a)
		a.Warnings = append(a.Warnings, "this port speaks HTTP: with tunnel_protocol http a browser can open it")
	}
}

// greet tries greetings, each on a connection of its own, until one is answered.
func (p *Prober) greet(ctx context.Context, port uint16, greetings ...greeting) string {
	for _, g := range greetings {
		if ctx.Err() != nil {
			return ""
		}
		c, err := p.conf.Dial(ctx, port)
		if err != nil {
			return ""
		}
		if app := g.app(exchange(c, g.send, p.replyWait())); app != "" {
			return app
		}
	}
	return ""
}

// banner reads what a program says by itself, names it, and closes the connection.
func (p *Prober) banner(c net.Conn) string {
	defer c.Close()
	return nameBanner(read(c, p.bannerWait()))
}

// read returns what arrives within a time.
func read(c net.Conn, wait time.Duration) []byte {
	_ = c.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, maxBanner)
	n, err := io.ReadAtLeast(c, b, 4) // enough to know every banner here
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && n == 0 {
		return nil
	}
	return b[:n]
}

// exchange sends a greeting, returns the answer and closes the connection.
func exchange(c net.Conn, send string, wait time.Duration) []byte {
	defer c.Close()
	_ = c.SetWriteDeadline(time.Now().Add(wait))
	if _, err := io.WriteString(c, send); err != nil {
		return nil
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, maxBanner)
	n, _ := c.Read(b)
	return b[:n]
}

// nameBanner knows programs by their first bytes.
func nameBanner(b []byte) string {
	s := string(b)
	switch {
	case strings.HasPrefix(s, "SSH-"):
		return "ssh"
	case strings.HasPrefix(s, "RFB "):
		return "vnc"
	case len(b) > 5 && b[4] == 10 && b[3] == 0: // MySQL handshake: length(3) sequence(0) version(10)
		if bytes.Contains(b, []byte("MariaDB")) {
			return "mariadb"
		}
		return "mysql"
	case strings.HasPrefix(s, "-DENIED Redis"):
		return "redis"
	case strings.HasPrefix(s, "220"):
		if strings.Contains(s, "FTP") {
			return "ftp"
		}
		return "smtp"
	}
	return ""
}

// greeting is what a client says first, and how the program it is for answers.
type greeting struct {
	send string
	app  func(got []byte) string
}

var (
	// An SSLRequest (PostgreSQL protocol, 53.7): one byte comes back, and nothing
	// was begun.
	greetPostgres = greeting{
		send: "\x00\x00\x00\x08\x04\xd2\x16\x2f",
		app: func(got []byte) string {
			if len(got) == 1 && (got[0] == 'S' || got[0] == 'N') {
				return "postgres"
			}
			return ""
		},
	}
	greetRedis = greeting{
		send: "PING\r\n",
		app: func(got []byte) string {
			for _, p := range []string{"+PONG", "-NOAUTH", "-DENIED Redis", "-LOADING"} {
				if bytes.HasPrefix(got, []byte(p)) {
					return "redis"
				}
			}
			return ""
		},
	}
	greetHTTP = greeting{
		send: "GET / HTTP/1.0\r\n\r\n",
		app: func(got []byte) string {
			if bytes.HasPrefix(got, []byte("HTTP/1.")) {
				return "http"
			}
			return ""
		},
	}
)
