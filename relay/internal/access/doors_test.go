package access_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

const (
	rightPIN = "sesame-7"
	browser  = "Mozilla/5.0 (X11) Firefox/140"
)

// porch is the store of a pool, with one tunnel, and the log of who did what.
type porch struct {
	mu     sync.Mutex
	now    time.Time
	tunnel store.TunnelRecord
	knocks map[string]store.KnockRecord
	tries  map[string]store.PINTriesRecord
	used   map[string]bool
	events []audit.Record
	reads  int           // of the count of tries
	inside int           // who is at the count now
	most   int           // at once
	hold   chan struct{} // nil: nobody is held there
}

func newPorch(mode api.AccessMode) *porch {
	now := time.Unix(1_000_000, 0)
	p := &porch{now: now, knocks: map[string]store.KnockRecord{}, tries: map[string]store.PINTriesRecord{}, used: map[string]bool{}}
	p.tunnel = store.TunnelRecord{Session: ident.NewSessionID(), Team: "team", Agent: "gpu-1", ExpiresAt: now.Add(48 * time.Hour)}
	p.tunnel.Access = &store.AccessRule{Mode: mode, Version: 7}
	return p
}

func (p *porch) clock() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

func (p *porch) pass(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = p.now.Add(d)
}

func (p *porch) Knock(_ ident.SessionID, id string) (store.KnockRecord, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, ok := p.knocks[id]
	return k, ok
}

func (p *porch) Knocks(ident.SessionID) (out []store.KnockRecord) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.knocks {
		out = append(out, k)
	}
	return out
}

func (p *porch) CreateKnock(_ context.Context, r store.KnockRecord) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.knocks[r.ID] = r
	return nil
}

func (p *porch) ChangeKnock(_ context.Context, _ ident.SessionID, id string, change func(*store.KnockRecord) error) (store.KnockRecord, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, ok := p.knocks[id]
	if !ok {
		return k, store.ErrNotFound
	}
	p.mu.Unlock() // change asks for the time
	err := change(&k)
	p.mu.Lock()
	if errors.Is(err, store.ErrUnchanged) {
		return k, nil
	}
	if err == nil {
		p.knocks[id] = k
	}
	return k, err
}

func (p *porch) ChangePINTries(_ context.Context, name string, change func(*store.PINTriesRecord) error) (store.PINTriesRecord, error) {
	p.mu.Lock()
	p.reads++
	p.inside++
	p.most = max(p.most, p.inside)
	hold := p.hold
	p.mu.Unlock()
	if hold != nil {
		<-hold
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inside--
	r := p.tries[name]
	err := change(&r)
	if errors.Is(err, store.ErrUnchanged) {
		return r, nil
	}
	if err == nil {
		p.tries[name] = r
	}
	return r, err
}

func (p *porch) UseTicket(_ context.Context, hash string, _ time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used[hash] {
		return store.ErrExists
	}
	p.used[hash] = true
	return nil
}

func (p *porch) CatchUp(context.Context) error { return nil }

func (p *porch) Append(_ context.Context, r audit.Record) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, r)
	return nil
}

func (p *porch) count(e audit.Event) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.events {
		if r.Event == e {
			n++
		}
	}
	return n
}

// The rest of access.Store and access.Creds: nobody here is signed in.
func (p *porch) Tunnel(ident.SessionID) (store.TunnelRecord, bool) { return p.tunnel, true }
func (p *porch) Link(ident.LinkID) (store.LinkRecord, bool)        { return store.LinkRecord{}, false }
func (p *porch) User(ident.UserID) (store.UserRecord, bool)        { return store.UserRecord{}, false }
func (p *porch) SignIn(string) (store.SignInRecord, bool)          { return store.SignInRecord{}, false }
func (p *porch) SignIns(ident.UserID) []store.SignInRecord         { return nil }
func (p *porch) Team(ident.TeamID) (store.TeamRecord, bool)        { return store.TeamRecord{}, false }
func (p *porch) Owns(creds.Principal, store.Opened) bool           { return false }
func (p *porch) Valid(creds.Principal) bool                        { return false }
func (p *porch) Shown(context.Context, []string, ident.TeamID, netip.Addr) (creds.Principal, error) {
	return creds.Principal{}, api.NewProblem(api.CodeUnauthenticated, "unknown secret")
}

