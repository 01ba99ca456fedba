package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// progressEvery is how often the watch is asked how far it is; the answer shows
	// that it is alive.
	progressEvery = time.Second
	// staleAfter is the silence after which the mirror may be out of date, and the
	// watch is opened anew, perhaps on another endpoint.
	staleAfter = 5 * time.Second
	listPage   = 500
)

// errRelist ends a watch that cannot be resumed: the history it needs is gone.
var errRelist = errors.New("the mirror must be listed again")

// errSilent ends a watch that says nothing any more.
var errSilent = errors.New("no word from the watch")

// errStuck ends a watch that says it is alive and shows nothing new.
var errStuck = errors.New("the watch stands still while the store goes on")

// stale says whether the mirror may be out of date.
func (s *Store) stale() bool { return s.stuck.Load() || s.silence() > s.staleAfter }

// reopenWatch makes the watch start over, perhaps on another endpoint.
func (s *Store) reopenWatch() {
	s.reopen.Store(true)
	s.askProgress()
}

// silence is the time since the last word from the store; before the first one it
// is the time since the machine started, which is stale too.
func (s *Store) silence() time.Duration {
	return clock() - time.Duration(s.heard.Load())
}

func (s *Store) hear() { s.heard.Store(int64(clock())) }

// runMirror lists the store and follows its changes until ctx ends.
func (s *Store) runMirror(ctx context.Context) error {
	listed := false
	for attempt := 0; ctx.Err() == nil; attempt++ {
		if !listed {
			if err := s.list(ctx); err != nil {
				if ctx.Err() == nil {
					s.log.Debug("listing the store", "error", err)
				}
				pause(ctx, attempt)
				continue
			}
			listed = true
			s.synced.Do(func() { close(s.ready) })
		}
		s.reopen.Store(false)
		began := clock()
		err := s.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if s.relist.Swap(false) || errors.Is(err, errRelist) {
			listed = false
		}
		if clock()-began > time.Second {
			attempt = 0
		}
		s.log.Debug("the watch ended", "error", err, "list_again", !listed)
		pause(ctx, attempt)
	}
	return nil
}

// list brings the mirror to the store's present, whatever it held before: all
// pages are of one revision, and what they do not have is deleted.
func (s *Store) list(ctx context.Context) error {
	defer s.metrics.took(opList)()
	s.metrics.lists.Inc()
	s.mirror.beginList()
	var revision int64
	err := s.pages(ctx, func(kvs []*mvccpb.KeyValue, at int64) error {
		revision = at
		s.publish(s.applyList(kvs))
		s.hear()
		return nil
	})
	if err != nil {
		return err
	}
	s.publish(s.mirror.endList())
	s.mirror.advance(revision)
	return nil
}

// pages reads everything below the root at one revision.
func (s *Store) pages(ctx context.Context, page func(kvs []*mvccpb.KeyValue, at int64) error) error {
	end := clientv3.GetPrefixRangeEnd(root)
	var revision int64
	for key := root; ; {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(listPage)}
		if revision != 0 {
			opts = append(opts, clientv3.WithRev(revision))
		}
		resp, err := s.do(ctx, clientv3.OpGet(key, opts...))
		if err != nil {
			return err
		}
		g := resp.Get()
		if revision == 0 {
			revision = g.Header.Revision // of a linearizable read: no older than what was seen
		}
		if err := page(g.Kvs, revision); err != nil {
			return err
		}
		if !g.More {
			return nil
		}
		key = string(g.Kvs[len(g.Kvs)-1].Key) + "\x00"
	}
}

func (s *Store) applyList(kvs []*mvccpb.KeyValue) []Change {
	commits := make([]commit, 0, len(kvs))
	var faults []error
	for _, kv := range kvs {
		c, err := s.mirror.put(kv)
		if err != nil {
			faults = append(faults, err)
		}
		if c != nil {
			commits = append(commits, c)
		}
	}
	s.reportFaults(faults)
	return s.mirror.commitAll(commits)
}

// reportFaults logs records that cannot be read: somebody else wrote them. The
// mirror keeps what it had.
func (s *Store) reportFaults(faults []error) {
	for _, err := range faults {
		s.log.Error("unreadable record in the store", "error", err)
	}
}

