package access

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/adit-tunnel/adit/shared/ident"
)

// sealer writes what a browser carries, so that any relay of the pool can read it, and
// nobody else can read or change it.
type sealer struct{ aead cipher.AEAD }

// Purposes of what is sealed. One is never taken for another.
const (
	purposePass = "pass"
	purposeAsk  = "ask"
	purposeCode = "code"
)

// maxSealed bounds what is tried to be opened: a cookie or an address holds no more.
const maxSealed = 4 << 10

func newSealer(key ident.ClusterKey) sealer {
	secret, err := hkdf.Key(sha256.New, key[:], nil, "adit access passes v1", 32)
	if err != nil {
		panic(err) // only for lengths that are not ours
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		panic(err) // only for other key lengths
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // only for other ciphers
	}
	return sealer{aead}
}

func (s sealer) seal(purpose string, v any) string {
	plain, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of texts, numbers and times
	}
	return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nil, nil, plain, []byte(purpose)))
}

// open reports false for whatever was not sealed here for this purpose.
func (s sealer) open(purpose, text string, into any) bool {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return false
	}
	plain, err := s.aead.Open(nil, nil, b, []byte(purpose))
	return err == nil && json.Unmarshal(plain, into) == nil
}

func cutSecret(s ident.Secret, prefix string) (string, bool) {
	return strings.CutPrefix(s.Reveal(), prefix)
}

// random is a fresh id of 128 bits.
func random() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // crypto/rand.Read never fails since Go 1.24
	return base64.RawURLEncoding.EncodeToString(b)
}
