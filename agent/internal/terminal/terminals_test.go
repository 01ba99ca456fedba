package terminal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"os/user"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/agent/internal/terminal"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
	"github.com/adit-tunnel/adit/shared/wire"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

const session ident.SessionID = "3f0c8a5e9b7d4c21a6e8f0b1d2c3e4f5"

type world struct {
	*testing.T
	terms  *terminal.Terminals
	closed atomic.Bool
}

// me is the user of the tests, named: root must be.
func me(t *testing.T) string {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

func newWorld(t *testing.T, change func(*terminal.Config)) *world {
	t.Helper()
	w := &world{T: t}
	cfg := terminal.Config{
		User: me(t), Shell: "/bin/sh", Dir: t.TempDir(), Env: map[string]string{"PS1": "$ ", "ENV": ""},
		Closed: func(ident.SessionID) bool { return w.closed.Load() }, Every: 20 * time.Millisecond, Logger: testkit.Logger(t),
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.terms, err = terminal.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.terms.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return w
}

// seat is a viewer's end of a stream.
type seat struct {
	*world
	conn    net.Conn
	verdict wire.Verdict
	served  chan error

	mu       sync.Mutex
	replay   wire.Replay
	output   bytes.Buffer
	pos      uint64
	size     [2]uint16
	viewers  [2]uint16
	exit     *wire.Exit
	dropped  string
	over     bool
	acks     bool // acknowledge what comes
	received chan struct{}
}

// sit attaches; acks says whether the viewer shows what it gets.
func (w *world) sit(o wire.TerminalOpen, acks bool) *seat {
	w.Helper()
	if o.Terminal == "" {
		o.Terminal = "main"
	}
	payload, err := o.Payload()
	if err != nil {
		w.Fatal(err)
	}
	near, far := net.Pipe()
	s := &seat{world: w, conn: near, served: make(chan error, 1), received: make(chan struct{}), acks: acks}
	go func() {
		s.served <- w.terms.Serve(context.Background(), far, wire.Hello{Kind: wire.KindTerminal, Session: session, Payload: payload})
	}()
	w.Cleanup(func() { s.leave() })
	if s.verdict, err = new(wire.VerdictReader).Read(near); err != nil {
		w.Fatal(err)
	}
	go s.read()
	return s
}

func (s *seat) leave() {
	_ = s.conn.Close()
	<-s.received
}

func (s *seat) read() {
	defer close(s.received)
	var buf []byte
	for {
		typ, p, grown, err := wire.ReadFrame(s.conn, buf)
		if err != nil {
			s.mu.Lock()
			s.over = true
			s.mu.Unlock()
			return
		}
		buf = grown
		s.mu.Lock()
		switch typ {
		case wire.FrameReplay:
			s.replay, _ = wire.ParseReplay(p)
			s.pos = s.replay.Position
		case wire.FrameData:
			s.output.Write(p)
			s.pos += uint64(len(p))
		case wire.FrameSize:
			s.size[0], s.size[1], _ = wire.ParsePair(p)
		case wire.FrameViewers:
			s.viewers[0], s.viewers[1], _ = wire.ParsePair(p)
		case wire.FrameExit:
			e, _ := wire.ParseExit(p)
			s.exit = &e
		case wire.FrameDropped:
			s.dropped = string(p)
		}
		pos, ack := s.pos, typ == wire.FrameData && s.acks
		s.mu.Unlock()
		if ack {
			s.send(wire.FrameAck, wire.Position(pos))
		}
	}
}

func (s *seat) send(t wire.FrameType, p []byte) { _, _ = s.conn.Write(wire.AppendFrame(nil, t, p)) }

func (s *seat) typeText(text string) { s.Helper(); s.send(wire.FrameData, []byte(text)) }

func (s *seat) look(f func() bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f()
}

func (s *seat) until(what string, f func() bool) {
	s.Helper()
	ok := false
	defer func() {
		if !ok {
			s.mu.Lock()
			defer s.mu.Unlock()
			out := s.output.String()
			s.Logf("the viewer saw %q (%d bytes), exit %+v, dropped %q", out[max(0, len(out)-300):], len(out), s.exit, s.dropped)
		}
	}()
	testkit.Eventually(s, what, func() bool { return s.look(f) })
	ok = true
}

func (s *seat) shows(text string) {
	s.Helper()
	seen := 0 // of the output; a flood is not looked through again and again
	s.until(fmt.Sprintf("the viewer sees %q", text), func() bool {
		out := s.output.Bytes()
		found := bytes.Contains(out[max(0, seen-len(text)):], []byte(text))
		seen = len(out)
		return found
	})
}

func TestShellIsTheUsersOwn(t *testing.T) {
	t.Setenv("ADIT_CREDENTIAL", "ak-canary")
	w := newWorld(t, func(c *terminal.Config) { c.Env["GREETING"] = "good day" })
	s := w.sit(wire.TerminalOpen{Cols: 91, Rows: 17}, true)
	s.typeText("echo \"<$GREETING|$(id -un)|$(stty size)|$TERM|$ADIT_CREDENTIAL|$(pwd)>\"\n")
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	s.shows("<good day|" + me(t) + "|17 91|xterm-256color||/")
	if s.look(func() bool { return strings.Contains(s.output.String(), dir+">") }) {
		t.Error("the shell starts in its own directory, not in the agent's")
	}
	s.typeText("exit 7\n")
	s.until("the viewer is told of the end and its status", func() bool { return s.exit != nil && s.exit.Status == 7 && s.over })
	if err := <-s.served; err != nil {
		t.Errorf("an orderly end is none: %v", err)
	}
	testkit.Eventually(t, "nothing is left of it", func() bool { return w.terms.Count() == 0 })
}

func TestAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	w := newWorld(t, func(c *terminal.Config) { c.User, c.Dir = "nobody", "" })
	s := w.sit(wire.TerminalOpen{}, true)
	s.typeText("id -u; id -G; id -un > /dev/tty; cat /etc/shadow; stat -c %U $(tty); echo done\n")
	s.shows("Permission denied")
	s.shows("nobody\r\ndone")
	if _, err := terminal.New(terminal.Config{Logger: testkit.Logger(t), Closed: func(ident.SessionID) bool { return false }}); err == nil {
		t.Error("root runs no terminals as itself unless that is said")
	}
	if _, err := terminal.New(terminal.Config{User: "no-such-user", Logger: testkit.Logger(t), Closed: func(ident.SessionID) bool { return false }}); err == nil {
		t.Error("a user whom nobody knows is refused")
	}
}

func TestReattachContinuesWhereItWas(t *testing.T) {
	w := newWorld(t, nil)
	s := w.sit(wire.TerminalOpen{}, true)
	s.typeText("stty -echo; PS1=; echo one; read x; echo two\n")
	s.shows("one\r\n")
	s.leave()
	<-s.served
	again := w.sit(wire.TerminalOpen{Instance: s.replay.Instance, Seen: s.pos}, true)
	again.typeText("\n")
	again.shows("two")
	if !again.replay.Continues || again.replay.Position != s.pos || strings.Contains(again.output.String(), "one") {
		t.Errorf("a viewer who comes back gets what it has not seen: %+v %q", again.replay, again.output.String())
	}
	third := w.sit(wire.TerminalOpen{Instance: "of another life", Seen: 3}, true)
	third.shows("two")
	if third.replay.Continues || !strings.Contains(third.output.String(), "one") {
		t.Errorf("a new viewer gets a replay from the start: %+v %q", third.replay, third.output.String())
	}
}

func TestReadOnlyViewers(t *testing.T) {
	w := newWorld(t, nil)
	if early := w.sit(wire.TerminalOpen{ReadOnly: true}, true); early.verdict.Code != wire.CodeNoTerminal {
		t.Errorf("who only looks on starts nothing: %v", early.verdict)
	}
	s := w.sit(wire.TerminalOpen{Cols: 80, Rows: 24}, true)
	looker := w.sit(wire.TerminalOpen{ReadOnly: true, Cols: 40, Rows: 10}, true)
	s.until("both count, one may type", func() bool { return s.viewers == [2]uint16{2, 1} })
	looker.send(wire.FrameResize, wire.Pair(30, 10))
	looker.typeText("echo intruder\n")
	s.typeText("echo to-$((40+2)) $(stty size)\n")
	looker.shows("to-42 24 80")
	if looker.look(func() bool { return strings.Contains(looker.output.String(), "intruder") || !looker.replay.ReadOnly }) {
		t.Error("a read-only viewer types nothing and knows that it does")
	}
	looker.leave()
	s.until("one is left", func() bool { return s.viewers == [2]uint16{1, 1} })
	other := w.sit(wire.TerminalOpen{Cols: 100, Rows: 30}, true)
	s.until("the size is that of who came last", func() bool { return s.size == [2]uint16{100, 30} })
	s.typeText(" ")
	other.until("and then of who types", func() bool { return other.size == [2]uint16{80, 24} })
}

const flood = 5 << 20 // more than what drops a viewer that stays behind

func TestFloodArrivesWhole(t *testing.T) {
	w := newWorld(t, nil)
	const flood = 2 << 20
	s := w.sit(wire.TerminalOpen{}, true)
	s.typeText(fmt.Sprintf("stty -echo -opost; PS1=; head -c %d /dev/zero | tr '\\0' x; echo; echo e''nd\n", flood))
	s.shows("end")
	if n := bytes.Count(s.output.Bytes(), []byte("x")); n < flood {
		t.Errorf("%d bytes arrived of %d", n, flood)
	}
}

// A viewer that does not acknowledge is not waited for by one that does, and a
// program is not kept waiting by viewers that are stuck.
func TestSlowViewerIsDropped(t *testing.T) {
	w := newWorld(t, nil)
	quick := w.sit(wire.TerminalOpen{}, true)
	slow := w.sit(wire.TerminalOpen{ReadOnly: true}, false)
	quick.until("both are there", func() bool { return quick.viewers[0] == 2 })
	quick.typeText(fmt.Sprintf("stty -echo -opost; PS1=; head -c %d /dev/zero | tr '\\0' x; echo; echo e''nd\n", flood))
	quick.shows("end")
	// On a machine on which the flood takes its time, what it owes is noticed first.
	slow.until("the slow one is told why it goes", func() bool {
		return (strings.Contains(slow.dropped, "slow") || strings.Contains(slow.dropped, "acknowledged")) && slow.over
	})
	if n := slow.look(func() bool { return slow.output.Len() <= wire.TerminalWindow }); !n {
		t.Errorf("it got more than its window: %d", slow.output.Len())
	}
	if n := strings.Count(quick.output.String(), "x"); n < flood {
		t.Errorf("the quick one lost something: %d bytes arrived of %d", n, flood)
	}
}

func TestOneViewerHoldsTheProgramBack(t *testing.T) {
	w := newWorld(t, nil)
	s := w.sit(wire.TerminalOpen{}, false)
	s.typeText("stty -echo; PS1=; while :; do echo 0123456789012345678901234567890123456789; done\n")
	s.until("the window fills", func() bool { return s.output.Len() == wire.TerminalWindow })
	s.typeText("\x03")
	s.mu.Lock()
	s.acks = true
	pos := s.pos
	s.mu.Unlock()
	s.send(wire.FrameAck, wire.Position(pos))
	s.typeText("echo st''opped\n")
	s.shows("stopped") // the interrupt was not behind endless output
}

func TestSignalsThatTheAgentIgnores(t *testing.T) {
	signal.Ignore(syscall.SIGINT, syscall.SIGQUIT) // as of who is started in the background
	defer signal.Reset(syscall.SIGINT, syscall.SIGQUIT)
	w := newWorld(t, nil)
	s := w.sit(wire.TerminalOpen{}, true)
	for _, name := range []string{"INT", "QUIT"} { // a line each: the shell gives up the line in which one dies
		s.typeText(fmt.Sprintf("sh -c 'kill -%s $$; echo ignores $((40+2))'\n", name))
	}
	s.typeText("echo e''nd\n")
	s.shows("end")
	if s.look(func() bool { return strings.Contains(s.output.String(), "ignores 42") }) {
		t.Error("Ctrl-C does nothing in the terminal, as the agent was started with SIGINT ignored")
	}
}

func TestPasteThatNobodyReads(t *testing.T) {
	w := newWorld(t, nil)
	s := w.sit(wire.TerminalOpen{}, true)
	s.typeText("stty raw -echo; echo ready; sleep 1000\n")
	s.shows("ready")
	chunk := bytes.Repeat([]byte("x"), wire.MaxFrame)
	for range 8<<20/len(chunk) + 1 {
		s.send(wire.FrameData, chunk) // fails once it was dropped
	}
	s.until("too much of it ends the viewer, not the agent", func() bool { return strings.Contains(s.dropped, "pasted") })
}

var printedPID = regexp.MustCompile(`pid-(\d+)-`)

func TestTerminalsEnd(t *testing.T) {
	for name, end := range map[string]func(*world){
		"the tunnel closes": func(w *world) { w.closed.Store(true) },
		"a pause":           func(w *world) { w.terms.EndAll("paused") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			s := w.sit(wire.TerminalOpen{}, true)
			// What ignores the hangup is killed.
			s.typeText("trap '' HUP; (trap '' HUP; sleep 1000) & echo pid-$!-\n")
			pid := ""
			s.until("the background program's id is printed", func() bool {
				if found := printedPID.FindStringSubmatch(s.output.String()); found != nil {
					pid = found[1]
				}
				return pid != ""
			})
			if _, err := os.Stat("/proc/" + pid); pid == "" || err != nil {
				t.Fatalf("the background program runs: %q %v", pid, err)
			}
			end(w)
			s.until("the viewer is told", func() bool { return s.exit != nil && s.exit.Text != "" })
			testkit.Eventually(t, "nothing of it runs any more", func() bool {
				_, err := os.Stat("/proc/" + pid)
				return errors.Is(err, os.ErrNotExist) && w.terms.Count() == 0
			})
		})
	}
}

