// Package tunnels finds the tunnel that a request is for, and writes the
// addresses of tunnels. It owns the two forms of address (path and subdomain) and
// the verification of access tokens. It never opens a stream, never changes a
// record, and looks at nothing but the real Host and the raw path.
package tunnels

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// PathBase begins every path form address; a segment follows.
const PathBase = "/tunnel/"

// catchUp bounds how long a request may wait for the store to confirm that
// a rightly signed tunnel does not exist.
const catchUp = 2 * time.Second

var (
	// ErrNotTunnel says that the address is no tunnel's: the relay's own routes
	// may have it.
	ErrNotTunnel = errors.New("not a tunnel's address")
	// ErrNoTunnel says that the address has a tunnel's form, and no tunnel is to
	// be had there: never existed, wrong token, closed or expired, which nobody
	// is told apart.
	ErrNoTunnel = errors.New("no such tunnel")
)

// Gone is ErrNoTunnel for an address with a right token: its holder once had the
// tunnel, or the named link, of that id. What others are answered says nothing of it.
type Gone struct{ ID ident.SessionID }

// Error is ErrNoTunnel's.
func (*Gone) Error() string { return ErrNoTunnel.Error() }

// Unwrap makes it ErrNoTunnel.
func (*Gone) Unwrap() error { return ErrNoTunnel }

// Form is the way in which an address names its tunnel.
type Form uint8

// The forms.
const (
	PathForm      Form = 1 // /tunnel/<segment>/rest
	SubdomainForm Form = 2 // <segment>.<wildcard domain>
)

// String names the form for logs and metrics.
func (f Form) String() string {
	switch f {
	case PathForm:
		return "path"
	case SubdomainForm:
		return "subdomain"
	}
	return "none"
}

// Store is what the resolver reads: the memory copy of the records.
type Store interface {
	Tunnel(id ident.SessionID) (store.TunnelRecord, bool)
	TunnelState(key ident.AgentKey, id ident.SessionID) (store.TunnelState, bool)
	Link(id ident.LinkID) (store.LinkRecord, bool)
	// CatchUp returns when the memory copy holds at least what the store held
	// when it was called.
	CatchUp(ctx context.Context) error
}

// Config is what a Resolver needs.
type Config struct {
	Store Store
	Key   ident.ClusterKey
	// PublicURL is where users reach the relay: http or https, no path.
	PublicURL *url.URL
	// WildcardDomain has every name below it pointing to the relay; empty: there
	// is no subdomain form. It has the port of PublicURL.
	WildcardDomain string
	// PathForm serves HTTP tunnels in path form. Without it such an address leads to
	// the subdomain form: a script of an app must not share an origin with the relay's
	// own pages. TCP tunnels, which show no page, have the path form either way.
	PathForm bool
	// ConsoleURL is where the relay's own pages are, when not at PublicURL; nil: they
	// are there. No tunnel has an address on its host.
	ConsoleURL *url.URL
}

// Resolver finds tunnels and writes their addresses. It is safe for concurrent use.
type Resolver struct {
	store  Store
	key    ident.ClusterKey
	scheme string // of the public URL
	host   string // lower case, without port
	port   string // with its colon, or empty
	origin string // canonical public origin
	suffix string // "." + wildcard domain, or empty

	pathForm      bool
	console       string // host of ConsoleURL, as host; or empty
	consoleOrigin string // canonical; that of the public URL without one
}

// New checks the configuration and returns a Resolver.
func New(c Config) (*Resolver, error) {
	if c.Store == nil || c.PublicURL == nil {
		return nil, errors.New("tunnels: a store and a public URL are needed")
	}
	u := c.PublicURL
	host, origin, err := base("public", u)
	if err != nil {
		return nil, err
	}
	r := &Resolver{
		store: c.Store, key: c.Key, scheme: u.Scheme, host: host, origin: origin,
		pathForm: c.PathForm, consoleOrigin: origin,
	}
	if p := u.Port(); p != "" {
		r.port = ":" + p
	}
	if c.ConsoleURL != nil {
		if r.console, r.consoleOrigin, err = base("console", c.ConsoleURL); err != nil {
			return nil, err
		}
	}
	if w := strings.Trim(c.WildcardDomain, "."); w != "" {
		w, port, ok := SplitHost(strings.TrimPrefix(w, "*."))
		if !ok || port != "" || strings.HasPrefix(w, "[") {
			return nil, fmt.Errorf("wildcard domain %q: a domain name without port is needed", c.WildcardDomain)
		}
		r.suffix = "." + w
	}
	if r.suffix == "" && !r.pathForm {
		return nil, errors.New("tunnels: without a wildcard domain there is only the path form")
	}
	if r.console != "" && (r.console == r.host || strings.HasSuffix("."+r.console, r.suffix) && r.suffix != "") {
		return nil, fmt.Errorf("console URL %q: a host apart from the public one and the tunnels' is needed", c.ConsoleURL.Redacted())
	}
	return r, nil
}

