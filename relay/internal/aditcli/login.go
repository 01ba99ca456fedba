package aditcli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/prompt"
)

// loggedIn is the --json document of login; it holds no secret.
type loggedIn struct {
	URL        string `json:"url"`
	Team       string `json:"team,omitempty"`
	ConfigFile string `json:"config_file"`
	Agents     int    `json:"agents"`
}

func (a *app) loginCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "login [URL]",
		Short: "store a relay's address and your token",
		Long: `login stores a relay's address, your token and your team in the configuration
file (mode 0600), after a call has shown that they work.

The token is asked for without echo, or read from stdin when that is no terminal,
or taken from ADIT_TOKEN. It is never an argument: others can see those.`,
		Example: `  adit login https://gateway.example.com
  adit login https://gateway.example.com --team 0b1e6f2c-3a44-4f6e-9d7a-2b1c3d4e5f60
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
			return a.login(cmd, s)
		},
	}
}

func (a *app) login(cmd *cobra.Command, s settings) error {
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
	if s.Token = ident.Secret(strings.TrimSpace(a.getenv("ADIT_TOKEN"))); s.Token == "" {
		if s.Token, err = a.askToken(base.Host); err != nil {
			return err
		}
	}
	if strings.HasPrefix(s.Token.Reveal(), ident.PrefixAgent) {
		return withHint(errors.New("this is an agent's credential: it opens no tunnels"), "use a token of yours (dk-…), an integration's (sk-…), or the one that your issuer gives you")
	}
	sess, err := newSession(s, client.DefaultTimeout)
	if err != nil {
		return err
	}
	defer sess.client.Close()
	stop := a.spin("calling " + base.Host)
	agents, err := sess.client.Agents(cmd.Context(), 1, 1)
	stop()
	if err != nil {
		return fmt.Errorf("log in to %s: %w", s.URL, err)
	}
	path, err := a.saveSettings(s)
	if err != nil {
		return err
	}
	n := agents.PageMeta.TotalCount
	if a.json {
		return a.document(loggedIn{URL: s.URL, Team: s.Team, ConfigFile: path, Agents: n})
	}
	a.notef("logged in to %s (agents: %d); kept in %s", s.URL, n, path)
	return nil
}

// askToken reads the token from a prompt without echo, or from stdin.
func (a *app) askToken(host string) (ident.Secret, error) {
	if f, ok := a.in.(*os.File); ok && isTerminal(f) {
		token, err := prompt.Secret(f, a.err, "token for "+host+": ")
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		return checkToken(token)
	}
	line, err := bufio.NewReader(io.LimitReader(a.in, 64<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read token: %w", err)
	}
	return checkToken(line)
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
