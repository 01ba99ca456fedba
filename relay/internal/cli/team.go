package cli

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/relay/internal/rights"
	"github.com/adit-tunnel/adit/shared/ident"
)

func newTeam() *cobra.Command {
	cmd := &cobra.Command{Use: "team", Short: "list the teams of this relay, and remove one (over the admin socket)"}
	socketFlag(cmd)
	cmd.AddCommand(newTeamList(), newTeamRemove())
	return cmd
}

func newTeamList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "list teams with what they have", Args: exactArgs(0),
		Example: "  adit-relay team list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dial(cmd)
			if err != nil {
				return err
			}
			var out admin.Teams
			if err := c.Call(cmd.Context(), http.MethodGet, "/v1/teams", nil, nil, &out); err != nil {
				return fmt.Errorf("list teams: %w", err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "TEAM\tCREDENTIALS\tAGENTS\tTUNNELS")
			for _, t := range out.Teams {
				fmt.Fprintf(w, "%s\t%d\t%d\t%d\n", t.Team, t.Credentials, t.Agents, t.Tunnels)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newTeamRemove() *cobra.Command {
	var yes, asJSON bool
	cmd := &cobra.Command{
		Use: "remove TEAM", Short: "revoke, close and delete all that a team has", Args: exactArgs(1),
		Long: `Remove revokes the team's credentials, closes its tunnels with their named links, and
deletes its enrollment tokens and what is known of its agents. It says what it did in
numbers. Interrupted, it is finished by running it again; run again for nothing it does
nothing. People whom an issuer still puts into the team can still sign in: take the team
from them there first.`,
		Example: `  adit-relay team remove 6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11
  adit-relay team remove 6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11 --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			team, err := ident.ParseTeamID(args[0])
			if err != nil {
				return usageError{err}
			}
			c, err := dial(cmd)
			if err != nil {
				return err
			}
			if !yes {
				var teams admin.Teams
				if err := c.Call(cmd.Context(), http.MethodGet, "/v1/teams", nil, nil, &teams); err != nil {
					return fmt.Errorf("look at the team: %w", err)
				}
				if err := confirm(cmd, team, teams); err != nil {
					return err
				}
			}
			var out rights.Removed
			if err := c.Call(cmd.Context(), http.MethodDelete, "/v1/teams/"+string(team), nil, nil, &out); err != nil {
				return fmt.Errorf("remove the team: %w", err)
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), out); err != nil {
					return err
				}
			} else {
				fmt.Fprintf(cmd.ErrOrStderr(), "revoked %s, closed %s, deleted %s and %s\n", count(out.Credentials, "credential"), count(out.Tunnels, "tunnel"),
					count(out.Enrollments, "enrollment token"), count(out.Agents, "agent"))
			}
			if out.Left > 0 {
				return fmt.Errorf("%s still linked or with tunnels: run this again in a moment", count(out.Left, "agent"))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// confirm asks whoever sits at the terminal. Without one nobody is there to answer.
func confirm(cmd *cobra.Command, team ident.TeamID, teams admin.Teams) error {
	var has rights.Team
	for _, t := range teams.Teams {
		if t.Team == team {
			has = t
		}
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return usageError{errors.New("there is no terminal to ask on: add --yes to remove the team without being asked")}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "team %s has %s, %s and %s; remove it all? Type yes: ", team, count(has.Credentials, "credential"), count(has.Agents, "agent"), count(has.Tunnels, "tunnel"))
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "yes" {
		return errors.New("nothing was removed")
	}
	return nil
}
