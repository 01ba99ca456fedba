package store

import (
	"context"
	"sync"

	"github.com/adit-tunnel/adit/shared/ident"
)

// Kind is a kind of record.
type Kind string

// The kinds of record that change.
const (
	KindAgent      Kind = "agent"
	KindTunnel     Kind = "tunnel"
	KindPresence   Kind = "presence"
	KindCredential Kind = "credential"
	KindRelay      Kind = "relay"
	KindLink       Kind = "link" // a named link
	KindTeam       Kind = "team"
	KindUser       Kind = "user"
	KindMember     Kind = "member"
	KindSignIn     Kind = "sign_in"
	KindInvite     Kind = "invite"
	KindPairing    Kind = "pairing"
	KindKnock      Kind = "knock"
)

// Change says that a record changed or ended; the new state is in the mirror. Of
// several changes of one record only the last state can be read.
type Change struct {
	Kind       Kind
	Key        ident.AgentKey // agent, tunnel and link (its agent), presence; credential: only the team
	Session    ident.SessionID
	Credential ident.CredentialID
	Relay      ident.RelayID
	Link       ident.LinkID // with Session
	User       ident.UserID // user, member, sign-in: whose
	Name       string       // of the record within its kind; of kinds without a field of their own
	Deleted    bool
}

// Subscription receives the changes from its beginning on.
type Subscription struct {
	all  *subscriptions
	c    chan Change
	mu   sync.Mutex
	lost bool
	done bool
}

// subscriptions are those of one store.
type subscriptions struct {
	mu   sync.Mutex
	set  map[*Subscription]struct{}
	done bool
}

// Subscribe returns a subscription whose channel holds so many changes. What was
// before is not sent: subscribe first, then read. A subscriber that does not keep
// up loses changes, never holds up others, and is told by Lost.
func (s *Store) Subscribe(buffer int) *Subscription {
	sub := &Subscription{all: &s.subs, c: make(chan Change, max(buffer, 1))}
	s.subs.mu.Lock()
	defer s.subs.mu.Unlock()
	if s.subs.done {
		sub.done = true
		close(sub.c)
		return sub
	}
	if s.subs.set == nil {
		s.subs.set = map[*Subscription]struct{}{}
	}
	s.subs.set[sub] = struct{}{}
	return sub
}

// Follow calls changed for each change from now on, and with a change of no kind when it
// may have missed some because so many waited, until ctx ends.
func (s *Store) Follow(ctx context.Context, buffer int, changed func(Change)) error {
	sub := s.Subscribe(buffer)
	defer sub.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case c, ok := <-sub.C():
			if !ok { // the store has stopped: nothing will change any more
				<-ctx.Done()
				return nil
			}
			if sub.Lost() {
				c = Change{}
			}
			changed(c)
		}
	}
}

// C is the channel of changes. It is closed by Close and when the store's Run
// ends.
func (b *Subscription) C() <-chan Change { return b.c }

// Lost says whether changes were lost since it was last asked. Ask it after each
// receive, and when true read everything again.
func (b *Subscription) Lost() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	lost := b.lost
	b.lost = false
	return lost
}

// Close ends the subscription.
func (b *Subscription) Close() {
	b.all.mu.Lock()
	delete(b.all.set, b)
	b.all.mu.Unlock()
	b.end()
}

func (b *Subscription) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.done {
		b.done = true
		close(b.c)
	}
}

// push sends or drops. The lock is held over both, so that a subscriber which has
// emptied the channel finds the loss noted.
func (b *Subscription) push(c Change) (lost bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done {
		return false
	}
	select {
	case b.c <- c:
		return false
	default:
		lost = !b.lost
		b.lost = true
		return lost
	}
}

// publish sends changes to all subscribers.
func (s *Store) publish(changes []Change) {
	if len(changes) == 0 {
		return
	}
	s.subs.mu.Lock()
	defer s.subs.mu.Unlock()
	for sub := range s.subs.set {
		for _, c := range changes {
			if sub.push(c) {
				s.metrics.lost.Inc()
			}
		}
	}
}

// close ends all subscriptions.
func (a *subscriptions) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done = true
	for sub := range a.set {
		delete(a.set, sub)
		sub.end()
	}
}
