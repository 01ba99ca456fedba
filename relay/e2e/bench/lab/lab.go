// Package lab is what the bench measures: relays, agents and what they are compared
// with, as processes of their own, each with an endpoint through which the same
// origin is reached. It owns what it starts and ends it. It measures what processes
// use, and never puts any load on.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Place is a network that processes live in. Do runs f where what f starts, dials or
// listens on belongs to that network.
type Place interface {
	Do(f func() error) error
	Addr() string // under which the other place reaches this one
}

// Loopback is this machine's own network: near and far are one.
type Loopback struct{}

// Do runs f.
func (Loopback) Do(f func() error) error { return f() }

// Addr is loopback's.
func (Loopback) Addr() string { return "127.0.0.1" }

// Lab is one set of processes. Users and relays are near, agents and the origin far.
type Lab struct {
	Near, Far Place
	Bin       string // directory of the three programs
	Self      string // the bench's own program, which is the origin too
	Dir       string // of its own, for data and logs
	Links     int    // of the agents; 0: their default

	Origin  *Process
	Counter string // the origin's socket that counts uploads
	origin  string // port

	all []*Process
}

// Process is one started program.
type Process struct {
	Name string
	PID  int
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

// Start starts a program in a place. Its output goes to a file that failures quote.
func (l *Lab) Start(at Place, name string, env []string, program string, args ...string) (*Process, error) {
	return l.start(at, name, env, nil, nil, program, args...)
}

// start is Start with a standard input and output other than nothing and the log.
func (l *Lab) start(at Place, name string, env []string, stdin, stdout *os.File, program string, args ...string) (*Process, error) {
	path := filepath.Join(l.Dir, name+".log")
	out, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.CommandContext(context.Background(), program, args...)
	cmd.Env = append(CleanEnv(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	if stdin != nil {
		cmd.Stdin, cmd.Stdout = stdin, stdout
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := at.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{Name: name, PID: cmd.Process.Pid, cmd: cmd, log: path, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	l.all = append(l.all, p)
	return p, nil
}

// Run runs a program to its end in a place and returns its standard output.
func (l *Lab) Run(ctx context.Context, at Place, env []string, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(CleanEnv(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := at.Do(cmd.Start); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), strings.Join(args, " "), err, errs.String())
	}
	return []byte(out.String()), nil
}

// CleanEnv is the environment without what would configure the programs or send their
// connections elsewhere.
func CleanEnv() []string {
	var out []string
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		if up := strings.ToUpper(key); strings.HasPrefix(up, "ADIT_") || strings.HasSuffix(up, "_PROXY") || up == "NOTIFY_SOCKET" {
			continue
		}
		out = append(out, kv)
	}
	return out
}

// End ends a process and all that descends from it.
func (p *Process) End() {
	for _, pid := range family(readProcs(), p.PID) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
	}
	<-p.done
}

// Alive is an error that quotes the log when the process has ended.
func (p *Process) Alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %w\n%s", p.Name, errors.Join(p.err, errEnded), p.Log())
	default:
		return nil
	}
}

var errEnded = errors.New("a process that was to stay")

// Log is the end of what the process printed.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// End ends everything that was started, last first.
func (l *Lab) End() {
	for _, p := range slices.Backward(l.all) {
		p.End()
	}
	l.all = nil
}

// Alive is an error when a process has ended by itself.
func (l *Lab) Alive() error {
	for _, p := range l.all {
		if err := p.Alive(); err != nil {
			return err
		}
	}
	return nil
}

// FreePort returns a port of a place that nothing listened on a moment ago.
func FreePort(at Place) (string, error) {
	var port string
	err := at.Do(func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		_, port, err = net.SplitHostPort(l.Addr().String())
		return err
	})
	return port, err
}

// WaitPort waits until something accepts connections on a port of a place.
func WaitPort(at Place, port string, p *Process) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := at.Do(func() error {
			d := net.Dialer{Timeout: time.Second}
			c, err := d.DialContext(context.Background(), "tcp", "127.0.0.1:"+port)
			if err == nil {
				_ = c.Close()
			}
			return err
		})
		if err == nil {
			return nil
		}
		if err := p.Alive(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not listen on port %s: %w\n%s", p.Name, port, err, p.Log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// StartOrigin starts the origin, far.
func (l *Lab) StartOrigin() error {
	port, err := FreePort(l.Far)
	if err != nil {
		return err
	}
	l.origin, l.Counter = port, filepath.Join(l.Dir, "counter.sock")
	spec, err := json.Marshal(map[string]string{"listen": listen(l.Far, port), "counter": l.Counter})
	if err != nil {
		return err
	}
	if l.Origin, err = l.Start(l.Far, "origin", nil, l.Self, "origin", string(spec)); err != nil {
		return err
	}
	return WaitPort(l.Far, port, l.Origin)
}

// listen is the address to listen on: all of a network of one's own, else loopback.
func listen(at Place, port string) string {
	if _, ok := at.(Loopback); ok {
		return "127.0.0.1:" + port
	}
	return "0.0.0.0:" + port
}
