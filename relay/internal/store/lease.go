package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// relayLease is this relay's life as the others see it: an etcd lease with the
// relay's record and the presences of its agents attached. Etcd counts the TTL
// from a renewal's arrival, this side from before it was sent and with a margin:
// so this side always gives up first.
type relayLease struct {
	mu      sync.Mutex
	record  RelayRecord
	id      clientv3.LeaseID
	until   time.Duration // on clock(); not serving from then on
	fenced  chan struct{} // closed when this generation of the lease is over
	serving chan struct{} // closed when there is a lease
}

func newRelayLease(r RelayRecord) *relayLease {
	return &relayLease{record: r, fenced: make(chan struct{}), serving: make(chan struct{})}
}

// Serving says whether this relay may act on what it knows: its lease is valid.
func (s *Store) Serving() bool {
	s.lease.mu.Lock()
	defer s.lease.mu.Unlock()
	return s.lease.valid()
}

// valid needs l.mu. It reads the clock: a timer would be late after a sleep.
func (l *relayLease) valid() bool { return l.id != 0 && clock() < l.until }

// Fenced returns a channel that is closed when the relay's lease could not be
// renewed in time, or when Run ends: this relay's sessions must be dropped, for
// another relay may be taking them over. After recovery Fenced returns a new
// channel, and presences must be put again.
func (s *Store) Fenced() <-chan struct{} {
	s.lease.mu.Lock()
	defer s.lease.mu.Unlock()
	return s.lease.fenced
}

// WaitServing waits until the relay has a valid lease.
func (s *Store) WaitServing(ctx context.Context) error {
	for {
		s.lease.mu.Lock()
		valid, serving := s.lease.valid(), s.lease.serving
		s.lease.mu.Unlock()
		if valid {
			return nil
		}
		// A lease may have run out without being fenced yet; then serving is closed.
		t := time.NewTimer(50 * time.Millisecond)
		select {
		case <-ctx.Done():
			t.Stop()
			return unavailable(ctx, "wait for the relay's lease", nil)
		case <-serving:
			<-t.C
		case <-t.C:
		}
	}
}

// SetDraining tells the other relays that this one is about to stop, or that it
// is not any more. It is kept for later leases even when it returns an error.
func (s *Store) SetDraining(ctx context.Context, draining bool) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	l := s.lease
	l.mu.Lock()
	l.record.Draining = draining
	id, valid := l.id, l.valid()
	l.mu.Unlock()
	if !valid {
		return fmt.Errorf("tell that this relay drains: %w: it has no lease", ErrUnavailable)
	}
	for attempt := 0; ; attempt++ {
		err := s.putRelay(ctx, id)
		if err == nil || rejected(err) || !pause(ctx, attempt) {
			if err != nil {
				return unavailable(ctx, "tell that this relay drains", err)
			}
			return nil
		}
	}
}

// putRelay writes the relay's record under its lease.
func (s *Store) putRelay(ctx context.Context, id clientv3.LeaseID) error {
	s.lease.mu.Lock()
	record := s.lease.record
	s.lease.mu.Unlock()
	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	_, err = s.do(ctx, clientv3.OpPut(relayKey(record.ID), string(value), clientv3.WithLease(id)))
	return err
}

// runLease holds a lease for as long as ctx lasts, a new one whenever the old one
// was lost.
func (s *Store) runLease(ctx context.Context) error {
	defer s.endLease()
	for attempt := 0; ctx.Err() == nil; attempt++ {
		if err := s.obtainLease(ctx); err != nil {
			if ctx.Err() == nil {
				s.log.Debug("no lease for this relay", "error", err)
			}
			pause(ctx, attempt)
			continue
		}
		attempt = 0
		s.keepLease(ctx)
		if ctx.Err() == nil {
			s.fence()
		}
	}
	return nil
}