func TestIdleLimit(t *testing.T) {
	w := newWorld(t, func(c *terminal.Config) { c.Idle = 300 * time.Millisecond })
	s := w.sit(wire.TerminalOpen{}, true)
	s.until("it ends by itself and says why", func() bool { return s.exit != nil && strings.Contains(s.exit.Text, "nothing was typed or printed") })
}

func TestLimitsAndBadHellos(t *testing.T) {
	w := newWorld(t, nil)
	if s := w.sit(wire.TerminalOpen{Terminal: "../etc"}, true); s.verdict.Code != wire.CodeBadHello {
		t.Errorf("a bad name is refused: %v", s.verdict)
	}
	for i := range 8 {
		if s := w.sit(wire.TerminalOpen{Terminal: fmt.Sprint("t", i)}, true); s.verdict.Code != wire.CodeOK {
			t.Fatalf("terminal %d: %v", i, s.verdict)
		}
	}
	if s := w.sit(wire.TerminalOpen{Terminal: "t8"}, true); s.verdict.Code != wire.CodeOverloaded {
		t.Errorf("a ninth terminal of one tunnel is refused: %v", s.verdict)
	}
	missing := newWorld(t, func(c *terminal.Config) { c.Shell = "/no/such/shell" })
	if s := missing.sit(wire.TerminalOpen{}, true); s.verdict.Code != wire.CodeInternal || !strings.Contains(s.verdict.Text, "/no/such/shell") {
		t.Errorf("a shell that is not there is named: %v", s.verdict)
	}
}
