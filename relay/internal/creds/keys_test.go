package creds_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/testkit/issuer"
)

func TestRotationIsFollowedAtOnce(t *testing.T) {
	i := issuer.Start(t)
	a := withIssuer(t, i)
	old := i.Token(member(nil))
	wantAccepted(t, a, request(t, bearer(old), inTeam(teamA)))
	i.Rotate(true)
	wantAccepted(t, a, request(t, bearer(i.Token(member(nil))), inTeam(teamA)))
	wantAccepted(t, a, request(t, bearer(old), inTeam(teamA)))
	i.Rotate(false)
	wantAccepted(t, a, request(t, bearer(i.TokenES256(member(nil))), inTeam(teamA)))
	wantRefused(t, a, request(t, bearer(old), inTeam(teamA)), 401, "unauthenticated")
}

func TestUnknownKeysDoNotHammerTheIssuer(t *testing.T) {
	i := issuer.Start(t)
	a := withIssuer(t, i)
	wantAccepted(t, a, request(t, bearer(i.Token(member(nil))), inTeam(teamA)))
	before, began := i.KeySetRequests(), time.Now()
	forged := []string{i.TokenWrong(issuer.UnknownKey, member(nil)), i.TokenWrong(issuer.NoKeyID, member(nil))}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := range 100 {
				if _, err := a.Authenticate(request(t, bearer(forged[n%2]), inTeam(teamA))); err == nil {
					t.Error("a forged session was accepted")
				}
			}
		})
	}
	wg.Wait()
	most := 3 + int(time.Since(began)/(5*time.Second)) // a burst, then one in five seconds
	if n := i.KeySetRequests() - before; n > most {
		t.Errorf("800 sessions with unknown keys made %d requests to the issuer, want at most %d", n, most)
	}
	// Nor do those that could not be accepted with any key.
	before = i.KeySetRequests()
	for _, c := range []issuer.Claims{{"iss": "https://example.com"}, {"aud": "other"}, {"exp": 1}} {
		wantRefused(t, a, request(t, bearer(i.TokenWrong(issuer.UnknownKey, member(c))), inTeam(teamA)), 401, "unauthenticated")
	}
	if n := i.KeySetRequests() - before; n != 0 {
		t.Errorf("%d requests to the issuer for sessions of others", n)
	}
	wantAccepted(t, a, request(t, bearer(i.Token(member(nil))), inTeam(teamA)))
}

func TestTheIssuerMayBeDownAtStartAndLater(t *testing.T) {
	i := issuer.Start(t)
	i.SetDown(true)
	m := newMemory()
	secret := m.add("integration", nil).Reveal()
	a := newAuth(t, creds.Config{Store: m, OIDC: creds.OIDC{Issuer: i.URL(), Audience: issuer.Audience}})
	p := wantRefused(t, a, request(t, bearer(i.Token(member(nil))), inTeam(teamA)), 503, "issuer_unavailable")
	if p.RetryAfter == 0 {
		t.Error("no Retry-After")
	}
	wantAccepted(t, a, request(t, bearer(secret)))
	wantRefused(t, a, request(t, bearer(i.TokenWrong(issuer.AlgNone, member(nil))), inTeam(teamA)), 401, "unauthenticated")

	i.SetDown(false)
	wantAccepted(t, a, request(t, bearer(i.Token(member(nil))), inTeam(teamA)))
	i.SetDown(true)
	wantAccepted(t, a, request(t, bearer(i.Token(member(nil))), inTeam(teamA))) // keys are kept
	i.Rotate(true)
	wantRefused(t, a, request(t, bearer(i.Token(member(nil))), inTeam(teamA)), 503, "issuer_unavailable")
	wantRefused(t, a, request(t, bearer(i.TokenWrong(issuer.ForeignKey, member(nil))), inTeam(teamA)), 401, "unauthenticated")
}

