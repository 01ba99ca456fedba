package store

import (
	"context"
	"time"

	"github.com/adit-tunnel/adit/shared/ident"
)

// UseTicket marks what works once, until its end, as used: ErrExists when it was,
// through whichever relay.
func (s *Store) UseTicket(ctx context.Context, hash string, ends time.Time) error {
	// The nonce tells our own mark from another one when the answer got lost.
	return create(ctx, s, "use a ticket", takenKey(hash), ident.NewNonce(), ends)
}
