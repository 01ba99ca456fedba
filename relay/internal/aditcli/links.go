package aditcli

import (
	"cmp"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

func (a *app) linksCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "links AGENT|SESSION",
		Short: "list, make and revoke named links of a tunnel",
		Long: `links lists the named links of a tunnel: further addresses of it, each with a name, an
end and a number of uses of its own, which can be revoked while the tunnel stays
open. A use is a new viewer, not a request; a chat's preview is none.

AGENT stands for the machine's only open tunnel; with several, name the SESSION (its
id or URL). A tunnel's admin token in ADIT_TOKEN is enough with SESSION.`,
		Example: `  adit links gpu-7
  adit links create gpu-7 --name "for the customer" --expires 2h --max-uses 1
  adit links revoke gpu-7 9f0c8a5e9b7d4c21a6e8f0b1d2c3e4f5`,
		Args:              exactArgs("AGENT or SESSION"),
		ValidArgsFunction: a.completeAgents,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withTunnel(cmd, args[0], func(s *session, id ident.SessionID) error {
				l, err := s.client.Links(cmd.Context(), id)
				if err != nil {
					return err
				}
				if a.json {
					return a.document(l)
				}
				return a.showLinks(l, time.Now())
			})
		},
	}
	cmd.AddCommand(a.linksCreateCommand(), a.linksRevokeCommand())
	return cmd
}

func (a *app) showLinks(l api.NamedLinkList, now time.Time) error {
	if len(l.Links) == 0 {
		a.notef("no named link; make one with `adit links create`")
		return nil
	}
	var t table
	t.row("LINK", "NAME", "USES", "VIEWERS", "LAST USED", "ENDS", "ACCESS", "MADE BY")
	for _, k := range l.Links {
		used := "never"
		if !k.LastUsedAt.IsZero() {
			used = ago(k.LastUsedAt, now)
		}
		t.row(string(k.LinkID), k.Name, usesText(k), fmt.Sprint(k.Viewers), used, until(k.ExpiresAt, now), accessColumn(k.Access), cmp.Or(k.CreatedByName, k.CreatedBy))
	}
	if err := a.printf("%s\n", t.render(a, true)); err != nil {
		return err
	}
	for _, k := range l.Links {
		if err := a.printf("%s\n", clean(k.URL)); err != nil {
			return err
		}
	}
	return nil
}

func usesText(k api.NamedLink) string {
	if k.MaxUses == 0 {
		return fmt.Sprint(k.Uses)
	}
	return fmt.Sprintf("%d of %d", k.Uses, k.MaxUses)
}

func (a *app) linksCreateCommand() *cobra.Command {
	var (
		name    string
		expires duration
		most    int
		access  accessFlags
	)
	cmd := &cobra.Command{
		Use:   "create AGENT|SESSION",
		Short: "make a named link of a tunnel and print its URL",
		Long: `create makes a named link and prints its URL, alone on stdout. Whoever has the URL can
use the tunnel until the link expires, is revoked or is used up, or the tunnel closes,
as far as the tunnel is open to them or --access of the link says otherwise.

` + accessHelp,
		Example: `  adit links create gpu-7 --name "for the customer" --expires 2h --max-uses 1
  adit links create gpu-7 --name partners --people '*@partner.example' --read-only`,
		Args:              exactArgs("AGENT or SESSION"),
		ValidArgsFunction: a.completeAgents,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := api.CreateLinkRequest{Name: name, ExpiresIn: expires.set}
			if name == "" {
				return withHint(usagef("--name is missing"), "a name says later whom the link was for")
			}
			if cmd.Flags().Changed("max-uses") {
				if most < 1 || most > api.MaxLinkUses {
					return usagef("--max-uses %d: 1 to %d", most, api.MaxLinkUses)
				}
				req.MaxUses = &most
			}
			if access.given(cmd) {
				var err error
				if req.AccessRequest, err = access.request(a, cmd, api.Access{}); err != nil {
					return err
				}
				if req.Access == "" {
					return withHint(usagef("--access is missing"), "--from and --read-only of a link stand in the place of what its tunnel asks for: say who, too")
				}
			}
			return a.withTunnel(cmd, args[0], func(s *session, id ident.SessionID) error {
				k, err := s.client.CreateLink(cmd.Context(), id, req)
				if err != nil {
					return err
				}
				if a.json {
					return a.document(k)
				}
				if err := a.printf("%s\n", clean(k.URL)); err != nil {
					return err
				}
				uses := "any number of viewers"
				if k.MaxUses == 1 {
					uses = "one viewer"
				} else if k.MaxUses > 1 {
					uses = fmt.Sprintf("%d viewers", k.MaxUses)
				}
				a.notef("link %s for %s, ends %s; revoke it with: adit links revoke %s %s", k.LinkID, uses, until(k.ExpiresAt, time.Now()), id, k.LinkID)
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "whom or what the link is for, at most 64 characters")
	f.Var(&expires, "expires", "end after this time (default: with the tunnel)")
	access.register(cmd, "the tunnel's")
	f.IntVar(&most, "max-uses", 0, "admit so many viewers (default: any number)")
	return cmd
}

func (a *app) linksRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke AGENT|SESSION LINK",
		Short: "take a named link back and cut who came in by it",
		Long: `revoke ends a named link. Who uses the tunnel by it is cut off within a second; the
tunnel itself, and who came in otherwise, stay. LINK is its id or its URL.`,
		Example: `  adit links revoke gpu-7 9f0c8a5e9b7d4c21a6e8f0b1d2c3e4f5`,
		Args:    exactArgs("AGENT or SESSION", "LINK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			link, err := parseLink(args[1])
			if err != nil {
				return err
			}
			return a.withTunnel(cmd, args[0], func(s *session, id ident.SessionID) error {
				if err := s.client.RevokeLink(cmd.Context(), id, link); err != nil {
					return err
				}
				a.notef("revoked %s", link)
				return nil
			})
		},
	}
}

// parseLink checks a LINK: a named link's id, or its whole URL.
func parseLink(text string) (ident.LinkID, error) {
	if u, ok := parseTunnelURL(text); ok {
		if id, ok := sessionOf(u); ok {
			text = string(id) // a link's URL has the link's id in that place
		}
	}
	link, err := ident.ParseLinkID(text)
	if err != nil {
		return "", withHint(usagef("link: %w", err), "`adit links AGENT` lists them; a link's URL will do as well")
	}
	return link, nil
}

// withTunnel finds the tunnel that an argument means and calls f for it.
func (a *app) withTunnel(cmd *cobra.Command, arg string, f func(*session, ident.SessionID) error) error {
	id, err := parseSession(arg)
	byAgent := err != nil
	var agent ident.AgentID
	if byAgent {
		if agent, err = parseAgent(arg); err != nil {
			return err
		}
	}
	s, err := a.connectRelay(cmd)
	if err != nil {
		return err
	}
	defer s.client.Close()
	stop := a.spin("asking the relay")
	defer stop()
	if byAgent {
		st, err := s.client.TunnelStatus(cmd.Context(), agent)
		if err != nil {
			return err
		}
		switch len(st.Sessions) {
		case 0:
			return withHint(fmt.Errorf("%s has no open tunnel", agent), "`adit open %s` opens one", agent)
		case 1:
		default:
			return withHint(usagef("%s has %d open tunnels", agent, len(st.Sessions)), "name the session: `adit status %s` lists them", agent)
		}
		id = st.Sessions[0].SessionID
	}
	stop()
	return f(s, id)
}
