// Package rights owns what ends when a right does: it revokes credentials with what they
// made and opened, ends what a removed member has, closes tunnels for the operator, and
// removes teams. Whatever it does may be done again, and what was interrupted is finished
// by that. It is in no hurry to be trusted: the revocation or the removal in the store is
// what counts, and the gate and the named links of every relay close by themselves what
// it leaves open. It never decides who may do what, and holds no state.
package rights

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// atOnce is how many agents' tunnels are closed at the same time.
const atOnce = 16

// linksTime bounds the wait for a removed team's agents to be cut off: the promise is
// five seconds.
const linksTime = 10 * time.Second

// Creds revokes credentials.
type Creds interface {
	Revoke(ctx context.Context, by creds.Principal, team ident.TeamID, id ident.CredentialID, keepTunnels bool) ([]store.CredentialRecord, error)
}

// Gate closes tunnels.
type Gate interface {
	Close(ctx context.Context, by string, key ident.AgentKey, ids []ident.SessionID, all bool, reason store.Reason) ([]ident.SessionID, error)
}

// Links takes named links back.
type Links interface {
	Revoke(ctx context.Context, by string, session ident.SessionID, id ident.LinkID) error
}

// Store is what is read and removed.
type Store interface {
	Credential(id ident.CredentialID) (store.CredentialRecord, bool)
	AllCredentials() iter.Seq[store.CredentialRecord]
	AllTunnels() iter.Seq[store.TunnelRecord]
	AllLinks() iter.Seq[store.LinkRecord]
	AllAgents() iter.Seq2[ident.AgentKey, store.AgentRecord]
	Presences(team ident.TeamID) []store.Presence
	DeleteAgent(ctx context.Context, key ident.AgentKey) error
	AdoptCredential(ctx context.Context, team ident.TeamID, id ident.CredentialID) error
	DeleteEnrollments(ctx context.Context, team ident.TeamID) (int, error)
	CatchUp(ctx context.Context) error
}

// Config is what Rights are made of; all of it is required.
type Config struct {
	Creds Creds
	Gate  Gate
	Links Links
	Store Store
	Audit gate.Auditor
}

// Rights ends rights. It is safe for concurrent use.
type Rights struct{ cfg Config }

// New returns Rights.
func New(cfg Config) *Rights { return &Rights{cfg} }

// Revoke revokes a team's credential and those that were made with it, and closes the
// tunnels and named links that they opened, unless those are kept. The error is a
// *api.Problem.
func (r *Rights) Revoke(ctx context.Context, by creds.Principal, team ident.TeamID, id ident.CredentialID, keepTunnels bool) (api.Revoked, error) {
	line := store.Credentials(r.cfg.Store.Credential)
	opened := func(with ident.CredentialID) bool {
		return !keepTunnels && with != "" && (with == id || line.MadeWith(with, id))
	}
	// Before the revocation: after it, any relay may be faster in closing them.
	tunnels := r.tunnels(func(t store.TunnelRecord) bool { return t.Team == team && opened(t.Credential) })
	links := r.links(func(l store.LinkRecord) bool { return l.Team == team && opened(l.Credential) })
	revoked, err := r.cfg.Creds.Revoke(ctx, by, team, id, keepTunnels)
	if err != nil {
		return api.Revoked{}, err
	}
	out := api.Revoked{Credentials: len(revoked)}
	err = r.auditRevoked(ctx, by, team, revoked, keepTunnels)
	// What was opened between the two looks is among these.
	tunnels = append(tunnels, r.tunnels(func(t store.TunnelRecord) bool {
		return t.Team == team && opened(t.Credential) && !slices.ContainsFunc(tunnels, func(o store.TunnelRecord) bool { return o.Session == t.Session })
	})...)
	if cerr := r.end(ctx, by, tunnels, links, store.ReasonRevoked, &out); cerr != nil {
		return out, cerr
	}
	return out, err
}

