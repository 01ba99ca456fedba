package aditcli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/prompt"
)

// loggedIn is the --json document of login; it holds no secret.
type loggedIn struct {
	URL        string `json:"url"`
	Team       string `json:"team,omitempty"`
	TeamName   string `json:"team_name,omitempty"`
	UserName   string `json:"user_name,omitempty"`
	Profile    string `json:"profile,omitempty"`
	ConfigFile string `json:"config_file"`
	Agents     int    `json:"agents"`
}

func (a *app) loginCommand() *cobra.Command {
	var withToken, noBrowser bool
	cmd := &cobra.Command{
		Use:   "login [URL]",
		Short: "let this machine in at a relay",
		Long: `login lets this machine in at a relay. It shows a page and a code, and opens the page if
this machine has a browser: sign in there, compare the code and confirm. On a machine
without a browser open the page on any other one.

What comes back is a secret of this machine alone (dk-…). It acts as you, in one team, and
is kept in the configuration file (mode 0600). It has no end of its own: it ends with
` + "`adit logout`" + `, when it is revoked, or when you leave the team.

With a token that you have already, of an integration or of your issuer, say --with-token:
it is asked for without echo. It is also read from stdin when something is piped there,
or taken from ADIT_TOKEN. It is never an argument: others can see those.

Several relays, or several people on one machine, are told apart with --profile.`,
		Example: `  adit login https://gateway.example.com
  adit login https://gateway.example.com --profile work
  adit login localhost:8080 < token.txt`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return withHint(usagef("login takes one address"), "the token is asked for, read from stdin, or taken from ADIT_TOKEN")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.loadSettings(cmd.Flags())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				s.URL = args[0]
			}
			return a.login(cmd, s, withToken, noBrowser)
		},
	}
	cmd.Flags().BoolVar(&withToken, "with-token", false, "ask for a token that you have")
	cmd.Flags().BoolVar(&noBrowser, "no-browser", false, "show the page's address, and open nothing")
	return cmd
}

func (a *app) login(cmd *cobra.Command, s settings, withToken, noBrowser bool) error {
	if s.URL == "" {
		return withHint(usagef("the relay's address is missing"), "adit login https://gateway.example.com")
	}
	base, err := client.ParseBaseURL(s.URL)
	if err != nil {
		return &usageError{err}
	}
	s.URL = base.String()
	if s.CAFile != "" { // later commands run in other directories
		if s.CAFile, err = filepath.Abs(s.CAFile); err != nil {
			return err
		}
	}
	if base.Scheme == "http" && !client.IsLoopback(base) {
		a.notef("warning: %s is plain HTTP: anybody on the way can read your token", s.URL)
	}
	// The token of the file is what login replaces, so only the environment counts.
	s.Token = ident.Secret(strings.TrimSpace(a.getenv("ADIT_TOKEN")))
	if s.Token == "" && !withToken {
		if s.Token, err = a.pipedToken(); err != nil {
			return err
		}
	}
	var who api.PairPolled
	if s.Token == "" && !withToken {
		if who, err = a.pair(cmd.Context(), s, noBrowser); err == nil {
			s.Token, s.Team = ident.Secret(who.RawKey), "" // the key names its team
		} else if errors.Is(err, client.ErrNoPairing) {
			a.notef("adit: %s is of an earlier release, which lets machines in by a token only", base.Host)
		} else {
			return err
		}
	}
	if s.Token == "" {
		if s.Token, err = a.askToken(base.Host); err != nil {
			return err
		}
	}
	if strings.HasPrefix(s.Token.Reveal(), ident.PrefixAgent) {
		return withHint(errors.New("this is an agent's credential: it opens no tunnels"), "use a token of yours (dk-…), an integration's (sk-…), or the one that your issuer gives you")
	}
	sess, err := newSession(cmd.Context(), s, client.DefaultTimeout)
	if err != nil {
		return err
	}
	defer sess.client.Close()
	if who.RawKey != "" { // it comes once: kept before anything else can go wrong
		if _, err := a.saveSettings(sess.settings); err != nil {
			return err
		}
	}
	stop := a.spin("calling " + base.Host)
	agents, err := sess.client.Agents(cmd.Context(), 1, 1)
	stop()
	if err != nil {
		return fmt.Errorf("log in to %s: %w", s.URL, err)
	}
	path, err := a.saveSettings(sess.settings)
	if err != nil {
		return err
	}
	n := agents.PageMeta.TotalCount
	if a.json {
		return a.document(loggedIn{
			URL: s.URL, Team: cmp.Or(sess.Team, string(who.TeamID)), TeamName: who.TeamName, UserName: who.UserName, Profile: a.profileName(), ConfigFile: path, Agents: n,
		})
	}
	as := ""
	if who.UserName != "" {
		as += " as " + who.UserName
	}
	if team := cmp.Or(who.TeamName, string(who.TeamID)); team != "" {
		as += ", team " + team
	}
	a.notef("logged in to %s%s (agents: %d); kept in %s", s.URL, as, n, path)
	switch {
	case who.RawKey == "":
	case n == 0:
		a.notef("next, on a GPU machine: adit-agent enroll --pair --relay-url %s", s.URL)
	default:
		a.notef("next: adit agents")
	}
	return nil
}

