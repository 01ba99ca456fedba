package store

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/adit-tunnel/adit/shared/ident"
)

// root is the prefix of every key; its version changes with the meaning of what
// is below it.
const root = "/adit/v1/"

// The kinds of key, the first part after the root.
const (
	dirAgent      = "agent"
	dirTunnel     = "tunnel"
	dirCredential = "credential"
	dirPresence   = "presence"
	dirRelay      = "relay"
	dirFloor      = "floor" // where the counts of a team's new agents begin
	dirOnce       = "once"
	dirEnrollment = "enrolment"
	dirTaken      = "taken" // enrollment tokens used up, until they would have expired
	dirCode       = "code"  // that enter terminals, once
	dirFile       = "file"  // what ACME keeps, sealed
	dirLock       = "lock"  // held by a lease of its own
	dirTeam       = "team"
	dirUser       = "user"
	dirMember     = "member"
	dirSignIn     = "signin"
	dirInvite     = "invite"
	dirPairing    = "pairing"
	dirKnock      = "knock"
	dirPINTries   = "pintries"
)

const (
	clusterKey   = root + "cluster"   // fingerprint of the cluster key
	importingKey = root + "importing" // present while an import has not finished
)

func agentKey(k ident.AgentKey) string {
	return root + dirAgent + "/" + string(k.Team) + "/" + string(k.Agent)
}

func presenceKey(k ident.AgentKey) string {
	return root + dirPresence + "/" + string(k.Team) + "/" + string(k.Agent)
}

func tunnelKey(id ident.SessionID) string            { return root + dirTunnel + "/" + string(id) }
func credentialKey(id ident.CredentialID) string     { return root + dirCredential + "/" + string(id) }
func relayKey(id ident.RelayID) string               { return root + dirRelay + "/" + string(id) }
func floorKey(team ident.TeamID) string              { return root + dirFloor + "/" + string(team) }
func enrollmentKey(hash string) string               { return root + dirEnrollment + "/" + hash }
func takenKey(hash string) string                    { return root + dirTaken + "/" + hash }
func codesPrefix(id ident.SessionID) string          { return root + dirCode + "/" + string(id) + "/" }
func codeKey(id ident.SessionID, hash string) string { return codesPrefix(id) + hash }
func fileKey(name string) string                     { return root + dirFile + "/" + name }
func lockKey(name string) string                     { return root + dirLock + "/" + name }

// onceKey hides the caller's text: it may hold what must not be stored, and it
// has no bound on its length.
func onceKey(text string) string {
	sum := sha256.Sum256([]byte(text))
	return root + dirOnce + "/" + hex.EncodeToString(sum[:])
}

// splitKey returns the kind of a key and what follows it. Keys that are not below
// the root, and those directly in it, have no kind.
func splitKey(key string) (dir, rest string) {
	below, ok := strings.CutPrefix(key, root)
	if !ok {
		return "", ""
	}
	dir, rest, ok = strings.Cut(below, "/")
	if !ok {
		return "", ""
	}
	return dir, rest
}

// splitAgent returns the agent that the rest of an agent's or presence's key names.
func splitAgent(rest string) (ident.AgentKey, bool) {
	team, agent, ok := strings.Cut(rest, "/")
	return ident.AgentKey{Team: ident.TeamID(team), Agent: ident.AgentID(agent)}, ok
}
