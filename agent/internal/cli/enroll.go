package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	"golang.org/x/term"

	"github.com/adit-tunnel/adit/agent"
	"github.com/adit-tunnel/adit/agent/internal/enroll"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/lifecycle"
	"github.com/adit-tunnel/adit/shared/prompt"
)

const (
	enrollTokenEnv = "ADIT_ENROLL_TOKEN"
	enrolTokenEnv  = "ADIT_ENROL_TOKEN" // as earlier versions spelled it
	serviceUser    = "adit-agent"       // of the unit, where the package made it
	maxTokenFile   = 4 << 10
)

// enrolls are the flags that enroll takes: what it needs for itself, and what it writes.
var enrolls = []string{"relay_url", "agent_id", "credential_file", "tls.ca_file", "config", "token_file", "pair", "log.level", "log.format"}

func newEnroll() *cobra.Command {
	var path, tokenFile string
	var pair bool
	cmd := &cobra.Command{
		Use:   "enroll",
		Short: "get this machine's credential from a relay, by a code or with a single-use token",
		Long: `Get a credential from a relay, write it into credential_file, readable by the agent only,
and write the configuration file if there is none, or complete the package's own. A machine
that is enrolled already stays as it is.

With --pair a page and a code are shown: a member of the team opens the page in any browser,
compares the code and confirms. Otherwise an enrollment token is handed in (en-…, from
'adit-relay enroll create'), which comes from --token-file (- for standard input), from
ADIT_ENROLL_TOKEN, or is asked for; never from the command line, which every user of the
machine can read.`,
		Example: `  adit-agent enroll --pair --relay-url https://gateway.example.com
  ADIT_ENROLL_TOKEN="$(cat token)" adit-agent enroll --relay-url https://gateway.example.com --agent-id gpu-7`,
	}
	f := cmd.Flags()
	// The keys' own names have underscores; on this command line hyphens do as well.
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "-", "_"))
	})
	conf.Flags(f, agent.DefaultConfig())
	f.StringVar(&path, "config", cmp.Or(os.Getenv("ADIT_CONFIG"), defaultConfigFile()), "configuration file, written if it is not there [ADIT_CONFIG]")
	f.StringVar(&tokenFile, "token-file", "", "file that holds the token; - for standard input")
	f.BoolVar(&pair, "pair", false, "have a person let this machine in, by a code; no token is needed")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if pair && tokenFile != "" {
			return &exitError{exitUsage, errors.New("--pair needs no token: leave --token-file out")}
		}
		return runEnroll(cmd, path, tokenFile, pair)
	}
	return cmd
}

func defaultConfigFile() string {
	if os.Geteuid() == 0 {
		return "/etc/adit/agent.yaml"
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "agent.yaml"
	}
	return filepath.Join(dir, "adit", "agent.yaml")
}

func runEnroll(cmd *cobra.Command, path, tokenFile string, pair bool) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	_, err = os.Stat(path)
	written := err == nil
	c := agent.DefaultConfig()
	from := ""
	if written {
		from = path
	}
	if err := conf.Load(cmd.Flags(), from, &c); err != nil {
		return err
	}
	// What is said here and written nowhere would seem to be in effect.
	var unwritten error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if !slices.Contains(enrolls, f.Name) {
			unwritten = &exitError{exitUsage, &hinted{fmt.Errorf("--%s: enroll does not write that", f.Name), "put it into " + path + ", which adit-agent reads when it starts"}}
		}
	})
	if unwritten != nil {
		return unwritten
	}
	if c.CredentialFile == "" {
		c.CredentialFile = filepath.Join(filepath.Dir(path), "agent.credential")
	}
	if c.CredentialFile, err = filepath.Abs(c.CredentialFile); err != nil {
		return err
	}
	err = enroll.Vacant(c.CredentialFile)
	switch {
	case errors.Is(err, enroll.ErrEnrolled):
		show(cmd.OutOrStdout(), "%v", err)
		if len(c.RelayURL) == 0 {
			return nil // nothing to complete
		}
		return keepConfig(cmd, path, written, c)
	case err != nil:
		return err
	}
	// Every fault of the configuration but the credential, before a token is spent.
	probe := c
	probe.CredentialFile, probe.Credential = "", ident.Secret(ident.PrefixAgent)
	if err := probe.Validate(); err != nil {
		return err
	}
	tlsConf, err := c.TLSConfig()
	if err != nil {
		return err
	}
	opts := enroll.Options{
		RelayURL: c.RelayURL[0], Agent: ident.AgentID(c.AgentID), File: c.CredentialFile, Owner: serviceOwner(),
		TLS: tlsConf, Proxy: http.ProxyFromEnvironment, Client: "adit-agent/" + lifecycle.Version(),
	}
	if pair {
		opts.Show = func(p api.PairStarted) {
			show(cmd.ErrOrStderr(), "open this page in any browser, sign in, and confirm the code %s for %s within %d minutes:\n  %s", p.UserCode, c.AgentID, p.ExpiresIn/60, p.VerificationURI)
		}
	} else if opts.Token, err = enrollToken(cmd, tokenFile); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.CredentialFile), 0o755); err != nil {
		return fmt.Errorf("make the directory of the credential: %w", err)
	}
	// Whoever tires of waiting leaves nothing behind.
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	got, err := enroll.Enroll(ctx, opts)
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err != nil {
		return explain(err)
	}
	show(cmd.OutOrStdout(), "enrolled as %s", got.AgentID)
	show(cmd.ErrOrStderr(), "the credential%s is in %s", strings.TrimRight(" "+string(got.CredentialID), " "), c.CredentialFile)
	return keepConfig(cmd, path, written, c)
}

