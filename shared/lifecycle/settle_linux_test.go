package lifecycle_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/shared/lifecycle"
)

// The program goes on as if nothing had happened, with less of its file in memory.
func TestSettleLeavesTheProgramsPages(t *testing.T) {
	mapped := func() (kib int) {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(line, "RssFile:"); ok {
				for _, c := range rest {
					if c >= '0' && c <= '9' {
						kib = kib*10 + int(c-'0')
					}
				}
			}
		}
		return kib
	}
	before := mapped()
	lifecycle.Settle(context.Background())
	if after := mapped(); after >= before {
		t.Errorf("%d KiB of files were in memory before, %d after", before, after)
	}
}
