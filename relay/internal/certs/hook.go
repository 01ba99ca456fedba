package certs

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// hook solves DNS-01 by a program of the operator's, which knows their DNS:
//
//	PROGRAM … set   _acme-challenge.tunnels.example.com VALUE
//	PROGRAM … clear _acme-challenge.tunnels.example.com VALUE
//
// set returns when the TXT record can be seen from outside; several values of one
// name stand at a time. Neither is a secret.
type hook struct {
	line []string
	log  *slog.Logger
}

// hookTime bounds one call: some DNS takes minutes to spread.
const hookTime = 4 * time.Minute

// Present is part of acmez.Solver.
func (h hook) Present(ctx context.Context, c acme.Challenge) error { return h.call(ctx, "set", c) }

// CleanUp is part of acmez.Solver. Its context may be over; the record goes all the same.
func (h hook) CleanUp(ctx context.Context, c acme.Challenge) error {
	return h.call(context.WithoutCancel(ctx), "clear", c)
}

func (h hook) call(ctx context.Context, what string, c acme.Challenge) error {
	ctx, cancel := context.WithTimeout(ctx, hookTime)
	defer cancel()
	args := append(append([]string{}, h.line[1:]...), what, c.DNS01TXTRecordName(), c.DNS01KeyAuthorization())
	cmd := exec.CommandContext(ctx, h.line[0], args...)
	cmd.WaitDelay = 5 * time.Second
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("dns_hook %s %s: %w: %s", what, c.DNS01TXTRecordName(), err, strings.TrimSpace(tail(said.String(), 500)))
	}
	h.log.Debug("dns hook done", "what", what, "name", c.DNS01TXTRecordName())
	return nil
}

func tail(s string, n int) string {
	if len(s) > n {
		return s[len(s)-n:]
	}
	return s
}
