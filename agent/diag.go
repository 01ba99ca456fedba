package agent

import (
	"io"
	"time"

	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/diag"
)

// Outside are the texts of a diagnostic bundle that need no running agent.
func Outside(c Config, version string) []diag.File {
	return []diag.File{
		diag.Build(version),
		{Name: "config.yaml", Write: func(w io.Writer) error { return conf.Print(w, c) }},
		diag.Kernel(),
	}
}

// diag writes the bundle of the running agent.
func (a *Agent) diag(w io.Writer) error {
	now := time.Now()
	files := append(Outside(a.conf, a.opts.Version),
		diag.JSON("status.json", func() any { return a.Report() }),
		diag.Metrics(a.opts.Registry), diag.Log(a.opts.Recent), diag.Goroutines(), diag.Heap(),
	)
	return diag.Write(w, diag.FileName("adit-agent", now), now, files)
}
