package admin

import (
	"context"
	"net/http"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// CreateEnrollment asks for an enrollment token.
type CreateEnrollment struct {
	Team      ident.TeamID  `json:"team"`
	Agent     ident.AgentID `json:"agent,omitempty"`
	ExpiresIn api.Duration  `json:"expires_in"`
}

// CreatedEnrollment is the answer, with the token itself.
type CreatedEnrollment struct {
	Token     string        `json:"token"`
	Agent     ident.AgentID `json:"agent,omitempty"`
	ExpiresAt time.Time     `json:"expires_at"`
	RelayURL  string        `json:"relay_url"` // where agents enroll
	Install   bool          `json:"install"`   // whether the relay hands out what a new machine needs
}

// Enrollments is what the surface needs of enroll.
type Enrollments interface {
	CreateEnrollment(ctx context.Context, req CreateEnrollment) (CreatedEnrollment, error)
}

func (s *Server) enroll(r *http.Request) (any, error) {
	var req CreateEnrollment
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return s.cfg.Enrollments.CreateEnrollment(r.Context(), req)
}
