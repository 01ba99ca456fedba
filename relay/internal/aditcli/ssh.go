package aditcli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

func (a *app) sshCommand() *cobra.Command {
	var (
		port  int
		keep  bool
		login string
	)
	cmd := &cobra.Command{
		Use:   "ssh [USER@]AGENT [-- ARGS...]",
		Short: "run ssh to a machine through a tunnel",
		Long: `ssh runs your ssh client to the machine's own ssh server, through a tcp tunnel: one
that is open already, else one for the time that ssh runs (--keep leaves it open).
ARGS are ssh's own. Your ssh configuration applies, with the machine's name as the
host; its key is remembered as adit-AGENT. The exit code is ssh's.`,
		Example: `  adit ssh me@gpu-7
  adit ssh gpu-7 -- -l me nvidia-smi
  adit ssh me@gpu-7 -- -L 6006:localhost:6006 -N
  rsync -e 'adit ssh' -a data/ me@gpu-7:data/`,
		ValidArgsFunction: a.completeAgents,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exactArgs("AGENT")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if port < 1 || port > 65535 {
				return usagef("--port %d: a port is 1 to 65535", port)
			}
			user, name, found := strings.Cut(args[0], "@")
			if !found {
				user, name = login, args[0]
			}
			rest := args[1:]
			if len(rest) > 0 && rest[0] == "--" {
				rest = rest[1:]
			}
			id, err := parseAgent(name)
			if err != nil {
				return err
			}
			if strings.HasPrefix(user, "-") {
				return usagef("user %q: a user does not begin with a hyphen", user)
			}
			ssh, err := exec.LookPath("ssh")
			if err != nil {
				return withHint(err, "install an ssh client, or use: adit connect %s:%d -L 127.0.0.1:2222", id, port)
			}
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			t, done, err := a.sshTunnel(cmd.Context(), s, id, port, keep)
			if err != nil {
				return err
			}
			defer done()
			return a.runSSH(cmd.Context(), s, ssh, user, id, t, rest)
		},
	}
	// What stands behind AGENT is ssh's, so that `rsync -e 'adit ssh'` works too.
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().IntVar(&port, "port", 22, "port of the machine's ssh server")
	cmd.Flags().BoolVar(&keep, "keep", false, "leave a tunnel that this opened open at the end")
	cmd.Flags().StringVarP(&login, "login", "l", "", "user on the machine (rsync says it so)")
	return cmd
}

// sshTunnel finds an open tcp tunnel to the port, or opens one.
func (a *app) sshTunnel(ctx context.Context, s *session, id ident.AgentID, port int, keep bool) (*tunnel, func(), error) {
	st, err := s.client.TunnelStatus(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	for _, o := range st.Sessions {
		if o.TunnelProtocol != api.ProtocolTCP || o.TargetPort != port || time.Until(o.ExpiresAt) < time.Minute {
			continue
		}
		// Another `adit ssh` or `adit connect` closes its own tunnel when it ends.
		if o.Label == ownLabel {
			continue
		}
		if u, ok := parseTunnelURL(o.TunnelURL); ok {
			return &tunnel{transport: s.transport, note: a.notef, login: s.login(), url: u}, s.client.Close, nil
		}
	}
	return a.ownTunnel(ctx, s, id, port, keep)
}

// runSSH runs ssh with this program as its ProxyCommand. The tunnel's URL goes by
// the environment: arguments are visible to others.
func (a *app) runSSH(ctx context.Context, s *session, ssh, user string, id ident.AgentID, t *tunnel, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	argv := []string{
		"-o", "ProxyCommand=" + proxyCommand(self, a.configPath),
		"-o", "HostKeyAlias=adit-" + string(id),
	}
	if user != "" {
		argv = append(argv, "-l", user)
	}
	cmd := exec.CommandContext(ctx, ssh, append(append(argv, string(id)), args...)...)
	// With the login of this command, where the tunnel asks who comes.
	cmd.Env = append(os.Environ(), envTunnelURL+"="+t.address().String(), "ADIT_URL="+s.URL, "ADIT_PROFILE="+a.profileName())
	if s.CAFile != "" {
		cmd.Env = append(cmd.Env, "ADIT_CA_FILE="+s.CAFile)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	cmd.Cancel = func() error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err == nil || errors.Is(err, os.ErrProcessDone) {
			return err
		}
		return cmd.Process.Kill() // Windows knows no other way
	}
	cmd.WaitDelay = closeTimeout
	err = cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if code := exit.ExitCode(); code > 0 {
			return &exitError{code}
		}
		return &exitError{exitFailed} // ended by a signal
	}
	if err != nil {
		return fmt.Errorf("run ssh: %w", err)
	}
	return nil
}

// proxyCommand quotes a command line for ssh, which expands '%' and hands it to
// the user's shell.
func proxyCommand(self, config string) string {
	quote := func(s string) string { return `'` + strings.ReplaceAll(s, `'`, `'\''`) + `'` }
	if runtime.GOOS == "windows" {
		quote = func(s string) string { return `"` + s + `"` }
	}
	line := quote(self) + " connect --stdio"
	if config != "" {
		line += " --config " + quote(config)
	}
	return strings.ReplaceAll(line, "%", "%%")
}
