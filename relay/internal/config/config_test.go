package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/adit-tunnel/adit/relay/internal/config"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/conf"
)

const example = "../../../configs/relay.yaml"

func load(t *testing.T, path string) (config.Relay, error) {
	t.Helper()
	c := config.Default()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	conf.Flags(fs, c)
	err := conf.Load(fs, path, &c)
	c.Complete()
	return c, err
}

func TestDefaultsAreValid(t *testing.T) {
	c := config.Default()
	c.Complete()
	if err := c.Validate(); err != nil {
		t.Errorf("the defaults run as they are: %v", err)
	}
	if c.WildcardDomain != "localhost" {
		t.Errorf("with public_url on localhost the wildcard domain is %q, want localhost", c.WildcardDomain)
	}
}

func TestExampleLoadsAsItIsAndUncommented(t *testing.T) {
	if c, err := load(t, example); err != nil || c.Validate() != nil {
		t.Errorf("the example file loads: %v %v", err, c.Validate())
	}
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	open := regexp.MustCompile(`(?m)^( *)#([a-z_]+: )`).ReplaceAllString(string(text), "$1$2")
	path := filepath.Join(t.TempDir(), "relay.yaml")
	if err := os.WriteFile(path, []byte(open), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := load(t, path)
	if err != nil {
		t.Fatalf("the example file loads with every key in effect: %v", err)
	}
	if err := c.Validate(); err != nil {
		t.Errorf("the example's values are valid: %v", err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal([]byte(open), &tree); err != nil {
		t.Fatal(err)
	}
	for _, k := range conf.Keys(config.Default()) {
		if !present(tree, strings.Split(k.Name, ".")) {
			t.Errorf("the example file explains the key %s", k.Name)
		}
	}
	def := config.Default()
	if c.Tunnel != def.Tunnel || c.Drain != def.Drain {
		t.Errorf("the example shows the defaults: %+v, want %+v", c.Tunnel, def.Tunnel)
	}
}

func present(tree map[string]any, path []string) bool {
	v, ok := tree[path[0]]
	if len(path) == 1 || !ok {
		return ok
	}
	sub, ok := v.(map[string]any)
	return ok && present(sub, path[1:])
}

func TestFaultsNameTheirKeys(t *testing.T) {
	for key, spoil := range map[string]func(*config.Relay){
		"listen":                   func(c *config.Relay) { c.Listen = "8080" },
		"public_url":               func(c *config.Relay) { c.PublicURL = "gateway.example.com" },
		"wildcard_domain":          func(c *config.Relay) { c.WildcardDomain = "https://x" },
		"data_dir":                 func(c *config.Relay) { c.DataDir = "" },
		"relay_id":                 func(c *config.Relay) { c.RelayID = "a b" },
		"trusted_proxies":          func(c *config.Relay) { c.TrustedProxies = []string{"everyone"} },
		"path_fallback":            func(c *config.Relay) { c.PathFallback = "yes" },
		"path_form":                func(c *config.Relay) { c.PathForm = "yes" },
		"console_url":              func(c *config.Relay) { c.ConsoleURL = "console.example.com" },
		"tls":                      func(c *config.Relay) { c.TLS.CertFile = "a.pem" },
		"auth.oidc.audience":       func(c *config.Relay) { c.Auth.OIDC.Issuer = "https://login.example.com" },
		"auth.jwt.audience":        func(c *config.Relay) { c.Auth.JWT.PublicKeyFile = "keys.pem"; c.Auth.JWT.Issuer = "x" },
		"auth.oidc.issuer":         func(c *config.Relay) { c.Auth.OIDC.ClientID, c.Auth.OIDC.Audience = "adit", "adit" },
		"auth.oidc.client_id":      func(c *config.Relay) { c.Auth.OIDC.ClientSecretFile = "secret" },
		"auth.oidc.scopes":         func(c *config.Relay) { client(c); c.Auth.OIDC.Scopes = []string{"email"} },
		"auth.oidc.roles":          func(c *config.Relay) { c.Auth.OIDC.Roles = map[string]string{"boss": "king"} },
		"auth.jwt.roles":           func(c *config.Relay) { c.Auth.JWT.Roles = map[string]string{"boss": ""} },
		"auth.jwt.issuer":          func(c *config.Relay) { c.Auth.JWT.PublicKeyFile = "keys.pem"; c.Auth.JWT.Audience = "x" },
		"store.endpoints":          func(c *config.Relay) { c.Store.Endpoints = []string{"etcd"} },
		"store.quota_bytes":        func(c *config.Relay) { c.Store.Quota = 1 },
		"tunnel.idle_timeout":      func(c *config.Relay) { c.Tunnel.IdleTimeout = api.Duration(48 * time.Hour) },
		"tunnel.expires_in":        func(c *config.Relay) { c.Tunnel.ExpiresIn = 1 },
		"tunnel.hold":              func(c *config.Relay) { c.Tunnel.Hold = api.Duration(time.Hour) },
		"access.minimum":           func(c *config.Relay) { c.Access.Minimum = "everybody" },
		"access.default":           func(c *config.Relay) { c.Access.Default = "pin" },
		"limits.agents":            func(c *config.Relay) { c.Limits.Agents = 0 },
		"limits.tunnels_per_agent": func(c *config.Relay) { c.Limits.TunnelsPerAgent = 65 },
		"limits.agents_per_team":   func(c *config.Relay) { c.Limits.AgentsPerTeam = 0 },
		"limits.agent_retention":   func(c *config.Relay) { c.Limits.AgentRetention = 0 },
		"limits.opens_per_minute":  func(c *config.Relay) { c.Limits.OpensPerMinute = 0 },
	} {
		c := config.Default()
		c.Complete()
		spoil(&c)
		err := c.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), key+":") {
			t.Errorf("a wrong %s is named: %v", key, err)
		}
	}
}

func TestAccessWithoutAWordOfIt(t *testing.T) {
	for minimum, want := range map[string]string{"anyone": "anyone", "pin": "team", "knock": "knock", "team": "team", "people": "people"} {
		c := config.Default()
		c.Access.Minimum = minimum
		c.Complete()
		if err := c.Validate(); err != nil || c.Access.Default != want {
			t.Errorf("with access.minimum %s a tunnel is for %s, want %s (%v)", minimum, c.Access.Default, want, err)
		}
	}
	c := config.Default()
	c.Access = config.Access{Minimum: "team", Default: "anyone"}
	c.Complete()
	if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), "access.default:") {
		t.Errorf("a default that is wider than the minimum: %v", err)
	}
}

// client is a client of an issuer, as it should be.
func client(c *config.Relay) {
	c.Auth.OIDC.Issuer, c.Auth.OIDC.ClientID, c.Auth.OIDC.Audience = "https://login.example.com", "adit", "adit"
}

// People sign in only where no app's script shares the origin that their cookie is for,
// and where nobody on the way reads it.
func TestWherePeopleSignIn(t *testing.T) {
	for _, c := range []struct {
		public, wildcard, form, console string
		off                             string // part of why
	}{
		{"http://localhost:8080", "", "auto", "", ""},
		{"http://127.0.0.1:8080", "", "auto", "", "set wildcard_domain or console_url"},
		{"https://gw.example.com", "t.example.com", "auto", "", ""},
		{"https://gw.example.com", "t.example.com", "on", "", "set wildcard_domain or console_url"},
		{"https://gw.example.com", "", "auto", "", "set wildcard_domain or console_url"},
		{"https://gw.example.com", "", "auto", "https://console.example.com", ""},
		{"https://gw.example.com", "t.example.com", "on", "https://console.example.com", ""},
		{"http://gw.example.com", "t.example.com", "auto", "", "must be https"},
		{"http://gw.example.com", "t.example.com", "auto", "https://console.example.com", ""},
	} {
		r := config.Default()
		r.PublicURL, r.WildcardDomain, r.PathForm, r.ConsoleURL, r.RelayID = c.public, c.wildcard, c.form, c.console, "relay-1"
		r.Complete()
		if off := r.SignInOff(); (off == "") != (c.off == "") || !strings.Contains(off, c.off) {
			t.Errorf("%+v: sign-in is off because %q", c, off)
		}
		client(&r)
		if err := r.Validate(); (err == nil) != (c.off == "") || err != nil && !strings.HasPrefix(err.Error(), "auth.oidc.client_id: ") {
			t.Errorf("%+v, with a client of an issuer: %v", c, err)
		}
	}
	c := config.Default()
	c.Auth.OIDC.Issuer, c.Auth.OIDC.ClientID = "https://login.example.com", "adit"
	if c.Complete(); c.Auth.OIDC.Audience != "adit" {
		t.Errorf("the audience is the client, if nothing else is said: %q", c.Auth.OIDC.Audience)
	}
	c.Auth.OIDC.Issuer = "http://login.example.com"
	if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), "auth.oidc.issuer: ") {
		t.Errorf("people type their secrets at no issuer without TLS: %v", err)
	}
}

