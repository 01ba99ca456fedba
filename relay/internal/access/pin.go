package access

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Of argon2id: what OWASP asks for at the least, since anybody may make the relay do it.
const (
	pinTime    = 2
	pinMemory  = 19 << 10 // KiB
	pinThreads = 1
	pinKey     = 32
	pinSalt    = 16
)

// hashing bounds the PINs that are hashed at once: any member of any team can set one, as
// often as they like.
var hashing = make(chan struct{}, pinWork)

// HashPIN returns what is kept of a PIN: argon2id with its parameters, in the usual form.
func HashPIN(pin string) (string, error) {
	hashing <- struct{}{}
	defer func() { <-hashing }()
	salt := make([]byte, pinSalt)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("make a salt: %w", err)
	}
	sum := argon2.IDKey([]byte(pin), salt, pinTime, pinMemory, pinThreads, pinKey)
	text := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, pinMemory, pinTime, pinThreads, text(salt), text(sum)), nil
}

// maxPINCost bounds the parameters that a record may ask for: a release that asks for
// more writes them, and this one must not fall over it.
const maxPINMemory, maxPINTime, maxPINThreads = 256 << 10, 16, 8

// rightPIN says whether a PIN is the one that a hash was made of.
func rightPIN(hash, pin string) (bool, error) {
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return false, errors.New("the hash of a PIN is not argon2id")
	}
	var memory, rounds uint32
	var threads uint8
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &rounds, &threads); n != 3 || err != nil ||
		memory > maxPINMemory || rounds < 1 || rounds > maxPINTime || threads < 1 || threads > maxPINThreads {
		return false, errors.New("the hash of a PIN has parameters that are not ours")
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	sum, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err := errors.Join(err1, err2); err != nil || len(sum) == 0 || len(sum) > 64 {
		return false, fmt.Errorf("read the hash of a PIN: %w", err)
	}
	got := argon2.IDKey([]byte(pin), salt, rounds, memory, threads, uint32(len(sum)))
	return subtle.ConstantTimeCompare(got, sum) == 1, nil
}

// MaxWrongPINs is how many wrong PINs are taken, over the whole pool, until the owner
// sets the access of the tunnel or named link again.
const MaxWrongPINs = 20

// PIN lets in who says the right PIN. An empty pass without an error: the tunnel does not
// ask for one any more. The error is a *api.Problem: pin_required when it is wrong,
// too_many_tries for a while, pin_locked until the owner does something.
func (d *Doors) PIN(ctx context.Context, req Request, pin string) (ident.Secret, time.Time, error) {
	pass, ends, outcome, err := d.pin(ctx, req, pin)
	if outcome != "" {
		d.metrics.pins.WithLabelValues(outcome).Inc()
	}
	return pass, ends, err
}

func (d *Doors) pin(ctx context.Context, req Request, pin string) (pass ident.Secret, ends time.Time, outcome string, _ error) {
	rule, err := d.rule(req, api.AccessPIN)
	if rule == nil {
		return "", ends, "", err
	}
	name := triesOf(req)
	if d.isLocked(name, rule.Version) {
		return "", ends, pinIsLocked, errPINLocked()
	}
	now, from := d.cfg.Now(), req.Remote.String()
	undo, ok := d.tries.Reserve(from, now)
	if !ok {
		return "", ends, pinLimited, api.NewProblem(api.CodeTooManyTries, "5 PINs a minute may be tried from one network").WithRetry(max(time.Second, d.tries.Wait(from, now)))
	}
	if len(pin) < minPIN || len(pin) > 4*maxPIN { // none that can be: costs the address, and nobody else
		return "", ends, pinWrong, errPINWrong()
	}
	leave, ok := d.enter(ctx)
	if !ok {
		undo()
		return "", ends, pinLimited, api.NewProblem(api.CodeTooManyRequests, "the relay looks at as many PINs as it can at once").WithRetry(2 * time.Second)
	}
	defer leave()
	// It counts as wrong until it is known to be right, so that no number of relays at
	// once takes more than there may be.
	locks := false
	_, err = d.cfg.Store.ChangePINTries(ctx, name, func(r *store.PINTriesRecord) error {
		if r.Version != rule.Version {
			if r.Version > rule.Version { // we know less than another relay
				return errPINAnew()
			}
			*r = store.PINTriesRecord{Version: rule.Version}
		}
		if r.Wrong >= MaxWrongPINs {
			return errPINLocked()
		}
		r.Wrong++
		locks = r.Wrong == MaxWrongPINs
		return nil
	})
	if err != nil {
		err = doorProblem(err)
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Code == api.CodePINLocked {
			d.lock(name, rule.Version)
			outcome = pinIsLocked
		}
		undo()
		return "", ends, outcome, err
	}
	right, err := rightPIN(rule.PINHash, pin)
	switch {
	case err != nil:
		return "", ends, "", api.Internal(err)
	case !right:
		if !locks {
			return "", ends, pinWrong, errPINWrong()
		}
		d.lock(name, rule.Version)
		if err := d.audit(ctx, req, audit.PINLocked, fmt.Sprintf("%d wrong PINs, the last from %s", MaxWrongPINs, from)); err != nil {
			return "", ends, pinWrong, err
		}
		return "", ends, pinWrong, errPINLocked()
	}
	undo()
	// If this fails one right PIN counts as a wrong one, and whoever said it is in all the same.
	_, _ = d.cfg.Store.ChangePINTries(context.WithoutCancel(ctx), name, func(r *store.PINTriesRecord) error {
		if r.Version != rule.Version || r.Wrong == 0 {
			return store.ErrUnchanged
		}
		r.Wrong--
		return nil
	})
	pass, ends = d.pass(req, Viewer{How: ByPIN})
	return pass, ends, pinRight, nil
}

// triesOf names what the tries of a PIN are counted for: what the rule is of.
func triesOf(req Request) string {
	if req.Link != nil && req.Link.Access != nil {
		return "link/" + string(req.Link.ID)
	}
	return "tunnel/" + string(req.Tunnel.Session)
}

// enter waits for a place to work on a PIN. It reports false when too many wait, or the
// caller left.
func (d *Doors) enter(ctx context.Context) (leave func(), ok bool) {
	select {
	case d.queue <- struct{}{}:
	default:
		return nil, false
	}
	select {
	case d.work <- struct{}{}:
		return func() { <-d.work; <-d.queue }, true
	case <-ctx.Done():
		<-d.queue
		return nil, false
	}
}

// maxLocked bounds what is known to be locked; the store knows the rest.
const maxLocked = 4096

// lock remembers that no more PINs are taken, so that a flood of them costs nothing.
func (d *Doors) lock(name string, version uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.locked) >= maxLocked {
		clear(d.locked)
	}
	d.locked[name] = version
}

func (d *Doors) isLocked(name string, version uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, ok := d.locked[name]
	if ok && known != version {
		delete(d.locked, name)
	}
	return ok && known == version
}

func errPINWrong() *api.Problem {
	return api.NewProblem(api.CodePINRequired, "this is not the PIN")
}

func errPINAnew() *api.Problem {
	return api.NewProblem(api.CodePINRequired, "who may use the tunnel was changed just now; say the PIN again")
}

func errPINLocked() *api.Problem {
	return api.Problemf(api.CodePINLocked, "%d wrong PINs were tried, so none is taken any more; ask whoever sent you the address to set the access anew", MaxWrongPINs)
}