// network answers requests without a connection, so that it works in fake time.
type network struct {
	mu    sync.Mutex
	pages map[string]func() (int, io.Reader)
	seen  map[string]int
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	u := r.URL.String()
	n.seen[u]++
	page, ok := n.pages[u]
	if !ok {
		return nil, fmt.Errorf("dial %s: no route", r.URL.Host)
	}
	status, body := page()
	h := http.Header{}
	if status == http.StatusFound {
		b, _ := io.ReadAll(body)
		h.Set("Location", string(b))
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(body), Request: r}, nil
}

func (n *network) set(u string, status int, body string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pages[u] = func() (int, io.Reader) { return status, strings.NewReader(body) }
}

func (n *network) requests(u string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[u]
}

const (
	idp       = "https://id.example.com"
	discovery = idp + "/.well-known/openid-configuration"
	keysURL   = "https://keys.example.com/v1"
)

func newNetwork() *network {
	n := &network{pages: map[string]func() (int, io.Reader){}, seen: map[string]int{}}
	n.set(discovery, 200, `{"issuer":"`+idp+`","jwks_uri":"`+keysURL+`"}`)
	return n
}

func (n *network) config() creds.OIDC {
	return creds.OIDC{Issuer: idp, Audience: "adit", HTTPClient: &http.Client{Transport: n}}
}

func jwks(kid string, key *ecdsa.PrivateKey) string {
	b, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: kid}}})
	return string(b)
}

func sessionOf(t testing.TB, kid string, key *ecdsa.PrivateKey) header {
	c := goodClaims()
	c["iss"], c["aud"] = idp, "adit"
	return bearer(sign(t, jose.ES256, key, kid, c))
}

func TestKeysAreRefreshedInTheBackground(t *testing.T) {
	key1, key2 := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		var log testkit.Buffer
		a := newAuth(t, creds.Config{OIDC: n.config(), Logger: slog.New(slog.NewTextHandler(&log, nil))})
		stop := start(t, a)
		defer stop()

		// Down at start: retried, at most 30 s apart, with one line in the log.
		time.Sleep(10 * time.Minute)
		if got := n.requests(keysURL); got < 20 || got > 40 {
			t.Errorf("%d attempts in ten minutes without keys, want one each half minute", got)
		}
		if got := strings.Count(log.String(), "not refreshed"); got != 1 {
			t.Errorf("%d warnings of one outage:\n%s", got, log.String())
		}
		n.set(keysURL, 200, jwks("k1", key1))
		time.Sleep(31 * time.Second)
		asked := n.requests(keysURL)
		wantAccepted(t, a, request(t, sessionOf(t, "k1", key1), inTeam(teamA)))
		if n.requests(keysURL) != asked {
			t.Error("a caller had to wait for keys that were there")
		}
		if !strings.Contains(log.String(), "refreshed again") {
			t.Errorf("the end of the outage is not in the log:\n%s", log.String())
		}

		// A withdrawn key stops working, though nobody asks for another one.
		n.set(keysURL, 200, jwks("k2", key2))
		time.Sleep(11 * time.Minute)
		wantRefused(t, a, request(t, sessionOf(t, "k1", key1), inTeam(teamA)), 401, "unauthenticated")
		wantAccepted(t, a, request(t, sessionOf(t, "k2", key2), inTeam(teamA)))

		// The keys move: the configuration is read again.
		n.set(keysURL, 404, "")
		n.set(discovery, 200, `{"issuer":"`+idp+`","jwks_uri":"https://new.example.com/"}`)
		n.set("https://new.example.com/", 200, jwks("k1", key1))
		time.Sleep(12 * time.Minute)
		wantAccepted(t, a, request(t, sessionOf(t, "k1", key1), inTeam(teamA)))
	})
}

func TestBadAnswersOfTheIssuer(t *testing.T) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	good := jwks("k", key)
	many := `{"keys":[` + strings.Repeat(good[9:len(good)-2]+",", 64) + good[9:]
	const canary = "canary-in-an-error-page"
	for name, prepare := range map[string]func(*network){
		"huge key set":     func(n *network) { n.set(keysURL, 200, good[:len(good)-1]+`,"x":"`+strings.Repeat("x", 1<<20)+`"}`) },
		"endless key set":  func(n *network) { n.pages[keysURL] = func() (int, io.Reader) { return 200, endless{} } },
		"too many keys":    func(n *network) { n.set(keysURL, 200, many) },
		"no keys":          func(n *network) { n.set(keysURL, 200, `{"keys":[]}`) },
		"private key only": func(n *network) { n.set(keysURL, 200, privateJWKS(key)) },
		"not JSON":         func(n *network) { n.set(keysURL, 200, "<html>"+canary) },
		"error page":       func(n *network) { n.set(keysURL, 500, canary) },
		"another issuer":   func(n *network) { n.set(discovery, 200, `{"issuer":"`+idp+`/","jwks_uri":"`+keysURL+`"}`) },
		"no jwks_uri":      func(n *network) { n.set(discovery, 200, `{"issuer":"`+idp+`"}`) },
		"keys without TLS": func(n *network) {
			n.set(discovery, 200, `{"issuer":"`+idp+`","jwks_uri":"http://keys.example.com/v1"}`)
			n.set("http://keys.example.com/v1", 200, good)
		},
		"redirect without TLS": func(n *network) {
			n.set(keysURL, 302, "http://keys.example.com/v1")
			n.set("http://keys.example.com/v1", 200, good)
		},
		"redirect loop": func(n *network) { n.set(keysURL, 302, keysURL) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork()
			n.set(keysURL, 200, good)
			prepare(n)
			a := newAuth(t, creds.Config{OIDC: n.config()})
			p := wantRefused(t, a, request(t, sessionOf(t, "k", key), inTeam(teamA)), 503, "issuer_unavailable")
			if p.Cause == nil || strings.Contains(p.Cause.Error(), canary) {
				t.Errorf("the cause is %v, want one that does not quote the issuer's page", p.Cause)
			}
			// When it is mended, so is the login.
			n.set(discovery, 200, `{"issuer":"`+idp+`","jwks_uri":"`+keysURL+`"}`)
			n.set(keysURL, 200, good)
			wantAccepted(t, a, request(t, sessionOf(t, "k", key), inTeam(teamA)))
		})
	}
	t.Run("keys are kept when the new set is bad", func(t *testing.T) {
		n := newNetwork()
		n.set(keysURL, 200, good)
		a := newAuth(t, creds.Config{OIDC: n.config()})
		wantAccepted(t, a, request(t, sessionOf(t, "k", key), inTeam(teamA)))
		n.set(keysURL, 200, `{"keys":[]}`)
		_, _ = a.Authenticate(request(t, sessionOf(t, "other", key), inTeam(teamA)))
		wantAccepted(t, a, request(t, sessionOf(t, "k", key), inTeam(teamA)))
	})
	t.Run("redirect with TLS", func(t *testing.T) {
		n := newNetwork()
		n.set(keysURL, 302, "https://cdn.example.com/keys")
		n.set("https://cdn.example.com/keys", 200, good)
		wantAccepted(t, newAuth(t, creds.Config{OIDC: n.config()}), request(t, sessionOf(t, "k", key), inTeam(teamA)))
	})
	t.Run("keys that cannot be used are left out", func(t *testing.T) {
		n := newNetwork()
		n.set(keysURL, 200, `{"keys":[{"kty":"oct","k":"c2VjcmV0"},{"kty":"OKP","crv":"Ed448","x":"AA"},{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"},{"kty":"RSA","n":"AQAB","e":"AQAB"},{},7,`+good[9:])
		wantAccepted(t, newAuth(t, creds.Config{OIDC: n.config()}), request(t, sessionOf(t, "k", key), inTeam(teamA)))
	})
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return copy(b, strings.Repeat(" ", len(b))), nil }

func privateJWKS(key *ecdsa.PrivateKey) string {
	b, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key, KeyID: "k"}}})
	return string(b)
}

// silence accepts connections and never answers.
type silence struct{ waiting atomic.Int32 }

