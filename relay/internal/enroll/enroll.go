// Package enroll owns enrollment: it makes single-use tokens, and turns each into the
// credential of one agent, once. It limits who may try how often and writes both
// steps to the audit log. It never keeps a token or a credential, only their hashes,
// and never decides what the credential may do.
package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Bounds of a token's life.
const (
	minLife = time.Minute
	maxLife = 7 * 24 * time.Hour
)

const (
	maxBody  = 4 << 10
	bodyTime = 10 * time.Second // to send it, so that a slow one holds no connection
)

// Store keeps tokens by their hash.
type Store interface {
	CreateEnrollment(ctx context.Context, r store.EnrollmentRecord) error
	Enrollment(ctx context.Context, hash string) (store.EnrollmentRecord, error)
	TakeEnrollment(ctx context.Context, hash string) (store.EnrollmentRecord, error)
	Credential(id ident.CredentialID) (store.CredentialRecord, bool)
}

// Credentials makes agents' credentials.
type Credentials interface {
	Create(ctx context.Context, by creds.Principal, team ident.TeamID, user ident.UserID, req api.CreateCredentialRequest) (store.CredentialRecord, ident.Secret, error)
}

// Audit is the audit log.
type Audit interface {
	Append(ctx context.Context, r audit.Record) error
}

// Config is what an Enrollment is made of; all of it is required but Registerer.
type Config struct {
	Store       Store
	Credentials Credentials
	Audit       Audit
	Key         ident.ClusterKey           // seals tokens
	Remote      func(*http.Request) string // the caller's address
	// MayAppear refuses an agent that there is no room for.
	MayAppear  func(ident.AgentKey) error
	Now        func() time.Time
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Enrollment makes tokens and takes them.
type Enrollment struct {
	cfg     Config
	tries   *tries
	metrics *metrics
}

// New returns an Enrollment.
func New(cfg Config) *Enrollment {
	return &Enrollment{cfg: cfg, tries: newTries(cfg.Now), metrics: newMetrics(cfg.Registerer)}
}

// Create makes a token of a team. With an agent only that one may use it, otherwise
// any name that the machine gives itself. The error is a *api.Problem.
func (e *Enrollment) Create(ctx context.Context, by creds.Principal, team ident.TeamID, agent ident.AgentID, life time.Duration) (store.EnrollmentRecord, ident.Secret, error) {
	none := store.EnrollmentRecord{}
	switch {
	case !by.MayManageCredentials() || !by.MayUseTeam(team):
		return none, "", api.NewProblem(api.CodeForbidden, "enrollment tokens are made by the team's people and by the operator")
	case life < minLife || life > maxLife:
		return none, "", api.NewProblem(api.CodeOutOfRange, "expires_in: 1m to 7d")
	}
	if agent != "" {
		if _, err := ident.ParseAgentID(string(agent)); err != nil {
			return none, "", api.NewProblem(api.CodeOutOfRange, "agent_id: "+err.Error())
		}
	}
	token, now := newToken(e.cfg.Key), e.cfg.Now().UTC()
	rec := store.EnrollmentRecord{Hash: token.Hash(), Team: team, Agent: agent, CreatedBy: by.Name, MadeBy: by.Credential, CreatedAt: now, ExpiresAt: now.Add(life)}
	if err := e.cfg.Store.CreateEnrollment(ctx, rec); err != nil {
		return none, "", storeProblem(err)
	}
	if err := e.cfg.Audit.Append(ctx, audit.Record{
		Event: audit.EnrollmentCreated, Actor: by.Name, Team: team, Agent: agent, Detail: "until " + rec.ExpiresAt.Format(time.RFC3339),
	}); err != nil {
		return none, "", api.Internal(err)
	}
	return rec, token, nil
}

// ServeHTTP answers a POST to api.EnrollPath.
func (e *Enrollment) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Security-Policy", api.StrictPolicy)
	id := ident.NewRequestID()
	out, err := e.take(w, r, id)
	if err == nil {
		e.metrics.count(outcomeTaken)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(out) // the machine may be gone: a new token mends that
		return
	}
	var p *api.Problem
	if !errors.As(err, &p) {
		p = api.Internal(err)
	}
	e.metrics.count(outcomeOf(p))
	if p.Status == http.StatusUnauthorized || p.Status == http.StatusForbidden {
		rec := audit.Record{Event: audit.AuthRefused, Detail: "enroll: " + string(p.Code), RequestID: id, RemoteAddr: e.cfg.Remote(r)}
		if err := e.cfg.Audit.Append(r.Context(), rec); err != nil {
			e.cfg.Logger.Warn("write audit record", "event", rec.Event, "error", err)
		}
	}
	e.cfg.Logger.Debug("enrollment refused", "code", p.Code, "remote", e.cfg.Remote(r), "request_id", id, "error", p.Cause)
	problems.AnswerOwn(w, r, p, id)
}