// explain adds what to do about a refusal.
func explain(err error) error {
	switch {
	case errors.Is(err, client.ErrNotLetIn):
		return &hinted{err, "a code is good for five minutes: run this again for a new one"}
	case errors.Is(err, client.ErrNoPairing):
		return &hinted{err, "enroll with a token; on the relay's host: adit-relay enroll create --team TEAM"}
	}
	if p, ok := errors.AsType[*api.Problem](err); ok {
		switch p.Code {
		case api.CodeEnrollmentRefused:
			return &hinted{err, "a token works once and for a limited time; on the relay's host: adit-relay enroll create --team TEAM"}
		case api.CodeTooManyCredentials:
			return &hinted{err, "on the relay's host: adit-relay credential list, and revoke what is not needed"}
		}
		if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
			return &exitError{exitTryAgain, err}
		}
		return err
	}
	if errors.Is(err, enroll.ErrUnanswered) {
		return &hinted{err, "mend the way to the relay (`adit-agent doctor`) and run this again; if the token counts as used then, ask for a new one"}
	}
	return err
}

// enrollToken finds the token: the file's, the environment's, or a person's.
func enrollToken(cmd *cobra.Command, file string) (ident.Secret, error) {
	var text string
	switch {
	case file == "-":
		b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxTokenFile))
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		text = string(b)
	case file != "":
		b, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		text = string(b)
	case os.Getenv(enrollTokenEnv) != "":
		text = os.Getenv(enrollTokenEnv)
	case os.Getenv(enrolTokenEnv) != "":
		text = os.Getenv(enrolTokenEnv)
	default:
		in, ok := cmd.InOrStdin().(*os.File)
		if !ok || !term.IsTerminal(int(in.Fd())) {
			return "", &exitError{exitUsage, &hinted{errors.New("no enrollment token"), "let a person confirm a code, with --pair; or name a file with --token-file, or set " + enrollTokenEnv}}
		}
		var err error
		if text, err = prompt.Secret(in, cmd.ErrOrStderr(), "enrollment token (en-…): "); err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
	}
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, ident.PrefixEnroll) || strings.ContainsAny(text, " \t\r\n") {
		return "", fmt.Errorf("this is no enrollment token: those begin with %s", ident.PrefixEnroll)
	}
	return ident.Secret(text), nil
}

// serviceOwner is the user of the service, when this is root and there is one.
func serviceOwner() int {
	if os.Geteuid() != 0 {
		return -1
	}
	u, err := user.Lookup(serviceUser)
	if err != nil {
		return -1
	}
	id, err := strconv.Atoi(u.Uid)
	if err != nil {
		return -1
	}
	return id
}

// keepConfig writes the configuration file, or says what one that is there lacks.
func keepConfig(cmd *cobra.Command, path string, written bool, c agent.Config) error {
	if !written {
		if err := writeConfig(path, c); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s; next: systemctl enable --now adit-agent, or adit-agent run --config %s\n", path, path)
		return nil
	}
	own, none := agent.DefaultConfig(), pflag.NewFlagSet("", pflag.ContinueOnError)
	conf.Flags(none, own)
	if err := conf.Load(none, path, &own); err != nil {
		return err
	}
	if len(own.RelayURL) == 0 {
		done, err := completeConfig(path, c)
		if err != nil {
			return err
		}
		if done {
			fmt.Fprintf(cmd.ErrOrStderr(), "completed %s; next: systemctl enable --now adit-agent, or adit-agent run --config %s\n", path, path)
			return nil
		}
	}
	if len(own.RelayURL) == 0 || own.RelayURL[0] != c.RelayURL[0] || own.AgentID != c.AgentID || own.CredentialFile != c.CredentialFile {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s was there and is as it was; it should say:\n%s", path, minimal(c))
	}
	return nil
}

// minimal is the least that the agent runs with, as YAML.
func minimal(c agent.Config) []byte {
	type caFile struct {
		CAFile string `yaml:"ca_file"`
	}
	out := struct {
		RelayURL       string  `yaml:"relay_url"`
		AgentID        string  `yaml:"agent_id"`
		CredentialFile string  `yaml:"credential_file"`
		TLS            *caFile `yaml:"tls,omitempty"`
	}{RelayURL: c.RelayURL[0], AgentID: c.AgentID, CredentialFile: c.CredentialFile}
	if c.TLS.CAFile != "" {
		out.TLS = &caFile{c.TLS.CAFile}
	}
	b, err := yaml.Marshal(out)
	if err != nil {
		panic(err) // a struct of strings
	}
	return b
}

func writeConfig(path string, c agent.Config) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the directory of the configuration: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	text := "# Written by adit-agent enroll. Every key: adit-agent run --help\n" + string(minimal(c))
	if _, err = f.WriteString(text); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}
