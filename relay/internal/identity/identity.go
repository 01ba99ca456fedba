// Package identity owns what an app is told of who uses it: the fields of a request that
// name the viewer, the signed token among them, and the public key that apps verify it
// with. It finds out nobody's identity, decides nothing, and of a viewer who is not known
// it says nothing.
package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/metric"
)

// The fields.
const (
	HeaderUser   = "X-Adit-User"
	HeaderName   = "X-Adit-Name"
	HeaderEmail  = "X-Adit-Email"
	HeaderGroups = "X-Adit-Groups"
	HeaderToken  = "X-Adit-Identity"
)

// KeysPath is where the public key is, on the relay's own hosts.
const KeysPath = "/.well-known/jwks.json"

const (
	// lives is how long a token is good.
	lives = 5 * time.Minute
	// spare is what is left of a token at the least when an app gets it: its clock may
	// be a little ahead, and it may have more to do than look at tokens.
	spare = 2 * time.Minute
	// keysLive is how long the public key may be kept. It changes with the cluster key
	// only.
	keysLive = 5 * time.Minute
	// maxKept bounds the viewers whose fields are kept.
	maxKept = 4096
	// maxGroups bounds what is said of groups, in bytes: apps take a few KiB of header,
	// and some issuers name every group of a company.
	maxGroups = 2 << 10
)

// Config is what an Identity needs; all of it but Registerer.
type Config struct {
	Key        ident.ClusterKey // what the signing key is made of
	Issuer     string           // the relay's public URL, the same on all relays of a pool
	Now        func() time.Time
	Registerer prometheus.Registerer
}

// Identity tells apps who uses them. It is safe for concurrent use.
type Identity struct {
	cfg    Config
	signer jose.Signer
	keys   []byte // the JWKS
	signed prometheus.Counter

	mu   sync.RWMutex
	kept map[viewerOf]*kept
}

// viewerOf is a person at a tunnel.
type viewerOf struct {
	session ident.SessionID
	user    ident.UserID
}

// kept is what is said of a viewer, until then. It is not changed.
type kept struct {
	name, email string
	groups      []string
	fields      string
	until       time.Time
}

// New returns an Identity.
func New(cfg Config) (*Identity, error) {
	key, err := signingKey(cfg.Key)
	if err != nil {
		return nil, err
	}
	public := jose.JSONWebKey{Key: &key.PublicKey, Algorithm: string(jose.ES256), Use: "sig"}
	thumb, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("name the key that signs identities: %w", err)
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(thumb)
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}})
	if err != nil {
		return nil, fmt.Errorf("write the key that signs identities: %w", err)
	}
	options := (&jose.SignerOptions{}).WithType("JWT")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: public.KeyID}}, options)
	if err != nil {
		return nil, fmt.Errorf("use the key that signs identities: %w", err)
	}
	return &Identity{
		cfg: cfg, signer: signer, keys: keys, kept: map[viewerOf]*kept{},
		signed: metric.In(cfg.Registerer).Counter("adit_relay_identity_signed_total", "Tokens made that tell an app who uses it."),
	}, nil
}

// signingKey makes the same key of the cluster key on every relay: a number below the
// order of P-256 of more bits than that has (FIPS 186-5, A.2.1), so that none is likelier
// than another.
func signingKey(cluster ident.ClusterKey) (*ecdsa.PrivateKey, error) {
	wide, err := hkdf.Key(sha256.New, cluster[:], nil, "adit identity signing key v1", 48)
	if err != nil {
		return nil, fmt.Errorf("make the key that signs identities: %w", err)
	}
	one := big.NewInt(1)
	d := new(big.Int).SetBytes(wide)
	d.Mod(d, new(big.Int).Sub(elliptic.P256().Params().N, one))
	d.Add(d, one)
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d.FillBytes(make([]byte, 32)))
	if err != nil {
		return nil, fmt.Errorf("make the key that signs identities: %w", err)
	}
	return key, nil
}

