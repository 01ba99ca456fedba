package gate_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// TestWhatARevokedCredentialOpenedIsClosed writes nothing but the revocation, as a relay
// that died right after it: every other relay closes what the credential opened, or one
// that it made, and nothing else.
func TestWhatARevokedCredentialOpenedIsClosed(t *testing.T) {
	const maker, child, other = ident.CredentialID("cred_1"), ident.CredentialID("cred_2"), ident.CredentialID("cred_3")
	set := func(p *pool, id, madeBy ident.CredentialID, change func(*store.CredentialRecord)) {
		r := store.CredentialRecord{ID: id, Team: box.Team, MadeBy: madeBy}
		if change != nil {
			change(&r)
		}
		p.store.SetCredential(r)
	}
	open := func(t *testing.T, r *relay, with ident.CredentialID) ident.SessionID {
		o, err := r.Open(t.Context(), creds.Principal{Kind: creds.KindIntegration, Team: box.Team, Name: "sk:x", Credential: with}, box, gate.OpenSpec{Port: 1})
		if err != nil {
			t.Fatal(err)
		}
		return o.Tunnel.Session
	}
	revoke := func(keep bool) func(*store.CredentialRecord) {
		return func(r *store.CredentialRecord) { r.RevokedAt, r.KeepTunnels = time.Now(), keep }
	}
	for name, c := range map[string]struct {
		change func(p *pool)
		closed []ident.CredentialID
	}{
		"the one itself":                 {func(p *pool) { set(p, other, "", revoke(false)) }, []ident.CredentialID{other}},
		"its maker":                      {func(p *pool) { set(p, maker, "", revoke(false)) }, []ident.CredentialID{maker, child}},
		"its maker, what it made stays":  {func(p *pool) { set(p, child, maker, revoke(true)); set(p, maker, "", revoke(true)) }, nil},
		"kept, and then its maker":       {func(p *pool) { set(p, child, maker, revoke(true)); set(p, maker, "", revoke(false)) }, []ident.CredentialID{maker, child}},
		"kept":                           {func(p *pool) { set(p, other, "", revoke(true)) }, nil},
		"kept, and then closed":          {func(p *pool) { set(p, other, "", revoke(true)); set(p, other, "", revoke(false)) }, []ident.CredentialID{other}},
		"only expired":                   {func(p *pool) { set(p, other, "", func(r *store.CredentialRecord) { r.ExpiresAt = time.Now() }) }, nil},
		"only used":                      {func(p *pool) { set(p, other, "", func(r *store.CredentialRecord) { r.LastUsed = time.Now() }) }, nil},
		"two that say they made another": {func(p *pool) { set(p, maker, child, nil) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t)
				a, b := p.relay("a", 0, gate.Limits{}), p.relay("b", 0, gate.Limits{})
				p.connect(a, "a", 1)
				set(p, maker, "", nil)
				set(p, child, maker, nil)
				set(p, other, "", nil)
				tunnels := map[ident.CredentialID]ident.SessionID{}
				for _, id := range []ident.CredentialID{maker, child, other, ""} {
					tunnels[id] = open(t, a, id)
				}
				synctest.Wait() // both relays know of them
				c.change(p)
				time.Sleep(time.Second)
				want := map[ident.SessionID]bool{}
				for _, id := range c.closed {
					want[tunnels[id]] = true
				}
				if len(c.closed) > 0 { // an opening that was under way when it was revoked
					late := open(t, a, c.closed[0])
					time.Sleep(time.Second)
					if _, there := p.store.Tunnel(late); there {
						t.Error("what was opened just after the revocation stays open")
					}
				}
				for with, id := range tunnels {
					_, there := p.store.Tunnel(id)
					reason, _ := a.local.WasCut(id)
					_, cut := b.local.WasCut(id)
					if there == want[id] || cut != want[id] || cut != (reason == store.ReasonRevoked) {
						t.Errorf("the tunnel opened with %q is there: %t, closed because %q, cut at the other relay: %t; it should be closed: %t", with, there, reason, cut, want[id])
					}
				}
			})
		})
	}
}

