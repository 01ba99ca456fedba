package rights_test

import (
	"context"
	"errors"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate/gatetest"
	"github.com/adit-tunnel/adit/relay/internal/rights"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	ours   = ident.TeamID("6f1d3c52-7a94-4c1e-9d3b-2f6a1e0c9b11")
	theirs = ident.TeamID("0b9d3d9e-64cf-4d2b-9f3c-0e1a3a5b0002")
)

var operator = creds.Operator("admin-socket")

// relay is everything around the rights, in memory. It fails at its nth step, once.
type relay struct {
	mu          sync.Mutex
	credentials map[ident.CredentialID]store.CredentialRecord
	tunnels     map[ident.SessionID]store.TunnelRecord
	links       map[ident.LinkID]store.LinkRecord
	agents      map[ident.AgentKey]store.AgentRecord
	enrollments map[ident.TeamID]int
	reasons     map[ident.SessionID]store.Reason
	failAt      int
	audit       *gatetest.Audit
}

var errDown = api.NewProblem(api.CodeStoreUnavailable, "down")

// step begins a change; it needs r.mu.
func (r *relay) step() error {
	r.failAt--
	if r.failAt == 0 {
		return errDown
	}
	return nil
}

func (r *relay) Credential(id ident.CredentialID) (store.CredentialRecord, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.credentials[id]
	return c, ok
}

func all[K comparable, V any](r *relay, m map[K]V) iter.Seq[V] {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Values(maps.Clone(m))
}

func (r *relay) AllCredentials() iter.Seq[store.CredentialRecord] { return all(r, r.credentials) }
func (r *relay) AllTunnels() iter.Seq[store.TunnelRecord]         { return all(r, r.tunnels) }
func (r *relay) AllLinks() iter.Seq[store.LinkRecord]             { return all(r, r.links) }
func (r *relay) Presences(ident.TeamID) []store.Presence          { return nil }
func (r *relay) CatchUp(context.Context) error                    { return nil }

func (r *relay) AllAgents() iter.Seq2[ident.AgentKey, store.AgentRecord] {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.All(maps.Clone(r.agents))
}

func (r *relay) DeleteAgent(_ context.Context, key ident.AgentKey) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.tunnels {
		if t.Key() == key {
			return store.ErrInUse
		}
	}
	if err := r.step(); err != nil {
		return err
	}
	delete(r.agents, key)
	return nil
}

func (r *relay) AdoptCredential(_ context.Context, team ident.TeamID, id ident.CredentialID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.step(); err != nil {
		return err
	}
	c := r.credentials[id]
	if c.Team != team {
		return store.ErrNotFound
	}
	c.MadeBy, c.Maker = "", ""
	r.credentials[id] = c
	return nil
}

func (r *relay) DeleteEnrollments(_ context.Context, team ident.TeamID) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.step(); err != nil {
		return 0, err
	}
	n := r.enrollments[team]
	delete(r.enrollments, team)
	return n, nil
}

// revoker is creds.
type revoker struct{ *relay }

