package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// AccessRule says who may use a tunnel, or come by a named link. No rule: who has the URL.
type AccessRule struct {
	Mode     api.AccessMode `json:"mode"`
	People   []string       `json:"people,omitempty"`
	PINHash  string         `json:"pin_hash,omitempty"` // argon2id, with its parameters
	From     []string       `json:"from,omitempty"`
	ReadOnly bool           `json:"read_only,omitempty"`
	// Version grows with each change: a pass is good for the version that it was made for.
	Version uint64 `json:"version"`
}

// String says a rule in words, for audit log and events. It names nobody.
func (r *AccessRule) String() string {
	if r == nil {
		return "access " + string(api.AccessAnyone)
	}
	text := "access " + string(r.Mode)
	if n := len(r.People); n > 0 {
		text += fmt.Sprintf(" (%d named)", n)
	}
	if len(r.From) > 0 {
		text += " from " + strings.Join(r.From, " ")
	}
	if r.ReadOnly {
		text += ", read only"
	}
	return text
}

// AllApplyAccess says whether each relay of the pool applies rules of access. One of the
// last release lets in who has the URL, and writes tunnels' records without their rules.
func (s *Store) AllApplyAccess() bool {
	return !slices.ContainsFunc(s.Relays(), func(r RelayRecord) bool { return !r.Access })
}

// KnockRecord is somebody who waits at a tunnel. It ends by itself.
type KnockRecord struct {
	ID         string          `json:"id"` // random, not a secret
	Session    ident.SessionID `json:"session_id"`
	Link       ident.LinkID    `json:"link,omitempty"`
	Browser    string          `json:"browser_sha256"` // hash of what binds the knock to its browser
	Name       string          `json:"name,omitempty"`
	UserAgent  string          `json:"user_agent,omitempty"`
	RemoteAddr string          `json:"remote_addr"`
	At         time.Time       `json:"at"`
	ExpiresAt  time.Time       `json:"expires_at"`
	Version    uint64          `json:"version,omitempty"` // of the rule that was knocked at
	// Answer is "admitted" or "refused", by whom; empty: nobody has answered.
	Answer string `json:"answer,omitempty"`
	By     string `json:"by,omitempty"`
}

// PINTriesRecord counts wrong PINs of a tunnel or named link, over the whole pool. It is
// not mirrored.
type PINTriesRecord struct {
	Wrong   int    `json:"wrong"`
	Version uint64 `json:"version"` // of the rule that they were of
}

// Knock returns somebody who waits.
func (s *Store) Knock(id ident.SessionID, knock string) (KnockRecord, bool) {
	return lookup(s.mirror, s.mirror.people.knocks.of, string(id)+"/"+knock)
}

// Knocks returns those who wait at a tunnel, answered ones too.
func (s *Store) Knocks(id ident.SessionID) []KnockRecord {
	return records(s.mirror, s.mirror.people.knocks.in, string(id))
}

// CreateKnock writes that somebody waits, until its expiry.
func (s *Store) CreateKnock(ctx context.Context, r KnockRecord) error {
	return create(ctx, s, "knock at tunnel "+string(r.Session), key(dirKnock, string(r.Session)+"/"+r.ID), r, r.ExpiresAt)
}

// ChangeKnock changes one by compare-and-set; ErrNotFound when it has ended.
func (s *Store) ChangeKnock(ctx context.Context, id ident.SessionID, knock string, change func(*KnockRecord) error) (KnockRecord, error) {
	defer s.metrics.took(opPeople)()
	return changeRecord(ctx, s, "answer a knock", key(dirKnock, string(id)+"/"+knock), change)
}

// triesKept is how long wrong PINs are remembered: as long as a tunnel may live, with the
// defaults, and then some.
const triesKept = 30 * 24 * time.Hour

// ChangePINTries changes the count of a tunnel's or named link's wrong PINs by
// compare-and-set; change gets the zero record when there is none. A write whose answer
// is lost may be counted twice. Records end by themselves, long after the tunnel.
func (s *Store) ChangePINTries(ctx context.Context, name string, change func(*PINTriesRecord) error) (PINTriesRecord, error) {
	defer s.metrics.took(opPeople)()
	const doing = "count the tries of a PIN"
	var record PINTriesRecord
	var lease clientv3.LeaseID
	err := s.swap(ctx, doing, key(dirPINTries, name), func(cur *keyValue) (proposal, error) {
		record = PINTriesRecord{}
		if cur != nil {
			if err := json.Unmarshal(cur.value, &record); err != nil {
				return proposal{}, fmt.Errorf("%s: %w", doing, err)
			}
			lease = cur.lease
		}
		if err := change(&record); err != nil {
			return proposal{}, err
		}
		if lease == 0 {
			if !s.Room() {
				return proposal{}, noRoom(doing)
			}
			var err error
			if lease, err = s.grant(ctx, triesKept); err != nil {
				return proposal{}, unavailable(ctx, doing, err)
			}
		}
		value, err := encoded(doing, record)
		return proposal{value: value, lease: lease}, err
	})
	if err != nil {
		return PINTriesRecord{}, err
	}
	return record, nil
}
