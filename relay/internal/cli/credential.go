package cli

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/printable"
)

func newCredential() *cobra.Command {
	cmd := &cobra.Command{Use: "credential", Short: "create, list and revoke credentials (over the admin socket)"}
	socketFlag(cmd)
	cmd.AddCommand(newCredentialCreate(), newCredentialList(), newCredentialRevoke())
	return cmd
}

func newCredentialCreate() *cobra.Command {
	var kind, team, user, agent, name, expires, role, ports string
	var scopes, agents []string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "create a credential and print its secret, the only time it is shown",
		Long: `Create prints the secret alone on stdout, so that it can go straight into a file.
Only a hash of it is kept: what is lost is replaced, not shown again.`,
		Example: `  adit-relay credential create --kind agent --team 6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11 --agent gpu-1 > credential
  adit-relay credential create --kind integration --team vision --name ci --expires 90d
  # it opens tunnels to ComfyUI on the machines of one pool, and nothing else
  adit-relay credential create --kind integration --team vision --name farm --role member --scope tunnels --agents 'render-*' --ports 8188
  adit-relay credential create --kind device --team vision --user alice --name laptop`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := admin.CreateCredential{Kind: api.CredentialKind(kind), User: ident.UserID(user), Agent: ident.AgentID(agent), Name: name, Role: api.Role(role), Agents: agents, Ports: ports}
			for _, s := range scopes {
				req.Scopes = append(req.Scopes, api.Scope(s))
			}
			if expires != "" {
				d, err := api.ParseDuration(expires)
				if err != nil {
					return usageError{fmt.Errorf("--expires: %w", err)}
				}
				req.ExpiresIn = &d
			}
			if req.Name == "" {
				req.Name = defaultName(req)
			}
			c, id, err := dialTeam(cmd, team)
			if err != nil {
				return err
			}
			req.Team = id
			var out api.CreatedCredential
			if err := c.Call(cmd.Context(), http.MethodPost, "/v1/credentials", nil, req, &out); err != nil {
				return fmt.Errorf("create credential: %w", err)
			}
			show(cmd.ErrOrStderr(), "created %s %s (%s…)\n", out.Kind, out.ID, out.Prefix)
			_, err = fmt.Fprintln(cmd.OutOrStdout(), out.Secret)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "", "integration, agent or device")
	teamFlag(cmd, &team)
	f.StringVar(&user, "user", "", "whose it is (kind device)")
	f.StringVar(&agent, "agent", "", "the only agent that may use it (kind agent; default: any agent of the team)")
	f.StringVar(&name, "name", "", "a name for lists")
	f.StringVar(&role, "role", "", "the most that it may in the team: viewer, member, admin or owner (kinds integration and device; default: admin)")
	f.StringSliceVar(&scopes, "scope", nil, "only for this: read, tunnels, tasks, links or mcp; several if given again (kind integration; default: all)")
	f.StringSliceVar(&agents, "agents", nil, "only on agents that fit this pattern, as 'render-*'; several if given again (kind integration; default: any)")
	_ = cmd.RegisterFlagCompletionFunc("role", roles) // fails only for a flag that is not there
	f.StringVar(&ports, "ports", "", "only to these ports, as 8188,8000-8100 (kind integration; default: any)")
	f.StringVar(&expires, "expires", "", "lifetime, such as 90d (1 to 365 days; default: it does not expire)")
	return cmd
}

func defaultName(req admin.CreateCredential) string {
	switch {
	case req.Agent != "":
		return string(req.Agent)
	case req.User != "":
		return string(req.User)
	}
	return string(req.Kind)
}

func newCredentialList() *cobra.Command {
	var team string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "list a team's credentials, never their secrets", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, id, err := dialTeam(cmd, team)
			if err != nil {
				return err
			}
			var out api.CredentialList
			if err := c.Call(cmd.Context(), http.MethodGet, "/v1/credentials", url.Values{"team": {string(id)}}, nil, &out); err != nil {
				return fmt.Errorf("list credentials: %w", err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tKIND\tNAME\tPREFIX\tCREATED\tMADE WITH\tLAST USED\tEXPIRES\tROLE\tONLY FOR\tSTATE")
			for _, cr := range out.Credentials {
				state := "active"
				if cr.Revoked {
					state = "revoked"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s…\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cr.ID, cr.Kind, printable.Text(cr.Name), cr.Prefix, day(cr.CreatedAt, "-"), orDash(string(cr.MadeBy)), day(cr.LastUsedAt, "never"), day(cr.ExpiresAt, "never"), orDash(string(cr.Role)), orDash(onlyFor(cr)), state)
			}
			return w.Flush()
		},
	}
	teamFlag(cmd, &team)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// onlyFor says what a credential is narrowed to.
func onlyFor(c api.Credential) string {
	var parts []string
	for _, s := range c.Scopes {
		parts = append(parts, string(s))
	}
	parts = append(parts, c.Agents...)
	if c.Ports != "" {
		parts = append(parts, "ports "+c.Ports)
	}
	return strings.Join(parts, " ")
}

func newCredentialRevoke() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "revoke a credential, and close what it opened", Args: exactArgs(1),
		Long: `Revoke ends a credential and those that were made with it. What they hold open (agents'
links, event streams) ends within seconds on every relay, and the tunnels and named links
that they opened are closed; --keep-tunnels keeps these. A credential that only expires
closes no tunnel: those go on to their own end.`,
		Example: `  adit-relay credential revoke cred_0123456789abcdef
  # a key is replaced, not stolen: what it opened goes on
  adit-relay credential revoke --keep-tunnels cred_0123456789abcdef`,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := ident.ParseCredentialID(args[0])
			if err != nil {
				return usageError{err}
			}
			c, err := dial(cmd)
			if err != nil {
				return err
			}
			q := url.Values{}
			if keep {
				q.Set("keep_tunnels", "true")
			}
			var out api.Revoked
			if err := c.Call(cmd.Context(), http.MethodDelete, "/v1/credentials/"+string(id), q, nil, &out); err != nil {
				return fmt.Errorf("revoke credential: %w", err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "revoked %s%s\n", id, ended(out, keep))
			return nil
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-tunnels", false, "leave the tunnels and named links open that it opened")
	return cmd
}

// ended says what ended with a credential.
func ended(out api.Revoked, kept bool) string {
	text := ""
	if n := out.Credentials - 1; n > 0 {
		text = ", " + count(n, "credential") + " made with it"
	}
	return text + closed(out, kept)
}

// closed says what of the opened ended with a right.
func closed(out api.Revoked, kept bool) string {
	if kept {
		return "; what was opened stays open"
	}
	text := ""
	if out.Tunnels > 0 {
		text += ", closed " + count(out.Tunnels, "tunnel")
	}
	if out.Links > 0 {
		text += ", took back " + count(out.Links, "named link")
	}
	return text
}

// orDash is text for a table's cell.
func orDash(s string) string { return cmp.Or(printable.Text(s), "-") }

func day(t time.Time, zero string) string {
	if t.IsZero() {
		return zero
	}
	return t.UTC().Format("2006-01-02 15:04")
}

func printJSON(w io.Writer, v any) error {
	enc := printable.Encoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
