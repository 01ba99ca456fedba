package gate

import (
	"errors"
	"net/http"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
)

// refuse is a 409: right now the agent is in no state for what was asked.
func refuse(code string, retry time.Duration, detail string) *api.Problem {
	hop := api.HopRelay
	if code == "agent_offline" {
		hop = api.HopLink
	}
	return api.NewProblem(http.StatusConflict, code, hop, detail).WithRetry(retry)
}

// notFound is also the answer for what belongs to another team.
func notFound(what string) *api.Problem {
	return api.NewProblem(http.StatusNotFound, what+"_not_found", api.HopRelay, "there is no such "+what)
}

func sessionClosed() *api.Problem {
	return api.NewProblem(http.StatusConflict, "session_closed", api.HopRelay, "the tunnel was closed already; open a new one (with a new Idempotency-Key)")
}

func waitedTooLong() *api.Problem {
	return refuse("agent_busy", 15*time.Second, ReasonWait)
}

func leaseExpired() *api.Problem {
	return api.NewProblem(http.StatusGone, "lease_expired", api.HopRelay, "the lease has expired or was released; the task must not go on")
}

func wrongToken() *api.Problem {
	return api.NewProblem(http.StatusForbidden, "lease_token_invalid", api.HopRelay, "the lease_token is not that of this task's lease")
}

func offline() *api.Problem {
	return refuse("agent_offline", 5*time.Second, "the agent has no link to any relay now")
}

// answer turns what the store returned into what the caller is told.
func answer(err error) error {
	var p *api.Problem
	switch {
	case err == nil:
		return nil
	case errors.As(err, &p):
		return p
	case errors.Is(err, store.ErrNotFound):
		return notFound("tunnel").WithCause(err)
	}
	if refusal := store.Refusal(err); refusal != nil {
		return refusal
	}
	return err
}
