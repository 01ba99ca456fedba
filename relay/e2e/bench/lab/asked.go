package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Asked is a process that answers each line with a line of JSON.
type Asked struct {
	*Process
	in  io.WriteCloser
	out *bufio.Reader
}

// StartAsked starts one.
func (l *Lab) StartAsked(at Place, name, program string, env []string, args ...string) (*Asked, error) {
	in, toChild, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	fromChild, out, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, toChild.Close())
	}
	defer out.Close()
	p, err := l.start(at, name, env, in, out, program, args...)
	if err != nil {
		return nil, errors.Join(err, toChild.Close(), fromChild.Close())
	}
	return &Asked{Process: p, in: toChild, out: bufio.NewReader(fromChild)}, nil
}

// patience with an answer: ten thousand agents need a while on a busy machine.
const patience = 10 * time.Minute

// Ask sends a line and decodes the answer.
func (a *Asked) Ask(answer any, format string, args ...any) error {
	if _, err := fmt.Fprintf(a.in, format+"\n", args...); err != nil {
		return errors.Join(err, a.Alive())
	}
	late := time.AfterFunc(patience, a.End)
	defer late.Stop()
	line, err := a.out.ReadBytes('\n')
	if err != nil {
		<-a.done // it says nothing more
		return fmt.Errorf("%s: %w", a.Name, errors.Join(err, a.Alive()))
	}
	return json.Unmarshal(line, answer)
}
