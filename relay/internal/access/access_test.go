package access_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

const (
	teamA   = ident.TeamID("6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11")
	teamB   = ident.TeamID("7f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b22")
	chrome  = "Mozilla/5.0 Chrome"
	firefox = "Mozilla/5.0 Firefox"
)

var (
	key  = ident.ClusterKey{7}
	home = netip.MustParseAddr("192.0.2.7")
)

// town is where records are, and who is who, in memory.
type town struct {
	mu      sync.Mutex
	tunnels map[ident.SessionID]store.TunnelRecord
	links   map[ident.LinkID]store.LinkRecord
	users   map[ident.UserID]store.UserRecord
	signIns map[string]store.SignInRecord
	used    map[string]bool
	in      map[ident.UserID]api.Role // of team A
	secrets map[string]creds.Principal
	changes chan store.Change
	cut     []ident.LinkID
}

func newTown() *town {
	w := &town{
		tunnels: map[ident.SessionID]store.TunnelRecord{}, links: map[ident.LinkID]store.LinkRecord{}, users: map[ident.UserID]store.UserRecord{},
		signIns: map[string]store.SignInRecord{}, used: map[string]bool{}, in: map[ident.UserID]api.Role{}, secrets: map[string]creds.Principal{},
		changes: make(chan store.Change),
	}
	w.person("alice", api.RoleMember)
	w.person("vera", api.RoleViewer)
	w.person("bob", "", "vision")
	return w
}

// person makes somebody who is signed in, in team A if they have a role.
func (w *town) person(name string, role api.Role, groups ...string) {
	id := ident.UserID(name)
	w.users[id] = store.UserRecord{ID: id, Name: name, Email: name + "@example.com"}
	w.signIns["of "+name] = store.SignInRecord{Hash: "of " + name, User: id, Groups: groups}
	if role != "" {
		w.in[id] = role
	}
}

func (w *town) Tunnel(id ident.SessionID) (store.TunnelRecord, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t, ok := w.tunnels[id]
	return t, ok
}

func (w *town) Link(id ident.LinkID) (store.LinkRecord, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l, ok := w.links[id]
	return l, ok
}

func (w *town) User(id ident.UserID) (store.UserRecord, bool) { u, ok := w.users[id]; return u, ok }

func (w *town) SignIn(hash string) (store.SignInRecord, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.signIns[hash]
	return r, ok
}

func (w *town) SignIns(user ident.UserID) []store.SignInRecord {
	if r, ok := w.SignIn("of " + string(user)); ok {
		return []store.SignInRecord{r}
	}
	return nil
}

func (w *town) UseTicket(_ context.Context, hash string, _ time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.used[hash] {
		return store.ErrExists
	}
	w.used[hash] = true
	return nil
}

func (w *town) Shown(_ context.Context, values []string, _ ident.TeamID, _ netip.Addr) (creds.Principal, error) {
	p, ok := w.secrets[strings.Join(values, "|")]
	if !ok {
		return p, api.NewProblem(api.CodeUnauthenticated, "no such credential")
	}
	return p, nil
}

func (w *town) SignedIn(_ context.Context, hash string, team ident.TeamID, _ netip.Addr) (creds.Principal, error) {
	r, ok := w.SignIn(hash)
	if !ok {
		return creds.Principal{}, api.NewProblem(api.CodeUnauthenticated, "signed out")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p := creds.Principal{Kind: creds.KindUser, User: r.User, SignIn: hash, Name: "user:" + string(r.User), ExpiresAt: r.EndsAt}
	if role := w.in[r.User]; role != "" && team == teamA {
		p.Team, p.Role = team, role
	}
	return p, nil
}

func (w *town) Owns(p creds.Principal, o store.Opened) bool { return p.User != "" && p.User == o.User }

func (w *town) Valid(p creds.Principal) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.SignIn != "" {
		if _, ok := w.signIns[p.SignIn]; !ok {
			return false
		}
	}
	return p.Team == "" || p.Role == "" || p.User == "" || w.in[p.User] != ""
}

// change changes records, and tells of it.
func (w *town) change(c store.Change, how func()) {
	w.mu.Lock()
	how()
	w.mu.Unlock()
	w.changes <- c
}