func (e *Enrollment) take(w http.ResponseWriter, r *http.Request, id ident.RequestID) (api.Enrolled, error) {
	if !e.tries.address(e.cfg.Remote(r)) {
		return api.Enrolled{}, api.NewProblem(api.CodeTooManyTries, "too many enrollments from this address: try again later").WithRetry(addressEvery)
	}
	token, err := creds.Bearer(r)
	if err != nil {
		return api.Enrolled{}, err
	}
	if !strings.HasPrefix(token.Reveal(), ident.PrefixEnroll) {
		return api.Enrolled{}, api.NewProblem(api.CodeEnrollmentRefused, "this is no enrollment token: those begin with "+ident.PrefixEnroll)
	}
	// Who holds a token of this pool is not kept out by those who guess.
	if !sealed(e.cfg.Key, token) && !e.tries.guess() {
		return api.Enrolled{}, api.NewProblem(api.CodeTooManyTries, "too many unknown enrollment tokens are tried: try again later").WithRetry(time.Second)
	}
	hash := token.Hash()
	// The token first: who has none learns nothing of what a body must be.
	seen, err := e.cfg.Store.Enrollment(r.Context(), hash)
	if err != nil {
		return api.Enrolled{}, storeProblem(err)
	}
	if !e.makerLives(seen) {
		return api.Enrolled{}, api.NewProblem(api.CodeEnrollmentRefused, "the enrollment token was made with a credential that was revoked or has expired: ask for a new one")
	}
	agent, err := readAgent(w, r)
	if err != nil {
		return api.Enrolled{}, err
	}
	if seen.Agent != "" && seen.Agent != agent {
		// Not used up: the operator's token is good, the machine's name is wrong.
		return api.Enrolled{}, api.Problemf(api.CodeWrongAgent, "the token is for the agent %s: enroll with that agent id, or ask for another token", seen.Agent)
	}
	// Nor is it used up by an agent that could not come then.
	if err := e.cfg.MayAppear(ident.AgentKey{Team: seen.Team, Agent: agent}); err != nil {
		return api.Enrolled{}, err
	}
	rec, err := e.cfg.Store.TakeEnrollment(r.Context(), hash)
	if err != nil {
		return api.Enrolled{}, storeProblem(err)
	}
	// What follows must not stop half-way because the machine hung up.
	ctx := context.WithoutCancel(r.Context())
	by := creds.Operator("enrolment").InTeam(rec.Team)
	by.Credential = rec.MadeBy // what comes of the token ends with what it was made with
	made, secret, err := e.cfg.Credentials.Create(ctx, by, rec.Team, "",
		api.CreateCredentialRequest{Kind: api.KindAgent, Name: string(agent), AgentID: agent})
	if err != nil {
		// The machine got nothing, so the token is still owed to it.
		if again := e.cfg.Store.CreateEnrollment(ctx, rec); again != nil {
			e.cfg.Logger.Warn("give an enrollment token back", "error", again)
		}
		return api.Enrolled{}, err
	}
	if err := e.cfg.Audit.Append(ctx, audit.Record{
		Event: audit.EnrollmentTaken, Actor: "enrolment", Team: rec.Team, Agent: agent, RequestID: id, RemoteAddr: e.cfg.Remote(r),
		Detail: string(made.ID) + ", token by " + rec.CreatedBy,
	}); err != nil {
		return api.Enrolled{}, api.Internal(err)
	}
	e.cfg.Logger.Info("agent enrolled", "team", rec.Team, "agent", agent, "credential", made.ID)
	return api.Enrolled{AgentID: agent, TeamID: rec.Team, CredentialID: made.ID, Credential: secret.Reveal()}, nil
}

// makerLives says whether a token is still good as far as it goes by what it was made
// with: it is good for no longer than that.
func (e *Enrollment) makerLives(token store.EnrollmentRecord) bool {
	if token.MadeBy == "" {
		return true
	}
	maker, ok := e.cfg.Store.Credential(token.MadeBy)
	_, revoked := store.Credentials(e.cfg.Store.Credential).Revoked(token.MadeBy)
	return ok && !revoked && (maker.ExpiresAt.IsZero() || e.cfg.Now().Before(maker.ExpiresAt))
}

// readAgent reads the body: the name that the machine goes by.
func readAgent(w http.ResponseWriter, r *http.Request) (ident.AgentID, error) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime)) // tests' recorders have none
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	var req api.EnrollRequest
	if err == nil {
		err = json.Unmarshal(body, &req)
	}
	if err != nil {
		return "", api.NewProblem(api.CodeInvalidBody, `the body must be {"agent_id": "…"}`).WithCause(err)
	}
	agent, err := ident.ParseAgentID(string(req.AgentID))
	if err != nil {
		return "", api.NewProblem(api.CodeOutOfRange, "agent_id: "+err.Error())
	}
	return agent, nil
}

func storeProblem(err error) *api.Problem {
	if errors.Is(err, store.ErrNotFound) {
		return api.NewProblem(api.CodeEnrollmentRefused, "the enrollment token is unknown, used or expired: ask the operator for a new one (adit-relay enroll create)").WithCause(err)
	}
	if refusal := store.Refusal(err); refusal != nil {
		return refusal
	}
	return api.Internal(err)
}
