// Package zaplog owns the way of libraries' zap logs into ours: a zap logger that
// writes to a slog one. It decides no level by itself and keeps nothing.
package zaplog

import (
	"context"
	"log/slog"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// LevelFunc says at which of our levels a library's message is logged.
type LevelFunc func(level zapcore.Level, message string) slog.Level

// New returns a zap logger that writes to log. What the library calls fatal still
// ends the process after it was logged.
func New(log *slog.Logger, level LevelFunc) *zap.Logger {
	return zap.New(sink{h: log.Handler(), level: level})
}

// sink is a zapcore.Core over a slog.Handler.
type sink struct {
	h     slog.Handler
	level LevelFunc
}

// Enabled is part of zapcore.Core.
func (s sink) Enabled(l zapcore.Level) bool {
	return s.h.Enabled(context.Background(), s.level(l, ""))
}

// With is part of zapcore.Core.
func (s sink) With(fields []zapcore.Field) zapcore.Core {
	s.h = s.h.WithAttrs(attrs(fields))
	return s
}

// Check is part of zapcore.Core.
func (s sink) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if s.Enabled(e.Level) {
		return c.AddCore(e, s)
	}
	return c
}

// Write is part of zapcore.Core.
func (s sink) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := s.level(e.Level, e.Message)
	if !s.h.Enabled(context.Background(), level) {
		return nil
	}
	r := slog.NewRecord(e.Time, level, e.Message, 0)
	r.AddAttrs(attrs(fields)...)
	return s.h.Handle(context.Background(), r)
}

// Sync is part of zapcore.Core.
func (s sink) Sync() error { return nil }

// attrs gives the fields the names our logs use.
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
