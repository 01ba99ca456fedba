// Package world runs Adit for end-to-end tests: real relays and agents as
// processes of their own, on free ports of loopback, with real apps behind them.
// It owns what it starts and ends it; it never looks inside a half.
package world

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/shared/testkit"
)

// Team is the team of every world, unless a test makes another one.
const Team = "6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11"

// World is one deployment: relays, agents and apps.
type World struct {
	T   *testing.T
	Dir string
	Bin string
}

// New returns an empty world that ends with the test.
func New(t *testing.T) *World {
	t.Helper()
	return &World{T: t, Dir: t.TempDir(), Bin: binaries(t)}
}

var build struct {
	once sync.Once
	dir  string
	err  error
}

// binaries returns the directory of the three programs: ADIT_E2E_BIN, or a build
// made once for the test process.
func binaries(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("ADIT_E2E_BIN"); dir != "" {
		return dir
	}
	build.once.Do(func() {
		build.dir, build.err = os.MkdirTemp("", "adit-e2e-") //nolint:usetesting // all tests of the process share it
		if build.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", build.dir+"/", "github.com/adit-tunnel/adit/relay/cmd/adit-relay",
			"github.com/adit-tunnel/adit/agent/cmd/adit-agent", "github.com/adit-tunnel/adit/relay/cmd/adit", "github.com/adit-tunnel/adit/relay/e2e/demoapp")
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("build the programs: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return build.dir
}

// Cleanup removes what binaries built; call it at the end of TestMain.
func Cleanup() {
	if build.dir != "" {
		_ = os.RemoveAll(build.dir)
	}
}

// FreePort returns a port of loopback that is this test's own.
func (w *World) FreePort() int {
	w.T.Helper()
	return testkit.FreePort(w.T)
}

// Process is one started program.
type Process struct {
	Name string
	Cmd  *exec.Cmd
	w    *World
	log  *logFile
	done chan struct{}
	err  error
}

// logFile collects a program's output for the failure report and for scans.
type logFile struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logFile) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Start starts a program that ends with the test, whatever happens. Its standard
// error and output are shown when the test fails.
func (w *World) Start(name string, env []string, program string, args ...string) *Process {
	w.T.Helper()
	return w.StartIn("", name, env, program, args...)
}

// StartIn is Start in a working directory.
func (w *World) StartIn(dir, name string, env []string, program string, args ...string) *Process {
	w.T.Helper()
	cmd := exec.Command(program, args...)
	p := &Process{Name: name, Cmd: cmd, w: w, log: &logFile{}, done: make(chan struct{})}
	cmd.Dir = dir
	cmd.Env = append(cleanEnv(), env...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	// A group of its own, so that its children end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		w.T.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	w.T.Cleanup(func() {
		p.Kill()
		if strings.Contains(p.log.String(), "WARNING: DATA RACE") { // built with -race: see scripts/test --long
			w.T.Errorf("the race detector found something in %s", name)
		}
		if w.T.Failed() {
			w.T.Logf("--- log of %s ---\n%s", name, tail(telling(p.log.String()), 6000))
		}
	})
	return p
}

// cleanEnv is the environment without what would configure the programs or send
// their connections elsewhere.
func cleanEnv() []string {
	var out []string
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		up := strings.ToUpper(key)
		if strings.HasPrefix(up, "ADIT_") || strings.HasSuffix(up, "_PROXY") || up == "NOTIFY_SOCKET" {
			continue
		}
		out = append(out, kv)
	}
	return out
}

// telling is a log without what etcd says of its own daily life, which is most of it.
func telling(log string) string {
	var out strings.Builder
	for line := range strings.Lines(log) {
		calm := strings.Contains(line, `"level":"DEBUG"`) || strings.Contains(line, `"level":"INFO"`)
		if !calm || !strings.Contains(line, `"from":"etcd`) {
			out.WriteString(line)
		}
	}
	return out.String()
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + s[len(s)-n:]
}

// Log returns what the program printed so far.
func (p *Process) Log() string { return p.log.String() }

// Kill ends the program and its children with SIGKILL and waits.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// Stop sends SIGTERM and waits for the end, at most for the time given.
func (p *Process) Stop(limit time.Duration) error {
	_ = p.Cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("%s did not stop within %s after SIGTERM", p.Name, limit)
	}
}

// Done is closed when the program ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Run runs a program to its end and returns its standard output. A failure is the
// test's, with the program's standard error.
func (w *World) Run(env []string, program string, args ...string) string {
	w.T.Helper()
	out, err := w.Try(env, program, args...)
	if err != nil {
		w.T.Fatal(err)
	}
	return out
}

// Try is Run that returns the failure.
func (w *World) Try(env []string, program string, args ...string) (string, error) {
	w.T.Helper()
	ctx, cancel := context.WithTimeout(w.T.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(cleanEnv(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// Eventually waits until cond holds and fails the test, in the words given, when it
// does not. Only the long form judges the limit; others wait with patience.
func (w *World) Eventually(limit time.Duration, what string, cond func() bool) {
	w.T.Helper()
	testkit.EventuallyWithin(w.T, testkit.Limit(limit), what, cond)
}

// WaitPort waits until something accepts connections on a port of loopback.
func (w *World) WaitPort(port int, limit time.Duration) {
	w.T.Helper()
	w.Eventually(limit, "something listens on port "+strconv.Itoa(port), func() bool {
		c, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), time.Second)
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	})
}

// HTTP is a client for tunnel URLs: every host below .localhost is loopback, as in
// browsers; redirects are not followed; connections are this client's own.
func (w *World) HTTP() *http.Client {
	d := &net.Dialer{Timeout: 5 * time.Second}
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(addr)
			if err == nil && (host == "localhost" || strings.HasSuffix(host, ".localhost")) {
				addr = net.JoinHostPort("127.0.0.1", port)
			}
			return d.DialContext(ctx, network, addr)
		},
		DisableCompression:  true,
		MaxIdleConnsPerHost: 64,
	}
	w.T.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Get fetches a URL and returns status and body; an error has status 0.
func Get(c *http.Client, url string, header ...string) (int, string) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err.Error()
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}