func (p *porch) SignedIn(context.Context, string, ident.TeamID, netip.Addr) (creds.Principal, error) {
	return creds.Principal{}, api.NewProblem(api.CodeNotSignedIn, "nobody")
}

// relay is one relay of the pool.
type relay struct {
	*access.Doors
	access *access.Access
}

func (p *porch) relay() relay {
	a := access.New(access.Config{Store: p, Creds: p, Key: ident.ClusterKey{1}, Now: p.clock})
	return relay{access.NewDoors(access.DoorsConfig{Access: a, Store: p, Audit: p, Now: p.clock}), a}
}

func (p *porch) from(addr string) access.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.tunnel
	return access.Request{Tunnel: &t, Remote: netip.MustParseAddr(addr), Browser: browser}
}

func (p *porch) setPIN(t *testing.T, version uint64) {
	t.Helper()
	hash, err := access.HashPIN(rightPIN)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tunnel.Access = &store.AccessRule{Mode: api.AccessPIN, PINHash: hash, Version: version}
}

// says is what a problem says first: its code.
func says(err error) api.Code {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Code
	}
	if err != nil {
		return api.Code(err.Error())
	}
	return "let in"
}

func wantSays(t *testing.T, what string, err error, want api.Code) {
	t.Helper()
	if got := says(err); got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

func TestTheRightPINIsAPass(t *testing.T) {
	p := newPorch(api.AccessPIN)
	p.setPIN(t, 7)
	one, two := p.relay(), p.relay()
	_, _, err := one.PIN(t.Context(), p.from("192.0.2.1"), "sesame-8")
	wantSays(t, "a wrong PIN", err, api.CodePINRequired)
	pass, ends, err := one.PIN(t.Context(), p.from("192.0.2.1"), rightPIN)
	if err != nil || pass == "" || ends.Sub(p.clock()) != access.MaxPass {
		t.Fatalf("the right PIN: %v, until %s", err, ends)
	}
	req := p.from("198.51.100.1")
	req.Pass = pass
	v, err := two.access.Check(t.Context(), req)
	if err != nil || v.How != access.ByPIN || v.User != "" {
		t.Errorf("the pass at the other relay: %+v, %v", v, err)
	}
	p.setPIN(t, 8)
	req.Tunnel = p.from("192.0.2.1").Tunnel
	_, err = two.access.Check(t.Context(), req)
	wantSays(t, "the pass after the owner set another PIN", err, api.CodePINRequired)
}

// Who shares an address with many others, all of whom know the PIN, is not kept out.
func TestRightPINsAreNoTries(t *testing.T) {
	p := newPorch(api.AccessPIN)
	p.setPIN(t, 7)
	r := p.relay()
	for i := range 8 {
		if _, _, err := r.PIN(t.Context(), p.from("192.0.2.1"), rightPIN); err != nil {
			t.Fatalf("the right PIN, for the %dth time: %v", i+1, err)
		}
	}
	if got := p.tries["tunnel/"+string(p.tunnel.Session)].Wrong; got != 0 {
		t.Errorf("%d wrong PINs are counted, and there was none", got)
	}
}

func TestFivePINsAMinute(t *testing.T) {
	p := newPorch(api.AccessPIN)
	p.setPIN(t, 7)
	r := p.relay()
	try := func(addr string) error {
		_, _, err := r.PIN(t.Context(), p.from(addr), "wrong-pin")
		return err
	}
	for i := range 5 {
		wantSays(t, fmt.Sprintf("try %d", i+1), try(fmt.Sprintf("2001:db8::%d", i)), api.CodePINRequired)
	}
	err := try("2001:db8::99")
	wantSays(t, "the sixth, of the same network", err, api.CodeTooManyTries)
	if problem, ok := errors.AsType[*api.Problem](err); !ok || problem.RetrySeconds() < 1 {
		t.Errorf("it does not say when to try again: %v", err)
	}
	_, _, err = r.PIN(t.Context(), p.from("2001:db8::7"), rightPIN)
	wantSays(t, "the right one, of the same network", err, api.CodeTooManyTries)
	wantSays(t, "another network", try("2001:db8:1::1"), api.CodePINRequired)
	p.pass(12 * time.Second)
	wantSays(t, "a while later", try("2001:db8::1"), api.CodePINRequired)
}

// A thousand addresses, two relays: no more than 20 guesses are looked at. Who is in stays
// in, and the owner ends it with a word.
func TestAThousandAddressesGuess(t *testing.T) {
	p := newPorch(api.AccessPIN)
	p.setPIN(t, 7)
	relays := []relay{p.relay(), p.relay()}
	early, _, err := relays[0].PIN(t.Context(), p.from("203.0.113.1"), rightPIN)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	said := map[api.Code]int{}
	for i := range 1000 {
		wg.Go(func() {
			addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String()
			_, _, err := relays[i%2].PIN(t.Context(), p.from(addr), fmt.Sprintf("guess-%d", i))
			mu.Lock()
			defer mu.Unlock()
			said[says(err)]++
		})
	}
	wg.Wait()
	if said[api.CodePINRequired] != access.MaxWrongPINs-1 || said[api.CodePINRequired]+said[api.CodePINLocked]+said[api.CodeTooManyRequests] != 1000 {
		t.Errorf("1000 guesses were answered %v; 19 times that the PIN is wrong, then that it is locked", said)
	}
	if got := p.count(audit.PINLocked); got != 1 {
		t.Errorf("the audit log says %d times that the PIN is locked, want once", got)
	}
	for i, r := range relays {
		_, _, err := r.PIN(t.Context(), p.from("203.0.113.2"), rightPIN)
		wantSays(t, fmt.Sprintf("the right PIN at relay %d", i), err, api.CodePINLocked)
	}
	before := p.reads
	for i := range 100 {
		_, _, _ = relays[i%2].PIN(t.Context(), p.from(fmt.Sprintf("10.1.0.%d", i)), "another")
	}
	if p.reads != before {
		t.Errorf("the store was asked %d times more of what is known to be locked", p.reads-before)
	}
	req := p.from("203.0.113.1")
	req.Pass = early
	if _, err := relays[1].access.Check(t.Context(), req); err != nil {
		t.Errorf("who was let in before is locked out: %v", err)
	}
	p.setPIN(t, 8)
	if _, _, err := relays[1].PIN(t.Context(), p.from("203.0.113.2"), rightPIN); err != nil {
		t.Errorf("after the owner said the access anew: %v", err)
	}
}

// However many PINs come, the relay works on two of them, and says so to who cannot wait.
func TestAFloodOfPINsIsBounded(t *testing.T) {
	p := newPorch(api.AccessPIN)
	p.setPIN(t, 7)
	p.hold = make(chan struct{})
	r := p.relay()
	var wg sync.WaitGroup
	var mu sync.Mutex
	busy := 0
	for i := range 200 {
		wg.Go(func() {
			_, _, err := r.PIN(t.Context(), p.from(fmt.Sprintf("10.0.1.%d", i)), "wrong-pin")
			mu.Lock()
			defer mu.Unlock()
			if says(err) == api.CodeTooManyRequests {
				busy++
			}
		})
	}
	testkit.Eventually(t, "all but those in the queue are turned away", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return busy == 200-18
	})
	close(p.hold)
	wg.Wait()
	if p.most != 2 {
		t.Errorf("%d PINs were worked on at once, want 2", p.most)
	}
}

