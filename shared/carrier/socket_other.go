//go:build !linux

package carrier

import (
	"errors"
	"net"
)

// Tune does nothing here: only Linux lets a program choose the congestion control.
func Tune(Conn) (congestion string, line Line) { return "", nil }

// readiness is for Linux only, where relays run.
type readiness struct{}

func newReadiness(net.Conn) *readiness { return nil }

func (*readiness) read(int) (*[]byte, int, error) { return nil, 0, errors.ErrUnsupported }