func (w *town) access(t *testing.T) *access.Access {
	t.Helper()
	return access.New(access.Config{
		Store: w, Creds: w, Key: key, Now: time.Now,
		Changes: func(ctx context.Context, changed func(store.Change)) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case c := <-w.changes:
					changed(c)
				}
			}
		},
		CutUnwatched: func(_ ident.SessionID, link ident.LinkID, _ error) int {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.cut = append(w.cut, link)
			return 1
		},
	})
}

// tunnel opens one of team A with a rule.
func (w *town) tunnel(rule *store.AccessRule) *store.TunnelRecord {
	t := store.TunnelRecord{Session: ident.NewSessionID(), Team: teamA, Agent: "box", Port: 8188, User: "owner", ExpiresAt: time.Now().Add(24 * time.Hour), Access: rule}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tunnels[t.Session] = t
	return &t
}

func codeOf(err error) api.Code {
	if err == nil {
		return ""
	}
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Code
	}
	return "no problem: " + api.Code(err.Error())
}

// pass goes the whole way of a browser to a pass.
func pass(t *testing.T, a *access.Access, who string, tun *store.TunnelRecord, link *store.LinkRecord) (ident.Secret, error) {
	t.Helper()
	req := access.Request{Tunnel: tun, Link: link, Remote: home, Browser: chrome}
	nonce := access.Nonce()
	to, err := a.Grant(t.Context(), a.Ask(req, "https://x.example.com", "/page?q=1", nonce), "of "+who, "192.0.2.7")
	if err != nil {
		return "", err
	}
	code, ok := strings.CutPrefix(to, "https://x.example.com/_adit/pass?code=")
	if !ok {
		t.Fatalf("it leads to %s", to)
	}
	secret, _, path, err := a.Redeem(t.Context(), req, ident.Secret(code), nonce)
	if err == nil && path != "/page?q=1" {
		t.Errorf("it comes back to %q", path)
	}
	return secret, err
}

