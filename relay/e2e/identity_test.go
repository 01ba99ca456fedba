package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

// TestTheAppAndTheOwnerLearnWhoItIs has two persons use one tunnel through two relays of a
// pool, with all that a client could say of itself on raw connections: the app is told who
// each is and believes nobody else, by a token that either relay's key proves; the owner
// reads their names, and sends one of two at the same address away, at both relays.
func TestTheAppAndTheOwnerLearnWhoItIs(t *testing.T) {
	t.Parallel()
	is := issuer.Start(t)
	f := newFleet(t, 2, func(*fleet, int) []string { return oidcEnv(is) })
	f.run(1, 1)
	port := app(t, func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = json.NewEncoder(rw).Encode([]http.Header{r.Header, r.Trailer})
	})
	person := func(id string) string { return is.Token(issuer.Claims{"sub": id, "teams": []string{world.Team}}) }
	tokens := map[string]string{"alice": person("alice"), "bob": person("bob")}
	var tun api.Tunnel
	if status, p := f.relays[0].API(tokens["alice"], http.MethodPost, "/agents/"+agentName(0)+"/tunnel", map[string]any{"target_port": port, "access": "team", "identity_header": "X-Proxy-Person"}, &tun, api.HeaderTeam, world.Team); status != http.StatusCreated {
		t.Fatalf("opening is answered %d: %v", status, p)
	}
	const forged = "mallory"
	claimed := func() string {
		var b strings.Builder
		for _, name := range []string{"X-Adit-User", "X-Adit-Name", "X-Adit-Email", "X-Adit-Groups", "X-Adit-Identity", "X-Proxy-Person", "X-Forwarded-User", "X-Forwarded-Email"} {
			for _, spelt := range []string{name, strings.ToLower(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_"), strings.Replace(name, "-", "_", 1), strings.ReplaceAll(name, "-", ".")} {
				fmt.Fprintf(&b, "%s: %s\r\n%s: %s\r\n", spelt, forged, spelt, forged)
			}
		}
		return b.String()
	}()
	ask := func(r *world.Relay, secret string) (status int, header http.Header) {
		t.Helper()
		conn, err := net.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(testkit.Patience))
		auth := ""
		if secret != "" {
			auth = api.HeaderAuthorization + ": Bearer " + secret + "\r\n"
		}
		fmt.Fprintf(conn, "POST /tunnel/%s/ HTTP/1.1\r\nHost: %s\r\n%s%sConnection: X-Adit-User, X-Adit-Identity, X-Proxy-Person\r\nTrailer: X-Adit-User, x_adit_user, X-Proxy-Person\r\nTransfer-Encoding: chunked\r\n\r\n"+
			"0\r\nX-Adit-User: mallory\r\nx_adit_user: mallory\r\nX-Proxy-Person: mallory\r\n\r\n", world.Segment(tun), strings.TrimPrefix(f.lb.url, "http://"), auth, claimed)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			t.Logf("refused: %d %.300s", resp.StatusCode, body)
			return resp.StatusCode, nil
		}
		if strings.Contains(string(body), forged) {
			t.Errorf("the app is told what the client says of itself: %s", body)
		}
		got := decode[[]http.Header](t, body)
		return resp.StatusCode, got[0]
	}

	var keys [2]string
	for i, r := range f.relays {
		if _, keys[i] = world.Get(f.w.HTTP(), "http://"+r.Addr()+"/.well-known/jwks.json"); keys[i] != keys[0] {
			t.Errorf("the relays show different keys: %s, %s", keys[0], keys[i])
		}
	}
	set := decode[jose.JSONWebKeySet](t, []byte(keys[0]))
	for _, r := range f.relays {
		for who, secret := range tokens {
			status, h := ask(r, secret)
			if status != http.StatusOK {
				t.Fatalf("%s is answered %d", who, status)
			}
			for _, name := range []string{"X-Adit-User", "X-Proxy-Person"} {
				if got := h[textproto.CanonicalMIMEHeaderKey(name)]; !slices.Equal(got, []string{who}) {
					t.Errorf("%s reaches the app as %q, want %s", name, got, who)
				}
			}
			token, err := jwt.ParseSigned(h.Get("X-Adit-Identity"), []jose.SignatureAlgorithm{jose.ES256})
			if err != nil {
				t.Fatal(err)
			}
			var claims jwt.Claims
			if err := token.Claims(set, &claims); err != nil {
				t.Errorf("the token is not signed with the published key: %v", err)
			}
			if err := claims.Validate(jwt.Expected{Issuer: f.lb.url, Subject: who, AnyAudience: jwt.Audience{string(tun.SessionID)}, Time: time.Now()}); err != nil {
				t.Error(err)
			}
		}
		if status, _ := ask(r, ""); status != http.StatusUnauthorized {
			t.Errorf("who only says that they are somebody is answered %d", status)
		}
	}

	// The owner reads names.
	var list api.ViewerList
	f.relays[0].API(tokens["alice"], http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil, &list, api.HeaderTeam, world.Team)
	var bob api.Viewer
	for _, v := range list.Viewers {
		if v.UserID == "bob" {
			bob = v
		}
	}
	if len(list.Viewers) != 4 || bob.ViewerID == "" { // each at each relay
		t.Fatalf("the viewers are %+v", list.Viewers)
	}
	var st api.TunnelStatus
	f.relays[1].API(tokens["alice"], http.MethodGet, "/agents/"+agentName(0)+"/tunnel", nil, &st, api.HeaderTeam, world.Team)
	if len(st.Sessions) != 1 || !strings.HasSuffix(st.Sessions[0].ClosesBecause, "; in use by alice and bob") {
		t.Errorf("the tunnel closes because %+v", st.Sessions)
	}
	if status, _ := f.relays[0].API(tokens["alice"], http.MethodDelete, "/tunnels/"+string(tun.SessionID)+"/viewers/"+string(bob.ViewerID), nil, nil, api.HeaderTeam, world.Team); status != http.StatusNoContent {
		t.Fatalf("the kick is answered %d", status)
	}
	for _, r := range f.relays {
		if status, _ := ask(r, tokens["bob"]); status != http.StatusForbidden {
			t.Errorf("bob was sent away and is answered %d", status)
		}
		if status, _ := ask(r, tokens["alice"]); status != http.StatusOK {
			t.Errorf("alice, at the same address, is answered %d", status)
		}
	}
	if err := f.relays[0].Stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	seen := map[audit.Event][]string{}
	for _, rec := range audited(t, f.relays[0]) {
		if rec.Event == audit.TunnelViewed || rec.Event == audit.ViewerKicked {
			seen[rec.Event] = append(seen[rec.Event], rec.Actor+" "+rec.Detail)
		}
	}
	slices.Sort(seen[audit.TunnelViewed])
	if v := seen[audit.TunnelViewed]; len(v) != 2 || !strings.HasPrefix(v[0], "user:alice viewer ") || !strings.HasPrefix(v[1], "user:bob viewer ") {
		t.Errorf("the audit says of views %q", v)
	}
	if k := seen[audit.ViewerKicked]; len(k) != 1 || !strings.HasPrefix(k[0], "user:alice ") || !strings.Contains(k[0], "user:bob") {
		t.Errorf("the audit says of the kick %q", k)
	}
}
