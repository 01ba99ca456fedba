package testkit

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// The ports that FreePort gives out lie below those that kernels take for outgoing
// connections (Linux: from 32768): otherwise a connection of another test can sit on
// a port between the moment it is given out and the moment a program listens on it.
const (
	firstPort = 12000
	lastPort  = 32000
)

// FreePort returns a TCP port of this machine on which nothing listens. It is the
// test's own until the test ends, also against tests of other processes that ask
// here. Where the code under test can take port 0, that is simpler.
func FreePort(tb testing.TB) int {
	tb.Helper()
	dir := filepath.Join(os.TempDir(), "adit-test-ports")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	for range lastPort - firstPort {
		port := firstPort + rand.IntN(lastPort-firstPort)
		mine, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(port)), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			tb.Fatal(err)
		}
		if free(mine, port) {
			tb.Cleanup(func() { _ = mine.Close() })
			return port
		}
		_ = mine.Close()
	}
	tb.Fatalf("no port is free between %d and %d", firstPort, lastPort)
	return 0
}

// free claims a port by a lock on its file, which ends with the process at the
// latest, and says whether it was to be had.
func free(claim *os.File, port int) bool {
	if syscall.Flock(int(claim.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return false
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}
