// Package forward owns the dial to programs on this machine. It reaches loopback
// and nothing else, whatever it is asked, and it never copies or reads a byte.
package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/adit-tunnel/adit/shared/apps"
	"github.com/adit-tunnel/adit/shared/wire"
)

// DialTimeout bounds one dial. Loopback answers at once unless the program's
// accept queue is full, which a busy app may have for some seconds.
const DialTimeout = 10 * time.Second

// fallbackDelay is how long the IPv4 dial has before IPv6 is tried beside it
// (RFC 8305, section 5).
const fallbackDelay = 250 * time.Millisecond

// Error says why a port could not be reached.
type Error struct {
	Port uint16
	Code wire.Code // CodeAppRefused or CodeAppTimeout
	Err  error
}

// Error is for logs: port and cause.
func (e *Error) Error() string { return fmt.Sprintf("dial port %d: %v", e.Port, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Verdict is the refusal as the other end reads it.
func (e *Error) Verdict() wire.Verdict {
	text := fmt.Sprintf("nothing listens on port %d of this machine%s: start it, or open the tunnel for another port", e.Port, apps.Usually(e.Port))
	if e.Code == wire.CodeAppTimeout {
		text = fmt.Sprintf("port %d of this machine%s took no connection within %s: the app is hung, or overloaded", e.Port, apps.Usually(e.Port), DialTimeout)
	}
	return wire.Verdict{Code: e.Code, Text: text}
}

// Conn is a connection to a program on this machine.
type Conn struct{ *net.TCPConn }

// Reset closes the connection so that the program sees an error, not an end: what
// it got of a request whose link was lost is not the whole of it.
func (c *Conn) Reset() error {
	_ = c.SetLinger(0) // a connection that is gone already needs none
	return c.Close()
}

// Dial connects to a port of this machine: 127.0.0.1 first, [::1] beside it when
// that takes long or fails. Its error is an *Error, or ctx's cause.
func Dial(ctx context.Context, port uint16) (*Conn, error) {
	dialCtx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, 2)
	start := func(host string) {
		go func() {
			var d net.Dialer
			conn, err := d.DialContext(dialCtx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			results <- result{conn, err}
		}()
	}
	start("127.0.0.1")
	running, second := 1, false
	timer := time.NewTimer(fallbackDelay)
	defer timer.Stop()
	var errs []error
	for running > 0 {
		select {
		case <-timer.C:
			if !second {
				second = true
				running++
				start("::1")
			}
		case r := <-results:
			running--
			if r.err == nil {
				cancel()
				for range running { // the slower one ends at once, and is closed if it won as well
					if r := <-results; r.err == nil {
						_ = r.conn.Close()
					}
				}
				return &Conn{r.conn.(*net.TCPConn)}, nil
			}
			errs = append(errs, r.err)
			if !second {
				second = true
				running++
				start("::1")
			}
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, classify(port, errs)
}

// classify picks the verdict: refused when nobody listens on either address. A
// machine without IPv6 fails there in other ways (EADDRNOTAVAIL, ENETUNREACH),
// so a refusal by IPv4, always tried, decides; only a time-out outweighs it.
func classify(port uint16, errs []error) *Error {
	e := &Error{Port: port, Code: wire.CodeAppRefused, Err: errors.Join(errs...)}
	for _, err := range errs {
		var ne net.Error
		if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout() {
			e.Code = wire.CodeAppTimeout
		}
		// A listener with a full queue may also answer so (tcp_abort_on_overflow).
		if errors.Is(err, syscall.ECONNRESET) {
			e.Code = wire.CodeAppTimeout
		}
	}
	return e
}