// obtainLease gets a lease, attaches the relay's record and starts serving.
func (s *Store) obtainLease(ctx context.Context) error {
	client := s.client.Load()
	if client == nil {
		return ErrUnavailable
	}
	actx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	sent := clock()
	granted, err := client.Grant(actx, int64(s.cfg.LeaseTTL/time.Second))
	if err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	if err := s.putRelay(ctx, granted.ID); err != nil {
		return fmt.Errorf("put the relay's record: %w", err)
	}
	l := s.lease
	l.mu.Lock()
	l.id = granted.ID
	l.until = s.deadline(sent, granted.TTL)
	select {
	case <-l.fenced:
		l.fenced = make(chan struct{})
	default: // the first lease: who asked before it has this channel already
	}
	close(l.serving)
	l.mu.Unlock()
	s.log.Info("the relay holds its lease", "ttl", s.cfg.LeaseTTL)
	return nil
}

// deadline is until when a lease granted or renewed by a request of that time may
// be relied on. The margin covers clocks that run at different speeds and what
// must still be done when it is over.
func (s *Store) deadline(sent time.Duration, ttl int64) time.Duration {
	d := time.Duration(ttl) * time.Second
	return sent + d - d/5
}

// keepLease renews the lease until it is lost, out of time or ctx ends.
func (s *Store) keepLease(ctx context.Context) {
	l := s.lease
	every := s.cfg.LeaseTTL / 3
	next := time.NewTimer(every)
	defer next.Stop()
	for {
		l.mu.Lock()
		left := l.until - clock()
		l.mu.Unlock()
		over := time.NewTimer(left)
		select {
		case <-ctx.Done():
			over.Stop()
			return
		case <-over.C:
			return
		case <-next.C:
			over.Stop()
		}
		err := s.renew(ctx, left)
		switch {
		case err == nil:
			s.metrics.renewals.WithLabelValues("ok").Inc()
			next.Reset(every)
		case ctx.Err() != nil:
			return
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			s.metrics.renewals.WithLabelValues("failed").Inc()
			s.log.Debug("the relay's lease is gone from the store")
			return
		default:
			s.metrics.renewals.WithLabelValues("failed").Inc()
			s.log.Debug("renewing the relay's lease", "error", err)
			next.Reset(every / 10)
		}
	}
}

// renew sends one renewal. It is bounded so that there is time for another try.
func (s *Store) renew(ctx context.Context, left time.Duration) error {
	client := s.client.Load()
	if client == nil {
		return ErrUnavailable
	}
	defer s.metrics.took(opRenew)()
	ctx, cancel := context.WithTimeout(ctx, min(left, s.cfg.LeaseTTL/5))
	defer cancel()
	sent := clock()
	resp, err := client.KeepAliveOnce(ctx, s.lease.id) // the id changes in this goroutine only
	if err != nil {
		return err
	}
	s.lease.mu.Lock()
	s.lease.until = s.deadline(sent, resp.TTL)
	s.lease.mu.Unlock()
	return nil
}

// fence stops serving: from here on another relay may hold this one's agents.
func (s *Store) fence() {
	l := s.lease
	l.mu.Lock()
	id := l.id
	l.id = 0
	close(l.fenced)
	l.serving = make(chan struct{})
	l.mu.Unlock()
	s.metrics.fenced.Inc()
	s.log.Error("the relay lost its lease: it stops serving its agents", "lease", fmt.Sprintf("%x", int64(id)))
}

// endLease is the clean end: the relay's record goes at once. The lease itself
// runs out by its TTL, so that a restart does not empty the lists of agents which
// are back within a second.
func (s *Store) endLease() {
	l := s.lease
	l.mu.Lock()
	had := l.valid()
	l.id = 0
	select {
	case <-l.fenced:
	default:
		close(l.fenced)
	}
	l.mu.Unlock()
	if !had {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := s.do(ctx, clientv3.OpDelete(relayKey(s.cfg.Relay.ID))); err != nil {
		s.log.Debug("deleting the relay's record", "error", err)
	}
}

// leaseID returns the lease to attach presences to.
func (s *Store) leaseID() (clientv3.LeaseID, bool) {
	s.lease.mu.Lock()
	defer s.lease.mu.Unlock()
	return s.lease.id, s.lease.valid()
}
