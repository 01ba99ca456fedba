package cli_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/agent/internal/cli"
	"github.com/adit-tunnel/adit/agent/internal/fakerelay"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// noRaceWait keeps each process with the race detector from sleeping a second when
// it exits.
const noRaceWait = "atexit_sleep_ms=0"

func TestMain(m *testing.M) {
	if os.Getenv("ADIT_TEST_CLI") != "" {
		os.Exit(cli.Main(context.Background(), os.Args[1:]))
	}
	testscript.Main(leakChecked{m}, map[string]func(){
		"adit-agent": func() { os.Exit(cli.Main(context.Background(), os.Args[1:])) },
	})
}

// leakChecked runs the tests with the check for leaked goroutines, which alone
// would end the process before testscript has cleaned up.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() (code int) {
	testkit.LeakCheck(l.m, goleak.Cleanup(func(c int) { code = c }))
	return code
}

// The scripts are stories. The rule of output: results on stdout, all else on
// stderr, lower case, with a hint where something can be done.
func TestScripts(t *testing.T) {
	relay := fakerelay.Start(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("RELAY", relay.URL)
			e.Setenv("GORACE", noRaceWait)
			e.Setenv("TOKEN", fakerelay.Token.Reveal())
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			e.Setenv("ADIT_STATE_DIR", filepath.Join(e.WorkDir, "agent")) // root's own default is the machine's
			dir, err := os.MkdirTemp("", "adit")                          //nolint:usetesting // a socket's path must be short
			if err != nil {
				return err
			}
			e.Defer(func() { _ = os.RemoveAll(dir) })
			e.Setenv("SOCK", filepath.Join(dir, "s"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// linked SOCKET waits until the agent behind a socket has a link.
			"linked": func(ts *testscript.TestScript, _ bool, args []string) {
				deadline := time.Now().Add(testkit.Patience)
				for ts.Exec("adit-agent", "status", "--socket", args[0]) != nil {
					if time.Now().After(deadline) {
						ts.Fatalf("the agent got no link")
					}
				}
			},
		},
	})
}
