package cli

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/agent"
	"github.com/adit-tunnel/adit/agent/internal/local"
	"github.com/adit-tunnel/adit/shared/diag"
	"github.com/adit-tunnel/adit/shared/lifecycle"
)

func newDiag() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "diag [FILE]",
		Short: "write a bundle for whoever helps from afar, without secrets",
		Long: `Diag writes a tar.gz file: version, effective configuration, status, metrics, the last
lines of the log, goroutines, heap and facts of the kernel. Secrets are cut out of all
of it; names of machines and tunnels' labels are not. '-' is stdout. An agent that does
not run gives what can be seen from outside; --config names its file.`,
		Example: `  adit-agent diag --config /etc/adit/agent.yaml
  adit-agent diag - > bundle.tar.gz`,
		Args: cobra.MaximumNArgs(1),
	}
	load := configFlags(cmd)
	client := socketFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := diag.FileName("adit-agent", time.Now()) + ".tar.gz"
		if len(args) > 0 {
			name = args[0]
		}
		body, err := client().Diag(cmd.Context())
		if errors.Is(err, local.ErrNoAgent) {
			show(cmd.ErrOrStderr(), "warning: %v; the bundle has what can be seen without it", err)
			body = outside(load, err)
		} else if err != nil {
			return fmt.Errorf("make a bundle: %w", err)
		}
		defer body.Close()
		return diag.Save(name, cmd.OutOrStdout(), body)
	}
	return cmd
}

// outside is a bundle made without the agent.
func outside(load func() (agent.Config, error), why error) io.ReadCloser {
	c, faults := load()
	if faults == nil {
		faults = c.Validate()
	}
	files := append(agent.Outside(c, lifecycle.Version()), diag.Text("agent.txt", why.Error()+"\n"))
	if faults != nil {
		files = append(files, diag.Text("config-faults.txt", faults.Error()+"\n"))
	}
	r, w := io.Pipe()
	go func() {
		now := time.Now()
		_ = w.CloseWithError(diag.Write(w, diag.FileName("adit-agent", now), now, files)) // never fails
	}()
	return r
}
