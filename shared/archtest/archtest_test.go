package archtest_test

import (
	"cmp"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/adit-tunnel/adit/shared/archtest"
)

const root = "../.."

// exceptions are the files of this repository that may break a rule, with the
// reason. Add one only when the rule is wrong for the file, not when it is in the way.
var exceptions = archtest.Exceptions{
	"imports": {
		"relay/e2e/etcdmember/main.go": "the etcd that end-to-end tests run relays on; nothing of the product knows it",
		"relay/e2e/matrix_test.go":     "changes a stored credential past all relays: its end, where time would take a day, and its revocation, as a relay that dies then",
	},
	"sleep": {
		"relay/internal/gate/storm_test.go": "the callers of the storm sleep in its bubble",
		"shared/link/life_test.go":          "a slow connection sleeps in the bubble of its test",
	},
	"texts": {
		"relay/internal/store/zaplog.go": "names messages of etcd's own log",
	},
}

func TestRepository(t *testing.T) {
	tree, err := archtest.Read(os.DirFS(root), "bin", "shared/deps_tmp")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range tree.Check(exceptions) {
		t.Error(v)
	}
}

// topLevel is the tree as the README shows it; hidden entries are tools' files.
var topLevel = []string{"agent", "relay", "shared", "configs", "scripts", "go.mod", "go.sum", "README.md", "LICENSE"}

func TestTopLevelIsFixed(t *testing.T) {
	for _, name := range tracked(t) {
		if !slices.Contains(topLevel, name) && !strings.HasPrefix(name, ".") {
			t.Errorf("%s: the top level is fixed (%s)", name, strings.Join(topLevel, " "))
		}
	}
}

// tracked lists the top-level entries of the repository, or of an unpacked
// release, where there is no git.
func tracked(t *testing.T) []string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(root, ".git")); err != nil {
		entries, err := os.ReadDir(root)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			if e.Name() != "bin" {
				names = append(names, e.Name())
			}
		}
		return names
	}
	out, err := exec.CommandContext(t.Context(), "git", "-C", root, "ls-files", "--full-name", ".").Output()
	if err != nil {
		t.Fatalf("list tracked files: %v", err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), "/")
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// cited finds what looks like a path of this repository in a document.
var cited = regexp.MustCompile(`(?:agent|relay|shared|configs|scripts|\.github|\.ci)/[A-Za-z0-9_./@-]*[A-Za-z0-9_@]`)

var citedTest = regexp.MustCompile(`\bTest[A-Z]\w+`)