// base takes a URL of the relay apart: its lower-case host and its canonical origin.
func base(name string, u *url.URL) (host, origin string, err error) {
	if u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return "", "", fmt.Errorf("%s URL %q: http(s)://host[:port] without a path is needed", name, u.Redacted())
	}
	origin, ok := CanonicalOrigin(u.Scheme + "://" + u.Host)
	if !ok {
		return "", "", fmt.Errorf("%s URL %q: the host is not valid", name, u.Redacted())
	}
	host, _, _ = SplitHost(u.Host)
	return host, origin, nil
}

// Route is a request's way to its tunnel.
type Route struct {
	Record store.TunnelRecord
	// Link is the named link that the address is; nil for the tunnel's own one.
	Link *store.LinkRecord
	Form Form
	// Prefix is the part of the path that belongs to the relay, without the slash
	// behind it; empty in subdomain form. It contains the segment: a secret.
	Prefix string
	// Rest is the raw path as the app sees it. In path form it is empty when the
	// slash behind the segment is missing.
	Rest string
	// Origin is the origin of the tunnel's pages in a browser, in canonical form.
	Origin string
	// Host is the host, with its port if not the default one, of that origin.
	Host string
	// Moved is the origin at which the tunnel is to be asked for, where this form of
	// its address is not served; empty: here.
	Moved string
}

// Resolve finds the tunnel of a request by its Host and its raw path (without
// query). The error is ErrNotTunnel or ErrNoTunnel.
func (r *Resolver) Resolve(ctx context.Context, host, rawPath string) (*Route, error) {
	label, sub, err := r.label(host)
	if err != nil {
		return nil, err
	}
	if sub {
		// The label is compared as it is in the address bar: browsers lower it.
		return r.find(ctx, ident.Segment(label), SubdomainForm, rawPath)
	}
	segment, rest, ok := splitPath(rawPath)
	if !ok || r.AtConsole(host) {
		return nil, ErrNotTunnel
	}
	return r.find(ctx, segment, PathForm, rest)
}

// BySegment finds the tunnel of a path form segment that came by another way than
// the path, for the fallbacks of edge. Where no app's page is in path form there are
// none.
func (r *Resolver) BySegment(ctx context.Context, host string, segment ident.Segment, rawPath string) (*Route, error) {
	if !r.pathForm || r.AtConsole(host) {
		return nil, ErrNotTunnel
	}
	return r.find(ctx, segment, PathForm, rawPath)
}

// PublicOrigin is the canonical origin of the relay, and of all path form pages.
func (r *Resolver) PublicOrigin() string { return r.origin }

// ConsoleOrigin is the canonical origin of the relay's own pages.
func (r *Resolver) ConsoleOrigin() string { return r.consoleOrigin }

// AtConsole says whether a request's Host is that of the relay's own pages, where
// they have one to themselves.
func (r *Resolver) AtConsole(host string) bool {
	if r.console == "" {
		return false
	}
	h, _, ok := SplitHost(host)
	return ok && h == r.console
}

// SplitPath splits a raw path of path form into its segment, which is not
// verified, and what follows it.
func SplitPath(rawPath string) (segment ident.Segment, rest string, ok bool) {
	segment, rest, ok = splitPath(rawPath)
	if !ok {
		return "", "", false
	}
	_, _, err := segment.Split()
	return segment, rest, err == nil
}

// label returns the part of host in front of the wildcard domain and whether
// there is one. Every name below the wildcard domain but the relay's own is a
// tunnel's or nobody's, so that a page there can never be the relay's console.
func (r *Resolver) label(host string) (string, bool, error) {
	if r.suffix == "" {
		return "", false, nil
	}
	h, _, ok := SplitHost(host)
	if !ok || h == r.host {
		return "", false, nil
	}
	label, ok := strings.CutSuffix(h, r.suffix)
	if !ok {
		return "", false, nil
	}
	if label == "" || strings.IndexByte(label, '.') >= 0 {
		return "", false, ErrNoTunnel
	}
	return label, true, nil
}

// splitPath finds the piece behind PathBase. It decodes nothing: a segment has no
// character that could be written otherwise.
func splitPath(rawPath string) (ident.Segment, string, bool) {
	tail, ok := strings.CutPrefix(rawPath, PathBase)
	if !ok {
		return "", "", false
	}
	if i := strings.IndexByte(tail, '/'); i >= 0 {
		return ident.Segment(tail[:i]), tail[i:], true
	}
	return ident.Segment(tail), "", true
}

