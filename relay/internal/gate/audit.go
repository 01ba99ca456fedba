package gate

import (
	"context"
	"errors"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Auditor keeps what the gate did. A record is written after its change landed, so
// one of a relay that was killed in between is missing. The records of an agent,
// from all relays, are ordered by Revision: no two changes of an agent share one.
type Auditor interface {
	Append(ctx context.Context, r audit.Record) error
}

// auditTime bounds the writing of a record whose change has landed: it is written
// even when the caller has gone.
const auditTime = 5 * time.Second

// Trace says which request a change was asked by.
type Trace struct {
	Request ident.RequestID
	Remote  string
}

type traceKey struct{}

// WithTrace returns a context whose changes are recorded as asked by a request.
func WithTrace(ctx context.Context, t Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// TraceOf returns the request that a context's changes are asked by, if any.
func TraceOf(ctx context.Context) (Trace, bool) {
	t, ok := ctx.Value(traceKey{}).(Trace)
	return t, ok
}

func (g *Gate) audit(ctx context.Context, key ident.AgentKey, by string, s *Step, n uint64) {
	for _, e := range s.Events {
		g.write(ctx, audit.Record{
			Event: e.Kind, Actor: by, Team: key.Team, Agent: key.Agent, Session: e.Session, Task: e.Task,
			Fencing: e.Fencing, Epoch: s.Record.Epoch, Revision: n, Detail: e.Detail,
		})
	}
}

// refused writes a refusal of the gate to the audit; failures of the machinery are
// for the log, and repetitions, idempotent ones, are no refusals.
func (g *Gate) refused(ctx context.Context, key ident.AgentKey, by string, event audit.Event, err error) {
	var p *api.Problem
	if !errors.As(err, &p) || p.Status >= 500 || p.Status == 404 {
		return
	}
	g.write(ctx, audit.Record{Event: event, Actor: by, Team: key.Team, Agent: key.Agent, Detail: string(p.Code)})
}

func (g *Gate) write(ctx context.Context, r audit.Record) {
	if t, ok := ctx.Value(traceKey{}).(Trace); ok {
		r.RequestID, r.RemoteAddr = t.Request, t.Remote
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTime)
	defer cancel()
	if err := g.auditor.Append(ctx, r); err != nil {
		g.log.Error("write audit record", "event", r.Event, "agent", r.Agent, "revision", r.Revision, "error", err)
	}
}
