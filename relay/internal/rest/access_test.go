package rest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

const opens = "/agents/gpu-1/tunnel"

func TestAccessAtOpening(t *testing.T) {
	w := newWorld(t)
	o := into[api.Tunnel](t, w.do("POST", opens, "user", ""), 201)
	if rec, _ := w.store.Tunnel(o.SessionID); o.Access.Access != api.AccessAnyone || rec.Access != nil {
		t.Errorf("opened without a word of it, it says %+v and the record %+v", o.Access, rec.Access)
	}
	o = into[api.Tunnel](t, w.do("POST", opens, "user", `{"access":"people","people":["alice@example.com"," *@partner.example ","group:vision","alice@example.com"],"from":["203.0.113.7","2001:db8::1/48"],"read_only":true,"identity_header":"X-WEBAUTH-USER"}`), 201)
	rec, _ := w.store.Tunnel(o.SessionID)
	if o.Access.Access != api.AccessPeople || strings.Join(o.People, " ") != "alice@example.com *@partner.example group:vision" || strings.Join(o.From, " ") != "203.0.113.7/32 2001:db8::/48" || !o.ReadOnly || o.IdentityHeader != "X-WEBAUTH-USER" {
		t.Errorf("it says %+v", o)
	}
	if rec.Access == nil || rec.Access.Version == 0 || rec.Access.Mode != o.Access.Access || rec.IdentityHeader != o.IdentityHeader {
		t.Errorf("the record has %+v", rec.Access)
	}
	for _, s := range into[api.TunnelStatus](t, w.do("GET", opens, "user", ""), 200).Sessions {
		if s.SessionID == o.SessionID && (s.Access.Access != api.AccessPeople || len(s.People) != 3 || !s.ReadOnly || s.IdentityHeader != o.IdentityHeader) {
			t.Errorf("the list has %+v", s)
		}
	}
	const range422 = "Unprocessable Entity out_of_range"
	for body, want := range map[string]string{
		`{"access":"everybody"}`: range422, `{"access":"people"}`: range422, `{"access":"people","people":["*"]}`: range422,
		`{"access":"people","people":["*@"]}`: range422, `{"access":"people","people":["group:"]}`: range422, `{"access":"people","people":["a\u0000"]}`: range422,
		`{"access":"people","people":["a*@example.com"]}`: range422, `{"access":"team","people":["alice@example.com"]}`: range422,
		`{"access":"people","people":["` + strings.Repeat(`a","`, 64) + `b"]}`: range422,
		`{"access":"pin"}`: range422, `{"access":"pin","pin":"12345"}`: range422, `{"pin":"123456"}`: range422, `{"access":"pin","pin":"` + strings.Repeat("1", 65) + `"}`: range422,
		`{"from":["10.0.0.0/33"]}`: range422, `{"from":["host"]}`: range422, `{"from":["::ffff:10.0.0.0/104"]}`: range422,
		`{"tunnel_protocol":"tcp","read_only":true}`: range422, `{"read_only":"yes"}`: "Bad Request invalid_field",
		`{"identity_header":"Cookie"}`: range422, `{"identity_header":"x-adit-user"}`: range422, `{"identity_header":"a b"}`: range422, `{"identity_header":"sec-fetch-site"}`: range422, `{"identity_header":"X_USER"}`: range422,
	} {
		w.want(w.do("POST", opens, "user", body), want)
	}
}

// Who narrows a rule without saying for whom it is does not widen it to the default.
func TestNarrowingDoesNotWiden(t *testing.T) {
	w := newWorld(t)
	o := into[api.Tunnel](t, w.do("POST", opens, "user", `{"access":"team"}`), 201)
	at := "/tunnels/" + string(o.SessionID) + "/access"
	for _, body := range []string{`{"read_only":true}`, `{"from":["10.0.0.0/8"]}`} {
		w.want(w.do("PUT", at, "user", body), "Unprocessable Entity out_of_range")
	}
	if rec, _ := w.store.Tunnel(o.SessionID); rec.Access == nil || rec.Access.Mode != api.AccessTeam {
		t.Errorf("it became %+v", rec.Access)
	}
	if c := into[api.Access](t, w.do("PUT", at, "user", `{"access":"team","read_only":true}`), 200); c.Access != api.AccessTeam || !c.ReadOnly {
		t.Errorf("it became %+v", c)
	}
}

