// Package pairing owns how a program gets in that has no secret: it asks, shows a short
// code, and waits until somebody who is signed in types that code and says yes; then it
// gets keys of its own, once. It bounds how many wait and how often codes are tried, and
// writes who let whom in to the audit log. It keeps no code and no key: of codes it stores
// hashes, and keys are made when the program comes for them. It knows nothing of HTTP, and
// never decides who is signed in.
package pairing

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/audit"
	"github.com/adit-tunnel/adit/relay/internal/caller"
	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/gate"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	life     = 5 * time.Minute
	interval = 2 * time.Second
	// ConfirmPath is the page where codes are confirmed, on the console's origin.
	ConfirmPath = "/desktop/pair"
)

// The least role of who may let a program in.
const leastRole = api.RoleMember

// Store keeps who waits.
type Store interface {
	CreatePairing(ctx context.Context, r store.PairingRecord) error
	Pairing(hash string) (store.PairingRecord, bool)
	PairingsByCode(code string) []store.PairingRecord
	Pairings() []store.PairingRecord
	ChangePairing(ctx context.Context, hash string, change func(*store.PairingRecord) error) (store.PairingRecord, error)
	TakePairing(ctx context.Context, hash string, made ...store.CredentialRecord) (store.PairingRecord, error)
	DeletePairing(ctx context.Context, hash string) error
	CatchUp(ctx context.Context) error
	Agent(key ident.AgentKey) (store.AgentRecord, bool)
	AgentCredentials(key ident.AgentKey) []store.CredentialRecord
	Team(id ident.TeamID) (store.TeamRecord, bool)
	User(id ident.UserID) (store.UserRecord, bool)
	Member(team ident.TeamID, user ident.UserID) (store.MemberRecord, bool)
}

// Credentials makes keys, and knows what people are now.
type Credentials interface {
	Pair(p store.PairingRecord, role api.Role) (creds.Paired, error)
	RoleIn(team ident.TeamID, user ident.UserID, said api.Role, named bool) (api.Role, bool)
}

// Audit is the audit log.
type Audit interface {
	Append(ctx context.Context, r audit.Record) error
}

// Config is what a Pairing is made of; all of it is required but Registerer.
type Config struct {
	Store       Store
	Credentials Credentials
	Audit       Audit
	Key         ident.ClusterKey // hashes the codes that people type
	Origin      string           // of the page where they are confirmed
	// MayAppear refuses an agent that there is no room for.
	MayAppear  func(ident.AgentKey) error
	Now        func() time.Time
	Registerer prometheus.Registerer
}

// Pairing lets programs in. It is safe for concurrent use.
type Pairing struct {
	cfg     Config
	metrics *metrics
	limits  limits
	// guessing makes one step of looking a code up and counting it, so that codes tried at
	// once are counted like codes tried one after the other.
	guessing sync.Mutex
}

// New returns a Pairing.
func New(cfg Config) *Pairing {
	return &Pairing{cfg: cfg, metrics: newMetrics(cfg.Registerer), limits: newLimits()}
}

var errNotFound = api.NewProblem(api.CodePairingNotFound, "the code is unknown, has expired or was used already: begin again on the machine, which shows a new one")

// Start lets a program wait. Anybody may call it. The error is a *api.Problem.
func (p *Pairing) Start(ctx context.Context, req api.PairStartRequest) (_ api.PairStarted, err error) {
	defer func() { p.metrics.count(stepStart, err) }()
	from, now := remote(ctx), p.cfg.Now().UTC()
	rec := store.PairingRecord{
		Client: req.Client, MachineName: req.MachineName, Keys: req.Keys, Agent: req.AgentID,
		RemoteAddr: from, CreatedAt: now, ExpiresAt: now.Add(life),
	}
	if len(rec.Keys) == 0 {
		rec.Keys = []api.PairKey{api.PairDevice}
	}
	if err := checkStart(rec); err != nil {
		return api.PairStarted{}, err
	}
	if !p.limits.starts.Take(from, now) {
		return api.PairStarted{}, tooMany("this address asks too often: 10 pairings a minute can be begun", p.limits.starts.Wait(from, now))
	}
	if !p.limits.sites.Take(site(from), now) || !p.limits.allStarts.AllowN(now, 1) {
		return api.PairStarted{}, tooMany("too many pairings are begun at once", time.Second)
	}
	if err := p.makeRoom(ctx, rec); err != nil {
		return api.PairStarted{}, err
	}
	device, code := ident.NewSecret(ident.PrefixPairing), newCode()
	rec.Hash, rec.UserCode = device.Hash(), code.hash(p.cfg.Key)
	if err := p.cfg.Store.CreatePairing(ctx, rec); err != nil {
		return api.PairStarted{}, storeProblem(err)
	}
	return api.PairStarted{
		DeviceCode: device.Reveal(), UserCode: code.String(), ExpiresIn: int(life / time.Second), Interval: int(interval / time.Second),
		VerificationURI: p.cfg.Origin + ConfirmPath + "?user_code=" + code.String(),
	}, nil
}

