package namedlinks_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/gate/gatetest"
	"github.com/adit-tunnel/adit/relay/internal/namedlinks"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// records keeps links in memory, and tells of their changes.
type records struct {
	mu      sync.Mutex
	links   map[ident.LinkID]store.LinkRecord
	creds   map[ident.CredentialID]store.CredentialRecord
	members map[ident.UserID]store.MemberRecord
	feeds   []*feed
	down    bool
	reads   atomic.Int64 // that confirm
}

type feed struct{ c chan store.Change }

func (f *feed) C() <-chan store.Change { return f.c }
func (f *feed) Lost() bool             { return false }
func (f *feed) Close()                 {}

func (r *records) Subscribe(n int) gate.Feed {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &feed{make(chan store.Change, n)}
	r.feeds = append(r.feeds, f)
	return f
}

func (r *records) tell(l store.LinkRecord, deleted bool) {
	for _, f := range r.feeds {
		f.c <- store.Change{Kind: store.KindLink, Session: l.Session, Link: l.ID, Deleted: deleted}
	}
}

func (r *records) Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.members[user]
	return m, ok && m.Team == team
}

// member writes a person's place in a team.
func (r *records) member(m store.MemberRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members = map[ident.UserID]store.MemberRecord{m.User: m}
	for _, f := range r.feeds {
		f.c <- store.Change{Kind: store.KindMember, Key: ident.AgentKey{Team: m.Team}, User: m.User}
	}
}

func (r *records) Credential(id ident.CredentialID) (store.CredentialRecord, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.creds[id]
	return c, ok
}

// credential writes a credential.
func (r *records) credential(c store.CredentialRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.creds == nil {
		r.creds = map[ident.CredentialID]store.CredentialRecord{}
	}
	r.creds[c.ID] = c
	for _, f := range r.feeds {
		f.c <- store.Change{Kind: store.KindCredential, Credential: c.ID}
	}
}

func (r *records) CreateLink(_ context.Context, l store.LinkRecord, most int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return store.ErrUnavailable
	}
	if len(r.links) >= most {
		return store.ErrLimit
	}
	r.links[l.ID] = l
	r.tell(l, false)
	return nil
}

func (r *records) UpdateLink(_ context.Context, _ ident.SessionID, id ident.LinkID, change func(*store.LinkRecord) error) (store.LinkRecord, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.links[id]
	switch {
	case r.down:
		return l, store.ErrUnavailable
	case !ok:
		return l, store.ErrNotFound
	}
	l.Viewers = slices.Clone(l.Viewers)
	if err := change(&l); err != nil {
		if errors.Is(err, store.ErrUnchanged) {
			return l, nil
		}
		return l, err
	}
	r.links[id] = l
	r.tell(l, false)
	return l, nil
}

func (r *records) DeleteLink(_ context.Context, _ ident.SessionID, id ident.LinkID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.links[id]
	if !ok {
		return store.ErrNotFound
	}
	delete(r.links, id)
	r.tell(l, true)
	return nil
}

func (r *records) Tunnel(id ident.SessionID) (store.TunnelRecord, bool) {
	return store.TunnelRecord{Session: id}, true
}

func (r *records) Link(id ident.LinkID) (store.LinkRecord, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.links[id]
	return l, ok
}

func (r *records) TunnelLinks(id ident.SessionID) (out []store.LinkRecord) {
	for l := range r.AllLinks() {
		if l.Session == id {
			out = append(out, l)
		}
	}
	return out
}

func (r *records) AllLinks() iter.Seq[store.LinkRecord] {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []store.LinkRecord
	for _, l := range r.links {
		all = append(all, l)
	}
	return slices.Values(all)
}

func (r *records) CatchUp(context.Context) error {
	r.reads.Add(1)
	return nil
}

// relay is one relay's rule over shared records.
type relay struct {
	*namedlinks.Links
	meter *usage.Meter
	audit *gatetest.Audit
}

