package terminal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/adit-tunnel/adit/shared/wire"
)

// afterHangup is how long programs may take to end when their terminal is taken
// away.
const afterHangup = 2 * time.Second

// shell is a program on a PTY, in a session of its own.
type shell struct {
	tty  *os.File // our end
	cmd  *exec.Cmd
	once sync.Once
	kill *time.Timer
}

// start runs a login shell.
func start(a account, path, dir string, env map[string]string, cols, rows uint16) (*shell, error) {
	if path == "" {
		path = a.shell
	}
	if path == "" {
		path = "/bin/sh"
	}
	if dir == "" {
		dir = a.home
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		dir = "/" // as login(1) does
	}
	ours, theirs, err := open()
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	defer theirs.Close()
	if err := setSize(ours, cols, rows); err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("set the terminal's size: %w", err)
	}
	if !a.own { // programs open it by its name, too
		if err := errors.Join(os.Chown(theirs.Name(), int(a.uid), -1), os.Chmod(theirs.Name(), 0o620)); err != nil {
			_ = ours.Close()
			return nil, fmt.Errorf("give the terminal to %s: %w", a.name, err)
		}
	}
	cmd := &exec.Cmd{
		Path: path, Args: []string{"-" + filepath.Base(path)}, // the hyphen makes it a login shell
		Dir: dir, Env: a.environ(path, env),
		Stdin: theirs, Stdout: theirs, Stderr: theirs,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: true, Credential: a.credential()},
	}
	done := heedSignals()
	err = cmd.Start()
	done()
	if err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("start %s as %s: %w", path, a.name, err)
	}
	return &shell{tty: ours, cmd: cmd}, nil
}

// heedSignals has programs that are started until done is called heed what a
// terminal sends them. A program inherits which signals its parent ignores, and an
// agent that a script started in the background ignores SIGINT and SIGQUIT: Ctrl-C
// would do nothing in its terminals. Signals that are caught become the default's in
// a child, so they are caught for that moment; what arrives then is dropped, as before.
func heedSignals() (done func()) {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
	return func() { signal.Stop(caught) }
}

// open opens a PTY whose end on our side knows deadlines, which pty.Open's does not:
// a program that reads no input must not keep a goroutine for ever.
func open() (ours, theirs *os.File, err error) {
	blocking, theirs, err := pty.Open()
	if err != nil {
		return nil, nil, err
	}
	defer blocking.Close()
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		if err = unix.SetNonblock(fd, true); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), blocking.Name()), theirs, nil
}

func setSize(tty *os.File, cols, rows uint16) error {
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
	})
	return errors.Join(cerr, err)
}

// wait waits for the shell's own end.
func (s *shell) wait() wire.Exit {
	err := s.cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return wire.Exit{Text: "the shell ended"}
	case errors.As(err, &exit):
		return wire.Exit{Status: int32(exit.ExitCode()), Text: "the shell ended: " + exit.String()}
	}
	return wire.Exit{Status: -1, Text: err.Error()}
}

// hangup tells all programs of the session that their terminal is gone, and kills
// the shell if it stays.
func (s *shell) hangup() {
	s.once.Do(func() {
		s.signal(syscall.SIGHUP)
		s.signal(syscall.SIGCONT) // a stopped program would not hear it
		s.kill = time.AfterFunc(afterHangup, func() { s.signal(syscall.SIGKILL) })
	})
}

// clear waits, after hangup and the shell's end, for the rest of the session, and
// kills what stays.
func (s *shell) clear() {
	s.once.Do(func() {}) // hangup is over, if it was under way
	if s.kill != nil {
		defer s.kill.Stop()
	}
	deadline := time.Now().Add(afterHangup)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if len(members(s.cmd.Process.Pid)) == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.signal(syscall.SIGKILL)
			return
		}
	}
}

// signal sends a signal to every process of the session.
func (s *shell) signal(sig syscall.Signal) {
	for _, pid := range members(s.cmd.Process.Pid) {
		_ = syscall.Kill(pid, sig) // it may be gone already
	}
}

// members lists the processes of a session. What made a session of its own (tmux,
// setsid) is none of them.
func members(session int) []int {
	dirs, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	var out []int
	for _, path := range dirs {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		// pid (comm) state ppid pgrp session …, proc_pid_stat(5); comm may hold anything.
		i := bytes.LastIndexByte(stat, ')')
		if i < 0 {
			continue
		}
		f := bytes.Fields(stat[i+1:])
		if len(f) < 4 || string(f[0]) == "Z" || string(f[3]) != strconv.Itoa(session) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			out = append(out, pid)
		}
	}
	return out
}