// loginAgain is the command that lets this machine in.
func (a *app) loginAgain(url string) string {
	if name := a.profileName(); name != "" {
		url += " --profile " + name
	}
	return "adit login " + url
}

// pair gets this machine a key of its own.
func (a *app) pair(ctx context.Context, s settings, noBrowser bool) (api.PairPolled, error) {
	s.Token, s.Team = "", "" // nobody is who they were
	sess, err := newSession(ctx, s, client.DefaultTimeout)
	if err != nil {
		return api.PairPolled{}, err
	}
	defer sess.client.Close()
	stop := func() {}
	defer func() { stop() }()
	out, err := sess.client.Pair(ctx, api.PairStartRequest{Client: cut(userAgent(), 64), MachineName: cut(hostName(), 100)}, func(p api.PairStarted) {
		a.notef("open this page, sign in, and confirm the code %s within %s:", p.UserCode, span(time.Duration(p.ExpiresIn)*time.Second))
		a.notef("  %s", p.VerificationURI)
		if !noBrowser && a.openBrowser(ctx, p.VerificationURI) {
			a.notef("it opens in your browser")
		}
		stop = a.spin("waiting for you to confirm")
	})
	if err == nil && !strings.HasPrefix(out.RawKey, ident.PrefixDevice) {
		err = errors.New("the relay let this machine in and gave no key for it")
	}
	if errors.Is(err, client.ErrNotLetIn) {
		err = withHint(err, "run `%s` again for a new code", a.loginAgain(s.URL))
	}
	return out, err
}

func hostName() string {
	name, _ := os.Hostname() // the person sees an address as well
	return clean(name)
}

// cut shortens a text to so many characters.
func cut(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most])
	}
	return s
}

// pipedToken reads a token from stdin, if something is piped there.
func (a *app) pipedToken() (ident.Secret, error) {
	if f, ok := a.in.(*os.File); ok && isTerminal(f) {
		return "", nil
	}
	line, err := bufio.NewReader(io.LimitReader(a.in, 64<<10)).ReadString('\n')
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return "", fmt.Errorf("read token: %w", err)
	case line == "":
		return "", nil
	}
	return checkToken(line)
}

// askToken asks for the token at a prompt without echo.
func (a *app) askToken(host string) (ident.Secret, error) {
	f, ok := a.in.(*os.File)
	if !ok || !isTerminal(f) {
		token, err := a.pipedToken()
		if err == nil && token == "" {
			return checkToken("")
		}
		return token, err
	}
	token, err := prompt.Secret(f, a.err, "token for "+host+": ")
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	return checkToken(token)
}

func checkToken(s string) (ident.Secret, error) {
	s = strings.TrimSpace(s)
	switch {
	case s == "":
		return "", withHint(errors.New("no token was given"), "type it at the prompt, pipe it into stdin, or set ADIT_TOKEN")
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", errors.New("that is no token: it holds blanks or other characters that no token has")
	}
	return ident.Secret(s), nil
}