func TestWhoPasses(t *testing.T) {
	w := newTown()
	a := w.access(t)
	w.person("owner", api.RoleMember)
	device := func(user string, team ident.TeamID, role api.Role) creds.Principal {
		return creds.Principal{Kind: creds.KindDevice, Team: team, User: ident.UserID(user), Role: role, Name: "dk:" + user}
	}
	program := creds.Principal{Kind: creds.KindIntegration, Team: teamA, Role: api.RoleMember, Name: "sk:ci"}
	narrow := func(change func(*creds.Principal)) creds.Principal {
		p := program
		change(&p)
		return p
	}
	w.secrets = map[string]creds.Principal{
		"device": device("alice", teamA, api.RoleMember), "viewer's device": device("vera", teamA, api.RoleViewer), "other team": device("bob", teamB, api.RoleOwner),
		"owner's device": device("owner", teamA, api.RoleMember), "program": program,
		"program that looks": narrow(func(p *creds.Principal) { p.Role = api.RoleViewer }),
		"program that reads": narrow(func(p *creds.Principal) { p.Scopes = []api.Scope{api.ScopeRead} }),
		"other machine":      narrow(func(p *creds.Principal) { p.Agents = []string{"render-*"} }),
		"other port":         narrow(func(p *creds.Principal) { p.Ports = "8000-8010" }),
		"agent":              {Kind: creds.KindAgent, Team: teamA, Name: "ak:box"},
	}
	required, denied, pin, knock := api.CodeAccessRequired, api.CodeAccessDenied, api.CodePINRequired, api.CodeKnockWaiting
	shows := map[string]map[api.AccessMode]api.Code{
		// what is shown: by mode, what is answered
		"nothing":            {api.AccessAnyone: "", api.AccessTeam: required, api.AccessPeople: required, api.AccessPIN: pin, api.AccessKnock: knock},
		"alice":              {api.AccessAnyone: "", api.AccessTeam: "", api.AccessPeople: "", api.AccessPIN: "", api.AccessKnock: ""},
		"vera":               {api.AccessAnyone: "", api.AccessTeam: "", api.AccessPeople: denied, api.AccessPIN: "", api.AccessKnock: ""},
		"bob":                {api.AccessAnyone: "", api.AccessTeam: denied, api.AccessPeople: "", api.AccessPIN: denied, api.AccessKnock: denied},
		"owner":              {api.AccessAnyone: "", api.AccessTeam: "", api.AccessPeople: "", api.AccessPIN: "", api.AccessKnock: ""},
		"device":             {api.AccessAnyone: "", api.AccessTeam: "", api.AccessPeople: "", api.AccessPIN: "", api.AccessKnock: ""},
		"viewer's device":    {api.AccessAnyone: "", api.AccessTeam: "", api.AccessPeople: denied, api.AccessPIN: "", api.AccessKnock: ""},
		"other team":         {api.AccessAnyone: "", api.AccessTeam: denied, api.AccessPeople: "", api.AccessPIN: denied, api.AccessKnock: denied},
		"owner's device":     {api.AccessAnyone: "", api.AccessTeam: "", api.AccessPeople: "", api.AccessPIN: "", api.AccessKnock: ""},
		"program":            {api.AccessAnyone: "", api.AccessTeam: "", api.AccessPeople: denied, api.AccessPIN: "", api.AccessKnock: ""},
		"program that looks": {api.AccessAnyone: "", api.AccessTeam: denied, api.AccessPeople: denied, api.AccessPIN: denied, api.AccessKnock: denied},
		"program that reads": {api.AccessAnyone: "", api.AccessTeam: denied, api.AccessPeople: denied, api.AccessPIN: denied, api.AccessKnock: denied},
		"other machine":      {api.AccessAnyone: "", api.AccessTeam: denied, api.AccessPeople: denied, api.AccessPIN: denied, api.AccessKnock: denied},
		"other port":         {api.AccessAnyone: "", api.AccessTeam: denied, api.AccessPeople: denied, api.AccessPIN: denied, api.AccessKnock: denied},
		"agent":              {api.AccessAnyone: "", api.AccessTeam: denied, api.AccessPeople: denied, api.AccessPIN: denied, api.AccessKnock: denied},
		"no secret":          {api.AccessAnyone: "", api.AccessTeam: api.CodeUnauthenticated, api.AccessPeople: api.CodeUnauthenticated, api.AccessPIN: api.CodeUnauthenticated, api.AccessKnock: api.CodeUnauthenticated},
	}
	for mode := range shows["nothing"] {
		rule := store.AccessRule{Mode: mode, Version: 3, PINHash: "x"}
		if mode == api.AccessPeople {
			rule.People = []string{"Alice@Example.com", "group:vision"}
		}
		tun := w.tunnel(&rule)
		for who, want := range shows {
			req := access.Request{Tunnel: tun, Remote: home, Browser: chrome}
			var err error
			if _, signedIn := w.SignIn("of " + who); signedIn {
				req.Pass, err = pass(t, a, who, tun, nil)
			} else if who != "nothing" {
				req.Auth = []string{who}
			}
			if err == nil {
				_, err = a.Check(t.Context(), req)
			}
			if got := codeOf(err); got != want[mode] {
				t.Errorf("%s, %s: %q, want %q", mode, who, got, want[mode])
			}
		}
	}
}

func TestWhoIsNamed(t *testing.T) {
	w := newTown()
	a := w.access(t)
	w.users["odd"] = store.UserRecord{ID: "odd", Email: `"x@evil.example"@example.com`}
	w.signIns["of odd"] = store.SignInRecord{User: "odd"}
	w.users["unproved"] = store.UserRecord{ID: "unproved"} // the issuer vouches for no address
	w.signIns["of unproved"] = store.SignInRecord{User: "unproved"}
	for _, c := range []struct {
		entry, who string
		in         bool
	}{
		{"bob@example.com", "bob", true}, {"BOB@EXAMPLE.COM", "bob", true}, {"*@example.com", "bob", true}, {"*@Example.Com", "bob", true}, {"bob", "bob", true}, {"group:vision", "bob", true},
		{"bob@example.org", "bob", false}, {"*@ample.com", "bob", false}, {"*@", "bob", false}, {"*", "bob", false}, {"group:Vision", "bob", false}, {"group:", "bob", false}, {"vision", "bob", false},
		{"Bob", "bob", false}, {"alice@example.com", "bob", false}, {"*@evil.example", "odd", false}, {"*@example.com", "odd", true},
		{"*@", "unproved", false}, {"unproved@example.com", "unproved", false}, {"", "unproved", false},
	} {
		tun := w.tunnel(&store.AccessRule{Mode: api.AccessPeople, People: []string{c.entry}, Version: 1})
		_, err := pass(t, a, c.who, tun, nil)
		if in := err == nil; in != c.in {
			t.Errorf("%q for %s: %v", c.entry, c.who, err)
		}
		u := w.users[ident.UserID(c.who)]
		if got := a.Expects(a.Ask(access.Request{Tunnel: tun}, "https://x", "/", access.Nonce()), u.ID, u.Email, w.signIns["of "+c.who].Groups); got != c.in {
			t.Errorf("%q expects %s: %v", c.entry, c.who, got)
		}
	}
}

func TestWhatAPassIsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown()
		a := w.access(t)
		tun := w.tunnel(&store.AccessRule{Mode: api.AccessTeam, Version: 4})
		secret, err := pass(t, a, "alice", tun, nil)
		if err != nil {
			t.Fatal(err)
		}
		check := func(change func(*access.Request)) api.Code {
			req := access.Request{Tunnel: tun, Remote: home, Browser: chrome, Pass: secret}
			change(&req)
			v, err := a.Check(t.Context(), req)
			if err == nil && (v.User != "alice" || v.Name != "alice" || v.Email != "alice@example.com" || v.How != access.BySignIn) {
				t.Errorf("it is %+v", v)
			}
			return codeOf(err)
		}
		with := func(rule store.AccessRule) func(*access.Request) {
			return func(r *access.Request) { c := *tun; c.Access = &rule; r.Tunnel = &c }
		}
		link := &store.LinkRecord{ID: ident.NewLinkID(), Session: tun.Session}
		ruled := *link
		ruled.Access = &store.AccessRule{Mode: api.AccessTeam, Version: 4}
		for name, c := range map[string]struct {
			change func(*access.Request)
			want   api.Code
		}{
			"as it was given":           {func(*access.Request) {}, ""},
			"from elsewhere":            {func(r *access.Request) { r.Remote = netip.MustParseAddr("203.0.113.9") }, ""},
			"another tunnel":            {func(r *access.Request) { r.Tunnel = w.tunnel(&store.AccessRule{Mode: api.AccessTeam, Version: 4}) }, api.CodeAccessRequired},
			"another version":           {with(store.AccessRule{Mode: api.AccessTeam, Version: 5}), api.CodeAccessRequired},
			"a named link of it":        {func(r *access.Request) { r.Link = link }, api.CodeAccessRequired},
			"a link's own rule":         {func(r *access.Request) { r.Link = &ruled }, api.CodeAccessRequired},
			"copied to another browser": {func(r *access.Request) { r.Browser = firefox }, api.CodeAccessRequired},
			"one letter changed":        {func(r *access.Request) { r.Pass = secret[:len(secret)-1] + "_" }, api.CodeAccessRequired},
			"no pass at all":            {func(r *access.Request) { r.Pass = ident.NewSecret(ident.PrefixPass) }, api.CodeAccessRequired},
			"of another pool":           {func(r *access.Request) { r.Pass = otherPool(t, w, tun) }, api.CodeAccessRequired},
			"outside of the networks":   {with(store.AccessRule{Mode: api.AccessTeam, Version: 4, From: []string{"198.51.100.0/24"}}), api.CodeAccessDenied},
			"within the networks":       {with(store.AccessRule{Mode: api.AccessTeam, Version: 4, From: []string{"2001:db8::/32", "192.0.2.0/24"}}), ""},
			"the network as IPv6": {func(r *access.Request) {
				with(store.AccessRule{Mode: api.AccessTeam, Version: 4, From: []string{"192.0.2.0/24"}})(r)
				r.Remote = netip.MustParseAddr("::ffff:192.0.2.7")
			}, ""},
			"nobody knows from where": {func(r *access.Request) {
				with(store.AccessRule{Mode: api.AccessTeam, Version: 4, From: []string{"0.0.0.0/0"}})(r)
				r.Remote = netip.Addr{}
			}, api.CodeAccessDenied},
			"looking, read only": {with(store.AccessRule{Mode: api.AccessTeam, Version: 4, ReadOnly: true}), ""},
			"changing, read only": {func(r *access.Request) {
				with(store.AccessRule{Mode: api.AccessTeam, Version: 4, ReadOnly: true})(r)
				r.Write = true
			}, api.CodeReadOnly},
			"a stranger changes, read only": {func(r *access.Request) {
				with(store.AccessRule{Mode: api.AccessTeam, Version: 4, ReadOnly: true})(r)
				r.Write, r.Pass = true, ""
			}, api.CodeAccessRequired},
			"a mode of a later release": {with(store.AccessRule{Mode: "moon", Version: 4}), api.CodeAccessDenied},
		} {
			if got := check(c.change); got != c.want {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
		}
		time.Sleep(access.MaxPass - time.Second)
		if got := check(func(*access.Request) {}); got != "" {
			t.Errorf("after nearly 12 hours: %q", got)
		}
		time.Sleep(time.Second)
		if got := check(func(*access.Request) {}); got != api.CodeAccessRequired {
			t.Errorf("after 12 hours: %q", got)
		}
		if secret, err = pass(t, a, "alice", tun, nil); err != nil {
			t.Fatal(err)
		}
		delete(w.signIns, "of alice")
		if got := check(func(*access.Request) {}); got != api.CodeAccessRequired {
			t.Errorf("after signing out: %q", got)
		}
	})
}

