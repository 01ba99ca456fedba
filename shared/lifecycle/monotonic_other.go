//go:build !linux

package lifecycle

// monotonicMicros is for systemd, which only Linux has.
func monotonicMicros() int64 { return 0 }
