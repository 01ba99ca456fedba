// Package ident owns the identifiers of Adit: their types, their syntax and how
// they are made. It knows no transport, store or configuration, and never reads
// a clock.
package ident

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// TeamID is a team's UUID in lower-case canonical text form.
type TeamID string

// AgentID names an agent within its team: 1 to 63 characters of letters, digits,
// '.', '_' and '-', beginning with a letter or digit.
type AgentID string

// SessionID names a tunnel: 128 random bits as 32 lower-case hexadecimal digits.
type SessionID string

// TaskID names a task lease within an agent: 1 to 128 printable characters
// without space or slash.
type TaskID string

// CredentialID names a stored credential: "cred_" and 16 hexadecimal digits.
type CredentialID string

// RelayID names one relay process of a pool; the same rules as AgentID.
type RelayID string

// UserID is a person as the issuer names them (the JWT's sub claim), at most 255
// bytes of printable text.
type UserID string

// ViewerID names one party using a tunnel now: 16 hexadecimal digits.
type ViewerID string

// RequestID follows one request through logs and error documents: 1 to 64
// characters of letters, digits, '.', '_' and '-'.
type RequestID string

// AgentKey is an agent's full name.
type AgentKey struct {
	Team  TeamID
	Agent AgentID
}

// String is for logs: team and agent, separated by a slash.
func (k AgentKey) String() string { return string(k.Team) + "/" + string(k.Agent) }

// ErrInvalid is wrapped by every error of a Parse function.
var ErrInvalid = errors.New("invalid identifier")

var (
	teamPattern    = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	namePattern    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	sessionPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)
	taskPattern    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@+=-]{0,127}$`)
	credPattern    = regexp.MustCompile(`^cred_[0-9a-f]{16}$`)
	viewerPattern  = regexp.MustCompile(`^[0-9a-f]{16}$`)
	requestPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
)

// ParseTeamID accepts a UUID in any letter case (RFC 9562, section 4) and returns
// its canonical lower-case form.
func ParseTeamID(s string) (TeamID, error) {
	if l := strings.ToLower(s); teamPattern.MatchString(l) {
		return TeamID(l), nil
	}
	return "", fmt.Errorf("%w: a team is a UUID", ErrInvalid)
}

// ParseAgentID checks an agent's name.
func ParseAgentID(s string) (AgentID, error) {
	if namePattern.MatchString(s) {
		return AgentID(s), nil
	}
	return "", fmt.Errorf("%w: an agent is named by 1 to 63 letters, digits, '.', '_' or '-'", ErrInvalid)
}

// ParseRelayID checks a relay's name.
func ParseRelayID(s string) (RelayID, error) {
	if namePattern.MatchString(s) {
		return RelayID(s), nil
	}
	return "", fmt.Errorf("%w: a relay is named by 1 to 63 letters, digits, '.', '_' or '-'", ErrInvalid)
}

// ParseSessionID checks a tunnel's session id.
func ParseSessionID(s string) (SessionID, error) {
	if sessionPattern.MatchString(s) {
		return SessionID(s), nil
	}
	return "", fmt.Errorf("%w: a session id is 32 lower-case hexadecimal digits", ErrInvalid)
}

// ParseTaskID checks a task's name.
func ParseTaskID(s string) (TaskID, error) {
	if taskPattern.MatchString(s) {
		return TaskID(s), nil
	}
	return "", fmt.Errorf("%w: a task is named by 1 to 128 letters, digits or any of . _ : @ + = -", ErrInvalid)
}

// ParseCredentialID checks a credential's id.
func ParseCredentialID(s string) (CredentialID, error) {
	if credPattern.MatchString(s) {
		return CredentialID(s), nil
	}
	return "", fmt.Errorf("%w: a credential id is cred_ and 16 hexadecimal digits", ErrInvalid)
}

// ParseViewerID checks a viewer's id.
func ParseViewerID(s string) (ViewerID, error) {
	if viewerPattern.MatchString(s) {
		return ViewerID(s), nil
	}
	return "", fmt.Errorf("%w: a viewer id is 16 hexadecimal digits", ErrInvalid)
}

// ParseRequestID checks a request id that came from outside.
func ParseRequestID(s string) (RequestID, error) {
	if requestPattern.MatchString(s) {
		return RequestID(s), nil
	}
	return "", fmt.Errorf("%w: a request id is 1 to 64 letters, digits, '.', '_' or '-'", ErrInvalid)
}

// NewTeamID returns a fresh random team id, a UUID of version 4.
func NewTeamID() TeamID {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // crypto/rand.Read never fails since Go 1.24
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return TeamID(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
}

// NewSessionID returns a fresh random session id.
func NewSessionID() SessionID { return SessionID(randomHex(16)) }

// NewCredentialID returns a fresh random credential id.
func NewCredentialID() CredentialID { return CredentialID("cred_" + randomHex(8)) }

// NewTaskID returns a fresh random task id.
func NewTaskID() TaskID { return TaskID("task-" + randomHex(8)) }

// NewViewerID returns a fresh random viewer id.
func NewViewerID() ViewerID { return ViewerID(randomHex(8)) }

// NewRequestID returns a fresh random request id.
func NewRequestID() RequestID { return RequestID(randomHex(8)) }

// NewNonce returns 128 random bits in hexadecimal, for one-time marks.
func NewNonce() string { return randomHex(16) }

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // crypto/rand.Read never fails since Go 1.24
	return hex.EncodeToString(b)
}

// base32Lower is RFC 4648 base32 in lower case without padding, so that a token
// is a valid part of a DNS label.
var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
