package aditcli

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/ident"
)

// settings are what the user's configuration file holds. Flags and environment
// (ADIT_URL, ADIT_TEAM, ADIT_TOKEN, ADIT_CA_FILE) override it.
type settings struct {
	URL    string       `conf:"url" help:"the relay's address"`
	Team   string       `conf:"team" help:"team, by name or UUID; only a person's token needs it"`
	Token  ident.Secret `conf:"token" help:"the secret"`
	CAFile string       `conf:"ca_file" help:"PEM file of authorities to trust beside the system's"`
}

func registerSettings(p *pflag.FlagSet) { conf.Flags(p, settings{}) }

// loadSettings reads flags, environment and file, in this order of precedence. A
// file that does not exist is no error, unless it was named.
func (a *app) loadSettings(flags *pflag.FlagSet) (settings, error) {
	path, err := a.settingsPath()
	if err != nil {
		return settings{}, err
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && a.configPath == "":
		path = ""
	case err != nil:
		return settings{}, fmt.Errorf("read configuration: %w", err)
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0:
		a.notef("warning: %s holds a secret and others may read it: chmod 600 %s", path, path)
	}
	var s settings
	if err := conf.Load(flags, path, &s); err != nil {
		return settings{}, err
	}
	return s, nil
}

// settingsPath is the file that --config names, or the profile's, or the one that is
// used without either.
func (a *app) settingsPath() (string, error) {
	if a.configPath != "" {
		if a.profile != "" {
			return "", usagef("--config and --profile both name the configuration file: give one of them")
		}
		return a.configPath, nil
	}
	path, err := a.defaultConfigPath()
	if name := a.profileName(); err == nil && name != "" {
		if !profileNames.MatchString(name) {
			return "", usagef("profile %q: letters, digits, dots, dashes and underscores, at most 64", name)
		}
		path = filepath.Join(filepath.Dir(path), "config-"+name+".yaml")
	}
	return path, err
}

var profileNames = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)

// profileName is the profile's name; empty: none.
func (a *app) profileName() string {
	if a.configPath != "" {
		return ""
	}
	return cmp.Or(a.profile, a.getenv("ADIT_PROFILE"))
}

func (a *app) completeProfiles(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	path, err := a.defaultConfigPath()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	files, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "config-*.yaml")) // the pattern is right
	var out []string
	for _, f := range files {
		if name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "config-"), ".yaml"); strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// defaultConfigPath is $XDG_CONFIG_HOME/adit/config.yaml, with the usual default
// of ~/.config (on Windows, %AppData%).
func (a *app) defaultConfigPath() (string, error) {
	dir := a.getenv("XDG_CONFIG_HOME")
	if dir == "" && runtime.GOOS == "windows" {
		d, err := os.UserConfigDir()
		if err != nil {
			return "", fmt.Errorf("find configuration: %w", err)
		}
		dir = d
	}
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find configuration: %w", err)
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "adit", "config.yaml"), nil
}

// saveSettings writes the file so that nobody else can read it at any moment, and
// a crash leaves the old file or the new one.
func (a *app) saveSettings(s settings) (string, error) {
	path, err := a.settingsPath()
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	b.WriteString("# Written by `adit login`. It holds a secret: keep it to yourself.\n")
	doc := map[string]string{}
	for key, value := range map[string]string{"url": s.URL, "token": s.Token.Reveal(), "team": s.Team, "ca_file": s.CAFile} {
		if value != "" {
			doc[key] = value
		}
	}
	if err := yaml.NewEncoder(&b).Encode(doc); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	f, err := os.CreateTemp(dir, ".config-*") // mode 0600
	if err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	_, werr := f.Write(b.Bytes())
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(f.Name())
		return "", fmt.Errorf("write configuration: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		_ = os.Remove(f.Name())
		return "", fmt.Errorf("write configuration: %w", err)
	}
	return path, nil
}