// A relay of the last release lets in who has the URL, and writes records without rules.
func TestNoRuleBesideARelayThatAppliesNone(t *testing.T) {
	w := newWorld(t)
	ruled := into[api.Tunnel](t, w.do("POST", opens, "user", `{"access":"team"}`), 201)
	open := into[api.Tunnel](t, w.do("POST", opens, "user", ""), 201)
	w.oldRelay = true
	const notYet = "Conflict access_not_yet"
	w.want(w.do("POST", opens, "user", `{"access":"team"}`), notYet)
	w.want(w.do("POST", opens, "user", `{"from":["10.0.0.0/8"]}`), notYet)
	w.want(w.do("PUT", "/tunnels/"+string(open.SessionID)+"/access", "user", `{"access":"team"}`), notYet)
	w.want(w.do("POST", "/tunnels/"+string(open.SessionID)+"/links", "user", `{"name":"a","access":"team"}`), notYet)
	into[api.Tunnel](t, w.do("POST", opens, "user", ""), 201)
	into[api.Access](t, w.do("PUT", "/tunnels/"+string(ruled.SessionID)+"/access", "user", `{"access":"anyone"}`), 200)
}

// A PIN is nowhere in what is answered or kept.
func TestAPINIsKeptAsItsHashOnly(t *testing.T) {
	w := newWorld(t)
	const pin = "correct horse"
	body := `{"access":"pin","pin":"` + pin + `"}`
	first := w.do("POST", opens, "user", body, "Idempotency-Key", "k1")
	o := into[api.Tunnel](t, first, 201)
	rec, _ := w.store.Tunnel(o.SessionID)
	if !strings.HasPrefix(rec.Access.PINHash, "$argon2id$") || strings.Contains(rec.Access.PINHash, pin) {
		t.Errorf("the record has %q", rec.Access.PINHash)
	}
	list := w.do("GET", opens, "user", "")
	put := w.do("PUT", "/tunnels/"+string(o.SessionID)+"/access", "user", `{"access":"pin","read_only":true}`)
	for _, r := range []reply{first, list, put} {
		if strings.Contains(string(r.body), pin) || strings.Contains(string(r.body), "argon2") {
			t.Errorf("it is answered: %s", r.body)
		}
	}
	after, _ := w.store.Tunnel(o.SessionID)
	if after.Access.PINHash != rec.Access.PINHash || after.Access.Version <= rec.Access.Version || !after.Access.ReadOnly {
		t.Errorf("changed without a PIN, the record has %+v", after.Access)
	}
	// The same key is for the same PIN.
	if again := into[api.Tunnel](t, w.do("POST", opens, "user", body, "Idempotency-Key", "k1"), 201); again.SessionID != o.SessionID {
		t.Error("a repeated request opened another tunnel")
	}
	w.want(w.do("POST", opens, "user", `{"access":"pin","pin":"another one"}`, "Idempotency-Key", "k1"), "Unprocessable Entity idempotency_mismatch")
	for _, r := range w.audit.Records() {
		if strings.Contains(r.Detail, pin) {
			t.Errorf("the audit log has it: %+v", r)
		}
	}
}

func TestAccessIsChanged(t *testing.T) {
	w := newWorld(t)
	o := into[api.Tunnel](t, w.do("POST", opens, "user", ""), 201)
	path := "/tunnels/" + string(o.SessionID) + "/access"
	events := w.watch(w.serve(), "user", "")
	versions := map[uint64]bool{}
	for _, body := range []string{`{"access":"team"}`, `{"access":"knock","from":["10.0.0.0/8"]}`, `{"access":"anyone"}`, `{"access":"team"}`} {
		want := strings.Split(body, `"`)[3]
		if got := into[api.Access](t, w.do("PUT", path, o.AdminToken, body), 200); string(got.Access) != want {
			t.Errorf("%s: %+v", body, got)
		}
		rec, _ := w.store.Tunnel(o.SessionID)
		if v := rec.AccessVersion(); versions[v] || (v == 0) != (want == "anyone") {
			t.Errorf("%s: version %d after %v", body, v, versions)
		} else if v != 0 {
			versions[v] = true
		}
		for {
			e, ok := events.next()
			if !ok {
				t.Fatal("the stream ended")
			}
			if e.kind == api.EventTunnelAccess {
				if e.data.Session != o.SessionID || e.data.AgentID != "gpu-1" {
					t.Errorf("the event is %+v", e.data)
				}
				break
			}
		}
	}
	before, _ := w.store.Tunnel(o.SessionID)
	into[api.Access](t, w.do("PUT", path, "user", `{"access":"team"}`), 200)
	if after, _ := w.store.Tunnel(o.SessionID); after.AccessVersion() != before.AccessVersion() {
		t.Error("what changes nothing asks everybody again")
	}
	n := 0
	for _, r := range w.audit.Records() {
		if r.Event == audit.AccessChanged {
			n++
			if r.Session != o.SessionID || r.Actor != "admin:"+string(o.SessionID) || !strings.HasPrefix(r.Detail, "access ") {
				t.Errorf("the audit log has %+v", r)
			}
		}
	}
	if n != 4 {
		t.Errorf("%d changes are in the audit log, of 4", n)
	}
	w.want(w.do("PUT", path, "user", ``), "Bad Request invalid_body")
	w.want(w.do("PUT", path, "user", `{"access":"pin"}`), "Unprocessable Entity out_of_range")
	w.want(w.do("PUT", path, "stranger", `{"access":"team"}`), "Not Found tunnel_not_found")
	w.want(w.do("PUT", path, w.as("carol", creds.Principal{Kind: creds.KindUser, User: "carol", Role: api.RoleMember}), `{"access":"team"}`), "Forbidden role_required")
	into[api.Closed](t, w.do("DELETE", opens, "user", ""), 200)
	w.want(w.do("PUT", path, "user", `{"access":"team"}`), "Not Found tunnel_not_found")
}

