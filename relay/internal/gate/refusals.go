package gate

import (
	"errors"
	"net/http"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
)

// refuse is a 409: right now the agent is in no state for what was asked.
func refuse(code api.Code, retry time.Duration, detail string) *api.Problem {
	return api.NewProblem(code, detail).WithStatus(http.StatusConflict).WithRetry(retry)
}

func sessionClosed() *api.Problem {
	return api.NewProblem(api.CodeSessionClosed, "the tunnel was closed already; open a new one (with a new Idempotency-Key)")
}

func waitedTooLong() *api.Problem {
	return refuse(api.CodeAgentBusy, 15*time.Second, string(store.ReasonWait))
}

func leaseExpired() *api.Problem {
	return api.NewProblem(api.CodeLeaseExpired, "the lease has expired or was released; the task must not go on")
}

func wrongToken() *api.Problem {
	return api.NewProblem(api.CodeLeaseTokenInvalid, "the lease_token is not that of this task's lease")
}

// superseded is for this relay's hub, which knows it by its cause.
func superseded() *api.Problem {
	return api.NewProblem(api.CodeSuperseded, ErrSuperseded.Error()).WithCause(ErrSuperseded)
}

func offline() *api.Problem {
	return refuse(api.CodeAgentOffline, 5*time.Second, "the agent has no link to any relay now")
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
		return api.NotFound(api.CodeTunnelNotFound).WithCause(err)
	}
	if refusal := store.Refusal(err); refusal != nil {
		return refusal
	}
	return err
}
