package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"strconv"
	"strings"
)

const (
	// maxLines bounds a source file; longer ones are two things.
	maxLines = 500
	// maxMainLines bounds the files of commands: they call a package and exit.
	maxMainLines = 15
)

// fileRules look at one file each.
var fileRules = []func(*file) []Violation{
	checkImports, checkLength, checkTexts, checkNames, checkInit, checkExit, checkSleep, checkSkip, checkAnswers,
}

// packageRules look at all files of a directory.
var packageRules = []func(dir string, files []*file) []Violation{checkDoc, checkLeaks}

func checkLength(f *file) []Violation {
	limit := maxLines
	if f.ast.Name.Name == "main" && strings.Contains(f.dir, "cmd/") {
		limit = maxMainLines
	}
	if f.test || f.lines <= limit {
		return nil
	}
	return []Violation{{Rule: "length", Path: f.path, Text: fmt.Sprintf("has %d lines, at most %d", f.lines, limit)}}
}

// checkTexts wants errors to say what was being done, not that it failed.
func checkTexts(f *file) []Violation {
	var found []Violation
	ast.Inspect(f.ast, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return true
		}
		s, err := strconv.Unquote(lit.Value)
		if err == nil && strings.Contains(strings.ToLower(s), "failed"+" to") {
			found = append(found, Violation{Rule: "texts", Path: f.path, Line: f.line(lit.Pos()), Text: fmt.Sprintf("say what was being done, not %q", s)})
		}
		return true
	})
	return found
}

// emptyWords end names that say nothing of what a type does.
var emptyWords = []string{"Manager", "Handler", "Service", "Helper", "Helpers", "Util", "Utils"}

func checkNames(f *file) []Violation {
	var found []Violation
	breach := func(p token.Pos, name string) {
		for _, w := range emptyWords {
			if strings.HasSuffix(strings.ToLower(name), strings.ToLower(w)) {
				found = append(found, Violation{Rule: "names", Path: f.path, Line: f.line(p), Text: fmt.Sprintf("%s: name what it does, not %q", name, w)})
				return
			}
		}
	}
	breach(f.ast.Name.Pos(), strings.TrimSuffix(f.ast.Name.Name, "_test"))
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			breach(spec.Name.Pos(), spec.Name.Name)
		}
		return true
	})
	return found
}

func checkInit(f *file) []Violation {
	var found []Violation
	for _, d := range f.ast.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			found = append(found, Violation{Rule: "init", Path: f.path, Line: f.line(fn.Pos()), Text: "nothing happens because a package is imported"})
		}
	}
	return found
}

// checkExit leaves the end of the process to main.
func checkExit(f *file) []Violation {
	if f.test || f.ast.Name.Name == "main" {
		return nil
	}
	var found []Violation
	ast.Inspect(f.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if ok && (calls(call, "os", "Exit") || calls(call, "log", "Fatal", "Fatalf", "Fatalln")) {
			found = append(found, Violation{Rule: "exit", Path: f.path, Line: f.line(call.Pos()), Text: "return an error, main exits"})
		}
		return true
	})
	return found
}

// checkAnswers wants the relay's doors to refuse in one way, so that no person reads raw
// JSON and no program a page. The admin socket is for programs only.
func checkAnswers(f *file) []Violation {
	if f.test || !within(f.dir, "relay") || withinAny(f.dir, "relay/e2e", "relay/internal/problems", "relay/internal/admin") {
		return nil
	}
	packages := map[string]bool{}
	imports(f, func(_ *ast.ImportSpec, p string) { packages[path.Base(p)] = true })
	var found []Violation
	ast.Inspect(f.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		document := false // a Problem's Write, by its two arguments
		if fun, ok := call.Fun.(*ast.SelectorExpr); ok && fun.Sel.Name == "Write" && len(call.Args) == 2 {
			of, ok := fun.X.(*ast.Ident)
			document = !ok || !packages[of.Name]
		}
		if document || calls(call, "http", "Error", "NotFound") {
			found = append(found, Violation{Rule: "answers", Path: f.path, Line: f.line(call.Pos()), Text: "refuse with relay/internal/problems, which knows a person's browser from a program"})
		}
		return true
	})
	return found
}