// TestDocumentsCiteWhatIsThere keeps the documents true when files move and tests are
// renamed.
func TestDocumentsCiteWhatIsThere(t *testing.T) {
	tests := map[string]bool{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "node_modules" || strings.HasPrefix(d.Name(), ".") && p != root) {
			return cmp.Or(err, fs.SkipDir)
		}
		if strings.HasSuffix(p, "_test.go") {
			src, err := os.ReadFile(p)
			for _, f := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(src, -1) {
				tests[string(f[1])] = true
			}
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range []string{
		"README.md", "relay/ARCHITECTURE.md", ".github/CONTRIBUTING.md", ".github/SECURITY.md",
		"configs/README.md", "configs/hooks/README.md", "relay/e2e/bench/README.md",
	} {
		text, err := os.ReadFile(filepath.Join(root, doc))
		if err != nil {
			t.Error(err)
			continue
		}
		for n, line := range strings.Split(string(text), "\n") {
			for _, name := range citedTest.FindAllString(line, -1) {
				if !tests[name] {
					t.Errorf("%s:%d names %s, and there is no such test", doc, n+1, name)
				}
			}
			for _, at := range cited.FindAllStringIndex(line, -1) {
				if at[0] > 0 && strings.ContainsAny(line[at[0]-1:at[0]], "/-.~$_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") {
					continue // a part of another path
				}
				if _, err := os.Stat(filepath.Join(root, line[at[0]:at[1]])); err != nil {
					t.Errorf("%s:%d names %s, which is not there", doc, n+1, line[at[0]:at[1]])
				}
			}
		}
	}
}

// TestRules breaks each rule once, so that a rule that sees nothing is noticed.
func TestRules(t *testing.T) {
	const doc = "// Package p is a package.\npackage p\n"
	long := doc + strings.Repeat("\n", 499)
	for name, c := range map[string]struct {
		path, src string
		want      string // empty: fine
	}{
		"yamux in link":        {"shared/link/a.go", doc + `import _ "github.com/hashicorp/yamux"`, ""},
		"yamux elsewhere":      {"shared/splice/a.go", doc + `import _ "github.com/hashicorp/yamux"`, "only shared/link may"},
		"yamux in a test":      {"relay/internal/hub/a_test.go", doc + `import _ "github.com/hashicorp/yamux"`, "only shared/link may"},
		"etcd in store":        {"relay/internal/store/a.go", doc + `import _ "go.etcd.io/etcd/client/v3"`, ""},
		"etcd elsewhere":       {"relay/internal/gate/a.go", doc + `import _ "go.etcd.io/etcd/client/v3"`, "only relay/internal/store may"},
		"viper elsewhere":      {"agent/internal/config/a.go", doc + `import _ "github.com/spf13/viper"`, "only shared/conf may"},
		"shared knows relay":   {"shared/link/a.go", doc + `import _ "github.com/adit-tunnel/adit/relay"`, "neither half"},
		"shared knows agent":   {"shared/link/a.go", doc + `import _ "github.com/adit-tunnel/adit/agent/internal/desk"`, "neither half"},
		"agent knows relay":    {"agent/a.go", doc + `import _ "github.com/adit-tunnel/adit/relay"`, "halves"},
		"relay knows agent":    {"relay/internal/edge/a.go", doc + `import _ "github.com/adit-tunnel/adit/agent"`, "halves"},
		"e2e knows agent":      {"relay/e2e/a_test.go", doc + `import _ "github.com/adit-tunnel/adit/agent"`, ""},
		"cli imports shared":   {"relay/internal/aditcli/a.go", doc + `import _ "github.com/adit-tunnel/adit/shared/api"`, ""},
		"cli imports relay":    {"relay/internal/aditcli/a.go", doc + `import _ "github.com/adit-tunnel/adit/relay/internal/store"`, "shared/ only"},
		"adit is no relay":     {"relay/cmd/adit/a.go", "// Command adit.\npackage main\n" + `import _ "github.com/adit-tunnel/adit/relay"`, "shared/ only"},
		"adit-relay may":       {"relay/cmd/adit-relay/a.go", "// Command adit-relay.\npackage main\n" + `import _ "github.com/adit-tunnel/adit/relay"`, ""},
		"upwards":              {"relay/internal/store/a.go", doc + `import _ "github.com/adit-tunnel/adit/relay/internal/rest"`, "downwards"},
		"carrier knows link":   {"shared/carrier/a.go", doc + `import _ "github.com/adit-tunnel/adit/shared/link"`, "downwards"},
		"ident imports wire":   {"shared/ident/a.go", doc + `import _ "github.com/adit-tunnel/adit/shared/wire"`, "downwards"},
		"testing in code":      {"relay/a.go", doc + `import _ "testing"`, "only tests may"},
		"testkit in code":      {"relay/a.go", doc + `import _ "github.com/adit-tunnel/adit/shared/testkit/wan"`, "only tests may"},
		"testkit in gatetest":  {"relay/internal/gate/gatetest/a.go", doc + `import _ "github.com/adit-tunnel/adit/shared/testkit"`, ""},
		"testkit in tests":     {"relay/a_test.go", doc + `import _ "github.com/adit-tunnel/adit/shared/testkit/wan"`, ""},
		"main of 15 lines":     {"relay/cmd/x/main.go", "// Command x.\npackage main\n" + strings.Repeat("\n", 13), ""},
		"main of 16 lines":     {"relay/cmd/x/main.go", "// Command x.\npackage main\n" + strings.Repeat("\n", 14), "at most 15"},
		"file of 501 lines":    {"relay/a.go", long, "at most 500"},
		"test of 501 lines":    {"relay/a_test.go", long, ""},
		"no package comment":   {"relay/a.go", "package p\n", "has no package comment"},
		"wrong comment":        {"relay/a.go", "// This is p.\npackage p\n", "begins with \"Package p \""},
		"text":                 {"relay/a.go", doc + "const s = `Failed" + ` to open` + "`", "say what was being done"},
		"comment of that text": {"relay/a.go", doc + "// it failed" + " to open\nvar x int", ""},
		"manager":              {"relay/a.go", doc + "type linkManager struct{}", "name what it does"},
		"local helper":         {"relay/a_test.go", doc + "func f() { type testHelper int }", "name what it does"},
		"handler inside":       {"relay/a.go", doc + "type HandlerName string", ""},
		"package util":         {"relay/util/a.go", "// Package util is.\npackage util\n", "name what it does"},
		"init":                 {"relay/a.go", doc + "func init() {}", "nothing happens"},
		"method init":          {"relay/a.go", doc + "type t int\nfunc (t) init() {}", ""},
		"exit":                 {"relay/a.go", doc + "import \"os\"\nfunc f() { os.Exit(1) }", "main exits"},
		"document":             {"relay/internal/rest/a.go", doc + "func f() { api.NotFound(c).Write(w, id) }", "refuse with"},
		"document by admin":    {"relay/internal/admin/a.go", doc + "func f() { p.Write(w, id) }", ""},
		"document by a half":   {"agent/a.go", doc + "func f() { p.Write(w, id) }", ""},
		"http.Error":           {"relay/a.go", doc + "import \"net/http\"\nfunc f() { http.Error(w, text, 404) }", "refuse with"},
		"write of a package":   {"relay/a.go", doc + "import \"encoding/binary\"\nfunc f() { binary.Write(w, x) }", ""},
		"sleep":                {"relay/a_test.go", doc + "import \"time\"\nfunc f() { time.Sleep(1) }", "waits for what it expects"},
		"sleep in a bubble":    {"relay/a_test.go", doc + "func f() { testkit.Bubble(t, func() { time.Sleep(1) }) }", ""},
		"sleep in synctest":    {"relay/a_test.go", doc + "func f() { synctest.Test(t, func() { go func() { time.Sleep(1) }() }) }", ""},
		"sleep in bubble":      {"relay/a_test.go", doc + "func f() { bubble(t, func() { time.Sleep(1) }) }", ""},
		"sleep in code":        {"relay/a.go", doc + "func f() { time.Sleep(1) }", ""},
		"skip":                 {"relay/a_test.go", doc + "func f() { t.Skip() }", "says why"},
		"skip, empty":          {"relay/a_test.go", doc + "func f() { t.Skip(\"\") }", "says why"},
		"skip now":             {"relay/a_test.go", doc + "func f() { t.SkipNow() }", "says why"},
		"skip, told":           {"relay/a_test.go", doc + "func f() { t.Skip(\"no netem here\") }", ""},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := archtest.Read(fstest.MapFS{c.path: {Data: []byte(c.src + "\n")}})
			if strings.Contains(c.src, strings.Repeat("\n", 13)) { // lines are counted exactly
				tree, err = archtest.Read(fstest.MapFS{c.path: {Data: []byte(c.src)}})
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, v := range tree.Check(nil) {
				got = append(got, v.String())
			}
			switch {
			case c.want == "" && len(got) > 0:
				t.Errorf("this is fine, but: %q", got)
			case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
				t.Errorf("want one violation with %q, got %q", c.want, got)
			}
		})
	}
}

