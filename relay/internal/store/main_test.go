package store_test

import (
	"os"
	"testing"

	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) {
	// A child of TestKill is this same binary.
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(child(dir))
	}
	testkit.LeakCheck(m)
}
