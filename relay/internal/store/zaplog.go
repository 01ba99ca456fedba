package store

import (
	"log/slog"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/adit-tunnel/adit/relay/internal/zaplog"
)

// newZap returns a zap logger that writes to log. etcd's info is our debug: it
// reports each step of its routine. Its warnings are lowered too where warn says
// so. What etcd calls fatal (it could not write its log, for one) still ends the
// process after it was logged: a store that cannot keep its promises must not go on.
func newZap(log *slog.Logger, warn slog.Level) *zap.Logger {
	return zaplog.New(log, func(l zapcore.Level, message string) slog.Level {
		switch {
		case l < zapcore.WarnLevel:
			return slog.LevelDebug
		case l <= zapcore.ErrorLevel && slices.ContainsFunc(routine, func(r string) bool { return strings.Contains(message, r) }):
			return slog.LevelDebug
		case l >= zapcore.ErrorLevel:
			return slog.LevelError
		}
		return warn
	})
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
