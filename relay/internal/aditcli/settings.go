package aditcli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/ident"
)

// settings are what the user's configuration file holds. Flags and environment
// (ADIT_URL, ADIT_TEAM, ADIT_TOKEN, ADIT_CA_FILE) override it.
type settings struct {
	URL    string       `conf:"url" help:"the relay's address"`
	Team   string       `conf:"team" help:"team UUID; only a person's token needs it"`
	Token  ident.Secret `conf:"token" help:"the secret"`
	CAFile string       `conf:"ca_file" help:"PEM file of authorities to trust beside the system's"`
}

func registerSettings(p *pflag.FlagSet) { conf.Flags(p, settings{}) }

// loadSettings reads flags, environment and file, in this order of precedence. A
// file that does not exist is no error, unless it was named.
func (a *app) loadSettings(flags *pflag.FlagSet) (settings, error) {
	path, named := a.configPath, a.configPath != ""
	if !named {
		p, err := a.defaultConfigPath()
		if err != nil {
			return settings{}, err
		}
		path = p
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !named:
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
	path := a.configPath
	if path == "" {
		p, err := a.defaultConfigPath()
		if err != nil {
			return "", err
		}
		path = p
	}
	var b bytes.Buffer
	b.WriteString("# Written by `adit login`. It holds a secret: keep it to yourself.\n")
	doc := map[string]string{"url": s.URL, "token": s.Token.Reveal()}
	if s.Team != "" {
		doc["team"] = s.Team
	}
	if s.CAFile != "" {
		doc["ca_file"] = s.CAFile
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
