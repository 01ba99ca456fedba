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
var remedies = map[string]string{
	"unauthenticated":       "the token is wrong, expired or revoked: run `adit login` again",
	"team_required":         "a person's token needs a team: add --team UUID, or set ADIT_TEAM",
	"team_invalid":          "a team is a UUID: see --team and ADIT_TEAM",
	"not_a_member":          "this token's owner is not in that team: see --team and ADIT_TEAM",
	"agent_offline":         "the machine's link is down: `adit agents` shows who is there; on the machine, `adit-agent doctor` says why",
	"agent_busy":            "tasks run there: --when-busy wait opens when they ended, --when-busy allow opens beside them",
	"agent_paused":          "its owner paused it: `adit-agent resume` on the machine",
	"agent_in_tunnel":       "a tunnel is open there: `adit status AGENT` shows whose, `adit close AGENT` closes it",
	"agent_tunnel_limit":    "close what nobody needs: `adit status AGENT` lists it, `adit close AGENT --session ID` closes one",
	"team_tunnel_limit":     "close what nobody needs: `adit agents` shows where tunnels are open",
	"team_watch_limit":      "end what nobody reads: `adit watch` and open consoles of the team hold one each",
	"store_full":            "the relay's operator has to see to it: `adit-relay status` there says what to do; closing and revoking work",
	"upgrade_required":      "this is a tcp tunnel: use it with `adit connect`",
	"wrong_credential_kind": "this token is of the wrong kind for that: use a token of yours (dk-…) or an integration's (sk-…)",
	"forbidden":             "this token is of the wrong kind for that: use a token of yours (dk-…) or an integration's (sk-…)",
	"port_not_allowed":      "allow_ports in the machine's agent.yaml decides: ask its owner, or choose another --port",
	"app_refused":           "nothing listens there: start the app on the machine, or choose another port",
	"tunnel_not_found":      "`adit status AGENT` shows what is open, `adit open AGENT` opens another",
	"app_timeout":           "something listens there and does not answer: look at the app on the machine",
	notTCP:                  "open one for it with `adit open AGENT --port PORT --protocol tcp`, or say `adit connect AGENT:PORT`",
	client.CodeNotARelay:    "check the address; `adit doctor` shows the way hop by hop",
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
			return remedies["unauthenticated"]
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