// Fields returns the fields that name a viewer, as lines of the header of a request to a
// tunnel's app; none for a viewer of whom it is not known which person they are.
func (i *Identity) Fields(v *access.Viewer, session ident.SessionID) (string, error) {
	if v.User == "" {
		return "", nil
	}
	k, err := i.of(v, session)
	if err != nil {
		return "", err
	}
	return k.fields, nil
}

// of returns what is said of a viewer.
func (i *Identity) of(v *access.Viewer, session ident.SessionID) (*kept, error) {
	key := viewerOf{session, v.User}
	now := i.cfg.Now()
	i.mu.RLock()
	k := i.kept[key]
	i.mu.RUnlock()
	if k != nil && now.Before(k.until) && k.name == v.Name && k.email == v.Email && slices.Equal(k.groups, v.Groups) {
		return k, nil
	}
	k, err := i.sign(v, session, now)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.kept) >= maxKept {
		i.kept = map[viewerOf]*kept{} // they are made again in no time
	}
	i.kept[key] = k
	return k, nil
}

// claims are what a token says besides what all tokens do.
type claims struct {
	jwt.Claims
	Name   string   `json:"name,omitempty"`
	Email  string   `json:"email,omitempty"`
	Groups []string `json:"groups,omitempty"`
}

func (i *Identity) sign(v *access.Viewer, session ident.SessionID, now time.Time) (*kept, error) {
	said, groups := bounded(v.Groups)
	token, err := jwt.Signed(i.signer).Claims(claims{
		Claims: jwt.Claims{
			Issuer: i.cfg.Issuer, Subject: string(v.User), Audience: jwt.Audience{string(session)},
			IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(lives)),
		},
		Name: v.Name, Email: v.Email, Groups: said,
	}).Serialize()
	if err != nil {
		return nil, fmt.Errorf("sign who uses a tunnel: %w", err)
	}
	i.signed.Inc()
	b := field(nil, HeaderUser, Safe(string(v.User)))
	if v.Name != "" {
		b = field(b, HeaderName, Safe(v.Name))
	}
	if v.Email != "" {
		b = field(b, HeaderEmail, Safe(v.Email))
	}
	if groups != "" {
		b = field(b, HeaderGroups, groups)
	}
	b = field(b, HeaderToken, token)
	return &kept{name: v.Name, email: v.Email, groups: v.Groups, fields: string(b), until: now.Add(lives - spare)}, nil
}

// bounded are the groups that are said, as many as there is room for, and as a list in a
// field: separated by commas, a comma within one written as %2C.
func bounded(groups []string) (said []string, list string) {
	for n, g := range groups {
		g = strings.ReplaceAll(Safe(g), ",", "%2C")
		if len(list)+1+len(g) > maxGroups {
			return groups[:n], list
		}
		if n > 0 {
			list += ","
		}
		list += g
	}
	return groups, list
}

func field(b []byte, name, value string) []byte {
	return append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
}

// Safe is a text as the value of a field: what is no printable ASCII, and the percent
// sign, is percent-encoded as in a URL, by the bytes of UTF-8, so that decoding as for a
// URL's path gives the text back. Most names and addresses stay as they are.
func Safe(s string) string {
	plain := func(i int) bool {
		c := s[i]
		return c > ' ' && c < 0x7f && c != '%' || c == ' ' && i > 0 && i < len(s)-1 // at the ends one would be lost
	}
	for i := range len(s) {
		if plain(i) {
			continue
		}
		const hex = "0123456789ABCDEF"
		b := append(make([]byte, 0, len(s)+16), s[:i]...)
		for ; i < len(s); i++ {
			if plain(i) {
				b = append(b, s[i])
			} else {
				b = append(b, '%', hex[s[i]>>4], hex[s[i]&15])
			}
		}
		return string(b)
	}
	return s
}

// Routes are the handlers by pattern: the public key, for anybody.
func (i *Identity) Routes() map[string]http.Handler {
	return map[string]http.Handler{"GET " + KeysPath: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "application/jwk-set+json")
		h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(keysLive/time.Second)))
		h.Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(i.keys) // the peer may be gone
	})}
}
