package admin

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// CreateEnrolment asks for an enrolment token.
type CreateEnrolment struct {
	Team      ident.TeamID  `json:"team"`
	Agent     ident.AgentID `json:"agent,omitempty"`
	ExpiresIn api.Duration  `json:"expires_in"`
}

// CreatedEnrolment is the answer, with the token itself.
type CreatedEnrolment struct {
	Token     string        `json:"token"`
	Agent     ident.AgentID `json:"agent,omitempty"`
	ExpiresAt time.Time     `json:"expires_at"`
	RelayURL  string        `json:"relay_url"` // where agents enroll
	Install   bool          `json:"install"`   // whether the relay hands out what a new machine needs
}

// Enrolments is what the surface needs of enrol.
type Enrolments interface {
	CreateEnrolment(ctx context.Context, req CreateEnrolment) (CreatedEnrolment, error)
}

func (s *Server) enrol(r *http.Request) (any, error) {
	var req CreateEnrolment
	dec := json.NewDecoder(io.LimitReader(r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return nil, api.NewProblem(api.CodeInvalidBody, err.Error())
	}
	return s.cfg.Enrolments.CreateEnrolment(r.Context(), req)
}
