package aditcli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/prompt"
)

// envPIN names the variable that holds a tunnel's PIN: arguments are visible to others.
const envPIN = "ADIT_PIN"

// accessHelp says in a command's help what the modes are.
const accessHelp = `--access says who may use it: anyone (who has the URL), team (its members, signed in),
people (those whom --people names: alice@example.com, *@example.com, group:NAME), pin
(who knows it: it is read from ADIT_PIN, --pin-file or a prompt), knock (whom somebody of
the team lets in). --from narrows it to networks, --read-only to looking.`

// accessFlags say who may use a tunnel, or come by a named link.
type accessFlags struct {
	mode, pinFile string
	people, from  []string
	readOnly      bool
}

func (f *accessFlags) register(cmd *cobra.Command, otherwise string) {
	p := cmd.Flags()
	p.StringVar(&f.mode, "access", "", "who may use it: anyone, team, people, pin or knock (default: "+otherwise+")")
	p.StringSliceVar(&f.people, "people", nil, "with --access people: addresses, *@example.com, group:NAME; separated by commas, repeatable")
	p.StringVar(&f.pinFile, "pin-file", "", "with --access pin: file that holds the PIN [ADIT_PIN]")
	p.StringSliceVar(&f.from, "from", nil, "networks that it may be used from, as 203.0.113.0/24; separated by commas, repeatable")
	p.BoolVar(&f.readOnly, "read-only", false, "let nobody change anything: GET, HEAD and OPTIONS, and of WebSockets what the app sends")
	_ = cmd.RegisterFlagCompletionFunc("access", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) { // fails only for a flag that is not there
		out := make([]string, len(api.AccessModes))
		for i, m := range api.AccessModes {
			out[i] = string(m)
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	})
}

// given says whether any of them was.
func (f *accessFlags) given(cmd *cobra.Command) bool {
	return slices.ContainsFunc([]string{"access", "people", "pin-file", "from", "read-only"}, cmd.Flags().Changed)
}

// request is what they ask for, in the place of what is now. It reads the PIN, which may stay
// where there is one already.
func (f *accessFlags) request(a *app, cmd *cobra.Command, now api.Access) (api.AccessRequest, error) {
	req := api.AccessRequest{Access: now.Access, People: now.People, From: now.From, ReadOnly: now.ReadOnly}
	changed := cmd.Flags().Changed
	switch {
	case changed("access"):
		req.Access = api.AccessMode(f.mode)
	case changed("people"):
		req.Access = api.AccessPeople
	case changed("pin-file"):
		req.Access = api.AccessPIN
	}
	if req.Access != "" && !req.Access.Valid() {
		return req, usagef("--access %q: it is one of anyone, team, people, pin, knock", f.mode)
	}
	if changed("people") {
		req.People = f.people
	}
	switch {
	case req.Access != api.AccessPeople && changed("people"):
		return req, usagef("--people goes with --access people")
	case req.Access == api.AccessPeople && len(req.People) == 0 && (changed("access") || changed("people")):
		return req, withHint(usagef("--people is missing"), "it says who, as --people alice@example.com,*@partner.example")
	case req.Access != api.AccessPeople:
		req.People = nil
	}
	if changed("from") {
		req.From = f.from
	}
	if changed("read-only") {
		req.ReadOnly = f.readOnly
	}
	if req.Access != api.AccessPIN {
		if changed("pin-file") {
			return req, usagef("--pin-file goes with --access pin")
		}
		return req, nil
	}
	if stays := now.Access == api.AccessPIN; stays && !changed("access") && !changed("pin-file") {
		return req, nil
	}
	var err error
	req.PIN, err = a.pin(f.pinFile, now.Access == api.AccessPIN)
	return req, err
}

// pin reads a PIN; one that may stay may be left empty.
func (a *app) pin(file string, mayStay bool) (string, error) {
	pin := a.getenv(envPIN)
	switch {
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read PIN: %w", err)
		}
		defer func() { _ = f.Close() }()
		b, err := io.ReadAll(io.LimitReader(f, 4<<10))
		if err != nil {
			return "", fmt.Errorf("read PIN: %w", err)
		}
		pin = strings.TrimRight(string(b), "\r\n")
	case pin == "":
		f, ok := a.in.(*os.File)
		if !ok || !isTerminal(f) || !a.errTTY {
			if mayStay {
				return "", nil
			}
			return "", withHint(usagef("the PIN is missing"), "put it into %s, or into a file for --pin-file", envPIN)
		}
		question := "PIN, 6 to 64 characters: "
		if mayStay {
			question = "PIN, 6 to 64 characters (empty: it stays): "
		}
		var err error
		if pin, err = prompt.Secret(f, a.err, question); err != nil {
			return "", fmt.Errorf("read PIN: %w", err)
		}
	}
	if n := utf8.RuneCountInString(pin); (n < 6 || n > 64) && (n > 0 || !mayStay) {
		return "", usagef("the PIN has %d characters: it must have 6 to 64", n)
	}
	return pin, nil
}