func TestLeakRule(t *testing.T) {
	code := &fstest.MapFile{Data: []byte("// Package p is.\npackage p\nfunc f() { go f() }\n")}
	bare := &fstest.MapFile{Data: []byte("package p_test\n")}
	checked := &fstest.MapFile{Data: []byte("package p_test\nfunc TestMain(m *testing.M) { testkit.LeakCheck(m) }\n")}
	for name, c := range map[string]struct {
		files fstest.MapFS
		want  int
	}{
		"without check": {fstest.MapFS{"p/a.go": code, "p/a_test.go": bare}, 1},
		"with check":    {fstest.MapFS{"p/a.go": code, "p/a_test.go": bare, "p/b_test.go": checked}, 0},
		"without tests": {fstest.MapFS{"p/a.go": code}, 0},
	} {
		tree, err := archtest.Read(c.files)
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.Check(nil); len(got) != c.want {
			t.Errorf("%s: want %d violations, got %v", name, c.want, got)
		}
	}
}

func TestExceptions(t *testing.T) {
	tree, err := archtest.Read(fstest.MapFS{
		"p/a.go":          {Data: []byte("// Package p is.\npackage p\nfunc init() {}\n")},
		"p/testdata/x.go": {Data: []byte("no Go at all")},
		".hidden/x.go":    {Data: []byte("no Go at all")},
		"skipped/x.go":    {Data: []byte("no Go at all")},
	}, "skipped")
	if err != nil {
		t.Fatal(err)
	}
	if got := tree.Check(archtest.Exceptions{"init": {"p/a.go": "a reason"}}); len(got) != 0 {
		t.Errorf("an exception should be heeded; got %v", got)
	}
	if got := tree.Check(archtest.Exceptions{"init": {"p/a.go": ""}}); len(got) != 1 || !strings.Contains(got[0].String(), "without a reason") {
		t.Errorf("an exception needs a reason; got %v", got)
	}
	if got := tree.Check(archtest.Exceptions{"init": {"p/a.go": "x"}, "sleep": {"p/b.go": "y"}}); len(got) != 1 || !strings.Contains(got[0].String(), "nothing needs") {
		t.Errorf("a stale exception should be noticed; got %v", got)
	}
}
