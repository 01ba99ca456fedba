// Package checkup is what `adit doctor` and `adit-agent doctor` have in common: what a
// check is, how it is shown and the JSON document, the way to a relay hop by hop, and
// what mends each error of the network. It never needs a credential, changes nothing
// and prints nothing itself.
package checkup

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/adit-tunnel/adit/shared/api/client"
	"github.com/adit-tunnel/adit/shared/printable"
)

// State says what a check found.
type State string

// The states.
const (
	OK      State = "ok"
	Warn    State = "warn"
	Failed  State = "failed"
	Skipped State = "skipped"
)

// Check is one thing that was looked at.
type Check struct {
	Relay  string  `json:"relay,omitempty"` // where there are several
	Check  string  `json:"check"`
	State  State   `json:"state"`
	Millis float64 `json:"ms"`
	Detail string  `json:"detail"`
	Remedy string  `json:"remedy,omitempty"`
	Err    error   `json:"-"` // of a failed one
}

// Failure is a check that went wrong.
func Failure(name string, took time.Duration, err error, remedy string) Check {
	return Check{Check: name, State: Failed, Millis: Millis(took), Detail: client.Describe(err), Remedy: remedy, Err: err}
}

// Millis is a time as checks say it.
func Millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Text is the check for people: a line, and a second one with the remedy.
func (c Check) Text(colours bool) string {
	state := fmt.Sprintf("%-7s", c.State)
	if colours {
		state = map[State]string{OK: "\x1b[32m", Warn: "\x1b[33m", Failed: "\x1b[31m", Skipped: "\x1b[2m"}[c.State] + state + "\x1b[0m"
	}
	s := fmt.Sprintf("%s  %-10s  %8.1f ms  %s\n", state, c.Check, c.Millis, printable.Text(c.Detail))
	if c.Remedy != "" {
		s += fmt.Sprintf("         -> %s\n", printable.Text(c.Remedy))
	}
	return s
}

// Document is the doctors' --json document.
type Document struct {
	Healthy bool    `json:"healthy"`
	Checks  []Check `json:"checks"`
}

// NewDocument holds the checks; healthy says that none failed.
func NewDocument(checks []Check) Document {
	d := Document{Healthy: true, Checks: checks}
	for _, c := range checks {
		d.Healthy = d.Healthy && c.State != Failed
	}
	return d
}

// Words are how a program calls what its user can change.
type Words struct {
	Address   string // where the relay's address comes from
	Authority string // what names a private authority's certificate
	Resolver  string // what is to look at when a name is not found
}

// Remedy says what mends an error of the network; empty: it is not known.
func (w Words) Remedy(err error) string {
	var (
		name   x509.HostnameError
		cert   x509.CertificateInvalidError
		record tls.RecordHeaderError
		dns    *net.DNSError
	)
	switch {
	case client.UnknownAuthority(err):
		return "if the relay has a private authority, name its certificate: " + w.Authority
	case errors.As(err, &name):
		return "the certificate is for another name: check " + w.Address
	case errors.As(err, &cert) && cert.Reason == x509.Expired:
		return "the relay's certificate has expired, or this machine's clock is wrong"
	case errors.As(err, &dns):
		return "check " + w.Address + ", and " + w.Resolver
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return "the relay speaks plain HTTP there: use http://, or another port"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens at that address: check " + w.Address + ", and whether the relay runs"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, client.ErrTimeout), errors.Is(err, syscall.ETIMEDOUT):
		return "no answer: a firewall may drop it; where only a proxy may go out, set HTTPS_PROXY"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "this machine has no route there: check its network"
	}
	return ""
}
