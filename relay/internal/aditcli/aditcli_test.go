package aditcli_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/relay/internal/aditcli"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"adit": func() { os.Exit(aditcli.Main(context.Background(), os.Args[1:])) },
		"ssh":  fakeSSH,
	})
}

// leakChecked runs the tests, then looks for goroutines that they left. It returns,
// where the check alone would end the process before testscript has cleaned up.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() (code int) {
	testkit.LeakCheck(l.m, goleak.Cleanup(func(c int) { code = c }))
	return code
}

// TestStories runs the command line's stories against a relay that the test
// plays: interface, event stream, tunnels of both kinds.
func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			tb, ok := env.T().(testing.TB)
			if !ok {
				return errors.New("no testing.TB")
			}
			relay := newRelay(tb)
			env.Values["relay"] = relay
			env.Setenv("RELAY", relay.url())
			env.Setenv("TOKEN", relayToken)
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("PORT", strconv.Itoa(testkit.FreePort(tb)))
			env.Setenv("CLOSEDPORT", strconv.Itoa(testkit.FreePort(tb)))
			env.Setenv("NO_PROXY", "127.0.0.1")
			return os.MkdirAll(filepath.Join(env.WorkDir, "home"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"talk":  talk,
			"relay": tellRelay,
			"mode":  mode,
		},
	})
}

// exits runs a command and demands an exit code: exits 75 adit open away.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE command…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, expected %d", got, want)
	}
}

// talk sends a text to a local port as soon as it listens, says 'no more from me',
// and demands the answer: talk PORT text answer. With !, it demands a reset.
func talk(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: talk PORT text answer")
	}
	var c net.Conn
	var err error
	for deadline := time.Now().Add(testkit.Patience); ; <-time.After(20 * time.Millisecond) {
		if c, err = new(net.Dialer).DialContext(context.Background(), "tcp", "127.0.0.1:"+args[0]); err == nil {
			break
		}
		if time.Now().After(deadline) {
			ts.Fatalf("nothing listens on port %s: %v", args[0], err)
		}
	}
	defer func() { _ = c.Close() }()
	_, werr := io.WriteString(c, args[1])
	werr = errors.Join(werr, c.(*net.TCPConn).CloseWrite())
	b, rerr := io.ReadAll(c)
	if neg {
		if rerr == nil {
			ts.Fatalf("the connection ended cleanly with %q, expected a reset", b)
		}
		return
	}
	ts.Check(errors.Join(werr, rerr))
	if string(b) != args[2] {
		ts.Fatalf("answer is %q, expected %q", b, args[2])
	}
}

// tellRelay changes or asks the relay of the story:
//
//	relay close-all     closes all tunnels, as an idle timeout would
//	relay break N       the next N tunnel dials are answered 503
//	relay open N        demands that N tunnels are open
//	relay url PORT      writes the URL of the newest tunnel to that port into url.txt
//	relay host PORT     puts its URL at a host of its own into the variable
//	relay pairs HOW     nobody: no code is confirmed; slow: nor does it end; old: it knows no pairing; well
//	relay polled N      waits until a program has polled so often
//	relay devices N     demands that so many devices are let in
func tellRelay(ts *testscript.TestScript, neg bool, args []string) {
	r, ok := ts.Value("relay").(*relay)
	if neg || !ok || len(args) == 0 {
		ts.Fatalf("usage: relay close-all | break N | open N | url PORT")
	}
	if args[0] == "pairs" && len(args) == 2 {
		r.mu.Lock()
		r.pairing, r.polls = args[1], 0
		r.mu.Unlock()
		return
	}
	n := 0
	if len(args) == 2 {
		var err error
		n, err = strconv.Atoi(args[1])
		ts.Check(err)
	}
	switch args[0] {
	case "close-all":
		r.closeAll()
	case "break":
		r.broken.Store(int32(n))
	case "open":
		if got := r.open(); got != n {
			ts.Fatalf("%d tunnels are open, expected %d", got, n)
		}
	case "url":
		ts.Check(os.WriteFile(ts.MkAbs("url.txt"), []byte(r.newest(n)+"\n"), 0o600))
		ts.Setenv("ADIT_TUNNEL_URL_OF_STORY", r.newest(n))
	case "host": // as with a wildcard domain
		segment := strings.Split(r.newest(n), "/tunnel/")[1]
		ts.Setenv("ADIT_TUNNEL_URL_OF_STORY", "ws://"+strings.TrimSuffix(segment, "/")+".localhost:"+strings.TrimPrefix(r.url(), "http://127.0.0.1:")+"/")
	case "polled":
		testkit.Eventually(r.tb, "a program polls", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.polls >= n
		})
	case "devices":
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.devices) != n {
			ts.Fatalf("%d devices are let in, expected %d", len(r.devices), n)
		}
	default:
		ts.Fatalf("unknown: %q", args)
	}
}

// mode demands a file's permissions: mode 600 file.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode 600 file")
	}
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); runtime.GOOS != "windows" && got != args[0] {
		ts.Fatalf("%s has mode %s, expected %s", args[1], got, args[0])
	}
}

// fakeSSH stands in for ssh: it shows its arguments, runs its ProxyCommand as ssh
// does, sends a line through it and shows what comes back.
func fakeSSH() {
	var proxy string
	for i, arg := range os.Args[1:] {
		if v, ok := strings.CutPrefix(arg, "ProxyCommand="); ok {
			proxy = strings.ReplaceAll(v, "%%", "%")
			continue
		}
		if arg != "-o" || i == 0 {
			fmt.Println("arg:", arg)
		}
	}
	if strings.Contains(strings.Join(os.Args, " "), "/tunnel/") {
		fmt.Println("the tunnel's URL is among the arguments")
		os.Exit(99)
	}
	cmd := exec.CommandContext(context.Background(), "sh", "-c", "exec "+proxy)
	cmd.Stdin, cmd.Stderr = strings.NewReader("SSH-2.0-story\n"), os.Stderr
	out, err := cmd.Output()
	fmt.Printf("through the tunnel: %q, %v\n", out, err)
	if os.Args[len(os.Args)-1] == "fail" {
		os.Exit(7)
	}
	os.Exit(0)
}