func newRelay(t *testing.T, r *records) *relay {
	t.Helper()
	x := &relay{meter: usage.New(usage.Config{}), audit: &gatetest.Audit{}}
	var err error
	x.Links, err = namedlinks.New(namedlinks.Config{Store: r, Usage: x.meter, Audit: x.audit, Key: ident.ClusterKey{1}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *relay) run(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = x.Run(ctx) }()
	return func() { cancel(); <-done }
}

func newRecords() *records { return &records{links: map[ident.LinkID]store.LinkRecord{}} }

func party(ip, agent string, id ident.LinkID) usage.Party {
	return usage.Party{Remote: netip.MustParseAddr(ip), UserAgent: agent, Link: id}
}

var tunnel = store.TunnelRecord{Session: "00112233445566778899aabbccddeeff", Team: "t", Agent: "gpu-1"}

func create(t *testing.T, x *relay, s namedlinks.Spec) store.LinkRecord {
	t.Helper()
	if s.Name == "" {
		s.Name = "n"
	}
	r, err := x.Create(t.Context(), "user:alice", tunnel, s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAUseIsANewViewer(t *testing.T) {
	db := newRecords()
	a, b := newRelay(t, db), newRelay(t, db)
	l := create(t, a, namedlinks.Spec{MaxUses: 2})
	now := func() store.LinkRecord { r, _ := db.Link(l.ID); return r }
	come := func(x *relay, ip, agent string) error {
		p := party(ip, agent, l.ID)
		if !x.Open(t.Context(), now(), p) {
			return namedlinks.ErrOver
		}
		return x.Admit(t.Context(), now(), p)
	}
	for range 3 { // one viewer, many requests, on two relays
		for _, x := range []*relay{a, b} {
			if err := come(x, "2001:db8::1", "Firefox"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := come(a, "2001:db8::ffff", "Firefox"); err != nil { // the same network of 64 bits
		t.Fatal(err)
	}
	if n := now().Uses; n != 1 {
		t.Errorf("one viewer counts %d uses", n)
	}
	if err := come(b, "192.0.2.1", "Firefox"); err != nil {
		t.Errorf("the second of two viewers: %v", err)
	}
	reads := db.reads.Load()
	for _, p := range [][2]string{{"192.0.2.2", "Firefox"}, {"192.0.2.1", "Chrome"}, {"2001:db8:0:1::1", "Firefox"}} {
		if err := come(a, p[0], p[1]); !errors.Is(err, namedlinks.ErrOver) {
			t.Errorf("a third viewer %v: %v", p, err)
		}
	}
	if got := db.reads.Load() - reads; got != 3 {
		t.Errorf("a refusal must take as long as that of a link that is gone: %d of 3 asked the store", got)
	}
	for _, x := range []*relay{a, newRelay(t, db)} { // also after a restart
		if err := come(x, "192.0.2.1", "Firefox"); err != nil {
			t.Errorf("a viewer that was admitted comes back: %v", err)
		}
	}
	if strings.Contains(fmt.Sprint(now()), "192.0.2") || strings.Contains(fmt.Sprint(now()), "Firefox") {
		t.Errorf("the record says who came: %+v", now())
	}
}

func TestTheLastUseGoesToOne(t *testing.T) {
	db := newRecords()
	relays := []*relay{newRelay(t, db), newRelay(t, db)}
	l := create(t, relays[0], namedlinks.Spec{MaxUses: 1})
	var got atomic.Int64
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			if relays[i%2].Admit(t.Context(), l, party(fmt.Sprintf("192.0.2.%d", i), "x", l.ID)) == nil {
				got.Add(1)
			}
		})
	}
	wg.Wait()
	if got.Load() != 1 {
		t.Errorf("%d viewers got the one use", got.Load())
	}
}

// Who only looks, uses nothing: the list does not say that the link was used.
func TestAPreviewIsNoUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newRecords()
		x := newRelay(t, db)
		l := create(t, x, namedlinks.Spec{MaxUses: 1})
		stop := x.run(t.Context())
		for i := range 20 {
			x.Previewed(t.Context(), l, party(fmt.Sprintf("10.0.0.%d", i), "Slackbot", l.ID))
		}
		time.Sleep(time.Hour)
		if got := x.List(tunnel.Session); len(got) != 1 || got[0].Uses != 0 || !got[0].LastUsed.IsZero() {
			t.Errorf("after previews the list says %+v", got)
		}
		if r, _ := db.Link(l.ID); !r.LastUsed.IsZero() {
			t.Errorf("it is written that it was used at %s", r.LastUsed)
		}
		stop()
	})
}

func TestUsesOfALinkWithoutLimitAreWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newRecords()
		x := newRelay(t, db)
		l := create(t, x, namedlinks.Spec{})
		stop := x.run(t.Context())
		db.mu.Lock()
		db.down = true
		db.mu.Unlock()
		for i := range 300 {
			if err := x.Admit(t.Context(), l, party(fmt.Sprintf("10.0.%d.%d", i/200, i%200), "x", l.ID)); err != nil {
				t.Fatalf("without the store, what needs no count goes on: %v", err)
			}
		}
		if got := x.List(tunnel.Session); len(got) != 1 || got[0].Uses != 300 || got[0].LastUsed.IsZero() {
			t.Errorf("the list knows what is not written yet: %+v", got)
		}
		time.Sleep(5 * time.Second)
		db.mu.Lock()
		db.down = false
		db.mu.Unlock()
		time.Sleep(5 * time.Second)
		r, _ := db.Link(l.ID)
		if r.Uses != 300 || len(r.Viewers) != 256 {
			t.Errorf("%d uses and %d viewers are written", r.Uses, len(r.Viewers))
		}
		if got := x.List(tunnel.Session); got[0].Uses != 300 {
			t.Errorf("written uses count once: %d", got[0].Uses)
		}
		stop()
	})
}

func TestWithoutTheStoreNoUseIsGranted(t *testing.T) {
	db := newRecords()
	x := newRelay(t, db)
	l := create(t, x, namedlinks.Spec{MaxUses: 5})
	db.down = true
	var p *api.Problem
	if err := x.Admit(t.Context(), l, party("192.0.2.1", "x", l.ID)); !errors.As(err, &p) || p.Code != "store_unavailable" {
		t.Errorf("expected 503, got %v", err)
	}
}

func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newRecords()
		a, b := newRelay(t, db), newRelay(t, db)
		stopA, stopB := a.run(t.Context()), b.run(t.Context())
		defer stopB()
		defer stopA()
		forever, hour := create(t, a, namedlinks.Spec{}), create(t, a, namedlinks.Spec{ExpiresIn: time.Hour})
		uses := map[string]*usage.Use{}
		for name, id := range map[string]ident.LinkID{"forever": forever.ID, "hour": hour.ID, "own": ""} {
			for i, x := range []*relay{a, b} {
				u, err := x.meter.Begin(t.Context(), tunnel.Session, party("192.0.2.1", "x", id), usage.WebSocket)
				if err != nil {
					t.Fatal(err)
				}
				uses[fmt.Sprint(name, i)] = u
			}
		}
		over := func(name string) bool { return uses[name].Context().Err() != nil }
		time.Sleep(time.Hour - time.Millisecond)
		synctest.Wait()
		for name := range uses {
			if over(name) {
				t.Errorf("%s was cut early", name)
			}
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if !over("hour0") || !over("hour1") || over("forever0") || over("own1") {
			t.Error("at its end a link's connections are cut on every relay, and no others")
		}
		if got := a.List(tunnel.Session); len(got) != 1 {
			t.Errorf("an expired link is not listed: %+v", got)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if _, ok := db.Link(hour.ID); ok {
			t.Error("an expired link's record is removed")
		}
		if err := a.Revoke(t.Context(), "user:alice", tunnel.Session, forever.ID); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !over("forever0") || !over("forever1") || over("own0") || over("own1") {
			t.Error("revoking cuts the link's connections on every relay, and no others")
		}
		for _, x := range []*relay{a, b} {
			if _, err := x.meter.Begin(t.Context(), tunnel.Session, party("192.0.2.9", "x", forever.ID), usage.HTTP); !errors.Is(err, usage.ErrRevoked) {
				t.Errorf("what resolved just before does not begin after: %v", err)
			}
		}
		var p *api.Problem
		if err := a.Revoke(t.Context(), "user:alice", tunnel.Session, forever.ID); !errors.As(err, &p) || p.Code != "link_not_found" {
			t.Errorf("revoked twice: %v", err)
		}
		for _, u := range uses {
			u.End()
		}
		for _, want := range []audit.Event{audit.LinkCreated, audit.LinkRevoked} {
			if !slices.ContainsFunc(a.audit.Records(), func(r audit.Record) bool {
				return r.Event == want && r.Actor == "user:alice" && strings.Contains(r.Detail, string(forever.ID))
			}) {
				t.Errorf("the audit has no %s", want)
			}
		}
	})
}

