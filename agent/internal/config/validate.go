package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	defaultStopGrace   = 10 * time.Second
	defaultHookTimeout = 60 * time.Second
	maxLinks           = 8
	maxExtraLinks      = 8
	maxCapacity        = 1024
	maxLabels          = 64
	maxLabelText       = 256
	maxSocketPath      = 107 // bytes of sun_path without its final zero, unix(7)

	defaultTerminalIdle = time.Hour
)

// Validate returns every fault, each beginning with its key; nil when there is none.
func (c *Config) Validate() error {
	var faults []error
	bad := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...)))
	}
	if len(c.RelayURL) == 0 {
		bad("relay_url", "missing: say where the relay is, such as https://gateway.example.com")
	}
	for _, u := range c.RelayURL {
		if err := checkRelayURL(u); err != nil {
			bad("relay_url", "%w", err)
		}
	}
	if _, err := ident.ParseAgentID(c.AgentID); err != nil {
		bad("agent_id", "%w", err)
	}
	switch {
	case c.Credential == "" && c.CredentialFile == "":
		bad("credential_file", "missing: name the file with the agent's credential, or set ADIT_CREDENTIAL")
	case c.Credential != "" && c.CredentialFile != "":
		bad("credential_file", "set beside credential: keep one of the two")
	case c.Credential != "" && !strings.HasPrefix(c.Credential.Reveal(), ident.PrefixAgent):
		bad("credential", "is no agent credential: those begin with %s", ident.PrefixAgent)
	case c.CredentialFile != "":
		if _, err := c.Token(); err != nil {
			bad("credential_file", "%w", err)
		}
	}
	c.validateLabels(bad)
	if c.StateDir == "" {
		bad("state_dir", "missing")
	}
	if c.Links < 1 || c.Links > maxLinks {
		bad("links", "is %d, must be 1 to %d", c.Links, maxLinks)
	}
	if c.ExtraLinks < 0 || c.ExtraLinks > maxExtraLinks {
		bad("extra_links", "is %d, must be 0 to %d", c.ExtraLinks, maxExtraLinks)
	}
	if _, err := api.ParsePorts(c.AllowPorts); err != nil {
		bad("allow_ports", "%w", err)
	}
	if c.StopGrace < 0 || c.StopGrace.D() > time.Hour {
		bad("stop_grace", "is %s, must be 0s to 1h", c.StopGrace)
	}
	c.validateListeners(bad)
	if c.Tasks.Capacity < 1 || c.Tasks.Capacity > maxCapacity {
		bad("tasks.capacity", "is %d, must be 1 to %d", c.Tasks.Capacity, maxCapacity)
	}
	for _, u := range c.Health {
		if err := checkHTTPURL(u); err != nil {
			bad("health", "%w", err)
		}
	}
	for _, u := range c.Facts.ComfyUI {
		if err := checkHTTPURL(u); err != nil {
			bad("facts.comfyui", "%w", err)
		}
	}
	c.validateHooks(bad)
	c.validateTerminal(bad)
	if c.TLS.CAFile != "" {
		if _, err := c.TLSConfig(); err != nil {
			bad("tls.ca_file", "%w", err)
		}
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		bad("log.level", "is %q, must be debug, info, warn or error", c.Log.Level)
	}
	if !slices.Contains([]string{"auto", "json", "text"}, c.Log.Format) {
		bad("log.format", "is %q, must be auto, json or text", c.Log.Format)
	}
	return errors.Join(faults...)
}

func (c *Config) validateLabels(bad func(key, format string, args ...any)) {
	if len(c.Labels) > maxLabels {
		bad("labels", "are %d, at most %d are allowed", len(c.Labels), maxLabels)
	}
	for _, label := range c.Labels {
		name, value, _ := strings.Cut(label, "=")
		switch {
		case name == "" || len(name) > maxLabelText || len(value) > maxLabelText:
			bad("labels", "%.40q: a name is 1 to %d bytes, a value behind '=' at most as many", label, maxLabelText)
		case strings.ContainsFunc(label, unicode.IsControl):
			bad("labels", "%.40q holds a control character", label)
		}
	}
}

func (c *Config) validateListeners(bad func(key, format string, args ...any)) {
	if path := c.SocketPath(); len(path) > maxSocketPath {
		bad("local.socket", "%s is longer than %d bytes, the limit of a unix socket's path", path, maxSocketPath)
	}
	if c.Local.Listen != "" {
		host, _, err := splitListen(c.Local.Listen)
		switch {
		case err != nil:
			bad("local.listen", "%w", err)
		case !isLoopback(host):
			bad("local.listen", "%s is not a loopback address: use 127.0.0.1 or [::1]", c.Local.Listen)
		}
	}
	if c.Metrics.Listen != "" {
		if _, _, err := splitListen(c.Metrics.Listen); err != nil {
			bad("metrics.listen", "%w", err)
		} else if c.Metrics.Listen == c.Local.Listen && !strings.HasSuffix(c.Local.Listen, ":0") {
			bad("metrics.listen", "is the same as local.listen: give each its own port")
		}
	}
}

func (c *Config) validateHooks(bad func(key, format string, args ...any)) {
	for key, argv := range map[string][]string{"hooks.opened": c.Hooks.Opened, "hooks.closed": c.Hooks.Closed} {
		if len(argv) == 0 {
			continue
		}
		if !filepath.IsAbs(argv[0]) {
			bad(key, "%q is not an absolute path: hooks are run without a shell and without PATH", argv[0])
			continue
		}
		if info, err := os.Stat(argv[0]); err != nil {
			bad(key, "%w", err)
		} else if info.IsDir() || info.Mode()&0o111 == 0 {
			bad(key, "%s is not executable", argv[0])
		}
	}
	if c.Hooks.Timeout.D() < time.Second || c.Hooks.Timeout.D() > time.Hour {
		bad("hooks.timeout", "is %s, must be 1s to 1h", c.Hooks.Timeout)
	}
}

func (c *Config) validateTerminal(bad func(key, format string, args ...any)) {
	t := c.Terminal
	if t.Enabled && t.User == "" && os.Geteuid() == 0 {
		bad("terminal.user", "missing: the agent runs as root, so name the user that terminals run as (root itself, if you mean it)")
	}
	if t.Shell != "" {
		if info, err := os.Stat(t.Shell); !filepath.IsAbs(t.Shell) {
			bad("terminal.shell", "%q is not an absolute path", t.Shell)
		} else if err != nil {
			bad("terminal.shell", "%w", err)
		} else if info.IsDir() || info.Mode()&0o111 == 0 {
			bad("terminal.shell", "%s is not executable", t.Shell)
		}
	}
	if t.Dir != "" && !filepath.IsAbs(t.Dir) {
		bad("terminal.dir", "%q is not an absolute path", t.Dir)
	}
	if t.Idle < 0 {
		bad("terminal.idle_timeout", "is %s, must not be negative", t.Idle)
	}
}

// Warnings returns what is allowed but unwise, each beginning with its key.
func (c *Config) Warnings() []string {
	var out []string
	if c.CredentialFile != "" {
		if info, err := os.Stat(c.CredentialFile); err == nil && info.Mode().Perm()&0o077 != 0 {
			who := "its group"
			if info.Mode().Perm()&0o007 != 0 {
				who = "every user of this machine"
			}
			out = append(out, fmt.Sprintf("credential_file: %s may be read or changed by %s: chmod 600 %s", c.CredentialFile, who, c.CredentialFile))
		}
	}
	for _, label := range c.Labels {
		if strings.ContainsRune(label, ',') {
			out = append(out, fmt.Sprintf("labels: %.40q is one label with a comma in it; in ADIT_LABELS a comma separates two", label))
		}
	}
	for _, raw := range c.RelayURL {
		if u, err := url.Parse(raw); err == nil && (u.Scheme == "http" || u.Scheme == "ws") && !isLoopback(u.Hostname()) {
			out = append(out, fmt.Sprintf("relay_url: %s sends the credential and everything else unencrypted: use https", raw))
		}
	}
	if host, _, err := splitListen(c.Metrics.Listen); err == nil && !isLoopback(host) {
		out = append(out, fmt.Sprintf("metrics.listen: %s can be reached from other machines", c.Metrics.Listen))
	}
	if c.Terminal.Enabled && c.Terminal.User == "" {
		out = append(out, "terminal.user: terminals run as the agent's own user, and can read its credential: name another user, and run the agent as root")
	}
	if c.Local.Listen != "" {
		out = append(out, fmt.Sprintf("local.listen: every user and program of this machine may use %s, its task leases included", c.Local.Listen))
	}
	return out
}

// Token returns the agent's credential: it reads the file anew at each call, so
// that a replaced credential is taken up without a restart.
func (c *Config) Token() (ident.Secret, error) {
	if c.CredentialFile == "" {
		return c.Credential, nil
	}
	s, err := conf.ReadSecretFile(c.CredentialFile)
	if err == nil && !strings.HasPrefix(s.Reveal(), ident.PrefixAgent) {
		return "", fmt.Errorf("%s holds no agent credential: those begin with %s", c.CredentialFile, ident.PrefixAgent)
	}
	return s, err
}

// TLSConfig returns the TLS settings for the relay: the system's authorities and
// those of tls.ca_file.
func (c *Config) TLSConfig() (*tls.Config, error) { return client.TLSConfig(c.TLS.CAFile) }

func checkRelayURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("%q is no URL", raw)
	}
	switch {
	case !slices.Contains([]string{"http", "https", "ws", "wss"}, u.Scheme):
		return fmt.Errorf("%q must begin with https:// (or http://, wss://, ws://)", raw)
	case u.Hostname() == "":
		return fmt.Errorf("%q names no host", raw)
	case u.User != nil:
		return fmt.Errorf("%q must not hold a user or password: the credential has a key of its own", u.Redacted())
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q must not have a query or fragment", raw)
	}
	return nil
}

func checkHTTPURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return fmt.Errorf("%q must be a URL such as http://127.0.0.1:8188/", raw)
	}
	return nil
}

func splitListen(addr string) (host string, port uint16, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("%q must be host:port, such as 127.0.0.1:9465", addr)
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q has no valid port", addr)
	}
	return host, uint16(n), nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
