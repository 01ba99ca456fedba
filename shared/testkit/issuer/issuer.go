// Package issuer owns a small, real OpenID Connect issuer for tests: discovery, a
// key set that rotates, codes that are exchanged once, and tokens, the right ones and
// every wrong one that an attacker would try. It signs nobody in, and is for tests only.
package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Audience is the audience of a token that names no other.
const Audience = "adit"

// Issuer is a running issuer. It is safe for concurrent use.
type Issuer struct {
	tb     testing.TB
	server *httptest.Server
	down   atomic.Bool
	asked  atomic.Int64
	codes  atomic.Int64

	mu      sync.Mutex
	keys    keyPair
	served  []jwk // the current keys, and older ones that are still accepted
	rotated int
	grants  map[string]Grant  // by code
	infos   map[string]Claims // by access token
}

// keyPair is the keys that sign now.
type keyPair struct {
	rsa   *rsa.PrivateKey
	ecdsa *ecdsa.PrivateKey
	kid   string // "-rs" and "-es" are appended
}

// jwk is a public key as a key set shows it (RFC 7517).
type jwk struct {
	Kty string `json:"kty"`
	Use string `json:"use"`
	Alg string `json:"alg"`
	Kid string `json:"kid"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
	Crv string `json:"crv,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
}

// Start runs an issuer until the test ends.
func Start(tb testing.TB) *Issuer {
	tb.Helper()
	i := &Issuer{tb: tb}
	i.Rotate(false)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", i.discovery)
	mux.HandleFunc("GET /keys", i.keySet)
	mux.HandleFunc("POST /token", i.token)
	mux.HandleFunc("GET /userinfo", i.userInfo)
	i.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i.down.Load() {
			http.Error(w, "the issuer is down", http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	tb.Cleanup(i.server.Close)
	return i
}

// URL is the issuer's name and address.
func (i *Issuer) URL() string { return i.server.URL }

// SetDown makes every request fail with 503, or heals that.
func (i *Issuer) SetDown(down bool) { i.down.Store(down) }

// KeySetRequests counts how often the key set was asked for.
func (i *Issuer) KeySetRequests() int { return int(i.asked.Load()) }

// Rotate makes new keys, which sign from now on. With keep the old ones stay in
// the key set, as a careful issuer does; without, their tokens are void.
func (i *Issuer) Rotate(keep bool) {
	i.tb.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		i.tb.Fatalf("make an RSA key: %v", err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.tb.Fatalf("make an EC key: %v", err)
	}
	point, err := e.PublicKey.Bytes() // 4, x, y
	if err != nil {
		i.tb.Fatalf("encode an EC key: %v", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rotated++
	i.keys = keyPair{rsa: r, ecdsa: e, kid: fmt.Sprintf("key-%d", i.rotated)}
	if !keep {
		i.served = nil
	}
	exponent := []byte{byte(r.E >> 16), byte(r.E >> 8), byte(r.E)}
	i.served = append(i.served,
		jwk{Kty: "RSA", Use: "sig", Alg: "RS256", Kid: i.keys.kid + "-rs", N: encode(r.N.Bytes()), E: encode(exponent)},
		jwk{Kty: "EC", Use: "sig", Alg: "ES256", Kid: i.keys.kid + "-es", Crv: "P-256", X: encode(point[1:33]), Y: encode(point[33:])})
}

// PublicKeyPEM is the current RSA key as a PKIX PEM block, as a static key file
// holds it.
func (i *Issuer) PublicKeyPEM() []byte { return i.publicPEM(&i.current().rsa.PublicKey) }

// PublicKeyPEMES256 is the current EC key as a PKIX PEM block.
func (i *Issuer) PublicKeyPEMES256() []byte { return i.publicPEM(&i.current().ecdsa.PublicKey) }

// Wrong is a way in which a token is made wrongly.
type Wrong string

// What an attacker tries. What is wrong with the claims is up to the claims.
const (
	AlgNone       Wrong = "alg none"            // no signature at all, alg "none"
	AlgNoneSigned Wrong = "alg none, signed"    // alg "none" above a real signature
	HMACWithKey   Wrong = "HS256 public key"    // HMAC whose secret is the public key's PEM text
	HMACWithDER   Wrong = "HS256 public DER"    // the same with the key's DER bytes
	HMACEmpty     Wrong = "HS256 empty secret"  // HMAC with no secret
	ForeignKey    Wrong = "foreign key"         // signed by a stranger under our key id
	UnknownKey    Wrong = "unknown key id"      // signed by a stranger under an unknown key id
	NoKeyID       Wrong = "no key id"           // signed by a stranger, without a key id
	Tampered      Wrong = "tampered claims"     // claims changed after signing
	CutSignature  Wrong = "cut signature"       // the signature's last bytes are missing
	EmbeddedKey   Wrong = "embedded key"        // a stranger's key in the token's own header (jwk)
	AlgMismatch   Wrong = "algorithm confusion" // RS256 signature, ES256 key's id
	Critical      Wrong = "critical extension"  // a crit header nobody knows (RFC 7515 4.1.11)
)

// Wrongs lists every way, for table tests.
func Wrongs() []Wrong {
	return []Wrong{
		AlgNone, AlgNoneSigned, HMACWithKey, HMACWithDER, HMACEmpty, ForeignKey, UnknownKey, NoKeyID,
		Tampered, CutSignature, EmbeddedKey, AlgMismatch, Critical,
	}
}

// Claims of a token, laid over the defaults: issuer, audience "adit", subject
// "alice", issued now, valid for an hour. A nil value removes a default.
type Claims map[string]any

// Token makes a good RS256 token.
func (i *Issuer) Token(claims Claims) string {
	k := i.current()
	return i.signRS256(k.rsa, map[string]any{"alg": "RS256", "typ": "JWT", "kid": k.kid + "-rs"}, i.fill(claims))
}

// TokenES256 makes a good ES256 token.
func (i *Issuer) TokenES256(claims Claims) string {
	k := i.current()
	input := i.signingInput(map[string]any{"alg": "ES256", "typ": "JWT", "kid": k.kid + "-es"}, i.fill(claims))
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, k.ecdsa, sum[:])
	if err != nil {
		i.tb.Fatalf("sign a token: %v", err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return input + "." + encode(signature)
}

// TokenWrong makes a token that must be refused, whatever its claims.
func (i *Issuer) TokenWrong(how Wrong, claims Claims) string {
	k := i.current()
	full := i.fill(claims)
	header := map[string]any{"alg": "RS256", "typ": "JWT", "kid": k.kid + "-rs"}
	switch how {
	case AlgNone:
		header["alg"] = "none"
		return i.signingInput(header, full) + "."
	case AlgNoneSigned:
		header["alg"] = "none"
		return i.signRS256(k.rsa, header, full)
	case HMACWithKey:
		return i.signHS256(i.PublicKeyPEM(), header, full)
	case HMACWithDER:
		block, _ := pem.Decode(i.PublicKeyPEM())
		return i.signHS256(block.Bytes, header, full)
	case HMACEmpty:
		return i.signHS256(nil, header, full)
	case ForeignKey:
		return i.signRS256(i.stranger(), header, full)
	case UnknownKey:
		header["kid"] = "nobody-knows"
		return i.signRS256(i.stranger(), header, full)
	case NoKeyID:
		delete(header, "kid")
		return i.signRS256(i.stranger(), header, full)
	case Tampered:
		good := i.signRS256(k.rsa, header, full)
		full["sub"] = "mallory"
		return i.signingInput(header, full) + good[lastDot(good):]
	case CutSignature:
		good := i.signRS256(k.rsa, header, full)
		return good[:len(good)-8]
	case EmbeddedKey:
		own := i.stranger()
		header["jwk"] = jwk{Kty: "RSA", Alg: "RS256", N: encode(own.N.Bytes()), E: "AQAB"}
		delete(header, "kid")
		return i.signRS256(own, header, full)
	case AlgMismatch:
		header["alg"], header["kid"] = "ES256", k.kid+"-es"
		return i.signRS256(k.rsa, header, full)
	case Critical:
		header["crit"], header["https://example.com/strict"] = []string{"https://example.com/strict"}, true
		return i.signRS256(k.rsa, header, full)
	}
	i.tb.Fatalf("no such wrong token: %s", how)
	return ""
}

func (i *Issuer) discovery(w http.ResponseWriter, _ *http.Request) {
	i.write(w, map[string]any{
		"issuer": i.URL(), "jwks_uri": i.URL() + "/keys",
		"authorization_endpoint": i.URL() + "/authorize", "token_endpoint": i.URL() + "/token", "userinfo_endpoint": i.URL() + "/userinfo",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256", "ES256"},
	})
}

func (i *Issuer) keySet(w http.ResponseWriter, _ *http.Request) {
	i.asked.Add(1)
	i.mu.Lock()
	keys := i.served
	i.mu.Unlock()
	i.write(w, map[string]any{"keys": keys})
}

func (i *Issuer) write(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

func (i *Issuer) current() keyPair {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys
}

func (i *Issuer) fill(claims Claims) map[string]any {
	now := time.Now()
	full := map[string]any{
		"iss": i.URL(), "aud": Audience, "sub": "alice",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	maps.Copy(full, claims)
	maps.DeleteFunc(full, func(_ string, v any) bool { return v == nil })
	return full
}

func (i *Issuer) signingInput(header, claims map[string]any) string {
	h, err := json.Marshal(header)
	if err != nil {
		i.tb.Fatalf("encode a token's header: %v", err)
	}
	c, err := json.Marshal(claims)
	if err != nil {
		i.tb.Fatalf("encode a token's claims: %v", err)
	}
	return encode(h) + "." + encode(c)
}

func (i *Issuer) signRS256(key *rsa.PrivateKey, header, claims map[string]any) string {
	input := i.signingInput(header, claims)
	sum := sha256.Sum256([]byte(input))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		i.tb.Fatalf("sign a token: %v", err)
	}
	return input + "." + encode(signature)
}

func (i *Issuer) signHS256(secret []byte, header, claims map[string]any) string {
	header["alg"] = "HS256"
	input := i.signingInput(header, claims)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(input))
	return input + "." + encode(mac.Sum(nil))
}

func (i *Issuer) stranger() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		i.tb.Fatalf("make a stranger's key: %v", err)
	}
	return key
}

func (i *Issuer) publicPEM(key any) []byte {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		i.tb.Fatalf("encode a public key: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func lastDot(token string) int {
	for i := len(token) - 1; i >= 0; i-- {
		if token[i] == '.' {
			return i
		}
	}
	return len(token)
}
