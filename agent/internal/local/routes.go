package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// StateRequest is the body of POST /v1/state.
type StateRequest struct {
	Phase   string   `json:"phase"` // "syncing", …; "idle" or empty ends it
	Detail  string   `json:"detail,omitempty"`
	Percent *float64 `json:"percent,omitempty"`
}

func (s *Server) getStatus(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, s.conf.Report())
}

func (s *Server) postState(w http.ResponseWriter, r *http.Request) error {
	var q StateRequest
	if err := readJSON(w, r, &q); err != nil {
		return err
	}
	if err := s.conf.Board.Declare(q.Phase, q.Detail, q.Percent); err != nil {
		if errors.Is(err, status.ErrInvalid) {
			return api.NewProblem(api.CodeOutOfRange, err.Error())
		}
		return err
	}
	return writeJSON(w, s.conf.Board.State())
}

func (s *Server) pause(w http.ResponseWriter, paused bool) error {
	if err := s.conf.Pause(paused); err != nil {
		return api.NewProblem(api.CodeStateNotSaved, "it is in force, but would be lost if the agent restarted: "+err.Error())
	}
	return writeJSON(w, s.conf.Board.State())
}

// admitTask asks the relay for a lease. When it cannot be asked, a tunnel that was
// open when it was last heard of counts as open.
func (s *Server) admitTask(w http.ResponseWriter, r *http.Request) error {
	return s.pass(w, r, "", func(cause error) *api.Problem {
		open := s.conf.Tunnels.List()
		if len(open) == 0 {
			return offline(cause)
		}
		last := open[len(open)-1]
		return api.Problemf(api.CodeAgentInTunnel,
			"the relay cannot be reached, and %d tunnels were open when it was (the newest on port %d, until %s): no task is admitted until the relay says otherwise or they expire",
			len(open), last.Port, last.ExpiresAt.UTC().Format(time.RFC3339)).WithRetry(5 * time.Second).WithCause(cause)
	})
}

// passTask renews or releases a lease.
func (s *Server) passTask(w http.ResponseWriter, r *http.Request) error {
	id, err := ident.ParseTaskID(r.PathValue("task_id"))
	if err != nil {
		return api.NewProblem(api.CodeInvalidParameter, err.Error())
	}
	return s.pass(w, r, "/"+url.PathEscape(string(id)), offline)
}

func offline(cause error) *api.Problem {
	return api.NewProblem(api.CodeAgentOffline, "the agent has no link to a relay, which alone admits tasks: `adit-agent doctor` shows why").WithRetry(time.Second).WithCause(cause)
}

// pass sends a call on to the relay's gate, whose answer is the answer. away makes
// the refusal when the relay cannot be asked.
func (s *Server) pass(w http.ResponseWriter, r *http.Request, rest string, away func(error) *api.Problem) error {
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), s.conf.CallTime, fmt.Errorf("the relay did not answer within %s", s.conf.CallTime))
	defer cancel()
	// A link that is just being mended is worth a moment.
	hold, cancelHold := context.WithTimeout(ctx, s.conf.Hold)
	err = s.conf.Link.Wait(hold)
	cancelHold()
	if err != nil {
		return s.refuse(away(err))
	}
	target := "http://relay" + api.Base + "/agents/" + url.PathEscape(string(s.conf.Agent)) + "/tasks" + rest
	if r.URL.RawQuery != "" {
		target += "?" + r.URL.RawQuery
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, target, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set(api.HeaderRequestID, string(requestOf(ctx)))
	for _, name := range []string{api.HeaderIdempotencyKey, "X-Lease-Token"} {
		if v := r.Header.Get(name); v != "" {
			req.Header.Set(name, v)
		}
	}
	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		s.conf.Logger.Debug("task call did not reach the relay", "error", err)
		return s.refuse(away(err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return s.refuse(away(err))
	}
	s.count(resp.StatusCode, answer)
	for _, name := range []string{"Content-Type", "Retry-After", "Cache-Control"} {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(answer) // the caller may be gone; a lease it did not hear of expires
	return nil
}

func (s *Server) refuse(p *api.Problem) *api.Problem {
	s.refusals.WithLabelValues(codeLabel(p.Code)).Inc()
	return p
}

func (s *Server) count(statusCode int, answer []byte) {
	if statusCode < http.StatusBadRequest {
		return
	}
	var p api.Problem
	_ = json.Unmarshal(answer, &p) // an empty code counts as "other"
	s.refusals.WithLabelValues(codeLabel(p.Code)).Inc()
}

// codeLabel keeps the metric's labels to a closed list.
func codeLabel(code api.Code) string {
	switch code {
	case api.CodeAgentInTunnel, api.CodeAgentBusy, api.CodeAgentUnhealthy, api.CodeAgentSyncing, api.CodeAgentOffline, api.CodeLeaseExpired:
		return string(code)
	}
	return "other"
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(b, '\n')) // the caller may be gone
	return nil
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, api.Problemf(api.CodeBodyTooLarge, "the body is larger than %d bytes", maxBody)
	case err != nil:
		return nil, api.NewProblem(api.CodeBodyIncomplete, err.Error())
	}
	return b, nil
}

func readJSON(w http.ResponseWriter, r *http.Request, into any) error {
	b, err := readBody(w, r)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return api.NewProblem(api.CodeInvalidBody, strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return api.NewProblem(api.CodeInvalidBody, "there is more behind the JSON document")
	}
	return nil
}