// TestARevokedTunnelIsClosedForARelayThatDoesNot has the relay that tends the agent do
// nothing, as one of a version that knows nothing of this: after a grace another relay
// begins the close.
func TestARevokedTunnelIsClosedForARelayThatDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		a, b := p.relay("a", 0, gate.Limits{}), p.relay("b", 0, gate.Limits{})
		p.connect(a, "a", 1)
		o, err := a.Open(t.Context(), creds.Principal{Kind: creds.KindIntegration, Team: box.Team, Name: "sk:x", Credential: "cred_1"}, box, gate.OpenSpec{Port: 1})
		if err != nil {
			t.Fatal(err)
		}
		a.stop()
		p.store.SetCredential(store.CredentialRecord{ID: "cred_1", Team: box.Team, RevokedAt: time.Now()})
		time.Sleep(time.Second)
		if reason, _ := b.local.WasCut(o.Tunnel.Session); reason != store.ReasonRevoked {
			t.Errorf("what uses it through this relay goes on: cut because %q", reason)
		}
		time.Sleep(4 * time.Second)
		rec, _ := p.store.Agent(box)
		if st := rec.Tunnels[o.Tunnel.Session]; st.State != store.TunnelClosing || st.Reason != store.ReasonRevoked {
			t.Errorf("seconds later it is %q because %q, want closing", st.State, st.Reason)
		}
	})
}

// TestWhatARemovedPersonOpenedIsClosed writes nothing but that a person was removed, as a
// relay that died right after it: every other relay closes what they opened, themselves
// or by what they made, unless it is kept, and nothing else.
func TestWhatARemovedPersonOpenedIsClosed(t *testing.T) {
	const other = ident.TeamID("0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0099")
	callers := map[string]creds.Principal{
		"herself":              {Kind: creds.KindUser, Team: box.Team, User: "alice", Name: "user:alice"},
		"by her device":        {Kind: creds.KindDevice, Team: box.Team, User: "alice", Name: "dk:alice/x", Credential: "cred_1"},
		"by a key she made":    {Kind: creds.KindIntegration, Team: box.Team, Maker: "alice", Name: "sk:x", Credential: "cred_2"},
		"somebody else":        {Kind: creds.KindUser, Team: box.Team, User: "bob", Name: "user:bob"},
		"a key of nobody's":    {Kind: creds.KindIntegration, Team: box.Team, Name: "sk:y", Credential: "cred_3"},
		"the operator in here": creds.Operator("root").InTeam(box.Team),
	}
	for name, c := range map[string]struct {
		member store.MemberRecord
		closed []string
	}{
		"removed":                   {store.MemberRecord{Team: box.Team, User: "alice", RemovedAt: time.Now()}, []string{"herself", "by her device", "by a key she made"}},
		"removed, her tunnels kept": {store.MemberRecord{Team: box.Team, User: "alice", RemovedAt: time.Now(), KeepTunnels: true}, nil},
		"in another role":           {store.MemberRecord{Team: box.Team, User: "alice", Role: api.RoleViewer}, nil},
		"removed from another team": {store.MemberRecord{Team: other, User: "alice", RemovedAt: time.Now()}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t)
				a, b := p.relay("a", 0, gate.Limits{}), p.relay("b", 0, gate.Limits{})
				p.connect(a, "a", 1)
				tunnels := map[string]ident.SessionID{}
				for who, caller := range callers {
					o, err := a.Open(t.Context(), caller, box, gate.OpenSpec{Port: 1})
					if err != nil {
						t.Fatal(err)
					}
					tunnels[who] = o.Tunnel.Session
				}
				synctest.Wait() // both relays know of them
				p.store.SetMember(c.member)
				time.Sleep(time.Second)
				for who, id := range tunnels {
					want := slices.Contains(c.closed, who)
					_, there := p.store.Tunnel(id)
					reason, _ := a.local.WasCut(id)
					_, cut := b.local.WasCut(id)
					if there == want || cut != want || cut != (reason == store.ReasonRemoved) {
						t.Errorf("the tunnel opened by %s is there: %t, closed because %q, cut at the other relay: %t; it should be closed: %t", who, there, reason, cut, want)
					}
				}
			})
		})
	}
}
