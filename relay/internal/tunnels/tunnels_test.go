package tunnels_test

import (
	"context"
	"errors"
	"maps"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/tunnels"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

var key = ident.ClusterKey{7}

// records is a store's memory copy; late ones appear with CatchUp.
type records struct {
	tunnels, late map[ident.SessionID]store.TunnelRecord
	state         map[ident.SessionID]string
	links         map[ident.LinkID]store.LinkRecord
	caughtUp      int
	err           error
}

func (r *records) Tunnel(id ident.SessionID) (store.TunnelRecord, bool) {
	t, ok := r.tunnels[id]
	return t, ok
}

func (r *records) TunnelState(_ ident.AgentKey, id ident.SessionID) (store.TunnelState, bool) {
	_, ok := r.tunnels[id]
	if s := r.state[id]; s != "" {
		return store.TunnelState{State: s}, ok
	}
	return store.TunnelState{State: store.TunnelOpen}, ok
}

func (r *records) Link(id ident.LinkID) (store.LinkRecord, bool) {
	l, ok := r.links[id]
	return l, ok
}

func (r *records) CatchUp(context.Context) error {
	r.caughtUp++
	maps.Copy(r.tunnels, r.late)
	return r.err
}

func newRecords() *records {
	return &records{tunnels: map[ident.SessionID]store.TunnelRecord{}, late: map[ident.SessionID]store.TunnelRecord{}, state: map[ident.SessionID]string{}}
}

func record() store.TunnelRecord {
	return store.TunnelRecord{Session: ident.NewSessionID(), Agent: "box", Protocol: api.ProtocolHTTP, ExpiresAt: time.Now().Add(time.Hour)}
}

func resolver(t testing.TB, s tunnels.Store, public, wildcard string) *tunnels.Resolver {
	t.Helper()
	u, err := url.Parse(public)
	if err != nil {
		t.Fatal(err)
	}
	r, err := tunnels.New(tunnels.Config{Store: s, Key: key, PublicURL: u, WildcardDomain: wildcard, PathForm: true})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestResolve(t *testing.T) {
	s := newRecords()
	open := record()
	s.tunnels[open.Session] = open
	seg := string(key.Segment(open.Session))
	r := resolver(t, s, "https://Gateway.example.com:443", "tunnels.example.com")
	for _, c := range []struct {
		name, host, path string
		want             error
		rest, origin     string
	}{
		{"path form", "gateway.example.com", "/tunnel/" + seg + "/a%2fb//../c", nil, "/a%2fb//../c", "https://gateway.example.com"},
		{"path form, any host", "10.0.0.1:8080", "/tunnel/" + seg + "/", nil, "/", "https://gateway.example.com"},
		{"no slash", "gateway.example.com", "/tunnel/" + seg, nil, "", "https://gateway.example.com"},
		{"subdomain form", seg + ".tunnels.example.com", "//x/../y", nil, "//x/../y", "https://" + seg + ".tunnels.example.com"},
		{"subdomain form, case, port, dot", strings.ToUpper(seg) + ".Tunnels.Example.COM.:8443", "/", nil, "/", "https://" + seg + ".tunnels.example.com"},
		{"a path cannot choose in subdomain form", seg + ".tunnels.example.com", "/tunnel/x/", nil, "/tunnel/x/", "https://" + seg + ".tunnels.example.com"},
		{"another name below the wildcard", "www.tunnels.example.com", "/tunnel/" + seg + "/", tunnels.ErrNoTunnel, "", ""},
		{"deeper below the wildcard", "a." + seg + ".tunnels.example.com", "/", tunnels.ErrNoTunnel, "", ""},
		{"the wildcard itself", "tunnels.example.com", "/", tunnels.ErrNotTunnel, "", ""},
		{"a lookalike of the wildcard", seg + ".eviltunnels.example.com", "/", tunnels.ErrNotTunnel, "", ""},
		{"upper case segment in the path", "gateway.example.com", "/tunnel/" + strings.ToUpper(seg) + "/", tunnels.ErrNoTunnel, "", ""},
		{"doubled slash", "gateway.example.com", "//tunnel/" + seg + "/", tunnels.ErrNotTunnel, "", ""},
		{"dots", "gateway.example.com", "/x/../tunnel/" + seg + "/", tunnels.ErrNotTunnel, "", ""},
		{"encoded slash", "gateway.example.com", "/tunnel%2f" + seg + "/", tunnels.ErrNotTunnel, "", ""},
		{"encoded slash behind", "gateway.example.com", "/tunnel/" + seg + "%2f", tunnels.ErrNoTunnel, "", ""},
		{"encoded letter", "gateway.example.com", "/%74unnel/" + seg + "/", tunnels.ErrNotTunnel, "", ""},
		{"empty segment", "gateway.example.com", "/tunnel//", tunnels.ErrNoTunnel, "", ""},
		{"relay's route", "gateway.example.com", "/api/v1/agents", tunnels.ErrNotTunnel, "", ""},
	} {
		route, err := r.Resolve(t.Context(), c.host, c.path)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
			continue
		}
		if err == nil && (route.Record.Session != open.Session || route.Rest != c.rest || route.Origin != c.origin) {
			t.Errorf("%s: rest %q origin %q", c.name, route.Rest, route.Origin)
		}
	}
	if s.caughtUp != 0 {
		t.Errorf("addresses that nobody signed caused %d reads of the store", s.caughtUp)
	}
}

func TestWhatDoesNotResolve(t *testing.T) {
	s := newRecords()
	r := resolver(t, s, "http://localhost:8080", "")
	path := func(rec store.TunnelRecord) string { return "/tunnel/" + string(key.Segment(rec.Session)) + "/" }
	expired, closing, waiting, gone := record(), record(), record(), record()
	expired.ExpiresAt = time.Now().Add(-time.Millisecond)
	s.state[closing.Session], s.state[waiting.Session] = store.TunnelClosing, store.TunnelWaiting
	for _, rec := range []store.TunnelRecord{expired, closing, waiting} {
		s.tunnels[rec.Session] = rec
	}
	for name, rec := range map[string]store.TunnelRecord{"expired": expired, "closing": closing, "waiting": waiting, "gone": gone} {
		before := s.caughtUp
		if _, err := r.Resolve(t.Context(), "localhost:8080", path(rec)); !errors.Is(err, tunnels.ErrNoTunnel) {
			t.Errorf("%s: %v", name, err)
		}
		if s.caughtUp != before+1 {
			t.Errorf("%s: the miss of a signed address was not confirmed", name)
		}
	}
	s.err = errors.New("no quorum")
	if _, err := r.Resolve(t.Context(), "localhost:8080", path(gone)); !errors.Is(err, tunnels.ErrNoTunnel) {
		t.Errorf("without quorum: %v", err)
	}
}

func TestUserFasterThanTheWatch(t *testing.T) {
	s := newRecords()
	rec := record()
	s.late[rec.Session] = rec
	r := resolver(t, s, "http://localhost:8080", "localhost")
	if _, err := r.Resolve(t.Context(), string(key.Segment(rec.Session))+".localhost:8080", "/"); err != nil {
		t.Errorf("a tunnel opened this moment: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	rec := record()
	seg := string(key.Segment(rec.Session))
	tcp := rec
	tcp.Protocol = api.ProtocolTCP
	for _, c := range []struct {
		public, wildcard string
		rec              store.TunnelRecord
		url, alt, origin string
	}{
		{"https://gateway.example.com", "", rec, "https://gateway.example.com/tunnel/" + seg + "/", "", "https://gateway.example.com"},
		{"https://gateway.example.com/", "tunnels.example.com", rec, "https://" + seg + ".tunnels.example.com/", "https://gateway.example.com/tunnel/" + seg + "/", "https://" + seg + ".tunnels.example.com"},
		{"http://localhost:8080", "localhost", rec, "http://" + seg + ".localhost:8080/", "http://localhost:8080/tunnel/" + seg + "/", "http://" + seg + ".localhost:8080"},
		{"http://localhost:8080", "localhost", tcp, "ws://" + seg + ".localhost:8080/", "ws://localhost:8080/tunnel/" + seg + "/", "http://" + seg + ".localhost:8080"},
		{"https://gw.example:8443", "", tcp, "wss://gw.example:8443/tunnel/" + seg + "/", "", "https://gw.example:8443"},
		{"https://gw.example:443", "*.t.example", rec, "https://" + seg + ".t.example:443/", "https://gw.example:443/tunnel/" + seg + "/", "https://" + seg + ".t.example"},
		{"http://[::1]:8080", "", rec, "http://[::1]:8080/tunnel/" + seg + "/", "", "http://[::1]:8080"},
	} {
		r := resolver(t, newRecords(), c.public, c.wildcard)
		alt := strings.Join(r.Alternates(c.rec), " ")
		if r.URL(c.rec) != c.url || alt != c.alt || r.Origin(c.rec) != c.origin {
			t.Errorf("%s with %q: %s, %q, %s", c.public, c.wildcard, r.URL(c.rec), alt, r.Origin(c.rec))
		}
		if r.Alternates(c.rec) == nil {
			t.Error("the list of alternates is null")
		}
	}
}

func TestConfigurationFaults(t *testing.T) {
	for _, c := range []struct{ public, wildcard string }{
		{"ftp://x", ""}, {"https://x/path", ""}, {"https://u:p@x", ""}, {"https:///", ""}, {"https://x?q", ""},
		{"https://x", "a b"}, {"https://x", "x:80"}, {"https://x", "[::1]"},
	} {
		u, err := url.Parse(c.public)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tunnels.New(tunnels.Config{Store: newRecords(), PublicURL: u, WildcardDomain: c.wildcard, PathForm: true}); err == nil {
			t.Errorf("public URL %q with wildcard %q was taken", c.public, c.wildcard)
		}
	}
	public := &url.URL{Scheme: "https", Host: "gw.example.com"}
	if _, err := tunnels.New(tunnels.Config{Store: newRecords(), PublicURL: public}); err == nil {
		t.Error("a relay without any form of address was taken")
	}
	for _, host := range []string{"GW.example.com:8443", "t.example.com", "console.t.example.com", "a b"} {
		if _, err := tunnels.New(tunnels.Config{Store: newRecords(), PublicURL: public, WildcardDomain: "t.example.com", ConsoleURL: &url.URL{Scheme: "https", Host: host}}); err == nil {
			t.Errorf("console URL with host %q was taken", host)
		}
	}
}

// Without the path form a web app has one address, and a right one in path form names
// it; TCP, which shows no page, keeps both.
func TestWithoutPathForm(t *testing.T) {
	s := newRecords()
	rec, tcp := record(), record()
	tcp.Protocol = api.ProtocolTCP
	s.tunnels[rec.Session], s.tunnels[tcp.Session] = rec, tcp
	r, err := tunnels.New(tunnels.Config{
		Store: s, Key: key, PublicURL: &url.URL{Scheme: "https", Host: "gw.example.com:8443"}, WildcardDomain: "t.example.com",
		ConsoleURL: &url.URL{Scheme: "https", Host: "Console.example.com:443"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if alt := r.Alternates(rec); alt == nil || len(alt) != 0 {
		t.Errorf("a web app has other addresses: %v", alt)
	}
	if alt := r.Alternates(tcp); len(alt) != 1 || !strings.HasPrefix(alt[0], "wss://gw.example.com:8443/tunnel/") {
		t.Errorf("a TCP tunnel has the other addresses %v", alt)
	}
	for _, c := range []struct {
		host  string
		rec   store.TunnelRecord
		moved string
		err   error
	}{
		{"gw.example.com", rec, "https://" + string(key.Segment(rec.Session)) + ".t.example.com:8443", nil},
		{"gw.example.com", tcp, "", nil},
		{"console.example.com", rec, "", tunnels.ErrNotTunnel},
		{"CONSOLE.example.com.:8443", tcp, "", tunnels.ErrNotTunnel},
	} {
		route, err := r.Resolve(t.Context(), c.host, "/tunnel/"+string(key.Segment(c.rec.Session))+"/x")
		if !errors.Is(err, c.err) || err == nil && (route.Moved != c.moved || route.Rest != "/x") {
			t.Errorf("%s: %+v %v", c.host, route, err)
		}
		if _, err := r.BySegment(t.Context(), c.host, key.Segment(c.rec.Session), "/x"); !errors.Is(err, tunnels.ErrNotTunnel) {
			t.Errorf("%s: an absolute path leads to a tunnel: %v", c.host, err)
		}
	}
	if r.ConsoleOrigin() != "https://console.example.com" || r.PublicOrigin() != "https://gw.example.com:8443" {
		t.Errorf("the origins are %s and %s", r.ConsoleOrigin(), r.PublicOrigin())
	}
	if got := resolver(t, s, "https://gw.example.com", "").ConsoleOrigin(); got != "https://gw.example.com" {
		t.Errorf("without a console URL its origin is %s", got)
	}
}

func TestCanonicalOrigin(t *testing.T) {
	for in, want := range map[string]string{
		"https://Example.COM": "https://example.com", "https://example.com:443": "https://example.com", "http://example.com:443": "http://example.com:443",
		"HTTP://example.com.:80": "http://example.com", "ws://x:80": "http://x", "http://[::1]:80": "http://[::1]", "http://x:": "http://x",
		"null": "", "": "", "https://": "", "https://a/": "", "https://a@b": "", "https://a:b": "", "https://a b": "", "file://x": "", "https://[::1": "", "https://a\\b": "",
	} {
		if got, ok := tunnels.CanonicalOrigin(in); got != want || ok != (want != "") {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func FuzzResolve(f *testing.F) {
	s := newRecords()
	rec := record()
	s.tunnels[rec.Session] = rec
	seg := string(key.Segment(rec.Session))
	r := resolver(f, s, "http://localhost:8080", "localhost")
	for _, p := range []string{"/", "/tunnel/", "/tunnel/" + seg, "/tunnel/" + seg + "/x", "//tunnel/" + seg, "/tunnel/" + seg + "%2f", "/tunnel/../" + seg} {
		f.Add("localhost:8080", p)
		f.Add(seg+".localhost", p)
	}
	f.Add("[::1]:1", "/")
	f.Add(".localhost", "")
	f.Fuzz(func(t *testing.T, host, path string) {
		route, err := r.Resolve(t.Context(), host, path)
		if err != nil {
			if !errors.Is(err, tunnels.ErrNoTunnel) && !errors.Is(err, tunnels.ErrNotTunnel) {
				t.Errorf("error %v", err)
			}
			return
		}
		// Only the whole, signed segment, in its place, chooses a tunnel.
		inPath := strings.HasPrefix(path, "/tunnel/"+seg) && path == route.Prefix+route.Rest
		inHost := strings.HasPrefix(strings.ToLower(host), seg+".localhost") && path == route.Rest
		if !inPath && !inHost {
			t.Errorf("host %q and path %q resolved to %+v", host, path, route)
		}
	})
}

func BenchmarkResolve(b *testing.B) {
	s := newRecords()
	rec := record()
	s.tunnels[rec.Session] = rec
	r := resolver(b, s, "http://localhost:8080", "localhost")
	host := string(key.Segment(rec.Session)) + ".localhost:8080"
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Resolve(b.Context(), host, "/"); err != nil {
			b.Fatal(err)
		}
	}
}
