package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/adit-tunnel/adit/shared/api"
)

var (
	// ErrUnavailable says that the store cannot be asked or changed now: no quorum,
	// no answer in time, or this relay is stale or fenced. A change may have landed
	// nevertheless; it has not been acknowledged.
	ErrUnavailable = errors.New("the store is unavailable")
	// ErrUnchanged is returned by a change that has nothing to write.
	ErrUnchanged = errors.New("nothing to change")
	// ErrNotFound says that there is no such record.
	ErrNotFound = errors.New("no such record")
	// ErrExists says that a record of that name exists already.
	ErrExists = errors.New("the record exists already")
	// ErrStaleEpoch says that a newer session of the agent has taken over.
	ErrStaleEpoch = errors.New("a newer session of the agent has taken over")
	// ErrClusterKey says that the relay's cluster key is not the store's.
	ErrClusterKey = errors.New("the cluster key is not the one this store was created with")
	// ErrLocked says that another process uses the data directory.
	ErrLocked = errors.New("the data directory is in use")
	// ErrNotEmpty says that an import or restore found records at its target.
	ErrNotEmpty = errors.New("the target is not empty")
	// ErrDump is wrapped by every error about a damaged backup.
	ErrDump = errors.New("not a complete backup")
)

// OnceError says that Effects.Once had happened before, and with which value.
type OnceError struct{ Value string }

// Error says what happened; the value is for the caller.
func (e *OnceError) Error() string { return "done already under this key" }

// Refusal is what the caller of a change is told that the store did not take; nil when
// the error is not of that kind.
func Refusal(err error) *api.Problem {
	switch {
	case errors.Is(err, ErrFull):
		return api.NewProblem(api.CodeStoreFull,
			"the relay's store is nearly full: nothing new is made until its operator sees to it (adit-relay status); what exists goes on, and can be closed and revoked").WithRetry(30 * time.Second).WithCause(err)
	case errors.Is(err, ErrUnavailable):
		return api.NewProblem(api.CodeStoreUnavailable,
			"the relay's store does not answer: it has no quorum, or more to do than it can; what runs goes on, nothing new is granted").WithRetry(2 * time.Second).WithCause(err)
	}
	return nil
}

// unavailable wraps what hindered an operation. The cause of a context's end says
// more than its error.
func unavailable(ctx context.Context, doing string, err error) error {
	if cause := context.Cause(ctx); cause != nil && (err == nil || errors.Is(err, ctx.Err())) {
		err = cause
	}
	if err == nil {
		return fmt.Errorf("%s: %w", doing, ErrUnavailable)
	}
	if errors.Is(err, ErrUnavailable) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w: %w", doing, ErrUnavailable, err)
}

// rejected says that etcd refused a request without doing any of it. Every other
// error leaves open whether a write has landed: even that of a full store, which
// etcd reports after having applied the write.
func rejected(err error) bool {
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return true
	}
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code() == codes.InvalidArgument
	}
	return status.Code(err) == codes.InvalidArgument
}

// full says that the store is over its quota and takes no writes.
func full(err error) bool { return errors.Is(err, rpctypes.ErrNoSpace) }
