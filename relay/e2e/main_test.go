// Package e2e runs the whole of Adit as its users do: real processes, real
// sockets, real apps. The harness is in world.
package e2e

import (
	"os"
	"testing"

	"github.com/adit-tunnel/adit/relay/e2e/world"
)

func TestMain(m *testing.M) {
	code := m.Run()
	world.Cleanup()
	os.Exit(code)
}