func TestAPINFromElsewhere(t *testing.T) {
	p := newPorch(api.AccessPIN)
	p.setPIN(t, 7)
	p.tunnel.Access.From = []string{"192.0.2.0/24"}
	r := p.relay()
	_, _, err := r.PIN(t.Context(), p.from("198.51.100.1"), rightPIN)
	wantSays(t, "the right PIN from another network", err, api.CodeAccessDenied)
	if p.reads != 0 {
		t.Error("it was looked at")
	}
	p.tunnel.Access = &store.AccessRule{Mode: api.AccessTeam, Version: 9}
	if pass, _, err := r.PIN(t.Context(), p.from("192.0.2.1"), rightPIN); pass != "" || err != nil {
		t.Errorf("a PIN where none is asked for any more makes a pass %q, %v", pass, err)
	}
	p.tunnel.Access = &store.AccessRule{Mode: api.AccessPIN, PINHash: "$argon2id$v=19$m=4194304,t=2,p=1$AAAA$AAAA", Version: 10}
	_, _, err = r.PIN(t.Context(), p.from("192.0.2.1"), rightPIN)
	wantSays(t, "a hash that asks for 4 GiB", err, api.CodeInternal)
}

func TestWhoKnocksIsLetIn(t *testing.T) {
	p := newPorch(api.AccessKnock)
	one, two := p.relay(), p.relay()
	secret, err := one.Knock(t.Context(), p.from("192.0.2.1"), " Alice ")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = two.Waited(t.Context(), p.from("192.0.2.1"), secret)
	wantSays(t, "nobody has answered", err, api.Code(access.ErrWaiting.Error()))
	list := two.Knocks(p.tunnel.Session)
	if len(list) != 1 || list[0].Name != "Alice" || list[0].RemoteAddr != "192.0.2.1" || list[0].Browser != browser {
		t.Fatalf("who waits: %+v", list)
	}
	for _, forged := range []string{list[0].KnockID, list[0].KnockID + ".", list[0].KnockID + ".guess", "." + secret.Reveal(), ""} {
		_, _, err := two.Waited(t.Context(), p.from("192.0.2.1"), ident.Secret(forged))
		wantSays(t, "a secret that was made up", err, api.Code(access.ErrNoKnock.Error()))
	}
	by := creds.Principal{Kind: creds.KindUser, Name: "user:bob"}
	if done, err := two.Answer(t.Context(), by, p.tunnel, list[0].KnockID, true); err != nil || done != "admitted Alice, from 192.0.2.1" {
		t.Fatalf("admit: %q, %v", done, err)
	}
	if done, err := two.Answer(t.Context(), by, p.tunnel, list[0].KnockID, true); err != nil || done != "" {
		t.Errorf("the same answer again: %q, %v", done, err)
	}
	_, err = one.Answer(t.Context(), by, p.tunnel, list[0].KnockID, false)
	wantSays(t, "another answer", err, api.CodeKnockNotFound)
	other := p.from("192.0.2.1")
	other.Browser = "curl/8"
	_, _, err = one.Waited(t.Context(), other, secret)
	wantSays(t, "another browser with it", err, api.Code(access.ErrNoKnock.Error()))
	pass, ends, err := one.Waited(t.Context(), p.from("192.0.2.1"), secret)
	if err != nil || ends.Sub(p.clock()) != access.MaxPass {
		t.Fatalf("let in: %v, until %s", err, ends)
	}
	for _, r := range []relay{one, two} {
		_, _, err = r.Waited(t.Context(), p.from("192.0.2.1"), secret)
		wantSays(t, "the knock's secret again", err, api.Code(access.ErrNoKnock.Error()))
	}
	req := p.from("192.0.2.1")
	req.Pass = pass
	if v, err := two.access.Check(t.Context(), req); err != nil || v.How != access.ByKnock || v.Name != "Alice" || v.User != "" {
		t.Errorf("the pass: %+v, %v", v, err)
	}
	if len(one.Knocks(p.tunnel.Session)) != 0 {
		t.Error("who was let in still waits")
	}
	if p.count(audit.TunnelKnock) != 1 {
		t.Error("the audit log does not have the knock")
	}
}

