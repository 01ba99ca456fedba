package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/shared/ident"
)

func newTunnels() *cobra.Command {
	cmd := &cobra.Command{Use: "tunnels", Short: "list and close the tunnels of a team, a person or an agent (over the admin socket)"}
	socketFlag(cmd)
	cmd.AddCommand(newTunnelsList(), newTunnelsClose())
	return cmd
}

// tunnelFilter adds the flags that choose tunnels, and returns what reads them and dials
// the running relay.
func tunnelFilter(cmd *cobra.Command) func() (*admin.Client, url.Values, error) {
	var team, user, agent string
	f := cmd.Flags()
	teamFlag(cmd, &team)
	f.StringVar(&user, "user", "", "opened by this person, signed in or with a device of theirs")
	f.StringVar(&agent, "agent", "", "on this agent (needs --team)")
	return func() (*admin.Client, url.Values, error) {
		q := url.Values{}
		if agent != "" {
			if team == "" {
				return nil, nil, usageError{errors.New("--agent: say its --team too, since another team may have an agent of that name")}
			}
			id, err := ident.ParseAgentID(agent)
			if err != nil {
				return nil, nil, usageError{fmt.Errorf("--agent: %w", err)}
			}
			q.Set("agent", string(id))
		}
		if user != "" {
			q.Set("user", user)
		}
		c, err := dial(cmd)
		if err != nil {
			return nil, nil, err
		}
		if team != "" {
			id, err := findTeam(cmd.Context(), c, "--team", team)
			if err != nil {
				return nil, nil, err
			}
			q.Set("team", string(id))
		}
		return c, q, nil
	}
}

func newTunnelsList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "list tunnels, never their addresses", Args: exactArgs(0),
		Example: `  adit-relay tunnels list
  adit-relay tunnels list --team vision --agent gpu-1
  adit-relay tunnels list --user alice --json`,
	}
	filter := tunnelFilter(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, q, err := filter()
		if err != nil {
			return err
		}
		var out admin.Tunnels
		if err := c.Call(cmd.Context(), http.MethodGet, "/v1/tunnels", q, nil, &out); err != nil {
			return fmt.Errorf("list tunnels: %w", err)
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), out)
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "SESSION\tTEAM\tAGENT\tPORT\tPROTOCOL\tOPENED BY\tCREDENTIAL\tOPENED\tEXPIRES\tLABEL")
		for _, t := range out.Tunnels {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", t.Session, t.Team, t.Agent, t.Port, t.Protocol, t.OpenedBy, orDash(string(t.Credential)), day(t.OpenedAt, "-"), day(t.ExpiresAt, "-"), t.Label)
		}
		return w.Flush()
	}
	return cmd
}

func newTunnelsClose() *cobra.Command {
	cmd := &cobra.Command{
		Use: "close", Short: "close all tunnels of a team, a person or an agent", Args: exactArgs(0),
		Long: `Close closes the tunnels that the flags choose, whoever opened them, and prints their
session ids. What fits several flags must fit all of them. What somebody may open stays
theirs to open again: revoke their credentials to end that ('adit-relay credential
revoke' closes what a credential opened by itself).`,
		Example: `  adit-relay tunnels close --user alice
  adit-relay tunnels close --team vision --agent gpu-1`,
	}
	filter := tunnelFilter(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, q, err := filter()
		if err != nil {
			return err
		}
		if len(q) == 0 {
			return usageError{errors.New("say whose tunnels: --team, --user or --agent")}
		}
		var out admin.Tunnels
		if err := c.Call(cmd.Context(), http.MethodDelete, "/v1/tunnels", q, nil, &out); err != nil {
			return fmt.Errorf("close tunnels: %w", err)
		}
		for _, t := range out.Tunnels {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), t.Session); err != nil {
				return err
			}
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "closed %s\n", count(len(out.Tunnels), "tunnel"))
		return nil
	}
	return cmd
}

// count is a number of things for people.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