// Bounds of what a program says of itself, in characters.
const (
	maxClient  = 64
	maxMachine = 100
	maxName    = 100
)

func checkStart(rec store.PairingRecord) error {
	agent := slices.Contains(rec.Keys, api.PairAgent)
	switch {
	case !readable(rec.Client, maxClient):
		return outOfRange("client: at most %d printable characters", maxClient)
	case !readable(rec.MachineName, maxMachine):
		return outOfRange("machine_name: at most %d printable characters", maxMachine)
	case len(rec.Keys) > 2, len(rec.Keys) == 2 && rec.Keys[0] == rec.Keys[1],
		slices.ContainsFunc(rec.Keys, func(k api.PairKey) bool { return k != api.PairDevice && k != api.PairAgent }):
		return outOfRange("keys: device, agent or both, each once")
	case agent && rec.Agent == "":
		return outOfRange("agent_id: the key agent is for one machine: say its name")
	case !agent && rec.Agent != "":
		return outOfRange("agent_id: only with the key agent")
	}
	if agent {
		if _, err := ident.ParseAgentID(string(rec.Agent)); err != nil {
			return outOfRange("agent_id: %v", err)
		}
	}
	return nil
}

// Poll says whether a program was let in; if so it gets its keys, this one time. The
// error is a *api.Problem.
func (p *Pairing) Poll(ctx context.Context, device ident.Secret) (_ api.PairPolled, err error) {
	rec, err := p.waiting(ctx, device)
	if err == nil && !rec.Approved() {
		return api.PairPolled{Status: "pending"}, nil
	}
	defer func() { p.metrics.count(stepTake, err) }()
	if err != nil {
		return api.PairPolled{}, err
	}
	// Whoever said yes must still be somebody who may: removed or demoted since, they let
	// nobody in.
	byIssuer := !strings.HasPrefix(string(rec.User), creds.OwnUsers) // it named the team a moment ago
	role, ok := p.cfg.Credentials.RoleIn(rec.Team, rec.User, "", byIssuer)
	if role = role.Lesser(rec.Role); !ok || !role.AtLeast(leastRole) {
		return api.PairPolled{}, errNotFound
	}
	// Nor if the issuer named them no more since then: the key would be newer than that, and
	// so outlive it.
	if m, known := p.cfg.Store.Member(rec.Team, rec.User); known && m.Ends(rec.CreatedAt) {
		return api.PairPolled{}, errNotFound
	}
	if err := p.mayBind(rec, role); err != nil {
		return api.PairPolled{}, err
	}
	made, err := p.cfg.Credentials.Pair(rec, role)
	if err != nil {
		return api.PairPolled{}, err
	}
	// What follows must not stop half-way because the program hung up.
	ctx = context.WithoutCancel(ctx)
	if _, err := p.cfg.Store.TakePairing(ctx, rec.Hash, made.Records...); err != nil {
		return api.PairPolled{}, storeProblem(err)
	}
	ids := make([]string, 0, len(made.Records))
	for _, c := range made.Records {
		ids = append(ids, string(c.Kind)+" "+string(c.ID))
	}
	if err := p.audit(ctx, audit.Record{
		Event: audit.PairingTaken, Actor: rec.By, Team: rec.Team, Agent: rec.Agent, Detail: strings.Join(ids, ", ") + ", let in by " + rec.By,
	}); err != nil {
		return api.PairPolled{}, err
	}
	out := api.PairPolled{Status: "approved", RawKey: made.Device.Reveal(), AgentKey: made.Agent.Reveal(), TeamID: rec.Team, AgentID: rec.Agent}
	if t, ok := p.cfg.Store.Team(rec.Team); ok {
		out.TeamName = t.Name
	}
	if u, ok := p.cfg.Store.User(rec.User); ok {
		out.UserName = u.Name
	}
	return out, nil
}

