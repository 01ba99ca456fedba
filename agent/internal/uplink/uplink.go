// Package uplink owns the agent's presence at the relays: it dials them, keeps the
// control conversation on each link, heals what breaks, and knows which tunnels
// are open. It never reads a tunnel's bytes: streams are handed to the desk.
package uplink

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/wire"
)

// ErrOffline is wrapped by errors of calls that need a link while there is none.
var ErrOffline = errors.New("no link to a relay")

// Dialer makes one attempt to link to a relay. Its errors wrap *carrier.RefusedError
// when the relay answered.
type Dialer func(ctx context.Context, url string) (*link.Link, error)

// Machine is what the uplink tells relays about this machine.
type Machine interface {
	Facts() wire.Facts
	State() wire.State
	Subscribe() (changed <-chan struct{}, cancel func())
}

// Desk takes the streams of a link.
type Desk interface {
	Serve(ctx context.Context, l *link.Link) error
	Cut(ident.SessionID) int
	Busy() (moving, open int)
}

// Config is what an Uplink needs.
type Config struct {
	RelayURLs    []string
	Links        int           // main links, to different relays where there are several
	ExtraLinks   int           // beside each of them, while a tunnel is open
	ExtraIdle    time.Duration // how long those are kept after the last tunnel closed; default 1 min
	Agent        ident.AgentID
	Version      string
	Platform     string
	Labels       map[string]string
	Capabilities []string
	TaskCapacity int

	Dial       Dialer
	Machine    Machine
	Desk       Desk
	Probe      func(context.Context, wire.Probe) wire.Probed
	Tunnels    *Tunnels
	StopGrace  time.Duration     // how long streams that move may go on when Run's context ends
	StopQuiet  time.Duration     // how long nothing moved on streams that are not waited for; 0: a second
	Kill       <-chan struct{}   // closed: do not wait for them any longer; nil: never
	Notify     func(text string) // told in a few words when a link comes or goes; may be nil
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Uplink keeps one or more links.
type Uplink struct {
	conf     Config
	instance string
	metrics  *metrics
	quiet    chan struct{}  // closed when a stopping uplink has waited for its streams
	retired  sync.WaitGroup // links whose relay stops, with another in their place

	mu         sync.Mutex
	seen       uint64                // highest generation
	live       map[*session]struct{} // admitted
	changed    chan struct{}         // closed and replaced when live or holdOff changes
	superseded string                // why this process stays away; empty: it does not
	lastError  string
}

// New returns an Uplink; Run starts it.
func New(conf Config) *Uplink {
	if conf.StopQuiet == 0 {
		conf.StopQuiet = time.Second
	}
	if conf.ExtraIdle == 0 {
		conf.ExtraIdle = time.Minute
	}
	if conf.Notify == nil {
		conf.Notify = func(string) {}
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // crypto/rand.Read never fails since Go 1.24
	return &Uplink{
		conf:     conf,
		instance: hex.EncodeToString(id),
		metrics:  newMetrics(conf.Registerer),
		quiet:    make(chan struct{}),
		live:     map[*session]struct{}{},
		changed:  make(chan struct{}),
	}
}

// Run keeps the links until ctx ends. Then streams that move get StopGrace to
// finish, the relays are told, and Run returns with no goroutine left.
func (u *Uplink) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer u.retired.Wait()
	defer wg.Wait()
	wg.Go(func() { u.conf.Tunnels.run(ctx) })
	wg.Go(func() { u.waitQuiet(ctx) })
	for i := range u.conf.Links {
		wg.Go(func() { u.keep(ctx, i) })
		for k := range u.conf.ExtraLinks {
			wg.Go(func() { u.extra(ctx, i, k) })
		}
	}
	return nil
}

// waitQuiet closes u.quiet when ctx has ended and nobody would miss the streams:
// none is left, or nothing moves on those that are, for longer than an app that
// sends in pieces takes a breath.
func (u *Uplink) waitQuiet(ctx context.Context) {
	<-ctx.Done()
	defer close(u.quiet)
	u.conf.Desk.Busy() // from here on counts what moves
	limit := time.NewTimer(u.conf.StopGrace)
	defer limit.Stop()
	look := time.NewTicker(busyLook)
	defer look.Stop()
	last := time.Now() // when something moved
	for {
		select {
		case <-look.C:
			moving, open := u.conf.Desk.Busy()
			if moving > 0 {
				last = time.Now()
			}
			if open == 0 || time.Since(last) >= u.conf.StopQuiet {
				return
			}
		case <-limit.C:
			return
		case <-u.conf.Kill:
			return
		}
	}
}

const busyLook = 250 * time.Millisecond

// Epoch is the highest generation that a relay gave this process.
func (u *Uplink) Epoch() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.seen
}

