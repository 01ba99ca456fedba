package gate

import (
	"context"
	"errors"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// unsettled is an error of the store that says that a change may have landed;
// store.DoubtError is one.
type unsettled interface {
	error
	Settle(ctx context.Context) (rec store.AgentRecord, landed bool, err error)
}

// doubt is a change of which the caller was told that the store does not answer. If
// it landed, it must be in the audit like any other.
type doubt struct {
	ctx   context.Context // of who asked; only its trace counts
	key   ident.AgentKey
	by    string
	tries map[uint64]*Step // by the N they lead to
	cause unsettled
}

// maxDoubts bounds the changes that wait to be looked for.
const maxDoubts = 4096

// inDoubt has a change looked for whose outcome the store did not tell.
func (g *Gate) inDoubt(ctx context.Context, key ident.AgentKey, by string, tries map[uint64]*Step, err error) {
	var u unsettled
	if len(tries) == 0 || !errors.As(err, &u) {
		return
	}
	select {
	case g.doubts <- doubt{ctx: context.WithoutCancel(ctx), key: key, by: by, tries: tries, cause: u}:
	default:
		g.log.Error("too many changes are in doubt: if this one landed, the audit has no record of it", "agent", key.Agent, "by", by)
	}
}

// settle finds out what became of a change and writes its records.
func (g *Gate) settle(ctx context.Context, d doubt) {
	rec, landed, err := d.cause.Settle(ctx)
	switch s := d.tries[rec.N]; {
	case err != nil:
		g.log.Warn("nobody knows whether a change landed: if it did, the audit has no record of it", "agent", d.key.Agent, "by", d.by, "error", err)
	case landed && s != nil:
		g.audit(d.ctx, d.key, d.by, s, rec.N)
	}
}
