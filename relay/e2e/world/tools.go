package world

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// toolModules are the programs of others that tests need and no Debian package has:
// each directory is a module of its own, so that the product's stays free of them.
var toolModules = map[string]struct{ dir, path string }{
	"pebble":              {"pebble", "github.com/letsencrypt/pebble/v2/cmd/pebble"},
	"pebble-challtestsrv": {"pebble", "github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv"},
	"oidc-issuer":         {"oidc", "."},
}

var tools struct {
	mu    sync.Mutex
	built map[string]error
}

// Tool returns the path of a program of .tools: what scripts/test built beside the
// other programs, or a build made once for the test process.
func (w *World) Tool(name string) string {
	w.T.Helper()
	path := filepath.Join(w.Bin, name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	tools.mu.Lock()
	defer tools.mu.Unlock()
	err, tried := tools.built[name]
	if !tried {
		module := toolModules[name]
		cmd := exec.Command("go", "build", "-o", path, module.path)
		cmd.Dir = filepath.Join("..", "..", ".tools", module.dir)
		if out, failed := cmd.CombinedOutput(); failed != nil {
			err = fmt.Errorf("build %s: %w\n%s", name, failed, out)
		}
		if tools.built == nil {
			tools.built = map[string]error{}
		}
		tools.built[name] = err
	}
	if err != nil {
		w.T.Fatal(err)
	}
	return path
}