// accessText says in words who may use something. A relay of the last release says nothing,
// and lets in who has the URL.
func accessText(c api.Access) string {
	text := map[api.AccessMode]string{
		"": "anyone who has the URL", api.AccessAnyone: "anyone who has the URL", api.AccessTeam: "members of the team",
		api.AccessPIN: "who knows the PIN", api.AccessKnock: "whom the team lets in", api.AccessPeople: "who opened it",
	}[c.Access]
	switch {
	case len(c.People) > 0:
		text = strings.Join(c.People, ", ")
	case text == "":
		text = string(c.Access)
	}
	if len(c.From) > 0 {
		text += ", from " + strings.Join(c.From, ", ")
	}
	if c.ReadOnly {
		text += ", to look only"
	}
	return text
}

// accessColumn is accessText for tables.
func accessColumn(c api.Access) string {
	text := string(c.Access)
	if text == "" {
		text = string(api.AccessAnyone)
	}
	if len(c.From) > 0 {
		text += ", some networks"
	}
	if c.ReadOnly {
		text += ", read only"
	}
	return text
}

func (a *app) accessCommand() *cobra.Command {
	var (
		flags accessFlags
		link  string
	)
	cmd := &cobra.Command{
		Use:   "access AGENT|SESSION",
		Short: "show or change who may use a tunnel, or come by a named link",
		Long: `access says who may use a tunnel, or with --link who may come by one of its named links,
and changes it. What a flag does not name stays as it is. Who may not use it any more is
cut off within a second.

` + accessHelp + `

With --link, --access tunnel gives the link its tunnel's access again.
AGENT stands for the machine's only open tunnel; with several, name the SESSION (its
id or URL). A tunnel's admin token in ADIT_TOKEN is enough with SESSION.`,
		Example: `  adit access gpu-7
  adit access gpu-7 --access team --read-only
  adit access gpu-7 --people 'alice@example.com,*@partner.example'
  adit access gpu-7 --link 9f0c8a5e9b7d4c21a6e8f0b1d2c3e4f5 --access pin --pin-file pin.txt`,
		Args:              exactArgs("AGENT or SESSION"),
		ValidArgsFunction: a.completeAgents,
		RunE: func(cmd *cobra.Command, args []string) error {
			var id ident.LinkID
			if link != "" {
				var err error
				if id, err = parseLink(link); err != nil {
					return err
				}
			}
			return a.withTunnel(cmd, args[0], func(s *session, tunnel ident.SessionID) error {
				if id != "" {
					return a.linkAccess(cmd, s, tunnel, id, &flags)
				}
				now, err := s.client.Access(cmd.Context(), tunnel)
				if err != nil {
					return olderRelay(err)
				}
				if flags.given(cmd) {
					req, err := flags.request(a, cmd, now)
					if err != nil {
						return err
					}
					if now, err = s.client.SetAccess(cmd.Context(), tunnel, req); err != nil {
						return err
					}
				}
				if a.json {
					return a.document(now)
				}
				return a.printf("%s\n", clean(accessText(now)))
			})
		},
	}
	flags.register(cmd, "as it is")
	cmd.Flags().StringVar(&link, "link", "", "of this named link (its id or URL), not of the tunnel's own URL")
	return cmd
}

func (a *app) linkAccess(cmd *cobra.Command, s *session, tunnel ident.SessionID, id ident.LinkID, flags *accessFlags) error {
	l, err := s.client.Links(cmd.Context(), tunnel)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(l.Links, func(k api.NamedLink) bool { return k.LinkID == id })
	if at < 0 {
		return withHint(fmt.Errorf("the tunnel has no named link %s", id), "`adit links %s` lists them", tunnel)
	}
	k := l.Links[at]
	if flags.given(cmd) {
		var req api.AccessRequest // the tunnel's
		if flags.mode != "tunnel" {
			if req, err = flags.request(a, cmd, k.Access); err != nil {
				return err
			}
		}
		if k, err = s.client.SetLinkAccess(cmd.Context(), tunnel, id, req); err != nil {
			return olderRelay(err)
		}
	}
	if a.json {
		return a.document(k)
	}
	return a.printf("%s\n", clean(accessText(k.Access)))
}

// olderRelay says of a route that is not there what that means.
func olderRelay(err error) error {
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Code == api.CodeNotFound {
		return withHint(errors.New("the relay is of an earlier release: who has the URL may use the tunnel"), "ask its operator to upgrade it")
	}
	return err
}
