//go:build !linux

package link

import (
	"errors"
	"net"
)

// tune does nothing here: only Linux lets a program choose the congestion control.
func tune(net.Conn) (congestion string, watched line) { return "", nil }

// readiness is for Linux only, where relays run.
type readiness struct{}

func newReadiness(net.Conn) *readiness { return nil }

func (*readiness) read(int) (*[]byte, int, error) { return nil, 0, errors.ErrUnsupported }
