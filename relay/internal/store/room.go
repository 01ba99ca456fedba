package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A store near its quota makes nothing new: the rest of the room is for what must
// always be possible, as to revoke, to close, and to hold a lease. What etcd itself
// refuses, at its quota, is everything but deletions.

// ErrFull says that the store is too full for something new. It is a kind of
// ErrUnavailable.
var ErrFull = fmt.Errorf("%w: it is full", ErrUnavailable)

const (
	// Defragmenting stops the store while it lasts: twice as rare after each try.
	reliefFirst = 2 * time.Second
	reliefMax   = 5 * time.Minute
	// quickCopy is what any disk copies well within a lease.
	quickCopy = 256 << 20
	// historyKept is how many probes back a full store's history goes.
	historyKept = 5
)

// reserve is the part of a quota that is kept for what must always be possible.
func reserve(quota int64) int64 { return max(quota/10, min(8<<20, quota/4)) }

// limitFor is the quota that an embedded member is started with. A store that was
// full gets the reserve once more, beyond the quota that was configured: with no room
// at all a relay could not even write that it serves.
func limitFor(dir string, quota int64) int64 {
	info, err := os.Stat(filepath.Join(dir, "member", "snap", "db"))
	if err != nil {
		return quota
	}
	return max(quota, info.Size()+reserve(quota))
}

// Room says whether the store takes new records. Without room only what exists
// changes or ends.
func (s *Store) Room() bool { return !s.tight.Load() && !s.isFull.Load() }

// filling says that the store may be full soon.
func (s *Store) filling() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health.quota > 0 && s.health.size > s.health.quota/2
}

// takesNew says why nothing new can be made now, if it cannot.
func (s *Store) takesNew(ctx context.Context, doing string) error {
	if err := s.usable(); err != nil {
		return unavailable(ctx, doing, err)
	}
	if !s.Room() {
		return noRoom(doing)
	}
	return nil
}

// noRoom is the refusal of something new.
func noRoom(doing string) error { return fmt.Errorf("%s: %w", doing, ErrFull) }

// refusedAsFull notes that etcd refused a write for lack of room.
func (s *Store) refusedAsFull(ctx context.Context, doing string, err error) error {
	s.isFull.Store(true)
	return unavailable(ctx, doing, fmt.Errorf("%w: %w", ErrFull, err))
}

// relief says when a full store is relieved next, and what it may forget.
type relief struct {
	next time.Time
	wait time.Duration
	past []int64 // revisions of the last probes, the oldest first
}

func (r *relief) saw(revision int64) {
	if r.past = append(r.past, revision); len(r.past) > historyKept {
		r.past = r.past[1:]
	}
}

// measure compares the store's size with its quota. etcd counts what the file takes,
// also pages that are free within it.
func (s *Store) measure(st *clientv3.StatusResponse) {
	quota := s.cfg.QuotaBytes
	if !s.embedded() {
		quota = st.DbSizeQuota // 0: older than 3.6
	}
	alarm := ""
	if len(st.Errors) > 0 {
		alarm = "the store reports: " + st.Errors[0]
	}
	limit := quota - reserve(quota)
	had := s.tight.Load()
	if had { // not to and fro
		limit -= reserve(quota) / 4
	}
	tight := quota > 0 && st.DbSize >= limit
	s.mu.Lock()
	s.health.size, s.health.quota, s.health.alarm = st.DbSize, quota, alarm
	s.mu.Unlock()
	s.tight.Store(tight)
	s.isFull.Store(strings.Contains(alarm, "NOSPACE"))
	switch {
	case tight && !had:
		s.log.Error("the store is nearly full: nothing new is made until there is room", "bytes", st.DbSize, "used_bytes", st.DbSizeInUse, "quota_bytes", quota)
	case had && !tight:
		s.log.Warn("the store has room again", "bytes", st.DbSize, "quota_bytes", quota)
	}
}

// relieve makes room in an embedded store: etcd leaves that to an operator with its
// own tools, which nobody has here. It forgets history, which goes on in a full store,
// and gives freed pages back, which alone lets etcd see the room. Last it ends the
// alarm of a store that was at its quota.
func (s *Store) relieve(ctx context.Context, client *clientv3.Client, st *clientv3.StatusResponse) {
	if s.Room() {
		s.relief.next, s.relief.wait = time.Time{}, 0
		return
	}
	if !s.embedded() || time.Now().Before(s.relief.next) || len(s.relief.past) == 0 {
		return
	}
	s.relief.wait = min(max(2*s.relief.wait, reliefFirst), reliefMax)
	s.relief.next = time.Now().Add(s.relief.wait)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := client.Compact(ctx, s.relief.past[0], clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		s.log.Warn("compacting the store", "error", err)
	}
	// What that freed is to be seen now, not after twice the wait.
	if fresh, err := s.statusOf(ctx, client); err == nil {
		st = fresh
	}
	// Defragmenting stops the store while it copies what is in use. Before anything is
	// refused that must be possible, that is done only if it gives back much and takes
	// moments: a relay whose store stands still for seconds loses its lease. In a store
	// at its quota nothing commits, so freed pages still count as used: there only
	// defragmenting shows how much room there is.
	if !s.isFull.Load() && st.DbSizeInUse > min(st.DbSize/2, quickCopy) {
		return
	}
	// It goes on in the member when nobody waits for it any more: so a stop waits, too.
	whole, done := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer done()
	if _, err := client.Defragment(whole, client.Endpoints()[0]); err != nil {
		s.log.Warn("defragmenting the store", "error", err)
		return
	}
	if st, err = s.statusOf(ctx, client); err != nil {
		s.log.Warn("asking how full the store is", "error", err)
		return
	}
	if s.isFull.Load() {
		if st.DbSize > s.limit-reserve(s.cfg.QuotaBytes)/2 {
			s.log.Error("the store is full: nothing can be written; raise store.quota_bytes and restart the relay", "bytes", st.DbSize, "quota_bytes", s.cfg.QuotaBytes)
			return
		}
		if _, err := client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
			s.log.Warn("ending the store's alarm", "error", err)
			return
		}
		s.log.Warn("the store was full and can be written again", "bytes", st.DbSize, "quota_bytes", s.cfg.QuotaBytes)
		if st, err = s.statusOf(ctx, client); err != nil {
			return // the next probe asks again
		}
	}
	s.measure(st)
}
