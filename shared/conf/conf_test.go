package conf_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/conf"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/spf13/pflag"
)

type logging struct {
	Level  string `conf:"level" help:"how much to log"`
	Format string `conf:"format"`
}

type program struct {
	Listen string        `conf:"listen" help:"address of the public listener"`
	Agent  ident.AgentID `conf:"agent_id"`
	Links  int           `conf:"links"`
	Small  uint8         `conf:"small"`
	Rate   float64       `conf:"rate"`
	Tunnel struct {
		IdleTimeout api.Duration `conf:"idle_timeout"`
		Hold        api.Duration `conf:"hold"`
	} `conf:"tunnel"`
	TLS struct {
		ACME struct {
			Enabled bool   `conf:"enabled"`
			Email   string `conf:"email"` // no default and no flag in some tests
		} `conf:"acme"`
		CertFile string `conf:"cert_file"`
	} `conf:"tls"`
	Relays     []string          `conf:"relay_url"`
	Labels     map[string]string `conf:"labels"`
	Tags       api.Labels        `conf:"tags"`
	Credential ident.Secret      `conf:"credential"`
	Log        logging           `conf:"log"`
	parsed     string            // no key
}

func defaults() program {
	p := program{Listen: ":8080", Links: 1, Relays: []string{"http://localhost"}, parsed: "kept"}
	p.Tunnel.IdleTimeout = api.Duration(30 * time.Minute)
	p.Log.Level = "info"
	return p
}

