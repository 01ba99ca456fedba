package rights_test

import (
	"testing"

	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }
