package rest

import (
	"context"
	"net/http"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Pairing lets programs in that have no secret yet.
type Pairing interface {
	Start(ctx context.Context, req api.PairStartRequest) (api.PairStarted, error)
	Poll(ctx context.Context, device ident.Secret) (api.PairPolled, error)
	Show(ctx context.Context, by creds.Principal, typed string) (api.PairAsked, error)
	Confirm(ctx context.Context, by creds.Principal, req api.PairConfirmRequest) (api.PairConfirmed, error)
}

// startPairing and pollPairing are for anybody: the program has nothing to show yet.
func (a *API) startPairing(w http.ResponseWriter, r *http.Request, _ creds.Principal) error {
	var req api.PairStartRequest
	if err := decode(w, r, &req, false); err != nil {
		return err
	}
	out, err := a.cfg.Pairing.Start(r.Context(), req)
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, out)
}

func (a *API) pollPairing(w http.ResponseWriter, r *http.Request, _ creds.Principal) error {
	var req api.PairPollRequest
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	out, err := a.cfg.Pairing.Poll(r.Context(), ident.Secret(req.DeviceCode))
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, out)
}

func (a *API) showPairing(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	var req api.PairShowRequest
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	out, err := a.cfg.Pairing.Show(r.Context(), p, req.UserCode)
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, out)
}

func (a *API) confirmPairing(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	var req api.PairConfirmRequest
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	out, err := a.cfg.Pairing.Confirm(r.Context(), p, req)
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, out)
}

// revokeDevice ends the device that calls, with the machine's key that it was paired
// with and what it opened.
func (a *API) revokeDevice(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	q, err := query(r, "keep_tunnels")
	if err != nil {
		return err
	}
	keep, err := flag(q, "keep_tunnels")
	if err != nil {
		return err
	}
	out, err := a.cfg.Rights.Revoke(r.Context(), p, p.Team, p.Credential, keep)
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, out)
}
