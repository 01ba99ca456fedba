package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// TransportConfig says how to reach a relay.
type TransportConfig struct {
	// CAFile is a PEM file of authorities to trust beside the system's.
	CAFile string
	// Proxy chooses the proxy of a request; nil means HTTPS_PROXY, HTTP_PROXY and
	// NO_PROXY of the environment. Names under localhost never go to a proxy.
	Proxy func(*http.Request) (*url.URL, error)
}

// NewTransport makes a transport that speaks HTTP/1.1 (WebSockets need it),
// honours proxies and a private authority, and reaches *.localhost on loopback
// without asking any resolver (RFC 6761, section 6.3), as browsers do.
func NewTransport(cfg TransportConfig) (*http.Transport, error) {
	conf, err := TLSConfig(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	choose := cfg.Proxy
	if choose == nil {
		choose = http.ProxyFromEnvironment
	}
	return &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) {
			if isLoopbackName(r.URL.Hostname()) {
				return nil, nil
			}
			return choose(r)
		},
		DialContext:           Dial,
		TLSClientConfig:       conf,
		TLSHandshakeTimeout:   15 * time.Second,
		IdleConnTimeout:       60 * time.Second,
		MaxIdleConnsPerHost:   4,
		ExpectContinueTimeout: time.Second,
	}, nil
}

// TLSConfig trusts the system's authorities and those of a PEM file, if one is named.
func TLSConfig(caFile string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read CA file: %w", err)
	}
	if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
		conf.RootCAs = x509.NewCertPool()
	}
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s holds no certificate in PEM form", caFile)
	}
	return conf, nil
}

// Dial connects by TCP with a limit of 15 s; names under localhost are loopback.
func Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 15 * time.Second}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || !strings.HasSuffix(strings.TrimSuffix(host, "."), ".localhost") {
		return d.DialContext(ctx, network, addr)
	}
	c, err4 := d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	if err4 == nil {
		return c, nil
	}
	c, err6 := d.DialContext(ctx, network, net.JoinHostPort("::1", port))
	if err6 == nil {
		return c, nil
	}
	// An absent IPv6 would hide the reason.
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil, ctx.Err()
	}
	return nil, err4
}

// IsLoopback says whether an address's host is this machine: traffic to it needs
// no TLS.
func IsLoopback(u *url.URL) bool { return isLoopbackName(u.Hostname()) }

func isLoopbackName(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func hostOnly(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return strings.Trim(hostport, "[]")
}