// otherPool is a pass for the tunnel that was sealed with another cluster key.
func otherPool(t *testing.T, w *town, tun *store.TunnelRecord) ident.Secret {
	t.Helper()
	a := access.New(access.Config{Store: w, Creds: w, Key: ident.ClusterKey{8}, Now: time.Now})
	secret, err := pass(t, a, "alice", tun, nil)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func TestTheWayToAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown()
		a := w.access(t)
		tun := w.tunnel(&store.AccessRule{Mode: api.AccessTeam, Version: 1})
		req := access.Request{Tunnel: tun, Remote: home, Browser: chrome}
		nonce := access.Nonce()
		ask := a.Ask(req, "https://x.example.com/tunnel/seg", "/tunnel/seg/"+strings.Repeat("a", 2000), nonce)
		code := func() ident.Secret {
			t.Helper()
			to, err := a.Grant(t.Context(), ask, "of alice", "192.0.2.7")
			if err != nil {
				t.Fatal(err)
			}
			_, code, _ := strings.Cut(to, "?code=")
			return ident.Secret(code)
		}
		redeem := func(code ident.Secret, nonce ident.Secret, change ...func(*access.Request)) api.Code {
			r := req
			for _, c := range change {
				c(&r)
			}
			_, _, path, err := a.Redeem(t.Context(), r, code, nonce)
			if err == nil && path != "/tunnel/seg/" {
				t.Errorf("a path that is too long leads to %q", path)
			}
			return codeOf(err)
		}
		first := code()
		for name, got := range map[string]api.Code{
			"in another browser":     redeem(first, access.Nonce()),
			"in one without cookies": redeem(first, ""),
			"for another tunnel":     redeem(first, nonce, func(r *access.Request) { r.Tunnel = w.tunnel(tun.Access) }),
			"by a named link":        redeem(first, nonce, func(r *access.Request) { r.Link = &store.LinkRecord{ID: ident.NewLinkID(), Session: tun.Session} }),
			"an ask as a code":       redeem(ident.Secret(ident.PrefixPassCode+ask), nonce),
			"no code":                redeem("", nonce),
		} {
			if got != api.CodeAccessRequired {
				t.Errorf("%s: %q", name, got)
			}
		}
		if got := redeem(first, nonce); got != "" {
			t.Errorf("the right browser: %q", got)
		}
		if got := redeem(first, nonce); got != api.CodeAccessRequired {
			t.Errorf("a second time: %q", got)
		}
		late := code()
		time.Sleep(30 * time.Second)
		if got := redeem(late, nonce); got != api.CodeAccessRequired {
			t.Errorf("after 30 seconds: %q", got)
		}
		soon := code()
		delete(w.in, "alice")
		if got := redeem(soon, nonce); got != api.CodeAccessDenied {
			t.Errorf("removed from the team between the two steps: %q", got)
		}
		if _, err := a.Grant(t.Context(), ask, "of bob", "192.0.2.7"); codeOf(err) != api.CodeAccessDenied || !strings.Contains(err.Error(), "bob (bob@example.com)") {
			t.Errorf("who may not is told as whom: %v", err)
		}
		time.Sleep(10 * time.Minute)
		if p := a.Begun(ask); p == nil || p.Code != api.CodeAccessRequired {
			t.Errorf("after 10 minutes: %v", p)
		}
		if p := a.Begun("AAAA"); p == nil || p.Code != api.CodeAccessRequired {
			t.Errorf("what nobody sealed: %v", p)
		}
	})
}

