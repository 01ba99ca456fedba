package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// Problem is an error as the interface reports it (RFC 9457). It is a Go error
// too: whoever knows the answer to the user returns one, and one place writes it.
type Problem struct {
	Type      string          `json:"type"`
	Title     string          `json:"title"`
	Status    int             `json:"status"`
	Detail    string          `json:"detail,omitempty"`
	Code      Code            `json:"code"`
	Hop       Hop             `json:"hop,omitempty"`
	RequestID ident.RequestID `json:"request_id,omitempty"`
	// RetryAfter is when to try again; it is also sent as the header of that name.
	RetryAfter Duration `json:"-"`
	// Challenge is the WWW-Authenticate header of a 401, DefaultChallenge when empty.
	Challenge string `json:"-"`
	// Cause is for the log, never for the user.
	Cause error `json:"-"`
}

// ProblemContentType is the media type of a Problem.
const ProblemContentType = "application/problem+json"

// StrictPolicy is the Content-Security-Policy of answers that are data and never a
// page: in path form they share their origin with the pages of tunnels.
const StrictPolicy = "default-src 'none'; frame-ancestors 'none'"

// DefaultChallenge tells a caller without a secret how to send one. The realm is
// there because the scheme must not stand alone (RFC 6750, section 3).
const DefaultChallenge = `Bearer realm="adit"`

// NewProblem makes a problem with the status and the hop of its code; its type is
// "about:blank" and its title the text of the status (RFC 9457, section 4.2.1).
func NewProblem(code Code, detail string) *Problem {
	row, ok := table[code]
	if !ok {
		row = table[CodeInternal] // no answer is without a status
	}
	return (&Problem{Type: "about:blank", Code: code, Hop: row.hop, Detail: detail}).WithStatus(row.status)
}

// Problemf is NewProblem with a formatted detail.
func Problemf(code Code, format string, args ...any) *Problem {
	return NewProblem(code, fmt.Sprintf(format, args...))
}

// NotFound says that there is no such thing, or that it belongs to another team.
func NotFound(code Code) *Problem {
	return NewProblem(code, "there is no such "+strings.TrimSuffix(string(code), "_not_found"))
}

// StoreUnavailable says that the store cannot be asked now, for a reason that may be nil.
func StoreUnavailable(detail string, cause error) *Problem {
	return NewProblem(CodeStoreUnavailable, detail).WithRetry(2 * time.Second).WithCause(cause)
}

// Internal is what the caller is told of an error that is none of the caller's business.
func Internal(cause error) *Problem {
	return NewProblem(CodeInternal, "the relay could not do this; its log says why").WithCause(cause)
}

// WithStatus returns a copy with another status than its code's. A machine that cannot
// be reached or is paused is a 503 to the users of its tunnels, and a 409 to whoever
// asks the API for a tunnel or a lease.
func (p *Problem) WithStatus(status int) *Problem {
	c := *p
	c.Status, c.Title = status, http.StatusText(status)
	return &c
}

// WithRetry returns a copy with a time to wait.
func (p *Problem) WithRetry(d time.Duration) *Problem {
	c := *p
	c.RetryAfter = Duration(d)
	return &c
}

// WithCause returns a copy with the error behind it.
func (p *Problem) WithCause(err error) *Problem {
	c := *p
	c.Cause = err
	return &c
}

// Error is "code: detail".
func (p *Problem) Error() string {
	if p.Detail == "" {
		return string(p.Code)
	}
	return string(p.Code) + ": " + p.Detail
}

// Unwrap returns the cause.
func (p *Problem) Unwrap() error { return p.Cause }

// MarshalJSON adds what is said twice: error_message, the text for people under the name
// that the published contract has for it, and retry_after, the header's value for those
// who only see the body. Neither is read back.
func (p Problem) MarshalJSON() ([]byte, error) {
	type plain Problem // without this method
	return json.Marshal(struct {
		plain
		ErrorMessage string `json:"error_message"`
		RetryAfter   int    `json:"retry_after,omitempty"`
	}{plain(p), cmp.Or(p.Detail, p.Title, string(p.Code)), p.RetrySeconds()})
}

// RetrySeconds is RetryAfter in whole seconds, rounded up: not before it is of use.
func (p Problem) RetrySeconds() int {
	return int((max(p.RetryAfter.D(), 0) + time.Second - 1) / time.Second)
}

// SetHeader sets the header of an answer with this problem, whatever its body is.
func (p *Problem) SetHeader(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if s := p.RetrySeconds(); s > 0 {
		h.Set("Retry-After", strconv.Itoa(s))
	}
	if p.Status == http.StatusUnauthorized { // the header is not optional (RFC 9110, section 15.5.2)
		h.Set("WWW-Authenticate", cmp.Or(p.Challenge, DefaultChallenge))
	}
}

// Write sends the problem's document as the answer to a request.
func (p *Problem) Write(w http.ResponseWriter, id ident.RequestID) {
	c := *p
	c.RequestID = id
	if c.Type == "" {
		c.Type = "about:blank"
	}
	h := w.Header()
	c.SetHeader(h)
	h.Set("Content-Type", ProblemContentType)
	h.Set("Content-Security-Policy", StrictPolicy)
	w.WriteHeader(c.Status)
	_ = json.NewEncoder(w).Encode(c) // the peer may be gone; there is nobody left to tell
}