// waiting finds a program by its own code. The copy in memory may be a moment behind, so
// a miss deserves one look; but anybody can make codes up, so looks are rationed.
func (p *Pairing) waiting(ctx context.Context, device ident.Secret) (store.PairingRecord, error) {
	hash, now := device.Hash(), p.cfg.Now()
	rec, ok := p.cfg.Store.Pairing(hash)
	if !ok {
		if from := remote(ctx); !p.limits.misses.Take(from, now) || !p.limits.allMisses.AllowN(now, 1) {
			return rec, tooMany("too many unknown device codes are tried", max(time.Second, p.limits.misses.Wait(from, now)))
		}
		if err := p.cfg.Store.CatchUp(ctx); err != nil {
			return rec, storeProblem(err)
		}
		rec, ok = p.cfg.Store.Pairing(hash)
	}
	if !ok || !now.Before(rec.ExpiresAt) {
		return store.PairingRecord{}, errNotFound
	}
	return rec, nil
}

// Show says who waits with a code, for the person to see before they say yes. The error
// is a *api.Problem.
func (p *Pairing) Show(ctx context.Context, by creds.Principal, typed string) (_ api.PairAsked, err error) {
	defer func() { p.metrics.count(stepShow, err) }()
	rec, err := p.byCode(ctx, by, typed)
	if err != nil {
		return api.PairAsked{}, err
	}
	if rec.Approved() {
		return api.PairAsked{}, errNotFound
	}
	return api.PairAsked{
		Client: rec.Client, MachineName: rec.MachineName, RemoteAddr: rec.RemoteAddr, Keys: rec.Keys, AgentID: rec.Agent,
		AskedAt: rec.CreatedAt, ExpiresAt: rec.ExpiresAt,
	}, nil
}

// Confirm lets a program in, as the person who calls, into the team that they call in.
// The error is a *api.Problem.
func (p *Pairing) Confirm(ctx context.Context, by creds.Principal, req api.PairConfirmRequest) (_ api.PairConfirmed, err error) {
	defer func() { p.metrics.count(stepConfirm, err) }()
	if by.Kind != creds.KindUser || by.User == "" || by.Team == "" || !by.Role.AtLeast(leastRole) {
		return api.PairConfirmed{}, api.NewProblem(api.CodeForbidden, "a member of the team who is signed in lets programs in")
	}
	name := strings.TrimSpace(req.DeviceName)
	if !readable(name, maxName) {
		return api.PairConfirmed{}, outOfRange("device_name: at most %d printable characters", maxName)
	}
	rec, err := p.byCode(ctx, by, req.UserCode)
	if err != nil {
		return api.PairConfirmed{}, err
	}
	for _, said := range []string{rec.MachineName, string(rec.Agent), rec.Client, "device"} {
		if name == "" {
			name = said
		}
	}
	rec.Team, rec.By = by.Team, by.Name
	if err := p.mayBind(rec, by.Role); err != nil {
		return api.PairConfirmed{}, err
	}
	// As good as made, so that the person and not the program is told of a full team.
	if _, err := p.cfg.Credentials.Pair(rec, by.Role); err != nil {
		return api.PairConfirmed{}, err
	}
	rec, err = p.cfg.Store.ChangePairing(ctx, rec.Hash, func(r *store.PairingRecord) error {
		switch {
		case r.Approved() && r.User == by.User && r.Team == by.Team && r.DeviceName == name:
			return store.ErrUnchanged // the answer to the first time was lost
		case r.Approved(), !p.cfg.Now().Before(r.ExpiresAt):
			return store.ErrNotFound
		}
		r.Team, r.User, r.Role, r.By, r.DeviceName = by.Team, by.User, by.Role, by.Name, name
		return nil
	})
	if err != nil {
		return api.PairConfirmed{}, storeProblem(err)
	}
	detail := "device " + name + ", asked for from " + rec.RemoteAddr
	if rec.Client != "" {
		detail += " by " + rec.Client
	}
	if err := p.audit(ctx, audit.Record{Event: audit.PairingConfirmed, Actor: by.Name, Team: by.Team, Agent: rec.Agent, Detail: detail}); err != nil {
		return api.PairConfirmed{}, err
	}
	// So that the program's next poll finds it here. If the store does not answer now, the
	// one after that does.
	_ = p.cfg.Store.CatchUp(ctx)
	return api.PairConfirmed{Status: "approved", DeviceName: name, TeamID: by.Team, AgentID: rec.Agent}, nil
}