func TestWhoMayComeByALinkIsChanged(t *testing.T) {
	db := newRecords()
	x := newRelay(t, db)
	l := create(t, x, namedlinks.Spec{Name: "guests", Access: &store.AccessRule{Mode: api.AccessPIN, PINHash: "$argon2id$secret", Version: 3}})
	to := func(r *store.AccessRule, err error) func(*store.AccessRule) (*store.AccessRule, error) {
		return func(old *store.AccessRule) (*store.AccessRule, error) {
			if old.Version != 3 {
				t.Errorf("the rule that was is %+v", old)
			}
			return r, err
		}
	}
	refused := api.NewProblem(api.CodeOutOfRange, "no")
	if _, err := x.SetAccess(t.Context(), "user:alice", tunnel.Session, l.ID, to(nil, refused)); err != refused {
		t.Errorf("a refusal comes back as %v", err)
	}
	if got, err := x.SetAccess(t.Context(), "user:alice", tunnel.Session, l.ID, to(&store.AccessRule{Mode: api.AccessTeam, Version: 4}, nil)); err != nil || got.Access.Mode != api.AccessTeam {
		t.Errorf("changed: %+v, %v", got.Access, err)
	}
	if now, _ := db.Link(l.ID); now.Access.Version != 4 {
		t.Errorf("the record has %+v", now.Access)
	}
	var p *api.Problem
	if _, err := x.SetAccess(t.Context(), "user:alice", ident.NewSessionID(), l.ID, to(nil, nil)); !errors.As(err, &p) || p.Code != "link_not_found" {
		t.Errorf("of another tunnel: %v", err)
	}
	var changes []audit.Record
	for _, r := range x.audit.Records() {
		if strings.Contains(r.Detail, "argon2") {
			t.Errorf("the audit log has the hash of a PIN: %+v", r)
		}
		if r.Event == audit.AccessChanged {
			changes = append(changes, r)
		}
	}
	if len(changes) != 1 || changes[0].Actor != "user:alice" || !strings.HasSuffix(changes[0].Detail, "access team") {
		t.Errorf("the audit log has %+v", changes)
	}
}

// What a revoked credential made is over on every relay, and gone after a while, though
// nobody deletes it: the relay that was asked may have died.
func TestALinkEndsWithTheCredentialThatMadeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newRecords()
		a, b := newRelay(t, db), newRelay(t, db)
		defer a.run(t.Context())()
		defer b.run(t.Context())()
		for _, id := range []ident.CredentialID{"cred_1", "cred_2", "cred_3"} {
			db.credential(store.CredentialRecord{ID: id, Team: tunnel.Team})
		}
		db.credential(store.CredentialRecord{ID: "cred_2", Team: tunnel.Team, MadeBy: "cred_1"})
		stolen := []store.LinkRecord{
			create(t, a, namedlinks.Spec{Name: "its own", Credential: "cred_1"}),
			create(t, a, namedlinks.Spec{Name: "of one it made", Credential: "cred_2", ExpiresIn: time.Hour}),
		}
		fine := []store.LinkRecord{create(t, a, namedlinks.Spec{Name: "another's", Credential: "cred_3"}), create(t, a, namedlinks.Spec{Name: "a person's"})}
		use := func(x *relay, l store.LinkRecord) *usage.Use {
			u, err := x.meter.Begin(t.Context(), tunnel.Session, party("192.0.2.1", l.Name, l.ID), usage.TCP)
			if err != nil {
				t.Fatal(err)
			}
			return u
		}
		uses := map[string]*usage.Use{}
		for _, l := range append(slices.Clone(stolen), fine...) {
			uses["a "+l.Name], uses["b "+l.Name] = use(a, l), use(b, l)
		}
		db.credential(store.CredentialRecord{ID: "cred_1", Team: tunnel.Team, RevokedAt: time.Now(), KeepTunnels: true})
		time.Sleep(10 * time.Second)
		for name, u := range uses {
			if u.Context().Err() != nil {
				t.Errorf("%s was cut, and the links were to be kept", name)
			}
		}
		db.credential(store.CredentialRecord{ID: "cred_1", Team: tunnel.Team, RevokedAt: time.Now()})
		time.Sleep(time.Second)
		for _, x := range []string{"a ", "b "} {
			for _, l := range stolen {
				if cause := context.Cause(uses[x+l.Name].Context()); !errors.Is(cause, usage.ErrRevoked) {
					t.Errorf("%s%s goes on: %v", x, l.Name, cause)
				}
			}
			for _, l := range fine {
				if cause := context.Cause(uses[x+l.Name].Context()); cause != nil {
					t.Errorf("%s%s was cut: %v", x, l.Name, cause)
				}
			}
		}
		time.Sleep(10 * time.Second)
		for _, l := range stolen {
			if _, ok := db.Link(l.ID); ok {
				t.Errorf("the record of %q is still there", l.Name)
			}
			recorded := 0
			for _, r := range append(a.audit.Records(), b.audit.Records()...) {
				if r.Event == audit.LinkRevoked && strings.Contains(r.Detail, string(l.ID)) && strings.Contains(r.Detail, "credential") {
					recorded++
				}
			}
			if recorded != 1 {
				t.Errorf("the audit of both relays has the end of %q %d times", l.Name, recorded)
			}
		}
		for _, l := range fine {
			if _, ok := db.Link(l.ID); !ok {
				t.Errorf("the record of %q is gone", l.Name)
			}
		}
		for _, u := range uses {
			u.End()
		}
	})
}

