package terminal

import (
	"context"
	"errors"
	"time"

	"github.com/coder/websocket"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// refused is the one answer to wrong tokens and foreign ones, whether there is such a
// tunnel or not: that is nobody's business.
func refused(cause error) *closing {
	return &closing{code: wire.CloseRefused, reason: "the token is not right, or the tunnel is closed", cause: cause}
}

// authenticate finds the tunnel for its admin token, a right to it, or a code, and
// uses the code up. The same work is done for tunnels that are not there. A right
// token proves that there was such a tunnel, with no record of it: its holder is told
// the truth, as a *closing.
func (s *socket) authenticate(ctx context.Context, a *wire.TerminalAttach) error {
	token, admin := ident.Secret(a.Token), s.t.cfg.AdminToken(s.session)
	isAdmin := token.Matches(admin.Hash())
	by, mayLook, hasRight := s.t.rightOf(s.session, a.Token)
	record, open := s.lookup()
	s.actor = "terminal:" + string(s.session)
	switch {
	case isAdmin: // who holds it is known only by whose it was
		s.actor, a.Code = "admin:"+string(s.session), ""
	case hasRight:
		s.host, a.ReadOnly, a.Code = by, a.ReadOnly || mayLook, ""
	case a.Code == "":
		return errors.New("wrong token")
	case !s.t.signed(s.session, a.Code):
		return errCode
	}
	if !open { // the viewer may be faster than what feeds our copy
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := s.t.cfg.Store.CatchUp(ctx); err != nil {
			return &closing{code: wire.CloseLost, reason: "the relay's store does not answer; it cannot be known whether the tunnel is open", cause: err}
		}
		if record, open = s.lookup(); !open {
			return s.over()
		}
	}
	if !admin.Matches(record.AdminHash) {
		return errors.New("the token is not this tunnel's")
	}
	if record.NoTerminal {
		return errNoTerminal
	}
	if a.Code != "" {
		code, err := s.redeem(ctx, a.Code)
		if err != nil {
			return err
		}
		s.actor, a.ReadOnly = "code of "+code.CreatedBy, a.ReadOnly || code.ReadOnly
		s.host = host{code.Credential, code.User, code.SignIn}
	}
	if s.t.revoked(record, s.host) {
		return errRevoked
	}
	// Who has a code was let in by somebody of the team, so who may use the tunnel is not
	// asked again; from where, and for what, is.
	if rule := record.Access; rule != nil {
		if !access.FromAllows(rule, s.party().Remote) {
			return errNetwork
		}
		a.ReadOnly = a.ReadOnly || rule.ReadOnly
	}
	s.record = record
	return nil
}

func (s *socket) lookup() (store.TunnelRecord, bool) {
	record, ok := s.t.cfg.Store.Tunnel(s.session)
	agent, known := s.t.cfg.Store.Agent(record.Key())
	return record, ok && known && agent.Tunnels[s.session].State == store.TunnelOpen && time.Now().Before(record.ExpiresAt)
}

// over says that the tunnel is, to who may know why.
func (s *socket) over() *closing {
	c := &closing{code: websocket.StatusGoingAway, reason: usage.ErrClosed.Error()}
	if text, ok := s.t.cfg.Why(s.session); ok {
		c.reason = text
	}
	return c
}

// redeem uses a code up. The error is a *closing but for a code that is not signed,
// which counts as a wrong token does; so does one that was used.
func (s *socket) redeem(ctx context.Context, code string) (store.CodeRecord, error) {
	r, err := s.t.cfg.Store.TakeCode(ctx, s.session, ident.Secret(code).Hash())
	switch {
	case errors.Is(err, store.ErrNotFound):
		return r, errCode
	case err != nil:
		return r, &closing{code: wire.CloseLost, reason: "the relay's store does not answer, so the code cannot be looked up; try again", cause: err}
	}
	return r, nil
}

// errNoTerminal is for who has a tunnel that is for a port and no more.
var errNoTerminal = &closing{code: wire.CloseDenied, reason: "the tunnel was opened with a credential for some ports only, and a terminal is the whole machine: open one with another credential"}

// errRevoked is for who came in by what somebody made who may not any more.
var errRevoked = &closing{code: wire.CloseDenied, reason: "who let you in may not any more: the credential was revoked, or the person signed out, left the team or has a lesser role"}

// errNetwork is for who comes from where the tunnel is not for.
var errNetwork = &closing{code: wire.CloseDenied, reason: "the tunnel is for certain networks, and your address is in none of them"}

// errChanged sends everybody through the entrance again.
var errChanged = &closing{code: wire.CloseLost, reason: "who may use the tunnel was changed; attach again"}

// errCode is for every code that opens nothing.
var errCode = errors.New("the code is not right, was used already, or has expired")

// endOf is for a use that the relay ended.
func endOf(cause error) *closing {
	if errors.Is(cause, usage.ErrKicked) {
		return &closing{code: wire.CloseDenied, reason: "disconnected by the tunnel's owner", cause: cause}
	}
	c := &closing{code: websocket.StatusGoingAway, reason: usage.ErrClosed.Error(), cause: cause}
	if over, ok := errors.AsType[*usage.Over](cause); ok {
		c.reason = over.Text
	}
	return c
}