// Who was let in and has not come yet does not outlast a change of who may use the tunnel.
func TestAKnockIsForOneVersion(t *testing.T) {
	p := newPorch(api.AccessKnock)
	r := p.relay()
	by := creds.Principal{Name: "user:bob"}
	admitted, err := r.Knock(t.Context(), p.from("192.0.2.1"), "Mallory")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Answer(t.Context(), by, p.tunnel, r.Knocks(p.tunnel.Session)[0].KnockID, true); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Knock(t.Context(), p.from("192.0.2.2"), "Carol"); err != nil {
		t.Fatal(err)
	}
	waits := r.Knocks(p.tunnel.Session)[0].KnockID
	p.tunnel.Access = &store.AccessRule{Mode: api.AccessKnock, Version: 8}
	_, _, err = r.Waited(t.Context(), p.from("192.0.2.1"), admitted)
	wantSays(t, "admitted before the change", err, api.Code(access.ErrNoKnock.Error()))
	if n := len(r.Knocks(p.tunnel.Session)); n != 0 {
		t.Errorf("%d wait who cannot be let in", n)
	}
	_, err = r.Answer(t.Context(), by, p.tunnel, waits, true)
	wantSays(t, "an answer to who knocked before the change", err, api.CodeKnockNotFound)
}

func TestWhoKnocksIsNotLetIn(t *testing.T) {
	p := newPorch(api.AccessKnock)
	r := p.relay()
	by := creds.Principal{Name: "user:bob"}
	for _, name := range []string{"", "  ", strings.Repeat("x", 65), "a\x1b[31m"} {
		_, err := r.Knock(t.Context(), p.from("192.0.2.1"), name)
		wantSays(t, fmt.Sprintf("the name %q", name), err, api.CodeOutOfRange)
	}
	secret, err := r.Knock(t.Context(), p.from("192.0.2.1"), "Mallory")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Answer(t.Context(), by, p.tunnel, r.Knocks(p.tunnel.Session)[0].KnockID, false); err != nil {
		t.Fatal(err)
	}
	_, _, err = r.Waited(t.Context(), p.from("192.0.2.1"), secret)
	wantSays(t, "refused", err, api.CodeAccessDenied)
	late, err := r.Knock(t.Context(), p.from("192.0.2.2"), "Late")
	if err != nil {
		t.Fatal(err)
	}
	id := r.Knocks(p.tunnel.Session)[0].KnockID
	p.pass(access.KnockTime)
	_, _, err = r.Waited(t.Context(), p.from("192.0.2.2"), late)
	wantSays(t, "after ten minutes", err, api.Code(access.ErrNoKnock.Error()))
	_, err = r.Answer(t.Context(), by, p.tunnel, id, true)
	wantSays(t, "an answer after ten minutes", err, api.CodeKnockNotFound)
	p.tunnel.Access.From = []string{"198.51.100.0/24"}
	_, err = r.Knock(t.Context(), p.from("192.0.2.3"), "Away")
	wantSays(t, "from another network", err, api.CodeAccessDenied)
	p.tunnel.Access = nil
	if secret, err := r.Knock(t.Context(), p.from("192.0.2.3"), "Guest"); secret != "" || err != nil {
		t.Errorf("a knock where nobody needs to: %q, %v", secret, err)
	}
}

