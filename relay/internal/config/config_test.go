package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

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
	for _, k := range conf.Keys(config.Default()) {
		leaf := k.Name[strings.LastIndex(k.Name, ".")+1:]
		if !regexp.MustCompile(`(?m)^ *` + leaf + `:`).MatchString(open) {
			t.Errorf("the example file explains the key %s", k.Name)
		}
	}
	def := config.Default()
	if c.Tunnel != def.Tunnel || c.Drain != def.Drain {
		t.Errorf("the example shows the defaults: %+v, want %+v", c.Tunnel, def.Tunnel)
	}
}

func TestFaultsNameTheirKeys(t *testing.T) {
	for key, spoil := range map[string]func(*config.Relay){
		"listen":                  func(c *config.Relay) { c.Listen = "8080" },
		"public_url":              func(c *config.Relay) { c.PublicURL = "gateway.example.com" },
		"wildcard_domain":         func(c *config.Relay) { c.WildcardDomain = "https://x" },
		"data_dir":                func(c *config.Relay) { c.DataDir = "" },
		"relay_id":                func(c *config.Relay) { c.RelayID = "a b" },
		"trusted_proxies":         func(c *config.Relay) { c.TrustedProxies = []string{"everyone"} },
		"path_fallback":           func(c *config.Relay) { c.PathFallback = "yes" },
		"tls":                     func(c *config.Relay) { c.TLS.CertFile = "a.pem" },
		"auth.oidc.audience":      func(c *config.Relay) { c.Auth.OIDC.Issuer = "https://login.example.com" },
		"auth.jwt.audience":       func(c *config.Relay) { c.Auth.JWT.PublicKeyFile = "keys.pem"; c.Auth.JWT.Issuer = "x" },
		"auth.jwt.issuer":         func(c *config.Relay) { c.Auth.JWT.PublicKeyFile = "keys.pem"; c.Auth.JWT.Audience = "x" },
		"store.endpoints":         func(c *config.Relay) { c.Store.Endpoints = []string{"etcd"} },
		"store.quota_bytes":       func(c *config.Relay) { c.Store.Quota = 1 },
		"tunnel.idle_timeout":     func(c *config.Relay) { c.Tunnel.IdleTimeout = api.Duration(48 * time.Hour) },
		"tunnel.expires_in":       func(c *config.Relay) { c.Tunnel.ExpiresIn = 1 },
		"tunnel.hold":             func(c *config.Relay) { c.Tunnel.Hold = api.Duration(time.Hour) },
		"limits.agents":           func(c *config.Relay) { c.Limits.Agents = 0 },
		"limits.agents_per_team":  func(c *config.Relay) { c.Limits.AgentsPerTeam = 0 },
		"limits.agent_retention":  func(c *config.Relay) { c.Limits.AgentRetention = 0 },
		"limits.opens_per_minute": func(c *config.Relay) { c.Limits.OpensPerMinute = 0 },
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
