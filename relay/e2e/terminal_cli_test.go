package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/testkit/wan"
)

// seat is a command in a terminal of its own, with a person in front.
type seat struct {
	w    *world.World
	cmd  *exec.Cmd
	tty  *os.File
	done chan error

	mu  sync.Mutex
	out bytes.Buffer
}

// sit runs adit in a terminal of 100 columns and 30 rows.
func sit(w *world.World, env []string, args ...string) *seat {
	w.T.Helper()
	cmd := exec.Command(filepath.Join(w.Bin, "adit"), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.Dir, "XDG_CONFIG_HOME=" + w.Dir, "TERM=xterm-256color"}, env...)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: 100, Rows: 30})
	if err != nil {
		w.T.Fatal(err)
	}
	s := &seat{w: w, cmd: cmd, tty: tty, done: make(chan error, 1)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			s.mu.Lock()
			s.out.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() { s.done <- cmd.Wait() }()
	w.T.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-read // ends with the process
		_ = tty.Close()
		if w.T.Failed() {
			w.T.Logf("--- the terminal of adit ---\n%q", s.text())
		}
	})
	return s
}

func (s *seat) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

func (s *seat) types(text string) {
	s.w.T.Helper()
	if _, err := s.tty.WriteString(text); err != nil {
		s.w.T.Fatal(err)
	}
}

func (s *seat) sees(text string) {
	s.w.T.Helper()
	s.w.Eventually(30*time.Second, fmt.Sprintf("the terminal shows %q", text), func() bool { return strings.Contains(s.text(), text) })
}

// ends waits for the end and returns the exit code.
func (s *seat) ends() int {
	s.w.T.Helper()
	select {
	case <-s.done:
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(30 * time.Second):
		s.w.T.Fatal("expected within 30 s: adit ends")
		return 0
	}
}

func TestAditTerminal(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	line := wan.Start(t, fmt.Sprintf("127.0.0.1:%d", r.Port), wan.Options{})
	terminalAgent(w, r, "ADIT_RELAY_URL=http://"+line.Addr())
	sk := r.Credential("integration", world.Team)
	env := []string{"ADIT_URL=" + r.URL, "ADIT_TOKEN=" + sk}
	tunnelCount := func() int {
		var st api.TunnelStatus
		r.API(sk, http.MethodGet, "/agents/gpu-1/tunnel", nil, &st)
		return len(st.Sessions)
	}

	s := sit(w, env, "terminal", "gpu-1")
	s.sees("# ")
	s.types("stty size; echo a'b'c ~.\r")
	s.sees("30 100")
	s.sees("abc ~.") // not at the beginning of a line
	if err := pty.Setsize(s.tty, &pty.Winsize{Cols: 77, Rows: 22}); err != nil {
		t.Fatal(err)
	}
	s.types("stty size; stty size; sleep 0.3; stty size\r")
	s.sees("22 77")
	if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.cmd.Process.Pid)); err != nil || strings.Contains(string(args), "adm-") {
		t.Errorf("no secret is among the arguments: %q %v", args, err)
	}
	s.types("vim -u NONE -n x\r")
	s.sees("\x1b[?1049h")
	s.sees("[New File]")
	s.types(":q\r")
	s.sees("\x1b[?1049l")
	s.types("trap 'echo caught-$((6*7))' INT; echo rea'dy'\r")
	s.sees("ready")
	s.types("\x03")
	s.sees("caught-42") // Ctrl-C is the machine's

	line.Cut()
	s.sees("attaching again")
	line.Heal()
	s.types("echo st'ill here'\r")
	s.sees("still here")

	s.types("exit 5\r")
	if code := s.ends(); code != 5 {
		t.Errorf("the exit code is the shell's: %d", code)
	}
	if n := tunnelCount(); n != 0 {
		t.Errorf("its tunnel is closed: %d are open", n)
	}

	s = sit(w, env, "terminal", "gpu-1")
	s.sees("# ")
	s.types("sleep 1000\r~?")
	s.sees("~. leave")
	s.types("\r~.")
	if code := s.ends(); code != 0 || tunnelCount() != 0 {
		t.Errorf("~. leaves, also while a program runs, and closes the tunnel: code %d, %d open", code, tunnelCount())
	}

	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": 9})
	s = sit(w, []string{"ADIT_URL=" + r.URL, "ADIT_ADMIN_TOKEN=" + tun.AdminToken}, "terminal", string(tun.SessionID))
	s.sees("# ")
	s.types("echo sha'red'\r")
	s.sees("shared\r\n")
	looker := sit(w, []string{"ADIT_URL=" + r.URL}, "terminal", string(tun.SessionID), "--read-only")
	looker.sees("admin token of the tunnel:")
	looker.types(tun.AdminToken + "\r")
	looker.sees("shared\r\n") // the replay
	looker.types("echo in'truder'\r")
	s.types("echo fr'om me'\r")
	looker.sees("from me\r\n")
	looker.types("\r~.")
	if code := looker.ends(); code != 0 || strings.Contains(s.text(), "intruder") || strings.Contains(looker.text(), tun.AdminToken) {
		t.Errorf("a read-only viewer looks on, types nothing, and shows no token: code %d", code)
	}
	s.types("\r~.")
	if code := s.ends(); code != 0 || tunnelCount() != 1 {
		t.Errorf("leaving another's tunnel leaves it open: code %d, %d open", code, tunnelCount())
	}
	s = sit(w, []string{"ADIT_URL=" + r.URL, "ADIT_ADMIN_TOKEN=adm-wrong"}, "terminal", string(tun.SessionID))
	s.sees("the token is not right")
	if code := s.ends(); code != 1 {
		t.Errorf("a wrong token ends with 1: %d", code)
	}
	if out, err := w.Try([]string{"ADIT_URL=" + r.URL, "ADIT_TOKEN=" + sk}, filepath.Join(w.Bin, "adit"), "terminal", "gpu-1"); err == nil || !strings.Contains(err.Error(), "needs a terminal") {
		t.Errorf("without a terminal it says so: %s %v", out, err)
	}
}