// checkSleep allows time.Sleep in tests only inside a bubble of fake time, where
// it waits exactly and costs nothing.
func checkSleep(f *file) []Violation {
	if !f.test {
		return nil
	}
	var found []Violation
	ast.Inspect(f.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		switch {
		case !ok:
			return true
		case calls(call, "synctest", "Test"), calls(call, "testkit", "Bubble"), isBubble(call.Fun):
			return false // whatever is inside sleeps in fake time
		case calls(call, "time", "Sleep"):
			found = append(found, Violation{Rule: "sleep", Path: f.path, Line: f.line(call.Pos()), Text: "a test waits for what it expects (testkit.Eventually), or sleeps in a bubble"})
		}
		return true
	})
	return found
}

// isBubble knows a test package's own bubble, made of testkit's.
func isBubble(fun ast.Expr) bool {
	id, ok := fun.(*ast.Ident)
	return ok && id.Name == "bubble"
}

// checkSkip wants every skipped test to say why.
func checkSkip(f *file) []Violation {
	if !f.test {
		return nil
	}
	var found []Violation
	ast.Inspect(f.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		for _, tb := range []string{"t", "b", "f", "tb"} {
			if calls(call, tb, "SkipNow") || calls(call, tb, "Skip", "Skipf") && emptyText(call.Args) {
				found = append(found, Violation{Rule: "skip", Path: f.path, Line: f.line(call.Pos()), Text: "a skipped test says why"})
			}
		}
		return true
	})
	return found
}

func emptyText(args []ast.Expr) bool {
	if len(args) == 0 {
		return true
	}
	lit, ok := args[0].(*ast.BasicLit)
	return ok && len(lit.Value) <= len(`""`)
}

// checkDoc wants every package to say what it is, in one place.
func checkDoc(dir string, files []*file) []Violation {
	var docs []*file
	name := ""
	for _, f := range files {
		if f.test {
			continue
		}
		name = f.ast.Name.Name
		if f.ast.Doc != nil {
			docs = append(docs, f)
		}
	}
	switch {
	case name == "": // tests alone
		return nil
	case len(docs) == 0:
		return []Violation{{Rule: "doc", Path: dir, Text: "has no package comment: what it is, what it owns, what it never does"}}
	case len(docs) > 1:
		return []Violation{{Rule: "doc", Path: docs[1].path, Text: "is the second package comment"}}
	}
	want := "Package " + name + " "
	if name == "main" {
		want = "Command "
	}
	if text := docs[0].ast.Doc.Text(); !strings.HasPrefix(text, want) {
		return []Violation{{Rule: "doc", Path: docs[0].path, Text: "the package comment begins with " + strconv.Quote(want)}}
	}
	return nil
}

// checkLeaks wants a check for left goroutines where a package starts some. The
// end-to-end tests are exempt: what they start are processes and browsers.
func checkLeaks(dir string, files []*file) []Violation {
	starts, tested, checked := false, false, false
	for _, f := range files {
		tested = tested || f.test
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				starts = starts || !f.test
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Go" && !f.test {
					starts = true // sync.WaitGroup and errgroup.Group
				}
				if calls(n, "goleak", "VerifyTestMain") || calls(n, "testkit", "LeakCheck") {
					checked = true
				}
			}
			return true
		})
	}
	if !starts || !tested || checked || within(dir, "relay/e2e") {
		return nil
	}
	return []Violation{{Rule: "leaks", Path: dir, Text: "starts goroutines: its tests need func TestMain(m *testing.M) { testkit.LeakCheck(m) }"}}
}
