package creds

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json" // case-sensitive and strict about duplicate members, unlike the standard one
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// leeway is how far the issuer's clock may be off.
const leeway = 60 * time.Second

// keySource is where a verifier's keys come from.
type keySource interface {
	current() keySet
	// refresh reads the keys again, unless that happened just now.
	refresh() error
	run(ctx context.Context)
}

// verifier checks the user sessions of one issuer.
type verifier struct {
	issuer   string // empty: any (key file only)
	audience string // empty: any (key file only)
	teams    membership
	keys     keySource
}

// session is what a verified JWT says.
type session struct {
	user    ident.UserID
	teams   []store.SignInTeam
	unsaid  api.Role // in a team, where nothing says which
	expires time.Time
}

// token is a parsed JWT whose claims are not verified yet.
type token struct {
	jws    *jose.JSONWebSignature
	kid    string
	alg    jose.SignatureAlgorithm
	claims jwt.Claims
	all    map[string]json.RawMessage
}

// parseToken reads a JWT. None of go-jose's errors is passed on: some quote the
// header, which may hold anything.
func parseToken(s ident.Secret) (*token, *refusal) {
	jws, err := jose.ParseSignedCompact(s.Reveal(), algorithms)
	if err != nil {
		if _, ok := errors.AsType[*jose.ErrUnexpectedSignatureAlgorithm](err); ok {
			return nil, invalid(outcomeAlgorithm, "the session is signed with an algorithm that is not allowed")
		}
		return nil, invalid(outcomeMalformed, "the bearer secret is neither a credential nor a session")
	}
	head := jws.Signatures[0].Protected
	for _, name := range []jose.HeaderKey{"crit", "b64"} { // no extension is supported, and a JWT has no use for b64 (RFC 7797, section 7)
		if _, ok := head.ExtraHeaders[name]; ok {
			return nil, invalid(outcomeMalformed, "the session needs an extension that is not supported")
		}
	}
	t := &token{jws: jws, kid: head.KeyID, alg: jose.SignatureAlgorithm(head.Algorithm)}
	payload := jws.UnsafePayloadWithoutVerification()
	if json.Unmarshal(payload, &t.claims) != nil || json.Unmarshal(payload, &t.all) != nil {
		return nil, invalid(outcomeClaims, "the session's claims are malformed")
	}
	return t, nil
}

// verify checks everything about a token but the team.
func (v *verifier) verify(t *token, now time.Time) (session, *refusal) {
	// What costs nothing comes before the signature: it spares the arithmetic, and
	// the issuer a question, for tokens that could not be accepted anyway.
	if refused := v.checkClaims(t, now); refused != nil {
		return session{}, refused
	}
	if refused := v.checkSignature(t); refused != nil {
		return session{}, refused
	}
	s := session{user: ident.UserID(t.claims.Subject), unsaid: v.teams.unsaid, expires: t.claims.Expiry.Time()}
	if !printable(t.claims.Subject, 255) {
		return session{}, invalid(outcomeClaims, "the session has no usable sub")
	}
	if strings.HasPrefix(t.claims.Subject, OwnUsers) {
		return session{}, invalid(outcomeClaims, "the session is of a sub that begins with "+OwnUsers+", which are people whom the relay made itself")
	}
	var refused *refusal
	if s.teams, refused = v.teams.read(t.all); refused != nil {
		return session{}, refused
	}
	if !now.Before(s.expires) {
		// Within the leeway: what is opened now lives as long as the token is taken.
		s.expires = s.expires.Add(leeway)
	}
	return s, nil
}

func (v *verifier) checkClaims(t *token, now time.Time) *refusal {
	if v.issuer != "" && t.claims.Issuer != v.issuer {
		return invalid(outcomeIssuer, "the session is of another issuer than this relay's")
	}
	if v.audience != "" && !t.claims.Audience.Contains(v.audience) {
		return invalid(outcomeAudience, "the session was issued for another audience than this relay")
	}
	if t.claims.Expiry == nil {
		return invalid(outcomeClaims, "the session has no exp")
	}
	switch err := t.claims.ValidateWithLeeway(jwt.Expected{Time: now}, leeway); {
	case errors.Is(err, jwt.ErrExpired):
		return invalid(outcomeExpired, "the session has expired")
	case err != nil:
		return invalid(outcomeNotYet, "the session is not valid yet: a clock is off")
	}
	return nil
}

func (v *verifier) checkSignature(t *token) *refusal {
	known, ok := v.try(t)
	if ok {
		return nil
	}
	if known && t.kid != "" {
		return invalid(outcomeSignature, "the session's signature is wrong")
	}
	// An unknown key, or no key named and none fits: it may be a new one.
	err := v.keys.refresh()
	if known, ok = v.try(t); ok {
		return nil
	}
	switch {
	case err != nil && !errors.Is(err, errLimited), len(v.keys.current()) == 0:
		return unavailable(api.NewProblem(api.CodeIssuerUnavailable, "the issuer of user sessions does not answer; credentials (sk-, dk-, ak-) work").
			WithRetry(askedFetchEvery).WithCause(err))
	case known:
		return invalid(outcomeSignature, "the session's signature is wrong")
	}
	return invalid(outcomeKey, "the session is signed with a key that the issuer does not publish")
}

// try verifies the signature with each key that may have made it; known says
// whether there was one.
func (v *verifier) try(t *token) (known, ok bool) {
	keys := v.keys.current().candidates(t.kid, t.alg)
	for _, k := range keys {
		if _, err := t.jws.Verify(k); err == nil {
			return true, true
		}
	}
	return len(keys) > 0, false
}

// requestedTeam is the team that X-Team-ID asks for.
func requestedTeam(h http.Header) (ident.TeamID, *refusal) {
	values := h.Values(api.HeaderTeam)
	if len(values) == 0 || len(values) == 1 && strings.TrimSpace(values[0]) == "" {
		return "", teamProblem(outcomeTeamRequired, api.CodeTeamRequired, "send X-Team-ID: <the team's UUID>")
	}
	if len(values) > 1 {
		return "", teamProblem(outcomeTeamInvalid, api.CodeTeamInvalid, "more than one X-Team-ID header")
	}
	team, err := ident.ParseTeamID(strings.TrimSpace(values[0]))
	if err != nil {
		return "", teamProblem(outcomeTeamInvalid, api.CodeTeamInvalid, "X-Team-ID is not a UUID")
	}
	return team, nil
}

func teamProblem(o outcome, code api.Code, detail string) *refusal {
	return &refusal{o, api.NewProblem(code, detail)}
}

func printable(s string, most int) bool {
	return s != "" && len(s) <= most && strings.TrimSpace(s) == s &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar })
}
