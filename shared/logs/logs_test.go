package logs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log" //nolint:depguard // what libraries call
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/logs"
)

const (
	session = "0123456789abcdef0123456789abcdef"
	access  = "abcdefghijklmnopqrstuvwxyz"
	base32  = "abcdefghijklmnopqrstuvwxyz234567abcdefgh" // 40 characters
	jwt     = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
)

func TestRedact(t *testing.T) {
	segment := session + "-" + access
	for _, c := range []struct{ in, want string }{
		// Adit's own secrets.
		{"sk-" + base32, "sk-[redacted]"},
		{"use dk-" + base32 + ", not that", "use dk-[redacted], not that"},
		{"got \"ak-" + base32 + "\"", "got \"ak-[redacted]\""},
		{"#adm-" + base32, "#adm-[redacted]"},
		{"lt-" + base32 + "/en-" + base32, "lt-[redacted]/en-[redacted]"},
		{"SK-" + strings.ToUpper(base32), "SK-[redacted]"},
		{"https://relay.example.com/terminal/" + session + "#code=tc-" + base32, "https://relay.example.com/terminal/" + session + "#code=tc-[redacted]"},
		{`{"state":"admitted","right":"tr-` + base32 + `"}`, `{"state":"admitted","right":"tr-[redacted]"}`},
		{"si-" + base32 + ", inv-" + base32, "si-[redacted], inv-[redacted]"},
		{`{"device_code":"pc-` + base32 + `"}`, `{"device_code":"pc-[redacted]"}`},
		{"bt-" + session + session + "-1767323045", "bt-[redacted]-1767323045"},
		{"xsk-" + base32, "xsk-[redacted]"},
		{"sk%2D" + base32, "sk%2D[redacted]"},
		// What is none stays.
		{"task-0123456789abcdef", "task-0123456789abcdef"},
		{"sk-abcdefghi", "sk-abcdefghi"}, // what credentials show of themselves
		{"content-language en-US", "content-language en-US"},
		{session, session},
		{"cred_0123456789abcdef", "cred_0123456789abcdef"},
		{"4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"},
		// Segments.
		{segment, session + "-[redacted]"},
		{"GET /tunnel/" + segment + "/api?x=1 HTTP/1.1", "GET /tunnel/" + session + "-[redacted]/api?x=1 HTTP/1.1"},
		{"https://" + segment + ".tunnels.example.com/", "https://" + session + "-[redacted].tunnels.example.com/"},
		{strings.ToUpper(segment) + ".EXAMPLE.COM", strings.ToUpper(session) + "-[redacted].EXAMPLE.COM"},
		{"/tunnel/" + session + "%2d" + access + "/", "/tunnel/" + session + "%2d[redacted]/"},
		{"ff" + segment + "x", "ff" + session + "-[redacted]"},
		{segment + " and " + segment, session + "-[redacted] and " + session + "-[redacted]"},
		// Authentication schemes and web tokens.
		{"Bearer 7f3a9c", "Bearer [redacted]"},
		{"bearer " + jwt + " expired", "bearer [redacted] expired"},
		{"Basic dXNlcjpwYXNz", "Basic [redacted]"},
		{"the bearer token expired", "the bearer token expired"},
		{"WWW-Authenticate: Bearer", "WWW-Authenticate: Bearer"},
		{"parse token " + jwt + ": bad signature", "parse token [redacted]: bad signature"},
		{"a Journey", "a Journey"},
		// Headers, as HTTP, Go and JSON print them.
		{"Authorization: secret canary\r\nHost: a", "Authorization: [redacted]\r\nHost: a"},
		{"Cookie: a=b; c=d\nX: y", "Cookie: [redacted]\nX: y"},
		{"map[Authorization:[Bearer x] Host:[a]]", "map[Authorization:[redacted] Host:[a]]"},
		{`{"Authorization":["Bearer x"],"Host":["a"]}`, `{"Authorization":[redacted],"Host":["a"]}`},
		{`{"cookie":"a=\"b\"; c","n":1}`, `{"cookie":[redacted],"n":1}`},
		{`body "{\"secret\":\"canary\",\"n\":1}"`, `body "{\"secret\":[redacted],\"n\":1}"`},
		{`{"admin_token":"canary","fencing_token":7}`, `{"admin_token":[redacted],"fencing_token":7}`},
		{"map[token:canary n:1]", "map[token:[redacted] n:1]"},
		{"{Name:x ClientSecret:canary}", "{Name:x ClientSecret:[redacted]}"},
		{"read token: unexpected end", "read token: unexpected end"},
		{"http: named cookie not present", "http: named cookie not present"},
		// URLs and assignments.
		{"dial https://user:pass@proxy.example.com:3128/x: refused", "dial https://[redacted]@proxy.example.com:3128/x: refused"},
		{"https://ghp_x@host/a@b", "https://[redacted]@host/a@b"},
		{"https://host/a@b?c=d@e", "https://host/a@b?c=d@e"},
		{"https://a:b@c@host", "https://[redacted]@host"},
		{"/cb?access_token=canary&state=1", "/cb?access_token=[redacted]&state=1"},
		{`password="my canary" user=x`, `password=[redacted] user=x`},
		{"fencing_token=12 n=3", "fencing_token=12 n=3"},
		{"", ""}, {"-", "-"}, {"plain", "plain"}, {"a=b: c -d %", "a=b: c -d %"},
		{"token=", "token="}, {"Authorization:", "Authorization:"}, {"Authorization: \"", "Authorization: [redacted]"},
	} {
		got := logs.Redact(c.in)
		if got != c.want {
			t.Errorf("Redact(%q)\n got %q\nwant %q", c.in, got, c.want)
		}
		if again := logs.Redact(got); again != got {
			t.Errorf("Redact(%q) should change nothing more; got %q", got, again)
		}
	}
}

// TestNoSecretIsLogged plants fresh secrets in every kind of attribute.
func TestNoSecretIsLogged(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		t.Run(format, func(t *testing.T) {
			var out bytes.Buffer
			log, _, err := logs.New(&out, logs.Options{Level: "debug", Format: format})
			if err != nil {
				t.Fatal(err)
			}
			key := ident.ClusterKey{1, 2, 3}
			id := ident.NewSessionID()
			segment := key.Segment(id)
			_, token, _ := segment.Split()
			secret := ident.NewSecret(ident.PrefixAgent)
			value := strings.TrimPrefix(secret.Reveal(), ident.PrefixAgent)
			u, _ := url.Parse("https://u:canary-password@relay.example.com/tunnel/" + string(segment) + "/?q=1")
			header := http.Header{"Authorization": {"Bearer " + secret.Reveal()}, "Cookie": {"s=canary-cookie"}}

			log.Info("got " + secret.Reveal())
			log.Info("typed", "secret_value", secret, "segment", segment, "key", key, "pointer", &secret)
			log.Info("text", "path", u.Path, "host", string(segment)+".tunnels.example.com", "authorization", "canary-auth")
			log.Info("error", "error", fmt.Errorf("get %s: %w", u, errors.New("refused "+secret.Reveal())))
			log.Info("any", "header", header, "url", u, "bytes", []byte(secret.Reveal()), "list", []string{string(segment)},
				"struct", struct{ Segment, Secret any }{segment, secret.Reveal()}, "map", map[string]string{"token": "canary-map"})
			log.WithGroup("g").With("Set-Cookie", "canary-set").Info("group", slog.Group("in", "admin_token", "canary-admin", "s", secret.Reveal()))
			log.Info("lazy", "v", lazy{secret.Reveal()}, "nil", nil, "nil_error", error(nil), "broken", (*url.Error)(nil))
			log.Error("source", "level", slog.LevelWarn, "n", 7)

			for _, canary := range []string{value, token, "canary", "\x01\x02\x03"} {
				if i := strings.Index(out.String(), canary); i >= 0 {
					t.Errorf("the log shows %q:\n…%s", canary, out.String()[max(0, i-120):])
				}
			}
			if !strings.Contains(out.String(), string(id)+"-[redacted]") {
				t.Errorf("a segment should keep its session id:\n%s", out.String())
			}
			if format == "json" {
				for line := range strings.Lines(out.String()) {
					if !json.Valid([]byte(line)) {
						t.Errorf("no JSON: %s", line)
					}
				}
			}
		})
	}
}

type lazy struct{ s string }

func (l lazy) LogValue() slog.Value { return slog.AnyValue(fmt.Errorf("later %s", l.s)) }

func TestValuesWithoutSecretsStay(t *testing.T) {
	var out bytes.Buffer
	log, _, err := logs.New(&out, logs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("opened", "agents", []string{"a", "b"}, "port", 8188, "fencing_token", 3)
	var got struct {
		Level  string
		Agents []string
		Port   int
		Fence  int `json:"fencing_token"`
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Level != "INFO" || len(got.Agents) != 2 || got.Port != 8188 || got.Fence != 3 {
		t.Errorf("what is no secret should keep its type; got %s (%v)", out.String(), err)
	}
}

func TestLevelAndFormat(t *testing.T) {
	var out bytes.Buffer
	log, level, err := logs.New(&out, logs.Options{Level: "WARN", Format: "auto"})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("hidden")
	if out.Len() > 0 {
		t.Errorf("info should be hidden at level warn: %s", out.String())
	}
	if err := logs.SetLevel(level, "debug"); err != nil || !log.Enabled(t.Context(), slog.LevelDebug) {
		t.Errorf("a reload should lower the level; %v", err)
	}
	log.Debug("shown")
	if !json.Valid(out.Bytes()) {
		t.Errorf("auto should be JSON where there is no terminal: %s", out.String())
	}
	if _, _, err := logs.New(&out, logs.Options{Level: "loud"}); err == nil || !strings.Contains(err.Error(), "loud") {
		t.Errorf("an unknown level should be named; got %v", err)
	}
	if _, _, err := logs.New(&out, logs.Options{Format: "xml"}); err == nil || !strings.Contains(err.Error(), "xml") {
		t.Errorf("an unknown format should be named; got %v", err)
	}
	file, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	log, _, _ = logs.New(file, logs.Options{})
	log.Info("to a file")
	if b, _ := os.ReadFile(file.Name()); !json.Valid(b) {
		t.Errorf("auto should be JSON in a file: %s", b)
	}
}

// FuzzRedact shows that whatever surrounds a secret, it is cut, once and for all.
func FuzzRedact(f *testing.F) {
	for _, s := range []string{"", "-", "Bearer ", "Authorization: ", `{"a":"`, "https://", "token=", "eyJ", "%2d", "\\\"", "sk-", session + "-"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		// The secrets' letters alone, so that the text around cannot spell them.
		got := logs.Redact(before + "/" + session + "-" + access + "/" + after)
		if strings.Contains(got, access) && !strings.Contains(before+after, access) {
			t.Errorf("the access token stays in %q", got)
		}
		got = logs.Redact(before + "sk-" + base32 + " " + after)
		if strings.Contains(got, base32) && !strings.Contains(before+after, base32) {
			t.Errorf("the secret stays in %q", got)
		}
		_ = logs.Redact(before + after)
	})
}

func BenchmarkRedact(b *testing.B) {
	for name, s := range map[string]string{
		"clean":   "stream closed by the app after 15s",
		"segment": "GET /tunnel/" + session + "-" + access + "/api/v1/queue?limit=20 HTTP/1.1",
		"long":    strings.Repeat("a line of an error text without any secret; ", 200),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(s)))
			b.ReportAllocs()
			for b.Loop() {
				_ = logs.Redact(s)
			}
		})
	}
}

func BenchmarkLog(b *testing.B) {
	log, _, err := logs.New(discard{}, logs.Options{Format: "json"})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		log.Info("stream opened", "session_id", session, "agent", "gpu-7", "port", 8188)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func TestTakeOver(t *testing.T) {
	var b bytes.Buffer
	l, level, err := logs.New(&b, logs.Options{Format: "json", Level: "debug"})
	if err != nil {
		t.Fatal(err)
	}
	restore := logs.TakeOver(l)
	defer restore()
	log.Printf("Unsolicited response received on idle HTTP channel starting with %q", "sk-"+base32)
	var rec map[string]any
	if err := json.Unmarshal(b.Bytes(), &rec); err != nil {
		t.Fatalf("what a library prints is a record: %v in %q", err, b.String())
	}
	if rec["level"] != "DEBUG" || rec["msg"] != `Unsolicited response received on idle HTTP channel starting with "sk-[redacted]"` {
		t.Errorf("the record is %v", rec)
	}
	b.Reset()
	level.Set(slog.LevelInfo)
	log.Print("noise")
	if b.Len() > 0 {
		t.Errorf("at level info it is kept out: %q", b.String())
	}
}
