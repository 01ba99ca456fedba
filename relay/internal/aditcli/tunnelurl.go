package aditcli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/adit-tunnel/adit/shared/checkup"
	"github.com/adit-tunnel/adit/shared/ident"
)

// envTunnelURL names the variable that holds a tunnel's URL. The URL grants
// access, and every user of a machine can read the arguments of its processes.
const envTunnelURL = "ADIT_TUNNEL_URL"

// parseTunnelURL says whether a text is a URL at all, and reads it.
func parseTunnelURL(s string) (*url.URL, bool) {
	u, err := url.Parse(strings.TrimSpace(s))
	if err != nil || u.Host == "" {
		return nil, false
	}
	switch u.Scheme {
	case "http", "https", "ws", "wss":
		return u, true
	}
	return nil, false
}

// segmentOf finds the segment of a tunnel's URL, in either of its forms.
func segmentOf(u *url.URL) (ident.Segment, bool) {
	label, _, _ := strings.Cut(u.Hostname(), ".")
	if _, _, err := ident.Segment(label).Split(); err == nil {
		return ident.Segment(label), true
	}
	_, rest, ok := strings.Cut(u.EscapedPath(), "/tunnel/")
	if !ok {
		return "", false
	}
	segment, _, _ := strings.Cut(rest, "/")
	_, _, err := ident.Segment(segment).Split()
	return ident.Segment(segment), err == nil
}

// sessionOf finds the session of a tunnel's URL.
func sessionOf(u *url.URL) (ident.SessionID, bool) {
	segment, ok := segmentOf(u)
	if !ok {
		return "", false
	}
	id, _, err := segment.Split()
	return id, err == nil
}

// socketURL is where a tcp tunnel's WebSocket is: the tunnel's root.
func socketURL(u *url.URL) *url.URL {
	c := &url.URL{Scheme: "wss", Host: u.Host, Path: "/"}
	if u.Scheme == "http" || u.Scheme == "ws" {
		c.Scheme = "ws"
	}
	if before, rest, ok := strings.Cut(u.EscapedPath(), "/tunnel/"); ok {
		segment, _, _ := strings.Cut(rest, "/")
		if _, _, err := ident.Segment(segment).Split(); err == nil {
			c.Path = before + "/tunnel/" + segment + "/"
		}
	}
	return c
}

// pageURL is where an http tunnel's page is: the tunnel's root.
func pageURL(u *url.URL) *url.URL {
	c := socketURL(u)
	c.Scheme = "http" + strings.TrimPrefix(c.Scheme, "ws")
	return c
}

// movedTo is where the relay leads from a tunnel's URL in path form, when it serves web
// apps only at hosts of their own; nil: the answer is the app's.
func movedTo(u *url.URL, a *checkup.Answer) *url.URL {
	if a == nil || a.Status != http.StatusPermanentRedirect {
		return nil
	}
	to, ok := parseTunnelURL(a.Location)
	if !ok || to.Host == u.Host {
		return nil
	}
	was, _ := sessionOf(u)
	is, ok := sessionOf(to)
	if !ok || is != was {
		return nil
	}
	return to
}

// readTunnelURL reads a tunnel's URL from a file or, for "-", from stdin.
func (a *app) readTunnelURL(path string) (string, error) {
	r := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read tunnel URL: %w", err)
		}
		defer func() { _ = f.Close() }()
		r = f
	}
	line, err := bufio.NewReader(io.LimitReader(r, 8<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read tunnel URL: %w", err)
	}
	return strings.TrimSpace(line), nil
}