func (s *silence) RoundTrip(r *http.Request) (*http.Response, error) {
	s.waiting.Add(1)
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestAnIssuerThatHangsHoldsNobodyForLong(t *testing.T) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	synctest.Test(t, func(t *testing.T) {
		hanging := &silence{}
		a := newAuth(t, creds.Config{OIDC: creds.OIDC{Issuer: idp, Audience: "adit", HTTPClient: &http.Client{Transport: hanging}}})
		began := time.Now()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				wantRefused(t, a, request(t, sessionOf(t, "k", key), inTeam(teamA)), 503, "issuer_unavailable")
			})
		}
		wg.Wait()
		if d := time.Since(began); d > 15*time.Second {
			t.Errorf("callers waited %v for an issuer that hangs", d)
		}
		if n := hanging.waiting.Load(); n > 3 {
			t.Errorf("%d requests were made, want the callers to share them", n)
		}
	})
}

func TestKeyFile(t *testing.T) {
	rsaKey, ecKey := must(rsa.GenerateKey(rand.Reader, 2048)), must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	small := must(rsa.GenerateKey(rand.Reader, 1024))
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	pkix := func(key any) string { return block("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(key))) }
	template := &x509.Certificate{SerialNumber: must(rand.Int(rand.Reader, rsaKey.N))}
	cert := block("CERTIFICATE", must(x509.CreateCertificate(rand.Reader, template, template, ecKey.Public(), ecKey)))
	private := block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ecKey)))

	for name, c := range map[string]struct {
		content string
		keys    []any // whose signatures are accepted; none: New refuses
	}{
		"one key":               {pkix(rsaKey.Public()), []any{rsaKey}},
		"PKCS 1":                {block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)), []any{rsaKey}},
		"certificate":           {cert, []any{ecKey}},
		"several, with remarks": {"the old one\n" + pkix(rsaKey.Public()) + "\nthe new one\n" + pkix(ecKey.Public()), []any{rsaKey, ecKey}},
		"key set":               {"\n " + jwks("k", ecKey), []any{ecKey}},
		"private key":           {private, nil},
		"public and private":    {pkix(rsaKey.Public()) + private, nil},
		"RSA of 1024 bits":      {pkix(small.Public()), nil},
		"empty":                 {"", nil},
		"nonsense":              {"hello", nil},
		"broken PEM":            {block("PUBLIC KEY", []byte("hello")), nil},
		"request":               {block("CERTIFICATE REQUEST", []byte("hello")), nil},
		"empty key set":         {`{"keys":[]}`, nil},
		"huge":                  {strings.Repeat("#", 2<<20), nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := creds.Config{JWT: creds.JWT{PublicKeyFile: path, TeamsClaim: "teams"}, Store: newMemory(), Logger: slog.New(slog.DiscardHandler)}
			a, err := creds.New(cfg)
			if len(c.keys) == 0 {
				if err == nil || !strings.Contains(err.Error(), "auth.jwt.public_key_file") || !strings.Contains(err.Error(), path) {
					t.Fatalf("error is %v, want one that names the key and the file", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, key := range c.keys {
				alg := jose.ES256
				if key == any(rsaKey) {
					alg = jose.RS256
				}
				wantAccepted(t, a, request(t, inTeam(teamA), bearer(sign(t, alg, key, "", goodClaims()))))
				if !strings.Contains(name, "set") { // PEM keys have no name, so any name will do
					wantAccepted(t, a, request(t, inTeam(teamA), bearer(sign(t, alg, key, "named", goodClaims()))))
				}
			}
		})
	}
	t.Run("issuer and audience are checked when configured", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "keys")
		if err := os.WriteFile(path, []byte(pkix(ecKey.Public())), 0o600); err != nil {
			t.Fatal(err)
		}
		a := newAuth(t, creds.Config{JWT: creds.JWT{PublicKeyFile: path, Issuer: idp, Audience: "adit"}})
		wantAccepted(t, a, request(t, inTeam(teamA), sessionOf(t, "", ecKey)))
		wantRefused(t, a, request(t, inTeam(teamA), bearer(sign(t, jose.ES256, ecKey, "", goodClaims()))), 401, "unauthenticated")
	})
	t.Run("beside an issuer", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "keys")
		if err := os.WriteFile(path, []byte(pkix(ecKey.Public())), 0o600); err != nil {
			t.Fatal(err)
		}
		i := issuer.Start(t)
		a := newAuth(t, creds.Config{OIDC: creds.OIDC{Issuer: i.URL(), Audience: issuer.Audience}, JWT: creds.JWT{PublicKeyFile: path, Issuer: "scripts"}})
		wantAccepted(t, a, request(t, inTeam(teamA), bearer(i.Token(member(nil)))))
		c := goodClaims()
		c["iss"] = "scripts"
		wantAccepted(t, a, request(t, inTeam(teamA), bearer(sign(t, jose.ES256, ecKey, "", c))))
		// One's key does not speak for the other.
		c["iss"], c["aud"] = i.URL(), issuer.Audience
		wantRefused(t, a, request(t, inTeam(teamA), bearer(sign(t, jose.ES256, ecKey, "", c))), 401, "unauthenticated")
		wantRefused(t, a, request(t, inTeam(teamA), bearer(i.Token(member(issuer.Claims{"iss": "scripts"})))), 401, "unauthenticated")
	})
}

