package aditcli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/checkup"
)

// usageError is a command that was written wrongly.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// said is a close frame's error in the relay's words.
func said(err error) error {
	if ce, ok := errors.AsType[websocket.CloseError](err); ok && ce.Reason != "" {
		return &closedError{ce}
	}
	return err
}

type closedError struct{ frame websocket.CloseError }

func (e *closedError) Error() string { return e.frame.Reason }
func (e *closedError) Unwrap() error { return e.frame }

// exitError ends with a code and prints nothing: everything is said already.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit %d", e.code) }

// hintError is an error with its remedy.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

func withHint(err error, format string, args ...any) error {
	return &hintError{err, fmt.Sprintf(format, args...)}
}

func exitCode(err error) int {
	var usage *usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage):
		return exitUsage
	case client.Temporary(err):
		return exitLater
	}
	return exitFailed
}

// remedies by problem code: what the reader of the error can do.
var remedies = map[api.Code]string{
	api.CodeUnauthenticated:  "the token is wrong, expired or revoked: run `adit login` again",
	api.CodeTeamRequired:     "a person's token needs a team: add --team NAME, or set ADIT_TEAM; `adit whoami` lists yours",
	api.CodeTeamInvalid:      "the team is not known: see --team and ADIT_TEAM; `adit whoami` lists yours",
	api.CodeNotAMember:       "this token's owner is not in that team: see --team and ADIT_TEAM; `adit whoami` lists yours",
	api.CodePairingNotFound:  "a code is good for five minutes, and once: run the command again for a new one",
	api.CodeAgentOffline:     "the machine's link is down: `adit agents` shows who is there; on the machine, `adit-agent doctor` says why",
	api.CodeAgentBusy:        "tasks run there: --when-busy wait opens when they ended, --when-busy allow opens beside them",
	api.CodeAgentPaused:      "its owner paused it: `adit-agent resume` on the machine",
	api.CodeAgentInTunnel:    "a tunnel is open there: `adit status AGENT` shows whose, `adit close AGENT` closes it",
	api.CodeAgentTunnelLimit: "close what nobody needs: `adit status AGENT` lists it, `adit close AGENT --session ID` closes one",
	api.CodeTeamTunnelLimit:  "close what nobody needs: `adit agents` shows where tunnels are open",
	api.CodeTeamWatchLimit:   "end what nobody reads: `adit watch` and open consoles of the team hold one each",
	api.CodeStoreFull:        "the relay's operator has to see to it: `adit-relay status` there says what to do; closing and revoking work",
	api.CodeUpgradeRequired:  "this is a tcp tunnel: use it with `adit connect`",
	api.CodeForbidden:        "this token is of the wrong kind for that: use a token of yours (dk-…) or an integration's (sk-…)",
	api.CodeRoleRequired:     "`adit members` shows who is an admin or owner of the team and can help",
	api.CodeLastOwner:        "`adit members role MEMBER ROLE` makes somebody else one",
	api.CodeInviteNotFound:   "`adit invite list` shows those that are open",
	api.CodeTooManyMembers:   "`adit invite list` and `adit members` show them, `adit invite revoke` and `adit members remove` make room",
	api.CodePortNotAllowed:   "allow_ports in the machine's agent.yaml decides: ask its owner, or choose another --port",
	api.CodeAppRefused:       "nothing listens there: start the app on the machine, or choose another port",
	api.CodeTunnelNotFound:   "`adit status AGENT` shows what is open, `adit open AGENT` opens another",
	api.CodeAppTimeout:       "something listens there and does not answer: look at the app on the machine",
	api.CodeAccessRequired:   "it is for certain people: `adit login` to its relay says who you are, or open its URL in a browser and sign in",
	api.CodeAccessDenied:     "ask whoever opened it: `adit access` changes who may use it",
	api.CodeReadOnly:         "whoever opened it can change that: `adit access SESSION --read-only=false`",
	api.CodePINRequired:      "open its URL in a browser, which asks for the PIN; programs get in with `adit login` only",
	api.CodePINLocked:        "whoever opened it can give it another PIN: `adit access SESSION --access pin`",
	api.CodeKnockWaiting:     "open its URL in a browser, and wait until somebody of the team lets you in",
	api.CodeUnknownField:     "the relay is of an earlier release than this command, and knows no such thing: ask its operator to upgrade it",
	api.CodeAccessTooWide:    "the relay's operator decides how open tunnels may be: choose another --access",
	api.CodeNotATCPTunnel:    "open one for it with `adit open AGENT --port PORT --protocol tcp`, or say `adit connect AGENT:PORT`",
	api.CodeNotARelay:        "check the address; `adit doctor` shows the way hop by hop",
}

// hintFor finds the remedy of an error; empty when there is none.
func hintFor(err error) string {
	if h, ok := errors.AsType[*hintError](err); ok {
		return h.hint
	}
	if p, ok := errors.AsType[*api.Problem](err); ok {
		if r := remedies[p.Code]; r != "" {
			return r
		}
		switch {
		case p.RetryAfter > 0:
			return "try again in " + p.RetryAfter.String()
		case p.Status == http.StatusUnauthorized:
			return remedies[api.CodeUnauthenticated]
		case p.Status == http.StatusNotFound:
			return "it does not exist, is closed, or belongs to another team: `adit agents` and `adit status AGENT` show what there is"
		}
		return ""
	}
	return connHint(err)
}

// words are what the user of this command can change.
var words = checkup.Words{
	Address: "the address", Authority: "--ca-file ca.pem, or ADIT_CA_FILE",
	Resolver: "this machine's resolver; a wildcard record is needed for subdomain tunnels",
}

func connHint(err error) string {
	if _, ok := errors.AsType[*client.ConnError](err); !ok || errors.Is(err, context.Canceled) {
		return ""
	}
	return cmp.Or(words.Remedy(err), "`adit doctor` shows the way hop by hop")
}
