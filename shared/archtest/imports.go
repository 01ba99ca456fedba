package archtest

import (
	"go/ast"
	"path"
	"strings"
)

// onlyHere names the packages that alone may import a library; their
// sub-directories may too.
var onlyHere = []struct{ library, home, why string }{
	{"github.com/hashicorp/yamux", "shared/link", "the multiplexer is replaceable"},
	{"go.etcd.io/", "relay/internal/store", "the store is replaceable"},
	{"github.com/spf13/viper", "shared/conf", "configuration has one way in"},
}

// userCLI is the user's command, which is built for other systems too and must
// stay small: it knows neither half.
var userCLI = []string{"relay/cmd/adit", "relay/internal/aditcli"}

// layers order the packages of a half and of shared: a package imports only from
// its own rank and lower ones. Packages that are not named have no rank.
var layers = map[string]int{
	"shared/apps": 0, "shared/ident": 0, "shared/metric": 0,
	"shared/printable": 0,
	"shared/api":       1, "shared/wire": 1,
	"shared/checkup": 3, "shared/diag": 3, "shared/manual": 3, "shared/traces": 3,
	"shared/api/client": 2, "shared/backoff": 2, "shared/carrier": 2, "shared/conf": 2, "shared/lifecycle": 2,
	"shared/logs": 2, "shared/prompt": 2, "shared/splice": 2, "shared/wsconn": 2,
	"shared/link": 3, // above carrier, which knows nothing of frames and streams

	"relay/internal/config": 3, "relay/internal/store": 3, "relay/internal/audit": 3,
	"relay/internal/zaplog": 2,
	"relay/internal/caller": 3, "relay/internal/problems": 3,
	"relay/internal/certs": 4, "relay/internal/creds": 4, "relay/internal/fleet": 4, "relay/internal/gate": 4, "relay/internal/hub": 4, "relay/internal/peers": 4,
	"relay/internal/tunnels": 4, "relay/internal/usage": 4, "relay/internal/access": 4, "relay/internal/identity": 4, "relay/internal/namedlinks": 4, "relay/internal/people": 4,
	"relay/internal/admin": 5, "relay/internal/console": 5, "relay/internal/edge": 5, "relay/internal/front": 5, "relay/internal/install": 5, "relay/internal/paths": 5,
	"relay/internal/enroll": 5, "relay/internal/pairing": 5, "relay/internal/rights": 5,
	"relay/internal/rest": 5, "relay/internal/signin": 5, "relay/internal/terminal": 5, "relay/internal/web": 4,
	"relay": 6, "relay/internal/cli": 7, "relay/cmd/adit-relay": 8,

	"agent/internal/config":  3,
	"agent/internal/enroll":  4,
	"agent/internal/forward": 4, "agent/internal/probe": 4, "agent/internal/status": 4, "agent/internal/terminal": 4,
	"agent/internal/desk": 5, "agent/internal/local": 5, "agent/internal/uplink": 5,
	"agent": 6, "agent/internal/cli": 7, "agent/cmd/adit-agent": 8,
}

// checkImports holds every import against the map of the architecture.
func checkImports(f *file) []Violation {
	var found []Violation
	imports(f, func(spec *ast.ImportSpec, p string) {
		breach := func(text string) {
			found = append(found, Violation{Rule: "imports", Path: f.path, Line: f.line(spec.Pos()), Text: "imports " + p + ": " + text})
		}
		for _, o := range onlyHere {
			if strings.HasPrefix(p+"/", strings.TrimSuffix(o.library, "/")+"/") && !within(f.dir, o.home) {
				breach("only " + o.home + " may, " + o.why)
			}
		}
		if p == "testing" && !f.test && !testSupport(f.dir) {
			breach("only tests may")
		}
		target, ours := strings.CutPrefix(p, Module)
		if !ours {
			return
		}
		switch {
		case within(f.dir, "shared") && withinAny(target, "agent", "relay"):
			breach("shared/ knows neither half")
		case within(f.dir, "agent") && within(target, "relay"),
			within(f.dir, "relay") && within(target, "agent") && !within(f.dir, "relay/e2e"):
			breach("the halves never import each other")
		case withinAny(f.dir, userCLI...) && !within(target, "shared") && !withinAny(target, userCLI...):
			breach("the user's command imports shared/ only")
		case within(target, "shared/testkit") && !f.test && !testSupport(f.dir):
			breach("only tests may")
		case !f.test && upwards(f.dir, target):
			breach("imports go only downwards")
		}
	})
	return found
}

func upwards(dir, target string) bool {
	from, ranked := layers[dir]
	to, rankedToo := layers[target]
	return ranked && rankedToo && from < to
}

// testSupport says whether a directory holds code that exists for tests: the kit,
// the end-to-end world, and what a package offers its neighbours' tests, which is
// named like gatetest or fakerelay.
func testSupport(dir string) bool {
	name := path.Base(dir)
	return withinAny(dir, "shared/testkit", "relay/e2e") || strings.HasSuffix(name, "test") || strings.HasPrefix(name, "fake")
}