// load loads with flags given as a command line, and a file's text.
func load(t *testing.T, file string, args ...string) (program, error) {
	t.Helper()
	p := defaults()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	conf.Flags(fs, p)
	if err := fs.Parse(args); err != nil {
		t.Fatalf("parse flags: %v", err)
	}
	path := ""
	if file != "" {
		path = filepath.Join(t.TempDir(), "relay.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := conf.Load(fs, path, &p)
	return p, err
}

func TestLoadDefaultsAlone(t *testing.T) {
	got, err := load(t, "")
	if err != nil || !reflect.DeepEqual(got, defaults()) {
		t.Fatalf("without any source the defaults should stay; got %+v, %v", got, err)
	}
}

func TestLoadOrderOfSources(t *testing.T) {
	const file = "listen: :1\ntunnel:\n  hold: 1s\nlog:\n  level: warn\n"
	got, err := load(t, file)
	if err != nil || got.Listen != ":1" || got.Tunnel.Hold.D() != time.Second || got.Log.Level != "warn" {
		t.Fatalf("the file should win over the defaults; got %+v, %v", got, err)
	}
	if got.Tunnel.IdleTimeout.D() != 30*time.Minute || got.parsed != "kept" {
		t.Fatalf("what no source sets should keep its default; got %+v", got)
	}
	t.Setenv("ADIT_LISTEN", ":2")
	t.Setenv("ADIT_TUNNEL_HOLD", "2s")
	if got, err = load(t, file); err != nil || got.Listen != ":2" || got.Tunnel.Hold.D() != 2*time.Second {
		t.Fatalf("the environment should win over the file; got %+v, %v", got, err)
	}
	if got, err = load(t, file, "--listen=:3", "--tunnel.hold", "3s"); err != nil || got.Listen != ":3" || got.Tunnel.Hold.D() != 3*time.Second {
		t.Fatalf("flags should win over all; got %+v, %v", got, err)
	}
	if got, err = load(t, file, "--listen="); err != nil || got.Listen != "" {
		t.Fatalf("an empty flag should set the empty text; got %q, %v", got.Listen, err)
	}
}

// TestLoadEveryKeyFromEnvironment is for the trap of viper's AutomaticEnv with
// Unmarshal: variables of keys without default or flag are ignored silently.
func TestLoadEveryKeyFromEnvironment(t *testing.T) {
	values := map[string]string{
		"listen": ":9", "agent_id": "box-7", "links": "3", "small": "255", "rate": "1.5",
		"tunnel.idle_timeout": "90d", "tunnel.hold": "15", "tls.acme.enabled": "true",
		"tls.acme.email": "ops@example.com", "tls.cert_file": "/etc/adit/cert.pem",
		"relay_url": "https://a.example.com, https://b.example.com,", "labels": "GPU=A100, zone.example.com/x=b",
		"tags":       "a100, pool=render",
		"credential": "ak-secret", "log.level": "debug", "log.format": "json",
	}
	var p program // no default anywhere, and no flag
	for _, k := range conf.Keys(p) {
		v, ok := values[k.Name]
		if !ok {
			t.Fatalf("the test has no value for %s", k.Name)
		}
		t.Setenv(k.Env, v)
	}
	if err := conf.Load(nil, "", &p); err != nil {
		t.Fatal(err)
	}
	want := program{Listen: ":9", Agent: "box-7", Links: 3, Small: 255, Rate: 1.5, Credential: "ak-secret"}
	want.Tunnel.IdleTimeout, want.Tunnel.Hold = api.Duration(90*24*time.Hour), api.Duration(15*time.Second)
	want.TLS.ACME.Enabled, want.TLS.ACME.Email, want.TLS.CertFile = true, "ops@example.com", "/etc/adit/cert.pem"
	want.Relays = []string{"https://a.example.com", "https://b.example.com"}
	want.Labels = map[string]string{"GPU": "A100", "zone.example.com/x": "b"}
	want.Tags = api.Labels{"a100", "pool=render"}
	want.Log = logging{Level: "debug", Format: "json"}
	if !reflect.DeepEqual(p, want) {
		t.Fatalf("each key should be read from its variable\n got %+v\nwant %+v", p, want)
	}
}

func TestLabelsAreAListOrAMapping(t *testing.T) {
	for file, want := range map[string]api.Labels{
		"tags: [a100, pool=render]\n":                    {"a100", "pool=render"},
		"tags: a100\n":                                   {"a100"},
		"tags:\n  zone: rack-7\n  fast: \"\"\n  n: 12\n": {"fast", "n=12", "zone=rack-7"},
		"tags: []\n":                                     {},
		"tags: {}\n":                                     {},
	} {
		if got, err := load(t, file); err != nil || !slices.Equal(got.Tags, want) {
			t.Errorf("%q: got %q, %v; want %q", file, got.Tags, err, want)
		}
	}
}

func TestLoadEmptyVariableIsNotSet(t *testing.T) {
	t.Setenv("ADIT_LISTEN", "")
	t.Setenv("ADIT_TUNNEL_IDLE_TIMEOUT", "")
	if got, err := load(t, ""); err != nil || got.Listen != ":8080" {
		t.Fatalf("an empty variable should change nothing; got %+v, %v", got, err)
	}
}

func TestLoadFile(t *testing.T) {
	got, err := load(t, `
# every form that a file may use
agent_id: 007
links: 4
rate: 2
tunnel: {idle_timeout: 90, hold: 10s}
relay_url: https://one.example.com/a,b
labels: &l
  GPU: A100
  zone.example.com/Rack: 12
  on: yes
tls:
  acme: {enabled: true}
credential: ak-from-file
`)
	if err != nil {
		t.Fatal(err)
	}
	if got.Agent != "007" || got.Links != 4 || got.Rate != 2 || got.Tunnel.IdleTimeout.D() != 90*time.Second || !got.TLS.ACME.Enabled {
		t.Errorf("scalars were read wrongly: %+v", got)
	}
	if !slices.Equal(got.Relays, []string{"https://one.example.com/a,b"}) {
		t.Errorf("one text for a list should be its only item, commas and all; got %q", got.Relays)
	}
	if want := map[string]string{"GPU": "A100", "zone.example.com/Rack": "12", "on": "yes"}; !reflect.DeepEqual(got.Labels, want) {
		t.Errorf("labels should keep letter case and dots; got %v", got.Labels)
	}
	if got.Credential.Reveal() != "ak-from-file" {
		t.Errorf("the credential was not read from the file")
	}
	for _, empty := range []string{"\n", "# only a comment\n", "---\n"} {
		if got, err := load(t, empty); err != nil || got.Listen != ":8080" {
			t.Errorf("the file %q should set nothing; got %v", empty, err)
		}
	}
}

func TestLoadNamesFaults(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		env  map[string]string
		args []string
		want []string // each is a whole fault, the file's directory cut
	}{
		"unknown key":         {file: "listn: :1\n", want: []string{"relay.yaml:1: listn: unknown key, did you mean listen?"}},
		"swapped letters":     {file: "log:\n  lvele: info\n", want: []string{"relay.yaml:2: log.lvele: unknown key, did you mean log.level?"}},
		"letter case":         {file: "Listen: :1\n", want: []string{"relay.yaml:1: Listen: unknown key, did you mean listen?"}},
		"wrong group":         {file: "idle_timeout: 5m\n", want: []string{"relay.yaml:1: idle_timeout: unknown key, did you mean tunnel.idle_timeout?"}},
		"unknown group":       {file: "tunel:\n  hold: 1s\n", want: []string{"relay.yaml:1: tunel: unknown key, did you mean tunnel?"}},
		"nothing near":        {file: "zzzzzzzzzzzz: 1\n", want: []string{"relay.yaml:1: zzzzzzzzzzzz: unknown key"}},
		"dotted":              {file: "tunnel.hold: 1s\n", want: []string{`relay.yaml:1: tunnel.hold: write nested keys on lines of their own, not "tunnel.hold"`}},
		"null":                {file: "listen: ~\nlinks:\n", want: []string{"relay.yaml:1: listen: has no value; remove the key to get the default", "relay.yaml:2: links: has no value; remove the key to get the default"}},
		"twice":               {file: "listen: :1\nlinks: 1\nlisten: :2\n", want: []string{"relay.yaml:3: listen: stands twice, first in line 1"}},
		"twice in labels":     {file: "labels: {a: b, a: c}\n", want: []string{`relay.yaml:1: labels: "a" stands twice`}},
		"list for text":       {file: "listen: [a, b]\n", want: []string{"relay.yaml:1: listen: want text, not a list"}},
		"mapping for list":    {file: "relay_url: {a: b}\n", want: []string{"relay.yaml:1: relay_url: want a list of texts, not a mapping"}},
		"list in list":        {file: "relay_url: [[a]]\n", want: []string{"relay.yaml:1: relay_url: item 1: want text, not a list"}},
		"text for number":     {file: "links: many\n", want: []string{`relay.yaml:1: links: want a whole number, not the text "many"`}},
		"quoted number":       {file: "links: \"2\"\n", want: []string{`relay.yaml:1: links: want a whole number, not the text "2"`}},
		"fraction":            {file: "links: 1.5\n", want: []string{"relay.yaml:1: links: want a whole number, not 1.5"}},
		"out of range":        {file: "small: 256\n", want: []string{"relay.yaml:1: small: 256 is out of range"}},
		"text for bool":       {file: "tls:\n  acme:\n    enabled: \"true\"\n", want: []string{`relay.yaml:3: tls.acme.enabled: want true or false, not the text "true"`}},
		"number in labels":    {file: "tags: {a: [b]}\n", want: []string{"relay.yaml:1: tags: a: want text, not a list"}},
		"twice in tags":       {file: "tags: {a: b, a: c}\n", want: []string{`relay.yaml:1: tags: "a" stands twice`}},
		"text for mapping":    {file: "labels: gpu\n", want: []string{`relay.yaml:1: labels: want a mapping of names to texts, not the text "gpu"`}},
		"null label":          {file: "labels: {a: ~}\n", want: []string{"relay.yaml:1: labels: a: want text, not nothing"}},
		"bad duration":        {file: "tunnel:\n  hold: soon\n", want: []string{`relay.yaml:2: tunnel.hold: a duration is text like "30m" or "90d", or a number of seconds, not "soon"`}},
		"list file":           {file: "- a\n", want: []string{"relay.yaml:1: want a mapping of keys, not a list"}},
		"two documents":       {file: "listen: :1\n---\nlisten: :2\n", want: []string{"relay.yaml: holds more than one YAML document"}},
		"list as key":         {file: "? [a]\n: b\n", want: []string{"relay.yaml:1: want a key, not a list"}},
		"environment number":  {env: map[string]string{"ADIT_LINKS": "x"}, want: []string{`ADIT_LINKS: want a whole number, not "x"`}},
		"environment range":   {env: map[string]string{"ADIT_SMALL": "300"}, want: []string{"ADIT_SMALL: 300 is out of range"}},
		"environment mapping": {env: map[string]string{"ADIT_LABELS": "gpu"}, want: []string{`ADIT_LABELS: want name=value,name=value, not "gpu"`}},
		"flag":                {args: []string{"--links=x", "--tls.acme.enabled=maybe"}, want: []string{`--links: want a whole number, not "x"`, `--tls.acme.enabled: want true or false, not "maybe"`}},
		"flag twice a name":   {args: []string{"--labels=a=1", "--labels=a=2"}, want: []string{`--labels: "a" stands twice`}},
		"all sources": {
			file: "listn: x\nsmall: -1\n", env: map[string]string{"ADIT_RATE": "fast"}, args: []string{"--links="},
			want: []string{"relay.yaml:1: listn: unknown key, did you mean listen?", `--links: want a whole number, not ""`, "relay.yaml:2: small: -1 is out of range", `ADIT_RATE: want a number, not "fast"`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			got, err := load(t, c.file, c.args...)
			var texts []string
			for _, f := range conf.Faults(err) {
				texts = append(texts, f.Error()[strings.LastIndex(f.Error(), string(filepath.Separator)+"relay.yaml")+1:])
			}
			if !slices.Equal(texts, c.want) {
				t.Errorf("faults\n got %q\nwant %q", texts, c.want)
			}
			if !reflect.DeepEqual(got, defaults()) {
				t.Errorf("a faulty configuration should change nothing; got %+v", got)
			}
		})
	}
}

func TestLoadUnreadableFile(t *testing.T) {
	p := defaults()
	for name, path := range map[string]string{"missing": filepath.Join(t.TempDir(), "none.yaml"), "directory": t.TempDir(), "endless": "/dev/zero"} {
		if err := conf.Load(nil, path, &p); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: the error should name the file %s; got %v", name, path, err)
		}
	}
	if _, err := load(t, "listen: x\na: b: c\n"); err == nil || !strings.Contains(err.Error(), "relay.yaml: line 2") {
		t.Errorf("broken YAML should name its line; got %v", err)
	}
}

