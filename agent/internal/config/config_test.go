package config_test

import (
	"bytes"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/adit-tunnel/adit/agent/internal/config"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/ident"
)

const example = "../../../configs/agent.yaml"

// valid is the least that passes.
func valid(t *testing.T) config.Config {
	t.Helper()
	c := config.New()
	c.RelayURL = []string{"https://gateway.example.com"}
	c.Credential = ident.NewSecret(ident.PrefixAgent)
	c.AgentID = "box"
	c.StateDir = t.TempDir()
	return c
}

func TestExampleFileLoadsAndIsComplete(t *testing.T) {
	c := config.New()
	if err := conf.Load(nil, example, &c); err != nil {
		t.Fatalf("configs/agent.yaml does not load: %v", err)
	}
	// What it shows must be the defaults, but for what each machine has of its own.
	want := config.New()
	want.RelayURL, want.AgentID, want.CredentialFile = c.RelayURL, c.AgentID, c.CredentialFile
	want.Labels, want.StateDir, want.Local.Socket = c.Labels, c.StateDir, c.Local.Socket
	var a, b bytes.Buffer
	if err := conf.Print(&a, c); err != nil {
		t.Fatal(err)
	}
	if err := conf.Print(&b, want); err != nil {
		t.Fatal(err)
	}
	if a.String() != b.String() {
		t.Errorf("configs/agent.yaml differs from the defaults:\n%s\nwant:\n%s", a.String(), b.String())
	}
	if len(c.RelayURL) != 0 || len(c.Labels) != 0 {
		t.Errorf("configs/agent.yaml is every machine's: it says %v and %v, which only its owner knows", c.RelayURL, c.Labels)
	}
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	// The same with what is commented out in effect.
	text = regexp.MustCompile(`(?m)^( *)#( *[a-z_]+: ?)`).ReplaceAll(text, []byte("$1$2"))
	open := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(open, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := conf.Load(nil, open, &c); err != nil {
		t.Fatalf("configs/agent.yaml with every key in effect: %v", err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	for _, k := range conf.Keys(config.New()) {
		if k.Name == "credential" {
			continue // a secret does not belong into the file that it shows
		}
		if !present(tree, strings.Split(k.Name, ".")) {
			t.Errorf("configs/agent.yaml does not show %s", k.Name)
		}
		if k.Help == "" {
			t.Errorf("%s has no help text", k.Name)
		}
	}
	c.CredentialFile, c.Credential = "", ident.NewSecret(ident.PrefixAgent)
	if err := c.Validate(); err != nil {
		t.Errorf("configs/agent.yaml is not valid: %v", err)
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

func TestEveryKeyComesFromTheEnvironment(t *testing.T) {
	t.Setenv("ADIT_RELAY_URL", "https://a.example.com,https://b.example.com")
	t.Setenv("ADIT_CREDENTIAL", "ak-xyz")
	t.Setenv("ADIT_LABELS", "zone=a,fast,rack=7")
	t.Setenv("ADIT_LOCAL_LISTEN", "127.0.0.1:9466")
	t.Setenv("ADIT_TASKS_CAPACITY", "3")
	t.Setenv("ADIT_HOOKS_TIMEOUT", "90s")
	t.Setenv("ADIT_TERMINAL_ENV", "A=b")
	t.Setenv("ADIT_ALLOW_PORTS", "8188")
	c := config.New()
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	conf.Flags(fs, c)
	if err := fs.Parse([]string{"--allow_ports", "8188,8888-8899"}); err != nil {
		t.Fatal(err)
	}
	if err := conf.Load(fs, "", &c); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.RelayURL, []string{"https://a.example.com", "https://b.example.com"}) || c.Credential.Reveal() != "ak-xyz" ||
		!slices.Equal(c.Labels, []string{"zone=a", "fast", "rack=7"}) || c.Local.Listen != "127.0.0.1:9466" || c.Tasks.Capacity != 3 || c.Hooks.Timeout.D() != 90*time.Second || c.Terminal.Env["A"] != "b" {
		t.Errorf("the environment gave %+v", c)
	}
	if c.AllowPorts != "8188,8888-8899" {
		t.Errorf("a flag does not win over the environment: allow_ports is %s", c.AllowPorts)
	}
	if fs.Lookup("credential") != nil {
		t.Error("the credential has a flag, so everybody on the machine could read it")
	}
}

func TestValidate(t *testing.T) {
	c := valid(t)
	if err := c.Validate(); err != nil {
		t.Fatalf("the least that should pass does not: %v", err)
	}
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name   string
		change func(*config.Config)
		want   string
	}{
		{"no relay", func(c *config.Config) { c.RelayURL = nil }, "relay_url: missing"},
		{"a relay without scheme", func(c *config.Config) { c.RelayURL = []string{"gateway.example.com"} }, "relay_url: "},
		{"a secret in the URL", func(c *config.Config) { c.RelayURL = []string{"https://a:b@example.com"} }, "must not hold a user"},
		{"a bad name", func(c *config.Config) { c.AgentID = "a b" }, "agent_id: "},
		{"no credential", func(c *config.Config) { c.Credential = "" }, "credential_file: missing"},
		{"two credentials", func(c *config.Config) { c.CredentialFile = "/x" }, "keep one of the two"},
		{"another kind of credential", func(c *config.Config) { c.Credential = "sk-abc" }, "no agent credential"},
		{"a missing file", func(c *config.Config) { c.Credential, c.CredentialFile = "", "/does/not/exist" }, "credential_file: "},
		{"an empty file", func(c *config.Config) { c.Credential, c.CredentialFile = "", file("c", " \n", 0o600) }, "is empty"},
		{"a file of another kind", func(c *config.Config) { c.Credential, c.CredentialFile = "", file("c", "dk-abc", 0o600) }, "no agent credential"},
		{"links", func(c *config.Config) { c.Links = 9 }, "links: is 9"},
		{"ports", func(c *config.Config) { c.AllowPorts = "http" }, "allow_ports: "},
		{"a public local listener", func(c *config.Config) { c.Local.Listen = "0.0.0.0:9466" }, "local.listen: "},
		{"one port twice", func(c *config.Config) { c.Local.Listen = c.Metrics.Listen }, "metrics.listen: is the same"},
		{"a listener without port", func(c *config.Config) { c.Metrics.Listen = "localhost" }, "metrics.listen: "},
		{"capacity", func(c *config.Config) { c.Tasks.Capacity = 0 }, "tasks.capacity: "},
		{"health", func(c *config.Config) { c.Health = []string{"127.0.0.1:8188"} }, "health: "},
		{"a hook by name", func(c *config.Config) { c.Hooks.Opened = []string{"scontrol"} }, "hooks.opened: "},
		{"a hook that is missing", func(c *config.Config) { c.Hooks.Closed = []string{"/does/not/exist"} }, "hooks.closed: "},
		{"a hook that is not executable", func(c *config.Config) { c.Hooks.Closed = []string{file("h", "x", 0o600)} }, "not executable"},
		{"hook time", func(c *config.Config) { c.Hooks.Timeout = api.Duration(time.Hour * 2) }, "hooks.timeout: "},
		{"an empty CA file", func(c *config.Config) { c.TLS.CAFile = file("ca", "x", 0o600) }, "tls.ca_file: "},
		{"level", func(c *config.Config) { c.Log.Level = "loud" }, "log.level: "},
		{"format", func(c *config.Config) { c.Log.Format = "xml" }, "log.format: "},
		{"a long socket path", func(c *config.Config) { c.Local.Socket = "/" + strings.Repeat("x", 120) }, "local.socket: "},
		{"a label without a name", func(c *config.Config) { c.Labels = api.Labels{"=x"} }, "labels: "},
		{"an empty label", func(c *config.Config) { c.Labels = api.Labels{""} }, "labels: "},
		{"a long label", func(c *config.Config) { c.Labels = api.Labels{"ok", strings.Repeat("x", 257)} }, "labels: "},
		{"a label with a long value", func(c *config.Config) { c.Labels = api.Labels{"x=" + strings.Repeat("x", 257)} }, "labels: "},
		{"a label with a control character", func(c *config.Config) { c.Labels = api.Labels{"a\x1bb"} }, "holds a control character"},
		{"many labels", func(c *config.Config) { c.Labels = strings.Split(strings.Repeat("x ", 65), " ") }, "labels: are "},
		{"grace", func(c *config.Config) { c.StopGrace = -1 }, "stop_grace: "},
		{"state", func(c *config.Config) { c.StateDir = "" }, "state_dir: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := valid(t)
			tt.change(&c)
			err := c.Validate()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, expected a fault with %q", err, tt.want)
			}
		})
	}
	var all config.Config
	if n := len(conf.Faults(all.Validate())); n < 8 {
		t.Errorf("an empty configuration has %d faults; all should be named at once", n)
	}
}

func TestCredentialFile(t *testing.T) {
	c := valid(t)
	secret := ident.NewSecret(ident.PrefixAgent)
	c.Credential, c.CredentialFile = "", filepath.Join(t.TempDir(), "credential")
	write := func(s ident.Secret, mode os.FileMode) {
		if err := os.WriteFile(c.CredentialFile, []byte(s.Reveal()+"\n"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(c.CredentialFile, mode); err != nil {
			t.Fatal(err)
		}
	}
	write(secret, 0o600)
	if got, err := c.Token(); err != nil || got != secret {
		t.Fatalf("read %v, %v", got, err)
	}
	if w := c.Warnings(); len(w) != 0 {
		t.Errorf("an orderly file is warned of: %v", w)
	}
	next := ident.NewSecret(ident.PrefixAgent)
	write(next, 0o644)
	if got, _ := c.Token(); got != next {
		t.Error("a replaced credential is not taken up")
	}
	if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], "every user") {
		t.Errorf("a file that all can read gives the warnings %v", w)
	}
	write(next, 0o640)
	if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], "its group") {
		t.Errorf("a file that the group can read gives the warnings %v", w)
	}
}

