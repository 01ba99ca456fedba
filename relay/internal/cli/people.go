package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/printable"
)

func newInvite() *cobra.Command {
	cmd := &cobra.Command{Use: "invite", Short: "let people in: make, list and revoke invitations (over the admin socket)"}
	socketFlag(cmd)
	cmd.AddCommand(newInviteCreate(), newInviteList(), newInviteRevoke())
	return cmd
}

// roles completes a role.
func roles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var out []string
	for _, r := range api.Roles {
		out = append(out, string(r))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func newInviteCreate() *cobra.Command {
	var team, role, name, expires string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "create", Short: "print a URL that makes a member of whoever opens it, once", Args: exactArgs(0),
		Long: `Create prints a URL alone on stdout. Whoever opens it first is a member of the team from
then on and is signed in, in that browser; it works once, and for a day at most. Members
who are admins make further invitations in the console or with 'adit invite'.

Roles, each with what the one before it may do: viewer (sees machines and tunnels),
member (opens tunnels), admin (closes others' tunnels; members, invitations,
credentials), owner (roles).`,
		Example: `  adit-relay team create vision
  adit-relay invite create --team vision --role owner --name alice
  adit-relay invite create --team vision --name bob --expires 2h`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := admin.CreateInvite{CreateInviteRequest: api.CreateInviteRequest{Name: name, Role: api.Role(role)}}
			if name == "" {
				return usageError{errors.New("--name is missing: whom the invitation is for")}
			}
			if _, err := api.ParseRole(role); err != nil {
				return usageError{fmt.Errorf("--role: %w", err)}
			}
			d, err := api.ParseDuration(expires)
			if err != nil {
				return usageError{fmt.Errorf("--expires: %w", err)}
			}
			req.ExpiresIn = &d
			c, id, err := dialTeam(cmd, team)
			if err != nil {
				return err
			}
			req.Team = id
			var out api.CreatedInvite
			if err := c.Call(cmd.Context(), http.MethodPost, "/v1/invites", nil, req, &out); err != nil {
				return fmt.Errorf("create the invitation: %w", err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			show(cmd.ErrOrStderr(), "invitation %s for %s, role %s, good once until %s; send the URL to them alone:\n", out.InviteID, out.Name, out.Role, day(out.ExpiresAt, "-"))
			_, err = fmt.Fprintln(cmd.OutOrStdout(), out.InviteURL)
			return err
		},
	}
	f := cmd.Flags()
	teamFlag(cmd, &team)
	f.StringVar(&role, "role", string(api.RoleMember), "viewer, member, admin or owner")
	f.StringVar(&name, "name", "", "the person's name")
	f.StringVar(&expires, "expires", "24h", "how long it is good, 1m to 24h")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.RegisterFlagCompletionFunc("role", roles) // fails only for a flag that is not there
	return cmd
}

func newInviteList() *cobra.Command {
	var team string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "list a team's open invitations, never their URLs", Args: exactArgs(0),
		Example: "  adit-relay invite list --team vision",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, id, err := dialTeam(cmd, team)
			if err != nil {
				return err
			}
			var out api.InviteList
			if err := c.Call(cmd.Context(), http.MethodGet, "/v1/invites", url.Values{"team": {string(id)}}, nil, &out); err != nil {
				return fmt.Errorf("list invitations: %w", err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "INVITATION\tFOR\tROLE\tMADE BY\tCREATED\tEXPIRES")
			for _, i := range out.Invites {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", i.InviteID, printable.Text(i.Name), i.Role, printable.Text(i.CreatedBy), day(i.CreatedAt, "-"), day(i.ExpiresAt, "-"))
			}
			return w.Flush()
		},
	}
	teamFlag(cmd, &team)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newInviteRevoke() *cobra.Command {
	var team string
	cmd := &cobra.Command{
		Use: "revoke INVITATION", Short: "take an invitation back that nobody has used yet", Args: exactArgs(1),
		Example: "  adit-relay invite revoke --team vision 9f0c8a5e9b7d4c21",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, id, err := dialTeam(cmd, team)
			if err != nil {
				return err
			}
			if err := c.Call(cmd.Context(), http.MethodDelete, "/v1/invites", url.Values{"team": {string(id)}, "invite": {args[0]}}, nil, nil); err != nil {
				return fmt.Errorf("revoke the invitation: %w", err)
			}
			show(cmd.ErrOrStderr(), "revoked %s\n", args[0])
			return nil
		},
	}
	teamFlag(cmd, &team)
	return cmd
}

func newMember() *cobra.Command {
	cmd := &cobra.Command{Use: "member", Short: "list and remove a team's members, and set their roles (over the admin socket)"}
	socketFlag(cmd)
	cmd.AddCommand(newMemberList(), newMemberRole(), newMemberRemove())
	return cmd
}