func TestFlags(t *testing.T) {
	got, err := load(t, "", "--tls.acme.enabled", "--relay_url", "https://a", "--relay_url=https://b,https://c", "--labels", "a=1", "--labels", "b=2")
	if err != nil {
		t.Fatal(err)
	}
	if !got.TLS.ACME.Enabled || !slices.Equal(got.Relays, []string{"https://a", "https://b", "https://c"}) || got.Labels["a"] != "1" || got.Labels["b"] != "2" {
		t.Errorf("flags were read wrongly: %+v", got)
	}
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	conf.Flags(fs, defaults())
	if fs.Lookup("credential") != nil {
		t.Error("a secret must have no flag")
	}
	help := fs.FlagUsages()
	for _, want := range []string{
		"--listen string", "address of the public listener [ADIT_LISTEN] (default \":8080\")",
		"--tunnel.idle_timeout duration", "(default 30m0s)", "--relay_url list", "--labels name=value,…",
	} {
		if !strings.Contains(help, want) {
			t.Errorf("help should show %q:\n%s", want, help)
		}
	}
}

func TestFlagOfAnotherProgramIsNoSource(t *testing.T) {
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	fs.String("listen", "", "not a configuration key here")
	if err := fs.Parse([]string{"--listen=:1"}); err != nil {
		t.Fatal(err)
	}
	p := defaults()
	if err := conf.Load(fs, "", &p); err != nil || p.Listen != ":8080" {
		t.Fatalf("a flag that Flags did not register should not be read; got %q, %v", p.Listen, err)
	}
}

func TestPrint(t *testing.T) {
	p := defaults()
	p.Credential = "ak-canary"
	p.Agent = "007"
	p.Relays = []string{"https://user:canary@relay.example.com"}
	p.Labels = map[string]string{"on": "true", "GPU": "A100"}
	p.Tags = api.Labels{"007", "pool=render"}
	var b strings.Builder
	if err := conf.Print(&b, p); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "canary") {
		t.Errorf("secrets should be cut:\n%s", b.String())
	}
	for _, want := range []string{"listen: :8080\n", "  idle_timeout: 30m0s\n", "    enabled: false\n", "credential: '[redacted]'\n", "agent_id: \"007\"\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("want %q in:\n%s", want, b.String())
		}
	}
	again, err := load(t, b.String())
	if err != nil {
		t.Fatalf("what Print wrote should load: %v\n%s", err, b.String())
	}
	p.Credential, p.Relays = "[redacted]", []string{"https://[redacted]@relay.example.com"}
	if !reflect.DeepEqual(again, p) {
		t.Errorf("what Print wrote should load as the same\n got %+v\nwant %+v", again, p)
	}
}

func TestUnknownEnv(t *testing.T) {
	for _, name := range []string{"ADIT_LISTN", "ADIT_URL", "ADIT_TOKEN", "ADIT_TEAM", "ADIT_CONFIG", "ADIT_LINKS", "ADIT_MINE", "ADIT_QQQQQQQQQQ"} {
		t.Setenv(name, "x")
	}
	got := conf.UnknownEnv(program{}, "ADIT_MINE")
	got = slices.DeleteFunc(got, func(u conf.UnknownVar) bool { // whatever else the machine has set
		return u.Name != "ADIT_LISTN" && os.Getenv(u.Name) != "x"
	})
	want := []conf.UnknownVar{{Name: "ADIT_LISTN", Nearest: "ADIT_LISTEN"}, {Name: "ADIT_QQQQQQQQQQ"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestReadSecretFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("  ak-1\n")
	if s, err := conf.ReadSecretFile(path); err != nil || s.Reveal() != "ak-1" {
		t.Errorf("want the trimmed secret; got %q, %v", s.Reveal(), err)
	}
	write("\n")
	if _, err := conf.ReadSecretFile(path); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("an empty file should be an error; got %v", err)
	}
	if _, err := conf.ReadSecretFile(path + ".none"); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a missing file should be named; got %v", err)
	}
}

func TestJoin(t *testing.T) {
	if conf.Join(nil, nil) != nil || conf.Faults(nil) != nil {
		t.Error("no faults should be no error")
	}
	err := conf.Join(conf.Faultf("links", "want 1 to %d", 8), nil, conf.Join(conf.Faultf("listen", "is taken"), fmt.Errorf("other")))
	if got := err.Error(); got != "links: want 1 to 8\nlisten: is taken\nother" {
		t.Errorf("got %q", got)
	}
	if n := len(conf.Faults(err)); n != 3 {
		t.Errorf("want three faults, got %d", n)
	}
}

func TestStructMistakesPanic(t *testing.T) {
	for name, cfg := range map[string]any{
		"no struct": 3,
		"type": struct {
			A chan int `conf:"a"`
		}{},
		"twice": struct {
			A, B string `conf:"a"`
		}{},
		"unexported": struct {
			a string `conf:"a"`
		}{},
		"variable": struct {
			A struct {
				B string `conf:"b_c"`
			} `conf:"a"`
			B struct {
				B string `conf:"c"`
			} `conf:"a_b"`
		}{},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: a wrong struct should panic", name)
				}
			}()
			conf.Keys(cfg)
		}()
	}
}

// FuzzLoadFile shows that no file crashes the reader, and that every fault names
// the file.
func FuzzLoadFile(f *testing.F) {
	for _, seed := range []string{
		"listen: :1\ntunnel:\n  hold: 1s\n", "labels: &a {b: *a}\n", "tunnel: &t\n  hold: *t\n", "<<: {listen: x}\n",
		"? [a]\n: b\n", "listen: !!binary aGk=\n", "links: 0x1F\n", "a: &a [*a]\n", "\xff", "tls: {acme: {enabled: yes}}\n", "relay_url: [~]\n",
	} {
		f.Add(seed)
	}
	path := filepath.Join(f.TempDir(), "fuzz.yaml")
	f.Fuzz(func(t *testing.T, file string) {
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		p := defaults()
		for _, fault := range conf.Faults(conf.Load(nil, path, &p)) {
			if !strings.Contains(fault.Error(), "fuzz.yaml") {
				t.Errorf("the fault names no file: %v", fault)
			}
		}
	})
}