// What keeps an app's script and the relay's pages apart fits together.
func TestPathFormAndConsole(t *testing.T) {
	for _, c := range []struct {
		public, wildcard, form, fallback, console string
		on                                        bool
		fault                                     string // its beginning
	}{
		{"https://gw.example.com", "", "auto", "none", "", true, ""},
		{"https://gw.example.com", "t.example.com", "auto", "none", "", false, ""},
		{"https://gw.example.com", "t.example.com", "on", "cookie", "", true, ""},
		{"https://gw.example.com", "t.example.com", "off", "none", "", false, ""},
		{"http://localhost:8080", "", "auto", "none", "", false, ""},
		{"https://gw.example.com", "", "off", "none", "", false, "path_form: without wildcard_domain"},
		{"https://gw.example.com", "", "auto", "cookie", "", true, ""},
		{"https://gw.example.com", "t.example.com", "auto", "cookie", "", false, "path_fallback: it is for absolute paths in path form"},
		{"https://gw.example.com", "t.example.com", "off", "cookie", "", false, "path_fallback: it is for absolute paths in path form"},
		{"https://gw.example.com", "", "auto", "none", "https://console.example.com", true, ""},
		{"https://gw.example.com", "t.example.com", "auto", "none", "https://console.example.net:8443/", false, ""},
		{"http://127.0.0.1:8080", "", "auto", "none", "http://localhost:8080", true, ""},
		{"https://gw.example.com", "", "auto", "none", "http://console.example.com", true, "console_url: \"http://console.example.com\" must begin with https://"},
		{"https://gw.example.com", "", "auto", "none", "https://console.example.com/x", true, "console_url: "},
		{"https://gw.example.com", "", "auto", "none", "https://GW.example.com.:8443", true, "console_url: gw.example.com is the host of public_url"},
		{"https://gw.example.com", "t.example.com", "auto", "none", "https://console.T.example.com", false, "console_url: console.t.example.com belongs to wildcard_domain"},
		{"https://gw.example.com", "t.example.com", "auto", "none", "https://t.example.com", false, "console_url: t.example.com belongs to wildcard_domain"},
	} {
		r := config.Default()
		r.PublicURL, r.WildcardDomain, r.PathForm, r.PathFallback, r.ConsoleURL, r.RelayID = c.public, c.wildcard, c.form, c.fallback, c.console, "relay-1"
		r.Complete()
		err := r.Validate()
		if (err == nil) != (c.fault == "") || err != nil && !strings.HasPrefix(err.Error(), c.fault) {
			t.Errorf("%+v: %v", c, err)
		}
		if r.ServesPathForm() != c.on {
			t.Errorf("%+v: the path form is served: %v", c, r.ServesPathForm())
		}
	}
}

func TestACMEAsksForTheConsolesName(t *testing.T) {
	c := config.Default()
	c.PublicURL, c.ConsoleURL, c.RelayID = "https://gw.example.com", "https://console.example.net:8443", "relay-1"
	c.TLS.ACME.Enabled, c.TLS.ACME.Email = true, "ops@example.com"
	c.Complete()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if got := strings.Join(c.CertificateNames(), " "); got != "gw.example.com console.example.net" {
		t.Errorf("certificates are asked for %s", got)
	}
	c.ConsoleURL = "http://localhost:8080"
	if got := strings.Join(c.CertificateNames(), " "); got != "gw.example.com" {
		t.Errorf("certificates are asked for %s, though the console has no https", got)
	}
}
