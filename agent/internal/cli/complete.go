package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/adit-tunnel/adit/agent"
	"github.com/adit-tunnel/adit/shared/conf"
)

// unconfigured is the line of the package's configuration file, with every key
// explained, in which nobody said yet where the relay is.
var unconfigured = regexp.MustCompile(`(?m)^#relay_url:`)

// completeConfig puts what this machine needs into the package's configuration file,
// and leaves the rest of it as it is. It is false for a file that somebody made
// differently, which is never changed.
func completeConfig(path string, c agent.Config) (bool, error) {
	was, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("read the configuration: %w", err)
	}
	if !unconfigured.Match(was) {
		return false, nil
	}
	text := setKey(string(was), "", "relay_url", c.RelayURL[0])
	text = setKey(text, "", "agent_id", c.AgentID)
	text = setKey(text, "", "credential_file", c.CredentialFile)
	if c.TLS.CAFile != "" {
		text = setKey(text, "tls", "ca_file", c.TLS.CAFile)
	}
	return replaceConfig(path, text, c)
}

// setKey gives a key of a YAML file its value: in the line that has it, commented out
// or not, else in a line of its own at the end.
func setKey(text, group, key, value string) string {
	scalar, err := yaml.Marshal(value)
	if err != nil {
		panic(err) // a string
	}
	indent := ""
	if group != "" {
		indent = "  "
	}
	set := indent + key + ": " + strings.TrimSuffix(string(scalar), "\n")
	lines, within := strings.Split(text, "\n"), ""
	for i, l := range lines {
		if l != "" && l[0] != ' ' && l[0] != '#' {
			within, _, _ = strings.Cut(l, ":")
		}
		rest, indented := strings.CutPrefix(l, indent)
		if indented && (group == "" || within == group) && strings.HasPrefix(strings.TrimPrefix(rest, "#"), key+":") {
			lines[i] = set
			return strings.Join(lines, "\n")
		}
	}
	if group != "" {
		set = group + ":\n" + set
	}
	return strings.TrimSuffix(text, "\n") + "\n" + set + "\n"
}

// replaceConfig replaces the file in one step, if the new text means what it should.
func replaceConfig(path, text string, c agent.Config) (done bool, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("look at the configuration: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".adit-agent-*.yaml")
	if err != nil {
		return false, fmt.Errorf("write the configuration: %w", err)
	}
	defer func() {
		_ = f.Close()
		if !done {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.WriteString(text); err == nil {
		err = f.Chmod(info.Mode().Perm())
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Stat(path, &st)
	}
	if err == nil && os.Geteuid() == 0 {
		err = f.Chown(int(st.Uid), int(st.Gid))
	}
	if err = errors.Join(err, f.Sync()); err != nil {
		return false, fmt.Errorf("write the configuration: %w", err)
	}
	now, none := agent.DefaultConfig(), pflag.NewFlagSet("", pflag.ContinueOnError)
	conf.Flags(none, now)
	if err := conf.Load(none, f.Name(), &now); err != nil {
		return false, nil //nolint:nilerr // the file is of a form that is not known here
	}
	if len(now.RelayURL) != 1 || now.RelayURL[0] != c.RelayURL[0] || now.AgentID != c.AgentID || now.CredentialFile != c.CredentialFile || now.TLS.CAFile != c.TLS.CAFile {
		return false, nil
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return false, fmt.Errorf("write the configuration: %w", err)
	}
	return true, nil
}
