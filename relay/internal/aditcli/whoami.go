package aditcli

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/ident"
)

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "show who you are to the relay, and in which teams",
		Example: `  adit whoami
  adit whoami --json | jq -r .role`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			defer s.client.Close()
			me, err := s.client.Me(cmd.Context())
			if p, ok := errors.AsType[*api.Problem](err); ok && p.Code == api.CodeNotFound {
				return withHint(fmt.Errorf("%s is of an earlier release and does not say who you are", s.URL), "`adit agents` shows whether the token works")
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.document(me)
			}
			return a.printf("%s", a.who(s.URL, me).render(a, false))
		},
	}
}

// who is what a relay says of the caller, a line for each thing that it says.
func (a *app) who(relay string, me api.Me) *table {
	t := &table{}
	line := func(what, text string) {
		if text != "" {
			t.row(what, text)
		}
	}
	line("relay", relay)
	line("you", strings.Join(strings.Fields(me.UserName+" "+me.Email), " "))
	line("user id", string(me.UserID))
	if device, ok := strings.CutPrefix(me.Name, "dk:"+string(me.UserID)+"/"); ok {
		line("device", device)
	} else if me.UserID == "" { // of a person the lines above say it all
		line("known as", me.Name)
	}
	line("role", string(me.Role))
	scopes := make([]string, len(me.Scopes))
	for i, s := range me.Scopes {
		scopes[i] = string(s)
	}
	line("scopes", strings.Join(scopes, ", "))
	line("machines", strings.Join(me.Agents, ", "))
	line("ports", me.Ports)
	if !me.ExpiresAt.IsZero() {
		line("ends", until(me.ExpiresAt, time.Now()))
	}
	for _, m := range me.Teams {
		here := ""
		if m.TeamID == me.TeamID {
			here = ", this one"
		}
		line("team", strings.TrimSpace(m.TeamName+" "+string(m.TeamID))+" ("+string(m.Role)+here+")")
	}
	return t
}

// loggedOut is the --json document of logout.
type loggedOut struct {
	URL     string       `json:"url"`
	Revoked *api.Revoked `json:"revoked,omitempty"` // absent: the token was forgotten here, and no more
}

func (a *app) logoutCommand() *cobra.Command {
	var keepTunnels, forget bool
	cmd := &cobra.Command{
		Use:   "logout",
		Short: "end this machine's access and forget its secret",
		Long: `logout revokes this machine's own token (dk-…) at the relay, which closes what was
opened with it, and removes it from the configuration file. A token of another kind is
forgotten here, and goes on working elsewhere. --forget asks no relay.`,
		Example: `  adit logout
  adit logout --keep-tunnels`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.logout(cmd, keepTunnels, forget) },
	}
	cmd.Flags().BoolVar(&keepTunnels, "keep-tunnels", false, "leave open what was opened with it")
	cmd.Flags().BoolVar(&forget, "forget", false, "only remove the token from the file")
	return cmd
}

func (a *app) logout(cmd *cobra.Command, keepTunnels, forget bool) error {
	if a.getenv("ADIT_TOKEN") != "" {
		return withHint(errors.New("ADIT_TOKEN is set: it would be used again at once"), "unset ADIT_TOKEN, and run this again for the token in the file")
	}
	s, err := a.loadSettings(cmd.Flags())
	if err != nil {
		return err
	}
	if s.Token == "" {
		return withHint(errors.New("nobody is logged in here"), "`%s` lets this machine in", a.loginAgain("URL"))
	}
	out := loggedOut{URL: s.URL}
	if strings.HasPrefix(s.Token.Reveal(), ident.PrefixDevice) && !forget {
		if out.Revoked, err = a.revokeDevice(cmd, s, keepTunnels); err != nil {
			return err
		}
	}
	s.Token = ""
	path, err := a.saveSettings(s)
	if err != nil {
		return err
	}
	switch {
	case a.json:
		return a.document(out)
	case out.Revoked == nil:
		a.notef("the token for %s is gone from %s; it was not revoked", s.URL, path)
	default:
		a.notef("logged out of %s (tunnels closed: %d); the token is gone from %s", s.URL, out.Revoked.Tunnels, path)
	}
	return nil
}

// revokeDevice ends the token at the relay; nil: there it is worth nothing already, or the
// relay knows no such thing.
func (a *app) revokeDevice(cmd *cobra.Command, s settings, keepTunnels bool) (*api.Revoked, error) {
	s.Team = "" // the token names its own
	sess, err := newSession(cmd.Context(), s, client.DefaultTimeout)
	if err != nil {
		return nil, err
	}
	defer sess.client.Close()
	out, err := sess.client.RevokeDevice(cmd.Context(), keepTunnels)
	switch p, ok := errors.AsType[*api.Problem](err); {
	case err == nil:
		return &out, nil
	case ok && p.Status == http.StatusUnauthorized:
		return &api.Revoked{}, nil
	case ok && p.Code == api.CodeNotFound:
		a.notef("warning: %s is of an earlier release: the token works until somebody revokes it there", s.URL)
		return nil, nil
	}
	return nil, withHint(err, "nothing has changed; `adit logout --forget` removes the token here alone")
}