func TestTheKeyFileIsReloaded(t *testing.T) {
	key1, key2 := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "keys.json")
		replace := func(content string) { // as careful tools do
			temp := filepath.Join(dir, "temp")
			if err := os.WriteFile(temp, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(temp, path); err != nil {
				t.Fatal(err)
			}
		}
		replace(jwks("k", key1))
		var log testkit.Buffer
		a := newAuth(t, creds.Config{JWT: creds.JWT{PublicKeyFile: path}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		stop := start(t, a)
		defer stop()
		by := func(key *ecdsa.PrivateKey) *http.Request {
			return request(t, inTeam(teamA), bearer(sign(t, jose.ES256, key, "k", goodClaims())))
		}
		wantAccepted(t, a, by(key1))

		replace(jwks("k", key2))
		time.Sleep(6 * time.Second)
		wantRefused(t, a, by(key1), 401, "unauthenticated")
		wantAccepted(t, a, by(key2))

		replace("half a fi")
		time.Sleep(time.Minute)
		wantAccepted(t, a, by(key2))
		if n := strings.Count(log.String(), "refused"); n != 1 {
			t.Errorf("a bad file is reported %d times, want once:\n%s", n, log.String())
		}
		if err := a.Reload(); err == nil {
			t.Error("reloading a bad file is no error")
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		wantAccepted(t, a, by(key2))

		replace(jwks("k", key1))
		if err := a.Reload(); err != nil {
			t.Error(err)
		}
		wantAccepted(t, a, by(key1))
	})
}

func TestConfigurationIsChecked(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  creds.Config
		want []string
	}{
		"no audience":   {creds.Config{OIDC: creds.OIDC{Issuer: idp}}, []string{"auth.oidc.audience", "auth.oidc.teams_claim"}},
		"not a URL":     {creds.Config{OIDC: creds.OIDC{Issuer: "id.example.com", Audience: "a"}}, []string{"auth.oidc.issuer"}},
		"another kind":  {creds.Config{OIDC: creds.OIDC{Issuer: "ftp://id.example.com", Audience: "a"}}, []string{"auth.oidc.issuer"}},
		"with a secret": {creds.Config{OIDC: creds.OIDC{Issuer: "https://u:p@id.example.com", Audience: "a"}}, []string{"auth.oidc.issuer"}},
		"no such file":  {creds.Config{JWT: creds.JWT{PublicKeyFile: "/no/such/file"}}, []string{"auth.jwt.public_key_file", "/no/such/file"}},
		"all at once":   {creds.Config{OIDC: creds.OIDC{Issuer: "x"}, JWT: creds.JWT{PublicKeyFile: "/no"}}, []string{"auth.oidc.issuer", "auth.oidc.audience", "auth.jwt.public_key_file"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.Store, c.cfg.Logger = newMemory(), slog.New(slog.DiscardHandler)
			_, err := creds.New(c.cfg)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error is %v, want it to name %s", err, want)
				}
			}
		})
	}
}
