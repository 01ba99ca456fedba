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

	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	defaultMaxBytes = 64 << 20
	defaultKeep     = 16

	flushEvery = time.Second // for events that are not durable
	// maxPending bounds what waits for the disk without a caller waiting with it:
	// events that are not durable are left out beyond it.
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
	repeats *repeats
	shares  *shares

	// turn is held by whoever writes; it guards what follows.
	turn  chan struct{}
	files *files
	bad   bool // the last write went wrong; for logging changes only
}

// batch is the records that go to the disk together.
type batch struct {
	lanes  [lanes]part
	events []Event
	done   chan struct{}
	err    error // valid once done is closed
}

// part is a batch's records of one lane.
type part struct {
	first uint64 // seq
	data  bytes.Buffer
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
	return &Log{
		cfg: cfg, m: newMetrics(cfg.Registerer), pending: newBatch(), seq: seq,
		repeats: newRepeats(), shares: newShares(cfg.MaxBytes), turn: make(chan struct{}, 1), files: f,
	}, nil
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// Append records an event. For events by which the gate's history can be checked,
// and those that grant or take rights, it returns once the record is on the disk;
// others do not wait: they are written within a second while Run runs, and of those
// that a caller causes again and again most are only counted (Record.LeftOut). An
// error means that the record is not known to be on the disk, and when ctx ended,
// that it may come to be.
func (l *Log) Append(ctx context.Context, r Record) error {
	how, known := rules[r.Event]
	if !known {
		return fmt.Errorf("append audit record: no such event %q", string(r.Event))
	}
	b, err := l.add(r)
	if err != nil || !how.durable {
		return err
	}
	return l.commit(ctx, b)
}

// add puts a record into the pending batch, unless there are too many like it.
func (l *Log) add(r Record) (*batch, error) {
	r.clean()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	now := time.Now()
	if !rules[r.Event].durable && !l.repeats.admit(&r, now, l.pending.size() < maxPending) {
		l.m.records.WithLabelValues(string(r.Event), "limited").Inc()
		return nil, nil
	}
	return l.pending, l.put(r, now)
}

// put needs mu.
func (l *Log) put(r Record, now time.Time) error {
	r.Time, r.Relay, r.Seq = now.UTC(), l.cfg.Relay, l.seq+1
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("append audit record: %w", err)
	}
	line = append(line, '\n')
	b := l.pending
	p := &b.lanes[l.shares.lane(r, len(line), now)]
	if p.data.Len() == 0 {
		p.first = r.Seq
	}
	p.data.Write(line)
	b.events = append(b.events, r.Event)
	l.seq = r.Seq
	return nil
}

func (b *batch) size() (n int) {
	for i := range b.lanes {
		n += b.lanes[i].data.Len()
	}
	return n
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
	err := l.files.write(b)
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

// summarize records how many were left out, where no record has told since.
func (l *Log) summarize(all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	now := time.Now()
	for _, r := range l.repeats.summaries(now, all) {
		_ = l.put(r, now) // it was encoded before
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
