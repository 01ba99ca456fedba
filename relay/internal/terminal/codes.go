package terminal

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// A terminal's address in a browser holds a code: it works once, so it opens nothing
// for whoever finds it later in a history or a chat. What the code opens is a right,
// which the page keeps in its memory and comes back with after a lost link. Both are
// bound to the tunnel by the cluster key: a right needs no record, and a code that is
// not signed never costs the store a question.

// maxCodes bounds a tunnel's codes that nobody has used.
const maxCodes = 16

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// A code is 128 random bits and 72 bits of their signature.
const (
	codeRandom = 16
	codeSigned = 9
)

func (t *Terminal) mac(what string, session ident.SessionID, more []byte) []byte {
	mac := hmac.New(sha256.New, t.cfg.Key[:])
	fmt.Fprintf(mac, "%s\n%s\n", what, session)
	mac.Write(more)
	return mac.Sum(nil)
}

func (t *Terminal) newCode(session ident.SessionID) ident.Secret {
	b := make([]byte, codeRandom, codeRandom+codeSigned)
	_, _ = rand.Read(b) // crypto/rand.Read never fails since Go 1.24
	return ident.Secret(ident.PrefixCode + encoding.EncodeToString(append(b, t.mac("terminal-code", session, b)[:codeSigned]...)))
}

// signed says whether a code was made for a tunnel; not whether it is good still.
func (t *Terminal) signed(session ident.SessionID, code string) bool {
	text, ok := strings.CutPrefix(code, ident.PrefixCode)
	b, err := encoding.DecodeString(text)
	if !ok || err != nil || len(b) != codeRandom+codeSigned {
		return false
	}
	return hmac.Equal(b[codeRandom:], t.mac("terminal-code", session, b[:codeRandom])[:codeSigned])
}

// rightSigned is how much of a right is its signature.
const rightSigned = 25

// host is who let a viewer in: what the code was made with. What the viewer has ends
// with each of it.
type host struct {
	credential ident.CredentialID
	user       ident.UserID
	signIn     string // the person's browser
}

// bytes are the host within a right. The last release knows the credential alone.
func (h host) bytes() []byte {
	if h.user == "" && h.signIn == "" {
		return []byte(h.credential)
	}
	return []byte(strings.Join([]string{string(h.credential), h.signIn, string(h.user)}, "\n"))
}

func hostOf(b []byte) host {
	credential, rest, _ := strings.Cut(string(b), "\n")
	signIn, user, _ := strings.Cut(rest, "\n")
	return host{ident.CredentialID(credential), ident.UserID(user), signIn}
}

// right is what a viewer who came by a code comes back with. It is worth nothing when
// the tunnel is over: session ids are not used again. It names by whom the code was made,
// and ends with that.
func (t *Terminal) right(session ident.SessionID, by host, readOnly bool) ident.Secret {
	return ident.Secret(ident.PrefixRight + encoding.EncodeToString(append(by.bytes(), t.signRight(session, by.bytes(), readOnly)...)))
}

func (t *Terminal) signRight(session ident.SessionID, by []byte, readOnly bool) []byte {
	what := "terminal-right"
	if readOnly {
		what = "terminal-look"
	}
	return t.mac(what, session, by)[:rightSigned]
}

// rightOf says whether a token is a right to a tunnel's terminals, and to what.
func (t *Terminal) rightOf(session ident.SessionID, token string) (by host, readOnly, ok bool) {
	text, is := strings.CutPrefix(token, ident.PrefixRight)
	b, err := encoding.DecodeString(text)
	if !is || err != nil || len(b) < rightSigned {
		return host{}, false, false
	}
	maker, signature := b[:len(b)-rightSigned], b[len(b)-rightSigned:]
	mayType, mayLook := hmac.Equal(signature, t.signRight(session, maker, false)), hmac.Equal(signature, t.signRight(session, maker, true))
	return hostOf(maker), mayLook, mayType || mayLook
}

// revoked says whether the host of a viewer has lost the right to let anybody in: the
// credential was revoked, by itself or by its makers, and takes with it what it opened;
// the person was removed from the team, has a lesser role there, or has signed out.
func (t *Terminal) revoked(tunnel store.TunnelRecord, by host) bool {
	if _, reason := store.Closed(t.cfg.Store, tunnel.Team, store.Opened{User: by.user, Credential: by.credential}); reason != "" {
		return true
	}
	who := by.user
	if by == (host{}) { // the tunnel's own token is whose the tunnel is
		who = tunnel.User
	}
	if tunnel.Left(t.cfg.Store, who) || by.user != "" && t.demoted(tunnel, by.user) {
		return true
	}
	_, there := t.cfg.Store.SignIn(by.signIn)
	return by.signIn != "" && !there
}

// demoted says whether a person's role, as the team or the operator gave it, does not reach
// for the terminal of a tunnel any more: a member's does for their own, an admin's for any.
// What the issuer gives it may have given anew in a token, of which the store knows nothing.
func (t *Terminal) demoted(tunnel store.TunnelRecord, user ident.UserID) bool {
	m, known := t.cfg.Store.Member(tunnel.Team, user)
	if !known || m.Role == "" || m.Source == store.SourceIssuer {
		return false
	}
	needs := api.RoleAdmin
	if store.Credentials(t.cfg.Store.Credential).OpenedBy(tunnel.Opened(), user) {
		needs = api.RoleMember
	}
	return !m.Role.AtLeast(needs)
}

// Mint makes a code of an open tunnel, and returns the address that holds it and when
// it ends. With what the caller has shown ends what the code opens.
func (t *Terminal) Mint(ctx context.Context, tunnel store.TunnelRecord, by creds.Principal, lives time.Duration, readOnly bool) (address string, until time.Time, err error) {
	until = time.Now().Add(lives).UTC().Truncate(time.Millisecond)
	if until.After(tunnel.ExpiresAt) {
		until = tunnel.ExpiresAt
	}
	code := t.newCode(tunnel.Session)
	switch err := t.cfg.Store.CreateCode(ctx, store.CodeRecord{Hash: code.Hash(), Session: tunnel.Session, ReadOnly: readOnly, CreatedBy: by.Name, Credential: by.Credential, User: by.Person(), SignIn: by.SignIn, ExpiresAt: until}, maxCodes); {
	case errors.Is(err, store.ErrLimit):
		return "", until, api.Problemf(api.CodeTerminalCodeLimit,
			"the tunnel has %d terminal codes that nobody has used, which is the limit; use one, or wait for their end", maxCodes).WithRetry(time.Minute)
	case errors.Is(err, store.ErrFull):
		return "", until, store.Refusal(err)
	case err != nil:
		return "", until, api.StoreUnavailable("the relay's store does not answer; nothing was granted", err)
	}
	rec := audit.Record{
		Event: audit.TerminalCode, Actor: by.Name, Team: tunnel.Team, Agent: tunnel.Agent, Session: tunnel.Session,
		Detail: how(readOnly) + ", once, until " + until.Format(time.RFC3339),
	}
	if trace, ok := gate.TraceOf(ctx); ok {
		rec.RequestID, rec.RemoteAddr = trace.Request, trace.Remote
	}
	if err := t.cfg.Audit.Append(context.WithoutCancel(ctx), rec); err != nil {
		return "", until, fmt.Errorf("record a terminal code: %w", err)
	}
	return t.cfg.Origin + wire.TerminalPath + string(tunnel.Session) + "#code=" + code.Reveal(), until, nil
}

func how(readOnly bool) string {
	if readOnly {
		return "read-only"
	}
	return "may type"
}