// The waiting room is bounded, for all and for each network; who was refused does not
// come back again and again.
func TestTheWaitingRoomIsBounded(t *testing.T) {
	p := newPorch(api.AccessKnock)
	r := p.relay()
	knock := func(addr string) error {
		_, err := r.Knock(t.Context(), p.from(addr), "Guest")
		return err
	}
	var wg sync.WaitGroup
	for i := range 200 { // at once: none of them sees the others' records
		wg.Go(func() { _ = knock(fmt.Sprintf("10.0.2.%d", i)) })
	}
	wg.Wait()
	if n := len(r.Knocks(p.tunnel.Session)); n != 20 {
		t.Errorf("%d wait, want 20", n)
	}
	wantSays(t, "one more", knock("192.0.2.1"), api.CodeTooManyRequests)
	for _, k := range r.Knocks(p.tunnel.Session) {
		if _, err := r.Answer(t.Context(), creds.Principal{Name: "user:bob"}, p.tunnel, k.KnockID, false); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		wantSays(t, fmt.Sprintf("knock %d of one network", i+1), knock(fmt.Sprintf("2001:db8::%d", i)), "let in")
	}
	wantSays(t, "its fourth", knock("2001:db8::9"), api.CodeTooManyTries)
	for _, k := range r.Knocks(p.tunnel.Session) {
		if _, err := r.Answer(t.Context(), creds.Principal{Name: "user:bob"}, p.tunnel, k.KnockID, false); err != nil {
			t.Fatal(err)
		}
	}
	p.pass(time.Minute)
	wantSays(t, "after it was refused three times", knock("2001:db8::9"), api.CodeTooManyTries)
	p.pass(access.KnockTime)
	wantSays(t, "ten minutes later", knock("2001:db8::9"), "let in")
	for range 20 {
		if says(knock("2001:db8::9")) == api.CodeTooManyTries {
			return
		}
	}
	t.Error("one network knocks as often as it likes")
}