// members asks for a team's members.
func members(cmd *cobra.Command, c *admin.Client, team ident.TeamID) ([]api.Member, error) {
	var out admin.Members
	if err := c.Call(cmd.Context(), http.MethodGet, "/v1/members", url.Values{"team": {string(team)}}, nil, &out); err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	return out.Members, nil
}

func newMemberList() *cobra.Command {
	var team string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "list a team's members", Args: exactArgs(0),
		Long: `List shows who is in the team: who came by an invitation, whom the operator made a
member, and whom the issuer names, once they signed in here.`,
		Example: "  adit-relay member list --team vision",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, id, err := dialTeam(cmd, team)
			if err != nil {
				return err
			}
			list, err := members(cmd, c, id)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), admin.Members{Members: list})
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tROLE\tROLE FROM\tJOINED\tINVITED BY\tSEEN\tEMAIL\tUSER")
			for _, m := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", orDash(m.UserName), m.Role, m.Source, day(m.JoinedAt, "-"), orDash(m.InvitedBy), day(m.SeenAt, "-"), orDash(m.Email), printable.Text(string(m.UserID)))
			}
			return w.Flush()
		},
	}
	teamFlag(cmd, &team)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newMemberRole() *cobra.Command {
	var team string
	var add, asJSON bool
	cmd := &cobra.Command{
		Use: "role MEMBER ROLE", Short: "set what a member may do", Args: exactArgs(2),
		Long: `Role sets the role of a member: viewer, member, admin or owner. MEMBER is a name, an
email or a user id ('adit-relay member list' shows them). With --add it is the id of
somebody who is no member yet, or was removed: the name that the issuer gives them (the
token's sub), who then is a member whenever they sign in.

Of a person of whom the issuer says a role it is changed there.`,
		Example: `  adit-relay member role --team vision alice owner
  adit-relay member role --team vision --add 00u1a2b3c4 admin`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return roles(cmd, args, prefix)
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			role, err := api.ParseRole(args[1])
			if err != nil {
				return usageError{err}
			}
			c, id, err := dialTeam(cmd, team)
			if err != nil {
				return err
			}
			user := ident.UserID(args[0])
			if !add {
				m, err := findMember(cmd, c, id, args[0])
				if err != nil {
					return err
				}
				user = m.UserID
			}
			var out api.Member
			if err := c.Call(cmd.Context(), http.MethodPatch, "/v1/members", url.Values{"team": {string(id)}, "user": {string(user)}}, api.ChangeMemberRequest{Role: role}, &out); err != nil {
				return fmt.Errorf("set the role: %w", err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			show(cmd.ErrOrStderr(), "%s is %s\n", args[0], out.Role)
			return nil
		},
	}
	teamFlag(cmd, &team)
	cmd.Flags().BoolVar(&add, "add", false, "make a member of whom the issuer names so, if they are none")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// findMember returns the member whom an argument means.
func findMember(cmd *cobra.Command, c *admin.Client, team ident.TeamID, who string) (api.Member, error) {
	list, err := members(cmd, c, team)
	if err != nil {
		return api.Member{}, err
	}
	m, err := api.FindMember(list, who)
	if err != nil {
		return m, fmt.Errorf("%w ('adit-relay member list' shows them)", err)
	}
	return m, nil
}

func newMemberRemove() *cobra.Command {
	var team string
	var keep, asJSON bool
	cmd := &cobra.Command{
		Use: "remove MEMBER", Short: "take a person out of a team, and end what they hold open there", Args: exactArgs(1),
		Long: `Remove ends a person's place in the team, within a second on every relay: browsers that
they are signed in with, their devices and what they made with them, and the tunnels that
all of these opened; --keep-tunnels keeps tunnels and named links. An issuer that still
names the person does not bring them back; 'member role --add' does, or an invitation.`,
		Example: `  adit-relay member remove --team vision alice
  # they leave in peace: what runs goes on
  adit-relay member remove --team vision --keep-tunnels alice@example.com`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, id, err := dialTeam(cmd, team)
			if err != nil {
				return err
			}
			m, err := findMember(cmd, c, id, args[0])
			if err != nil {
				return err
			}
			q := url.Values{"team": {string(id)}, "user": {string(m.UserID)}}
			if keep {
				q.Set("keep_tunnels", "true")
			}
			var out api.Revoked
			if err := c.Call(cmd.Context(), http.MethodDelete, "/v1/members", q, nil, &out); err != nil {
				return fmt.Errorf("remove the member: %w", err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			text := "removed " + args[0]
			if out.Credentials > 0 {
				text += ", revoked " + count(out.Credentials, "credential")
			}
			show(cmd.ErrOrStderr(), "%s%s\n", text, closed(out, keep))
			return nil
		},
	}
	teamFlag(cmd, &team)
	cmd.Flags().BoolVar(&keep, "keep-tunnels", false, "leave the tunnels and named links open that they opened")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