// Instance is this process's random name.
func (u *Uplink) Instance() string { return u.instance }

// Online says whether a link is up.
func (u *Uplink) Online() bool { return u.first() != nil }

// first is the living session that counts: the lowest index.
func (u *Uplink) first() *session {
	u.mu.Lock()
	defer u.mu.Unlock()
	var best *session
	for s := range u.live {
		if s.generation == u.seen && (best == nil || s.index < best.index) {
			best = s
		}
	}
	return best
}

// Wait waits until a link is up. Its error wraps ErrOffline.
func (u *Uplink) Wait(ctx context.Context) error {
	for {
		changed := u.changes()
		if u.Online() {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrOffline, context.Cause(ctx))
		case <-changed:
		}
	}
}

// changes returns a channel that is closed at the next coming or going of a link.
func (u *Uplink) changes() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.changed
}

// OpenGate opens a stream on which the relay serves this agent's own routes.
func (u *Uplink) OpenGate(ctx context.Context, request ident.RequestID) (net.Conn, error) {
	s := u.first()
	if s == nil {
		return nil, ErrOffline
	}
	c, err := link.OpenHello(ctx, s.link, wire.Hello{Kind: wire.KindGate, Epoch: s.generation, Request: request})
	if err != nil {
		return nil, fmt.Errorf("open gate stream: %w", err)
	}
	return c, nil
}

// admit takes a welcomed session among the living ones, or says why not.
func (u *Uplink) admit(s *session, w *wire.Welcome) error {
	alone, err := u.enter(s, w)
	if err != nil {
		return err
	}
	u.conf.Tunnels.welcome(w, alone)
	return nil
}

// enter is admit's part under the lock; alone says that no other link is up.
func (u *Uplink) enter(s *session, w *wire.Welcome) (alone bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case w.Generation < u.seen:
		return false, &ending{reason: reasonStale, err: fmt.Errorf("relay %s offers generation %d, but %d was seen: its store was set back, or it is not what it was", w.Relay, w.Generation, u.seen)}
	case s.joins && w.Generation != u.seen:
		return false, &ending{reason: reasonNotJoined, err: fmt.Errorf("relay %s did not join link %d to this agent's session", w.Relay, s.index)}
	}
	alone = true
	for other := range u.live {
		if other.generation == w.Generation {
			alone = false
		}
	}
	s.generation, s.relay, s.since, s.relays = w.Generation, w.Relay, time.Now(), w.Relays
	u.seen = w.Generation
	u.live[s] = struct{}{}
	u.superseded, u.lastError = "", ""
	u.count()
	u.bump()
	return alone, nil
}

func (u *Uplink) leave(s *session) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, ok := u.live[s]; !ok {
		return
	}
	delete(u.live, s)
	u.count()
	u.bump()
}

// count tells the metrics how many links are up; u.mu is held.
func (u *Uplink) count() {
	extra := 0
	for s := range u.live {
		if s.isExtra() {
			extra++
		}
	}
	u.metrics.up.Set(float64(len(u.live) - extra))
	u.metrics.extra.Set(float64(extra))
}

// bump wakes whoever waits for a change; u.mu is held.
func (u *Uplink) bump() {
	close(u.changed)
	u.changed = make(chan struct{})
}

// current says whether a session's word still counts.
func (u *Uplink) current(s *session) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return s.generation == u.seen
}

// setSuperseded notes that this process stays away, and why.
func (u *Uplink) setSuperseded(detail string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.superseded = detail
	u.bump()
}

func (u *Uplink) setLastError(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.lastError = err.Error()
}

// mayJoin waits until a further link may be dialled: another one is up, so no other
// process took this one's place.
func (u *Uplink) mayJoin(ctx context.Context) error {
	for {
		changed := u.changes()
		if u.Online() {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// Status returns the present links, the first one first.
func (u *Uplink) Status() status.Links {
	u.mu.Lock()
	defer u.mu.Unlock()
	st := status.Links{Generation: u.seen, Instance: u.instance, Superseded: u.superseded, LastError: u.lastError, Up: []status.Link{}}
	for s := range u.live {
		st.Up = append(st.Up, status.Link{
			Index: s.index, URL: s.url, Relay: s.relay, Since: s.since.UTC(), RTTMillis: s.rttMillis(),
			Congestion: s.link.Congestion(), Carrier: s.link.Carrier(), Streams: s.link.NumStreams(),
		})
	}
	slices.SortFunc(st.Up, func(a, b status.Link) int { return a.Index - b.Index })
	return st
}
