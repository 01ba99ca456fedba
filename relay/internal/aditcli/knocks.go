package aditcli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/ident"
)

func (a *app) knocksCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "knocks AGENT|SESSION",
		Short: "show who waits at a tunnel to be let in",
		Long: `knocks lists who waits at a tunnel, or a named link of it, with access knock. They wait
for 10 minutes; the name is what they say, so look at where they are from as well.

AGENT stands for the machine's only open tunnel; with several, name the SESSION (its
id or URL). A tunnel's admin token in ADIT_TOKEN is enough with SESSION.`,
		Example: `  adit knocks gpu-7
  adit admit gpu-7 1f0c8a5e9b7d4c21`,
		Args:              exactArgs("AGENT or SESSION"),
		ValidArgsFunction: a.completeAgents,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withTunnel(cmd, args[0], func(s *session, id ident.SessionID) error {
				l, err := s.client.Knocks(cmd.Context(), id)
				if err != nil {
					return err
				}
				if a.json {
					return a.document(l)
				}
				if len(l.Knocks) == 0 {
					a.notef("nobody waits")
					return nil
				}
				now := time.Now()
				var t table
				t.row("KNOCK", "NAME", "FROM", "SINCE", "WAITS UNTIL", "PROGRAM")
				for _, k := range l.Knocks {
					t.row(k.KnockID, k.Name, k.RemoteAddr, ago(k.KnockedAt, now), until(k.ExpiresAt, now), k.Browser)
				}
				return a.printf("%s", t.render(a, true))
			})
		},
	}
}

func (a *app) admitCommand() *cobra.Command {
	var refuse bool
	cmd := &cobra.Command{
		Use:   "admit AGENT|SESSION KNOCK",
		Short: "let in who waits at a tunnel, or refuse them",
		Long: `admit lets in one of those that knocks lists. They may use the tunnel, with the browser
that they knocked with, until it closes, its access is changed or 12 hours have passed.`,
		Example: `  adit admit gpu-7 1f0c8a5e9b7d4c21
  adit admit gpu-7 1f0c8a5e9b7d4c21 --refuse`,
		Args:              exactArgs("AGENT or SESSION", "KNOCK"),
		ValidArgsFunction: a.completeAgents,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] == "" || args[1] == "." || args[1] == ".." {
				return withHint(usagef("knock: %q is none", args[1]), "`adit knocks AGENT` lists them")
			}
			return a.withTunnel(cmd, args[0], func(s *session, id ident.SessionID) error {
				if err := s.client.AnswerKnock(cmd.Context(), id, args[1], !refuse); err != nil {
					return err
				}
				if refuse {
					a.notef("refused %s", args[1])
				} else {
					a.notef("admitted %s", args[1])
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&refuse, "refuse", false, "do not let them in")
	return cmd
}
