package store

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	probeEvery  = 2 * time.Second
	detailEvery = 5 // probes
)

// health is what the last probes found.
type health struct {
	quorum  bool
	detail  string // why there is no quorum
	alarm   string // what the store itself reports
	members int
	size    int64
}

// runHealth asks the store now and then whether it has a quorum. A revision that
// went back shows that another state was put in its place: the mirror starts over.
func (s *Store) runHealth(ctx context.Context) error {
	t := time.NewTicker(probeEvery)
	defer t.Stop()
	for n := 0; ; n++ {
		before := s.mirror.revision()
		revision, err := s.probe(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil && revision < before {
			s.log.Warn("the store's revision went back: it was restored or replaced", "had", before, "has", revision)
			s.relist.Store(true)
			s.askProgress()
		}
		s.setQuorum(err)
		if err == nil && (n%detailEvery == 0 || s.isFull.Load()) {
			s.details(ctx)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
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

// details reads what a probe does not tell.
func (s *Store) details(ctx context.Context) {
	client := s.client.Load()
	if client == nil {
		return
	}
	actx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	list, errList := client.MemberList(actx)
	st, errStatus := client.Status(actx, client.Endpoints()[0])
	if err := errors.Join(errList, errStatus); err != nil {
		s.log.Debug("no details of the store", "error", err)
	}
	s.mu.Lock()
	if errList == nil {
		s.health.members = len(list.Members)
	}
	if errStatus == nil {
		s.health.size, s.health.alarm = st.DbSize, ""
		if len(st.Errors) > 0 {
			s.health.alarm = "the store reports: " + st.Errors[0]
		}
	}
	alarm := s.health.alarm
	s.mu.Unlock()
	s.isFull.Store(alarm != "")
	if alarm != "" && s.embedded() {
		s.relieve(ctx, client, st)
	}
}

// relieve ends the alarm of an embedded store that was full once there is room
// again: etcd leaves that to an operator with its own tools, which nobody has
// here. Room comes from compaction, which goes on in a full store.
func (s *Store) relieve(ctx context.Context, client *clientv3.Client, st *clientv3.StatusResponse) {
	if st.DbSizeInUse > s.cfg.QuotaBytes/10*8 {
		s.log.Error("the store is full: nothing new can be written", "used_bytes", st.DbSizeInUse, "quota_bytes", s.cfg.QuotaBytes)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := client.Defragment(ctx, client.Endpoints()[0]); err != nil {
		s.log.Warn("defragmenting the store", "error", err)
		return
	}
	if _, err := client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		s.log.Warn("ending the store's alarm", "error", err)
		return
	}
	s.log.Warn("the store was full and has room again", "used_bytes", st.DbSizeInUse, "quota_bytes", s.cfg.QuotaBytes)
}