func TestWarnings(t *testing.T) {
	c := valid(t)
	c.RelayURL = []string{"http://gateway.example.com", "http://127.0.0.1:8080"}
	c.Metrics.Listen = ":9465"
	c.Local.Listen = "127.0.0.1:9466"
	c.Labels = api.Labels{"a100", "note=a,b"}
	if w := strings.Join(c.Warnings(), "\n"); strings.Count(w, "\n") != 3 || !strings.Contains(w, "with a comma in it") || !strings.Contains(w, "unencrypted") || !strings.Contains(w, "metrics.listen") {
		t.Errorf("the warnings are:\n%s", w)
	}
}

func TestCustomAuthority(t *testing.T) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	c := valid(t)
	c.TLS.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(c.TLS.CAFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	tlsConf, err := c.TLSConfig()
	if err != nil || tlsConf.RootCAs == nil {
		t.Fatalf("the authority is not used: %v", err)
	}
}

func TestPrintKeepsSecrets(t *testing.T) {
	c := valid(t)
	var b bytes.Buffer
	if err := conf.Print(&b, c); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), c.Credential.Reveal()) {
		t.Error("the printed configuration shows the credential")
	}
}

func TestPaths(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", "/run/adit-agent:/run/other")
	t.Setenv("STATE_DIRECTORY", "/var/lib/x")
	c := config.New()
	if c.SocketPath() != config.SystemSocket || c.StateDir != "/var/lib/x" {
		t.Errorf("under systemd the socket is %s, the state in %s", c.SocketPath(), c.StateDir)
	}
	if got := config.ClientSockets(); !slices.Equal(got, []string{config.SystemSocket}) {
		t.Errorf("commands look at %v", got)
	}
	t.Setenv("RUNTIME_DIRECTORY", "")
	c.Local.Socket = "/srv/own.sock"
	if got := c.Sockets(); !slices.Equal(got, []string{"/srv/own.sock"}) {
		t.Errorf("a socket that is named is the only one: %v", got)
	}
	if got := config.ClientSockets(); !slices.Equal(got, []string{config.SystemSocket, "/var/lib/x/agent.sock"}) {
		t.Errorf("commands look at %v", got)
	}
}