// auditRevoked records revocations. What cannot be written down is closed all the same.
func (r *Rights) auditRevoked(ctx context.Context, by creds.Principal, team ident.TeamID, revoked []store.CredentialRecord, keepTunnels bool) (err error) {
	for i, rec := range revoked {
		detail := fmt.Sprintf("%s %s", rec.Kind, rec.ID)
		if i > 0 && rec.MadeBy != "" {
			detail += ", made with " + string(rec.MadeBy)
		}
		if keepTunnels {
			detail += ", its tunnels are kept"
		}
		err = errors.Join(err, r.audit(ctx, by, audit.Record{Event: audit.CredentialRevoked, Team: team, Agent: rec.Agent, Detail: detail}))
	}
	return err
}

// RemoveMember ends what a person has and holds open in a team that they were removed
// from: their devices, the credentials that they made, and what they opened by whatever
// means, unless that is kept. That they are no member any more is in the store already,
// and by that every relay ends what they hold open themselves.
//
// The machines stay enrolled: a credential that is for one agent is the team's, whoever
// made it, and no longer ends with its maker. One that is for any agent is not: whoever
// has it can be any machine.
func (r *Rights) RemoveMember(ctx context.Context, by creds.Principal, team ident.TeamID, user ident.UserID, keepTunnels bool) (out api.Revoked, err error) {
	line := store.Credentials(r.cfg.Store.Credential)
	theirs := func(id ident.CredentialID) bool { return line.OpenedBy(store.Opened{Credential: id}, user) }
	opened := func(t ident.TeamID, o store.Opened) bool { return !keepTunnels && t == team && line.OpenedBy(o, user) }
	tunnels := r.tunnels(func(t store.TunnelRecord) bool { return opened(t.Team, t.Opened()) })
	links := r.links(func(l store.LinkRecord) bool { return opened(l.Team, l.Opened()) })
	var revoke []ident.CredentialID
	for rec := range r.cfg.Store.AllCredentials() {
		switch {
		case rec.Team != team || !theirs(rec.ID):
		case rec.OfMachine():
			if !rec.RevokedAt.IsZero() {
				break
			}
			// Before its makers are revoked, so that the machine's link does not notice.
			if err := r.cfg.Store.AdoptCredential(ctx, team, rec.ID); err != nil {
				return out, unavailable(err)
			}
		case rec.RevokedAt.IsZero() || rec.KeepTunnels && !keepTunnels:
			revoke = append(revoke, rec.ID)
		}
	}
	if err := r.cfg.Store.CatchUp(ctx); err != nil { // or the revocation would reach the machines
		return out, unavailable(err)
	}
	for _, id := range revoke {
		if rec, ok := r.cfg.Store.Credential(id); !ok || !rec.RevokedAt.IsZero() && (keepTunnels || !rec.KeepTunnels) {
			continue // with its maker, just now
		}
		revoked, rerr := r.cfg.Creds.Revoke(ctx, by, team, id, keepTunnels)
		if rerr != nil {
			return out, rerr
		}
		out.Credentials += len(revoked)
		err = errors.Join(err, r.auditRevoked(ctx, by, team, revoked, keepTunnels))
	}
	if cerr := r.end(ctx, by, tunnels, links, store.ReasonRemoved, &out); cerr != nil {
		return out, cerr
	}
	return out, err
}

// end closes tunnels and takes back named links, of those that did not end with a tunnel,
// and counts them.
func (r *Rights) end(ctx context.Context, by creds.Principal, tunnels []store.TunnelRecord, links []store.LinkRecord, reason store.Reason, out *api.Revoked) error {
	out.Tunnels += len(tunnels)
	if err := r.close(ctx, by, tunnels, reason); err != nil {
		return err
	}
	for _, l := range links {
		if slices.ContainsFunc(tunnels, func(t store.TunnelRecord) bool { return t.Session == l.Session }) {
			continue // it ended with its tunnel
		}
		out.Links++
		if err := r.cfg.Links.Revoke(ctx, by.Name, l.Session, l.ID); err != nil && !notFound(err) {
			return err
		}
	}
	return nil
}

// Filter chooses tunnels. What is empty chooses nothing in particular; all that is not
// must fit.
type Filter struct {
	Team  ident.TeamID
	Agent ident.AgentID
	// User is who opened them, signed in, with a device or with a key that they made.
	User ident.UserID
}

