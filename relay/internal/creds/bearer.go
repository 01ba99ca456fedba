package creds

import (
	"net/http"
	"strings"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// MaxSecretBytes bounds a bearer secret. Sessions that carry many teams are long;
// anything beyond this is refused before it is parsed.
const MaxSecretBytes = 16 << 10

// challengeInvalid is sent when a secret was shown and is no good (RFC 6750,
// section 3.1). Without any secret the challenge carries no error.
const challengeInvalid = api.DefaultChallenge + `, error="invalid_token"`

// refusal is a problem together with its label in the metrics.
type refusal struct {
	outcome outcome
	problem *api.Problem
}

// invalid refuses a secret that was shown. The detail is constant text: nothing
// of the secret may get into an answer or a log.
func invalid(o outcome, detail string) *refusal {
	p := api.NewProblem(api.CodeUnauthenticated, detail)
	p.Challenge = challengeInvalid
	return &refusal{o, p}
}

func missing(o outcome, detail string) *refusal {
	return &refusal{o, api.NewProblem(api.CodeUnauthenticated, detail)}
}

// unavailable refuses for now: whether the secret is good cannot be known, and a
// 401 would make the caller throw it away.
func unavailable(p *api.Problem) *refusal { return &refusal{outcomeUnavailable, p} }

// Bearer returns the bearer secret of a request, unverified; the error is a
// *api.Problem with status 401. It serves routes that take a secret of another
// kind, such as a tunnel's admin token or an enrollment token.
func Bearer(r *http.Request) (ident.Secret, error) {
	s, refused := bearer(r)
	if refused != nil {
		return "", refused.problem
	}
	return s, nil
}

func bearer(r *http.Request) (ident.Secret, *refusal) {
	return bearerOf(r.Header.Values("Authorization"), "Authorization")
}

// bearerOf reads the values of the header of that name.
func bearerOf(values []string, header string) (ident.Secret, *refusal) {
	switch {
	case len(values) == 0:
		return "", missing(outcomeMissing, "send "+header+": Bearer <secret>")
	case len(values) > 1:
		// Two hops could each pick another one of them.
		return "", invalid(outcomeMalformed, "more than one "+header+" header")
	}
	scheme, token, _ := strings.Cut(strings.Trim(values[0], " \t"), " ")
	if !strings.EqualFold(scheme, "Bearer") { // schemes are case-insensitive (RFC 9110, section 11.1)
		return "", missing(outcomeMissing, "send "+header+": Bearer <secret>; other schemes are not supported")
	}
	token = strings.TrimLeft(token, " ") // 1*SP (RFC 6750, section 2.1)
	switch {
	case token == "":
		return "", missing(outcomeMissing, "the bearer secret is empty")
	case len(token) > MaxSecretBytes:
		return "", invalid(outcomeMalformed, "the bearer secret is too long")
	case !isToken68(token):
		return "", invalid(outcomeMalformed, "the bearer secret has characters that no secret has")
	}
	return ident.Secret(token), nil
}

// isToken68 checks the syntax of RFC 9110, section 11.2.
func isToken68(s string) bool {
	for _, c := range []byte(strings.TrimRight(s, "=")) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("-._~+/", c) >= 0:
		default:
			return false
		}
	}
	return true
}