func TestAccessOfNamedLinks(t *testing.T) {
	w := newWorld(t)
	o := into[api.Tunnel](t, w.do("POST", opens, "user", `{"access":"team"}`), 201)
	base := "/tunnels/" + string(o.SessionID) + "/links"
	plain := into[api.NamedLink](t, w.do("POST", base, "user", `{"name":"colleagues"}`), 201)
	open := into[api.NamedLink](t, w.do("POST", base, "user", `{"name":"guests","access":"anyone","read_only":true}`), 201)
	if plain.Access.Access != api.AccessTeam || open.Access.Access != api.AccessAnyone || !open.ReadOnly {
		t.Errorf("the links say %+v and %+v", plain.Access, open.Access)
	}
	into[api.Access](t, w.do("PUT", "/tunnels/"+string(o.SessionID)+"/access", "user", `{"access":"knock"}`), 200)
	for _, l := range into[api.NamedLinkList](t, w.do("GET", base, "user", ""), 200).Links {
		if want := map[ident.LinkID]api.AccessMode{plain.LinkID: api.AccessKnock, open.LinkID: api.AccessAnyone}[l.LinkID]; l.Access.Access != want {
			t.Errorf("the link %q says %s, want %s", l.Name, l.Access.Access, want)
		}
	}
	path := base + "/" + string(open.LinkID) + "/access"
	if l := into[api.NamedLink](t, w.do("PUT", path, o.AdminToken, `{"access":"people","people":["bob@example.com"]}`), 200); l.Access.Access != api.AccessPeople || l.LinkID != open.LinkID {
		t.Errorf("changed, it says %+v", l)
	}
	if l := into[api.NamedLink](t, w.do("PUT", path, "user", `{}`), 200); l.Access.Access != api.AccessKnock {
		t.Errorf("given its tunnel's, it says %+v", l.Access)
	}
	w.want(w.do("PUT", path, "user", `{"read_only":true}`), "Unprocessable Entity out_of_range")
	w.want(w.do("POST", base, "user", `{"name":"x","from":["10.0.0.0/8"]}`), "Unprocessable Entity out_of_range")
	w.want(w.do("PUT", base+"/nonsense/access", "user", `{}`), "Not Found link_not_found")
}

