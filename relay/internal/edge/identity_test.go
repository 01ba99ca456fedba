package edge_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/relay/internal/identity"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
)

// lets is an access that lets in one viewer, whatever they show.
type lets struct {
	edge.Access
	viewer access.Viewer
}

func (l lets) Check(context.Context, access.Request) (access.Viewer, error) { return l.viewer, nil }

func (l lets) Watch(ctx context.Context, _ access.Viewer, _ *store.TunnelRecord, _ *store.LinkRecord) (context.Context, context.CancelFunc) {
	return ctx, func() {}
}

var alice = access.Viewer{User: "oidc|alice", Name: "Älice", Email: "alice@example.com", Groups: []string{"vision", "a,b"}, How: access.BySignIn}

func identities(t testing.TB) *identity.Identity {
	t.Helper()
	i, err := identity.New(identity.Config{Key: clusterKey, Issuer: "https://relay.example", Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// chosenField is the field that the tunnel's opener chose; none that is kept back anyway.
const chosenField = "X-Grafana-Person"

// forgeries are all spellings of the fields that name a viewer which a server may take for
// one of them.
func forgeries() []string {
	spelt := map[string]bool{}
	for _, name := range []string{identity.HeaderUser, identity.HeaderName, identity.HeaderEmail, identity.HeaderGroups, identity.HeaderToken, "X-Adit-Of-Later", chosenField} {
		for _, s := range []string{
			name, strings.ReplaceAll(name, "-", "_"), strings.Replace(name, "-", "_", 1), strings.Replace(name, "-", "_", 2),
			strings.ReplaceAll(name, "-", "."), strings.ReplaceAll(name, "-", "~"), strings.Replace(name, "-", "+", 1),
		} {
			for _, c := range []string{s, strings.ToLower(s), strings.ToUpper(s), strings.ToLower(s[:3]) + strings.ToUpper(s[3:])} {
				spelt[c] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(spelt))
}

const forgedValue = "mallory"

// seenBy are the fields and trailers of a request, as the app got it.
func seenBy(r *http.Request) http.Header {
	_, _ = io.Copy(io.Discard, r.Body)
	h := r.Header.Clone()
	for name, values := range r.Trailer {
		h["trailer "+name] = values
	}
	return h
}

// namesOf are the fields whose value says who somebody forged to be.
func namesOf(h http.Header) (names []string) {
	for name, values := range h {
		if strings.Contains(strings.Join(values, " "), forgedValue) {
			names = append(names, name)
		}
	}
	return names
}

// TestNobodyForgesWhoTheyAre sends every spelling of the fields that name a viewer: once,
// twice, named in Connection, as a trailer, over HTTP/1.1 and HTTP/2, from anybody and from
// a trusted proxy, with and without a rule. None reaches the app; the relay's own do, once.
func TestNobodyForgesWhoTheyAre(t *testing.T) {
	stranger := access.Viewer{Name: forgedValue, How: access.ByKnock} // as they say
	for _, c := range []struct {
		name    string
		rule    bool
		viewer  access.Viewer
		trusted bool
	}{
		{"no rule", false, access.Viewer{}, false}, {"no rule, trusted proxy", false, access.Viewer{}, true},
		{"known", true, alice, false}, {"known, trusted proxy", true, alice, true},
		{"not known", true, stranger, false}, {"not known, trusted proxy", true, stranger, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			keys := identities(t)
			configure := func(more func(*edge.Config)) func(*edge.Config) {
				return func(e *edge.Config) {
					e.Access, e.Identity = lets{viewer: c.viewer}, keys
					if c.trusted {
						e.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
					}
					if more != nil {
						more(e)
					}
				}
			}
			check := func(what string, h http.Header) {
				t.Helper()
				if names := namesOf(h); len(names) > 0 {
					t.Errorf("%s: forged: the app sees %q", what, names)
				}
				want := 0
				if c.viewer.User != "" {
					want = 1
				}
				for _, name := range []string{identity.HeaderUser, identity.HeaderName, identity.HeaderEmail, identity.HeaderGroups, identity.HeaderToken, chosenField} {
					if got := h[http.CanonicalHeaderKey(name)]; len(got) != want {
						t.Errorf("%s: %s reaches the app as %q, want it %d times", what, name, got, want)
					}
				}
			}
			for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
				w := newWorld(t, configure(func(e *edge.Config) {
					if proto == "HTTP/2.0" {
						e.PathFallback = "tls"
					}
				}))
				seen := make(chan http.Header, 1)
				port := w.appFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- seenBy(r) })
				_, seg := w.tunnel(port, func(r *store.TunnelRecord) {
					r.IdentityHeader = chosenField
					if c.rule {
						r.Access = &store.AccessRule{Mode: api.AccessTeam, Version: 1}
					}
				})
				if proto == "HTTP/2.0" {
					for _, name := range forgeries() {
						r := w.request("POST", seg, "/", strings.NewReader("x"))
						r.ContentLength = -1
						r.Header[name] = []string{forgedValue, forgedValue}
						r.Trailer = http.Header{http.CanonicalHeaderKey(name): {forgedValue}}
						if resp := w.do(r); resp.ProtoMajor != 2 || resp.StatusCode != 200 {
							t.Fatalf("%s: %s %s", name, resp.Proto, resp.Status)
						}
						check(proto+" "+name, <-seen)
					}
					continue
				}
				conn, br := w.dial()
				ask := func(what, fields, body string) {
					t.Helper()
					fmt.Fprintf(conn, "POST /tunnel/%s/ HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n%s\r\n%s", seg, w.public.Host, fields, body)
					resp, err := http.ReadResponse(br, nil)
					if err != nil || resp.StatusCode != 200 {
						t.Fatalf("%s: %v %v", what, resp, err)
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					check(what, <-seen)
				}
				for _, name := range forgeries() {
					line := name + ": " + forgedValue + "\r\n"
					ask(name+", twice", line+line, "0\r\n\r\n")
					ask(name+" in Connection", line+"Connection: keep-alive, "+name+"\r\n", "0\r\n\r\n")
					ask(name+" as a trailer", "Trailer: "+name+"\r\n", "0\r\n"+line+"\r\n")
				}
				for _, name := range []string{identity.HeaderUser, identity.HeaderToken, chosenField} { // to have the relay's own taken away
					ask(name+" in Connection alone", "Connection: "+name+"\r\n", "0\r\n\r\n")
				}
			}
		})
	}
}

// What the app is told can be checked with the key that the relay shows, also on a
// WebSocket's handshake and by a program in path form; another relay of the pool has the
// same key.
func TestTheAppLearnsWhoUsesIt(t *testing.T) {
	keys := identities(t)
	w := newWorld(t, func(e *edge.Config) { e.Access, e.Identity = lets{viewer: alice}, keys })
	seen := make(chan http.Header, 1)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Clone()
		if r.Header.Get("Upgrade") != "" {
			rw.WriteHeader(http.StatusTeapot)
		}
	})
	rec, seg := w.tunnel(port, func(r *store.TunnelRecord) {
		r.Access, r.IdentityHeader = &store.AccessRule{Mode: api.AccessTeam, Version: 1}, "X-WEBAUTH-USER"
	})
	published := func(i *identity.Identity) (set jose.JSONWebKeySet, text string) {
		resp := httptest.NewRecorder()
		i.Routes()["GET "+identity.KeysPath].ServeHTTP(resp, httptest.NewRequest("GET", identity.KeysPath, nil))
		text = resp.Body.String()
		if err := json.Unmarshal([]byte(text), &set); err != nil || len(set.Keys) != 1 || !set.Keys[0].IsPublic() {
			t.Fatalf("the keys are %s: %v", text, err)
		}
		return set, text
	}
	set, one := published(keys)
	if _, other := published(identities(t)); other != one {
		t.Errorf("another relay shows another key: %s, %s", one, other)
	}
	check := func(what string, h http.Header) {
		t.Helper()
		for name, want := range map[string]string{
			identity.HeaderUser: "oidc|alice", identity.HeaderName: "%C3%84lice", identity.HeaderEmail: "alice@example.com", identity.HeaderGroups: "vision,a%2Cb", "X-Webauth-User": "oidc|alice",
		} {
			if got := h[name]; len(got) != 1 || got[0] != want {
				t.Errorf("%s: %s is %q, want %q", what, name, got, want)
			}
		}
		token, err := jwt.ParseSigned(h.Get(identity.HeaderToken), []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		var claims struct {
			jwt.Claims
			Name   string   `json:"name"`
			Email  string   `json:"email"`
			Groups []string `json:"groups"`
		}
		if err := token.Claims(set, &claims); err != nil {
			t.Fatalf("%s: the token is not signed with the published key: %v", what, err)
		}
		if err := claims.Validate(jwt.Expected{Issuer: "https://relay.example", AnyAudience: jwt.Audience{string(rec.Session)}, Subject: "oidc|alice", Time: time.Now()}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if life := claims.Expiry.Time().Sub(claims.IssuedAt.Time()); life != 5*time.Minute || claims.Name != alice.Name || claims.Email != alice.Email || !slices.Equal(claims.Groups, alice.Groups) {
			t.Errorf("%s: the token lives %v and says %+v", what, life, claims)
		}
	}
	w.get(seg, "/")
	check("path form", <-seen)
	w.getHost(seg, "/")
	check("subdomain form", <-seen)
	conn, br := w.dial()
	fmt.Fprintf(conn, "GET /tunnel/%s/ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade, X-Adit-User\r\nUpgrade: websocket\r\nX-Adit-User: %s\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", seg, w.public.Host, forgedValue)
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != http.StatusTeapot {
		t.Fatalf("the handshake was answered %v, %v", resp, err)
	}
	check("WebSocket", <-seen)
	for _, v := range w.meter.Viewers(rec.Session) {
		if v.UserID != alice.User || v.UserName != alice.Name {
			t.Errorf("the list of viewers says %+v, want the person", v)
		}
	}
	if names := w.meter.Totals(rec.Session).Names; !slices.Equal(names, []string{alice.Name}) {
		t.Errorf("the tunnel is used by %q", names)
	}
}
