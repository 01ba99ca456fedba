package cli

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

func newEnroll() *cobra.Command {
	cmd := &cobra.Command{Use: "enroll", Short: "let new machines get their credential by themselves (over the admin socket)"}
	socketFlag(cmd)
	cmd.AddCommand(newEnrollCreate())
	return cmd
}

// remedy is what to type on the machine. The token is asked for: an argument would be
// for every user of it to read.
func remedy(out admin.CreatedEnrollment) string {
	line, args := "adit-agent enroll --relay-url "+out.RelayURL, ""
	if out.Agent != "" {
		args = " --agent-id " + string(out.Agent)
	}
	line += args
	if out.Install {
		if args != "" {
			args = " -s --" + args
		}
		line += "\nor, where nothing of Adit is installed yet:\n  curl -fsSL " + strings.TrimSuffix(out.RelayURL, "/") + "/install | sudo sh" + args
	}
	return line
}

func newEnrollCreate() *cobra.Command {
	var team, agent, expires string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "print a single-use token with which one machine gets its credential",
		Long: `Create prints a token (en-…) alone on stdout. The machine hands it in with
'adit-agent enroll' and gets a credential of its own for it, once. A token that is
not used in time is worth nothing.`,
		Example: `  adit-relay enroll create --team 6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11 --agent gpu-7
  # any name that the machine gives itself, within a day
  adit-relay enroll create --team vision --expires 1d > token`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := admin.CreateEnrollment{Agent: ident.AgentID(agent)}
			var err error
			if req.ExpiresIn, err = api.ParseDuration(expires); err != nil {
				return usageError{fmt.Errorf("--expires: %w", err)}
			}
			c, id, err := dialTeam(cmd, team)
			if err != nil {
				return err
			}
			req.Team = id
			var out admin.CreatedEnrollment
			if err := c.Call(cmd.Context(), http.MethodPost, "/v1/enrolments", nil, req, &out); err != nil {
				return fmt.Errorf("create enrollment token: %w", err)
			}
			whom := "one machine of the team"
			if out.Agent != "" {
				whom = "the agent " + string(out.Agent)
			}
			show(cmd.ErrOrStderr(), "a token for %s, good once until %s; on the machine:\n  %s\n", whom, day(out.ExpiresAt, "-"), remedy(out))
			_, err = fmt.Fprintln(cmd.OutOrStdout(), out.Token)
			return err
		},
	}
	f := cmd.Flags()
	teamFlag(cmd, &team)
	f.StringVar(&agent, "agent", "", "the only agent that may use it (default: any name)")
	f.StringVar(&expires, "expires", "1h", "how long it is good, 1m to 7d")
	return cmd
}