// byCode finds a program by the code that a person typed. Wrong ones are few a minute,
// for each person and each address, and beyond that right ones are wrong as well.
func (p *Pairing) byCode(ctx context.Context, by creds.Principal, typed string) (store.PairingRecord, error) {
	code, ok := parseCode(typed)
	if !ok {
		return store.PairingRecord{}, outOfRange("user_code: 8 letters and digits, as AB7K-PNQ3; the machine shows it")
	}
	hash := code.hash(p.cfg.Key)
	rec, known, err := p.guess(ctx, by, hash)
	if err != nil || known {
		return rec, err
	}
	if err := p.cfg.Store.CatchUp(ctx); err != nil { // the person may be faster than what feeds our copy
		return store.PairingRecord{}, storeProblem(err)
	}
	if rec, known = p.coded(hash); known {
		return rec, nil
	}
	return store.PairingRecord{}, errNotFound
}

// guess looks a code up and counts it if it is not known here.
func (p *Pairing) guess(ctx context.Context, by creds.Principal, hash string) (store.PairingRecord, bool, error) {
	p.guessing.Lock()
	defer p.guessing.Unlock()
	from, who, now := remote(ctx), string(by.User), p.cfg.Now()
	if wait := max(p.limits.guesses.Wait(from, now), p.limits.persons.Wait(who, now)); wait > 0 {
		return store.PairingRecord{}, false, tooMany("too many wrong codes", wait)
	}
	rec, known := p.coded(hash)
	if !known {
		p.limits.guesses.Take(from, now)
		p.limits.persons.Take(who, now)
	}
	return rec, known, nil
}

func (p *Pairing) coded(hash string) (store.PairingRecord, bool) {
	found := p.cfg.Store.PairingsByCode(hash)
	if len(found) != 1 || !p.cfg.Now().Before(found[0].ExpiresAt) {
		return store.PairingRecord{}, false // two of one code: nobody can tell which is meant
	}
	return found[0], true
}

// mayBind says why a pairing may not bring the machine that it names, if it names one. A
// machine that the team has already is replaced by an admin, or by whoever brought it.
func (p *Pairing) mayBind(rec store.PairingRecord, role api.Role) error {
	if rec.Agent == "" {
		return nil
	}
	key := ident.AgentKey{Team: rec.Team, Agent: rec.Agent}
	if err := p.cfg.MayAppear(key); err != nil {
		return err
	}
	if role.AtLeast(api.RoleAdmin) {
		return nil
	}
	_, theirs := p.cfg.Store.Agent(key)
	for _, c := range p.cfg.Store.AgentCredentials(key) {
		if !c.RevokedAt.IsZero() {
			continue
		}
		if theirs = c.CreatedBy != rec.By; theirs {
			break
		}
	}
	if theirs {
		return api.Problemf(api.CodeRoleRequired, "the team has a machine %s already: an admin of the team may let this one take its place, or give it another name (agent_id)", rec.Agent)
	}
	return nil
}

func (p *Pairing) audit(ctx context.Context, rec audit.Record) error {
	if t, ok := gate.TraceOf(ctx); ok {
		rec.RequestID, rec.RemoteAddr = t.Request, t.Remote
	}
	if err := p.cfg.Audit.Append(context.WithoutCancel(ctx), rec); err != nil {
		return api.Internal(err)
	}
	return nil
}

// remote is the caller's address.
func remote(ctx context.Context) string {
	t, _ := gate.TraceOf(ctx)
	return caller.Key(t.Remote)
}

func storeProblem(err error) *api.Problem {
	if errors.Is(err, store.ErrNotFound) {
		return errNotFound
	}
	if refusal := store.Refusal(err); refusal != nil {
		return refusal
	}
	return api.Internal(err)
}
