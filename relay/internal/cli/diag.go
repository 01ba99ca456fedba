package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/relay"
	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/diag"
)

func newDiag() *cobra.Command {
	cmd := &cobra.Command{
		Use: "diag [FILE]", Short: "write a bundle for whoever helps from afar, without secrets", Args: atMostArgs(1),
		Long: `Diag writes a tar.gz file: version, effective configuration, status, metrics, the last
lines of the log, goroutines, heap and facts of the kernel. Secrets and tunnels'
addresses are cut out of all of it; team, agent and host names are not. '-' is stdout.
A relay that does not run gives what can be seen from outside; --config names its file.`,
		Example: `  adit-relay diag --config /etc/adit/relay.yaml
  adit-relay diag - | ssh helper@example.com 'cat > relay.tar.gz'`,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := diag.FileName("adit-relay", time.Now()) + ".tar.gz"
		if len(args) > 0 {
			name = args[0]
		}
		body, err := diagBody(cmd)
		if err != nil {
			return err
		}
		defer body.Close()
		return diag.Save(name, cmd.OutOrStdout(), body)
	}
	configFlags(cmd)
	socketFlag(cmd)
	return cmd
}

// diagBody is the running relay's bundle, or one made without it.
func diagBody(cmd *cobra.Command) (io.ReadCloser, error) {
	cfg, faults := loadConfig(cmd)
	socket, err := cmd.Flags().GetString("socket")
	if err != nil {
		return nil, err
	}
	if socket == "" {
		socket = cfg.AdminSocket()
	}
	body, err := admin.Dial(socket).Stream(cmd.Context(), http.MethodGet, "/v1/diag", nil, nil)
	if err == nil {
		return body, nil
	}
	if _, answered := errors.AsType[*api.Problem](err); answered {
		return nil, fmt.Errorf("make a bundle: %w", err)
	}
	show(cmd.ErrOrStderr(), "warning: %v; the bundle has what can be seen without it\n", err)
	files := append(relay.Outside(cfg), diag.Text("relay.txt", err.Error()+"\n"))
	if faults != nil {
		files = append(files, diag.Text("config-faults.txt", faults.Error()+"\n"))
	}
	r, w := io.Pipe()
	go func() {
		now := time.Now()
		_ = w.CloseWithError(diag.Write(w, diag.FileName("adit-relay", now), now, files)) // never fails
	}()
	return r, nil
}