func TestTheOperatorsFloor(t *testing.T) {
	w := newWorld(t)
	wide := into[api.Tunnel](t, w.do("POST", opens, "user", ""), 201) // before the floor was raised
	w.restart(access.Floor{Minimum: api.AccessTeam, Default: api.AccessTeam})
	const tooWide = "Unprocessable Entity access_too_wide"
	o := into[api.Tunnel](t, w.do("POST", opens, "user", ""), 201)
	if o.Access.Access != api.AccessTeam {
		t.Errorf("without a word of it, it is open to %s", o.Access.Access)
	}
	links := "/tunnels/" + string(o.SessionID) + "/links"
	for _, mode := range []string{`"anyone"`, `"pin","pin":"123456"`, `"knock"`} {
		w.want(w.do("POST", opens, "user", `{"access":`+mode+`}`), tooWide)
		w.want(w.do("PUT", "/tunnels/"+string(o.SessionID)+"/access", "user", `{"access":`+mode+`}`), tooWide)
		w.want(w.do("POST", links, "user", `{"name":"x","access":`+mode+`}`), tooWide)
	}
	into[api.Tunnel](t, w.do("POST", opens, "user", `{"access":"people","people":["a@example.com"]}`), 201)
	for _, s := range into[api.TunnelStatus](t, w.do("GET", opens, "user", ""), 200).Sessions {
		if warned := strings.Contains(strings.Join(s.Warnings, "\n"), "wider than this relay's operator allows"); warned != (s.SessionID == wide.SessionID) {
			t.Errorf("%s (%s): warnings %q", s.SessionID, s.Access.Access, s.Warnings)
		}
	}
	// People, by default: whoever opened it alone.
	w.restart(access.Floor{Minimum: api.AccessPeople, Default: api.AccessPeople})
	o = into[api.Tunnel](t, w.do("POST", opens, "user", ""), 201)
	if o.Access.Access != api.AccessPeople || len(o.People) != 0 {
		t.Errorf("without a word of it, it says %+v", o.Access)
	}
	if a := into[api.Access](t, w.do("PUT", "/tunnels/"+string(o.SessionID)+"/access", "user", `{"access":"people","read_only":true}`), 200); !a.ReadOnly || a.Access != api.AccessPeople {
		t.Errorf("narrowed, it says %+v", a)
	}
}

// Where nobody signs in, a tunnel for people says that they cannot come with a browser.
func TestAccessWhereNobodySignsIn(t *testing.T) {
	w := newWorld(t)
	w.signInOff = "set wildcard_domain"
	w.restart(access.Floor{})
	for mode, warned := range map[string]bool{"": false, `{"access":"team"}`: true, `{"access":"people","people":["a@example.com"]}`: true, `{"access":"pin","pin":"123456"}`: false, `{"access":"knock"}`: false} {
		if o := into[api.Tunnel](t, w.do("POST", opens, "user", mode), 201); strings.Contains(strings.Join(o.Warnings, "\n"), "set wildcard_domain") != warned {
			t.Errorf("%s: warnings %q", mode, o.Warnings)
		}
	}
}

// A version never comes back, also when there was no rule in between.
func TestVersionsOfRules(t *testing.T) {
	now := time.Now()
	rule, err := access.Floor{}.Rule(api.AccessRequest{Access: api.AccessTeam}, api.ProtocolHTTP)
	if err != nil {
		t.Fatal(err)
	}
	a, err := access.ReplaceTunnel(nil, rule, now)
	if err != nil {
		t.Fatal(err)
	}
	rule.ReadOnly = true
	b, err := access.ReplaceTunnel(a, rule, now.Add(-time.Hour)) // by a relay whose clock is behind
	if err != nil || b.Version <= a.Version {
		t.Errorf("the second version is %d after %d: %v", b.Version, a.Version, err)
	}
}

func TestWhoWaitsIsListedAndAnswered(t *testing.T) {
	w := newWorld(t)
	o := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", `{"access":"knock"}`), 201)
	path := "/tunnels/" + string(o.SessionID) + "/knocks"
	for _, secret := range []string{"user", o.AdminToken} {
		list := into[api.KnockList](t, w.do("GET", path, secret, ""), 200)
		if len(list.Knocks) != 1 || list.Knocks[0].Name != "Mallory" || list.Knocks[0].SessionID != o.SessionID {
			t.Errorf("%s sees %+v waiting, want Mallory", secret, list.Knocks)
		}
		if r := w.do("POST", path+"/00c0ffee", secret, `{"admit":false}`); r.status != 204 {
			t.Errorf("%s refuses Mallory: %d %s", secret, r.status, r.body)
		}
	}
	w.want(w.do("POST", path+"/00c0ffee", "user", `{}`), "Unprocessable Entity out_of_range")
	w.want(w.do("POST", path+"/nobody", "user", `{"admit":true}`), "Not Found knock_not_found")
	w.want(w.do("POST", path+"/00c0ffee", "stranger", `{"admit":true}`), "Not Found tunnel_not_found")
	var said bool
	for _, rec := range w.audit.Records() {
		said = said || rec.Event == audit.KnockAnswered && rec.Session == o.SessionID && strings.HasPrefix(rec.Detail, "Mallory false by ")
	}
	if !said {
		t.Error("the audit log does not say who answered the knock")
	}
}