func (r revoker) Revoke(_ context.Context, _ creds.Principal, team ident.TeamID, id ident.CredentialID, keep bool) (out []store.CredentialRecord, err error) {
	line := store.Credentials(r.Credential)
	for _, c := range slices.SortedFunc(r.AllCredentials(), func(a, b store.CredentialRecord) int { return strings.Compare(string(a.ID), string(b.ID)) }) {
		if c.Team != team || c.ID != id && (!line.MadeWith(c.ID, id) || !c.RevokedAt.IsZero() && (keep || !c.KeepTunnels)) {
			continue // or was revoked before its maker
		}
		r.mu.Lock()
		err := r.step()
		if err == nil {
			c.RevokedAt, c.KeepTunnels = time.Now(), keep
			r.credentials[c.ID] = c
			out = append(out, c)
		}
		r.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// closer is the gate.
type closer struct{ *relay }

func (r closer) Close(_ context.Context, _ string, key ident.AgentKey, ids []ident.SessionID, _ bool, reason store.Reason) ([]ident.SessionID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if t, ok := r.tunnels[id]; !ok || t.Key() != key {
			return nil, api.NewProblem(api.CodeTunnelNotFound, "gone")
		}
	}
	if err := r.step(); err != nil {
		return nil, err
	}
	for _, id := range ids {
		delete(r.tunnels, id)
		r.reasons[id] = reason
		maps.DeleteFunc(r.links, func(_ ident.LinkID, l store.LinkRecord) bool { return l.Session == id })
	}
	return ids, nil
}

// linker is the named links.
type linker struct{ *relay }

func (r linker) Revoke(_ context.Context, _ string, _ ident.SessionID, id ident.LinkID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.links[id]; !ok {
		return api.NewProblem(api.CodeLinkNotFound, "gone")
	}
	if err := r.step(); err != nil {
		return err
	}
	delete(r.links, id)
	return nil
}

// newRelay has a team with a maker and a child, and a team that is none of its business.
func newRelay() (*relay, *rights.Rights) {
	r := &relay{
		credentials: map[ident.CredentialID]store.CredentialRecord{}, tunnels: map[ident.SessionID]store.TunnelRecord{}, links: map[ident.LinkID]store.LinkRecord{},
		agents: map[ident.AgentKey]store.AgentRecord{}, enrollments: map[ident.TeamID]int{ours: 2, theirs: 1}, reasons: map[ident.SessionID]store.Reason{}, audit: &gatetest.Audit{},
	}
	for _, c := range []store.CredentialRecord{
		{ID: "maker", Team: ours, User: "bob"}, {ID: "child", Team: ours, MadeBy: "maker"}, {ID: "other", Team: ours}, {ID: "foreign", Team: theirs, MadeBy: "maker"},
	} {
		r.credentials[c.ID] = c
	}
	for _, t := range []store.TunnelRecord{
		{Session: "t-maker", Team: ours, Agent: "gpu-1", Credential: "maker", OpenedBy: "dk:bob/laptop"}, {Session: "t-child", Team: ours, Agent: "gpu-1", Credential: "child", OpenedBy: "sk:bob/laptop"},
		{Session: "t-other", Team: ours, Agent: "gpu-2", Credential: "other", OpenedBy: "sk:ci"}, {Session: "t-person", Team: ours, Agent: "gpu-2", OpenedBy: "user:bob"},
		{Session: "t-foreign", Team: theirs, Agent: "gpu-1", Credential: "foreign", OpenedBy: "user:eve"},
	} {
		r.tunnels[t.Session] = t
		r.agents[t.Key()] = store.AgentRecord{}
	}
	for _, l := range []store.LinkRecord{
		{ID: "l-own", Session: "t-child", Team: ours, Credential: "child"}, {ID: "l-else", Session: "t-other", Team: ours, Credential: "child"}, {ID: "l-person", Session: "t-other", Team: ours},
	} {
		r.links[l.ID] = l
	}
	return r, rights.New(rights.Config{Creds: revoker{r}, Gate: closer{r}, Links: linker{r}, Store: r, Audit: r.audit})
}

func (r *relay) left() (tunnels, links []string) {
	for t := range r.AllTunnels() {
		tunnels = append(tunnels, string(t.Session))
	}
	for l := range r.AllLinks() {
		links = append(links, string(l.ID))
	}
	slices.Sort(tunnels)
	slices.Sort(links)
	return tunnels, links
}

func TestRevokeClosesWhatWasOpened(t *testing.T) {
	for name, c := range map[string]struct {
		id      ident.CredentialID
		keep    bool
		out     api.Revoked
		tunnels string
		links   string
	}{
		"a maker":           {"maker", false, api.Revoked{Credentials: 2, Tunnels: 2, Links: 1}, "t-foreign t-other t-person", "l-person"},
		"a child":           {"child", false, api.Revoked{Credentials: 1, Tunnels: 1, Links: 1}, "t-foreign t-maker t-other t-person", "l-person"},
		"a maker, all kept": {"maker", true, api.Revoked{Credentials: 2}, "t-child t-foreign t-maker t-other t-person", "l-else l-own l-person"},
	} {
		t.Run(name, func(t *testing.T) {
			r, x := newRelay()
			out, err := x.Revoke(t.Context(), operator, ours, c.id, c.keep)
			if err != nil || out != c.out {
				t.Errorf("%+v, %v; want %+v", out, err, c.out)
			}
			tunnels, links := r.left()
			if strings.Join(tunnels, " ") != c.tunnels || strings.Join(links, " ") != c.links {
				t.Errorf("left are %v and %v; want %s and %s", tunnels, links, c.tunnels, c.links)
			}
			recorded := 0
			for _, rec := range r.audit.Records() {
				if rec.Event == audit.CredentialRevoked && rec.Actor == "operator:admin-socket" && rec.Team == ours {
					recorded++
				}
			}
			if recorded != c.out.Credentials {
				t.Errorf("%d revocations are in the audit, want %d", recorded, c.out.Credentials)
			}
		})
	}
}

// ofBob adds what else a person may have: a key that he made when he was signed in, keys
// of machines that were made by him in both ways, one for any machine, and what he opened
// through these; and the same of somebody else, and of his own in another team.
func ofBob(r *relay) {
	for _, c := range []store.CredentialRecord{
		{ID: "key", Team: ours, Kind: api.KindIntegration, Maker: "bob"},
		{ID: "old-key", Team: ours, Kind: api.KindIntegration, CreatedBy: "user:bob"},
		{ID: "machine", Team: ours, Kind: api.KindAgent, Agent: "gpu-1", Maker: "bob"},
		{ID: "machine-by-device", Team: ours, Kind: api.KindAgent, Agent: "gpu-2", MadeBy: "maker"},
		{ID: "any-machine", Team: ours, Kind: api.KindAgent, Maker: "bob"},
		{ID: "of-carol", Team: ours, Kind: api.KindDevice, User: "carol", Maker: "carol"},
		{ID: "elsewhere", Team: theirs, Kind: api.KindDevice, User: "bob"},
	} {
		r.credentials[c.ID] = c
	}
	for _, t := range []store.TunnelRecord{
		{Session: "t-key", Team: ours, Agent: "gpu-2", Credential: "key", User: "bob", OpenedBy: "sk:x"},
		{Session: "t-signed-in", Team: ours, Agent: "gpu-2", User: "bob", OpenedBy: "user:bob"},
		{Session: "t-carol", Team: ours, Agent: "gpu-2", Credential: "of-carol", User: "carol", OpenedBy: "dk:carol/x"},
		{Session: "t-elsewhere", Team: theirs, Agent: "gpu-1", Credential: "elsewhere", User: "bob", OpenedBy: "dk:bob/x"},
	} {
		r.tunnels[t.Session] = t
	}
	r.links["l-bob"] = store.LinkRecord{ID: "l-bob", Session: "t-carol", Team: ours, User: "bob"}
}

// TestRemovingAMemberEndsWhatIsTheirs fails at every step there is, and does it again.
func TestRemovingAMemberEndsWhatIsTheirs(t *testing.T) {
	for _, keep := range []bool{false, true} {
		wantTunnels, wantLinks := "t-carol t-elsewhere t-foreign t-other", "l-person"
		if keep {
			wantTunnels, wantLinks = "t-carol t-child t-elsewhere t-foreign t-key t-maker t-other t-person t-signed-in", "l-bob l-else l-own l-person"
		}
		steps := 0
		for at := 1; ; at++ {
			r, x := newRelay()
			ofBob(r)
			r.failAt = at
			out, err := x.RemoveMember(t.Context(), operator, ours, "bob", keep)
			interrupted := err != nil
			r.failAt = 0
			if interrupted {
				steps++
				if _, err := x.RemoveMember(t.Context(), operator, ours, "bob", keep); err != nil {
					t.Fatalf("after an interruption at step %d: %v", at, err)
				}
			} else if out.Credentials != 5 || !keep && (out.Tunnels != 5 || out.Links != 2) {
				t.Errorf("removed with %+v, want 5 credentials and, unless kept, 5 tunnels and 2 links", out)
			}
			tunnels, links := r.left()
			if strings.Join(tunnels, " ") != wantTunnels || strings.Join(links, " ") != wantLinks {
				t.Errorf("interrupted at step %d: left are %v and %v; want %s and %s", at, tunnels, links, wantTunnels, wantLinks)
			}
			for id, c := range r.credentials {
				want := slices.Contains([]ident.CredentialID{"maker", "child", "key", "old-key", "any-machine"}, id)
				if c.RevokedAt.IsZero() == want {
					t.Errorf("interrupted at step %d: credential %s is revoked: %t, want %t", at, id, !want, want)
				}
				if _, revoked := store.Credentials(r.Credential).Revoked(id); c.OfMachine() && revoked {
					t.Errorf("interrupted at step %d: the machine of %s has lost its link with its maker", at, id)
				}
			}
			for id, reason := range r.reasons {
				if reason != store.ReasonRemoved {
					t.Errorf("%s closed because %q", id, reason)
				}
			}
			if !interrupted {
				break
			}
		}
		if steps < 5 {
			t.Errorf("there were %d steps to fail at, and more were expected", steps)
		}
	}
}

func TestWhoseTunnels(t *testing.T) {
	_, x := newRelay()
	for want, f := range map[string]rights.Filter{
		"t-child t-foreign t-maker t-other t-person": {}, "t-child t-maker t-other t-person": {Team: ours}, "t-child t-maker t-person": {User: "bob"},
		"t-foreign": {Team: theirs}, "t-other t-person": {Team: ours, Agent: "gpu-2"}, "t-person": {Team: ours, Agent: "gpu-2", User: "bob"}, "": {User: "bo"},
	} {
		var got []string
		for _, tun := range x.Tunnels(f) {
			got = append(got, string(tun.Session))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%+v chooses %v, want %s", f, got, want)
		}
	}
}

// TestARemovalThatWasInterruptedIsFinished fails at every step there is, and then does
// it again.
func TestARemovalThatWasInterruptedIsFinished(t *testing.T) {
	steps := 0
	for at := 1; ; at++ {
		r, x := newRelay()
		r.failAt = at
		_, err := x.RemoveTeam(t.Context(), operator, ours)
		interrupted := err != nil
		r.failAt = 0
		if interrupted {
			if p, ok := errors.AsType[*api.Problem](err); !ok || p.Status != http.StatusServiceUnavailable {
				t.Fatalf("interrupted at step %d: %v", at, err)
			}
			steps++
			if _, err := x.RemoveTeam(t.Context(), operator, ours); err != nil {
				t.Fatalf("after an interruption at step %d: %v", at, err)
			}
		}
		if tunnels, links := r.left(); strings.Join(tunnels, " ") != "t-foreign" || len(links) != 0 {
			t.Errorf("interrupted at step %d: left are %v and %v", at, tunnels, links)
		}
		for id, c := range r.credentials {
			if c.RevokedAt.IsZero() != (c.Team == theirs) {
				t.Errorf("interrupted at step %d: credential %s: revoked %v", at, id, c.RevokedAt)
			}
		}
		if len(r.agents) != 1 || r.enrollments[ours] != 0 || r.enrollments[theirs] != 1 {
			t.Errorf("interrupted at step %d: agents %v, enrollment tokens %v", at, r.agents, r.enrollments)
		}
		if got := x.Teams(); len(got) != 1 || got[0] != (rights.Team{Team: theirs, Credentials: 1, Agents: 1, Tunnels: 1}) {
			// What another team says was made with ours is none of ours: it lives on.
			t.Errorf("interrupted at step %d: the teams left are %+v", at, got)
		}
		again, err := x.RemoveTeam(t.Context(), operator, ours)
		if err != nil || again != (rights.Removed{}) {
			t.Errorf("again: %+v, %v", again, err)
		}
		if !interrupted {
			break
		}
	}
	if steps < 6 {
		t.Errorf("there were %d steps to fail at, and more were expected", steps)
	}
}
