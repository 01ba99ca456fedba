package peers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// Ask asks one relay a question and reads its answer into out.
func (p *Peers) Ask(ctx context.Context, id ident.RelayID, question string, in, out any) (err error) {
	defer func() {
		outcome := "ok"
		if err != nil {
			outcome = "error"
		}
		p.metrics.asks.WithLabelValues(outcome).Inc()
	}()
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("ask relay %s: %w", id, err)
	}
	l, err := p.to(ctx, id)
	if err != nil {
		return fmt.Errorf("ask relay %s: %w", id, err)
	}
	st, err := p.request(ctx, l.Link, wire.Hello{}, request{Op: opAsk, Question: question})
	if err != nil {
		return fmt.Errorf("ask relay %s: %w", id, err)
	}
	defer func() { _ = st.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = st.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err = st.Write(body); err == nil {
		err = st.CloseWrite()
	}
	var raw []byte
	if err == nil {
		raw, err = io.ReadAll(io.LimitReader(st, maxQuestion))
	}
	var r reply
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("ask relay %s: %w", id, context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("ask relay %s: %w", id, err)
	case r.Error != "":
		return fmt.Errorf("ask relay %s: it says: %w", id, errors.New(r.Error))
	}
	if err := json.Unmarshal(r.Answer, out); err != nil {
		return fmt.Errorf("ask relay %s: %w", id, err)
	}
	return nil
}