// find does the same work for a wrong token as for a right one, but for CatchUp,
// which only a rightly signed address may cause: the signature proves that this
// pool once issued it, so misses cannot be forged into load on the store.
func (r *Resolver) find(ctx context.Context, segment ident.Segment, form Form, rest string) (*Route, error) {
	id, signed := r.key.Verify(segment)
	record, link, live := r.lookup(id)
	if !signed {
		return nil, ErrNoTunnel
	}
	if !live {
		// The user may be faster than the watch that feeds the memory copy.
		ctx, cancel := context.WithTimeout(ctx, catchUp)
		defer cancel()
		if err := r.store.CatchUp(ctx); err != nil {
			return nil, ErrNoTunnel // without quorum no tunnel was opened either
		}
		if record, link, live = r.lookup(id); !live {
			return nil, &Gone{id}
		}
	}
	route := &Route{Record: record, Link: link, Form: form, Rest: rest}
	if form == PathForm {
		route.Prefix, route.Origin = PathBase+string(segment), r.origin
		if !r.pathFormOf(record) {
			route.Moved = r.subdomainOrigin(segment)
		}
	} else {
		route.Origin = r.subdomainOrigin(segment)
	}
	route.Host = route.Origin[strings.Index(route.Origin, "://")+3:]
	return route, nil
}

// lookup says whether the tunnel can be used now. The id may be a named link's: they
// are of one space. Whether the link has a use left for who asks is not looked at.
func (r *Resolver) lookup(id ident.SessionID) (store.TunnelRecord, *store.LinkRecord, bool) {
	now := time.Now()
	var named *store.LinkRecord
	if link, ok := r.store.Link(ident.LinkID(id)); ok && (link.ExpiresAt.IsZero() || now.Before(link.ExpiresAt)) {
		named, id = &link, link.Session
	}
	record, ok := r.store.Tunnel(id)
	gate, known := r.store.TunnelState(record.Key(), id)
	return record, named, ok && known && gate.State == store.TunnelOpen && now.Before(record.ExpiresAt)
}

// subdomainOrigin is canonical, since the default port is never in r.origin.
func (r *Resolver) subdomainOrigin(segment ident.Segment) string {
	port := r.port
	if !strings.HasSuffix(r.origin, port) {
		port = ""
	}
	return r.scheme + "://" + string(segment) + r.suffix + port
}

// URL is the tunnel's main address: the subdomain form where there is a wildcard
// domain, since apps with absolute paths need it. TCP tunnels have ws(s) URLs.
func (r *Resolver) URL(record store.TunnelRecord) string {
	return r.url(record, r.key.Segment(record.Session))
}

// LinkURL is URL for a named link of the tunnel.
func (r *Resolver) LinkURL(record store.TunnelRecord, id ident.LinkID) string {
	return r.url(record, r.key.LinkSegment(id))
}

// LinkAlternates is Alternates for a named link of the tunnel.
func (r *Resolver) LinkAlternates(record store.TunnelRecord, id ident.LinkID) []string {
	return r.alternates(record, r.key.LinkSegment(id))
}

// LinkSegment is the secret part of a named link's addresses.
func (r *Resolver) LinkSegment(id ident.LinkID) ident.Segment { return r.key.LinkSegment(id) }

func (r *Resolver) url(record store.TunnelRecord, segment ident.Segment) string {
	if r.suffix != "" {
		return r.subdomainURL(record, segment)
	}
	return r.pathURL(record, segment)
}

// Alternates are the tunnel's other addresses; never nil, so that JSON has a list.
func (r *Resolver) Alternates(record store.TunnelRecord) []string {
	return r.alternates(record, r.key.Segment(record.Session))
}

func (r *Resolver) alternates(record store.TunnelRecord, segment ident.Segment) []string {
	if r.suffix != "" && r.pathFormOf(record) {
		return []string{r.pathURL(record, segment)}
	}
	return []string{}
}

// pathFormOf says whether a tunnel is served in path form.
func (r *Resolver) pathFormOf(record store.TunnelRecord) bool {
	return r.pathForm || record.Protocol == api.ProtocolTCP
}

// Origin is the origin of the tunnel's main address: what a browser sends as Origin.
func (r *Resolver) Origin(record store.TunnelRecord) string {
	if r.suffix != "" {
		return r.subdomainOrigin(r.key.Segment(record.Session))
	}
	return r.origin
}

func (r *Resolver) pathURL(record store.TunnelRecord, segment ident.Segment) string {
	return r.schemeOf(record) + "://" + r.host + r.port + PathBase + string(segment) + "/"
}

func (r *Resolver) subdomainURL(record store.TunnelRecord, segment ident.Segment) string {
	return r.schemeOf(record) + "://" + string(segment) + r.suffix + r.port + "/"
}

func (r *Resolver) schemeOf(record store.TunnelRecord) string {
	if record.Protocol != api.ProtocolTCP {
		return r.scheme
	}
	if r.scheme == "https" {
		return "wss"
	}
	return "ws"
}