// watch follows the changes from the mirror's revision on, until it must be
// opened anew. Its watcher is its own: a new one uses a new stream, so that it may
// get away from a silent endpoint.
func (s *Store) watch(ctx context.Context) error {
	client := s.client.Load()
	if client == nil {
		return ErrUnavailable
	}
	w := clientv3.NewWatcher(client)
	defer func() { _ = w.Close() }()
	ctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := make(chan struct{})
	defer close(stop)
	wg.Go(func() { s.pump(ctx, w, stop, cancel) })

	// Watch returns only when the watch was created or ctx ended.
	responses := w.Watch(ctx, root, clientv3.WithPrefix(), clientv3.WithRev(s.mirror.revision()+1),
		clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	for r := range responses {
		if err := r.Err(); err != nil {
			if errors.Is(err, rpctypes.ErrCompacted) {
				return fmt.Errorf("%w: revision %d was compacted", errRelist, s.mirror.revision()+1)
			}
			return err
		}
		s.hear()
		s.apply(&r)
	}
	return context.Cause(ctx)
}

// pump asks for progress, regularly and when CatchUp needs it, and cancels the
// watch after too long a silence.
func (s *Store) pump(ctx context.Context, w clientv3.Watcher, stop <-chan struct{}, cancel context.CancelCauseFunc) {
	opened := clock()
	t := time.NewTicker(progressEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-stop:
			return
		case <-t.C:
		case <-s.nudge:
		}
		if s.relist.Load() { // a watch from the other past may wait for long
			cancel(errRelist)
			return
		}
		if s.reopen.Load() {
			cancel(errStuck)
			return
		}
		if s.stale() && clock()-opened > s.staleAfter {
			cancel(errSilent)
			return
		}
		// It may wait for a connection; the next tick must not be missed for that.
		pctx, done := context.WithTimeout(ctx, progressEvery/2)
		err := w.RequestProgress(pctx)
		done()
		if err != nil && ctx.Err() == nil {
			s.log.Debug("asking the watch for its progress", "error", err)
		}
	}
}

// askProgress makes the watch tell how far it is, without waiting for that.
func (s *Store) askProgress() {
	select {
	case s.nudge <- struct{}{}:
	default:
	}
}

// apply brings one response of the watch into the mirror. Events that are known
// already are skipped: a watch resumed on a member that lags may repeat some.
func (s *Store) apply(r *clientv3.WatchResponse) {
	if r.Created {
		return
	}
	had := s.mirror.revision()
	if r.IsProgressNotify() {
		s.mirror.advance(max(had, r.Header.Revision))
		return
	}
	commits := make([]commit, 0, len(r.Events))
	var faults []error
	at := had
	for _, ev := range r.Events {
		if ev.Kv.ModRevision <= had {
			continue
		}
		at = ev.Kv.ModRevision
		if ev.Type == mvccpb.Event_DELETE {
			commits = append(commits, func() *Change { return s.mirror.delete(string(ev.Kv.Key)) })
			continue
		}
		c, err := s.mirror.put(ev.Kv)
		if err != nil {
			faults = append(faults, err)
		}
		if c != nil {
			commits = append(commits, c)
		}
	}
	changes := s.mirror.commitAll(commits)
	// The header's revision may be ahead of the events; it says nothing here.
	s.mirror.advance(at)
	s.publish(changes)
	s.reportFaults(faults)
}

// revision is up to where the mirror has applied the store's history.
func (m *mirror) revision() int64 { return m.rev.Load() }

// advance notes that everything up to rev is applied. After a list of a restored
// store it may go back.
func (m *mirror) advance(rev int64) {
	m.waitMu.Lock()
	defer m.waitMu.Unlock()
	m.rev.Store(rev)
	if m.waiters != nil {
		close(m.waiters)
		m.waiters = nil
	}
}

// wait returns when the mirror has applied rev.
func (m *mirror) wait(ctx context.Context, rev int64) error {
	for {
		m.waitMu.Lock()
		if m.rev.Load() >= rev {
			m.waitMu.Unlock()
			return nil
		}
		if m.waiters == nil {
			m.waiters = make(chan struct{})
		}
		c := m.waiters
		m.waitMu.Unlock()
		select {
		case <-c:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
