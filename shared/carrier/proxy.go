package carrier

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"golang.org/x/net/proxy"
)

// connect opens the connection to the target of a request, through a proxy where
// there is one, and secures it where the scheme asks for it.
func (u *upgrader) connect(ctx context.Context, req *http.Request) (net.Conn, error) {
	find := u.opts.Proxy
	if find == nil {
		find = http.ProxyFromEnvironment
	}
	via, err := find(req)
	if err != nil {
		return nil, fmt.Errorf("find proxy: %w", err)
	}
	addr := hostPort(req.URL)
	conn, err := u.reach(ctx, via, addr)
	if err != nil {
		return nil, err
	}
	u.low = newBufConn(conn)
	if req.URL.Scheme != "https" {
		return u.low, nil
	}
	tc, err := secure(ctx, u.low, u.opts.TLS, req.URL.Hostname())
	if err != nil {
		return nil, fmt.Errorf("secure connection to %s: %w", addr, err)
	}
	return newBufConn(tc), nil
}

// secure makes a TLS connection of c, and closes it when that does not work. Only
// HTTP/1.1 is offered: HTTP/2 has no upgrade.
func secure(ctx context.Context, c net.Conn, cfg *tls.Config, host string) (net.Conn, error) {
	if cfg == nil {
		cfg = &tls.Config{}
	} else {
		cfg = cfg.Clone()
	}
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.NextProtos = []string{"http/1.1"}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	tc := tls.Client(c, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return tc, nil
}

// reach connects to addr by way of the proxy, if there is one.
func (u *upgrader) reach(ctx context.Context, via *url.URL, addr string) (net.Conn, error) {
	var d net.Dialer
	if via == nil {
		return d.DialContext(ctx, "tcp", addr)
	}
	switch via.Scheme {
	case "socks5", "socks5h":
		var auth *proxy.Auth
		if via.User != nil {
			password, _ := via.User.Password()
			auth = &proxy.Auth{User: via.User.Username(), Password: password}
		}
		s, err := proxy.SOCKS5("tcp", hostPort(via), auth, &d)
		if err != nil {
			return nil, fmt.Errorf("use proxy %s: %w", via.Redacted(), err)
		}
		c, err := s.(proxy.ContextDialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("use proxy %s: %w", via.Redacted(), err)
		}
		return c, nil
	case "http", "https":
	default:
		return nil, fmt.Errorf("use proxy %s: unknown scheme", via.Redacted())
	}
	conn, err := d.DialContext(ctx, "tcp", hostPort(via))
	if err != nil {
		return nil, fmt.Errorf("connect to proxy: %w", err)
	}
	if via.Scheme == "https" {
		if conn, err = secure(ctx, conn, u.opts.TLS, via.Hostname()); err != nil {
			return nil, fmt.Errorf("secure connection to proxy: %w", err)
		}
	}
	tunnel, err := bounded(ctx, conn, func() (net.Conn, error) { return connectThrough(conn, via, addr) })
	if err != nil {
		return nil, fmt.Errorf("use proxy %s: %w", via.Redacted(), err)
	}
	return tunnel, nil
}

// connectThrough asks a proxy for a tunnel (RFC 9110, section 9.3.6).
func connectThrough(conn net.Conn, via *url.URL, addr string) (net.Conn, error) {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{}}
	if via.User != nil {
		password, _ := via.User.Password()
		login := base64.StdEncoding.EncodeToString([]byte(via.User.Username() + ":" + password))
		req.Header.Set("Proxy-Authorization", "Basic "+login)
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	br := bufio.NewReaderSize(conn, smallBuffer)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New("the proxy answered " + resp.Status)
	}
	if br.Buffered() == 0 {
		return conn, nil
	}
	// A proxy may send the target's first bytes along with its own answer.
	rest, _ := br.Peek(br.Buffered())
	b := newBufConn(conn)
	b.unread(rest)
	return b, nil
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		switch u.Scheme {
		case "https":
			port = "443"
		case "socks5", "socks5h":
			port = "1080"
		default:
			port = "80"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}
