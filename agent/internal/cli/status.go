package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/shared/printable"
)

func newStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show the running agent: links, tunnels, state",
		Long:  `Show the running agent. The exit code is 0 when it has a link to a relay, 1 when it has none or does not run.`,
		Example: `  adit-agent status
  adit-agent status --json | jq -r '.tunnels[].port'`,
	}
	client := socketFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		r, err := client().Report(cmd.Context())
		if err != nil {
			return fmt.Errorf("ask for status: %w", err)
		}
		out := cmd.OutOrStdout()
		if *asJSON {
			enc := printable.Encoder(out)
			enc.SetIndent("", "  ")
			err = enc.Encode(r)
		} else {
			err = printReport(out, r, time.Now())
		}
		if err == nil && len(r.Links.Up) == 0 {
			return &exitError{code: exitFailed}
		}
		return err
	}
	return cmd
}

func printReport(out io.Writer, r status.Report, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, printable.Text(fmt.Sprintf(format, args...)))
	}
	line("agent", "%s (%s, %s, up %s)", r.AgentID, r.Version, r.Platform, ago(now, r.StartedAt))
	for _, l := range r.Links.Up {
		line("link", "%s at %s, %.1f ms, up %s, %d streams%s", l.Relay, l.URL, l.RTTMillis, ago(now, l.Since), l.Streams, prefixed(", ", l.Congestion))
	}
	if len(r.Links.Up) == 0 {
		line("link", "none%s", prefixed(": ", r.Links.LastError))
	}
	if r.Links.Superseded != "" {
		line("superseded", "%s", r.Links.Superseded)
	}
	if r.State.Paused {
		line("paused", "yes: nothing reaches this machine until `adit-agent resume`")
	}
	if p := r.State; p.SyncPhase != "" {
		text := p.SyncPhase
		if p.SyncPercent != nil {
			text += fmt.Sprintf(" %.0f %%", *p.SyncPercent)
		}
		line("state", "%s%s", text, prefixed(": ", p.SyncDetail))
	}
	f := r.Facts
	if f.Unhealthy != "" {
		line("unhealthy", "%s", f.Unhealthy)
	}
	if f.Hooks != nil {
		line("hook failed", "%s: %s", f.Hooks.Hook, f.Hooks.Detail)
	}
	if f.Tool != "" {
		line("tool", "%s", strings.TrimSpace(f.Tool+" "+f.ToolVersion))
	}
	for _, g := range f.GPUs {
		line("gpu", "%s, %s free of %s", g.Name, gib(g.VRAMFree), gib(g.VRAMTotal))
	}
	line("ports", "%s", r.AllowPorts)
	line("streams", "%d", r.Streams)
	switch {
	case len(r.Tunnels) > 0:
		line("tunnels", "%d", len(r.Tunnels))
	case r.TunnelsKnown:
		line("tunnels", "none")
	default:
		line("tunnels", "not known: no relay was reached yet")
	}
	for _, t := range r.Tunnels {
		line("", "%s  port %d  %s%s%s%s", t.Session, t.Port, t.Protocol, expiry(now, t.ExpiresAt), prefixed("  by ", t.OpenedBy), prefixed("  ", t.Label))
	}
	return w.Flush()
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

func expiry(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return "  ends in " + t.Sub(now).Round(time.Second).String()
}

func ago(now, t time.Time) string { return now.Sub(t).Round(time.Second).String() }

func gib(n uint64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }
