package api_test

import (
	"bytes"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/shared/api"
)

const root = "../.."

// labels are files in which words that are codes too are something else.
var labels = []string{
	"agent/internal/terminal/terminals.go", // names of what is logged
	"relay/internal/access/asked.go",       // fields
	"relay/internal/signin/login.go",       // what an issuer answers
	"agent/internal/desk/metrics.go",       // outcomes of streams
	"relay/internal/audit/record.go",       // events
	"relay/internal/creds/metrics.go",      // outcomes of authentications
}

var (
	row     = regexp.MustCompile(`(?m)^\t(Code\w+) += (?:code|local)\("([a-z_]+)"`)
	use     = regexp.MustCompile(`\bapi\.(Code[A-Z]\w*)`)
	literal = regexp.MustCompile(`"([a-z]+_[a-z_]+)"`)
	made    = regexp.MustCompile(`api\.(?:NewProblem|Problemf|Code)\(\s*"`)
)

// TestTableIsTheOnlyPlace wants every code to be used, and none to be written as text
// where the table's name for it belongs.
func TestTableIsTheOnlyPlace(t *testing.T) {
	src, err := os.ReadFile("codes.go")
	if err != nil {
		t.Fatal(err)
	}
	unused, texts := map[string]bool{}, map[string]string{}
	for _, m := range row.FindAllSubmatch(src, -1) {
		unused[string(m[1])], texts[string(m[2])] = true, string(m[1])
	}
	if len(texts) < len(api.RelayCodes()) {
		t.Fatalf("of %d codes, %d were found in the source", len(api.RelayCodes()), len(texts))
	}
	err = fs.WalkDir(os.DirFS(root), ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if name := d.Name(); p != "." && (strings.HasPrefix(name, ".") || name == "node_modules" || name == "bin") {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") || filepath.Dir(p) == "shared/api" || strings.HasPrefix(p, "relay/e2e/"):
			return nil
		}
		src, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			return err
		}
		for _, m := range use.FindAllSubmatch(src, -1) {
			delete(unused, string(m[1]))
		}
		for _, m := range literal.FindAllSubmatch(src, -1) {
			if name := texts[string(m[1])]; name != "" && !slices.Contains(labels, p) {
				t.Errorf("%s: %s is api.%s", p, m[0], name)
			}
		}
		if m := made.Find(src); m != nil {
			t.Errorf("%s: %s…: a code has a row in shared/api/codes.go", p, bytes.TrimSpace(m))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(unused)) {
		t.Errorf("nobody answers with %s", name)
	}
}

func TestCodes(t *testing.T) {
	for _, c := range api.RelayCodes() {
		p := api.NewProblem(c, "")
		if http.StatusText(p.Status) == "" || p.Status < 400 || p.Title != http.StatusText(p.Status) || p.Hop == "" {
			t.Errorf("%s: status %d %q, hop %q", c, p.Status, p.Title, p.Hop)
		}
		if m := c.Meaning(); m == "" || strings.ContainsAny(m, "\n`") || strings.HasSuffix(m, ".") {
			t.Errorf("%s: the meaning is one line without a dot; got %q", c, m)
		}
	}
	if slices.Contains(api.RelayCodes(), api.CodeNotARelay) {
		t.Error("what only a command says is no code of the relay's interface")
	}
	if p := api.NewProblem("never_heard_of", ""); p.Status != http.StatusInternalServerError {
		t.Errorf("a code without a row still has a status; got %d", p.Status)
	}
	if p := api.NewProblem(api.CodeAgentPaused, "").WithStatus(http.StatusConflict); p.Status != 409 || p.Title != "Conflict" {
		t.Errorf("another status has its own title; got %d %q", p.Status, p.Title)
	}
}
