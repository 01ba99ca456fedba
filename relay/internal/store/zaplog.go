package store

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap returns a zap logger that writes to log. etcd's info is our debug: it
// reports each step of its routine. Its warnings are lowered too where warn says
// so. What etcd calls fatal (it could not write its log, for one) still ends the
// process after it was logged: a store that cannot keep its promises must not go on.
func newZap(log *slog.Logger, warn slog.Level) *zap.Logger {
	return zap.New(zapSink{h: log.Handler(), warn: warn})
}

// zapSink is a zapcore.Core over a slog.Handler.
type zapSink struct {
	h    slog.Handler
	warn slog.Level
}

// routine are warnings and errors about what is so by design (a socket in a
// directory of our own, no users inside etcd), about a new data directory, and
// about each clean stop. A listener that ends at another time is reported by Run.
var routine = []string{
	"Running http and grpc server on single port",
	"simple token is not cryptographically signed",
	"Failed to detect schema version",
	"failed to update storage version",
	"setting up serving from embedded etcd failed",
	"insecure grpc server due to error",
}

func (z zapSink) level(l zapcore.Level, message string) slog.Level {
	switch {
	case l < zapcore.WarnLevel:
		return slog.LevelDebug
	case l <= zapcore.ErrorLevel && slices.ContainsFunc(routine, func(r string) bool { return strings.Contains(message, r) }):
		return slog.LevelDebug
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	}
	return z.warn
}

// Enabled is part of zapcore.Core.
func (z zapSink) Enabled(l zapcore.Level) bool {
	return z.h.Enabled(context.Background(), z.level(l, ""))
}

// With is part of zapcore.Core.
func (z zapSink) With(fields []zapcore.Field) zapcore.Core {
	z.h = z.h.WithAttrs(attrs(fields))
	return z
}

// Check is part of zapcore.Core.
func (z zapSink) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if z.Enabled(e.Level) {
		return c.AddCore(e, z)
	}
	return c
}

// Write is part of zapcore.Core.
func (z zapSink) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := z.level(e.Level, e.Message)
	if !z.h.Enabled(context.Background(), level) {
		return nil
	}
	r := slog.NewRecord(e.Time, level, e.Message, 0)
	r.AddAttrs(attrs(fields)...)
	return z.h.Handle(context.Background(), r)
}

// Sync is part of zapcore.Core.
func (z zapSink) Sync() error { return nil }

// attrs gives etcd's fields the names our logs use.
func attrs(fields []zapcore.Field) []slog.Attr {
	out := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		for k, v := range enc.Fields {
			out = append(out, slog.Any(strings.NewReplacer("-", "_", " ", "_").Replace(k), v))
		}
	}
	return out
}
