package store

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	probeEvery  = 2 * time.Second
	sizeEvery   = 250 * time.Millisecond // of a store that fills
	detailEvery = 5                      // probes: the list of members
)

// health is what the last probes found.
type health struct {
	quorum  bool
	detail  string // why there is no quorum
	alarm   string // what the store itself reports
	members int
	size    int64
	quota   int64 // 0: not known
}

// runHealth asks the store now and then whether it has a quorum.
func (s *Store) runHealth(ctx context.Context) error {
	t := time.NewTicker(probeEvery)
	defer t.Stop()
	sizes := time.NewTicker(sizeEvery)
	defer sizes.Stop()
	var last sighting
	for n := 0; ; n++ {
		now := sighting{mirror: s.mirror.revision()}
		var err error
		if now.store, err = s.probe(ctx); ctx.Err() != nil {
			return nil
		}
		s.setQuorum(err)
		if err == nil {
			s.compare(last, now)
			last = now
		}
		if err == nil {
			s.relief.saw(now.store)
			s.details(ctx, n%detailEvery == 0)
		}
		for next := false; !next; {
			select {
			case <-t.C:
				next = true
			case <-sizes.C:
				if s.filling() {
					s.details(ctx, false)
				}
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// sighting is how far the mirror was, and after that the store.
type sighting struct{ mirror, store int64 }

// compare finds what the watch itself cannot tell. A revision that went back shows
// that another state was put in the store's place: the mirror starts over. A mirror
// that has not moved towards where the store was a while ago hangs on a member that
// is cut off from the others and does not know it.
func (s *Store) compare(last, now sighting) {
	if now.store < now.mirror {
		s.log.Warn("the store's revision went back: it was restored or replaced", "had", now.mirror, "has", now.store)
		s.relist.Store(true)
		s.askProgress()
		return
	}
	stuck := now.mirror > 0 && now.mirror == last.mirror && now.mirror < last.store
	if stuck {
		s.reopenWatch()
	}
	if stuck != s.stuck.Swap(stuck) {
		s.log.Warn("comparing the mirror with the store", "stuck", stuck, "mirror", now.mirror, "store", now.store)
	}
}

// probe is one linearizable read: only a quorum can answer it.
func (s *Store) probe(ctx context.Context) (int64, error) {
	defer s.metrics.took(opProbe)()
	_, revision, err := s.get(ctx, clusterKey, clientv3.WithKeysOnly())
	return revision, err
}

func (s *Store) setQuorum(err error) {
	s.mu.Lock()
	had := s.health.quorum
	s.health.quorum, s.health.detail = err == nil, ""
	if err != nil {
		s.health.detail = "the store does not answer: " + err.Error()
	}
	s.mu.Unlock()
	if had && err != nil {
		s.log.Warn("the store does not answer", "error", err)
	}
	if !had && err == nil {
		s.log.Info("the store answers")
	}
}

// details reads what a probe does not tell: the size each time, the members now and
// then.
func (s *Store) details(ctx context.Context, members bool) {
	client := s.client.Load()
	if client == nil {
		return
	}
	actx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if members {
		list, err := client.MemberList(actx)
		if err != nil {
			s.log.Debug("no list of the store's members", "error", err)
		} else {
			s.mu.Lock()
			s.health.members = len(list.Members)
			s.mu.Unlock()
		}
	}
	st, err := s.statusOf(actx, client)
	if err != nil {
		s.log.Debug("no details of the store", "error", err)
		return
	}
	s.measure(st)
	s.relieve(ctx, client, st)
}

// statusOf asks one endpoint after the other until one answers.
func (s *Store) statusOf(ctx context.Context, client *clientv3.Client) (st *clientv3.StatusResponse, err error) {
	endpoints := client.Endpoints()
	for _, e := range endpoints {
		ectx, cancel := context.WithTimeout(ctx, attemptTimeout/time.Duration(len(endpoints)))
		st, err = client.Status(ectx, e)
		cancel()
		if err != nil {
			continue
		}
		if tooOld(st.Version) {
			s.versionOnce.Do(func() {
				s.log.Error("this etcd is too old: a miss may be wrongly confirmed", "endpoint", e, "version", st.Version, "needed", "3.5.10")
			})
		}
		return st, nil
	}
	return nil, err
}

// tooOld says whether a version of etcd may report progress before the events it
// is about (fixed in 3.5.8; in 3.5.10 for streams that are shared).
func tooOld(version string) bool {
	var major, minor, patch int
	if n, _ := fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch); n != 3 {
		return false
	}
	return major < 3 || major == 3 && (minor < 5 || minor == 5 && patch < 10)
}
