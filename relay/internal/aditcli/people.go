package aditcli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api"
)

func (a *app) inviteCommand() *cobra.Command {
	var (
		role    string
		expires duration
	)
	cmd := &cobra.Command{
		Use:   "invite NAME",
		Short: "invite somebody into the team: print a URL that works once",
		Long: `invite prints a URL, alone on stdout. Whoever opens it first is a member of the team from
then on, and is signed in in that browser. It works once, and for a day at most; it is
worth nothing any more when you leave the team, or log out of this machine.

Roles, each with what the one before it may do: viewer (sees machines and tunnels),
member (opens tunnels), admin (closes others' tunnels; members, invitations,
credentials), owner (roles). Nobody gives a role above their own.`,
		Example: `  adit invite alice
  adit invite bob --role viewer --expires 2h
  adit invite list
  adit invite revoke 9f0c8a5e9b7d4c21`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := api.ParseRole(role); err != nil {
				return usagef("--role: %w", err)
			}
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			defer s.client.Close()
			i, err := s.client.Invite(cmd.Context(), api.CreateInviteRequest{Name: args[0], Role: api.Role(role), ExpiresIn: expires.set})
			if err != nil {
				return err
			}
			if a.json {
				return a.document(i)
			}
			if err := a.printf("%s\n", clean(i.InviteURL)); err != nil {
				return err
			}
			a.notef("for %s, who becomes %s of the team with it; it works once, within %s; revoke it with: adit invite revoke %s", i.Name, i.Role, span(time.Until(i.ExpiresAt)), i.InviteID)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", string(api.RoleMember), "viewer, member, admin or owner")
	f.Var(&expires, "expires", "end after this time, at most 24h (default 24h)")
	_ = cmd.RegisterFlagCompletionFunc("role", completeRoles) // fails only for a flag that is not there
	cmd.AddCommand(a.inviteListCommand(), a.inviteRevokeCommand())
	return cmd
}

// completeRoles completes a role.
func completeRoles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	out := make([]string, len(api.Roles))
	for i, r := range api.Roles {
		out[i] = string(r)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) inviteListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "list the invitations that nobody has used yet, never their URLs",
		Example: `  adit invite list`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			defer s.client.Close()
			l, err := s.client.Invites(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.document(l)
			}
			if len(l.Invites) == 0 {
				a.notef("no invitation is open; make one with `adit invite NAME`")
				return nil
			}
			now := time.Now()
			var t table
			t.row("INVITATION", "FOR", "ROLE", "MADE BY", "MADE", "ENDS")
			for _, i := range l.Invites {
				t.row(i.InviteID, i.Name, string(i.Role), inviter(i.CreatedBy), ago(i.CreatedAt, now), until(i.ExpiresAt, now))
			}
			return a.printf("%s", t.render(a, true))
		},
	}
}

// inviter is who made an invitation, for people.
func inviter(by string) string {
	if strings.HasPrefix(by, "operator:") {
		return "the operator"
	}
	return by
}

func (a *app) inviteRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke INVITATION",
		Short:   "take an invitation back that nobody has used yet",
		Example: `  adit invite revoke 9f0c8a5e9b7d4c21`,
		Args:    exactArgs("INVITATION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			defer s.client.Close()
			if err := s.client.RevokeInvite(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.notef("revoked %s", args[0])
			return nil
		},
	}
}

func (a *app) membersCommand() *cobra.Command {
	list := func(cmd *cobra.Command, _ []string) error {
		s, err := a.connectRelay(cmd)
		if err != nil {
			return err
		}
		defer s.client.Close()
		l, err := s.client.AllMembers(cmd.Context())
		if err != nil {
			return err
		}
		if a.json {
			return a.document(l)
		}
		return a.showMembers(l.Members, time.Now())
	}
	cmd := &cobra.Command{
		Use:   "members",
		Short: "list the team's members, set their roles, remove one",
		Long: `members lists who is in the team, with their roles. Whom only the relay's issuer knows is
not listed before they signed in there once.`,
		Example: `  adit members
  adit members role alice admin
  adit members remove bob`,
		Args: exactArgs(),
		RunE: list,
	}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "list the team's members", Example: `  adit members list`, Args: exactArgs(), RunE: list},
		a.membersRoleCommand(), a.membersRemoveCommand(),
	)
	return cmd
}

func (a *app) showMembers(members []api.Member, now time.Time) error {
	if len(members) == 0 {
		a.notef("nobody is listed; invite somebody with `adit invite NAME`")
		return nil
	}
	var t table
	t.row("NAME", "ROLE", "ROLE FROM", "JOINED", "INVITED BY", "SEEN", "EMAIL", "USER")
	for _, m := range members {
		t.row(m.UserName, string(m.Role), m.Source, ago(m.JoinedAt, now), inviter(m.InvitedBy), ago(m.SeenAt, now), m.Email, string(m.UserID))
	}
	return a.printf("%s", t.render(a, true))
}

// withMember finds the member whom an argument means and calls f for them.
func (a *app) withMember(cmd *cobra.Command, who string, f func(*session, api.Member) error) error {
	s, err := a.connectRelay(cmd)
	if err != nil {
		return err
	}
	defer s.client.Close()
	l, err := s.client.AllMembers(cmd.Context())
	if err != nil {
		return err
	}
	m, err := api.FindMember(l.Members, who)
	if err != nil {
		return withHint(err, "`adit members` lists them; a name, an email or a user id will do")
	}
	return f(s, m)
}

func (a *app) membersRoleCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "role MEMBER ROLE",
		Short: "set what a member may do",
		Long: `role sets a member's role: viewer, member, admin or owner. MEMBER is a name, an email or
a user id. Owners may do this; the team's last owner stays one.`,
		Example: `  adit members role alice admin`,
		Args:    exactArgs("MEMBER", "ROLE"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return completeRoles(cmd, args, prefix)
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			role, err := api.ParseRole(args[1])
			if err != nil {
				return &usageError{err}
			}
			return a.withMember(cmd, args[0], func(s *session, m api.Member) error {
				after, err := s.client.SetRole(cmd.Context(), m.UserID, role)
				if err != nil {
					return err
				}
				if a.json {
					return a.document(after)
				}
				a.notef("%s is %s now", args[0], after.Role)
				return nil
			})
		},
	}
}

func (a *app) membersRemoveCommand() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "remove MEMBER",
		Short: "take a person out of the team, and end what they hold open there",
		Long: `remove ends a person's place in the team, within a second: browsers that they are signed
in with, their devices and what they made with them, and the tunnels that all of these
opened. MEMBER is a name, an email or a user id. Admins may do this, and everybody for
themself; the team's last owner stays.`,
		Example: `  adit members remove bob
  # they leave in peace: what runs goes on
  adit members remove bob@example.com --keep-tunnels`,
		Args: exactArgs("MEMBER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withMember(cmd, args[0], func(s *session, m api.Member) error {
				out, err := s.client.RemoveMember(cmd.Context(), m.UserID, keep)
				if err != nil {
					return err
				}
				if a.json {
					return a.document(out)
				}
				text := fmt.Sprintf("removed %s; revoked credentials: %d", args[0], out.Credentials)
				if !keep {
					text += fmt.Sprintf(", closed tunnels: %d", out.Tunnels)
				}
				a.notef("%s", text)
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-tunnels", false, "leave the tunnels and named links open that they opened")
	return cmd
}
