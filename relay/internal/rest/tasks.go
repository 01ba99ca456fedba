package rest

import (
	"net/http"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Bounds of a lease's time.
const (
	defaultTTL = time.Minute
	minTTL     = 5 * time.Second
	maxTTL     = time.Hour
	maxDetail  = 256 // characters
)

// taskAgent finds the agent of a task route. An agent's credential is for its own
// tasks only, and an agent that is not the caller is none of its business.
func (a *API) taskAgent(r *http.Request, p creds.Principal) (ident.AgentKey, error) {
	if p.Kind == creds.KindAgent && (p.Agent == "" || string(p.Agent) != r.PathValue("agent_id")) {
		return ident.AgentKey{}, api.NewProblem(api.CodeForbidden, "an agent credential may only handle the tasks of its own agent")
	}
	return a.agent(r, p)
}

func (a *API) admitTask(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	key, err := a.taskAgent(r, p)
	if err != nil {
		return err
	}
	var req api.AdmitTaskRequest
	if err := decode(w, r, &req, false); err != nil {
		return err
	}
	if req.TaskID == "" {
		req.TaskID = ident.NewTaskID()
	} else if _, err := ident.ParseTaskID(string(req.TaskID)); err != nil {
		return invalid("task_id", "1 to 128 letters, digits or any of . _ : @ + = -")
	}
	ttl, err := leaseTime(req.TTL)
	if err != nil {
		return err
	}
	if err := checkText("detail", req.Detail, maxDetail); err != nil {
		return err
	}
	lease, err := a.cfg.Gate.Admit(r.Context(), p, key, req.TaskID, ttl, req.Detail)
	if err != nil {
		return err
	}
	return send(w, http.StatusCreated, lease)
}

func leaseTime(d *api.Duration) (time.Duration, error) {
	if d == nil {
		return defaultTTL, nil
	}
	if d.D() < minTTL || d.D() > maxTTL {
		return 0, invalid("ttl", "5 seconds to 1 hour")
	}
	return d.D(), nil
}

func (a *API) renewTask(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	key, err := a.taskAgent(r, p)
	if err != nil {
		return err
	}
	var req api.RenewTaskRequest
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	if req.LeaseToken == "" {
		return invalid("lease_token", "is needed")
	}
	ttl, err := leaseTime(req.TTL)
	if err != nil {
		return err
	}
	lease, err := a.cfg.Gate.Renew(r.Context(), p.Name, key, ident.TaskID(r.PathValue("task_id")), ident.Secret(req.LeaseToken), ttl)
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, lease)
}

// releaseRequest is the body of DELETE /agents/{agent_id}/tasks/{task_id}. The
// token may come in a header instead, for clients that send no body with DELETE.
type releaseRequest struct {
	LeaseToken string `json:"lease_token"`
}

// headerLease carries a lease's token.
const headerLease = "X-Lease-Token"

func (a *API) releaseTask(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	key, err := a.taskAgent(r, p)
	if err != nil {
		return err
	}
	q, err := query(r, "outcome")
	if err != nil {
		return err
	}
	req := releaseRequest{LeaseToken: r.Header.Get(headerLease)}
	if err := decode(w, r, &req, false); err != nil {
		return err
	}
	if req.LeaseToken == "" {
		return invalid("lease_token", "is needed, in the body or as "+headerLease)
	}
	outcome := api.TaskCompleted
	if text, ok := q["outcome"]; ok {
		outcome = api.TaskOutcome(text)
	}
	if outcome != api.TaskCompleted && outcome != api.TaskFailed {
		return invalid("outcome", "completed or failed")
	}
	if err := a.cfg.Gate.Release(r.Context(), p.Name, key, ident.TaskID(r.PathValue("task_id")), ident.Secret(req.LeaseToken), outcome == api.TaskCompleted); err != nil {
		return err
	}
	return sendNothing(w)
}