func TestPreviews(t *testing.T) {
	for agent, want := range map[string]bool{
		"Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)": true, "Slack-ImgProxy (+https://api.slack.com/robots)": true, "Twitterbot/1.0": true,
		"facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)": true, "Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)": true,
		"TelegramBot (like TwitterBot)": true, "WhatsApp/2.23.20.0": true, "LinkedInBot/1.0 (compatible; Mozilla/5.0)": true,
		"Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)":                                                  true,
		"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36":                     false,
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Safari/604.1": false,
		"curl/8.5.0": false, "": false, "python-requests/2.32": false,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("User-Agent", agent)
		if got := namedlinks.Preview(r); got != want {
			t.Errorf("GET by %q: preview %t", agent, got)
		}
		r.Method = http.MethodPost
		if namedlinks.Preview(r) {
			t.Errorf("POST by %q is no preview", agent)
		}
		r.Method = http.MethodGet
		r.Header.Set("Upgrade", "websocket")
		if namedlinks.Preview(r) {
			t.Errorf("a WebSocket of %q is no preview", agent)
		}
	}
	head := httptest.NewRequest(http.MethodHead, "/", nil)
	if !namedlinks.Preview(head) {
		t.Error("HEAD is a preview")
	}
	for name, value := range map[string]string{"Sec-Purpose": "prefetch;prerender", "Purpose": "prefetch", "X-Purpose": "preview", "X-Moz": "prefetch"} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set(name, value)
		if !namedlinks.Preview(r) || !namedlinks.Prefetch(r) {
			t.Errorf("%s: %s is a preview", name, value)
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
			if r.Method = method; namedlinks.Preview(r) {
				t.Errorf("%s with %s: %s is no preview", method, name, value)
			}
		}
	}
}

// What a removed person made is over on every relay, unless it is kept.
func TestALinkEndsWithThePersonWhoMadeIt(t *testing.T) {
	for _, keep := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			db := newRecords()
			a, b := newRelay(t, db), newRelay(t, db)
			defer a.run(t.Context())()
			defer b.run(t.Context())()
			hers, his := create(t, a, namedlinks.Spec{Name: "hers", User: "alice"}), create(t, a, namedlinks.Spec{Name: "his", User: "bob"})
			use := func(x *relay, l store.LinkRecord) *usage.Use {
				u, err := x.meter.Begin(t.Context(), tunnel.Session, party("192.0.2.1", l.Name, l.ID), usage.TCP)
				if err != nil {
					t.Fatal(err)
				}
				return u
			}
			uses := map[string]*usage.Use{"hers": use(b, hers), "his": use(b, his)}
			db.member(store.MemberRecord{Team: tunnel.Team, User: "alice", RemovedAt: time.Now(), KeepTunnels: keep})
			time.Sleep(time.Second)
			for name, u := range uses {
				cut := errors.Is(context.Cause(u.Context()), usage.ErrRevoked)
				if want := name == "hers" && !keep; cut != want {
					t.Errorf("kept: %t: what uses the link that is %s was cut: %t, want %t", keep, name, cut, want)
				}
			}
		})
	}
}
