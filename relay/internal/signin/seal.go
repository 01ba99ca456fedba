package signin

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/adit-tunnel/adit/shared/ident"
)

// sealer writes what a browser keeps between two requests, so that any relay of the pool
// can go on, and nobody else can read or change it.
type sealer struct{ aead cipher.AEAD }

// Purposes of what is sealed. One is never taken for another.
const (
	sealLogin    = "login"
	sealPasskey  = "passkey"
	sealRegister = "passkey-register"
)

func newSealer(key ident.ClusterKey) sealer {
	secret, err := hkdf.Key(sha256.New, key[:], nil, "adit sign-in tickets v1", 32)
	if err != nil {
		panic(err) // only for lengths that are not ours
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		panic(err) // only for other key lengths
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for other ciphers
	}
	return sealer{aead}
}

func (s sealer) seal(purpose string, v any) (string, error) {
	plain, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("seal a ticket: %w", err)
	}
	nonce := make([]byte, s.aead.NonceSize(), s.aead.NonceSize()+len(plain)+s.aead.Overhead())
	_, _ = rand.Read(nonce) // crypto/rand.Read never fails since Go 1.24
	return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nonce, nonce, plain, []byte(purpose))), nil
}

// open reports false for whatever was not sealed here for this purpose.
func (s sealer) open(purpose, text string, into any) bool {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if n := s.aead.NonceSize(); err == nil && len(b) >= n {
		var plain []byte
		if plain, err = s.aead.Open(nil, b[:n], b[n:], []byte(purpose)); err == nil {
			return json.Unmarshal(plain, into) == nil
		}
	}
	return false
}
