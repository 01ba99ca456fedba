package ident

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"log/slog"
)

const redacted = "[redacted]"

// Secret is a text that must never be printed: formatting and logging show a
// mark instead, JSON too. Reveal is the one way to its value.
type Secret string

// LogValue keeps the secret out of logs.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// String keeps the secret out of formatted text.
func (Secret) String() string { return redacted }

// GoString keeps the secret out of %#v.
func (Secret) GoString() string { return redacted }

// MarshalText keeps the secret out of JSON, YAML and the like. What must send a
// secret on purpose converts it with Reveal.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText reads a secret from configuration.
func (s *Secret) UnmarshalText(b []byte) error { *s = Secret(b); return nil }

// Reveal returns the value itself.
func (s Secret) Reveal() string { return string(s) }

// Hash returns the SHA-256 of the secret in hexadecimal, the only form in which
// it is stored. Secrets here have 160 random bits or more, so a plain hash is enough.
func (s Secret) Hash() string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// Matches compares the secret with a stored hash in constant time.
func (s Secret) Matches(hash string) bool {
	return subtle.ConstantTimeCompare([]byte(s.Hash()), []byte(hash)) == 1
}

// Prefixes of the secrets that Adit makes; the prefix says what a secret is.
const (
	PrefixIntegration = "sk-"  // integration credential
	PrefixDevice      = "dk-"  // device credential
	PrefixAgent       = "ak-"  // agent credential
	PrefixAdmin       = "adm-" // a tunnel's admin token
	PrefixLease       = "lt-"  // a task lease's token
	PrefixEnroll      = "en-"  // a single-use enrollment token
	PrefixCode        = "tc-"  // a code that enters a terminal once
	PrefixRight       = "tr-"  // what a terminal's page comes back with
	PrefixSignIn      = "si-"  // the cookie of a browser that is signed in
	PrefixBrowser     = "bt-"  // the bearer that its page gets, for minutes
	PrefixInvite      = "inv-" // an invitation, once
	PrefixPass        = "ps-"  // the cookie of a browser that may use a tunnel
	PrefixPassCode    = "px-"  // a code with which it gets that, once
	PrefixPairing     = "pc-"  // the code with which a program waits to be paired
)

// NewSecret returns a fresh secret: the prefix and 200 random bits in base32 (40
// characters).
func NewSecret(prefix string) Secret {
	b := make([]byte, 25)
	_, _ = rand.Read(b) // crypto/rand.Read never fails since Go 1.24
	return Secret(prefix + base32Lower.EncodeToString(b))
}

// DisplayPrefix is the part of a secret that may be shown to recognise it: its
// first 12 characters.
func (s Secret) DisplayPrefix() string {
	if len(s) < 12 {
		return ""
	}
	return string(s[:12])
}