// Tunnels lists tunnels, the oldest first.
func (r *Rights) Tunnels(f Filter) []store.TunnelRecord {
	return r.tunnels(func(t store.TunnelRecord) bool {
		return (f.Team == "" || t.Team == f.Team) && (f.Agent == "" || t.Agent == f.Agent) && (f.User == "" || r.openedBy(t, f.User))
	})
}

func (r *Rights) openedBy(t store.TunnelRecord, user ident.UserID) bool {
	return store.Credentials(r.cfg.Store.Credential).OpenedBy(t.Opened(), user)
}

// Close closes the tunnels that a filter chooses, and returns them.
func (r *Rights) Close(ctx context.Context, by creds.Principal, f Filter) ([]store.TunnelRecord, error) {
	list := r.Tunnels(f)
	return list, r.close(ctx, by, list, store.ReasonOperator)
}

// close closes tunnels, those of an agent in one step. What others closed meanwhile is
// passed over.
func (r *Rights) close(ctx context.Context, by creds.Principal, tunnels []store.TunnelRecord, reason store.Reason) error {
	of := map[ident.AgentKey][]ident.SessionID{}
	for _, t := range tunnels {
		of[t.Key()] = append(of[t.Key()], t.Session)
	}
	var g errgroup.Group
	g.SetLimit(atOnce)
	for key, ids := range of {
		g.Go(func() error {
			_, err := r.cfg.Gate.Close(ctx, by.Name, key, ids, false, reason)
			if !notFound(err) {
				return err
			}
			for _, id := range ids { // one of them is forgotten already
				if _, err := r.cfg.Gate.Close(ctx, by.Name, key, []ident.SessionID{id}, false, reason); err != nil && !notFound(err) {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// Team is what there is of a team.
type Team struct {
	Team        ident.TeamID `json:"team"`
	Credentials int          `json:"credentials"` // that are neither revoked nor expired
	Agents      int          `json:"agents"`      // known, linked or not
	Tunnels     int          `json:"tunnels"`
}

// Teams lists the teams of which there is anything, by id.
func (r *Rights) Teams() []Team {
	of := map[ident.TeamID]*Team{}
	at := func(id ident.TeamID) *Team {
		if of[id] == nil {
			of[id] = &Team{Team: id}
		}
		return of[id]
	}
	line, now := store.Credentials(r.cfg.Store.Credential), time.Now()
	for rec := range r.cfg.Store.AllCredentials() {
		if _, revoked := line.Revoked(rec.ID); !revoked && (rec.ExpiresAt.IsZero() || now.Before(rec.ExpiresAt)) {
			at(rec.Team).Credentials++
		}
	}
	for key := range r.cfg.Store.AllAgents() {
		at(key.Team).Agents++
	}
	for t := range r.cfg.Store.AllTunnels() {
		at(t.Team).Tunnels++
	}
	out := make([]Team, 0, len(of))
	for _, t := range of {
		out = append(out, *t)
	}
	slices.SortFunc(out, func(a, b Team) int { return cmp.Compare(a.Team, b.Team) })
	return out
}

// Removed says what was removed with a team.
type Removed struct {
	Credentials int `json:"credentials_revoked"`
	Tunnels     int `json:"tunnels_closed"`
	Enrollments int `json:"enrolments_deleted"`
	Agents      int `json:"agents_deleted"`
	// Left are agents that could not be deleted, since they were still linked or had
	// tunnels again.
	Left int `json:"agents_left"`
}

// RemoveTeam revokes a team's credentials, closes its tunnels, whoever opened them, with
// their named links, and deletes its enrollment tokens and what is known of its agents.
// The revoked credentials stay as tombstones for their time. Each step can be done
// again: a removal that was interrupted is finished by another one.
func (r *Rights) RemoveTeam(ctx context.Context, by creds.Principal, team ident.TeamID) (out Removed, err error) {
	defer func() {
		if aerr := r.audit(ctx, by, audit.Record{Event: audit.TeamRemoved, Team: team, Detail: fmt.Sprintf(
			"%d credentials, %d tunnels, %d enrollment tokens, %d agents; %d agents left", out.Credentials, out.Tunnels, out.Enrollments, out.Agents, out.Left)}); err == nil {
			err = aerr
		}
	}()
	// New tokens first, so that none becomes a credential behind this one's back.
	if out.Enrollments, err = r.cfg.Store.DeleteEnrollments(ctx, team); err != nil {
		return out, unavailable(err)
	}
	mine := r.tunnels(func(t store.TunnelRecord) bool { return t.Team == team })
	out.Tunnels = len(mine)
	for rec := range r.cfg.Store.AllCredentials() {
		if rec.Team != team || !rec.RevokedAt.IsZero() && !rec.KeepTunnels {
			continue
		}
		if now, ok := r.cfg.Store.Credential(rec.ID); ok && !now.RevokedAt.IsZero() && !now.KeepTunnels {
			continue // with its maker, just now
		}
		gone, err := r.Revoke(ctx, by, team, rec.ID, false)
		if out.Credentials += gone.Credentials; err != nil {
			return out, err
		}
	}
	late := r.tunnels(func(t store.TunnelRecord) bool {
		return t.Team == team && !slices.ContainsFunc(mine, func(o store.TunnelRecord) bool { return o.Session == t.Session })
	})
	out.Tunnels += len(late)
	if err := r.close(ctx, by, append(mine, late...), store.ReasonTeam); err != nil {
		return out, err
	}
	if err := r.cutOff(ctx, team); err != nil {
		return out, unavailable(err)
	}
	for key := range r.cfg.Store.AllAgents() {
		if key.Team != team {
			continue
		}
		if r.linked(team, key.Agent) {
			out.Left++
			continue
		}
		switch err := r.cfg.Store.DeleteAgent(ctx, key); {
		case err == nil:
			out.Agents++
		case errors.Is(err, store.ErrInUse):
			out.Left++
		default:
			return out, unavailable(err)
		}
	}
	return out, nil
}

// cutOff waits until the team's agents have no links any more, for a while: their
// credentials are revoked, and every relay ends what was linked with them.
func (r *Rights) cutOff(ctx context.Context, team ident.TeamID) error {
	limit, cancel := context.WithTimeout(ctx, linksTime)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for r.linked(team, "") {
		select {
		case <-limit.Done():
			return ctx.Err() // of those that are left the caller is told
		case <-tick.C:
		}
	}
	return r.cfg.Store.CatchUp(ctx)
}

// linked says whether an agent of a team, or any (""), has a link.
func (r *Rights) linked(team ident.TeamID, agent ident.AgentID) bool {
	return slices.ContainsFunc(r.cfg.Store.Presences(team), func(p store.Presence) bool {
		return p.GoneSince.IsZero() && (agent == "" || p.Agent == agent)
	})
}

func (r *Rights) tunnels(fits func(store.TunnelRecord) bool) []store.TunnelRecord {
	var out []store.TunnelRecord
	for t := range r.cfg.Store.AllTunnels() {
		if fits(t) {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b store.TunnelRecord) int {
		return cmp.Or(a.OpenedAt.Compare(b.OpenedAt), cmp.Compare(a.Session, b.Session))
	})
	return out
}

func (r *Rights) links(fits func(store.LinkRecord) bool) []store.LinkRecord {
	var out []store.LinkRecord
	for l := range r.cfg.Store.AllLinks() {
		if fits(l) {
			out = append(out, l)
		}
	}
	return out
}

// audit records who did it, before it is acknowledged.
func (r *Rights) audit(ctx context.Context, by creds.Principal, rec audit.Record) error {
	rec.Actor = by.Name
	if t, ok := gate.TraceOf(ctx); ok {
		rec.RequestID, rec.RemoteAddr = t.Request, t.Remote
	}
	if err := r.cfg.Audit.Append(context.WithoutCancel(ctx), rec); err != nil {
		return fmt.Errorf("it was done, but the audit log could not be written: %w", err)
	}
	return nil
}

func notFound(err error) bool {
	p, ok := errors.AsType[*api.Problem](err)
	return ok && p.Status == 404
}

func unavailable(err error) *api.Problem {
	return api.StoreUnavailable("the relay's store does not answer; what was done so far stays done, and doing it again finishes the rest", err)
}
