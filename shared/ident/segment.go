package ident

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"strings"
)

// SegmentLength is the length of a segment in characters: 32 of the session id, a
// hyphen and 26 of the access token. It fits a DNS label (63, RFC 1035 2.3.4).
const SegmentLength = 32 + 1 + 26

// ClusterKey is the secret from which access tokens are computed; every relay of
// a pool has the same one. It is 32 bytes.
type ClusterKey [32]byte

// LogValue keeps the key out of logs.
func (ClusterKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// String keeps the key out of formatted text.
func (ClusterKey) String() string { return redacted }

// Segment is the part of a tunnel's URL that names the tunnel and grants access
// to it: "<session_id>-<access token>". It is a secret; logs get the session id.
type Segment string

// LogValue keeps the access token out of logs.
func (s Segment) LogValue() slog.Value {
	if id, _, err := s.Split(); err == nil {
		return slog.StringValue(string(id) + "-" + redacted)
	}
	return slog.StringValue(redacted)
}

// Split returns the session id and the access token of a well-formed segment. It
// does not say whether the token is right.
func (s Segment) Split() (SessionID, string, error) {
	if len(s) != SegmentLength || s[32] != '-' {
		return "", "", fmt.Errorf("%w: not a tunnel segment", ErrInvalid)
	}
	id, err := ParseSessionID(string(s[:32]))
	if err != nil {
		return "", "", err
	}
	token := string(s[33:])
	if strings.Trim(token, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return "", "", fmt.Errorf("%w: not a tunnel segment", ErrInvalid)
	}
	return id, token, nil
}

// Segment computes the segment of a tunnel: the access token is
// HMAC-SHA256(key, session id) cut to 128 bits, in base32 (26 characters).
func (k ClusterKey) Segment(id SessionID) Segment {
	var room [tokenSize]byte
	return Segment(string(id) + "-" + string(k.token(&room, id)))
}

// tokenSize is the length of 128 bits in base32.
const tokenSize = 26

// token computes an access token into room. Every request asks for one, so it is
// HMAC (RFC 2104) by hand, without the allocations of crypto/hmac: the key is shorter
// than a block, the message fits one.
func (k ClusterKey) token(room *[tokenSize]byte, id SessionID) []byte {
	var inner, outer [2 * sha256.BlockSize]byte
	for i := range sha256.BlockSize {
		inner[i], outer[i] = 0x36, 0x5c
	}
	for i, c := range k {
		inner[i] ^= c
		outer[i] ^= c
	}
	sum := sha256.Sum256(append(inner[:sha256.BlockSize], id...))
	sum = sha256.Sum256(append(outer[:sha256.BlockSize], sum[:]...))
	base32Lower.Encode(room[:], sum[:16])
	return room[:]
}

// Verify says, in constant time, whether a segment's access token is right, and
// returns its session id.
func (k ClusterKey) Verify(s Segment) (SessionID, bool) {
	id, token, err := s.Split()
	if err != nil {
		return "", false
	}
	var want, have [tokenSize]byte
	k.token(&want, id)
	return id, copy(have[:], token) == tokenSize && subtle.ConstantTimeCompare(want[:], have[:]) == 1
}
