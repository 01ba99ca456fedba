package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/adit-tunnel/adit/shared/ident"
)

const (
	defaultMaxBytes = 64 << 20
	defaultKeep     = 16

	flushEvery   = time.Second      // for events that are not durable
	summaryEvery = 10 * time.Second // for events beyond their rate
	// maxPending bounds what waits for the disk without a caller waiting with it.
	maxPending = 1 << 20
)

// ErrClosed is returned by Append after Close.
var ErrClosed = errors.New("the audit log is closed")

// Config is what Open needs.
type Config struct {
	Dir        string // made when missing, mode 0700
	Relay      ident.RelayID
	MaxBytes   int64 // of one file; 0: 64 MiB
	Keep       int   // files; 0: 16
	Logger     *slog.Logger
	Registerer prometheus.Registerer // may be nil
}

// Log is the audit log of one relay. Appends that wait at the same time share one
// sync of the file: the first of them writes for all.
type Log struct {
	cfg Config
	m   *metrics

	mu      sync.Mutex
	pending *batch
	seq     uint64 // of the newest record
	closed  bool
	limits  map[Event]*limit

	// turn is held by whoever writes; it guards what follows.
	turn  chan struct{}
	files *files
	bad   bool // the last write went wrong; for logging changes only
}

// batch is the records that go to the disk together.
type batch struct {
	first  uint64 // seq
	data   bytes.Buffer
	events []Event
	done   chan struct{}
	err    error // valid once done is closed
}

type limit struct {
	rate       *rate.Limiter
	suppressed uint64
	told       time.Time // when suppressed was last recorded
}

// Open opens the log, repairs what a crash left behind, and continues its count.
// Only one process may have it open.
func Open(cfg Config) (*Log, error) {
	if _, err := ident.ParseRelayID(string(cfg.Relay)); err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = defaultMaxBytes
	}
	if cfg.Keep == 0 {
		cfg.Keep = defaultKeep
	}
	f, seq, err := openFiles(cfg)
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	l := &Log{cfg: cfg, m: newMetrics(cfg.Registerer), pending: newBatch(), seq: seq,
		limits: make(map[Event]*limit), turn: make(chan struct{}, 1), files: f}
	for event, r := range rules {
		if r.rate > 0 {
			l.limits[event] = &limit{rate: rate.NewLimiter(rate.Limit(r.rate), r.burst)}
		}
	}
	return l, nil
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// Append records an event. For events by which the gate's history can be checked,
// and those that grant or take rights, it returns once the record is on the disk;
// others are written within a second while Run runs. An error means that the
// record is not known to be on the disk, and when ctx ended, that it may come to be.
func (l *Log) Append(ctx context.Context, r Record) error {
	how, known := rules[r.Event]
	if !known {
		return fmt.Errorf("append audit record: no such event %q", string(r.Event))
	}
	b, err := l.add(r)
	if b == nil || err != nil {
		return err
	}
	if !how.durable && !l.full(b) {
		return nil
	}
	return l.commit(ctx, b)
}

// add puts a record into the pending batch; nil when its event is over its rate.
func (l *Log) add(r Record) (*batch, error) {
	r.clean()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	now := time.Now()
	if lim := l.limits[r.Event]; lim != nil && !lim.rate.AllowN(now, 1) {
		if lim.suppressed == 0 {
			lim.told = now // the summary comes a while after the first
		}
		lim.suppressed++
		l.m.records.WithLabelValues(string(r.Event), "limited").Inc()
		return nil, nil
	}
	return l.pending, l.put(r, now)
}

// put needs mu.
func (l *Log) put(r Record, now time.Time) error {
	r.Time, r.Relay, r.Seq = now.UTC(), l.cfg.Relay, l.seq+1
	b := l.pending
	if err := json.NewEncoder(&b.data).Encode(r); err != nil { // ends with a newline
		return fmt.Errorf("append audit record: %w", err)
	}
	if len(b.events) == 0 {
		b.first = r.Seq
	}
	b.events = append(b.events, r.Event)
	l.seq = r.Seq
	return nil
}

func (l *Log) full(b *batch) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return b.data.Len() > maxPending
}

// commit returns when b is on the disk, written by this caller or another.
func (l *Log) commit(ctx context.Context, b *batch) error {
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return fmt.Errorf("append audit record: %w", context.Cause(ctx))
	case l.turn <- struct{}{}:
	}
	defer func() { <-l.turn }()
	select {
	case <-b.done: // both were ready
	default:
		l.write()
	}
	return b.err
}

// write puts the pending batch on the disk; the caller holds the turn. While it
// does, the next batch fills.
func (l *Log) write() {
	l.mu.Lock()
	b := l.pending
	if len(b.events) == 0 {
		l.mu.Unlock()
		return
	}
	l.pending = newBatch()
	l.mu.Unlock()

	began := time.Now()
	err := l.files.write(b.data.Bytes(), b.first)
	outcome := "written"
	if err != nil {
		b.err, outcome = fmt.Errorf("write audit log: %w", err), "error"
	} else {
		l.m.sync.Observe(time.Since(began).Seconds())
	}
	for _, event := range b.events {
		l.m.records.WithLabelValues(string(event), outcome).Inc()
	}
	if bad := err != nil; bad != l.bad { // changes only: callers have the error itself
		l.bad = bad
		if bad {
			l.cfg.Logger.Error("audit log cannot be written", "dir", l.cfg.Dir, "error", err)
		} else {
			l.cfg.Logger.Info("audit log is written again", "dir", l.cfg.Dir)
		}
	}
	close(b.done)
}

// Flush writes what is pending and returns when it is on the disk.
func (l *Log) Flush(ctx context.Context) error {
	l.mu.Lock()
	b := l.pending
	if len(b.events) == 0 || l.closed {
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	return l.commit(ctx, b)
}

// Run writes what nobody waits for, until ctx ends.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			l.summarize(true)
			_ = l.Flush(context.WithoutCancel(ctx)) // write reported it
			return nil
		case <-tick.C:
			l.summarize(false)
			_ = l.Flush(context.WithoutCancel(ctx))
		}
	}
}

// summarize records how many events were beyond their rate.
func (l *Log) summarize(all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for event, lim := range l.limits {
		if lim.suppressed == 0 || l.closed || !all && now.Sub(lim.told) < summaryEvery {
			continue
		}
		r := Record{Event: event, Actor: "relay", Detail: fmt.Sprintf("%d more were not recorded one by one", lim.suppressed)}
		if l.put(r, now) == nil {
			lim.suppressed = 0
		}
	}
}

// Close writes what is pending and closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	b := l.pending
	l.mu.Unlock()

	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	l.write()
	return errors.Join(b.err, l.files.close())
}
