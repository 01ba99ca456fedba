package creds

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// algorithms is the allow-list of signatures (RFC 8725, section 3.1): none and
// the HMACs are not on it, so a public key can never be taken for a shared one.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512,
	jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384,
	jose.EdDSA,
}

const (
	maxKeys      = 64      // keys of one set; a token without kid is tried with each
	maxKeysBytes = 1 << 20 // of a key set or discovery document
	minRSABits   = 2048    // RFC 7518, section 3.3
)

// keySet is an immutable set of public keys that verify signatures.
type keySet []jose.JSONWebKey

// candidates are the keys that may have made a signature: of the right type for
// the algorithm, and named by kid where both have one.
func (s keySet) candidates(kid string, alg jose.SignatureAlgorithm) []jose.JSONWebKey {
	var out []jose.JSONWebKey
	for _, k := range s {
		if (kid == "" || k.KeyID == "" || k.KeyID == kid) && fits(k, alg) {
			out = append(out, k)
		}
	}
	return out
}

// fits says whether a key makes signatures of an algorithm, so that neither the
// token nor a sloppy key set chooses an odd pair.
func fits(k jose.JSONWebKey, alg jose.SignatureAlgorithm) bool {
	if k.Algorithm != "" && k.Algorithm != string(alg) {
		return false
	}
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(string(alg), "RS") || strings.HasPrefix(string(alg), "PS")
	case *ecdsa.PublicKey:
		return alg == jose.ES256 && key.Curve == elliptic.P256() || alg == jose.ES384 && key.Curve == elliptic.P384()
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	}
	return false
}

// parseJWKS reads a JWK Set (RFC 7517, section 5). Keys it cannot use are left
// out, as the RFC asks: other purposes, other types, shared secrets, private keys.
func parseJWKS(b []byte) (keySet, error) {
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, errors.New("key set is not a JSON object with keys")
	}
	if len(raw.Keys) > maxKeys {
		return nil, fmt.Errorf("key set has %d keys, more than %d", len(raw.Keys), maxKeys)
	}
	var set keySet
	for _, one := range raw.Keys {
		var k jose.JSONWebKey
		if json.Unmarshal(one, &k) != nil || !k.Valid() || !k.IsPublic() || k.Use != "" && k.Use != "sig" {
			continue
		}
		if usable(k.Key) {
			set = append(set, jose.JSONWebKey{Key: k.Key, KeyID: k.KeyID, Algorithm: k.Algorithm})
		}
	}
	if len(set) == 0 {
		return nil, errors.New("key set has no usable public signing key")
	}
	return set, nil
}

func usable(key any) bool {
	switch key := key.(type) {
	case *rsa.PublicKey:
		return key.N.BitLen() >= minRSABits && key.N.BitLen() <= 16384
	case *ecdsa.PublicKey:
		return key.Curve == elliptic.P256() || key.Curve == elliptic.P384()
	case ed25519.PublicKey:
		return len(key) == ed25519.PublicKeySize
	}
	return false
}

// parseKeyFile reads public keys as an operator keeps them: one or several PEM
// blocks, or a JWK Set.
func parseKeyFile(b []byte) (keySet, error) {
	if trimmed := bytes.TrimSpace(b); len(trimmed) > 0 && trimmed[0] == '{' {
		return parseJWKS(trimmed)
	}
	var set keySet
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		key, err := parseBlock(block)
		if err != nil {
			return nil, err
		}
		if !usable(key) {
			return nil, fmt.Errorf("PEM block %q: not an RSA key of %d bits or more, P-256, P-384 or Ed25519", block.Type, minRSABits)
		}
		if set = append(set, jose.JSONWebKey{Key: key}); len(set) > maxKeys {
			return nil, fmt.Errorf("more than %d keys", maxKeys)
		}
	}
	if len(set) == 0 {
		return nil, errors.New("neither PEM public keys nor a JWK Set")
	}
	return set, nil
}

func parseBlock(block *pem.Block) (any, error) {
	var key any
	var err error
	switch {
	case block.Type == "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case block.Type == "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case block.Type == "CERTIFICATE":
		var cert *x509.Certificate
		if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
			key = cert.PublicKey
		}
	case strings.HasSuffix(block.Type, "PRIVATE KEY"):
		return nil, errors.New("a private key: the relay needs the public one only, and should never see the other")
	default:
		return nil, errors.New("a PEM block that is neither PUBLIC KEY, RSA PUBLIC KEY nor CERTIFICATE")
	}
	if err != nil {
		return nil, fmt.Errorf("PEM block %q: %w", block.Type, err)
	}
	return key, nil
}
