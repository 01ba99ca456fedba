// Package archtest owns the rules of the code base that a compiler does not know:
// who may import whom, what a package must say of itself, and words and calls that
// have no place here. Its test holds the repository against them. It reads source
// files only, runs nothing, and is for tests only.
package archtest

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Module is the path that all of the module's packages begin with.
const Module = "github.com/adit-tunnel/adit/"

// Violation is one breach of a rule.
type Violation struct {
	Rule string // its name, as exceptions use it
	Path string // the file or directory
	Line int    // 0: the whole file
	Text string
}

// String is "path:line: text (rule)".
func (v Violation) String() string {
	if v.Line == 0 {
		return fmt.Sprintf("%s: %s (rule %s)", v.Path, v.Text, v.Rule)
	}
	return fmt.Sprintf("%s:%d: %s (rule %s)", v.Path, v.Line, v.Text, v.Rule)
}

// Exceptions are files that may break a rule, each with its reason: rule, then path.
type Exceptions map[string]map[string]string

// file is one parsed source file.
type file struct {
	path  string // from the root, with slashes
	dir   string
	test  bool
	lines int
	set   *token.FileSet
	ast   *ast.File
}

func (f *file) line(p token.Pos) int { return f.set.Position(p).Line }

// Tree is a source tree, read and parsed.
type Tree struct {
	files    []*file
	packages map[string][]*file // by directory, test files too
}

// Read parses every Go file of a tree but those in hidden directories, testdata,
// node_modules and the directories named in skip.
func Read(root fs.FS, skip ...string) (*Tree, error) {
	t := &Tree{packages: map[string][]*file{}}
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			name := d.Name()
			if p != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || slices.Contains(skip, p)) {
				return fs.SkipDir
			}
			return nil
		case path.Ext(p) != ".go":
			return nil
		}
		src, err := fs.ReadFile(root, p)
		if err != nil {
			return err
		}
		f, err := parse(p, src)
		if err != nil {
			return err
		}
		t.files = append(t.files, f)
		t.packages[f.dir] = append(t.packages[f.dir], f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read source tree: %w", err)
	}
	return t, nil
}

func parse(p string, src []byte) (*file, error) {
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, p, src, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	return &file{
		path: p, dir: path.Dir(p), test: strings.HasSuffix(p, "_test.go"),
		lines: bytes.Count(src, []byte{'\n'}), set: set, ast: tree,
	}, nil
}

// Check holds the tree against every rule. An exception that nothing needs any
// more is a violation itself, so that the list stays short.
func (t *Tree) Check(except Exceptions) []Violation {
	var all []Violation
	for _, f := range t.files {
		for _, rule := range fileRules {
			all = append(all, rule(f)...)
		}
	}
	for dir, files := range t.packages {
		for _, rule := range packageRules {
			all = append(all, rule(dir, files)...)
		}
	}
	used := map[string]bool{}
	all = slices.DeleteFunc(all, func(v Violation) bool {
		if _, ok := except[v.Rule][v.Path]; !ok {
			return false
		}
		used[v.Rule+" "+v.Path] = true
		return true
	})
	for rule, paths := range except {
		for p, reason := range paths {
			if !used[rule+" "+p] {
				all = append(all, Violation{Rule: rule, Path: p, Text: "is an exception that nothing needs: remove it"})
			}
			if reason == "" {
				all = append(all, Violation{Rule: rule, Path: p, Text: "is an exception without a reason"})
			}
		}
	}
	slices.SortFunc(all, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Rule, b.Rule))
	})
	return all
}

// imports calls yield for each import of a file.
func imports(f *file, yield func(spec *ast.ImportSpec, p string)) {
	for _, spec := range f.ast.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			yield(spec, p)
		}
	}
}

// within says whether a directory is another or lies below it.
func within(dir, parent string) bool {
	return dir == parent || strings.HasPrefix(dir, parent+"/")
}

// withinAny is within for any of several.
func withinAny(dir string, parents ...string) bool {
	return slices.ContainsFunc(parents, func(p string) bool { return within(dir, p) })
}

// calls reports whether a call is pkg.name, by the name that the file knows the
// package under.
func calls(call *ast.CallExpr, pkg string, names ...string) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	id, ok := sel.X.(*ast.Ident)
	return ok && id.Name == pkg && slices.Contains(names, sel.Sel.Name)
}
