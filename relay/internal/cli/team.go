package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/printable"
)

func newTeam() *cobra.Command {
	cmd := &cobra.Command{Use: "team", Short: "name and list the teams of this relay, and remove one (over the admin socket)"}
	socketFlag(cmd)
	cmd.AddCommand(newTeamCreate(), newTeamList(), newTeamRename(), newTeamRemove())
	return cmd
}

// teamFlag adds --team to a command that is about one team.
func teamFlag(cmd *cobra.Command, team *string) {
	cmd.Flags().StringVar(team, "team", "", "the team, by its name or its UUID")
	_ = cmd.RegisterFlagCompletionFunc("team", completeTeams) // fails only for a flag that is not there
}

// completeTeams completes a team's name.
func completeTeams(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	var out []string
	if c, err := dial(cmd); err == nil {
		var teams admin.Teams
		if c.Call(cmd.Context(), http.MethodGet, "/v1/teams", nil, nil, &teams) == nil {
			for _, t := range teams.Teams {
				if t.Name != "" && strings.HasPrefix(strings.ToLower(t.Name), strings.ToLower(prefix)) {
					out = append(out, printable.Text(t.Name)+"\t"+string(t.Team))
				}
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// findTeam returns the team that is meant: by its UUID, whether there is anything of it
// or not, or by its name in any letter case. what names the flag or argument.
func findTeam(ctx context.Context, c *admin.Client, what, text string) (ident.TeamID, error) {
	if text == "" {
		return "", usageError{fmt.Errorf("%s is missing: a team's name or its UUID ('adit-relay team list' shows them, 'adit-relay team create NAME' makes one)", what)}
	}
	if id, err := ident.ParseTeamID(text); err == nil {
		return id, nil
	}
	var teams admin.Teams
	if err := c.Call(ctx, http.MethodGet, "/v1/teams", nil, nil, &teams); err != nil {
		return "", fmt.Errorf("look for the team: %w", err)
	}
	var found []string
	for _, t := range teams.Teams {
		if strings.EqualFold(t.Name, text) {
			found = append(found, string(t.Team))
		}
	}
	switch len(found) {
	case 0:
		return "", usageError{fmt.Errorf("%s: there is no team named %q; 'adit-relay team create %s' makes it, 'adit-relay team list' shows those that there are", what, text, text)}
	case 1:
		return ident.TeamID(found[0]), nil
	}
	return "", usageError{fmt.Errorf("%s: several teams are named %q, so say which one: %s", what, text, strings.Join(found, ", "))}
}

// dialTeam returns the client of the running relay and the team that --team means.
func dialTeam(cmd *cobra.Command, team string) (*admin.Client, ident.TeamID, error) {
	c, err := dial(cmd)
	if err != nil {
		return nil, "", err
	}
	id, err := findTeam(cmd.Context(), c, "--team", team)
	return c, id, err
}

func newTeamCreate() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "make a team with a name and print its UUID", Args: exactArgs(1),
		Long: `Create makes a team and prints its UUID alone on stdout. Wherever a command of adit-relay
takes a team, its name will do as well. A team that is known only by the UUID that an
issuer or another system gave it needs no making; 'team rename' gives it a name.`,
		Example: `  adit-relay team create vision
  adit-relay invite create --team vision --role owner --name alice`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := dial(cmd)
			if err != nil {
				return err
			}
			var out store.TeamRecord
			if err := c.Call(cmd.Context(), http.MethodPost, "/v1/teams", nil, admin.NameTeam{Name: args[0]}, &out); err != nil {
				return fmt.Errorf("create the team: %w", err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			show(cmd.ErrOrStderr(), "created the team %s\n", out.Name)
			_, err = fmt.Fprintln(cmd.OutOrStdout(), out.ID)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newTeamRename() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "rename TEAM NAME", Short: "give a team another name, or its first one", Args: exactArgs(2),
		Example: `  adit-relay team rename vision "computer vision"
  adit-relay team rename 6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11 vision`,
		ValidArgsFunction: completeTeams,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := dial(cmd)
			if err != nil {
				return err
			}
			team, err := findTeam(cmd.Context(), c, "TEAM", args[0])
			if err != nil {
				return err
			}
			var out store.TeamRecord
			if err := c.Call(cmd.Context(), http.MethodPatch, "/v1/teams/"+string(team), nil, admin.NameTeam{Name: args[1]}, &out); err != nil {
				return fmt.Errorf("rename the team: %w", err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			show(cmd.ErrOrStderr(), "team %s is named %s\n", team, out.Name)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
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
			fmt.Fprintln(w, "TEAM\tCREDENTIALS\tAGENTS\tTUNNELS\tMEMBERS\tNAME")
			for _, t := range out.Teams {
				fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%s\n", t.Team, t.Credentials, t.Agents, t.Tunnels, t.Members, orDash(t.Name))
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
		Use: "remove TEAM", Short: "revoke, close and delete all that a team has", Args: exactArgs(1), ValidArgsFunction: completeTeams,
		Long: `Remove revokes the team's credentials, closes its tunnels with their named links, and
deletes its members, invitations and enrollment tokens, what is known of its agents, and
its name. It says what it did in numbers. Interrupted, it is finished by running it again.
People whom an issuer still puts into the team can still sign in: take the team from them
there first.`,
		Example: `  adit-relay team remove vision
  adit-relay team remove 6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11 --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := dial(cmd)
			if err != nil {
				return err
			}
			team, err := findTeam(cmd.Context(), c, "TEAM", args[0])
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
			var out admin.RemovedTeam
			if err := c.Call(cmd.Context(), http.MethodDelete, "/v1/teams/"+string(team), nil, nil, &out); err != nil {
				return fmt.Errorf("remove the team: %w", err)
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), out); err != nil {
					return err
				}
			} else {
				fmt.Fprintf(cmd.ErrOrStderr(), "removed %s, took back %s, revoked %s, closed %s, deleted %s and %s\n", count(out.Members, "member"), count(out.Invites, "invitation"),
					count(out.Credentials, "credential"), count(out.Tunnels, "tunnel"), count(out.Enrollments, "enrollment token"), count(out.Agents, "agent"))
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
	has := admin.Team{Team: team}
	for _, t := range teams.Teams {
		if t.Team == team {
			has = t
		}
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return usageError{errors.New("there is no terminal to ask on: add --yes to remove the team without being asked")}
	}
	name := string(team)
	if has.Name != "" {
		name = has.Name + " (" + name + ")"
	}
	show(cmd.ErrOrStderr(), "team %s has %s, %s, %s and %s; remove it all? Type yes: ", name, count(has.Members, "member"), count(has.Credentials, "credential"), count(has.Agents, "agent"), count(has.Tunnels, "tunnel"))
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "yes" {
		return errors.New("nothing was removed")
	}
	return nil
}