func TestWhatIsOpenEndsWithTheRight(t *testing.T) {
	team := store.AccessRule{Mode: api.AccessTeam, Version: 1}
	for name, c := range map[string]struct {
		with func(w *town, tun *store.TunnelRecord, link *store.LinkRecord) (store.Change, func())
		ends bool
	}{
		"another version": {func(w *town, tun *store.TunnelRecord, _ *store.LinkRecord) (store.Change, func()) {
			return store.Change{Kind: store.KindTunnel, Session: tun.Session}, func() {
				c := *tun
				c.Access = &store.AccessRule{Mode: api.AccessTeam, Version: 2}
				w.tunnels[tun.Session] = c
			}
		}, true},
		"opened to anyone": {func(w *town, tun *store.TunnelRecord, _ *store.LinkRecord) (store.Change, func()) {
			return store.Change{Kind: store.KindTunnel, Session: tun.Session}, func() { c := *tun; c.Access = nil; w.tunnels[tun.Session] = c }
		}, false},
		"used": {func(w *town, tun *store.TunnelRecord, _ *store.LinkRecord) (store.Change, func()) {
			return store.Change{Kind: store.KindTunnel, Session: tun.Session}, func() { c := *tun; c.LastUsed = time.Now(); w.tunnels[tun.Session] = c }
		}, false},
		"signed out": {func(w *town, _ *store.TunnelRecord, _ *store.LinkRecord) (store.Change, func()) {
			return store.Change{Kind: store.KindSignIn, User: "alice", Deleted: true}, func() { delete(w.signIns, "of alice") }
		}, true},
		"removed from the team": {func(w *town, _ *store.TunnelRecord, _ *store.LinkRecord) (store.Change, func()) {
			return store.Change{Kind: store.KindMember, User: "alice"}, func() { delete(w.in, "alice") }
		}, true},
		"the link gets its own rule": {func(w *town, tun *store.TunnelRecord, link *store.LinkRecord) (store.Change, func()) {
			return store.Change{Kind: store.KindLink, Session: tun.Session, Link: link.ID}, func() {
				c := *link
				c.Access = &store.AccessRule{Mode: api.AccessTeam, Version: 1}
				w.links[link.ID] = c
			}
		}, true},
		"changes were missed": {func(w *town, tun *store.TunnelRecord, _ *store.LinkRecord) (store.Change, func()) {
			return store.Change{}, func() {
				c := *tun
				c.Access = &store.AccessRule{Mode: api.AccessPIN, Version: 2}
				w.tunnels[tun.Session] = c
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown()
				a := w.access(t)
				tun := w.tunnel(&team)
				link := &store.LinkRecord{ID: ident.NewLinkID(), Session: tun.Session}
				w.links[link.ID] = *link
				secret, err := pass(t, a, "alice", tun, link)
				if err != nil {
					t.Fatal(err)
				}
				v, err := a.Check(t.Context(), access.Request{Tunnel: tun, Link: link, Remote: home, Browser: chrome, Pass: secret})
				if err != nil {
					t.Fatal(err)
				}
				run, cancel := context.WithCancel(t.Context())
				over := make(chan error, 1)
				go func() { over <- a.Run(run) }()
				use, stop := a.Watch(t.Context(), v, tun, link)
				defer stop()
				kind, change := c.with(w, tun, link)
				w.change(kind, change)
				synctest.Wait()
				if ended := use.Err() != nil; ended != c.ends {
					t.Errorf("it ended: %v (%v)", ended, context.Cause(use))
				}
				if c.ends && !errors.Is(context.Cause(use), access.ErrRemoved) {
					t.Errorf("the cause is %v", context.Cause(use))
				}
				cancel()
				if err := <-over; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestTheClockEndsWhatIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown()
		a := w.access(t)
		tun := w.tunnel(&store.AccessRule{Mode: api.AccessTeam, Version: 1})
		secret, err := pass(t, a, "alice", tun, nil)
		if err != nil {
			t.Fatal(err)
		}
		v, err := a.Check(t.Context(), access.Request{Tunnel: tun, Remote: home, Browser: chrome, Pass: secret})
		if err != nil {
			t.Fatal(err)
		}
		run, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() { over <- a.Run(run) }()
		use, stop := a.Watch(t.Context(), v, tun, nil)
		defer stop()
		time.Sleep(access.MaxPass - 2*time.Second)
		if use.Err() != nil {
			t.Errorf("it ended early: %v", context.Cause(use))
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !errors.Is(context.Cause(use), access.ErrRemoved) {
			t.Errorf("within a second of the pass's end: %v", context.Cause(use))
		}
		cancel()
		<-over
	})
}

// What began when there was no rule is not watched, and ends when one comes.
func TestARuleThatComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown()
		a := w.access(t)
		tun := w.tunnel(nil)
		link := store.LinkRecord{ID: ident.NewLinkID(), Session: tun.Session}
		w.links[link.ID] = link
		cut := func() []ident.LinkID { // since the last time
			w.mu.Lock()
			defer w.mu.Unlock()
			was := w.cut
			w.cut = nil
			return was
		}
		run, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() { over <- a.Run(run) }()
		w.change(store.Change{Kind: store.KindTunnel, Session: tun.Session}, func() {})
		w.change(store.Change{Kind: store.KindLink, Session: tun.Session, Link: link.ID}, func() {})
		synctest.Wait()
		if got := cut(); len(got) != 0 {
			t.Errorf("without a rule something was cut: %v", got)
		}
		w.change(store.Change{Kind: store.KindLink, Session: tun.Session, Link: link.ID}, func() { link.Access = &store.AccessRule{Mode: api.AccessTeam}; w.links[link.ID] = link })
		synctest.Wait()
		if got := cut(); len(got) == 0 || got[0] != link.ID {
			t.Errorf("a link's rule cut %v", got)
		}
		time.Sleep(5100 * time.Millisecond) // between two sweeps
		cut()
		w.change(store.Change{Kind: store.KindTunnel, Session: tun.Session}, func() { c := *tun; c.Access = &store.AccessRule{Mode: api.AccessTeam}; w.tunnels[tun.Session] = c })
		synctest.Wait()
		if got := cut(); len(got) != 1 || got[0] != "" {
			t.Errorf("the tunnel's rule cut %v", got)
		}
		time.Sleep(time.Second)
		if len(cut()) < 1 {
			t.Error("a request that found no rule before, and began after, is not looked for")
		}
		cancel()
		<-over
	})
}

// What a request through a tunnel with a rule costs more: to know its pass, and to watch.
func BenchmarkCheckAndWatch(b *testing.B) {
	w := newTown()
	a := access.New(access.Config{Store: w, Creds: w, Key: key, Now: time.Now})
	tun := w.tunnel(&store.AccessRule{Mode: api.AccessTeam, Version: 1})
	req, nonce := access.Request{Tunnel: tun, Remote: home, Browser: chrome}, access.Nonce()
	to, err := a.Grant(b.Context(), a.Ask(req, "https://x", "/", nonce), "of alice", "192.0.2.7")
	if err != nil {
		b.Fatal(err)
	}
	_, code, _ := strings.Cut(to, "?code=")
	if req.Pass, _, _, err = a.Redeem(b.Context(), req, ident.Secret(code), nonce); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		v, err := a.Check(b.Context(), req)
		if err != nil {
			b.Fatal(err)
		}
		_, stop := a.Watch(b.Context(), v, tun, nil)
		stop()
	}
}
