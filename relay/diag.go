package relay

import (
	"context"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/config"
	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/diag"
	"github.com/adit-tunnel/adit/shared/lifecycle"
)

// Outside are the texts of a diagnostic bundle that need no running relay.
func Outside(cfg config.Relay) []diag.File {
	return []diag.File{
		diag.Build(lifecycle.Version()),
		{Name: "config.yaml", Write: func(w io.Writer) error { return conf.Print(w, cfg) }},
		diag.Kernel(),
	}
}

// diag writes the bundle of the running relay. The audit log is not in it: it says who
// did what, which is the operator's to share.
func (r *Relay) diag(metrics prometheus.Gatherer) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		now := time.Now()
		files := append(Outside(r.cfg),
			diag.JSON("status.json", func() any { return r.status(ctx) }),
			diag.Metrics(metrics), diag.Log(r.recent), diag.Goroutines(), diag.Heap(),
		)
		return diag.Write(w, diag.FileName("adit-relay", now), now, files)
	}
}
